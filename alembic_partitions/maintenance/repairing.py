"""Repair: gaps filled, stranded rows moved to their windows, partitions put right, a test row as proof."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import executor
from alembic_partitions.errors import PartitionError, WorkFailed
from alembic_partitions.locks import one_run
from alembic_partitions.periods import KeyValue, Window
from alembic_partitions.plan import (
    Asked,
    Finding,
    ManagedTable,
    Refusal,
    windows_asked,
)
from alembic_partitions.sessions import own_transactions

from .ensuring import snapshot_of
from .history import record
from .repair_plans import RepairPlan, repair_plan, told_of_error
from .reports import Report, TableResult
from .settings import NOW_VARIABLE, clock

logger = logging.getLogger("alembic_partitions")

#: Told of a table, what is being counted, how many are done, and of how many.
Progress = Callable[[str, str, int, int], None]


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
        repair_plan(connection, table, now, some, batch, snapshot.user)
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

    Up to ``batch`` rows a window moves in one transaction, and no reader at READ COMMITTED misses one; so
    does the current window and what comes after it, however many rows there are. A past window with more is
    gathered beside the table first: from then until the last transaction attaches them its rows can be
    neither seen, changed nor deleted through the table.

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
    with own_transactions(connection):
        return _repair(connection, schema, tables, asked, batch, progress)


def _repair(
    connection: Connection,
    schema: str | None,
    tables: Collection[str] | None,
    asked: Asked,
    batch: int,
    progress: Progress | None,
) -> Report:
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
                repair_plan(connection, table, now, some, batch, snapshot.user),
                progress or (lambda *told: None),
            )
            for table, some in zip(snapshot.tables, windows, strict=True)
        ]
        report = Report(tuple(work.done() for work in works))
        record(connection, snapshot, "repair", report)
    return report


def _validated(tables: Sequence[ManagedTable], now: datetime, asked: Asked) -> list[list[Window]]:
    """Return the windows asked for, table by table; all are looked at before one is changed."""
    fit = [table.problem is None and table.policy is not None for table in tables]
    return [windows_asked(t.grid, now, asked) if ok else [] for t, ok in zip(tables, fit, strict=True)]


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
        self.error = self.error or told_of_error(error)
        logger.warning("repair of %s: %s", self.plan.table, told_of_error(error))

    def _fill_gaps(self) -> None:
        steps = self.plan.gaps.steps
        while self.filled < len(steps):
            done = executor.create_next(self.connection, steps[self.filled :], user=self.plan.user)
            self.created += [step.name for step, by_us in done if by_us]
            self.filled += len(done)
            self.progress(str(self.plan.table), "windows", self.filled, len(steps))

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
                if executor.took_too_long(error):
                    return

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
        if self.plan.table.traits.distributed:
            self.proof = "no test row: on Citus it would not tell its partition, but its shard"
            return
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
