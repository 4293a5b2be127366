"""Which statistics are worth a look: of partitions that have just closed, and of their parents.

Autovacuum never analyzes a partitioned parent, and a partition that is closed is analyzed for good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import NoPartitionError, NotManagedError
from alembic_partitions.plan import ManagedTable, Partition, in_order, refused
from alembic_partitions.sessions import own_transactions

from .ensuring import snapshot_of
from .history import record
from .reports import Report, TableResult

#: In ``vacuum``: the partitions that have just closed.
CLOSED = "closed"

# A run does not analyze a whole history at once.
_MOST_CLOSED = 10
_PARENT_IS_STALE = timedelta(days=1)

_Batches: TypeAlias = "tuple[tuple[str, executor.Batch], ...]"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is to be analyzed or vacuumed of one table: each name with what is sent."""

    table: ManagedTable
    batches: _Batches = ()


@dataclass(slots=True)
class Tended:
    """How that went."""

    tended: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)


def plan_upkeep(
    connection: Connection,
    tables: Sequence[ManagedTable],
    now: datetime,
    changed: Collection[str],
    analyze: bool = True,
    vacuum: Collection[str] = (),
) -> list[Upkeep]:
    """Plan what to analyze and vacuum; in a transaction.

    :param tables: with their partitions.
    :param changed: the tables whose partitions this run has made or removed.
    """
    oids = [p.oid for t in tables for p in t.partitions] + [t.oid for t in tables if t.oid is not None]
    at = catalog.analyzed(connection, oids) if analyze or CLOSED in vacuum else {}
    version = int((connection.dialect.server_version_info or (0,))[0])
    plans = []
    for table in tables:
        if refused(table) is not None:
            plans.append(Upkeep(table))
            continue
        closed = _just_closed(table, at, now) if at else []
        batches = [
            (part.name, executor.vacuum_batch(part.schema, part.name))
            for part in table.partitions
            if part.name in vacuum or (CLOSED in vacuum and part in closed)
        ]
        vacuumed = {name for name, _ in batches}
        if analyze:
            batches += [
                (p.name, executor.analyze_batch(p.schema, p.name, parent=False, server_version=version))
                for p in closed
                if p.name not in vacuumed
            ]
            last = at.get(table.oid or 0)
            stale = last is None or now - last > _PARENT_IS_STALE
            # PostgreSQL has nothing to analyze, and skips it, where there is no partition.
            if table.partitions and (stale or batches or str(table) in changed):
                parent = executor.analyze_batch(table.schema, table.name, parent=True, server_version=version)
                batches.append((table.name, parent))
        plans.append(Upkeep(table, tuple(batches)))
    return plans


def tend_all(
    connection: Connection, upkeep: Sequence[Upkeep], tell: Callable[[str], None]
) -> list[tuple[str, Tended]]:
    """Analyze and vacuum; what cannot be had now is given up until the next run."""
    results = []
    for item in upkeep:
        result = Tended()
        results.append((str(item.table), result))
        if not item.batches:
            continue
        oids = {part.name: part.oid for part in item.table.partitions} | {
            item.table.name: item.table.oid or 0
        }
        with connection.begin():
            before = catalog.analyzed(connection, [oids[name] for name, _ in item.batches])
        for name, batch in item.batches:
            why = _tend(connection, batch, oids[name], before.get(oids[name]))
            if why is not None:
                result.given_up.append(f"statistics of {name} were left for the next run: {why}")
            else:
                result.tended.append(name)
                tell(f"{item.table}: analyzed {name}")
    return results


def _tend(connection: Connection, batch: executor.Batch, oid: int, before: datetime | None) -> str | None:
    """Analyze or vacuum one table; return why that was not done."""
    try:
        executor.tend(connection, batch)
        with connection.begin():
            if catalog.was_analyzed(connection, oid, before):
                return None
    except DBAPIError as error:
        return reason(error)
    return "PostgreSQL has skipped it: this role may not, or somebody holds it"


def plan_tending(
    connection: Connection,
    table: str,
    partition: str | None = None,
    *,
    vacuum: bool = False,
    schema: str | None = None,
) -> list[Upkeep]:
    """Plan to analyze a table with all its partitions, or one of these; or to vacuum them, which counts too.

    :param connection: not in a transaction.
    :param table: ``name`` or ``schema.name``.
    :raises NotManagedError: it is not managed.
    :raises NoPartitionError: ``partition`` is none of its partitions.
    """
    return _tending(connection, table, partition, vacuum, schema)[1]


def tend(
    connection: Connection,
    table: str,
    partition: str | None = None,
    *,
    vacuum: bool = False,
    schema: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Analyze a table with all its partitions, or one of these; or vacuum them. What fails stops no other.

    Raises as :func:`plan_tending` does.

    :param connection: not in a transaction.
    """
    with own_transactions(connection):
        snapshot, upkeep = _tending(connection, table, partition, vacuum, schema)
        if snapshot.in_recovery:
            return Report(in_recovery=True)
        results = [
            TableResult(name, tended=tuple(told.tended), error="; ".join(told.given_up) or None)
            for name, told in tend_all(connection, upkeep, progress or (lambda line: None))
        ]
        report = Report(tuple(results))
        record(connection, snapshot, "vacuum" if vacuum else "analyze", report)
        return report


def _tending(
    connection: Connection, name: str, partition: str | None, vacuum: bool, schema: str | None
) -> tuple[catalog.Snapshot, list[Upkeep]]:
    snapshot = snapshot_of(connection, schema, [name])
    if snapshot is None:
        raise NotManagedError(table=name)
    version = int((connection.dialect.server_version_info or (0,))[0])
    plans = []
    for table in snapshot.tables:
        parts = [p for p in table.partitions if partition in (None, p.name) and not p.detach_pending]
        if vacuum:
            batches = [(p.name, executor.vacuum_batch(p.schema, p.name)) for p in parts]
        else:
            whole = [(p.schema, p.name, False) for p in parts]
            whole += [(table.schema, table.name, True)] if partition is None and table.partitions else []
            batches = [
                (name, executor.analyze_batch(where, name, parent=parent, server_version=version))
                for where, name, parent in whole
            ]
        plans.append(Upkeep(table, tuple(batches)))
    if partition is not None and not any(plan.batches for plan in plans):
        raise NoPartitionError(name=partition)
    return snapshot, plans


def check_partitions(connection: Connection, tables: Sequence[ManagedTable], names: Collection[str]) -> None:
    """Make sure that each name is that of a partition of one of the tables.

    :raises NoPartitionError: one is not.
    """
    wanted = set(names) - {CLOSED}
    if not wanted:
        return
    with connection.begin(), catalog.utc_settings(connection):
        whole = list(catalog.with_partitions(connection, tables))
    for name in sorted(wanted - {part.name for table in whole for part in table.partitions}):
        raise NoPartitionError(name=name)


def _just_closed(table: ManagedTable, at: dict[int, datetime | None], now: datetime) -> list[Partition]:
    """Return the partitions that have ended and not been analyzed since, the newest first."""
    today = table.grid.key_at(now)
    closed = []
    for part in reversed(in_order(p for p in table.partitions if not p.is_default and not p.detach_pending)):
        if part.upper is None or part.upper > today:
            continue
        last = at.get(part.oid)
        if last is None or table.grid.key_at(last) < part.upper:
            closed.append(part)
    return closed[:_MOST_CLOSED]
