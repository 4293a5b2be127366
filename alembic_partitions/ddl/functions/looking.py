"""What people ask: how tables stand, and what their partitions hold. Nothing here changes anything."""

from .routine import Routine

LIST = Routine(
    "list_partitions",
    "target text DEFAULT NULL",
    """TABLE (schema_name text, table_name text, partition_name text, range_from text, range_to text,
  rows_estimate bigint, bytes bigint, state text)""",
    """
DECLARE
  t jsonb; instant timestamp := _partition_now() AT TIME ZONE 'UTC'; line timestamp; w record;
BEGIN
  FOR t IN SELECT x FROM _partition_tables(target) x WHERE x ->> 'problem' IS NULL LOOP
    line := _partition_cutoff(t, instant);
    SELECT * INTO w FROM _partition_window(t, _partition_key_at(t, instant)) x;
    RETURN QUERY
    SELECT t ->> 'table_schema', t ->> 'table_name',
           CASE WHEN p.schema_name = t ->> 'table_schema' THEN p.partition_name
             ELSE concat(p.schema_name, '.', p.partition_name) END,
           _partition_shown(p.lower, t ->> 'key_type'), _partition_shown(p.upper, t ->> 'key_type'),
           CASE WHEN c.reltuples >= 0 AND NOT _partition_is_distributed(c.oid) THEN c.reltuples::bigint END,
           CASE WHEN _partition_is_distributed(c.oid) THEN NULL WHEN c.relkind = 'p'
             THEN (SELECT sum(pg_total_relation_size(l.relid)) FROM pg_partition_tree(c.oid) l)::bigint
             ELSE pg_total_relation_size(c.oid) END,
           CASE WHEN p.is_default THEN 'default' WHEN p.is_pending THEN 'pending'
             WHEN p.upper <= line THEN 'expired' WHEN p.upper <= w.lower THEN 'past'
             WHEN p.lower >= w.upper THEN 'ahead' ELSE 'today' END
           || CASE WHEN p.mark ^@ @PARTITION_MARK@ OR p.mark ^@ @DETACHING_MARK@ THEN '' ELSE ', by hand' END
    FROM _partition_parts(t) p JOIN pg_class c ON c.oid = p.oid
    ORDER BY p.is_default, p.lower, p.upper;
  END LOOP;
END
""",
    "the partitions of one managed table, or of all, in order; times are UTC",
    door=True,
)

METADATA = Routine(
    "_partition_metadata",
    "",
    """TABLE (schema_name text, table_name text, partition_name text, rows_estimate bigint, bytes bigint,
  last_analyze timestamptz, last_vacuum timestamptz, range_from text, range_to text)""",
    """
BEGIN
  RETURN QUERY
  SELECT l.schema_name, l.table_name, l.partition_name, l.rows_estimate, l.bytes,
         greatest(s.last_analyze, s.last_autoanalyze), greatest(s.last_vacuum, s.last_autovacuum),
         l.range_from, l.range_to
  FROM list_partitions() l
  LEFT JOIN (pg_inherits i JOIN pg_stat_all_tables s ON s.relid = i.inhrelid
             JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace)
    ON n.nspname = l.schema_name AND p.relname = l.table_name
    AND l.partition_name IN (s.relname, concat(s.schemaname, '.', s.relname))
    AND (s.schemaname = l.schema_name) = (l.partition_name = s.relname);
END
""",
    "what the view partition_metadata shows",
    door=True,
)

STRANDED = Routine(
    "_partition_stranded",
    "t jsonb",
    "boolean",
    """
DECLARE
  p record; found boolean := false;
BEGIN
  FOR p IN SELECT x.*, c.relnamespace FROM _partition_parts(t) x JOIN pg_class c ON c.oid = x.oid
    WHERE x.is_default
  LOOP
    IF p.kind = 'r' AND pg_relation_size(p.oid) = 0 AND NOT _partition_is_distributed(p.oid) THEN
      RETURN false;
    ELSIF NOT has_schema_privilege(p.relnamespace, 'USAGE') OR NOT has_any_column_privilege(p.oid, 'SELECT')
        OR row_security_active(p.oid) THEN
      RETURN NULL;
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I.%I)', p.schema_name, p.partition_name) INTO found;
  END LOOP;
  RETURN found;
EXCEPTION WHEN lock_not_available OR insufficient_privilege THEN
  RETURN NULL;
END
""",
    "whether rows lie in the DEFAULT partition; NULL where this role cannot tell",
)

DRAINING = Routine(
    "_partition_is_draining",
    "t jsonb",
    "boolean",
    """
BEGIN
  RETURN EXISTS (
    SELECT FROM pg_description d
    JOIN pg_class c ON c.oid = d.objoid AND c.relkind = 'r' AND NOT c.relispartition
    WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND starts_with(d.description, @DRAINING_MARK@)
    AND d.description ~ format('"oid": ?%s[,}]', t ->> 'oid'));
END
""",
    "whether rows of a table are hidden where an earlier run has gathered them",
)

FAILURES = Routine(
    "_partition_failures",
    "",
    "TABLE (told text, run text)",
    """
BEGIN
  RETURN QUERY
  SELECT line, r.action FROM @config@.partition_runs r, regexp_split_to_table(r.error, E'\\n') line
  WHERE r.id IN (SELECT max(l.id) FROM @config@.partition_runs l GROUP BY l.action)
    AND r.error IS NOT NULL AND _partition_now() - r.started_at < interval '7 days'
  ORDER BY r.id DESC;
EXCEPTION WHEN insufficient_privilege THEN
  RETURN;
END
""",
    "what the last run of each kind failed over",
)

LAST_RUN = Routine(
    "_partition_last_run",
    "",
    "timestamptz",
    """
BEGIN
  RETURN max(r.started_at) FROM @config@.partition_runs r;
EXCEPTION WHEN insufficient_privilege THEN
  RETURN NULL;
END
""",
    "when the last run began; NULL where this role may not see it",
)

RUNWAY = Routine(
    "_partition_runway",
    "t jsonb, OUT here timestamp, OUT ends timestamp, OUT days numeric, OUT wanted_days numeric,"
    " OUT reaches boolean, OUT gaps integer, OUT short boolean, OUT current_missing boolean",
    "record",
    """
DECLARE
  instant timestamp := _partition_now() AT TIME ZONE 'UTC';
  last timestamp; next timestamp; tomorrow timestamp; p record; w record; reached timestamp;
  covered timestamp; premake integer := (t ->> 'premake')::integer; blocked boolean := false;
BEGIN
  here := _partition_key_at(t, instant);
  SELECT max(x.upper), max(x.upper) FILTER (WHERE x.distance <= 1), max(x.distance) < premake
    INTO last, next, short FROM _partition_wanted(t, premake, 0) x;
  IF last IS NULL THEN
    current_missing := true;
    RETURN;
  END IF;
  SELECT * INTO w FROM _partition_window(t, here) x;
  tomorrow := _partition_key_at(t, _partition_period_from(instant, '1 day', 1, t ->> 'timezone'));
  IF short THEN
    tomorrow := last;
  END IF;
  gaps := 0;
  covered := w.lower;
  FOR p IN SELECT * FROM _partition_parts(t) x WHERE NOT x.is_default ORDER BY x.lower, x.upper LOOP
    IF p.lower <= covered AND p.upper > covered THEN
      covered := p.upper;
    END IF;
    blocked := blocked OR p.is_pending AND p.lower < w.upper AND p.upper > w.lower;
    CONTINUE WHEN p.is_pending;
    IF reached IS NULL THEN
      reached := least(w.lower, p.lower);
    END IF;
    IF p.lower > reached THEN
      gaps := gaps + 1;
    END IF;
    reached := p.upper;
    IF p.lower <= here AND p.upper > here OR ends = p.lower THEN
      ends := p.upper;
    END IF;
  END LOOP;
  IF coalesce(reached, w.lower) < last THEN
    gaps := gaps + 1;
  END IF;
  current_missing := blocked OR covered < w.upper;
  ends := coalesce(ends, here);
  reaches := CASE WHEN last > tomorrow THEN ends > tomorrow ELSE ends >= next END;
  days := CASE WHEN ends = here THEN 0 WHEN ends = 'infinity' THEN 'Infinity'::numeric
    ELSE greatest(extract(epoch FROM _partition_instant_of(t, ends) - instant) / 86400, 0) END;
  wanted_days := greatest(extract(epoch FROM _partition_instant_of(t, last) - instant) / 86400, 0);
END
""",
    "how far the partitions of a table reach, seen from now",
    door=True,
)

HEALTH = Routine(
    "partition_health_summary",
    "",
    """TABLE (schema_name text, table_name text, status text, runway_days numeric, horizon text,
  partitions integer, total_bytes bigint, gaps integer, pending_retention integer, stranded boolean,
  last_run timestamptz, reasons text)""",
    """
DECLARE
  t jsonb; r record; due jsonb; bad text[]; doubtful text[]; has_default boolean; is_half boolean;
  begins text; ours text[];
BEGIN
  last_run := _partition_last_run();
  FOR t IN SELECT x FROM _partition_tables() x LOOP
    schema_name := t ->> 'table_schema';
    table_name := t ->> 'table_name';
    bad := '{}';
    doubtful := '{}';
    runway_days := NULL; horizon := NULL; gaps := NULL; pending_retention := NULL; stranded := NULL;
    partitions := NULL; total_bytes := NULL;
    IF t ->> 'problem' IS NULL THEN
      SELECT count(*), sum(CASE WHEN _partition_is_distributed(c.oid) THEN NULL WHEN c.relkind = 'p'
               THEN (SELECT sum(pg_total_relation_size(l.relid)) FROM pg_partition_tree(c.oid) l)
               ELSE pg_total_relation_size(c.oid) END)::bigint,
             coalesce(bool_or(p.is_default), false), coalesce(bool_or(p.is_pending), false)
        INTO partitions, total_bytes, has_default, is_half
      FROM _partition_parts(t) p JOIN pg_class c ON c.oid = p.oid;
      SELECT * INTO r FROM _partition_runway(t) x;
      runway_days := round(r.days, 2);
      horizon := _partition_shown(r.ends, t ->> 'key_type');
      gaps := r.gaps;
      stranded := _partition_stranded(t);
      SELECT x.due INTO due FROM _partition_due(t) x;
      pending_retention := jsonb_array_length(due);
      IF r.days = 0 THEN
        bad := bad || 'no partition for rows that are written now'::text;
      ELSIF r.current_missing THEN
        bad := bad || 'no partition for some rows of the current window'::text;
      ELSIF NOT r.reaches THEN
        bad := bad || ('no partition for rows from ' || horizon || ' on');
      ELSIF r.days < (CASE WHEN r.wanted_days < 14 THEN r.wanted_days / 2 ELSE 7 END) THEN
        doubtful := doubtful || ('no partition for rows from ' || horizon || ' on');
      END IF;
      IF has_default AND bad <> '{}' AND r.days IS NOT NULL THEN
        doubtful := ARRAY[bad[1] || ': they strand in the DEFAULT partition'];
        bad := '{}';
      END IF;
      IF stranded THEN
        doubtful := doubtful
          || 'the DEFAULT partition holds rows: see alembic-partitions repair --dry-run'::text;
      END IF;
      IF is_half THEN
        doubtful := doubtful || 'a partition is stuck half-way through DETACH CONCURRENTLY'::text;
      END IF;
      IF has_default AND _partition_is_draining(t) THEN
        doubtful := doubtful || 'rows of a drain that was cut off cannot be seen until repair succeeds'::text;
      END IF;
      IF r.short THEN
        doubtful := doubtful || 'the calendar of windows ends within its horizon'::text;
      END IF;
      begins := concat(schema_name, '.', table_name, ': ');
      SELECT array_agg(format('the last %s failed: %s', f.run, substr(f.told, length(begins) + 1)))
        INTO ours
      FROM _partition_failures() f
      WHERE starts_with(f.told, begins) AND (f.run <> 'ensure' OR bad <> '{}' OR doubtful <> '{}'
        OR EXISTS (SELECT FROM _partition_pieces(t, (t ->> 'premake')::integer,
                                                 (t ->> 'lookback')::integer)));
      doubtful := doubtful || coalesce(ours, '{}');
    ELSE
      bad := ARRAY[t ->> 'problem'];
    END IF;
    status := CASE WHEN NOT (t ->> 'enabled')::boolean THEN 'HEALTHY'
      WHEN partitions = 0 THEN 'NO_PARTITIONS' WHEN bad <> '{}' THEN 'CRITICAL'
      WHEN doubtful <> '{}' THEN 'DEGRADED' WHEN pending_retention > 0 THEN 'CLEANUP_NEEDED'
      ELSE 'HEALTHY' END;
    reasons := CASE WHEN NOT (t ->> 'enabled')::boolean THEN 'its policy is disabled'
      ELSE nullif(array_to_string(bad || doubtful, '; '), '') END;
    RETURN NEXT;
  END LOOP;
END
""",
    "one row a managed table: whether inserts are safe, for how long, and what is to be done",
    door=True,
)

ROUTINES = (LIST, METADATA, STRANDED, DRAINING, FAILURES, LAST_RUN, RUNWAY, HEALTH)

VIEW = "partition_metadata"
VIEW_COMMENT = "rows, bytes, last analyze and vacuum of each partition; times are UTC"
