"""The daily run: the horizon, then retention, then statistics. One bad table stops no other."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import PartitionError, PolicyError
from alembic_partitions.locks import one_run
from alembic_partitions.plan import (
    DetachPartition,
    DropDetached,
    ExportDetached,
    ManagedTable,
    MoveDetached,
    Removal,
    Retention,
)

from .ensuring import ensure, plan, snapshot_of
from .history import history_retention, prune, record
from .reports import Report, TableResult
from .retaining import Moment, Planned, archive_folder, plan_tables, with_retention
from .settings import clock
from .tending import Upkeep, check_partitions, plan_upkeep, tend_all

logger = logging.getLogger("alembic_partitions")

#: Told what has just been done, in words.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Orders:
    """What a run is told beside the policies.

    :param retention: in place of the policies' own, ``"90 days"``.
    :param archive_to: the folder that partitions are exported to.
    :param analyze: whether to keep statistics.
    :param vacuum: names of partitions to vacuum; ``closed`` stands for those that have just ended.
    """

    retention: str | None = None
    archive_to: str | None = None
    analyze: bool = True
    vacuum: tuple[str, ...] = ()


@dataclass(slots=True)
class _Work:
    """One table on its way through retention."""

    table: ManagedTable
    done: dict[str, list[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    error: str | None = None

    def note(self, what: str, name: str) -> None:
        self.done.setdefault(what, []).append(name)


def maintain(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    orders: Orders = Orders(),  # frozen
    progress: Progress | None = None,
) -> Report:
    """Bring tables to their horizon, remove what their retention lets go, keep their statistics.

    Runs one at a time; a second one waits for a minute.

    :param connection: not in a transaction, not the application's own.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only these, ``name`` or ``schema.name``.
    :raises NotManagedError: one of ``tables`` is not managed.
    :raises NoPartitionError: one of the partitions to vacuum is not there.
    :raises PolicyError: ``orders.retention`` is no period, or shorter than a window.
    :raises RunUnderWay: another run does not end.
    """
    kept = history_retention()
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None or snapshot.in_recovery:
        return Report(in_recovery=snapshot is not None)
    managed = _as_ordered(snapshot.tables, tables, orders)
    check_partitions(connection, managed, orders.vacuum)
    tell = progress or _silent
    ensured = ensure(connection, schema=schema, tables=tables, write_down=False)
    made = {result.table: result.created for result in ensured.results}
    for table, names in made.items():
        for name in names:
            tell(f"{table}: made {name}")
    moment = Moment(clock(snapshot.now), snapshot.now)
    with one_run(connection.engine, snapshot.config_schema):
        works = {str(table): _Work(table) for table in managed}
        _retain(connection, list(works.values()), moment, orders, made, tell)
        changed = {name for name, work in works.items() if made.get(name) or work.done}
        with connection.begin(), catalog.utc_settings(connection):
            sound = [work.table for work in works.values() if work.error is None]
            usable = list(catalog.with_partitions(connection, sound))
        upkeep = _upkeep(connection, usable, moment, orders, changed)
        for name, told in tend_all(connection, upkeep, tell).items():
            works[name].done["tended"] = told.tended
            works[name].findings += told.given_up
    report = Report(tuple(_joined(result, works.get(result.table)) for result in ensured.results))
    record(connection, snapshot, "maintain", report)
    prune(connection, snapshot, kept)
    return report


def plan_maintain(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    orders: Orders = Orders(),  # frozen
) -> list[tuple[str, str]]:
    """Return what :func:`maintain` would send now, as a script by table; nothing is changed.

    What follows from a step, such as the export of what is only to be detached, is left to a later look.
    """
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return []
    managed = _as_ordered(snapshot.tables, tables, orders)
    check_partitions(connection, managed, orders.vacuum)
    horizon = plan(connection, schema=schema, tables=tables)
    moment = Moment(clock(snapshot.now), snapshot.now, dry_run=True)
    with connection.begin():
        planned = plan_tables(connection, managed, moment, orders.archive_to)
    changed = {item.table for item in horizon if item.plan.steps}
    changed |= {str(item.retention.table) for item in planned if item.retention.steps}
    staying = [_after(table, item.retention) for table, item in zip(managed, planned, strict=True)]
    upkeep = {str(item.table): item for item in _upkeep(connection, staying, moment, orders, changed)}
    return [
        (
            item.table,
            item.sql()
            + executor.removal_script(going.retention)
            + "".join(batch.sql() for _, batch in upkeep[item.table].batches),
        )
        for item, going in zip(horizon, planned, strict=True)
    ]


def _retain(
    connection: Connection,
    works: Sequence[_Work],
    moment: Moment,
    orders: Orders,
    made: dict[str, tuple[str, ...]],
    tell: Progress,
) -> None:
    for work in works:
        with _held_to_account(work):
            planned = _planned(connection, work, moment, orders, made)
            told = map(str, planned.retention.findings)
            work.findings += [finding for finding in told if finding != planned.problem]
            work.error = planned.problem
            for step in planned.retention.steps:
                _take(connection, step, work, orders, tell)
            if not planned.retention.steps:
                continue
            # What has just been detached can be exported now.
            for step in _planned(connection, work, moment, orders, made).retention.steps:
                if isinstance(step, ExportDetached):
                    _take(connection, step, work, orders, tell)


def _planned(
    connection: Connection, work: _Work, moment: Moment, orders: Orders, made: dict[str, tuple[str, ...]]
) -> Planned:
    with connection.begin():
        just_made = made.get(str(work.table), ())
        (planned,) = plan_tables(connection, [work.table], moment, orders.archive_to, just_made)
    return planned


def _take(connection: Connection, step: Removal, work: _Work, orders: Orders, tell: Progress) -> None:
    if isinstance(step, DetachPartition):
        executor.detach(connection, step)
        what = "restored" if step.reattach else "detached"
        work.note(what, step.partition.name)
        if step.archive_schema is not None and not step.reattach:
            work.note("archived", f"{step.archive_schema}.{step.name}")
        tell(f"{work.table}: {what} {step.partition.name}")
    elif isinstance(step, ExportDetached):
        export = executor.export(connection, step, archive_folder(orders.archive_to))
        work.note("archived", export.path)
        tell(f"{work.table}: exported {export.rows} rows of {step.detached.partition} to {export.path}")
    elif isinstance(step, DropDetached):
        if step.detached.export is not None:
            executor.verify(f"{step.detached.schema}.{step.detached.name}", step.detached.export)
        executor.remove(connection, step)
        work.note("dropped", step.detached.name)
        tell(f"{work.table}: dropped {step.detached.schema}.{step.detached.name}")
    elif isinstance(step, MoveDetached):
        executor.remove(connection, step)
        work.note("archived", f"{step.archive_schema}.{step.name}")
        tell(f"{work.table}: moved {step.detached.name} to {step.archive_schema}.{step.name}")


@contextmanager
def _held_to_account(work: _Work) -> Iterator[None]:
    try:
        yield
    except (PartitionError, DBAPIError) as error:
        work.error = str(error) if isinstance(error, PartitionError) else reason(error)
        logger.warning("retention of %s: %s", work.table, work.error)


def _joined(result: TableResult, work: _Work | None) -> TableResult:
    if work is None:
        return result
    errors = [error for error in (result.error, work.error) if error]
    done = {what: tuple(names) for what, names in work.done.items()}
    findings = (*result.findings, *(told for told in work.findings if told not in result.findings))
    error = "; ".join(errors) or None
    return dataclasses.replace(result, **done, error=error, findings=findings)  # type: ignore[arg-type]


def _as_ordered(
    managed: Sequence[ManagedTable], wanted: Collection[str] | None, orders: Orders
) -> list[ManagedTable]:
    if orders.retention is not None and wanted is None and len(managed) > 1:
        raise PolicyError(
            field="retention",
            problem=f"given for {len(managed)} tables at once, whatever their policies say",
            remedy="Name the tables that are meant: --table, or tables=.",
        )
    return with_retention(managed, orders.retention)


def _after(table: ManagedTable, retention: Retention) -> ManagedTable:
    """Return a table with the partitions that stay."""
    going = {step.partition.oid for step in retention.steps if isinstance(step, DetachPartition)}
    staying = tuple(part for part in retention.table.partitions if part.oid not in going)
    return dataclasses.replace(table, partitions=staying)


def _upkeep(
    connection: Connection,
    tables: Sequence[ManagedTable],
    moment: Moment,
    orders: Orders,
    changed: Collection[str],
) -> list[Upkeep]:
    with connection.begin():
        return plan_upkeep(connection, tables, moment.now, changed, orders.analyze, orders.vacuum)


def _silent(line: str) -> None:
    pass
