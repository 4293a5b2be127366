-- An hour a partition, made from a session in Europe/Berlin over the night that has 02:00 twice: there is no
-- partition for 01:00 to 02:00 UTC.
CREATE TABLE public.hourly_berlin (
    at timestamp with time zone NOT NULL,
    note text
)
PARTITION BY RANGE (at);
CREATE TABLE public.hourly_berlin_p2025_10_25_2300 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-25 21:00:00+00') TO ('2025-10-25 22:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0000 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-25 22:00:00+00') TO ('2025-10-25 23:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0100 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-25 23:00:00+00') TO ('2025-10-26 00:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0200 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 00:00:00+00') TO ('2025-10-26 01:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0300 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 02:00:00+00') TO ('2025-10-26 03:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0400 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 03:00:00+00') TO ('2025-10-26 04:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0500 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 04:00:00+00') TO ('2025-10-26 05:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0600 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 05:00:00+00') TO ('2025-10-26 06:00:00+00');
CREATE TABLE public.hourly_berlin_p2025_10_26_0700 PARTITION OF public.hourly_berlin FOR VALUES FROM ('2025-10-26 06:00:00+00') TO ('2025-10-26 07:00:00+00');
CREATE TABLE public.hourly_berlin_default PARTITION OF public.hourly_berlin DEFAULT;
