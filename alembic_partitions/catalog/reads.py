"""The reading itself: a question, and its answer as values of ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import pytz
from sqlalchemy import (
    CTE,
    Connection,
    FromClause,
    Select,
    Text,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
    true,
)
from sqlalchemy.engine import Row

from alembic_partitions import keys
from alembic_partitions.compare import Relation
from alembic_partitions.errors import ConfigurationError, NotCoordinatorError
from alembic_partitions.naming import check_text
from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import (
    CONFIG_ADDED,
    CONFIG_MARK,
    MARKS,
    PARENT_LOCK_CLASS,
    RUNS_MARK,
    ManagedTable,
    Partition,
    Refusal,
)
from alembic_partitions.policy import PartitionPolicy

from . import queries
from .values import Child, fitted, managed_table, partition_of

CONFIG_TABLE = "partition_config"

#: Which partitions are read.
Reach: TypeAlias = Literal["all", "horizon", "none"]

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
    transaction: str = ""
    #: How old its transaction is; ``None`` where this role may not see that.
    seconds: float | None = None

    def __str__(self) -> str:
        who = "a prepared transaction" if self.pid is None else f"process {self.pid}"
        name = f" ({self.application})" if self.application else ""
        return f"{who}{name} holds {self.mode} on {self.relation}"


def find_config(connection: Connection, schema: str | None = None, bounded: bool = False) -> str | None:
    """Return the schema of our partition_config, or ``None`` where there is none.

    :param bounded: let no later read of this transaction wait for a lock longer than two seconds.
    :raises ConfigurationError: there are two and ``schema`` names neither, or the one in ``schema`` is
        somebody else's.
    :raises NotCoordinatorError: this is a worker of a Citus cluster.
    """
    found = connection.execute(queries.FIND_CONFIG, {"bounded": bounded}).all()
    if found[0].has_citus and connection.execute(queries.IS_WORKER).scalar_one():
        raise NotCoordinatorError()
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
    return _marked(connection.execute(queries.FIND_CONFIG, {"bounded": False}).all())


def _marked(found: Sequence[Row[Any]]) -> list[str]:
    return [row.schema for row in found if row.mark == CONFIG_MARK]


def schema_exists(connection: Connection, schema: str) -> bool:
    """Tell whether there is a schema of that name."""
    return connection.execute(queries.SCHEMA_EXISTS, {"schema": schema}).scalar() is not None


def read_snapshot(
    connection: Connection,
    config_schema: str,
    tables: Collection[str] | None = None,
    partitions: Reach = "all",
    rehearsed: datetime | None = None,
) -> Snapshot:
    """Read what is managed, in two statements; needs a transaction of its own (it sets TimeZone for it).

    :param tables: only those of these names, plain or ``schema.name``.
    :param partitions: ``none``, or ``horizon``, those that bear names of a table's horizon, takes one
        statement; :func:`with_partitions` can follow.
    :param rehearsed: whose horizon, if not of now.
    :raises PolicyError: no name of PostgreSQL's can be like one of ``tables``.
    """
    for name in tables or ():
        check_text("table", name)
    rows = connection.execute(
        _snapshot_query(config_schema, partitions == "horizon"),
        {"rehearsed": rehearsed} if partitions == "horizon" else {},
    ).all()
    fields = [item.name for item in dataclasses.fields(PartitionPolicy)]
    pairs = [(managed_table(row, fields), row) for row in rows if row.table_name is not None]
    if tables is not None:
        pairs = [(t, row) for t, row in pairs if t.name in tables or str(t) in tables]
    found = [item for item, _ in pairs]
    if partitions == "all":
        found = list(with_partitions(connection, found))
    elif partitions == "horizon":
        found = [_filled(t, [*map(Child._make, json.loads(row.parts or "[]"))]) for t, row in pairs]
    first = rows[0]
    return Snapshot(config_schema, first.now, first.in_recovery, first.user, tuple(found))


@lru_cache(maxsize=64)
def _snapshot_query(config_schema: str, horizon: bool) -> Select[Any]:
    """Return the query for what is managed: putting it together takes longer than reading its answer."""
    fields = [item.name for item in dataclasses.fields(PartitionPolicy)]
    names = ["table_schema", "table_name", *("partition_key" if name == "key" else name for name in fields)]
    named = [name for name in names if name not in CONFIG_ADDED]
    config = table(CONFIG_TABLE, *map(column, named), schema=config_schema).alias("config")
    added = [func.to_jsonb(literal_column("config")).op("->>")(name).label(name) for name in CONFIG_ADDED]
    session = select(
        func.now().label("now"),
        func.pg_is_in_recovery().label("in_recovery"),
        func.current_user().label("user"),
        *(func.set_config(name, value, true()) for name, value in zip(_SETTINGS, _UTC_AND_ISO, strict=True)),
    ).cte("session")
    parents = queries.CONFIGURED_PARENT.lateral("parents")
    source = session.outerjoin(config, true()).outerjoin(parents, true())
    query = select(session.c.now, session.c.in_recovery, session.c.user, config, *added, parents)
    if horizon:
        near = _horizons(session, config)
        query = query.add_columns(near.c.parts)
        source = source.outerjoin(near, near.c.parent == parents.c.oid)
    return query.select_from(source).order_by(config.c.table_schema, config.c.table_name)


def _horizons(session: CTE, config: FromClause) -> CTE:
    """Return a query for the partitions that bear names of horizons, as JSON by ``parent``.

    Tables of one name, as tenants have them, are looked for together.
    """
    span = (
        select(func.min(queries.FIRST_NAME).label("first"), func.max(queries.LAST_NAME).label("last"))
        .select_from(session.join(config, true()))
        .group_by(config.c.table_name)
        .cte("span")
    )
    found = queries.PARTITIONS_BETWEEN.lateral("found")
    return (
        select(found.c.parent, cast(func.json_agg(found.c.part), Text).label("parts"))
        .select_from(span.join(found, true()))
        .group_by(found.c.parent)
        .cte("near")
    )


def read_session(connection: Connection, config_schema: str) -> Snapshot:
    """Return the time, the role and the server's state, without a table."""
    row = connection.execute(
        select(
            func.now().label("now"),
            func.pg_is_in_recovery().label("in_recovery"),
            func.current_user().label("user"),
        )
    ).one()
    return Snapshot(config_schema, row.now, row.in_recovery, row.user, ())


def read_place(connection: Connection) -> tuple[str | None, int]:
    """Return the server's folder, if this role may know it, and when the server was started, in seconds since
    1970."""
    row = connection.execute(queries.PLACE).one()
    return row.folder, int(row.started)


def with_partitions(connection: Connection, tables: Sequence[ManagedTable]) -> Iterator[ManagedTable]:
    """Yield the tables with their partitions filled in; under the settings of :func:`utc_settings`."""
    known = [t.oid for t in tables if t.oid is not None and t.problem is None]
    children: dict[int, list[Row[Any]]] = {oid: [] for oid in known}
    for row in connection.execute(queries.PARTITIONS, {"parents": known}) if known else ():
        children[row.parent].append(row)
    for item in tables:
        yield _filled(item, children.get(item.oid or 0, ()))


def _filled(item: ManagedTable, children: Collection[Row[Any] | Child]) -> ManagedTable:
    """Return a table with its partitions."""
    if item.problem is not None:
        return item
    key_type = item.key_type
    parts = tuple([partition_of(child, key_type) for child in children])
    if key_type == "uuidv7" and any(keys.has_version(child.bound) for child in children):
        key_type = "uuidv7_full"
    return dataclasses.replace(item, partitions=parts, key_type=key_type)


def describe_table(connection: Connection, schema: str, name: str, policy: PartitionPolicy) -> ManagedTable:
    """Read one table and its partitions as ``policy`` sees them, whether or not it is configured."""
    parents = queries.PARENTS.subquery("parents")
    row = connection.execute(
        select(parents).where(parents.c.schema == schema, parents.c.name == name)
    ).one_or_none()
    found = (
        fitted(row, policy) if row else ManagedTable(schema, name, policy, problem=(Refusal.NO_TABLE, name))
    )
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
    rows = connection.execute(queries.NAMES_IN_USE, {"schema": schema, "names": list(names)})
    return set(rows.scalars())


def standing(
    connection: Connection, schema: str, children: Collection[str], parent: str
) -> tuple[set[str], int | None]:
    """Return which of ``children`` stand, as relations of any kind, and the OID of ``parent``."""
    values = {"schema": schema, "children": list(children), "parent": parent}
    row = connection.execute(queries.STANDING, values).one()
    return set(row.children), row.parent


def partitions_of(connection: Connection, table: ManagedTable) -> tuple[Partition, ...]:
    """Read the partitions of one table anew."""
    with utc_settings(connection):
        return next(with_partitions(connection, [table])).partitions


def blockers(connection: Connection, parent_oid: int, ours: bool = False) -> list[Blocker]:
    """Return who holds a lock that making a partition of that parent has to wait for.

    :param ours: of this very session, not of the others.
    """
    values = {"parent": parent_oid, "turn": PARENT_LOCK_CLASS, "ours": ours}
    rows = connection.execute(queries.BLOCKERS, values)
    return [Blocker(row.pid, row.mode, row.relation, row.application) for row in rows]


def holders(connection: Connection, relations: Collection[int]) -> list[Blocker]:
    """Return who else holds a lock of any kind on one of some relations."""
    rows = connection.execute(queries.HOLDERS, {"relations": list(relations)}) if relations else ()
    return [
        Blocker(row.pid, row.mode, row.relation, row.application, row.transaction, row.seconds)
        for row in rows
    ]


def meant(connection: Connection, name: str = "") -> Row[Any]:
    """Return ``default_schema``, ``table_schema`` and ``config_schema`` as the search_path has them."""
    return connection.execute(queries.MEANT, {"name": name, "mark": CONFIG_MARK}).one()


def notice(connection: Connection, partition_oid: int) -> None:
    """Make a session's open transaction see a partition committed since, prepared statements included.

    PostgreSQL reads what others changed only when it takes a new lock or looks something up; asking for the
    partition's size is a look-up that any role may make.
    """
    connection.execute(queries.SIZE, {"oid": partition_oid})


def read_key(
    connection: Connection, printed: str, key_type: KeyType, date_style: str, time_zone: str
) -> KeyValue:
    """Read a key as a session with these settings prints it; needs a transaction of its own."""
    for name, value in (("DateStyle", date_style), ("TimeZone", time_zone)):
        connection.execute(select(func.set_config(name, value, true())))
    found = datetime.fromisoformat(
        connection.execute(queries.READ_KEY[key_type], {"printed": printed}).scalar_one()
    )
    if key_type == "date":
        return found.date()
    return found.replace(tzinfo=pytz.utc) if key_type == "timestamptz" else found


def resolve(connection: Connection, schema: str | None, name: str) -> int | None:
    """Return the OID that a table name means on this connection, whose search_path may be a tenant's."""
    oid: int | None = connection.execute(queries.RESOLVE, {"schema": schema, "name": name}).scalar()
    return oid


TableKey: TypeAlias = "tuple[str | None, str]"


def shown_tables(connection: Connection) -> tuple[set[TableKey], set[TableKey]]:
    """Return the tables that may be a model's business, by schema and name; visible ones by name alone, too.

    :return: those that are neither partitions nor ours; and our own two tables.
    """
    found = connection.execute(queries.SHOWN, {"marks": MARKS, "config": CONFIG_MARK, "runs": RUNS_MARK})
    shown, ours = set[TableKey](), set[TableKey]()
    for row in found:
        (ours if row.ours else shown).update(_keys(row))
    return shown, ours


def inherited_keys(connection: Connection) -> dict[TableKey, set[str]]:
    """Return the foreign keys to partitions, which come and go with these: their names by table."""
    found: dict[TableKey, set[str]] = {}
    for row in connection.execute(queries.INHERITED_KEYS):
        for key in _keys(row):
            found.setdefault(key, set()).add(row.constraint)
    return found


def partitioned_tables(connection: Connection) -> dict[TableKey, Relation]:
    """Return the partitioned tables with what migrations declared of them, by schema and name; visible ones
    by name alone, too.

    :raises ConfigurationError: this role may not read what they declared.
    """
    declared: dict[tuple[str, str], Any] = {}
    for found in connection.execute(queries.FIND_CONFIG, {"bounded": False}).all():
        if found.mark != CONFIG_MARK:
            continue
        config_schema = found.schema
        if not found.readable:
            raise ConfigurationError(
                problem=f"in schema {config_schema!r} cannot be read by this role",
                remedy="GRANT SELECT ON partition_config to it.",
            )
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
            invalid_indexes=frozenset(json.loads(row.invalid_indexes or "[]")),
            declared=declared.get((row.schema, row.name)),
        )
        for row in connection.execute(queries.PARTITIONED)
        for key in _keys(row)
    }


def _keys(row: Row[Any]) -> list[TableKey]:
    return [(row.schema, row.name), *([(None, row.name)] if row.visible else [])]
