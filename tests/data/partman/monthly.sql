-- A month a partition, made from a session in Europe/Berlin; retention '12 months', which drops.
CREATE TABLE public.monthly (
    id bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    note text
)
PARTITION BY RANGE (at);
ALTER TABLE ONLY public.monthly
    ADD CONSTRAINT monthly_pkey PRIMARY KEY (id, at);
CREATE TABLE public.monthly_p2025_09 PARTITION OF public.monthly FOR VALUES FROM ('2025-08-31 22:00:00+00') TO ('2025-09-30 22:00:00+00');
CREATE TABLE public.monthly_p2025_10 PARTITION OF public.monthly FOR VALUES FROM ('2025-09-30 22:00:00+00') TO ('2025-10-31 23:00:00+00');
CREATE TABLE public.monthly_p2025_11 PARTITION OF public.monthly FOR VALUES FROM ('2025-10-31 23:00:00+00') TO ('2025-11-30 23:00:00+00');
CREATE TABLE public.monthly_p2025_12 PARTITION OF public.monthly FOR VALUES FROM ('2025-11-30 23:00:00+00') TO ('2025-12-31 23:00:00+00');
CREATE TABLE public.monthly_p2026_01 PARTITION OF public.monthly FOR VALUES FROM ('2025-12-31 23:00:00+00') TO ('2026-01-31 23:00:00+00');
CREATE TABLE public.monthly_p2026_02 PARTITION OF public.monthly FOR VALUES FROM ('2026-01-31 23:00:00+00') TO ('2026-02-28 23:00:00+00');
CREATE TABLE public.monthly_p2026_03 PARTITION OF public.monthly FOR VALUES FROM ('2026-02-28 23:00:00+00') TO ('2026-03-31 22:00:00+00');
CREATE TABLE public.monthly_p2026_04 PARTITION OF public.monthly FOR VALUES FROM ('2026-03-31 22:00:00+00') TO ('2026-04-30 22:00:00+00');
CREATE TABLE public.monthly_p2026_05 PARTITION OF public.monthly FOR VALUES FROM ('2026-04-30 22:00:00+00') TO ('2026-05-31 22:00:00+00');
CREATE TABLE public.monthly_p2026_06 PARTITION OF public.monthly FOR VALUES FROM ('2026-05-31 22:00:00+00') TO ('2026-06-30 22:00:00+00');
CREATE TABLE public.monthly_default PARTITION OF public.monthly DEFAULT;
