"""What was detached and is to be dropped, where on_expiry says so and its grace is over."""

from .routine import Routine

DETACHED = Routine(
    "_partition_detached",
    "t jsonb",
    "TABLE (oid oid, schema_name text, name text, told jsonb, is_ripe boolean, has_keys boolean)",
    """
DECLARE
  instant timestamp := _partition_now() AT TIME ZONE 'UTC'; line timestamp := _partition_cutoff(t, instant);
  owner oid := (SELECT c.relowner FROM pg_class c WHERE c.oid = (t ->> 'oid')::oid); c record; bound text;
BEGIN
  FOR c IN
    SELECT r.oid, n.nspname, r.relname, d.description, r.relowner,
           EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = r.oid AND x.contype = 'f') AS keys
    FROM pg_description d
    JOIN pg_class r ON r.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
    JOIN pg_namespace n ON n.oid = r.relnamespace
    WHERE starts_with(d.description, @DETACHED_MARK@) AND r.relkind IN ('r', 'p') AND NOT r.relispartition
    ORDER BY r.relname
  LOOP
    -- Whoever owns a table may write any comment on it.
    CONTINUE WHEN c.relowner NOT IN (owner, to_regrole(quote_ident(current_user)));
    BEGIN
      told := substr(c.description, length(@DETACHED_MARK@) + 1)::jsonb;
      -- Out of a dump a table comes with other OIDs: then its name alone says whose it was.
      CONTINUE WHEN (CASE WHEN told ->> 'oid' = c.oid::text THEN told ->> 'of' = t ->> 'oid'
          ELSE told -> 'table' = jsonb_build_array(t ->> 'table_schema', t ->> 'table_name') END) IS NOT TRUE
        OR told ->> 'key' IS DISTINCT FROM t ->> 'key_type'
        OR told -> 'as' IS DISTINCT FROM jsonb_build_array(c.nspname, c.relname)
        OR told ->> 'schema' IS DISTINCT FROM c.nspname OR told ? 'export';
      bound := told ->> 'bound';
      CONTINUE WHEN NOT coalesce(_partition_passed(t, line,
        _partition_value(substr(split_part(bound, ') TO (', 1), 18), t ->> 'key_type', false),
        _partition_value(left(split_part(bound, ') TO (', 2), -1), t ->> 'key_type', true)), false);
      is_ripe := _partition_period_from((told ->> 'at')::timestamptz AT TIME ZONE 'UTC', t ->> 'grace', 1,
        t ->> 'timezone') <= instant;
    EXCEPTION WHEN data_exception THEN
      CONTINUE;  -- a comment that a person edited
    END;
    CONTINUE WHEN told ->> 'fate' = t ->> 'on_expiry' AND (t ->> 'on_expiry' <> 'drop' OR NOT is_ripe);
    oid := c.oid; schema_name := c.nspname; name := c.relname; has_keys := c.keys;
    RETURN NEXT;
  END LOOP;
END
""",
    "what was detached, and is to be dropped now or has another fate than its mark says",
    door=True,
)

STILL = Routine(
    "_partition_still",
    "relation oid, place text, told jsonb, mode text",
    "void",
    """
BEGIN
  EXECUTE format('LOCK TABLE ONLY %s IN %s MODE', place, mode);
  IF NOT EXISTS (SELECT FROM pg_class c, obj_description(c.oid, 'pg_class') mark
      WHERE c.oid = relation AND c.oid = to_regclass(place) AND NOT c.relispartition
      AND CASE WHEN mark ^@ @DETACHED_MARK@
        THEN substr(mark, length(@DETACHED_MARK@) + 1)::jsonb = told END) THEN
    RAISE EXCEPTION '% is not what it was when this was planned', place
      USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
END
""",
    "lock what was detached, and make sure that it is what it was",
    volatile=True,
)

REMARK = Routine(
    "_partition_remark",
    "t jsonb, relation oid, place text, name text, told jsonb, dry_run boolean",
    "jsonb",
    """
BEGIN
  IF NOT dry_run THEN
    PERFORM _partition_still(relation, place, told, 'SHARE UPDATE EXCLUSIVE');
    EXECUTE format('COMMENT ON TABLE %s IS %L', place, @DETACHED_MARK@
      || (told || jsonb_build_object('fate', t ->> 'on_expiry',
        'at', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"Z"')))::text);
  END IF;
  RETURN _partition_told(name, 'skipped',
    'on_expiry has changed since it was detached, so its grace begins anew');
EXCEPTION WHEN OTHERS THEN
  RETURN _partition_told(name, 'failed', SQLERRM);
END
""",
    "say of what was detached what on_expiry says now; from then on its grace counts",
    volatile=True,
)

DISCARD = Routine(
    "_partition_discard",
    "t jsonb, dry_run boolean",
    "jsonb",
    """
DECLARE
  old record; place text; done jsonb := '[]'; number integer := 0;
  most integer := (t ->> 'max_drops')::integer;
BEGIN
  FOR old IN SELECT * FROM _partition_detached(t) x ORDER BY x.told ->> 'bound' LOOP
    place := format('%I.%I', old.schema_name, old.name);
    IF old.told ->> 'fate' <> t ->> 'on_expiry' THEN
      done := done || _partition_remark(t, old.oid, place, old.name, old.told, dry_run);
      CONTINUE;
    ELSIF old.has_keys THEN
      done := done || _partition_told(old.name, 'skipped', 'it has foreign keys, and dropping it here would'
        ' lock what they refer to until this transaction ends: alembic-partitions maintain drops it');
      CONTINUE;
    ELSIF number = most THEN
      done := done || _partition_told(NULL, 'skipped',
        format('more wait to be dropped: max_drops is %s', most));
      EXIT;
    END IF;
    number := number + 1;
    BEGIN
      IF NOT dry_run THEN
        PERFORM _partition_still(old.oid, place, old.told, 'ACCESS EXCLUSIVE');
        PERFORM _partition_execute(old.oid, ARRAY[format('DROP TABLE %s', place)]);
      END IF;
      done := done || _partition_told(old.name, CASE WHEN dry_run THEN 'would drop' ELSE 'dropped' END,
        format('detached on %s, and its grace of %s is over', left(old.told ->> 'at', 10), t ->> 'grace'));
    EXCEPTION WHEN OTHERS THEN
      done := done || _partition_told(old.name, 'failed', SQLERRM);
    END;
  END LOOP;
  RETURN done;
END
""",
    "drop what was detached once its grace is over, where on_expiry says so",
    volatile=True,
)

ROUTINES = (DETACHED, STILL, REMARK, DISCARD)
