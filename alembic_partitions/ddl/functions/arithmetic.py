"""The windows of :mod:`alembic_partitions.periods`, in PL/pgSQL: where each begins and ends.

A key is a ``timestamp`` here, whatever its column holds: instants (timestamptz, integers, UUIDv7s) in UTC, a
date as its midnight; ``-infinity`` and ``infinity`` are MINVALUE and MAXVALUE. ``t`` is a managed table, its
policy and what the catalog says of it, as ``_partition_tables()`` returns them.
"""

from .routine import Routine

FIRST_DAY = Routine(
    "_partition_first_day",
    "t jsonb, number bigint",
    "date",
    """
DECLARE
  every integer := (t ->> 'every')::integer;
  months bigint := number * every * CASE t ->> 'interval'
    WHEN 'month' THEN 1 WHEN 'quarter' THEN 3 WHEN 'year' THEN 12 END;
  year integer; days bigint;
BEGIN
  IF months IS NOT NULL THEN
    year := 1970 + floor(months / 12.0);
    IF year NOT BETWEEN 1 AND 9999 THEN
      RETURN NULL;
    END IF;
    RETURN make_date(year, (months - (year - 1970) * 12 + 1)::integer, 1);
  END IF;
  days := CASE t ->> 'interval' WHEN 'week' THEN number * every * 7 - (t ->> 'week_offset')::integer
    WHEN 'day' THEN number * every ELSE number END;
  RETURN CASE WHEN days BETWEEN -719162 AND 2932896 THEN date '1970-01-01' + days::integer END;
END
""",
    "the local date on which a window (of hours: a day of them) begins; NULL off the calendar",
)

NUMBER = Routine(
    "_partition_number",
    "t jsonb, day date",
    "bigint",
    """
DECLARE
  every integer := (t ->> 'every')::integer;
  days integer := day - date '1970-01-01';
  months integer := CASE t ->> 'interval' WHEN 'month' THEN 1 WHEN 'quarter' THEN 3 WHEN 'year' THEN 12 END;
BEGIN
  IF months IS NOT NULL THEN
    RETURN floor(((extract(year FROM day) - 1970) * 12 + extract(month FROM day) - 1) / (months * every));
  END IF;
  RETURN CASE t ->> 'interval'
    WHEN 'week' THEN floor((days + (t ->> 'week_offset')::integer) / (every * 7.0))
    WHEN 'day' THEN floor(days / every::numeric) ELSE days END;
END
""",
    "the number of the window of a local date, counted from 1970",
)

EDGE_INSTANT = Routine(
    "_partition_edge_instant",
    "t jsonb, number bigint",
    "timestamp",
    """
DECLARE
  day date := _partition_first_day(t, number);
BEGIN
  -- The package knows no clock changes after 2037, so here none are made either.
  IF day > date '2038-01-01' AND ((t -> 'zones' ->> (t ->> 'timezone'))::boolean
      OR t ->> 'key_type' = 'timestamp' AND (t -> 'zones' ->> (t ->> 'column_timezone'))::boolean) THEN
    RETURN NULL;
  END IF;
  RETURN _partition_first_instant(day + (t ->> 'day_start')::time, t ->> 'timezone');
END
""",
    "the instant at which a window begins; NULL off the calendar",
)

KEY_AT = Routine(
    "_partition_key_at",
    "t jsonb, instant timestamp",
    "timestamp",
    """
BEGIN
  RETURN CASE t ->> 'key_type'
    WHEN 'date' THEN _partition_day_of(t, instant)::timestamp
    WHEN 'timestamp' THEN _partition_wall(instant, t ->> 'column_timezone')
    ELSE instant END;
END
""",
    "the key of a row that is written at an instant",
)

DAY_OF = Routine(
    "_partition_day_of",
    "t jsonb, instant timestamp",
    "date",
    """
BEGIN
  RETURN (_partition_wall(instant, t ->> 'timezone') - (t ->> 'day_start')::interval)::date;
END
""",
    "the local date of an instant",
)

INSTANT_OF = Routine(
    "_partition_instant_of",
    "t jsonb, key timestamp",
    "timestamp",
    """
BEGIN
  RETURN CASE t ->> 'key_type'
    WHEN 'date' THEN _partition_first_instant(key + (t ->> 'day_start')::interval, t ->> 'timezone')
    WHEN 'timestamp' THEN _partition_first_instant(key, t ->> 'column_timezone')
    ELSE key END;
END
""",
    "the instant that a key stands for: of a date, the begin of that day",
)

EDGE = Routine(
    "_partition_edge",
    "t jsonb, number bigint",
    "timestamp",
    """
BEGIN
  IF t ->> 'key_type' = 'date' THEN
    RETURN _partition_first_day(t, number);
  ELSIF t ->> 'key_type' = 'timestamp' AND t ->> 'timezone' = t ->> 'column_timezone' THEN
    RETURN _partition_first_day(t, number) + (t ->> 'day_start')::time;
  END IF;
  RETURN _partition_key_at(t, _partition_edge_instant(t, number));
END
""",
    "the key at which a window begins; NULL off the calendar",
)

HOUR_MARKS = Routine(
    "_partition_hour_marks",
    "t jsonb, begins timestamp, ends timestamp",
    "timestamp[]",
    """
DECLARE
  zone text := t ->> 'timezone';
  seconds integer := (t ->> 'every')::integer * 3600;
  zero timestamp := timestamp '1970-01-01' + (t ->> 'day_start')::interval;
  marks timestamp[] := ARRAY[begins];
  cuts timestamp[] := ARRAY[begins];
  low timestamp := begins; high timestamp; start timestamp; stop timestamp; strike timestamp;
  zone_offset interval; slot bigint; below integer; above integer; middle integer;
BEGIN
  -- Where the offset changes, to the second.
  WHILE low < ends LOOP
    high := least(low + interval '1 hour', ends);
    zone_offset := _partition_wall(low, zone) - low;
    IF _partition_wall(high, zone) - high <> zone_offset THEN
      below := 0;
      above := extract(epoch FROM high - low);
      WHILE below < above LOOP
        middle := (below + above) / 2;
        start := low + middle * interval '1 second';
        IF _partition_wall(start, zone) - start <> zone_offset THEN
          above := middle;
        ELSE
          below := middle + 1;
        END IF;
      END LOOP;
      cuts := cuts || (low + below * interval '1 second');
    END IF;
    low := high;
  END LOOP;
  cuts := cuts || ends;
  -- A window begins each time the clocks strike an hour of the grid, and where they jump over one.
  FOR i IN 1 .. cardinality(cuts) - 1 LOOP
    start := cuts[i];
    stop := cuts[i + 1];
    CONTINUE WHEN start >= stop;
    IF start > begins AND floor(extract(epoch FROM _partition_wall(start, zone) - zero) / seconds)
        > floor(extract(epoch FROM _partition_wall(start - interval '1 second', zone)
                + interval '999999 microseconds' - zero) / seconds) THEN
      marks := marks || start;
    END IF;
    zone_offset := _partition_wall(start, zone) - start;
    slot := ceil(extract(epoch FROM start + zone_offset - zero) / seconds);
    LOOP
      strike := zero + slot * seconds * interval '1 second' - zone_offset;
      EXIT WHEN strike >= stop;
      marks := marks || strike;
      slot := slot + 1;
    END LOOP;
  END LOOP;
  RETURN ARRAY(SELECT DISTINCT mark FROM unnest(marks) mark ORDER BY mark) || ends;
END
""",
    "where the windows of a local day begin, counted in hours on the clocks of the zone, and its end",
)

WINDOW = Routine(
    "_partition_window",
    "t jsonb, key timestamp, OUT lower timestamp, OUT upper timestamp, OUT suffix text",
    "record",
    """
DECLARE
  type text := t ->> 'key_type';
  number bigint; first timestamp; last timestamp; marks timestamp[]; at integer; shown timestamp; day date;
BEGIN
  -- Around a clock change the local date is only a first guess; the edges decide.
  number := _partition_number(t, CASE
    WHEN type = 'date' THEN key::date
    WHEN type <> 'timestamp' THEN _partition_day_of(t, key)
    WHEN t ->> 'timezone' = t ->> 'column_timezone' THEN (key - (t ->> 'day_start')::interval)::date
    ELSE _partition_day_of(t, _partition_first_instant(key, t ->> 'column_timezone')) END);
  first := _partition_edge(t, number);
  WHILE first > key LOOP
    number := number - 1;
    first := _partition_edge(t, number);
  END LOOP;
  last := _partition_edge(t, number + 1);
  WHILE last <= key LOOP
    number := number + 1;
    first := last;
    last := _partition_edge(t, number + 1);
  END LOOP;
  IF first IS NULL OR last IS NULL THEN
    RETURN;
  END IF;
  IF t ->> 'interval' = 'hour' THEN
    marks := _partition_hour_marks(t, _partition_edge_instant(t, number),
      _partition_edge_instant(t, number + 1));
    FOR i IN 1 .. cardinality(marks) - 1 LOOP
      EXIT WHEN _partition_key_at(t, marks[i]) > key;
      at := i;
    END LOOP;
    first := _partition_key_at(t, marks[at]);
    last := _partition_key_at(t, marks[at + 1]);
    shown := _partition_wall(marks[at], t ->> 'timezone');
    suffix := to_char(shown, CASE WHEN shown = date_trunc('hour', shown) THEN 'YYYY_MM_DD_HH24'
      WHEN shown = date_trunc('minute', shown) THEN 'YYYY_MM_DD_HH24MI' ELSE 'YYYY_MM_DD_HH24MISS' END)
      || CASE WHEN _partition_first_instant(shown, t ->> 'timezone') < marks[at] THEN 'b' ELSE '' END;
  ELSE
    day := _partition_first_day(t, number);
    suffix := to_char(day::timestamp, CASE t ->> 'interval' WHEN 'quarter' THEN 'YYYY"_q"Q'
      WHEN 'month' THEN 'YYYY_MM' WHEN 'year' THEN 'YYYY' ELSE 'YYYY_MM_DD' END);
  END IF;
  -- What the column can hold.
  IF type = 'epoch_s_int4' AND (first < '1901-12-13 20:45:52' OR last > '2038-01-19 03:14:07')
      OR type = 'epoch_ns' AND (first < '1677-09-21 00:12:43.145225' OR last > '2262-04-11 23:47:16.854775')
      OR starts_with(type, 'uuidv7') AND first < '1970-01-01' THEN
    suffix := NULL;
    RETURN;
  END IF;
  lower := first;
  upper := last;
END
""",
    "the window that holds a key; NULL where none can",
)

CUTOFF = Routine(
    "_partition_cutoff",
    "t jsonb, instant timestamp",
    "timestamp",
    """
DECLARE
  line timestamp;
BEGIN
  IF t ->> 'retention' IS NULL THEN
    RETURN NULL;
  END IF;
  line := _partition_period_from(instant, t ->> 'retention', -1, t ->> 'timezone');
  RETURN _partition_key_at(t, greatest(line, timestamp '0001-01-03'));
END
""",
    "the key before which rows are older than their retention; NULL keeps everything",
)

ROUTINES = (
    FIRST_DAY,
    NUMBER,
    DAY_OF,
    KEY_AT,
    INSTANT_OF,
    EDGE_INSTANT,
    EDGE,
    HOUR_MARKS,
    WINDOW,
    CUTOFF,
)
