"""What the clocks of a zone show, in PL/pgSQL. Instants are timestamps in UTC."""

from .routine import Routine

WALL = Routine(
    "_partition_wall",
    "instant timestamp, zone text",
    "timestamp",
    """
BEGIN
  -- To AT TIME ZONE these four are abbreviations, which have no summer time.
  RETURN instant AT TIME ZONE 'UTC' AT TIME ZONE CASE zone
    WHEN 'CET' THEN 'Europe/Brussels' WHEN 'MET' THEN 'Europe/Brussels'
    WHEN 'EET' THEN 'Europe/Athens' WHEN 'WET' THEN 'Europe/Lisbon' ELSE zone END;
END
""",
    "what the clocks of a zone show at an instant (in UTC)",
)

FIRST_INSTANT = Routine(
    "_partition_first_instant",
    "wall timestamp, zone text",
    "timestamp",
    """
DECLARE
  one timestamp; two timestamp; low timestamp; seconds bigint; below bigint := 0; middle bigint;
BEGIN
  IF zone = 'UTC' OR NOT isfinite(wall) THEN
    RETURN wall;
  END IF;
  -- By the offsets of the day before and of the day after: AT TIME ZONE itself takes the second of two.
  one := wall - (_partition_wall(wall - interval '1 day', zone) - (wall - interval '1 day'));
  two := wall - (_partition_wall(wall + interval '1 day', zone) - (wall + interval '1 day'));
  low := least(CASE WHEN _partition_wall(one, zone) = wall THEN one END,
               CASE WHEN _partition_wall(two, zone) = wall THEN two END);
  IF low IS NOT NULL THEN
    RETURN low;
  END IF;
  -- The clocks jumped over it, on a whole second between the two.
  low := date_trunc('second', least(one, two));
  wall := date_trunc('second', wall);
  seconds := extract(epoch FROM date_trunc('second', greatest(one, two)) - low);
  WHILE below < seconds LOOP
    middle := (below + seconds) / 2;
    IF _partition_wall(low + middle * interval '1 second', zone) >= wall THEN
      seconds := middle;
    ELSE
      below := middle + 1;
    END IF;
  END LOOP;
  RETURN low + below * interval '1 second';
END
""",
    "the first instant (in UTC) at which the clocks of a zone show a time or later",
)

CHANGES_CLOCKS = Routine(
    "_partition_changes_clocks",
    "zone text",
    "boolean",
    """
BEGIN
  RETURN count(DISTINCT _partition_wall(week, zone) - week) > 1
    FROM generate_series(timestamp '2000-01-01', timestamp '2037-12-26', interval '7 days') week;
END
""",
    "whether a zone's offset from UTC changes between 2000 and 2037",
)

PERIOD_FROM = Routine(
    "_partition_period_from",
    "instant timestamp, period text, direction integer, zone text",
    "timestamp",
    """
DECLARE
  unit text := rtrim(split_part(period, ' ', 2), 's');
  length interval := CASE unit WHEN 'quarter' THEN 3 * direction * split_part(period, ' ', 1)::integer
    ELSE direction * split_part(period, ' ', 1)::integer END
    * CASE unit WHEN 'quarter' THEN interval '1 month' ELSE ('1 ' || unit)::interval END;
BEGIN
  IF unit = 'hour' THEN
    RETURN instant + length;
  END IF;
  RETURN _partition_first_instant(_partition_wall(instant, zone) + length, zone);
EXCEPTION WHEN datetime_field_overflow THEN
  RETURN CASE WHEN direction < 0 THEN '-infinity' ELSE 'infinity' END;
END
""",
    "the instant a period after (1) or before (-1) another, by the calendar of a zone",
)

ROUTINES = (WALL, FIRST_INSTANT, CHANGES_CLOCKS, PERIOD_FROM)
