"""The daily run: the horizon, then retention, then statistics. One bad table stops no other."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import LockNotAvailable, PartitionError, PolicyError, RunUnderWay
from alembic_partitions.locks import one_run
from alembic_partitions.plan import (
    DetachPartition,
    DropDetached,
    ExportDetached,
    ManagedTable,
    MoveDetached,
    Removal,
    RestoreDetached,
    Retention,
)
from alembic_partitions.sessions import own_transactions

from .ensuring import ensure, plan, snapshot_of, with_retention
from .history import history_retention, prune, record, written_down_if_stopped
from .reports import Report, TablePlan, TableResult
from .retaining import Moment, Planned, archive_folder, moment, plan_tables
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
    :param trust_clock: whether somebody has made sure of the clock after a long time without a run.
    :param horizon: whether to make what the horizon lacks; without that and ``analyze`` it is a cleanup.
    """

    retention: str | None = None
    archive_to: str | None = None
    analyze: bool = True
    vacuum: tuple[str, ...] = ()
    trust_clock: bool = False
    horizon: bool = True


@dataclass(slots=True)
class _Work:
    """One table on its way through retention."""

    table: ManagedTable
    done: dict[str, list[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    #: PostgreSQL knows one pending detach a table: after a wait in vain there is no sense in another.
    waits: bool = False

    def note(self, what: str, name: str) -> None:
        self.done.setdefault(what, []).append(name)

    def failed(self, error: Exception) -> None:
        told = reason(error) if isinstance(error, DBAPIError) else str(error) or type(error).__name__
        if not isinstance(error, (PartitionError, DBAPIError)):
            logger.exception("retention of %s", self.table)
        else:
            logger.warning("retention of %s: %s", self.table, told)
        if told not in self.errors:
            self.errors.append(told)


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
    with own_transactions(connection):
        return _maintain(connection, schema, tables, orders, progress or _silent)


def _maintain(
    connection: Connection,
    schema: str | None,
    tables: Collection[str] | None,
    orders: Orders,
    tell: Progress,
) -> Report:
    kept = history_retention()
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None or snapshot.in_recovery:
        return Report(in_recovery=snapshot is not None)
    managed = _as_ordered(snapshot.tables, tables, orders)
    check_partitions(connection, managed, orders.vacuum)
    when = moment(connection, snapshot, clock(snapshot.now), orders.trust_clock)
    action, alone = "maintain" if orders.horizon else "cleanup", tables is not None
    ensured = Report(tuple(TableResult(str(table)) for table in managed))
    if orders.horizon:
        ensured = ensure(
            connection,
            schema=schema,
            tables=tables,
            retention=orders.retention,
            write_down="never",
            progress=tell,
        )
    works = {str(table): _Work(table) for table in managed}

    def so_far() -> Report:
        return Report(tuple(_joined(result, works.get(result.table)) for result in ensured.results))

    try:
        with (
            one_run(connection.engine, snapshot.config_schema),
            written_down_if_stopped(connection, snapshot, action, so_far, alone=alone),
        ):
            _retain(connection, list(works.values()), when, orders, tell)
            changed = {result.table for result in ensured.results if result.created}
            changed |= {name for name, work in works.items() if work.done}
            with connection.begin(), catalog.utc_settings(connection):
                whole = list(catalog.with_partitions(connection, managed))
            for name, told in tend_all(connection, _upkeep(connection, whole, when, orders, changed), tell):
                works[name].done["tended"] = told.tended
                works[name].findings += told.given_up
    except RunUnderWay as error:
        record(connection, snapshot, action, dataclasses.replace(ensured, error=str(error)), alone=alone)
        raise
    report = so_far()
    record(connection, snapshot, action, report, alone=alone)
    if when.doubt is None:  # the history is what a clock is held against
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
    horizon: Sequence[TablePlan] = ()
    if orders.horizon:
        horizon = plan(connection, schema=schema, tables=tables, retention=orders.retention)
    scripts = {item.table: item.sql() for item in horizon}
    when = Moment(clock(snapshot.now))
    with connection.begin():
        planned = [item.retention for item in plan_tables(connection, managed, when, orders.archive_to)]
    changed = {item.table for item in horizon if item.plan.steps}
    changed |= {str(item.table) for item in planned if item.steps}
    upkeep = _upkeep(connection, [_after(item) for item in planned], when, orders, changed)
    for going, item in zip(planned, upkeep, strict=True):
        lines = scripts.get(str(going.table), ""), executor.removal_script(going)
        scripts[str(going.table)] = "".join((*lines, *(batch.sql() for _, batch in item.batches)))
    return [(str(table), scripts[str(table)]) for table in managed]


def _retain(
    connection: Connection, works: Sequence[_Work], when: Moment, orders: Orders, tell: Progress
) -> None:
    idle = _idle(connection, works, when, orders)
    for work in works:
        planned = idle.get((work.table.schema, work.table.name)) or _planned(connection, work, when, orders)
        if planned is None:
            continue
        if planned.problem is not None:
            work.errors.append(planned.problem)
        told = map(str, planned.retention.findings)
        work.findings += [finding for finding in told if finding != planned.problem]
        _take_all(connection, planned.retention.steps, work, orders, tell)
        if planned.problem is not None or not planned.retention.steps:
            continue
        # What has just been detached, or given another fate, can go to the archive now.
        again = _planned(connection, work, when, orders)
        steps = again.retention.steps if again is not None else ()
        _take_all(
            connection,
            [s for s in steps if isinstance(s, (ExportDetached, MoveDetached))],
            work,
            orders,
            tell,
        )


def _idle(
    connection: Connection, works: Sequence[_Work], when: Moment, orders: Orders
) -> dict[tuple[str, str], Planned]:
    """Plan all tables at once, and return the plans of those of which nothing goes.

    The others are looked at again, each just before something of it goes.
    """
    try:
        with connection.begin():
            planned = plan_tables(connection, [work.table for work in works], when, orders.archive_to)
    except Exception:  # noqa: BLE001  # which table it is, is told when each is looked at by itself
        return {}
    tables = {(p.retention.table.schema, p.retention.table.name): p for p in planned}
    return {name: item for name, item in tables.items() if not item.retention.steps}


def _planned(connection: Connection, work: _Work, when: Moment, orders: Orders) -> Planned | None:
    try:
        with connection.begin():
            (planned,) = plan_tables(connection, [work.table], when, orders.archive_to)
    except Exception as error:  # noqa: BLE001  # one bad table stops no other
        work.failed(error)
        return None
    return planned


def _take_all(
    connection: Connection, steps: Iterable[Removal], work: _Work, orders: Orders, tell: Progress
) -> None:
    for step in steps:
        if work.waits and isinstance(step, DetachPartition):
            continue
        try:
            _take(connection, step, work, orders, tell)
        except LockNotAvailable as error:
            work.waits |= isinstance(step, DetachPartition)
            work.failed(error)
        except Exception as error:  # noqa: BLE001  # one bad partition stops no other
            work.failed(error)


def _take(connection: Connection, step: Removal, work: _Work, orders: Orders, tell: Progress) -> None:
    if isinstance(step, DetachPartition):
        executor.detach(connection, step)
        what = "restored" if step.reattach else "detached"
        work.note(what, step.partition.name)
        if step.archive_schema is not None and not step.reattach:
            work.note("archived", f"{step.archive_schema}.{step.name}")
        tell(f"{work.table}: {what} {step.partition.name}")
    elif isinstance(step, ExportDetached):
        _export(connection, step, work, orders, tell)
    elif isinstance(step, DropDetached) and step.detached.export is not None:
        if executor.drop_exported(connection, step):
            _dropped(step, work, tell)
        else:
            work.findings.append(
                f"{step.detached.export.path} is gone or is not what {step.detached.name} holds now:"
                " exported anew, and dropped by a later run"
            )
            _export(connection, ExportDetached(step.table, step.detached), work, orders, tell)
    elif not isinstance(step, RestoreDetached):
        executor.remove(connection, step)
        if isinstance(step, DropDetached):
            _dropped(step, work, tell)
        elif isinstance(step, MoveDetached):
            work.note("archived", f"{step.archive_schema}.{step.name}")
            tell(f"{work.table}: moved {step.detached.name} to {step.archive_schema}.{step.name}")


def _export(
    connection: Connection, step: ExportDetached, work: _Work, orders: Orders, tell: Progress
) -> None:
    export = executor.export(connection, step, archive_folder(orders.archive_to))
    work.note("archived", export.path)
    tell(f"{work.table}: exported {export.rows} rows of {step.detached.partition} to {export.path}")


def _dropped(step: DropDetached, work: _Work, tell: Progress) -> None:
    work.note("dropped", step.detached.name)
    tell(f"{work.table}: dropped {step.detached.schema}.{step.detached.name}")


def _joined(result: TableResult, work: _Work | None) -> TableResult:
    if work is None:
        return result
    errors = [*([result.error] if result.error else []), *work.errors]
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
    for name in wanted or () if orders.retention is not None else ():
        meant = [str(table) for table in managed if name in (table.name, str(table))]
        if len(meant) > 1:
            raise PolicyError(
                field="retention",
                problem=f"given for {name}, which is the name of {' and '.join(meant)}",
                remedy="Say schema.name.",
            )
    return with_retention(managed, orders.retention)


def _after(retention: Retention) -> ManagedTable:
    """Return a table with the partitions that stay."""
    going = {step.partition.oid for step in retention.steps if isinstance(step, DetachPartition)}
    staying = tuple(part for part in retention.table.partitions if part.oid not in going)
    return dataclasses.replace(retention.table, partitions=staying)


def _upkeep(
    connection: Connection,
    tables: Sequence[ManagedTable],
    when: Moment,
    orders: Orders,
    changed: Collection[str],
) -> list[Upkeep]:
    with connection.begin():
        return plan_upkeep(connection, tables, when.now, changed, orders.analyze, orders.vacuum)


def _silent(line: str) -> None:
    pass
