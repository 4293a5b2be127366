"""Every read of pg_catalog and of our two tables. Each text pastes into psql.

The session's TimeZone and DateStyle decide how PostgreSQL prints a bound (``pg_get_expr``), so bounds are
read under UTC and ISO: :func:`read_snapshot` sets both for its transaction, :func:`utc_settings` for a
stretch of somebody else's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pytz
from sqlalchemy import Connection, TextClause, and_, column, func, select, table, text, true
from sqlalchemy.engine import Row

from .compare import Relation
from .errors import ConfigurationError, PolicyError
from .periods import KeyType, KeyValue, iso_time
from .plan import (
    CONFIG_MARK,
    PARENT_LOCK_CLASS,
    PARTITION_MARK,
    RUNS_MARK,
    ManagedTable,
    Partition,
    Refusal,
    Traits,
)
from .policy import PartitionPolicy

CONFIG_TABLE = "partition_config"

# Where our configuration lives: any table of that name, and whether it carries our mark.
_FIND_CONFIG = text("""
SELECT n.nspname AS schema, obj_description(c.oid, 'pg_class') AS mark,
       CASE WHEN :bounded THEN set_config('lock_timeout', '2s', true) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'partition_config' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY n.nspname
""")

# Tables partitioned by something, with their first key column and what LIKE and ATTACH leave behind.
# attstattarget: -1 up to PostgreSQL 16, NULL from 17 on, where none is set; 0 on a dropped column up to 16.
# relam is 0 up to 16.
_PARENTS = text("""
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
        JOIN pg_namespace o ON o.oid = r.relnamespace) AS key_tables
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
""").columns(
    *map(column, ("schema", "name", "oid", "kind", "strategy", "natts", "key", "type", "owner")),
    *map(column, ("replica_identity", "row_security", "access_method", "tablespace_of_parent")),
    *map(column, ("statistics", "exclusions", "key_tables", "precision")),
)

# The partitions of some parents. Half-way through DETACH CONCURRENTLY they are still listed (PostgreSQL 14+).
# pg_get_expr(..., c.oid) would lock each partition, and wait for one that is being changed; a bound has no
# columns to name, so 0 does.
_PARTITIONS = text("""
SELECT i.inhparent AS parent, c.oid AS oid, n.nspname AS schema, c.relname AS name,
       pg_get_expr(c.relpartbound, 0) AS bound, i.inhdetachpending AS detach_pending
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = ANY (CAST(:parents AS oid[]))
""")

# Those of them that bear one of some names: found by index, however many others there are. A name is only a
# hint where to look first; what covers what is told by the bounds.
_NAMED_PARTITIONS = text(f"{_PARTITIONS.text} AND c.relname = ANY (CAST(:names AS text[]))")

# Which of some names are in use in a schema, by a relation or by a type (a table makes one of its name).
_NAMES_IN_USE = text("""
SELECT c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = ANY (CAST(:names AS text[]))
UNION
SELECT t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = :schema AND t.typname = ANY (CAST(:names AS text[]))
""")

# What stands under two names right now: the partition about to be made, and its parent.
_STANDING = text("""
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = :schema AND c.relname = :child) AS child,
       (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = :schema AND c.relname = :parent) AS parent
""")

# Who holds a lock that making a partition conflicts with (manual, section 13.3.1): on the parent SHARE
# UPDATE EXCLUSIVE, on tables at either end of its foreign keys SHARE ROW EXCLUSIVE, on its DEFAULT partition
# ACCESS EXCLUSIVE. pg_blocking_pids() knows only waits under way, and ours is over when we can ask.
_BLOCKERS = text("""
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
WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  -- Whoever has the turn to make partitions of it is no blocker, but done in a moment; a migration, whose
  -- transaction goes on, is one.
  AND NOT (a.xact_start > clock_timestamp() - interval '3 s'
           AND EXISTS (SELECT FROM pg_locks t WHERE t.pid = l.pid AND t.locktype = 'advisory' AND t.granted
                       AND t.classid = CAST(:turn AS oid) AND t.objid = CAST(:parent AS oid)))
ORDER BY a.xact_start, l.pid
""")

_SIZE = text("SELECT pg_relation_size(CAST(CAST(:oid AS oid) AS regclass))")

_RESOLVE = text("""
SELECT to_regclass(concat(quote_ident(CAST(:schema AS text)) || '.', quote_ident(CAST(:name AS text))))::oid
""")

# What a name without a schema means here: the table it leads to, where a new one would go, and whether the
# search_path leads to a partition_config with our mark.
_MEANT = text("""
SELECT current_schema() AS default_schema,
       (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass(quote_ident(CAST(:name AS text)))) AS table_schema,
       (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = to_regclass('partition_config')
          AND obj_description(c.oid, 'pg_class') = :mark) AS config_schema
""")

# What autogenerate must not see: partitions at any depth, detached ones that still bear our mark, our two
# tables. A name without a schema means what the search_path leads to.
_HIDDEN = text("""
SELECT n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE c.relkind IN ('r', 'p', 'f')
  AND (c.relispartition OR starts_with(d.description, :partition) OR d.description IN (:config, :runs))
""")

# Partitioned tables, but for those that are partitions themselves.
_PARTITIONED = text("""
SELECT n.nspname AS schema, c.relname AS name, pg_table_is_visible(c.oid) AS visible,
       pg_get_partkeydef(c.oid) AS partition_by, p.partstrat::text AS strategy,
       CASE WHEN p.partnatts = 1 THEN a.attname END AS key,
       (SELECT json_agg(k.attname)::text FROM pg_constraint x
        JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = ANY (x.conkey)
        WHERE x.conrelid = c.oid AND x.contype = 'p') AS primary_key,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_partitions
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_partitioned_table p ON p.partrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
WHERE NOT c.relispartition
""")

# to_char() is under no DateStyle; what it is given has been read under the session's.
_READ_KEY: Mapping[KeyType, TextClause] = {
    "timestamptz": text(
        "SELECT to_char(CAST(CAST(:printed AS text) AS timestamptz) AT TIME ZONE 'UTC',"
        " 'YYYY-MM-DD HH24:MI:SS.US')"
    ),
    "timestamp": text(
        "SELECT to_char(CAST(CAST(:printed AS text) AS timestamp), 'YYYY-MM-DD HH24:MI:SS.US')"
    ),
    "date": text("SELECT to_char(CAST(CAST(:printed AS text) AS date), 'YYYY-MM-DD')"),
}

_SCHEMA_EXISTS = text("SELECT n.oid FROM pg_namespace n WHERE n.nspname = CAST(:schema AS text)")

_BOUND = re.compile(r"FOR VALUES FROM \((?P<lower>.*)\) TO \((?P<upper>.*)\)")
_KEY_TYPES: Mapping[str, KeyType] = {
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
}
_SETTINGS = ("TimeZone", "DateStyle")
_UTC_AND_ISO = ("UTC", "ISO, YMD")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything managed, as one transaction saw it."""

    config_schema: str
    now: datetime
    in_recovery: bool
    user: str
    tables: tuple[ManagedTable, ...]


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that holds what ATTACH needs. ``pid`` is ``None`` for a prepared transaction."""

    pid: int | None
    mode: str
    relation: str
    application: str | None

    def __str__(self) -> str:
        who = "a prepared transaction" if self.pid is None else f"process {self.pid}"
        name = f" ({self.application})" if self.application else ""
        return f"{who}{name} holds {self.mode} on {self.relation}"


def find_config(connection: Connection, schema: str | None = None, bounded: bool = False) -> str | None:
    """Return the schema of our partition_config, or ``None`` where there is none.

    :param bounded: let no later read of this transaction wait for a lock longer than two seconds.
    :raises ConfigurationError: there are two and ``schema`` names neither, or the one in ``schema`` is
        somebody else's.
    """
    found = connection.execute(_FIND_CONFIG, {"bounded": bounded}).all()
    ours = _marked(found)
    if schema is not None:
        if schema in ours:
            return schema
        if any(row.schema == schema for row in found):
            raise ConfigurationError(
                problem=f"in schema {schema!r} is not ours: it lacks our mark",
                remedy="Keep ours in another schema: set ALEMBIC_PARTITIONS_SCHEMA, schema=, or"
                " alembic_partitions_schema in alembic.ini.",
            )
        return None
    if len(ours) > 1:
        raise ConfigurationError(
            problem="exists twice: in " + " and ".join(f"schema {name!r}" for name in ours),
            remedy="Name the one you mean: ALEMBIC_PARTITIONS_SCHEMA, or schema=.",
        )
    return ours[0] if ours else None


def config_schemas(connection: Connection) -> list[str]:
    """Return every schema that holds a partition_config of ours."""
    return _marked(connection.execute(_FIND_CONFIG, {"bounded": False}).all())


def _marked(found: Sequence[Row[Any]]) -> list[str]:
    return [row.schema for row in found if row.mark == CONFIG_MARK]


def schema_exists(connection: Connection, schema: str) -> bool:
    """Tell whether there is a schema of that name."""
    return connection.execute(_SCHEMA_EXISTS, {"schema": schema}).scalar() is not None


def read_snapshot(
    connection: Connection,
    config_schema: str,
    tables: Collection[str] | None = None,
    partitions: bool = True,
) -> Snapshot:
    """Read what is managed, in two statements; needs a transaction of its own (it sets TimeZone for it).

    :param tables: only those of these names, plain or ``schema.name``.
    :param partitions: ``False`` reads none: one statement, and :func:`with_partitions` can follow.
    """
    fields = [item.name for item in dataclasses.fields(PartitionPolicy)]
    names = ["table_schema", "table_name", *("partition_key" if name == "key" else name for name in fields)]
    config = table(CONFIG_TABLE, *map(column, names), schema=config_schema)
    session = select(
        func.now().label("now"),
        func.pg_is_in_recovery().label("in_recovery"),
        func.current_user().label("user"),
        *(func.set_config(name, value, true()) for name, value in zip(_SETTINGS, _UTC_AND_ISO, strict=True)),
    ).subquery("session")
    parents = _PARENTS.subquery("parents")
    same = and_(parents.c.schema == config.c.table_schema, parents.c.name == config.c.table_name)
    rows = connection.execute(
        select(session.c.now, session.c.in_recovery, session.c.user, config, parents)
        .select_from(session.outerjoin(config, true()).outerjoin(parents, same))
        .order_by(config.c.table_schema, config.c.table_name)
    ).all()
    found = [_managed(row, fields) for row in rows if row.table_name is not None]
    if tables is not None:
        found = [t for t in found if t.name in tables or str(t) in tables]
    first = rows[0]
    complete = with_partitions(connection, found) if partitions else found
    return Snapshot(config_schema, first.now, first.in_recovery, first.user, tuple(complete))


def with_partitions(
    connection: Connection, tables: Sequence[ManagedTable], names: Collection[str] | None = None
) -> Iterator[ManagedTable]:
    """Yield the tables with their partitions filled in; under the settings of :func:`utc_settings`.

    :param names: only the partitions of these names.
    """
    known = {t.oid: t for t in tables if t.oid is not None and t.problem is None}
    children: dict[int, list[Partition]] = {oid: [] for oid in known}
    if known:
        query = _PARTITIONS
        wanted: dict[str, list[Any]] = {"parents": list(known)}
        if names is not None:
            query, wanted = _NAMED_PARTITIONS, {**wanted, "names": list(names)}
        for row in connection.execute(query, wanted):
            children[row.parent].append(_partition(row, known[row.parent].key_type))
    for item in tables:
        parts = children.get(item.oid) if item.oid is not None else None
        yield item if parts is None else dataclasses.replace(item, partitions=tuple(parts))


def describe_table(connection: Connection, schema: str, name: str, policy: PartitionPolicy) -> ManagedTable:
    """Read one table and its partitions as ``policy`` sees them, whether or not it is configured."""
    parents = _PARENTS.subquery("parents")
    row = connection.execute(
        select(parents).where(parents.c.schema == schema, parents.c.name == name)
    ).one_or_none()
    found = _fit(row, policy) if row else ManagedTable(schema, name, policy, problem=(Refusal.NO_TABLE, name))
    with utc_settings(connection):
        return next(with_partitions(connection, [found]))


@contextmanager
def utc_settings(connection: Connection) -> Iterator[None]:
    """Read bounds under UTC and ISO inside a transaction that is not ours, and put its settings back."""
    before = connection.execute(select(*(func.current_setting(name) for name in _SETTINGS))).one()
    # In autocommit a LOCAL setting would be gone with its own statement. The connection's own isolation level
    # says READ COMMITTED there too.
    local = not getattr(connection.connection.dbapi_connection, "autocommit", False)

    def put(values: Sequence[Any]) -> None:
        named = zip(_SETTINGS, values, strict=True)
        connection.execute(select(*(func.set_config(name, value, local) for name, value in named)))

    put(_UTC_AND_ISO)
    try:
        yield
    except BaseException:
        if not local:  # a transaction that is rolled back takes its settings along
            put(before)
        raise
    put(before)


def names_in_use(connection: Connection, schema: str, names: Collection[str]) -> set[str]:
    """Return which of ``names`` are taken in ``schema``."""
    rows = connection.execute(_NAMES_IN_USE, {"schema": schema, "names": list(names)})
    return set(rows.scalars())


def standing(connection: Connection, schema: str, child: str, parent: str) -> tuple[bool, int | None]:
    """Tell whether a relation called ``child`` stands, and return the OID of ``parent``."""
    row = connection.execute(_STANDING, {"schema": schema, "child": child, "parent": parent}).one()
    return row.child, row.parent


def partitions_of(connection: Connection, table: ManagedTable) -> tuple[Partition, ...]:
    """Read the partitions of one table anew."""
    with utc_settings(connection):
        return next(with_partitions(connection, [table])).partitions


def blockers(connection: Connection, parent_oid: int) -> list[Blocker]:
    """Return who holds a lock that making a partition of that parent has to wait for."""
    rows = connection.execute(_BLOCKERS, {"parent": parent_oid, "turn": PARENT_LOCK_CLASS})
    return [Blocker(row.pid, row.mode, row.relation, row.application) for row in rows]


def meant(connection: Connection, name: str = "") -> Row[Any]:
    """Return ``default_schema``, ``table_schema`` and ``config_schema`` as the search_path has them."""
    return connection.execute(_MEANT, {"name": name, "mark": CONFIG_MARK}).one()


def notice(connection: Connection, partition_oid: int) -> None:
    """Make a session's open transaction see a partition committed since, prepared statements included.

    PostgreSQL reads what others changed only when it takes a new lock or looks something up; asking for the
    partition's size is a look-up that any role may make.
    """
    connection.execute(_SIZE, {"oid": partition_oid})


def read_key(
    connection: Connection, printed: str, key_type: KeyType, date_style: str, time_zone: str
) -> KeyValue:
    """Read a key as a session with these settings prints it; needs a transaction of its own."""
    for name, value in (("DateStyle", date_style), ("TimeZone", time_zone)):
        connection.execute(select(func.set_config(name, value, true())))
    found = datetime.fromisoformat(connection.execute(_READ_KEY[key_type], {"printed": printed}).scalar_one())
    if key_type == "date":
        return found.date()
    return found.replace(tzinfo=pytz.utc) if key_type == "timestamptz" else found


def resolve(connection: Connection, schema: str | None, name: str) -> int | None:
    """Return the OID that a table name means on this connection, whose search_path may be a tenant's."""
    oid: int | None = connection.execute(_RESOLVE, {"schema": schema, "name": name}).scalar()
    return oid


def hidden_tables(connection: Connection) -> set[tuple[str | None, str]]:
    """Return the tables that are no model's business, by schema and name; visible ones by name alone, too."""
    marks = {"partition": PARTITION_MARK, "config": CONFIG_MARK, "runs": RUNS_MARK}
    return {key for row in connection.execute(_HIDDEN, marks) for key in _keys(row)}


def partitioned_tables(
    connection: Connection, config_schema: str | None
) -> dict[tuple[str | None, str], Relation]:
    """Return the partitioned tables with what migrations declared of them, by schema and name; visible ones
    by name alone, too."""
    declared: dict[tuple[str, str], Any] = {}
    if config_schema is not None:
        config = table(
            CONFIG_TABLE, *map(column, ("table_schema", "table_name", "declared")), schema=config_schema
        )
        for row in connection.execute(select(config)):
            # asyncpg hands out jsonb as text without a type.
            value = json.loads(row.declared) if isinstance(row.declared, str) else row.declared
            declared[row.table_schema, row.table_name] = value
    return {
        key: Relation(
            partition_by=row.partition_by,
            strategy=row.strategy,
            key=row.key,
            primary_key=frozenset(json.loads(row.primary_key or "[]")),
            has_partitions=row.has_partitions,
            declared=declared.get((row.schema, row.name)),
        )
        for row in connection.execute(_PARTITIONED)
        for key in _keys(row)
    }


def _keys(row: Row[Any]) -> list[tuple[str | None, str]]:
    return [(row.schema, row.name), *([(None, row.name)] if row.visible else [])]


# -- rows into values -----------------------------------------------------------------------------------


def _managed(row: Row[Any], fields: Sequence[str]) -> ManagedTable:
    mapping = row._mapping
    values = {name: mapping["partition_key" if name == "key" else name] for name in fields}
    if isinstance(values["storage_parameters"], str):  # asyncpg hands out jsonb as text without a type
        values["storage_parameters"] = json.loads(values["storage_parameters"])
    values["day_start"] = f"{values['day_start']:%H:%M}"
    try:
        policy = PartitionPolicy.from_dict(values)
    except PolicyError as error:
        return ManagedTable(row.table_schema, row.table_name, problem=(Refusal.UNFIT, str(error)))
    if row.oid is None:
        where = f"{row.table_schema}.{row.table_name}"
        return ManagedTable(row.table_schema, row.table_name, policy, problem=(Refusal.NO_TABLE, where))
    return _fit(row, policy)


def _fit(row: Row[Any], policy: PartitionPolicy) -> ManagedTable:
    """Hold a table against its policy: what cannot be worked on says why."""
    found = ManagedTable(row.schema, row.name, policy, oid=row.oid)
    if row.kind != "p":
        why = "it is not a partitioned table"
    elif row.strategy != "r":
        why = f"it is partitioned by {'LIST' if row.strategy == 'l' else 'HASH'}, not by RANGE"
    elif row.natts != 1 or row.key != policy.key:
        by = "an expression" if row.key is None else f"column {row.key!r}" + (" and more" * (row.natts > 1))
        why = f"it is partitioned by {by}, the policy by column {policy.key!r}"
    elif row.type not in _KEY_TYPES:
        why = f"its key {row.key!r} is of type {row.type}; use timestamptz, timestamp or date"
    else:
        try:
            policy.grid(_KEY_TYPES[row.type])
        except PolicyError as error:
            why = str(error)
        else:
            return dataclasses.replace(
                found, key_type=_KEY_TYPES[row.type], traits=_traits(row), precision=row.precision
            )
    return dataclasses.replace(found, problem=(Refusal.UNFIT, f"{row.schema}.{row.name}: {why}"))


def _traits(row: Row[Any]) -> Traits:
    return Traits(
        owner=row.owner,
        replica_identity=row.replica_identity,
        row_security=row.row_security,
        statistics=tuple((name, target) for name, target in json.loads(row.statistics or "[]")),
        access_method=row.access_method,
        tablespace=row.tablespace_of_parent,
        exclusions=row.exclusions,
        key_tables=tuple(json.loads(row.key_tables or "[]")),
    )


def _partition(row: Row[Any], key_type: KeyType | None) -> Partition:
    if row.bound == "DEFAULT":
        return Partition(row.oid, row.schema, row.name, None, None, True, row.detach_pending)
    match = _BOUND.fullmatch(row.bound)
    assert match is not None, row.bound  # RANGE over one column, or _fit() refused
    assert key_type is not None
    lower = _value(match["lower"], key_type, upper=False)
    upper = _value(match["upper"], key_type, upper=True)
    return Partition(row.oid, row.schema, row.name, lower, upper, False, row.detach_pending)


def _value(printed: str, key_type: KeyType, upper: bool) -> KeyValue | None:
    """Read a bound as PostgreSQL prints it under UTC and ISO; beyond Python's years 1 to 9999 it is open."""
    digits = printed.strip("'")
    early = printed == "MINVALUE" or digits == "-infinity" or digits.endswith(" BC")
    late = printed == "MAXVALUE" or digits == "infinity" or digits.find("-", 1) > 4
    if early or late:
        if early != upper:
            return None
        end = datetime.min if early else datetime.max  # an empty stretch at that end of the calendar
        zoned = end.replace(tzinfo=pytz.utc) if key_type == "timestamptz" else end
        return end.date() if key_type == "date" else zoned
    if key_type == "date":
        return date.fromisoformat(digits)
    value = iso_time(digits)
    return value.astimezone(pytz.utc) if key_type == "timestamptz" else value
