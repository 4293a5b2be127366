"""What is managed, and what its partitions are: ``t`` is one such table as jsonb."""

from alembic_partitions.ddl.elements import is_distributed

from .routine import Routine

NOW = Routine(
    "_partition_now",
    "",
    "timestamptz",
    """
DECLARE
  told text := nullif(current_setting('alembic_partitions.now', true), '');
BEGIN
  IF told IS NULL THEN
    RETURN now();
  ELSIF told !~ '[0-9]:[0-5][0-9](:[0-9.]+)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)$' THEN
    RAISE EXCEPTION 'alembic_partitions.now is %, which has no time or no offset', told
      USING ERRCODE = 'invalid_parameter_value',
      HINT = 'Give an instant such as 2026-04-05 13:37:11+12, or RESET alembic_partitions.now.';
  END IF;
  RETURN told::timestamptz;
END
""",
    "now, or the instant that SET alembic_partitions.now rehearses",
    door=True,
)

KEY_TYPE = Routine(
    "_partition_key_type",
    "t jsonb, parent oid, OUT key_type text, OUT problem text",
    "record",
    """
DECLARE
  p record; epoch text := t ->> 'epoch'; zone text := coalesce(t ->> 'column_timezone', t ->> 'timezone');
BEGIN
  IF parent IS NULL THEN
    problem := 'the table does not exist';
    RETURN;
  ELSIF NOT t -> 'zones' ?& ARRAY[t ->> 'timezone', zone] THEN
    -- PostgreSQL reads other spellings, too, and makes a rule with no history of what it does not know.
    problem := format('%L is not the exact name of a time zone',
      CASE WHEN t -> 'zones' ? (t ->> 'timezone') THEN zone ELSE t ->> 'timezone' END);
    RETURN;
  END IF;
  SELECT c.relkind, q.partstrat, q.partnatts, a.attname, a.atttypid::regtype::text AS type INTO p
  FROM pg_class c
  LEFT JOIN pg_partitioned_table q ON q.partrelid = c.oid
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = q.partattrs[0] AND q.partattrs[0] <> 0
  WHERE c.oid = parent;
  IF p.relkind <> 'p' THEN
    problem := 'it is not a partitioned table';
  ELSIF p.partstrat <> 'r' THEN
    problem := 'it is not partitioned by RANGE';
  ELSIF p.partnatts <> 1 OR p.attname IS DISTINCT FROM t ->> 'partition_key' THEN
    problem := format('it is not partitioned by column %I, as the policy is', t ->> 'partition_key');
  ELSE
    key_type := CASE btrim(p.type, '"') WHEN 'timestamp with time zone' THEN 'timestamptz'
      WHEN 'timestamp without time zone' THEN 'timestamp' WHEN 'date' THEN 'date' WHEN 'uuid' THEN 'uuidv7'
      WHEN 'integer' THEN 'epoch_s_int4' WHEN 'bigint' THEN 'epoch_' || epoch END;
    IF key_type IS NULL OR key_type = 'epoch_s_int4' AND epoch IS DISTINCT FROM 's' THEN
      problem := format('a key of type %s needs another policy', p.type);
    ELSIF epoch IS NOT NULL AND NOT starts_with(key_type, 'epoch_') THEN
      problem := 'its key is no integer, so epoch counts nothing';
    ELSIF t ->> 'interval' = 'hour' AND (key_type = 'date'
        OR key_type = 'timestamp' AND (t -> 'zones' ->> zone)::boolean) THEN
      problem := format('hours cannot divide its key of type %s', p.type);
    ELSIF EXISTS (SELECT FROM jsonb_object_keys(t -> 'storage_parameters') name
                  WHERE name !~ '^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)?$') THEN
      problem := 'its storage_parameters are none';
    END IF;
  END IF;
  -- Bounds with the version bits of a UUIDv7 in them.
  IF problem IS NULL AND key_type = 'uuidv7' AND EXISTS (
      SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
      WHERE i.inhparent = parent AND pg_get_expr(c.relpartbound, 0) ~ '-7000-[08]000-0{12}''') THEN
    key_type := 'uuidv7_full';
  END IF;
END
""",
    "what a table's key holds, or why it does not fit its policy",
)

TABLES = Routine(
    "_partition_tables",
    "target text DEFAULT NULL",
    "SETOF jsonb",
    """
DECLARE
  c record; t jsonb; zones jsonb; found integer := 0;
BEGIN
  IF target IS NOT NULL THEN
    SELECT count(*) INTO found FROM @config@.partition_config p
    WHERE _partition_is_meant(target, p.table_schema, p.table_name);
    IF found = 0 THEN
      RAISE EXCEPTION 'table % has no row in partition_config, so there is no policy to act on', target
        USING ERRCODE = 'undefined_table',
        HINT = 'SELECT table_name FROM partition_health_summary() shows what is managed.';
    ELSIF found > 1 THEN
      RAISE EXCEPTION 'there are % tables called %', found, target
        USING ERRCODE = 'ambiguous_alias', HINT = 'Name its schema, too: schema.table.';
    END IF;
  END IF;
  -- Both take their time, so once for all tables: which zones there are, and whether their clocks change.
  SELECT coalesce(jsonb_object_agg(z.zone, _partition_changes_clocks(z.zone)), '{}') INTO zones
  FROM (SELECT DISTINCT unnest(ARRAY[p.timezone, p.column_timezone]) FROM @config@.partition_config p
        WHERE target IS NULL OR _partition_is_meant(target, p.table_schema, p.table_name)) z (zone)
  WHERE z.zone IN ('CET', 'EET', 'MET', 'WET') OR z.zone IN (SELECT n.name FROM pg_timezone_names n);
  FOR c IN
    SELECT to_jsonb(p) AS policy, r.oid
    FROM @config@.partition_config p
    LEFT JOIN (pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace)
      ON n.nspname = p.table_schema AND r.relname = p.table_name
    WHERE target IS NULL OR _partition_is_meant(target, p.table_schema, p.table_name)
    ORDER BY p.table_schema, p.table_name
  LOOP
    t := c.policy || jsonb_build_object('oid', c.oid::bigint, 'zones', zones,
      'week_offset', (3 - array_position(ARRAY['monday', 'tuesday', 'wednesday', 'thursday', 'friday',
        'saturday', 'sunday'], c.policy ->> 'week_start') + 1 + 7) % 7);
    t := t || (SELECT to_jsonb(k) FROM _partition_key_type(t, c.oid) k);
    RETURN NEXT jsonb_set(t, '{column_timezone}',
      to_jsonb(coalesce(t ->> 'column_timezone', t ->> 'timezone')));
  END LOOP;
END
""",
    "the managed tables, or one: policy, key_type, oid, and the problem of one that does not fit",
)

IS_MEANT = Routine(
    "_partition_is_meant",
    "target text, table_schema text, table_name text",
    "boolean",
    """
BEGIN
  RETURN target IN (
    SELECT concat(s.told, n.told)
    FROM unnest(ARRAY[table_name, quote_ident(table_name),
                      '"' || replace(table_name, '"', '""') || '"']) n (told),
         unnest(ARRAY['', table_schema || '.', quote_ident(table_schema) || '.',
                      '"' || replace(table_schema, '"', '""') || '".']) s (told));
END
""",
    "whether somebody who says target means a table",
)

PARTS = Routine(
    "_partition_parts",
    "t jsonb",
    """TABLE (oid oid, schema_name text, partition_name text, lower timestamp, upper timestamp,
  is_default boolean, is_pending boolean, bound text, mark text, kind "char")""",
    """
BEGIN
  RETURN QUERY
  SELECT b.oid, b.nspname::text, b.relname::text,
         CASE WHEN b.bound <> 'DEFAULT' THEN _partition_value(
           substr(split_part(b.bound, ') TO (', 1), 18), t ->> 'key_type', false) END,
         CASE WHEN b.bound <> 'DEFAULT' THEN _partition_value(
           left(split_part(b.bound, ') TO (', 2), -1), t ->> 'key_type', true) END,
         b.bound = 'DEFAULT', b.inhdetachpending, b.bound, b.mark, b.relkind
  FROM (SELECT c.oid, n.nspname, c.relname, c.relkind, i.inhdetachpending,
               pg_get_expr(c.relpartbound, 0) AS bound, obj_description(c.oid, 'pg_class') AS mark
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE i.inhparent = (t ->> 'oid')::oid AND t ->> 'problem' IS NULL) b
  ORDER BY 4, 5;
END
""",
    "the partitions of a table with their bounds as keys, in order; a DEFAULT one is the last",
    door=True,
)

WANTED = Routine(
    "_partition_wanted",
    "t jsonb, ahead integer, behind integer",
    "TABLE (lower timestamp, upper timestamp, suffix text, distance integer)",
    """
DECLARE
  instant timestamp := _partition_now() AT TIME ZONE 'UTC';
  cutoff timestamp := _partition_cutoff(t, instant);
  tick interval := CASE t ->> 'key_type' WHEN 'date' THEN interval '1 day' ELSE interval '1 microsecond' END;
  here record; w record;
BEGIN
  SELECT * INTO here FROM _partition_window(t, _partition_key_at(t, instant)) x;
  w := here;
  FOR i IN 0 .. ahead LOOP
    EXIT WHEN w.lower IS NULL;
    lower := w.lower; upper := w.upper; suffix := w.suffix; distance := i;
    RETURN NEXT;
    IF i < ahead THEN
      SELECT * INTO w FROM _partition_window(t, w.upper) x;
    END IF;
  END LOOP;
  w := here;
  FOR i IN 1 .. behind LOOP
    EXIT WHEN w.lower IS NULL;
    SELECT * INTO w FROM _partition_window(t, w.lower - tick) x;
    EXIT WHEN w.lower IS NULL OR w.upper <= cutoff;
    lower := w.lower; upper := w.upper; suffix := w.suffix; distance := -i;
    RETURN NEXT;
  END LOOP;
END
""",
    "the window that it is now, so many after it, and so many before it that retention keeps",
    door=True,
)

PIECES = Routine(
    "_partition_pieces",
    "t jsonb, ahead integer, behind integer",
    "TABLE (name text, lower timestamp, upper timestamp, distance integer)",
    """
DECLARE
  w record; taken text[]; suffix text; at timestamp; cuts timestamp[];
  zoned boolean := t ->> 'key_type' NOT IN ('timestamp', 'date');
  lowers timestamp[]; uppers timestamp[];
  cutoff timestamp := _partition_cutoff(t, _partition_now() AT TIME ZONE 'UTC');
BEGIN
  SELECT coalesce(array_agg(p.partition_name), '{}') INTO taken FROM _partition_parts(t) p;
  SELECT array_agg(p.lower), array_agg(p.upper) INTO lowers, uppers
  FROM (SELECT * FROM _partition_parts(t) p WHERE NOT p.is_default ORDER BY p.lower, p.upper) p;
  FOR w IN SELECT * FROM _partition_wanted(t, ahead, behind) x ORDER BY abs(x.distance), x.distance DESC LOOP
    at := w.lower;
    cuts := '{}';
    FOR i IN 1 .. coalesce(cardinality(lowers), 0) LOOP
      CONTINUE WHEN uppers[i] <= w.lower;
      EXIT WHEN lowers[i] >= w.upper;
      IF at < lowers[i] THEN
        cuts := cuts || at || lowers[i];
      END IF;
      at := greatest(at, uppers[i]);
    END LOOP;
    IF at < w.upper THEN
      cuts := cuts || at || w.upper;
    END IF;
    FOR i IN 1 .. cardinality(cuts) / 2 LOOP
      lower := cuts[2 * i - 1];
      upper := cuts[2 * i];
      distance := w.distance;
      -- What a window before now has lost to retention stays away.
      CONTINUE WHEN distance < 0 AND upper <= cutoff;
      suffix := CASE WHEN lower = w.lower THEN w.suffix
        WHEN t ->> 'key_type' = 'date' THEN to_char(lower, 'YYYY_MM_DD')
        ELSE to_char(lower, 'YYYY_MM_DD_HH24MISS')
          || CASE WHEN lower <> date_trunc('second', lower) THEN to_char(lower, '_US') ELSE '' END
          || CASE WHEN zoned THEN 'z' ELSE '' END END;
      name := _partition_name(t ->> 'table_name', suffix, taken, t ->> 'table_schema');
      taken := taken || name;
      RETURN NEXT;
    END LOOP;
  END LOOP;
END
""",
    "what is lacking of those windows: what exists is cut out, the nearest come first",
    door=True,
)

SPLITTING = Routine(
    "_partition_is_splitting",
    "part oid, mark text",
    "boolean",
    """
BEGIN
  RETURN mark IS NOT DISTINCT FROM @SPLIT_GROUP_MARK@ OR EXISTS (
    SELECT FROM pg_description d
    JOIN pg_class c ON c.oid = d.objoid AND c.relkind = 'p' AND NOT c.relispartition
    WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0
    AND starts_with(d.description, @SPLITTING_MARK@)
    AND d.description ~ format('"oid": ?%s[,}]', part));
END
""",
    "whether a partition is just being split into its windows",
)

IS_DISTRIBUTED = Routine(
    "_partition_is_distributed",
    "relation oid",
    "boolean",
    f"""
BEGIN
  RETURN {is_distributed("relation")};
END
""",
    "whether Citus keeps the rows of a table, in shards",
)

ROUTINES = (NOW, IS_DISTRIBUTED, IS_MEANT, KEY_TYPE, TABLES, PARTS, WANTED, PIECES, SPLITTING)
