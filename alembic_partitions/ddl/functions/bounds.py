"""Bounds of partitions, read and written as :mod:`alembic_partitions.keys` does; and names for new ones."""

from .routine import Routine

TICKS = Routine(
    "_partition_ticks",
    "key_type text",
    "bigint",
    """
BEGIN
  RETURN CASE key_type WHEN 'epoch_s' THEN 1 WHEN 'epoch_s_int4' THEN 1 WHEN 'epoch_ms' THEN 1000
    WHEN 'epoch_us' THEN 1000000 WHEN 'epoch_ns' THEN 1000000000
    WHEN 'uuidv7' THEN 1000 WHEN 'uuidv7_full' THEN 1000 END;
END
""",
    "how many of what a key counts make a second",
)

VALUE = Routine(
    "_partition_value",
    "printed text, key_type text, is_upper boolean",
    "timestamp",
    """
DECLARE
  digits text := btrim(printed, ''''); number numeric; rest text;
BEGIN
  IF printed = 'MINVALUE' THEN
    RETURN '-infinity';
  ELSIF printed = 'MAXVALUE' THEN
    RETURN 'infinity';
  ELSIF key_type = 'timestamptz' THEN
    RETURN digits::timestamptz AT TIME ZONE 'UTC';
  ELSIF key_type = 'timestamp' THEN
    RETURN digits::timestamp;
  ELSIF key_type = 'date' THEN
    RETURN digits::date;
  ELSIF starts_with(key_type, 'uuidv7') THEN
    digits := replace(digits, '-', '');
    rest := substr(digits, 13);
    number := ('x' || lpad(left(digits, 12), 16, '0'))::bit(64)::bigint;
    -- What a moment cannot hold is rounded away from what the bound keeps in.
    IF is_upper AND rest NOT IN ('00000000000000000000', '70000000000000000000', '70008000000000000000') THEN
      number := number + 1;
    END IF;
  ELSE
    number := digits::numeric;
  END IF;
  number := number * 1000000 / _partition_ticks(key_type);
  number := CASE WHEN is_upper THEN ceil(number) ELSE floor(number) END;
  IF number < -62135596800000000 THEN
    RETURN '-infinity';
  ELSIF number > 253402300799999999 THEN
    RETURN 'infinity';
  END IF;
  RETURN timestamp '1970-01-01' + floor(number / 86400000000)::integer * interval '1 day'
    + (number - floor(number / 86400000000) * 86400000000)::bigint * interval '1 microsecond';
END
""",
    "a bound as PostgreSQL prints it under UTC and ISO, as a key",
)

LITERAL = Routine(
    "_partition_literal",
    "key timestamp, key_type text, is_upper boolean",
    "text",
    """
DECLARE
  number numeric; digits text;
BEGIN
  IF key_type = 'timestamptz' THEN
    RETURN to_char(key, 'YYYY-MM-DD HH24:MI:SS') || rtrim(rtrim(to_char(key, '.US'), '0'), '.') || '+00';
  ELSIF key_type = 'timestamp' THEN
    RETURN to_char(key, 'YYYY-MM-DD HH24:MI:SS') || rtrim(rtrim(to_char(key, '.US'), '0'), '.');
  ELSIF key_type = 'date' THEN
    RETURN to_char(key, 'YYYY-MM-DD');
  END IF;
  number := floor(extract(epoch FROM key) * _partition_ticks(key_type));
  IF NOT starts_with(key_type, 'uuidv7') THEN
    RETURN least(greatest(number, -9223372036854775808), 9223372036854775807)::text;
  END IF;
  digits := lpad(to_hex(least(greatest(number, 0), 281474976710655)::bigint), 12, '0')
    || CASE WHEN key_type = 'uuidv7_full' AND NOT is_upper THEN '70008000000000000000'
       ELSE repeat('0', 20) END;
  RETURN digits::uuid::text;
END
""",
    "a key as the text of a bound: an absolute instant, so that no TimeZone can move it",
)

SHOWN = Routine(
    "_partition_shown",
    "key timestamp, key_type text, is_upper boolean DEFAULT false",
    "text",
    """
BEGIN
  IF NOT isfinite(key) THEN
    RETURN CASE WHEN key < '1970-01-01' THEN 'MINVALUE' ELSE 'MAXVALUE' END;
  END IF;
  RETURN _partition_literal(key, CASE WHEN key_type IN ('timestamp', 'date') THEN key_type
                                 ELSE 'timestamptz' END, false);
END
""",
    "a key as people read it: an instant in UTC, whatever its column holds",
)

DIGEST = Routine(
    "_partition_digest",
    "told text",
    "text",
    """
DECLARE
  iv bigint[] := ARRAY[1779033703, 3144134277, 1013904242, 2773480762,
                       1359893119, 2600822924, 528734635, 1541459225];
  orders text[] := ARRAY['0123456789ABCDEF', 'EA489FD61C02B753', 'B8C052FDAE367194', '7931DCBE265A40F8',
    '905724AFE1BC683D', '2C6A0B834D75FE19', 'C51FED4A0763928B', 'DB7EC13950F4862A', '6FE9B308C2D714A5',
    'A2847615FB9E3CD0'];
  lanes integer[] := ARRAY[1,5,9,13, 2,6,10,14, 3,7,11,15, 4,8,12,16,
                           1,6,11,16, 2,7,12,13, 3,8,9,14, 4,5,10,15];
  mask bigint := 4294967295;
  bytes bytea := convert_to(told, 'UTF8'); size integer := octet_length(bytes);
  m bigint[]; v bigint[]; a integer; b integer; c integer; d integer; x bigint; h bigint;
BEGIN
  -- BLAKE2s (RFC 7693) of four bytes, as naming.py has it: a table's name of 63 bytes is one block of it.
  bytes := bytes || decode(repeat('00', 64 - size), 'hex');
  FOR i IN 0 .. 15 LOOP
    m[i] := get_byte(bytes, 4 * i) + get_byte(bytes, 4 * i + 1) * 256
      + get_byte(bytes, 4 * i + 2) * 65536 + get_byte(bytes, 4 * i + 3) * 16777216::bigint;
  END LOOP;
  h := iv[1] # 16842756;  -- 0x01010004: a digest of four bytes, no key
  v := ARRAY[h] || iv[2:8] || iv[1:4] || ARRAY[iv[5] # size, iv[6], iv[7] # mask, iv[8]];
  FOR round IN 1 .. 10 LOOP
    FOR g IN 0 .. 7 LOOP
      a := lanes[4 * g + 1]; b := lanes[4 * g + 2]; c := lanes[4 * g + 3]; d := lanes[4 * g + 4];
      FOR half IN 0 .. 1 LOOP
        x := m[strpos('0123456789ABCDEF', substr(orders[round], 2 * g + half + 1, 1)) - 1];
        v[a] := (v[a] + v[b] + x) & mask;
        x := v[d] # v[a];
        v[d] := CASE half WHEN 0 THEN (x >> 16) | ((x << 16) & mask) ELSE (x >> 8) | ((x << 24) & mask) END;
        v[c] := (v[c] + v[d]) & mask;
        x := v[b] # v[c];
        v[b] := CASE half WHEN 0 THEN (x >> 12) | ((x << 20) & mask) ELSE (x >> 7) | ((x << 25) & mask) END;
      END LOOP;
    END LOOP;
  END LOOP;
  h := h # v[1] # v[9];
  h := ((h & 255) << 24) + (((h >> 8) & 255) << 16) + (((h >> 16) & 255) << 8) + (h >> 24);
  RETURN lpad(to_hex(h), 8, '0');
END
""",
    "what takes the place of what is cut off a long table's name",
)

NAME = Routine(
    "_partition_name",
    "base text, suffix text, taken text[], home text",
    "text",
    """
DECLARE
  turn integer := 1; ending text; room integer; stem text; name text;
BEGIN
  LOOP
    ending := '_' || suffix || CASE WHEN turn > 1 THEN '_' || turn ELSE '' END;
    IF octet_length(convert_to(base || ending, 'UTF8')) <= 63 THEN
      name := base || ending;
    ELSE
      ending := '_' || _partition_digest(base) || ending;
      room := 63 - octet_length(ending);
      stem := base;
      WHILE octet_length(convert_to(stem, 'UTF8')) > room LOOP
        stem := left(stem, -1);
      END LOOP;
      name := stem || ending;
    END IF;
    IF NOT name = ANY (taken)
        AND NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                        WHERE n.nspname = home AND c.relname = name)
        AND NOT EXISTS (SELECT FROM pg_type y JOIN pg_namespace n ON n.oid = y.typnamespace
                        WHERE n.nspname = home AND y.typname = name) THEN
      RETURN name;
    END IF;
    turn := turn + 1;
  END LOOP;
END
""",
    "the name of a new partition: at most 63 bytes, and nobody else's",
)

ROUTINES = (TICKS, VALUE, LITERAL, SHOWN, DIGEST, NAME)
