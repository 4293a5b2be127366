-- A day a partition, made and extended from sessions in UTC; retention '30 days', which only detaches.
-- It missed its 30 March: pg_partman's first maintenance after days without rows left it out.
CREATE TABLE public.daily_utc (
    id bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    note text
)
PARTITION BY RANGE (at);
ALTER TABLE public.daily_utc ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY;
CREATE TABLE public.daily_utc_p2026_03_22 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-22 00:00:00+00') TO ('2026-03-23 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_23 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-23 00:00:00+00') TO ('2026-03-24 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_24 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-24 00:00:00+00') TO ('2026-03-25 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_25 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-25 00:00:00+00') TO ('2026-03-26 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_26 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-26 00:00:00+00') TO ('2026-03-27 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_27 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-27 00:00:00+00') TO ('2026-03-28 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_28 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-28 00:00:00+00') TO ('2026-03-29 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_29 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-29 00:00:00+00') TO ('2026-03-30 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_03_30 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-30 00:00:00+00') TO ('2026-03-31 00:00:00+00');
CREATE TABLE public.daily_utc_default PARTITION OF public.daily_utc DEFAULT;
CREATE TABLE public.daily_utc_p2026_03_31 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-03-31 00:00:00+00') TO ('2026-04-01 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_01 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-01 00:00:00+00') TO ('2026-04-02 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_02 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-02 00:00:00+00') TO ('2026-04-03 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_03 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-03 00:00:00+00') TO ('2026-04-04 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_04 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-04 00:00:00+00') TO ('2026-04-05 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_05 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-05 00:00:00+00') TO ('2026-04-06 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_06 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-06 00:00:00+00') TO ('2026-04-07 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_07 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-07 00:00:00+00') TO ('2026-04-08 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_08 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-08 00:00:00+00') TO ('2026-04-09 00:00:00+00');
CREATE TABLE public.daily_utc_p2026_04_09 PARTITION OF public.daily_utc FOR VALUES FROM ('2026-04-09 00:00:00+00') TO ('2026-04-10 00:00:00+00');
