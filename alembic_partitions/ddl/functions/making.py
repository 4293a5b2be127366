"""Partitions made: the statements of :mod:`alembic_partitions.ddl.partitions`, one subtransaction each."""

from .routine import Routine
from .telling import OUTCOMES

#: As many as op.create_partitions makes; more would exhaust max_locks_per_transaction.
MOST = 400
#: No failure: whoever has the turn does the work.
BUSY = "another run is at it"
#: What the comments of those say that take locks.
ALONE = "; in a transaction of its own: it keeps its locks until that ends"

ATTACH = Routine(
    "_partition_attach",
    "t jsonb, name text, lower timestamp, upper timestamp",
    "void",
    """
DECLARE
  p record; child text := format('%I.%I', t ->> 'table_schema', name);
  parent text := format('%I.%I', t ->> 'table_schema', t ->> 'table_name');
  whose oid := (t ->> 'oid')::oid; orders text[];
BEGIN
  SELECT c.relowner, c.relrowsecurity AS secured, m.amname, s.spcname,
         CASE WHEN c.relreplident = 'i' AND NOT EXISTS (
           SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisreplident) THEN 'n'
           ELSE c.relreplident END AS identity INTO STRICT p
  FROM pg_class c LEFT JOIN pg_am m ON m.oid = c.relam LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
  WHERE c.oid = whose;
  PERFORM _partition_execute(whose, ARRAY[
    format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)', child, parent)
      || coalesce(' USING ' || quote_ident(p.amname), '')
      || coalesce((SELECT ' WITH (' || string_agg(format('%s = %L', k.key, k.value), ', ') || ')'
                   FROM jsonb_each_text(t -> 'storage_parameters') k), '')
      || coalesce(' TABLESPACE ' || quote_ident(coalesce(t ->> 'tablespace', p.spcname)), ''),
    format('COMMENT ON TABLE %s IS %L', child, @PARTITION_MARK@ || 'ensure')]);
  -- Exclusion constraints: up to PostgreSQL 17 ATTACH would make them a second time.
  orders := ARRAY(SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', child, x.conname)
                  FROM pg_constraint x WHERE x.conrelid = child::regclass AND x.contype = 'x');
  IF p.identity IN ('f', 'n') THEN
    orders := orders || format('ALTER TABLE %s REPLICA IDENTITY %s', child,
      CASE p.identity WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END);
  END IF;
  IF p.secured THEN
    orders := orders || format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', child);
  END IF;
  orders := orders || ARRAY(
    SELECT format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', child, a.attname, a.attstattarget)
    FROM pg_attribute a
    WHERE a.attrelid = whose AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0
    ORDER BY a.attnum);
  IF p.relowner <> (SELECT c.relowner FROM pg_class c WHERE c.oid = child::regclass) THEN
    orders := orders || format('ALTER TABLE %s OWNER TO %I', child, pg_get_userbyid(p.relowner));
  END IF;
  orders := orders || format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', parent, child,
    _partition_literal(lower, t ->> 'key_type', false), _partition_literal(upper, t ->> 'key_type', true));
  PERFORM _partition_execute(whose, orders);
  IF p.identity = 'i' THEN
    orders := ARRAY(
      SELECT format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', child, c.relname)
      FROM pg_index q JOIN pg_inherits i ON i.inhparent = q.indexrelid
      JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid
      WHERE q.indrelid = whose AND q.indisreplident AND x.indrelid = child::regclass);
    PERFORM _partition_execute(whose, orders);
  END IF;
END
""",
    "make one partition: the child alone, everything that it needs, then ATTACH",
    volatile=True,
)

TURN = Routine(
    "_partition_take_turn",
    "t jsonb",
    "boolean",
    """
DECLARE
  mine boolean := true;
BEGIN
  BEGIN
    PERFORM set_config('lock_timeout', '1s', true);
    PERFORM pg_advisory_xact_lock(@PARENT_LOCK_CLASS@, CASE WHEN (t ->> 'oid')::bigint >= 2147483648
      THEN (t ->> 'oid')::bigint - 4294967296 ELSE (t ->> 'oid')::bigint END::integer);
  EXCEPTION WHEN lock_not_available THEN
    mine := false;
  END;
  -- Others queue behind whoever waits for a lock on a table.
  PERFORM set_config('lock_timeout', '40ms', true);
  RETURN mine;
END
""",
    "take the turn to make or remove partitions of a table, until the transaction ends; false: not to be had",
    volatile=True,
)

WARN = Routine(
    "_partition_warn",
    "t jsonb",
    "void",
    """
DECLARE
  others text;
BEGIN
  SELECT string_agg(DISTINCT format('%I.%I', n.nspname, r.relname), ', ') INTO others
  FROM pg_constraint x
  JOIN pg_class r ON r.oid = CASE WHEN x.conrelid = (t ->> 'oid')::oid THEN x.confrelid ELSE x.conrelid END
  JOIN pg_namespace n ON n.oid = r.relnamespace
  WHERE x.contype = 'f' AND x.conparentid = 0 AND (t ->> 'oid')::oid IN (x.conrelid, x.confrelid);
  IF others IS NOT NULL THEN
    RAISE NOTICE 'SHARE ROW EXCLUSIVE on %: nobody writes there until this transaction ends', others;
  END IF;
  SELECT format('%I.%I', p.schema_name, p.partition_name) INTO others FROM _partition_parts(t) p
  WHERE p.is_default;
  IF others IS NOT NULL THEN
    RAISE NOTICE 'ACCESS EXCLUSIVE on % (DEFAULT): nobody reads all of table %.% until this transaction ends',
      others, t ->> 'table_schema', t ->> 'table_name';
  END IF;
END
""",
    "tell which locks a new partition takes that others feel",
    volatile=True,
)

EXTEND = Routine(
    "_partition_extend",
    "t jsonb, ahead integer, behind integer, room integer, dry_run boolean",
    "jsonb",
    f"""
DECLARE
  piece record; done jsonb := '[]'; told text; made integer := 0; ends integer;
BEGIN
  IF NOT dry_run AND NOT _partition_take_turn(t) THEN
    RETURN _partition_told(NULL, 'skipped', '{BUSY}');
  END IF;
  FOR piece IN SELECT * FROM _partition_pieces(t, ahead, behind) x LOOP
    IF made >= room THEN
      done := done || _partition_told(NULL, 'skipped', 'more than {MOST} partitions in one transaction:'
        ' call again, or run alembic-partitions ensure');
      EXIT;
    END IF;
    told := concat(_partition_shown(piece.lower, t ->> 'key_type'), ' to ',
      _partition_shown(piece.upper, t ->> 'key_type'));
    IF made = 0 AND NOT dry_run THEN
      PERFORM _partition_warn(t);
    END IF;
    FOR attempt IN 1 .. 8 LOOP
      BEGIN
        IF NOT dry_run THEN
          PERFORM _partition_attach(t, piece.name, piece.lower, piece.upper);
        END IF;
        EXIT;
      EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
          IF attempt = 8 THEN
            RETURN done || _partition_told(piece.name, 'failed', SQLERRM);
          END IF;
          PERFORM pg_sleep(random() * 0.1);
        WHEN OTHERS THEN
          RETURN done || _partition_told(piece.name, 'failed', SQLERRM);
      END;
    END LOOP;
    made := made + 1;
    done := done || _partition_told(piece.name,
      CASE WHEN dry_run THEN 'would create' ELSE 'created' END, told);
  END LOOP;
  SELECT max(x.distance) INTO ends FROM _partition_wanted(t, ahead, 0) x;
  IF ends IS NULL OR ends < ahead THEN
    done := done || _partition_told(NULL, 'skipped', 'the calendar of windows ends here');
  END IF;
  RETURN done;
END
""",
    "make what is lacking of the current window, so many after it and before it, as far as there is room",
    volatile=True,
)

FIT = Routine(
    "_partition_fit",
    "t jsonb",
    "void",
    """
BEGIN
  IF t ->> 'problem' IS NOT NULL THEN
    RAISE EXCEPTION 'table %.% does not fit its policy: %', t ->> 'table_schema', t ->> 'table_name',
      t ->> 'problem' USING ERRCODE = 'object_not_in_prerequisite_state',
      HINT = 'Correct the table, or its row in partition_config.';
  ELSIF NOT (t ->> 'enabled')::boolean THEN
    RAISE EXCEPTION 'the policy of table %.% is disabled', t ->> 'table_schema', t ->> 'table_name'
      USING ERRCODE = 'object_not_in_prerequisite_state',
      HINT = 'UPDATE partition_config SET enabled = true WHERE ...';
  ELSIF _partition_is_distributed((t ->> 'oid')::oid) THEN
    -- The time-outs of a function do not reach workers, and all its partitions are one transaction.
    RAISE EXCEPTION 'Citus has distributed table %.%', t ->> 'table_schema', t ->> 'table_name'
      USING ERRCODE = 'feature_not_supported',
      HINT = 'Run alembic-partitions maintain: one transaction a partition, bounded on workers, too.';
  ELSIF pg_is_in_recovery() THEN
    RAISE EXCEPTION 'this server is a standby' USING ERRCODE = 'read_only_sql_transaction',
      HINT = 'Connect to the primary.';
  END IF;
END
""",
    "refuse a table that nothing is to be done to",
)

DAILY = Routine(
    "create_daily_partitions",
    "",
    OUTCOMES,
    f"""
DECLARE
  t jsonb; done jsonb; results jsonb := '[]';
BEGIN
  PERFORM _partition_now();  -- one that cannot be read is nobody's fault but the caller's
  FOR t IN SELECT x FROM _partition_tables() x
    WHERE x ->> 'interval' = 'day' AND (x ->> 'enabled')::boolean
  LOOP
    done := _partition_at_horizon(t, {MOST} - _partition_count(results, 'created'), false);
    results := results || _partition_result(t, done);
    RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
  END LOOP;
  PERFORM _partition_record('ensure', results);
END
""",
    f"bring every enabled table with windows of days to its horizon; returns what it made{ALONE}",
    volatile=True,
    door=True,
)

HORIZON = Routine(
    "_partition_at_horizon",
    "t jsonb, room integer, dry_run boolean",
    "jsonb",
    """
BEGIN
  PERFORM _partition_fit(t);
  RETURN _partition_extend(t, (t ->> 'premake')::integer, (t ->> 'lookback')::integer, room, dry_run);
EXCEPTION WHEN OTHERS THEN
  -- One bad table stops no other.
  RETURN _partition_told(NULL, 'failed', SQLERRM);
END
""",
    "bring a table to its horizon",
    volatile=True,
)

FUTURE = Routine(
    "create_future_partitions",
    "target text, windows integer",
    OUTCOMES,
    f"""
DECLARE
  t jsonb; done jsonb;
BEGIN
  IF windows IS NULL OR windows NOT BETWEEN 0 AND {MOST} THEN
    RAISE EXCEPTION 'windows is %, not a number from 0 to {MOST}', coalesce(windows::text, 'NULL')
      USING ERRCODE = 'invalid_parameter_value',
      HINT = 'One transaction makes {MOST} partitions at most: for more raise premake, and run'
        ' alembic-partitions ensure.';
  END IF;
  SELECT x INTO STRICT t FROM _partition_tables(_partition_named(target)) x;
  PERFORM _partition_fit(t);
  done := _partition_extend(t, windows, 0, {MOST}, false);
  PERFORM _partition_record('ensure', _partition_result(t, done));
  RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
END
""",
    f"make the current window of a table and so many after it, as far as they are not there{ALONE}",
    volatile=True,
    door=True,
)

NAMED = Routine(
    "_partition_named",
    "target text",
    "text",
    """
BEGIN
  IF target IS NULL THEN
    RAISE EXCEPTION 'no table is named' USING ERRCODE = 'null_value_not_allowed',
      HINT = 'SELECT table_name FROM partition_health_summary() shows what is managed.';
  END IF;
  RETURN target;
END
""",
    "refuse NULL, which means all tables elsewhere",
)

ROUTINES = (ATTACH, TURN, FIT, NAMED, WARN, EXTEND, HORIZON, DAILY, FUTURE)
