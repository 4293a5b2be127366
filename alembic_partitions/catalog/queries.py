"""What is asked of the catalog. Each text pastes into psql."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnClause, TextClause, column, text

from alembic_partitions.periods import KeyType

# Where our configuration lives: any table of that name, and whether it carries our mark. Without one there is
# a row all the same, which tells whether Citus is here.
FIND_CONFIG = text("""
SELECT n.nspname AS schema, obj_description(c.oid, 'pg_class') AS mark,
       has_table_privilege(c.oid, 'SELECT') AS readable,
       to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL AS has_citus,
       CASE WHEN :bounded THEN set_config('lock_timeout', '2s', true) END
FROM (SELECT) here
LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace)
       ON c.relname = 'partition_config' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY n.nspname
""")

# Whether this is a worker of a Citus cluster: the coordinator's group is 0, as is that of a server without
# nodes. Asked only where FIND_CONFIG has found Citus.
IS_WORKER = text("SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_local_group WHERE groupid <> 0)")

# Whether Citus keeps the rows of c: each table that its pg_dist_partition lists bears a trigger of its own.
# That catalog cannot be named where there is no Citus.
IS_DISTRIBUTED = """EXISTS (SELECT FROM pg_trigger g JOIN pg_proc f ON f.oid = g.tgfoid
               WHERE g.tgrelid = c.oid AND f.proname = 'citus_truncate_trigger'
               AND f.pronamespace = 'pg_catalog'::regnamespace)"""

# Tables partitioned by something, with their first key column and what LIKE and ATTACH leave behind.
# attstattarget: -1 up to PostgreSQL 16, NULL from 17 on, where none is set; 0 on a dropped column up to 16.
# relam is 0 up to 16.
_PARENTS = f"""
SELECT n.nspname AS schema, c.relname AS name, c.oid AS oid, c.relkind::text AS kind,
       p.partstrat::text AS strategy, p.partnatts AS natts,
       a.attname AS key,
       -- regtype quotes "date" under quote_all_identifiers.
       trim(a.atttypid::regtype::text, '"') AS type,
       -- timestamptz(0) rounds what it stores.
       CASE WHEN a.atttypmod BETWEEN 0 AND 5 THEN a.atttypmod END AS precision,
       pg_get_userbyid(c.relowner) AS owner,
       -- An index that was dropped since stays as 'i', and means NOTHING (manual, ALTER TABLE).
       CASE WHEN c.relreplident = 'i'
                 AND NOT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisreplident)
            THEN 'n' ELSE c.relreplident::text END AS replica_identity,
       c.relrowsecurity AS row_security,
       (SELECT m.amname FROM pg_am m WHERE m.oid = c.relam) AS access_method,
       (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace) AS tablespace_of_parent,
       (SELECT json_agg(json_build_array(s.attname, s.attstattarget) ORDER BY s.attnum)::text
        FROM pg_attribute s
        WHERE s.attrelid = c.oid AND s.attnum > 0 AND NOT s.attisdropped
          AND s.attstattarget >= 0) AS statistics,
       EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = c.oid AND x.contype = 'x') AS exclusions,
       (SELECT json_agg(DISTINCT format('%I.%I', o.nspname, r.relname))::text
        FROM (SELECT confrelid AS other FROM pg_constraint
              WHERE conrelid = c.oid AND contype = 'f' AND conparentid = 0
              -- pg_constraint has no index by the table referred to; the triggers of the key have one
              UNION SELECT tgconstrrelid FROM pg_trigger WHERE tgrelid = c.oid AND tgconstrrelid <> 0) k
        JOIN pg_class r ON r.oid = k.other AND NOT r.relispartition
        JOIN pg_namespace o ON o.oid = r.relnamespace) AS key_tables,
       {IS_DISTRIBUTED} AS distributed
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
"""
_COLUMNS: Sequence[ColumnClause[Any]] = (
    *map(column, ("schema", "name", "oid", "kind", "strategy", "natts", "key", "type", "owner")),
    *map(column, ("replica_identity", "row_security", "access_method", "tablespace_of_parent")),
    *map(column, ("statistics", "exclusions", "key_tables", "precision", "distributed")),
)
PARENTS = text(_PARENTS).columns(*_COLUMNS)

# The partitions of some parents. Half-way through DETACH CONCURRENTLY they are still listed (PostgreSQL 14+).
# pg_get_expr(..., c.oid) would lock each partition, and wait for one that is being changed; a bound has no
# columns to name, so 0 does.
PARTITIONS = text("""
SELECT i.inhparent AS parent, c.oid AS oid, n.nspname AS schema, c.relname AS name,
       pg_get_expr(c.relpartbound, 0) AS bound, i.inhdetachpending AS detach_pending
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = ANY (CAST(:parents AS oid[]))
""")

# Beside a row ``config``: its table, found by index, since the catalog may hold a hundred thousand others;
# OFFSET 0 keeps the planner to that.
CONFIGURED_PARENT = text(f"""{_PARENTS}
WHERE n.nspname = config.table_schema AND c.relname = config.table_name OFFSET 0
""").columns(*_COLUMNS)

# Beside the rows ``session`` and ``config``: between which names the partitions of its horizon stand. The
# days are rough; one more at either end makes up for any zone and begin of the day.
_DAYS = """
CASE config.interval WHEN 'hour' THEN 0.05 WHEN 'day' THEN 1 WHEN 'week' THEN 7 WHEN 'month' THEN 31
     WHEN 'quarter' THEN 92 ELSE 366 END * config.every"""
_NAME = f"""
concat(config.table_name, '_', to_char(
    coalesce(CAST(:rehearsed AS timestamptz), session.now) AT TIME ZONE 'UTC'
    {{}} interval '1 day' * least((config.{{}} + 1) * {_DAYS} + 1, 500000),
    CASE WHEN config.interval IN ('year', 'quarter') THEN 'YYYY' WHEN config.interval = 'month' THEN 'YYYY_MM'
         ELSE 'YYYY_MM_DD' END)) COLLATE "C"
"""
FIRST_NAME, LAST_NAME = text(_NAME.format("-", "lookback")), text(_NAME.format("+", "premake"))

# Beside a row ``span`` of two such names: the partitions between them. They stand together in an index,
# however many others there are; OFFSET 0 keeps the planner to that.
PARTITIONS_BETWEEN = text("""
SELECT i.inhparent AS parent,
       -- JSON would make a text of an OID.
       json_build_array(c.oid::bigint, n.nspname, c.relname, pg_get_expr(c.relpartbound, 0),
                        i.inhdetachpending) AS part
FROM (SELECT c.oid, c.relnamespace, c.relname, c.relpartbound FROM pg_class c
      WHERE c.relname BETWEEN span.first::name AND (span.last || '~')::name
        AND c.relispartition AND c.relkind IN ('r', 'p', 'f') OFFSET 0) c,
LATERAL (SELECT i.inhparent, i.inhdetachpending FROM pg_inherits i WHERE i.inhrelid = c.oid OFFSET 0) i,
LATERAL (SELECT n.nspname FROM pg_namespace n WHERE n.oid = c.relnamespace OFFSET 0) n
""").columns(column("parent"), column("part"))

# Which of some names are in use in a schema, by a relation or by a type (a table makes one of its name).
NAMES_IN_USE = text("""
SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = ANY (CAST(:names AS text[]))
UNION
SELECT t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = :schema AND t.typname = ANY (CAST(:names AS text[]))
""")

# What stands right now under the names of partitions about to be made, and under that of their parent.
STANDING = text("""
SELECT ARRAY(SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = :schema AND c.relname = ANY (CAST(:children AS text[]))) AS children,
       (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = :schema AND c.relname = :parent) AS parent
""")

# Who holds a lock that making a partition conflicts with (manual, section 13.3.1): on the parent SHARE
# UPDATE EXCLUSIVE, on tables at either end of its foreign keys SHARE ROW EXCLUSIVE, on its DEFAULT partition
# ACCESS EXCLUSIVE. pg_blocking_pids() knows only waits under way, and ours is over when we can ask.
BLOCKERS = text("""
WITH needed AS (
    SELECT CAST(:parent AS oid) AS relation,
           ARRAY['ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                 'AccessExclusiveLock'] AS conflicts
    UNION ALL
    SELECT k.other, ARRAY['RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock',
                          'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock']
    FROM (SELECT confrelid AS other FROM pg_constraint WHERE conrelid = CAST(:parent AS oid) AND contype = 'f'
          UNION SELECT conrelid FROM pg_constraint WHERE confrelid = CAST(:parent AS oid) AND contype = 'f') k
    UNION ALL
    SELECT p.partdefid, ARRAY['AccessShareLock', 'RowShareLock', 'RowExclusiveLock',
                              'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                              'ExclusiveLock', 'AccessExclusiveLock']
    FROM pg_partitioned_table p WHERE p.partrelid = CAST(:parent AS oid) AND p.partdefid <> 0
)
SELECT l.pid AS pid, l.mode AS mode, l.relation::regclass::text AS relation, a.application_name AS application
FROM pg_locks l
JOIN needed ON needed.relation = l.relation AND l.mode = ANY (needed.conflicts)
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND coalesce(l.pid = pg_backend_pid(), false) = :ours
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  -- Whoever has the turn to make partitions of it is no blocker, but done in a moment, though it may have
  -- stood in the queue for 2 s before; a migration, whose transaction goes on, is one.
  AND NOT (a.xact_start > clock_timestamp() - interval '5 s'
           AND EXISTS (SELECT FROM pg_locks t WHERE t.pid = l.pid AND t.locktype = 'advisory' AND t.granted
                       AND t.classid = CAST(:turn AS oid) AND t.objid = CAST(:parent AS oid)))
ORDER BY a.xact_start, l.pid
""")

# Who else holds a lock of any kind on some relations.
HOLDERS = text("""
SELECT l.pid AS pid, l.mode AS mode, l.relation::regclass::text AS relation,
       a.application_name AS application, l.virtualtransaction AS transaction,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY (CAST(:relations AS oid[]))
  AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
ORDER BY a.xact_start, l.pid
""")

SIZE = text("SELECT pg_relation_size(CAST(CAST(:oid AS oid) AS regclass))")

RESOLVE = text("""
SELECT to_regclass(concat(quote_ident(CAST(:schema AS text)) || '.', quote_ident(CAST(:name AS text))))::oid
""")

# What a name without a schema means here: the table it leads to, where a new one would go, and whether the
# search_path leads to a partition_config with our mark.
MEANT = text("""
SELECT current_schema() AS default_schema,
       (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass(quote_ident(CAST(:name AS text)))) AS table_schema,
       (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('partition_config')
          AND obj_description(c.oid, 'pg_class') = :mark) AS config_schema
""")

# What autogenerate may see: not partitions at any depth, nor detached ones that still bear our mark; our own
# two tables are told apart. A name without a schema means what the search_path leads to. Those that it may
# not see are many, so they are not what is asked for.
SHOWN = text("""
SELECT n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible,
       coalesce(d.description IN (:config, :runs), false) AS ours
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition
  AND n.nspname <> 'information_schema' AND NOT starts_with(n.nspname, 'pg_')
  AND (d.description IN (:config, :runs) OR NOT coalesce(starts_with(d.description, :marks), false))
""")

# Foreign keys that PostgreSQL has made for each partition of the table referred to: on the table that refers
# to it they stand beside the one that was declared.
INHERITED_KEYS = text("""
SELECT n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible, x.conname AS constraint
FROM pg_constraint x
JOIN pg_class c ON c.oid = x.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE x.contype = 'f' AND x.conparentid <> 0 AND NOT c.relispartition
""")

# Partitioned tables, but for those that are partitions themselves.
PARTITIONED = text("""
SELECT n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible,
       pg_get_partkeydef(c.oid) AS partition_by, p.partstrat::text AS strategy,
       CASE WHEN p.partnatts = 1 THEN a.attname END AS key,
       (SELECT json_agg(k.attname)::text FROM pg_constraint x
        JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY (x.conkey)
        WHERE x.conrelid = c.oid AND x.contype = 'p') AS primary_key,
       (SELECT json_agg(i.relname)::text FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
        WHERE x.indrelid = c.oid AND NOT x.indisvalid) AS invalid_indexes,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_partitions
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_partitioned_table p ON p.partrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
WHERE NOT c.relispartition
""")

# to_char() is under no DateStyle; what it is given has been read under the session's.
READ_KEY: Mapping[KeyType, TextClause] = {
    "timestamptz": text(
        "SELECT to_char(CAST(CAST(:printed AS text) AS timestamptz) AT TIME ZONE 'UTC',"
        " 'YYYY-MM-DD HH24:MI:SS.US')"
    ),
    "timestamp": text(
        "SELECT to_char(CAST(CAST(:printed AS text) AS timestamp), 'YYYY-MM-DD HH24:MI:SS.US')"
    ),
    "date": text("SELECT to_char(CAST(CAST(:printed AS text) AS date), 'YYYY-MM-DD')"),
}

# Where the server keeps its data, as far as this role may know, and when it was started.
PLACE = text("""
SELECT CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory')
       END AS folder,
       extract(epoch FROM pg_postmaster_start_time())::bigint AS started
""")

SCHEMA_EXISTS = text("SELECT n.oid FROM pg_namespace n WHERE n.nspname = CAST(:schema AS text)")
