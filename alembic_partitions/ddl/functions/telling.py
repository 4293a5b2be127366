"""What was done, as the doors return it and as partition_runs keeps it."""

from .routine import Routine

OUTCOMES = "TABLE (schema_name text, table_name text, partition_name text, action text, detail text)"

TOLD = Routine(
    "_partition_told",
    "name text, action text, detail text",
    "jsonb",
    """
BEGIN
  RETURN jsonb_build_array(jsonb_build_object('name', name, 'action', action, 'detail', detail));
END
""",
    "one thing done, or left undone, as the doors return it",
)

RESULT = Routine(
    "_partition_result",
    "t jsonb, done jsonb",
    "jsonb",
    """
BEGIN
  RETURN jsonb_build_array(jsonb_build_object('done', done,
    'told', concat(t ->> 'table_schema', '.', t ->> 'table_name')));
END
""",
    "what was done to a table, for the history",
)

EMIT = Routine(
    "_partition_outcomes",
    "t jsonb, done jsonb",
    OUTCOMES,
    """
BEGIN
  RETURN QUERY SELECT t ->> 'table_schema', t ->> 'table_name', d.name, d.action, d.detail
    FROM jsonb_to_recordset(done) d (name text, action text, detail text);
END
""",
    "what was done to a table as rows",
)

COUNT = Routine(
    "_partition_count",
    "results jsonb, what text",
    "integer",
    """
BEGIN
  RETURN count(*) FROM jsonb_path_query(results, '$[*].done[*].action') a WHERE a #>> '{}' = what;
END
""",
    "how much of something a run has done so far",
)

RECORD = Routine(
    "_partition_record",
    "run text, results jsonb, alone boolean DEFAULT false",
    "void",
    """
DECLARE
  details jsonb; created integer := _partition_count(results, 'created'); failed text;
BEGIN
  SELECT string_agg(format('%s: %s', r.told, concat_ws(': ', d.name, d.detail)), E'\\n') INTO failed
  FROM jsonb_to_recordset(results) r (told text, done jsonb),
       jsonb_to_recordset(r.done) d (name text, action text, detail text)
  WHERE d.action = 'failed';
  IF failed IS NOT NULL THEN
    RAISE WARNING '%', failed;
  END IF;
  IF run = 'ensure' AND created = 0 AND failed IS NULL THEN
    RETURN;
  END IF;
  SELECT coalesce(jsonb_object_agg(s.told, s.changes), '{}') INTO details
  FROM (SELECT k.told, jsonb_object_agg(k.what, k.names) AS changes
        FROM (SELECT r.told, CASE d.action WHEN 'analyzed' THEN 'tended' ELSE d.action END AS what,
                     jsonb_agg(d.name ORDER BY d.ordinality) AS names
              FROM jsonb_to_recordset(results) r (told text, done jsonb),
                   ROWS FROM (jsonb_to_recordset(r.done) AS (name text, action text, detail text))
                     WITH ORDINALITY d
              WHERE d.action IN ('created', 'detached', 'dropped', 'analyzed') GROUP BY 1, 2) k
        GROUP BY k.told) s;
  IF alone THEN
    SELECT jsonb_object_agg(r.told, coalesce(details -> r.told, '{}') || '{"alone": true}') INTO details
    FROM jsonb_to_recordset(results) r (told text);
  END IF;
  INSERT INTO @config@.partition_runs (started_at, action, created, detached, dropped, details, error)
  VALUES (now(), run, created, _partition_count(results, 'detached'), _partition_count(results, 'dropped'),
    details, failed);
EXCEPTION WHEN insufficient_privilege THEN
  RAISE NOTICE 'the run could not be written to partition_runs: %', SQLERRM;
END
""",
    "write a run down, as the package does",
    volatile=True,
)

ROUTINES = (TOLD, RESULT, EMIT, COUNT, RECORD)
