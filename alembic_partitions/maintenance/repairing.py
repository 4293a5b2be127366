"""Repair: gaps filled, stranded rows moved to their windows, partitions put right, a test row as proof."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import PartitionError, WindowRangeError, WorkFailed
from alembic_partitions.locks import one_run
from alembic_partitions.periods import KeyValue, Window
from alembic_partitions.plan import (
    MOST_STRANDED,
    Asked,
    Drain,
    Finding,
    ManagedTable,
    Mend,
    Plan,
    Refusal,
    Source,
    Staging,
    carried_on,
    differences,
    drains_of,
    limits,
    plan_gaps,
    plan_stranded,
    windows_asked,
)

from .ensuring import snapshot_of, with_free_names
from .history import record
from .reports import Report, TableResult
from .settings import NOW_VARIABLE, clock

logger = logging.getLogger("alembic_partitions")

#: Told of a table, what is being counted, how many are done, and of how many.
Progress = Callable[[str, str, int, int], None]


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What one table needs: gaps, drains and mends, in the order in which they are done."""

    table: ManagedTable
    gaps: Plan
    drains: tuple[Drain, ...] = ()
    mends: tuple[Mend, ...] = ()
    findings: tuple[Finding, ...] = ()
    #: The keys of the test rows, and what is copied of the newest row beside them.
    keys: tuple[KeyValue, ...] = ()
    copied: tuple[str, ...] = ()
    user: str | None = None
    error: str | None = None

    def sql(self) -> str:
        """Return the script: what :func:`repair` would send."""
        told = [f"-- {finding}\n" for finding in self.findings]
        told += [f"-- {self.table}: {self.error}\n"] if self.error else []
        told.append(executor.script(Plan(self.table, self.gaps.steps), self.user))
        for drain in self.drains:
            step = drain.step
            told.append(f"-- {self.table.schema}.{step.name}: {step.reason.value} ({drain.rows} rows)\n")
            told.append(executor.drain_script(drain, self.user).sql())
        for mend in self.mends:
            told.append(f"-- {mend}\n")
            told += [batch.sql() for batch in executor.mend_batches(mend)]
        if self.keys and not self.error:
            told.append("-- proof: a row for each of these keys, rolled back\n")
            told.append(executor.proof_script(self.table, self.keys, self.copied))
        return "".join(told)


def plan_repair(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    start: KeyValue | str | None = None,
    stop: KeyValue | str | None = None,
    days: int | None = None,
    batch: int = 10_000,
) -> tuple[RepairPlan, ...]:
    """Return what :func:`repair` would do now, table by table; nothing is changed."""
    asked = Asked(start, stop, days)
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return ()
    now = clock(snapshot.now)
    windows = _validated(snapshot.tables, now, asked)
    return tuple(
        _planned(connection, table, now, some, batch, snapshot.user)
        for table, some in zip(snapshot.tables, windows, strict=True)
    )


def repair(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    start: KeyValue | str | None = None,
    stop: KeyValue | str | None = None,
    days: int | None = None,
    batch: int = 10_000,
    progress: Progress | None = None,
) -> Report:
    """Put tables right: gaps, rows stranded in a DEFAULT partition, partitions that differ; then prove it.

    Rows of a window that holds more than ``batch`` are gathered beside the table first, and cannot be seen
    through it from then until the last transaction attaches them; fewer move in one transaction, and no
    reader misses one.

    :param connection: not in a transaction, not the application's own.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only these, ``name`` or ``schema.name``.
    :param start: the first date or time of the range to fill (see :meth:`Grid.key_of`); now if left out.
    :param stop: the last one, included; now if left out.
    :param days: instead of both: that many days before and after now.
    :param batch: rows that one transaction moves at most.
    :param progress: told of long work as it goes on.
    :raises NotManagedError: one of ``tables`` is not managed.
    :raises RepairRangeError: the range is wrong; nothing was changed.
    :raises RunUnderWay: another run has not ended for a minute.
    """
    asked = Asked(start, stop, days)
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return Report()
    if snapshot.in_recovery:
        return Report(in_recovery=True)
    _validated(snapshot.tables, clock(snapshot.now), asked)
    with one_run(connection.engine, snapshot.config_schema):
        snapshot = snapshot_of(connection, schema, tables) or snapshot
        now = clock(snapshot.now)
        windows = _validated(snapshot.tables, now, asked)
        works = [
            _Work(
                connection,
                _planned(connection, table, now, some, batch, snapshot.user),
                progress or (lambda *told: None),
            )
            for table, some in zip(snapshot.tables, windows, strict=True)
        ]
        report = Report(tuple(work.done() for work in works))
        if report.failure or any(result.changes for result in report.results):
            record(connection, snapshot, "repair", report)
    return report


def _validated(tables: Sequence[ManagedTable], now: datetime, asked: Asked) -> list[list[Window]]:
    """Return the windows asked for, table by table; all are looked at before one is changed."""
    fit = [table.problem is None and table.policy is not None for table in tables]
    return [windows_asked(t.grid, now, asked) if ok else [] for t, ok in zip(tables, fit, strict=True)]


def _planned(
    connection: Connection,
    table: ManagedTable,
    now: datetime,
    windows: Sequence[Window],
    batch: int,
    user: str,
) -> RepairPlan:
    try:
        with connection.begin():
            return _plan(connection, table, now, windows, batch, user)
    except (PartitionError, DBAPIError) as error:
        gaps = Plan(table)
        return RepairPlan(table, gaps, error=_told(error))


def _plan(
    connection: Connection,
    table: ManagedTable,
    now: datetime,
    windows: Sequence[Window],
    batch: int,
    user: str,
) -> RepairPlan:
    if table.problem is not None or table.policy is None or not table.policy.enabled:
        gaps = plan_gaps(table, now, windows)
        return RepairPlan(table, gaps, findings=gaps.findings, user=user)
    catalog.see_all_rows(connection)
    source = catalog.read_source(connection, table)
    stagings = catalog.read_stagings(connection, table)
    found, findings = _stranded(connection, table, now, source)
    stranded = [pair for pair in found if not any(_overlap(pair[0], staging) for staging in stagings)]
    moving = with_free_names(connection, lambda taken: plan_stranded(table, stranded, taken))
    drains = [
        carried_on(table, source, s, sum(rows for window, rows in found if _overlap(window, s)), batch)
        for s in stagings
    ]
    drains += drains_of(moving, source, stranded, batch) if source is not None else []
    leave = [(drain.step.lower, drain.step.upper) for drain in drains]
    gaps = with_free_names(connection, lambda taken: plan_gaps(table, now, windows, taken, leave))
    refusals = source.refusals() if source is not None and (drains or source.is_blind) else []
    if refusals:
        drains = []
        findings += refusals
        findings += [Finding(Refusal.WAITING, f"{staging.schema}.{staging.name}") for staging in stagings]
    mends, differing = _differences(connection, table)
    edges = sorted(windows, key=lambda window: window.begin)
    keys = [table.grid.key_at(now), *(window.begin for window in (*edges[:1], *edges[-1:]))]
    return RepairPlan(
        table,
        gaps,
        tuple(drains),
        tuple(mends),
        tuple(dict.fromkeys((*gaps.findings, *moving.findings, *findings, *differing))),
        tuple(dict.fromkeys(keys)),
        tuple(catalog.copied_columns(connection, table)),
        user,
    )


def _overlap(window: Window, staging: Staging) -> bool:
    return window.begin < staging.upper and staging.lower < window.end


def _differences(connection: Connection, table: ManagedTable) -> tuple[list[Mend], list[Finding]]:
    """Compare partitions with their parent; one that somebody has locked is no reason to leave the rest."""
    try:
        with connection.begin_nested():
            family = catalog.read_family(connection, table)
    except DBAPIError as error:
        return [], [Finding(Refusal.UNCOMPARED, f"{table} ({reason(error)})")]
    return differences(*family)


def _stranded(
    connection: Connection,
    table: ManagedTable,
    now: datetime,
    source: Source | None,
) -> tuple[list[tuple[Window, int]], list[Finding]]:
    """Return the windows that rows of the DEFAULT partition need, and what stays there."""
    if source is None or source.is_blind:
        return [], []
    default = source.partition
    oldest, newest = limits(table, now)
    found, findings = list[tuple[Window, int]](), list[Finding]()
    try:
        windows = catalog.stranded_windows(connection, table, default, oldest, newest)
        for window, rows in islice(windows, MOST_STRANDED + 1):
            found.append((window, rows))
    except WindowRangeError as error:
        findings.append(Finding(Refusal.OUT_OF_RANGE, str(error)))
    if len(found) > MOST_STRANDED:
        findings.append(Finding(Refusal.MORE_STRANDED, str(table)))
        found.pop()
    left = catalog.rows_outside(connection, table, default, oldest, newest)
    if left is not None:
        findings.append(Finding(Refusal.OUTSIDE, f"{default.schema}.{default.name}, {left}"))
    return found, findings


@dataclass
class _Work:
    """One table on its way through a repair."""

    connection: Connection
    plan: RepairPlan
    progress: Progress
    created: list[str] = field(default_factory=list)
    #: How many gaps have their partition now, whoever made it.
    filled: int = 0
    moved: int = 0
    mended: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    proof: str | None = None
    error: str | None = None

    def done(self) -> TableResult:
        """Do it all, as far as it goes, and say how it went."""
        plan = self.plan
        self.error = plan.error
        self.findings += plan.findings
        if self.error is None:
            for work in (self._fill_gaps, self._drain, self._mend, self._prove):
                with self._caught():
                    work()
        left = dataclasses.replace(plan.gaps, steps=plan.gaps.steps[self.filled :])
        return TableResult(
            table=str(plan.table),
            created=tuple(self.created),
            moved=self.moved,
            mended=tuple(self.mended),
            proof=self.proof,
            current_missing=left.current_missing,
            horizon_short=bool(left.steps),
            error=self.error,
            findings=tuple(map(str, dict.fromkeys(self.findings))),
        )

    @contextmanager
    def _caught(self) -> Iterator[None]:
        try:
            yield
        except (PartitionError, DBAPIError) as error:
            self._failed(error)

    def _failed(self, error: PartitionError | DBAPIError) -> None:
        self.error = self.error or _told(error)
        logger.warning("repair of %s: %s", self.plan.table, _told(error))

    def _fill_gaps(self) -> None:
        steps = self.plan.gaps.steps
        for number, step in enumerate(steps, start=1):
            if executor.create_partition(self.connection, step, user=self.plan.user):
                self.created.append(step.name)
            self.filled = number
            self.progress(str(self.plan.table), "windows", number, len(steps))

    def _drain(self) -> None:
        table, total = str(self.plan.table), sum(drain.rows for drain in self.plan.drains)
        if self.plan.drains and os.environ.get(NOW_VARIABLE):
            self.findings.append(Finding(Refusal.REHEARSED, f"rows of the DEFAULT partition of {table}"))
            return

        def moved(rows: int) -> None:
            self.moved += rows
            self.progress(table, "rows", self.moved, max(total, self.moved))

        for drain in self.plan.drains:
            try:
                if executor.drain(self.connection, drain, user=self.plan.user, moved=moved):
                    self.created.append(drain.step.name)
            except WorkFailed as error:  # another window may do better; where locks are missing, none will
                self._failed(error)

    def _mend(self) -> None:
        stuck = set[int]()
        for number, mend in enumerate(self.plan.mends, start=1):
            if mend.child.oid in stuck:
                continue
            stuck.add(mend.child.oid)
            with self._caught():
                executor.mend_child(self.connection, self.plan.table, mend)
                self.mended.append(str(mend))
                stuck.remove(mend.child.oid)
            self.progress(str(self.plan.table), "mends", number, len(self.plan.mends))

    def _prove(self) -> None:
        default = next((p for p in self.plan.table.partitions if p.is_default), None)
        proofs = executor.prove(self.connection, self.plan.table, self.plan.keys) if self.plan.keys else []
        self.proof = "; ".join(map(str, proofs)) or None
        missing = [str(proof) for proof in proofs if proof.missing]
        if missing and self.error is None:
            self.error = f"a test row was refused: {', '.join(missing)}"
        for proof in proofs:
            if default is not None and proof.partition == f"{default.schema}.{default.name}":
                self.findings.append(Finding(Refusal.LANDED_IN_DEFAULT, str(proof.value)))
            elif proof.partition is None and not proof.missing:
                self.findings.append(Finding(Refusal.UNPROVEN, str(proof)))


def _told(error: PartitionError | DBAPIError) -> str:
    return reason(error) if isinstance(error, DBAPIError) else str(error)
