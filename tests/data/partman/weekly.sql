-- A week a partition, by a date.
CREATE TABLE public.weekly (
    day date NOT NULL,
    note text
)
PARTITION BY RANGE (day);
CREATE TABLE public.weekly_p2026w08 PARTITION OF public.weekly FOR VALUES FROM ('2026-02-16') TO ('2026-02-23');
CREATE TABLE public.weekly_p2026w09 PARTITION OF public.weekly FOR VALUES FROM ('2026-02-23') TO ('2026-03-02');
CREATE TABLE public.weekly_p2026w10 PARTITION OF public.weekly FOR VALUES FROM ('2026-03-02') TO ('2026-03-09');
CREATE TABLE public.weekly_p2026w11 PARTITION OF public.weekly FOR VALUES FROM ('2026-03-09') TO ('2026-03-16');
CREATE TABLE public.weekly_p2026w12 PARTITION OF public.weekly FOR VALUES FROM ('2026-03-16') TO ('2026-03-23');
CREATE TABLE public.weekly_p2026w13 PARTITION OF public.weekly FOR VALUES FROM ('2026-03-23') TO ('2026-03-30');
CREATE TABLE public.weekly_p2026w14 PARTITION OF public.weekly FOR VALUES FROM ('2026-03-30') TO ('2026-04-06');
CREATE TABLE public.weekly_p2026w15 PARTITION OF public.weekly FOR VALUES FROM ('2026-04-06') TO ('2026-04-13');
CREATE TABLE public.weekly_p2026w16 PARTITION OF public.weekly FOR VALUES FROM ('2026-04-13') TO ('2026-04-20');
CREATE TABLE public.weekly_p2026w17 PARTITION OF public.weekly FOR VALUES FROM ('2026-04-20') TO ('2026-04-27');
CREATE TABLE public.weekly_default PARTITION OF public.weekly DEFAULT;
CREATE TABLE public.weekly_p2026w18 PARTITION OF public.weekly FOR VALUES FROM ('2026-04-27') TO ('2026-05-04');
CREATE TABLE public.weekly_p2026w19 PARTITION OF public.weekly FOR VALUES FROM ('2026-05-04') TO ('2026-05-11');
