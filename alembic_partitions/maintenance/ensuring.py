"""Keep tables at their horizon: read, plan, apply, and say how it went, table by table."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import NotManagedError, PartitionError, PolicyError, WindowRangeError
from alembic_partitions.plan import (
    CreatePartition,
    ManagedTable,
    Plan,
    is_off_grid,
    is_too_short,
    plan_horizon,
    refused,
    stands,
)

from .history import record, written_down_if_stopped
from .reports import Report, TablePlan, TableResult
from .settings import clock, config_schema, rehearsed

logger = logging.getLogger("alembic_partitions")

# Where time is short, how many partitions go in the first message: it cannot be cut off, and only then is it
# known how long one takes.
_FEW = 3

_SOON = timedelta(hours=1)

#: Looking every few minutes, processes would fill the history with nothing.
WriteDown: TypeAlias = Literal["always", "news", "never"]


@dataclass(slots=True)
class Work:
    """One table on its way through a run."""

    plan: Plan
    created: list[str] = field(default_factory=list)
    missing: list[CreatePartition] = field(default_factory=list)
    error: str | None = None
    #: ``time.monotonic()`` when it was planned, and its names were free.
    planned_at: float = field(default_factory=time.monotonic)


def with_retention(tables: Sequence[ManagedTable], retention: str | None) -> list[ManagedTable]:
    """Return tables with another retention than their policies'.

    :raises PolicyError: it is no period, or shorter than a window of one of them.
    """
    if retention is None:
        return list(tables)
    changed = []
    for table in tables:
        if table.policy is None:
            changed.append(table)
            continue
        policy = table.policy.changed(retention=retention)
        if is_too_short(policy):
            raise PolicyError(
                field="retention",
                problem=f"{retention!r} is shorter than one window of {table}",
                remedy="Keep rows for one window at least.",
            )
        changed.append(dataclasses.replace(table, policy=policy))
    return changed


def plan(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    retention: str | None = None,
) -> tuple[TablePlan, ...]:
    """Return what :func:`ensure` would do now, table by table; a healthy table has an empty plan.

    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only these, ``name`` or ``schema.name``.
    :param retention: in place of the policies' own.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    with connection.begin():
        snapshot = _near(connection, schema, tables)
        if snapshot is None:
            return ()
        now = clock(snapshot.now)
        plans = _plans(connection, with_retention(snapshot.tables, retention), now)
    return tuple(TablePlan(str(p.table), p, snapshot.user, now) for p in plans)


def ensure(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    give_up_at: float | None = None,
    known_failure: str | None = None,
    retention: str | None = None,
    write_down: WriteDown = "news",
    progress: Callable[[str], None] | None = None,
    seen: Callable[[Sequence[ManagedTable]], None] | None = None,
) -> Report:
    """Bring tables to their horizon. Each partition is committed by itself; one bad table stops no other.

    :param connection: not in a transaction, not the application's own.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only these, ``name`` or ``schema.name``.
    :param give_up_at: ``time.monotonic()`` after which no further partition is begun.
    :param known_failure: :attr:`Report.failure` of an earlier run, which is not written down once more.
    :param retention: in place of the policies' own: how far ``lookback`` reaches.
    :param write_down: whether partition_runs gets a row; ``news`` is what made something or failed.
    :param progress: told what has just been made, in words.
    :param seen: told the tables as they were before: with the partitions of their horizon, or with all where
        these were not enough.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    with connection.begin():
        snapshot = _near(connection, schema, tables)
        if snapshot is None:
            return Report()
        if snapshot.in_recovery:
            return Report(in_recovery=True)
        now = clock(snapshot.now)
        managed = with_retention(snapshot.tables, retention)
        works = [Work(plan) for plan in _plans(connection, managed, now)]
    if seen is not None:
        seen([work.plan.table for work in works])

    def so_far() -> Report:
        return Report(tuple(result_of(work) for work in works))

    with written_down_if_stopped(connection, snapshot, "ensure", so_far):
        _make_all(connection, works, snapshot.user, now, give_up_at, progress or (lambda line: None))
    report = so_far()
    news = report.created or report.failure != (known_failure if report.failure else None)
    if write_down == "always" or (write_down == "news" and news):
        record(connection, snapshot, "ensure", report)
    return report


def _make_all(
    connection: Connection,
    works: Sequence[Work],
    user: str,
    now: datetime,
    give_up_at: float | None,
    tell: Callable[[str], None],
) -> None:
    # Every table's current and next window before any table's far horizon: time may run out, or one of these
    # begin while we wait for the locks of another table. With hours to go, all of a table go along.
    hurry = give_up_at is not None or any(
        _begins_soon(step, now) for work in works for step in work.plan.steps if step.distance <= 1
    )
    for first in (True, False):
        todo = [
            (w, [s for s in w.plan.steps if (hurry and s.distance <= 1) is first])
            for w in works
            if not w.error
        ]
        todo = [(work, steps) for work, steps in todo if steps]
        for number, (work, steps) in enumerate(todo):
            patience = _share(give_up_at, len(todo) - number)
            for step in make(connection, steps, work, user, give_up_at, patience):
                tell(f"{work.plan.table}: made {step.name}")


def _begins_soon(step: CreatePartition, now: datetime) -> bool:
    try:
        return step.lower <= step.table.grid.key_at(now + _SOON)
    except (WindowRangeError, OverflowError):  # the calendar ends within the hour
        return True


def with_free_names(connection: Connection, make: Callable[[Container[str]], Plan]) -> Plan:
    """Plan with names that are free: a detached partition left in place is not in the way."""
    taken: set[str] = set()
    while True:
        planned = make(taken)
        names = [step.name for step in planned.steps]
        found = catalog.names_in_use(connection, planned.table.schema, names) - taken if names else None
        if not found:
            return planned
        taken |= found


def _plans(connection: Connection, tables: Sequence[ManagedTable], now: datetime) -> list[Plan]:
    """Plan tables of which only what may be their horizon has been read: one that this leaves wanting is read
    as a whole."""
    plans = {
        number: Plan(table) if refused(table) is None else plan_horizon(table, now)
        for number, table in enumerate(tables)
        if refused(table) is not None or stands(table, now)
    }
    wanting = {number: table for number, table in enumerate(tables) if number not in plans}
    if wanting:
        whole = catalog.with_partitions(connection, list(wanting.values()))
        plans |= dict(zip(wanting, _plans_of_whole(connection, list(whole), now), strict=True))
    return [plans[number] for number in range(len(tables))]


def _plans_of_whole(connection: Connection, tables: Sequence[ManagedTable], now: datetime) -> Iterator[Plan]:
    """Plan tables of which all is known, asking once for the names that all of them need."""
    plans = [plan_horizon(table, now) for table in tables]
    needed: dict[str, list[str]] = {}
    for found in plans:
        needed.setdefault(found.table.schema, []).extend(step.name for step in found.steps)
    taken = {
        schema: catalog.names_in_use(connection, schema, names) for schema, names in needed.items() if names
    }
    for found in plans:
        used = taken.get(found.table.schema, set())
        free = used.isdisjoint(step.name for step in found.steps)
        as_is = free and not any(map(is_off_grid, found.findings))
        yield found if as_is else _plan(connection, found.table, now)


def snapshot_of(
    connection: Connection, schema: str | None, tables: Collection[str] | None
) -> catalog.Snapshot | None:
    """Read what is managed, ``None`` where nothing is; raises as :func:`plan` does."""
    with connection.begin():
        return _read(connection, schema, tables, "all")


def _near(
    connection: Connection, schema: str | None, tables: Collection[str] | None
) -> catalog.Snapshot | None:
    """Read what is managed with what may be its horizon, and nothing more."""
    return _read(connection, schema, tables, "horizon")


def _read(
    connection: Connection, schema: str | None, tables: Collection[str] | None, partitions: catalog.Reach
) -> catalog.Snapshot | None:
    found = config_schema(connection, schema)
    if found is None:
        check_managed((), tables)
        return None
    snapshot = catalog.read_snapshot(connection, found, tables, partitions, rehearsed())
    check_managed(snapshot.tables, tables)
    return snapshot


def check_managed(managed: Sequence[ManagedTable], wanted: Collection[str] | None) -> None:
    """Make sure that each name is that of a managed table.

    :raises NotManagedError: one is not.
    """
    known = {name for table in managed for name in (table.name, str(table))}
    for name in wanted or ():
        if name not in known:
            raise NotManagedError(table=name)


def _plan(connection: Connection, table: ManagedTable, now: datetime) -> Plan:
    found = with_free_names(connection, lambda taken: plan_horizon(table, now, taken))
    if not any(map(is_off_grid, found.findings)):
        return found
    (table,) = catalog.with_splits(connection, [table])
    return with_free_names(connection, lambda taken: plan_horizon(table, now, taken))


def _share(give_up_at: float | None, tables: int) -> float | None:
    """Divide what is left of the time: one whose locks are not to be had must not use up the others' too."""
    if give_up_at is None:
        return None
    now = time.monotonic()
    return now + max(give_up_at - now, 0) / tables


def make(
    connection: Connection,
    steps: Sequence[CreatePartition],
    work: Work,
    user: str,
    give_up_at: float | None = None,
    patience: float | None = None,
) -> Iterator[CreatePartition]:
    """Make partitions of a table until one fails or time is up; yield each that was made, and by us.

    :param give_up_at: ``time.monotonic()`` after which none is begun.
    :param patience: the same for another try of one whose locks are not to be had.
    """
    left, most = list(steps), len(steps) if give_up_at is None else _FEW
    while left:
        began = time.monotonic()
        if work.error is not None or (give_up_at is not None and began > give_up_at):
            work.missing += left
            return
        try:
            done = executor.create_next(
                connection, left[:most], user=user, give_up_at=patience, looked_at=work.planned_at
            )
        except (PartitionError, DBAPIError) as error:
            work.error = str(error) if isinstance(error, PartitionError) else reason(error)
            logger.warning("partitions of %s: %s", work.plan.table, work.error)
            continue
        del left[: len(done)]
        if give_up_at is not None:
            now = time.monotonic()
            most = max(int((give_up_at - now) * len(done) / max(now - began, 0.001)), 1)
        for step, by_us in done:
            if by_us:
                work.created.append(step.name)
                yield step


def result_of(work: Work) -> TableResult:
    """Return how it went."""
    left = dataclasses.replace(work.plan, steps=tuple(work.missing))
    return TableResult(
        table=str(work.plan.table),
        created=tuple(work.created),
        current_missing=left.current_missing,
        horizon_short=bool(work.missing),
        error=work.error,
        findings=tuple(map(str, work.plan.findings)),
    )
