"""What partitions hold: sizes, rows, when they were analyzed; rows in a DEFAULT partition; past runs.

No role needs a right of its own to look: what it may not read is ``None``. Under :func:`only_reading`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnClause,
    Connection,
    TextClause,
    column,
    exists,
    func,
    literal,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.engine import Row

from alembic_partitions.periods import KeyValue
from alembic_partitions.plan import ManagedTable, Partition

from .keys import key_array, key_column, printed_ends
from .values import _value as key_value

_RUNS = table(
    "partition_runs",
    *map(column, ("id", "started_at", "finished_at", "action", "run_by", "application", "created")),
    *map(column, ("detached", "dropped", "archived", "moved", "error", "details")),
)

#: The action of a row of partition_runs that tells of a message to people; it is no run.
ALERT = "alert"

# Size, rows as ANALYZE has counted them (-1: never), and our mark, by partition. One that is partitioned
# itself holds nothing but what its own partitions hold. Whether a DEFAULT partition may be asked for rows: an
# empty file needs no asking; where row-level security hides rows, none is not an answer.
_FIGURES = text("""
SELECT c.oid AS oid,
       CASE WHEN c.relkind = 'p'
            THEN (SELECT sum(pg_total_relation_size(t.relid)) FROM pg_partition_tree(c.oid) t)::bigint
            ELSE pg_total_relation_size(c.oid) END AS bytes,
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END AS rows,
       greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid)) AS analyzed,
       d.description AS mark,
       CASE WHEN p.partdefid IS NULL THEN NULL
            WHEN c.relkind = 'r' AND pg_relation_size(c.oid) = 0 THEN 'empty'
            WHEN has_schema_privilege(c.relnamespace, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')
                 AND NOT row_security_active(c.oid) THEN 'readable' END AS default_is
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN pg_partitioned_table p ON p.partdefid = c.oid
LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE i.inhparent = ANY (CAST(:parents AS oid[])) AND (NOT :defaults OR p.partdefid IS NOT NULL)
""")

# What of that is to be told otherwise of a distributed table, which holds nothing itself: the size of its
# shards (NULL where a worker does not tell), and whether a DEFAULT partition may be asked.
_SHARD_FIGURES = text("""
SELECT c.oid AS oid, citus_total_relation_size(c.oid, false) AS bytes,
       CASE WHEN has_schema_privilege(c.relnamespace, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')
                 AND NOT row_security_active(c.oid) THEN 'readable' END AS default_is
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN pg_partitioned_table p ON p.partdefid = c.oid
WHERE i.inhparent = ANY (CAST(:parents AS oid[])) AND (NOT :defaults OR p.partdefid IS NOT NULL)
""")

_MARKS = text("""
SELECT objoid AS oid, description AS mark
FROM pg_description
WHERE objoid = ANY (CAST(:oids AS oid[])) AND classoid = 'pg_class'::regclass AND objsubid = 0
""")

# The tables that really hold the rows of partitions that are partitioned themselves.
_LEAVES = text("""
SELECT c.oid AS oid, t.relid::oid AS leaf
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind = 'p'
CROSS JOIN pg_partition_tree(c.oid) t
WHERE i.inhparent = CAST(:parent AS oid) AND t.isleaf
""")


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one partition. ``rows`` is an estimate, ``None`` before the first ANALYZE."""

    bytes: int | None = None
    rows: int | None = None
    analyzed: datetime | None = None
    mark: str | None = None
    #: Of a DEFAULT partition: ``empty``, ``readable``, or ``None`` if this role cannot tell.
    default_is: str | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one partition, counted."""

    count: int = 0
    oldest: KeyValue | None = None
    newest: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A row of partition_runs."""

    id: int
    started_at: datetime
    finished_at: datetime
    action: str
    run_by: str
    application: str | None
    created: int
    detached: int
    dropped: int
    archived: int
    moved: int
    error: str | None
    details: Mapping[str, Any] = field(default_factory=dict)


def only_reading(connection: Connection) -> None:
    """Let this transaction change nothing, print bounds alike everywhere, and not wait long for a lock.

    Rows that row-level security would hide are an error here, not a smaller number.
    """
    settings = {
        "transaction_read_only": "on",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "row_security": "off",
        "lock_timeout": "2s",
    }
    connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))


def partition_figures(
    connection: Connection, tables: Sequence[ManagedTable], defaults: bool = False
) -> dict[int, Figures]:
    """Read what is known of the partitions of some tables, by OID, in one statement; in two where Citus has
    distributed one.

    :param defaults: of DEFAULT partitions alone; the sizes of thousands take a while.
    """
    asked = [t for t in tables if t.problem is None and (t.has_default or not defaults)]

    def read(query: TextClause, some: Sequence[ManagedTable]) -> Iterable[Row[Any]]:
        wanted = {"parents": [t.oid for t in some], "defaults": defaults}
        return connection.execute(query, wanted) if some else ()

    found = {
        row.oid: Figures(row.bytes, row.rows, row.analyzed, row.mark, row.default_is)
        for row in read(_FIGURES, asked)
    }
    for row in read(_SHARD_FIGURES, [t for t in asked if t.traits.distributed]):
        if row.oid in found:  # else it was made meanwhile
            default_is = found[row.oid].default_is and row.default_is
            found[row.oid] = replace(found[row.oid], bytes=row.bytes, rows=None, default_is=default_is)
    return found


def partition_marks(connection: Connection, oids: Collection[int]) -> dict[int, str]:
    """Read the comments of some partitions, by OID; one without has an empty one."""
    if not oids:
        return {}
    rows = connection.execute(_MARKS, {"oids": list(oids)})
    return dict.fromkeys(oids, "") | {row.oid: row.mark for row in rows}


def holding_rows(connection: Connection, partitions: Sequence[Partition]) -> set[int]:
    """Return which of some DEFAULT partitions hold a row, by OID, in one statement."""
    if not partitions:
        return set()
    # Not ONLY: one that is partitioned itself holds what its partitions hold.
    asked = [
        exists(select(literal(1)).select_from(table(part.name, schema=part.schema))).label(f"p{number}")
        for number, part in enumerate(partitions)
    ]
    answers = connection.execute(select(*asked)).one()
    return {part.oid for part, holds in zip(partitions, answers, strict=True) if holds}


def counted_rows(connection: Connection, managed: ManagedTable) -> dict[int, Rows]:
    """Count the rows of each partition, with the oldest and newest key: reads the whole table.

    Through the parent, since a role that may read it need not have rights on its partitions.
    """
    assert managed.policy is not None
    assert managed.key_type is not None
    if managed.traits.distributed:
        return _counted_by_bounds(connection, managed)
    key: ColumnClause[Any] = column(managed.policy.key)
    owner: ColumnClause[int] = column("tableoid")
    query = (
        select(owner, func.count(), *printed_ends(key, managed.key_type))
        .select_from(table(managed.name, key, owner, schema=managed.schema))
        .group_by(owner)
    )
    leaves = {row.leaf: row.oid for row in connection.execute(_LEAVES, {"parent": managed.oid})}
    found = {part.oid: Rows() for part in managed.partitions if not part.detach_pending}
    for leaf, count, *printed in connection.execute(query):
        oid = leaves.get(leaf, leaf)
        oldest, newest = (key_value(text, managed.key_type, upper=False) for text in printed)
        found[oid] = _together(found.get(oid, Rows()), Rows(count, oldest, newest))
    return found


def _counted_by_bounds(connection: Connection, managed: ManagedTable) -> dict[int, Rows]:
    """Count the rows of a distributed table, whose ``tableoid`` is that of a shard."""
    assert managed.policy is not None
    assert managed.key_type is not None
    parts = [part for part in managed.partitions if not part.detach_pending]
    edges = sorted({end for p in parts for end in (p.lower, p.upper) if end is not None})
    # The rows from the second edge up to the third are in bucket 2; those before the first in bucket 0.
    buckets = {edge: number for number, edge in enumerate(edges, start=1)}
    owners = {0 if p.lower is None else buckets[p.lower]: p.oid for p in parts if not p.is_default}
    default = next((part.oid for part in parts if part.is_default), None)
    key = key_column(managed.policy.key, managed.key_type)
    bucket = func.width_bucket(key, key_array(edges, managed.key_type)).label("bucket")
    rows = select(key, bucket).select_from(table(managed.name, key, schema=managed.schema)).subquery("rows")
    ends = printed_ends(rows.c[managed.policy.key], managed.key_type)
    query = select(rows.c.bucket, func.count(), *ends).group_by(rows.c.bucket)
    found = {part.oid: Rows() for part in parts}
    for number, count, *printed in connection.execute(query):
        oid = owners.get(number, default)
        oldest, newest = (
            None if text is None else key_value(text, managed.key_type, upper=False) for text in printed
        )
        if oid is not None:
            found[oid] = _together(found[oid], Rows(count, oldest, newest))
    return found


def _together(one: Rows, other: Rows) -> Rows:
    """Add what two leaves of one partition hold."""
    if not one.count:
        return other
    ends = [k for rows in (one, other) for k in (rows.oldest, rows.newest) if k is not None]
    return Rows(one.count + other.count, min(ends, default=None), max(ends, default=None))


def recent_runs(
    connection: Connection,
    config_schema: str,
    limit: int,
    *,
    failed: bool = False,
    alerts: bool = False,
    tables: Collection[str] | None = None,
) -> list[Run]:
    """Return past runs, the newest first.

    :param failed: only those that failed, wholly or in part.
    :param alerts: and what people were told of.
    :param tables: only those that changed one of these, ``schema.name``, or failed over it.
    """
    runs = _runs_in(config_schema)
    query = select(runs).order_by(runs.c.id.desc()).limit(limit)
    if not alerts:
        query = query.where(runs.c.action != ALERT)
    if failed:
        query = query.where(runs.c.error.is_not(None))
    if tables is not None:
        told = func.concat("\n", runs.c.error)
        query = query.where(
            or_(
                *(func.jsonb_exists(runs.c.details, name) for name in tables),
                *(func.strpos(told, f"\n{name}: ") > 0 for name in tables),
            )
        )
    return [_run(row) for row in connection.execute(query)]


def last_runs(connection: Connection, config_schema: str) -> tuple[list[Run], dict[str, datetime]]:
    """Return the last run of each kind, the newest first, and when the last one that went well ended."""
    runs = _runs_in(config_schema)
    newest = select(func.max(runs.c.id)).where(runs.c.action != ALERT).group_by(runs.c.action)
    wanted = newest.union_all(newest.where(runs.c.error.is_(None)))
    found = connection.execute(select(runs).where(runs.c.id.in_(wanted)).order_by(runs.c.id.desc()))
    last: dict[str, Run] = {}
    successes: dict[str, datetime] = {}
    for run in map(_run, found):
        last.setdefault(run.action, run)
        if run.error is None:
            successes.setdefault(run.action, run.finished_at)
    return list(last.values()), successes


def _runs_in(schema: str) -> Any:
    return table(_RUNS.name, *(column(c.name) for c in _RUNS.c), schema=schema)


def _run(row: Row[Any]) -> Run:
    values = dict(row._mapping)
    details = _details(values.pop("details"))
    return Run(**values, details=details)


def _details(found: Any) -> Mapping[str, Any]:
    if isinstance(found, str):  # asyncpg hands out jsonb as text without a type
        found = json.loads(found)
    return found or {}
