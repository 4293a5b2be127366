"""Statistics, and the daily run: statistics, the horizon, then retention."""

from .making import ALONE, BUSY, MOST
from .routine import Routine
from .telling import OUTCOMES

ANALYZE = Routine(
    "_partition_analyze",
    "t jsonb, everything boolean, changed boolean, dry_run boolean",
    "jsonb",
    """
DECLARE
  instant timestamp := _partition_now() AT TIME ZONE 'UTC';
  here timestamp := _partition_key_at(t, instant);
  recent boolean := current_setting('server_version_num')::integer >= 180000;
  part record; done jsonb := '[]'; last timestamptz; last_of_parent timestamptz;
BEGIN
  SELECT greatest(s.last_analyze, s.last_autoanalyze) INTO last_of_parent
  FROM pg_stat_all_tables s WHERE s.relid = (t ->> 'oid')::oid;
  FOR part IN
    SELECT x.oid, x.schema_name, x.partition_name AS name, false AS is_parent, ''::text AS word
    FROM (SELECT p.*, row_number() OVER (ORDER BY p.upper DESC) AS number
          FROM _partition_parts(t) p
          LEFT JOIN pg_stat_all_tables s ON s.relid = p.oid
          WHERE everything OR NOT p.is_default AND NOT p.is_pending AND p.upper <= here
            AND (greatest(s.last_analyze, s.last_autoanalyze) IS NULL
                 OR _partition_key_at(t, greatest(s.last_analyze, s.last_autoanalyze)
                                         AT TIME ZONE 'UTC') < p.upper)) x
    WHERE everything AND recent OR NOT everything AND x.number <= 10
    UNION ALL
    -- Up to PostgreSQL 17 it visits each partition, too.
    SELECT (t ->> 'oid')::oid, t ->> 'table_schema', t ->> 'table_name', true,
           CASE WHEN recent THEN 'ONLY ' ELSE '' END
  LOOP
    IF part.is_parent AND NOT everything AND NOT changed AND done = '[]'
        AND instant AT TIME ZONE 'UTC' - last_of_parent <= interval '1 day' THEN
      CONTINUE;
    END IF;
    BEGIN
      IF NOT _partition_may_analyze(part.oid) THEN
        done := done || _partition_told(part.name, 'skipped', 'only its owner analyzes it');
        CONTINUE;
      ELSIF NOT dry_run THEN
        PERFORM set_config('lock_timeout', '40ms', true);
        EXECUTE format('ANALYZE %s%I.%I', part.word, part.schema_name, part.name);
      END IF;
      done := done || _partition_told(part.name,
        CASE WHEN dry_run THEN 'would analyze' ELSE 'analyzed' END, NULL);
    EXCEPTION WHEN OTHERS THEN
      done := done || _partition_told(part.name, 'skipped', SQLERRM);
    END;
  END LOOP;
  RETURN done;
END
""",
    "analyze all of a table, or the partitions that have just closed and a parent that is stale",
    volatile=True,
)

MAY_ANALYZE = Routine(
    "_partition_may_analyze",
    "relation oid",
    "boolean",
    """
BEGIN
  IF (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = relation)
      OR (SELECT pg_has_role(d.datdba, 'USAGE') FROM pg_database d WHERE d.datname = current_database()) THEN
    RETURN true;
  END IF;
  RETURN current_setting('server_version_num')::integer >= 170000
    AND has_table_privilege(relation, 'MAINTAIN');
END
""",
    "whether ANALYZE of a table does anything for this role",
)

ANALYZE_ALL = Routine(
    "analyze_partitions",
    "target text",
    OUTCOMES,
    """
DECLARE
  t jsonb;
BEGIN
  SELECT x INTO STRICT t FROM _partition_tables(_partition_named(target)) x;
  PERFORM _partition_fit(t);
  RETURN QUERY SELECT * FROM _partition_outcomes(t, _partition_analyze(t, true, true, false)) o;
END
""",
    "ANALYZE a table and its partitions; locks them against ATTACH until the transaction ends",
    volatile=True,
    door=True,
)

MAINTENANCE = Routine(
    "run_partition_maintenance",
    "target text DEFAULT NULL, dry_run boolean DEFAULT true",
    OUTCOMES,
    f"""
DECLARE
  t jsonb; done jsonb; results jsonb := '[]'; tables jsonb[]; busy bigint[] := '{{}}';
  doubt text := _partition_doubt(); dry boolean := coalesce(dry_run, true);
BEGIN
  PERFORM _partition_now();
  tables := ARRAY(SELECT x FROM _partition_tables(target) x);
  IF target IS NOT NULL THEN
    PERFORM _partition_fit(tables[1]);
  END IF;
  IF NOT dry THEN
    PERFORM _partition_one_run();
  END IF;
  -- First of all what takes long and blocks nobody, for the locks of all that follows last to the end.
  FOR t IN SELECT x FROM unnest(tables) x
    WHERE (x ->> 'enabled')::boolean AND x ->> 'problem' IS NULL
  LOOP
    BEGIN
      done := _partition_analyze(t, false, EXISTS (
        SELECT FROM _partition_pieces(t, (t ->> 'premake')::integer, (t ->> 'lookback')::integer)), dry);
    EXCEPTION WHEN OTHERS THEN
      done := _partition_told(NULL, 'skipped', SQLERRM);
    END;
    results := results || _partition_result(t, done);
    RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
  END LOOP;
  FOR t IN SELECT x FROM unnest(tables) x WHERE (x ->> 'enabled')::boolean LOOP
    done := _partition_at_horizon(t, {MOST} - _partition_count(results, 'created'), dry);
    IF done @> _partition_told(NULL, 'skipped', '{BUSY}') THEN
      busy := busy || (t ->> 'oid')::bigint;
    END IF;
    results := results || _partition_result(t, done);
    RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
  END LOOP;
  -- Last of all: from a plain DETACH on nobody reads the table until this transaction ends.
  FOR t IN SELECT x FROM unnest(tables) x
    WHERE (x ->> 'enabled')::boolean AND x ->> 'problem' IS NULL AND x ->> 'retention' IS NOT NULL
    AND NOT (x ->> 'oid')::bigint = ANY (busy)
  LOOP
    IF dry OR doubt IS NULL THEN
      done := _partition_retired(t, dry);
    ELSE
      SELECT CASE WHEN x.due = '[]' AND NOT EXISTS (SELECT FROM _partition_detached(t)) THEN '[]'
        ELSE _partition_told(NULL, 'skipped', 'nothing is removed: ' || doubt) END INTO done
      FROM _partition_due(t) x;
    END IF;
    results := results || _partition_result(t, done);
    RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
  END LOOP;
  IF NOT dry THEN
    PERFORM _partition_record('maintain', results, target IS NOT NULL);
  END IF;
  RETURN QUERY SELECT NULL::text, NULL::text, NULL::text, 'not done'::text, _partition_not_done();
END
""",
    "statistics, horizon and retention of one managed table, or of all; a dry run unless dry_run is false"
    + ALONE,
    volatile=True,
    door=True,
)

ROUTINES = (MAY_ANALYZE, ANALYZE, ANALYZE_ALL, MAINTENANCE)
