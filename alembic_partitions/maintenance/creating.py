"""Windows made on purpose, from now to so far ahead: each partition committed by itself."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from alembic_partitions import catalog
from alembic_partitions.errors import NotManagedError, PolicyError
from alembic_partitions.periods import Period, Window
from alembic_partitions.plan import ManagedTable, Plan, plan_windows, refused
from alembic_partitions.sessions import own_transactions

from .ensuring import Work, make, result_of, snapshot_of, with_free_names
from .history import record, written_down_if_stopped
from .reports import Report, TablePlan
from .settings import clock


@dataclass(frozen=True, slots=True)
class Ahead:
    """How far ahead: so many windows after the current one, or all that begin within a period.

    :raises ValueError: not exactly one of the two is given, or the windows are fewer than one.
    """

    windows: int | None = None
    period: Period | None = None

    def __post_init__(self) -> None:
        if (self.windows is None) is (self.period is None) or (self.windows is not None and self.windows < 1):
            raise ValueError("say how far ahead: windows, one at least, or a period")

    def of(self, table: ManagedTable, now: datetime) -> list[Window]:
        """Return the windows of a table from the current one on.

        :raises PolicyError: there are more than its policy lets one call make.
        :raises WindowRangeError: the calendar ends before.
        """
        policy, grid = table.policy, table.grid
        assert policy is not None
        windows = [grid.at(grid.key_at(now))]
        last = None if self.period is None else grid.key_at(self.period.after(now, policy.timezone))
        while len(windows) <= (self.windows or 0) or (last is not None and last >= windows[-1].end):
            windows.append(grid.after(windows[-1]))
            if len(windows) > policy.max_create:
                raise PolicyError(
                    field="max_create",
                    problem=f"{table} would be given more than {policy.max_create} windows at once",
                    remedy="Ask for fewer at a time, or raise the field with op.alter_partition_policy().",
                )
        return windows


def plan_ahead(
    connection: Connection, table: str, ahead: Ahead, *, schema: str | None = None
) -> tuple[TablePlan, ...]:
    """Return what :func:`make_ahead` would make now.

    :param connection: not in a transaction.
    :param table: ``name`` or ``schema.name``.
    :raises NotManagedError: it is not managed.
    :raises PolicyError: those are more windows than its policy lets one call make, or nothing is to be done
        to it at all.
    """
    return _planned(connection, table, ahead, schema)[1]


def make_ahead(
    connection: Connection,
    table: str,
    ahead: Ahead,
    *,
    schema: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Make the windows of a table that are not there, from the current one to so far ahead.

    As someone asks for them, ``max_ahead`` does not matter. Raises as :func:`plan_ahead` does.

    :param connection: not in a transaction.
    """
    with own_transactions(connection):
        snapshot, plans = _planned(connection, table, ahead, schema)
        if snapshot.in_recovery:
            return Report(in_recovery=True)
        works = [Work(item.plan) for item in plans]

        def so_far() -> Report:
            return Report(tuple(map(result_of, works)))

        with written_down_if_stopped(connection, snapshot, "create", so_far):
            for work in works:
                for step in make(connection, work.plan.steps, work, snapshot.user):
                    if progress is not None:
                        progress(f"{step.table}: made {step.name}")
        report = so_far()
        record(connection, snapshot, "create", report)
        return report


def _planned(
    connection: Connection, table: str, ahead: Ahead, schema: str | None
) -> tuple[catalog.Snapshot, tuple[TablePlan, ...]]:
    snapshot = snapshot_of(connection, schema, [table])
    if snapshot is None:
        raise NotManagedError(table=table)
    now, plans = clock(snapshot.now), []
    for found in snapshot.tables:
        _check(found)
        windows = ahead.of(found, now)

        def fitting(
            taken: Container[str], found: ManagedTable = found, windows: Sequence[Window] = windows
        ) -> Plan:
            return plan_windows(found, windows, taken)

        with connection.begin():
            plans.append(with_free_names(connection, fitting))
    return snapshot, tuple(TablePlan(str(p.table), p, snapshot.user, now) for p in plans)


def check_usable(
    connection: Connection, table: str, *, schema: str | None = None, disabled: bool = False
) -> None:
    """Make sure that something can be done to a table, which a run over all tables would pass over.

    :param connection: not in a transaction.
    :param table: ``name`` or ``schema.name``.
    :param disabled: whether its policy may be disabled.
    :raises NotManagedError: it is not managed.
    :raises PolicyError: it is not there, does not fit its policy, or is disabled.
    """
    snapshot = snapshot_of(connection, schema, [table])
    for found in snapshot.tables if snapshot is not None else ():
        _check(found, disabled)


def _check(table: ManagedTable, disabled: bool = False) -> None:
    finding = refused(table)
    if table.problem is not None:
        raise PolicyError(field="key", problem=str(finding), remedy="Correct the policy or the table.")
    if finding is not None and not disabled:
        raise PolicyError(
            field="enabled",
            problem=f"the policy of {table} is disabled, so nothing is done to it",
            remedy="Enable it first.",
        )
