"""What retention takes: detached as far as a function may, marked as ddl/removal.py does."""

from .making import ALONE, BUSY
from .routine import Routine
from .telling import OUTCOMES

DUE = Routine(
    "_partition_due",
    "t jsonb, OUT due jsonb, OUT notes text[]",
    "record",
    """
DECLARE
  instant timestamp := _partition_now() AT TIME ZONE 'UTC';
  line timestamp := _partition_cutoff(t, instant); others text[] := '{}';
  p record; bounded integer := 0; restored text; stuck text;
BEGIN
  due := '[]';
  notes := '{}';
  IF line IS NULL OR t ->> 'problem' IS NOT NULL OR NOT (t ->> 'enabled')::boolean THEN
    RETURN;
  ELSIF _partition_is_too_short(t) THEN
    notes := ARRAY['its retention is shorter than one window, so nothing is removed; correct it'];
    RETURN;
  END IF;
  FOR p IN SELECT * FROM _partition_parts(t) x WHERE NOT x.is_default ORDER BY x.lower, x.upper LOOP
    IF p.is_pending THEN
      IF NOT coalesce(p.mark ^@ @PARTITION_MARK@ OR p.mark ^@ @DETACHING_MARK@, false) OR p.kind = 'f' THEN
        stuck := p.partition_name;
      END IF;
      CONTINUE;
    END IF;
    bounded := bounded + 1;
    CONTINUE WHEN NOT _partition_passed(t, line, p.lower, p.upper);
    IF _partition_is_splitting(p.oid, p.mark) THEN
      notes := notes || format('%s is being split into its windows', p.partition_name);
      CONTINUE;
    ELSIF p.kind = 'f' OR NOT coalesce(p.mark ^@ @PARTITION_MARK@ OR p.mark ^@ @DETACHING_MARK@, false) THEN
      others := others || p.partition_name;
      CONTINUE;
    END IF;
    -- Restored so lately that its grace begins anew.
    restored := CASE WHEN p.mark ^@ @RESTORED_MARK@ THEN substr(p.mark, length(@RESTORED_MARK@) + 1) END;
    IF restored ~ '^[0-9-]{10} [0-9:.]+Z$' THEN
      CONTINUE WHEN _partition_period_from(restored::timestamptz AT TIME ZONE 'UTC', t ->> 'grace', 1,
        t ->> 'timezone') > instant;
    END IF;
    due := due || jsonb_build_array(jsonb_build_object('oid', p.oid::bigint, 'schema', p.schema_name,
      'name', p.partition_name, 'bound', p.bound,
      'range', concat(_partition_shown(p.lower, t ->> 'key_type'), ' to ',
                      _partition_shown(p.upper, t ->> 'key_type'))));
  END LOOP;
  IF others <> '{}' THEN
    notes := notes || format('%s: without our mark, so it stays until somebody detaches it',
      array_to_string(others, ', '));
  END IF;
  IF jsonb_array_length(due) = bounded AND bounded > 0 THEN
    notes := notes || format('%s is the last partition of its table, which stays', due #>> '{-1,name}');
    due := due - -1;
  END IF;
  IF stuck IS NOT NULL AND due <> '[]' THEN
    notes := notes || format('%s is stuck half-way through DETACH CONCURRENTLY', stuck);
    due := '[]';
  END IF;
END
""",
    "the partitions that retention lets go, oldest first, and why others stay",
    door=True,
)

TOO_SHORT = Routine(
    "_partition_is_too_short",
    "t jsonb",
    "boolean",
    """
DECLARE
  unit text := rtrim(split_part(t ->> 'retention', ' ', 2), 's');
BEGIN
  RETURN split_part(t ->> 'retention', ' ', 1)::bigint
    * CASE unit WHEN 'hour' THEN 1 WHEN 'day' THEN 24 WHEN 'week' THEN 168 WHEN 'month' THEN 744
      WHEN 'quarter' THEN 2208 ELSE 8784 END
    < (t ->> 'every')::bigint
    * CASE t ->> 'interval' WHEN 'hour' THEN 1 WHEN 'day' THEN 24 WHEN 'week' THEN 168 WHEN 'month' THEN 672
      WHEN 'quarter' THEN 2160 ELSE 8760 END;
END
""",
    "whether a retention is shorter than one window: nobody means that",
)

PASSED = Routine(
    "_partition_passed",
    "t jsonb, line timestamp, lower timestamp, upper timestamp",
    "boolean",
    """
DECLARE
  w record;
BEGIN
  IF line IS NULL OR upper > line THEN
    RETURN false;
  END IF;
  IF isfinite(lower) THEN
    SELECT * INTO w FROM _partition_window(t, lower) x;
    IF (w.lower, w.upper) IS NOT DISTINCT FROM (lower, upper) THEN
      RETURN true;
    END IF;
  END IF;
  -- One that is off the grid was made by another zone: whichever it was, past by then.
  RETURN upper + interval '2 days' <= line;
END
""",
    "whether a stretch lies wholly before a line",
)

DOUBT = Routine(
    "_partition_doubt",
    "",
    "text",
    """
DECLARE
  earlier timestamptz;
BEGIN
  IF nullif(current_setting('alembic_partitions.now', true), '') IS NOT NULL THEN
    RETURN 'the clock is rehearsed: RESET alembic_partitions.now, or leave it a dry run';
  ELSIF coalesce(current_setting('alembic_partitions.trust_clock', true), '') NOT IN ('', 'off', 'false') THEN
    RETURN NULL;
  END IF;
  -- Runs of the last hours are no evidence: they may have been made by that very clock.
  SELECT max(r.started_at) INTO earlier FROM @config@.partition_runs r
  WHERE r.started_at < now() - interval '12 hours';
  IF now() - earlier > interval '45 days' THEN
    RETURN format('the last run was on %s; if the clock is right, SET alembic_partitions.trust_clock = on',
      earlier::date);
  END IF;
  RETURN NULL;
EXCEPTION WHEN insufficient_privilege THEN
  RETURN NULL;
END
""",
    "why nothing must be removed now, if so",
    door=True,
)

ONE_RUN = Routine(
    "_partition_one_run",
    "",
    "void",
    """
DECLARE
  told text := concat_ws(E'\\n', 'alembic_partitions run', current_database(), @config_text@);
BEGIN
  -- What else would be made sure of under a lock is as old as the snapshot.
  IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
    RAISE EXCEPTION 'a transaction that is % does not see what others have changed, so nothing is removed',
      upper(current_setting('transaction_isolation')) USING ERRCODE = 'object_not_in_prerequisite_state',
      HINT = 'BEGIN ISOLATION LEVEL READ COMMITTED first, or leave it a dry run.';
  END IF;
  IF NOT pg_try_advisory_xact_lock(
      ('x' || left(encode(sha256(convert_to(told, 'UTF8')), 'hex'), 16))::bit(64)::bigint) THEN
    RAISE EXCEPTION 'another run is removing or mending partitions' USING ERRCODE = 'lock_not_available',
      HINT = 'Wait until it ends; SELECT * FROM pg_locks WHERE locktype = ''advisory'' shows who it is.';
  END IF;
END
""",
    "let one run at a time remove partitions, those of alembic-partitions among them",
    volatile=True,
)

DETACH = Routine(
    "_partition_detach",
    "t jsonb, part jsonb, new_name text",
    "void",
    """
DECLARE
  parent text := format('%I.%I', t ->> 'table_schema', t ->> 'table_name');
  child text := format('%I.%I', part ->> 'schema', part ->> 'name');
BEGIN
  -- Whoever detaches it, attaches it elsewhere or renames it has done so by now, or waits for us.
  EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', child);
  IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
                 WHERE c.oid = to_regclass(child) AND c.oid = (part ->> 'oid')::oid
                 AND i.inhparent = (t ->> 'oid')::oid AND NOT i.inhdetachpending
                 AND pg_get_expr(c.relpartbound, 0) = part ->> 'bound'
                 AND (obj_description(c.oid, 'pg_class') ^@ @PARTITION_MARK@
                   OR obj_description(c.oid, 'pg_class') ^@ @DETACHING_MARK@)) THEN
    RAISE EXCEPTION '% is not what it was when this was planned', child
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  PERFORM _partition_execute((t ->> 'oid')::oid, ARRAY[
    format('ALTER TABLE %s DETACH PARTITION %s', parent, child)]);
  -- From here on nobody can change the others.
  IF NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                 WHERE i.inhparent = (t ->> 'oid')::oid AND NOT i.inhdetachpending
                 AND pg_get_expr(c.relpartbound, 0) <> 'DEFAULT') THEN
    RAISE EXCEPTION '% is the last partition, and stays', child
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  PERFORM _partition_execute((t ->> 'oid')::oid, ARRAY[
    format('COMMENT ON TABLE %s IS %L', child, @DETACHED_MARK@ || jsonb_build_object(
    'oid', (part ->> 'oid')::bigint, 'of', (t ->> 'oid')::bigint,
    'table', jsonb_build_array(t ->> 'table_schema', t ->> 'table_name'), 'key', t ->> 'key_type',
    'partition', part ->> 'name', 'schema', part ->> 'schema', 'bound', part ->> 'bound',
    'fate', t ->> 'on_expiry', 'as', jsonb_build_array(part ->> 'schema', new_name),
    'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"Z"'))::text),
    format('ALTER TABLE %s RENAME TO %I', child, new_name)]);
END
""",
    "detach a partition, mark it and rename it, so that restore finds it",
    volatile=True,
)

RETIRE = Routine(
    "_partition_retire",
    "t jsonb, dry_run boolean",
    "jsonb",
    f"""
DECLARE
  plan record; part jsonb; note text; name text; done jsonb := '[]'; number integer := 0;
  most integer := (t ->> 'max_drops')::integer;
BEGIN
  IF NOT dry_run AND NOT _partition_take_turn(t) THEN
    RETURN _partition_told(NULL, 'skipped', '{BUSY}');
  END IF;
  IF t ->> 'on_expiry' <> 'archive' THEN
    done := _partition_discard(t, dry_run);
  END IF;
  SELECT * INTO plan FROM _partition_due(t) x;
  FOREACH note IN ARRAY plan.notes LOOP
    done := done || _partition_told(NULL, 'skipped', note);
  END LOOP;
  IF plan.due <> '[]' AND t ->> 'on_expiry' = 'archive' THEN
    RETURN done || _partition_told(NULL, 'skipped',
      'on_expiry is archive: alembic-partitions maintain sees to it');
  ELSIF plan.due <> '[]' AND EXISTS (SELECT FROM _partition_parts(t) p WHERE p.is_pending) THEN
    RETURN done || _partition_told(NULL, 'skipped',
      'a DETACH CONCURRENTLY is half-way: alembic-partitions maintain finishes it');
  END IF;
  FOR part IN SELECT x FROM jsonb_array_elements(plan.due) x LOOP
    IF number = most THEN
      done := done || _partition_told(NULL, 'skipped', format('%s more wait: max_drops is %s',
        jsonb_array_length(plan.due) - most, most));
      EXIT;
    END IF;
    number := number + 1;
    name := _partition_name(part ->> 'name', 'detached', '{{}}', part ->> 'schema');
    IF number = 1 AND NOT dry_run THEN
      RAISE NOTICE 'a plain DETACH keeps everybody from table %.% until this transaction ends',
        t ->> 'table_schema', t ->> 'table_name';
    END IF;
    FOR attempt IN 1 .. 8 LOOP
      BEGIN
        IF NOT dry_run THEN
          PERFORM _partition_detach(t, part, name);
        END IF;
        done := done || _partition_told(part ->> 'name',
          CASE WHEN dry_run THEN 'would detach' ELSE 'detached' END,
          format('%s, as %s, by a plain DETACH', part ->> 'range', name));
        EXIT;
      EXCEPTION
        WHEN lock_not_available OR deadlock_detected THEN
          IF attempt = 8 THEN
            RETURN done || _partition_told(part ->> 'name', 'failed', SQLERRM
              || ': alembic-partitions maintain detaches concurrently');
          END IF;
          PERFORM pg_sleep(random() * 0.1);
        WHEN OTHERS THEN
          done := done || _partition_told(part ->> 'name', 'failed', SQLERRM);
          EXIT;
      END;
    END LOOP;
  END LOOP;
  RETURN done;
END
""",
    "detach what retention lets go, at most max_drops of it",
    volatile=True,
)

DROP_OLD = Routine(
    "drop_old_partitions",
    "target text, retention text DEFAULT NULL, dry_run boolean DEFAULT true",
    OUTCOMES,
    """
DECLARE
  t jsonb; done jsonb; doubt text; dry boolean := coalesce(dry_run, true);
BEGIN
  SELECT x INTO STRICT t FROM _partition_tables(_partition_named(target)) x;
  PERFORM _partition_fit(t);
  IF retention IS NOT NULL THEN
    IF retention !~ '^[1-9][0-9]{0,5} (hour|day|week|month|quarter|year)s?$' THEN
      RAISE EXCEPTION 'retention is %, not a period', quote_literal(retention)
        USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one such as 90 days or 12 months.';
    END IF;
    t := t || jsonb_build_object('retention', retention);
  END IF;
  IF t ->> 'retention' IS NULL THEN
    RAISE NOTICE 'table %.% keeps everything: its policy has no retention',
      t ->> 'table_schema', t ->> 'table_name';
    RETURN;
  ELSIF _partition_is_too_short(t) THEN
    RAISE EXCEPTION 'a retention of % is shorter than one window of table %.%', t ->> 'retention',
      t ->> 'table_schema', t ->> 'table_name'
      USING ERRCODE = 'invalid_parameter_value', HINT = 'Keep rows for one window at least.';
  END IF;
  IF NOT dry THEN
    doubt := _partition_doubt();
    IF doubt IS NOT NULL THEN
      RAISE EXCEPTION 'nothing was removed: %', doubt USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM _partition_one_run();
  END IF;
  done := _partition_retire(t, dry);
  IF NOT dry THEN
    PERFORM _partition_record('cleanup', _partition_result(t, done), true);
  END IF;
  RETURN QUERY SELECT * FROM _partition_outcomes(t, done) o;
  RETURN QUERY SELECT NULL::text, NULL::text, NULL::text, 'not done'::text, _partition_not_done()
    WHERE done <> '[]';
END
""",
    "detach what retention lets go, drop what on_expiry and grace do; a dry run unless dry_run is false"
    + ALONE,
    volatile=True,
    door=True,
)

NOT_DONE = Routine(
    "_partition_not_done",
    "",
    "text",
    """
BEGIN
  RETURN 'a function runs neither DETACH CONCURRENTLY nor VACUUM: alembic-partitions maintain does';
END
""",
    "what a function cannot do",
)

RETIRED = Routine(
    "_partition_retired",
    "t jsonb, dry_run boolean",
    "jsonb",
    """
BEGIN
  RETURN _partition_retire(t, dry_run);
EXCEPTION WHEN OTHERS THEN
  RETURN _partition_told(NULL, 'failed', SQLERRM);
END
""",
    "detach what retention lets go; one bad table stops no other",
    volatile=True,
)

ROUTINES = (TOO_SHORT, PASSED, DUE, DOUBT, ONE_RUN, DETACH, RETIRE, RETIRED, NOT_DONE, DROP_OLD)
