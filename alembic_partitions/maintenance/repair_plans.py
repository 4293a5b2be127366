"""What repair would do to one table: read, and planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import PartitionError, WindowRangeError
from alembic_partitions.executor.statements import remark
from alembic_partitions.periods import KeyValue, Window
from alembic_partitions.plan import (
    MOST_STRANDED,
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
    is_too_much,
    limits,
    plan_gaps,
    plan_stranded,
    short_lived,
    too_many,
)

from .ensuring import with_free_names


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
        told = [f"{remark(str(finding))}\n" for finding in self.findings]
        told += [f"{remark(f'{self.table}: {self.error}')}\n"] if self.error else []
        told.append(executor.script(Plan(self.table, self.gaps.steps), self.user))
        for drain in self.drains:
            step = drain.step
            why = f"{self.table.schema}.{step.name}: {step.reason.value} ({drain.rows} rows)"
            told.append(f"{remark(why)}\n")
            told.append(executor.drain_script(drain, self.user).sql())
        for mend in self.mends:
            told.append(f"{remark(str(mend))}\n")
            told += [batch.sql() for batch in executor.mend_batches(mend)]
        if self.keys and not self.error:
            told.append("-- proof: a row for each of these keys, rolled back\n")
            told.append(executor.proof_script(self.table, self.keys, self.copied))
        return "".join(told)


def repair_plan(
    connection: Connection,
    table: ManagedTable,
    now: datetime,
    windows: Sequence[Window],
    batch: int,
    user: str,
) -> RepairPlan:
    """Plan one table; what goes wrong is told by the plan, and stops no other table."""
    try:
        with connection.begin():
            return _plan(connection, table, now, windows, batch, user)
    except (PartitionError, DBAPIError) as error:
        gaps = Plan(table)
        return RepairPlan(table, gaps, error=told_of_error(error))


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
    (table,) = catalog.with_splits(connection, [table])
    source = catalog.read_source(connection, table)
    every = catalog.read_stagings(connection, table)
    stagings = [staging for staging in every if staging.certain]
    found, findings = _stranded(connection, table, now, source)
    stranded = [pair for pair in found if not any(_overlap(pair[0], staging) for staging in stagings)]
    moving = with_free_names(connection, lambda taken: plan_stranded(table, stranded, taken))
    drains = [
        carried_on(table, source, s, sum(rows for window, rows in found if _overlap(window, s)), batch)
        for s in stagings
    ]
    today = table.grid.key_at(now)
    drains += drains_of(moving, source, stranded, batch, today) if source is not None else []
    leave = [(drain.step.lower, drain.step.upper) for drain in drains]
    gaps = with_free_names(connection, lambda taken: plan_gaps(table, now, windows, taken, leave))
    findings += short_lived(table, now, [drain.step for drain in drains])
    findings += [Finding(Refusal.WAITING, f"{s.schema}.{s.name}") for s in every if not s.certain]
    findings += too_many(drains)
    drains = [drain for drain in drains if not is_too_much(drain)]
    refusals = source.refusals() if source is not None and (drains or source.is_blind) else []
    if refusals:
        drains = []
        findings += refusals
        findings += [Finding(Refusal.WAITING, f"{staging.schema}.{staging.name}") for staging in stagings]
    mends, differing = _differences(connection, table)
    edges = sorted(windows, key=lambda window: window.begin)
    keys = [table.grid.key_at(now), *(window.begin for window in (*edges[:1], *edges[-1:]))]
    keys = [] if table.traits.distributed else keys
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
        if error.connection_invalidated:  # then nothing else can be read in this transaction either
            raise
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


def told_of_error(error: PartitionError | DBAPIError) -> str:
    """Return why something failed, in one line."""
    return reason(error) if isinstance(error, DBAPIError) else str(error)
