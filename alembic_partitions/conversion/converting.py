"""A plain table becomes partitioned while it is read and written, and its rows stay where they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl, executor, maintenance
from alembic_partitions.declare import Door, ensure_our_tables
from alembic_partitions.errors import ConversionRefused, LockNotAvailable, WindowRangeError, WorkFailed
from alembic_partitions.locks import one_conversion
from alembic_partitions.maintenance import Report, TableResult
from alembic_partitions.periods import KeyValue, Window
from alembic_partitions.plan import (
    Belongings,
    Conversion,
    CreatePartition,
    Ends,
    first_window,
    names_of_conversion,
    plan_conversion,
    plan_windows,
    refuse_loss,
    refuse_rows,
)
from alembic_partitions.policy import PartitionPolicy
from alembic_partitions.sessions import own_transactions

from .reading import (
    MOST_LOOKS,
    ConversionPlan,
    Told,
    door_to,
    long_holders,
    read,
    readable,
    refuse_blocked,
)

#: Windows that are made in the swap itself; the rest of the horizon follows in transactions of its own.
FIRST_WINDOWS = 2


def plan_convert(
    connection: Connection,
    table: str,
    policy: PartitionPolicy,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    until: KeyValue | str | None = None,
    by_hand: bool = False,
) -> ConversionPlan:
    """Return what :func:`convert` would do now; nothing is changed. Raises as :func:`convert` does."""
    with own_transactions(connection), connection.begin():
        task = _task(connection, table, policy, schema, config_schema, until, by_hand)
        if task.is_done():
            return ConversionPlan(str(task))
        planned = task.plan(task.ends())
        if catalog.find_config(connection, task.home) is None:
            planned = dataclasses.replace(planned, steps=(executor.our_tables(task.home), *planned.steps))
        return planned


def convert(
    connection: Connection,
    table: str,
    policy: PartitionPolicy,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    until: KeyValue | str | None = None,
    by_hand: bool = False,
    told: Told = lambda title: None,
) -> Report:
    """Turn a plain table into one partitioned as ``policy`` says, while it is read and written.

    The table becomes its own first partition, with all its rows, for every key before ``until``; windows
    stand from there on. A CHECK and, where the primary key lacks the partition key, a unique index are made
    first, beside readers and writers; then one short transaction changes the names. A run that is cut off
    leaves what it has made, and the next one goes on from there.

    :param connection: not in a transaction, not the application's own.
    :param schema: the table's; ``None`` takes what ``search_path`` leads to.
    :param config_schema: where partition_config lives; ``None`` finds it by our mark.
    :param until: where the new windows begin, moved to the begin of a window (see :meth:`Grid.key_of`).
        Default: the first window that begins seven days or more after now, and after the newest row. Until
        the last step is done, rows from there on are refused.
    :param by_hand: in no migration, so the table's model need not know of it.
    :param told: told of each step when it begins.
    :raises ConversionRefused: something would be lost, or rows have no place; nothing was changed.
    :raises PolicyError: the policy does not fit the key.
    :raises LockNotAvailable: the locks of a step were not to be had; the next run goes on.
    :raises RunUnderWay: another process is converting this table.
    """
    with own_transactions(connection):
        with connection.begin():
            task = _task(connection, table, policy, schema, config_schema, until, by_hand)
            found = task.read()
            if found.kind != "p":
                refuse_loss(found, policy)
            if os.environ.get(maintenance.NOW_VARIABLE):
                name = maintenance.NOW_VARIABLE
                why = f"by a rehearsed clock nothing is converted; unset {name}, or use --dry-run"
                raise ConversionRefused(table=str(task), problems=why)
        with one_conversion(connection.engine, str(task)):
            return _convert(connection, task, told)


def _convert(connection: Connection, task: _Task, told: Told) -> Report:
    with connection.begin():
        if catalog.read_session(connection, task.home).in_recovery:
            return Report(in_recovery=True)
        begun = catalog.read_session(connection, ensure_our_tables(task.door) or "")
    notes: tuple[str, ...] = ()
    first: str | None = None
    looks, ends = 0, None
    while first is None:
        with connection.begin():
            if task.is_done():
                break
            ends = task.ends() if ends is None else ends  # once: it may take long
            planned = task.plan(ends)
        refuse_blocked(planned)
        notes = planned.notes
        try:
            first = _taken(connection, planned, told)
        except executor.Changed as error:
            looks += 1
            if looks == MOST_LOOKS:
                why = "somebody else alters it all the time"
                raise WorkFailed(table=str(task), what="converting", reason=why) from error
    told("windows up to the horizon")
    return _settled(connection, begun, task, first, notes)


def _taken(connection: Connection, planned: ConversionPlan, told: Told) -> str | None:
    """Take the first of the steps that are left; return the first partition's name if it was the last."""
    step, *more = planned.steps
    told(step.title)
    try:
        executor.run_step(connection, planned.unchanged, step)
    except (LockNotAvailable, WorkFailed) as failed:
        if planned.until is None:
            raise
        told_too = (
            f"{failed.reason}; until it is done rows from {planned.until} on are refused: run it again, or"
            " take it back with `alembic-partitions convert --abort`"
        )
        raise type(failed)(**{**failed.data, "reason": told_too}) from failed
    return None if more else planned.first


def _settled(
    connection: Connection, begun: catalog.Snapshot, task: _Task, first: str | None, notes: tuple[str, ...]
) -> Report:
    """Bring the new table to its horizon, and write the run down."""
    home = begun.config_schema
    done = maintenance.ensure(connection, schema=home, tables=[str(task)], write_down="never")
    tended = _analyzed(connection, task) if first else ()
    report = Report(tuple(_with(result, first, notes, tended) for result in done.results))
    maintenance.record(connection, begun, "convert", report)
    return report


def _analyzed(connection: Connection, task: _Task) -> tuple[str, ...]:
    """Give the planner statistics of the new table, which autovacuum never gathers; `maintain` does later."""
    version = int((connection.dialect.server_version_info or (0,))[0])
    analyze = executor.analyze_batch(task.schema, task.table, parent=True, server_version=version)
    try:
        executor.tend(connection, analyze)
    except DBAPIError:
        return ()
    return (task.table,)


def _with(
    result: TableResult, first: str | None, notes: tuple[str, ...], tended: tuple[str, ...]
) -> TableResult:
    if first is None:
        return dataclasses.replace(result, findings=(*notes, *result.findings))
    # What is off the grid is the first partition, as it should be.
    others = (finding for finding in result.findings if first not in finding)
    told = f"{first} holds all the rows; `alembic-partitions split` divides it into windows"
    return dataclasses.replace(
        result, created=(first, *result.created), findings=(*notes, told, *others), tended=tended
    )


def abort_conversion(connection: Connection, table: str, *, schema: str | None = None) -> tuple[str, ...]:
    """Take back what a conversion that was cut off has made; return what that was.

    :param connection: not in a transaction.
    :raises NoTableError: there is no such table.
    :raises RunUnderWay: a process is converting this table.
    """
    with own_transactions(connection):
        with connection.begin():
            where = str(door_to(connection, None).schema_of(schema, table))
        with one_conversion(connection.engine, f"{where}.{table}"):
            with connection.begin():
                found = read(connection, where, table)
            steps = executor.abort_steps(found)
            for step in steps:
                executor.run_step(connection, [found], step)
    return tuple(step.title for step in steps)


# -- reading and planning -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be converted, and how. Each method reads, in a transaction that is open."""

    connection: Connection
    door: Door
    home: str
    schema: str
    table: str
    policy: PartitionPolicy
    until: KeyValue | str | None
    by_hand: bool

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    def read(self) -> Belongings:
        """Return the table as it is."""
        return read(self.connection, self.schema, self.table)

    def is_done(self) -> bool:
        """Tell whether the table is partitioned already as the policy says."""
        config = catalog.find_config(self.connection, self.home)
        found = self.read()
        if found.kind != "p" or found.is_partition or config is None:
            return False
        tables = catalog.read_snapshot(self.connection, config, {str(found)}, partitions="none").tables
        if not tables:
            return False
        if tables[0].policy != self.policy:
            why = "it is managed already, by another policy: use op.alter_partition_policy()"
            raise ConversionRefused(table=str(found), problems=why)
        return True

    def ends(self) -> Ends:
        """Return the oldest and the newest key, which may mean that the table is read through."""
        found = self.read()
        refuse_loss(found, self.policy)
        with readable(found):
            key_type = catalog.key_type_of(found, self.policy)
            return catalog.read_ends(self.connection, found, self.policy.key, key_type)

    def plan(self, ends: Ends) -> ConversionPlan:
        """Return what is left to do."""
        connection, policy = self.connection, self.policy
        found = self.read()
        refuse_loss(found, policy)
        key_type = catalog.key_type_of(found, policy)
        grid = policy.grid(key_type)
        session = catalog.read_session(connection, self.home)
        now = maintenance.clock(session.now)
        refuse_rows(found, policy, grid, ends, now)
        window = first_window(found, policy, grid, ends, now, self.until)
        conversion = _with_free_names(
            connection, lambda taken: plan_conversion(found, policy, key_type, window, taken)
        )
        windows = _first_windows(connection, conversion, window)
        settled = ddl.declare_policy(
            self.home, ddl.text_literal(self.schema), self.table, policy, self.by_hand
        )
        steps = executor.conversion_steps(conversion, windows, settled, session.user)
        return ConversionPlan(
            str(found),
            tuple(steps),
            conversion.notes,
            long_holders(connection, found),
            unchanged=(found,),
            first=conversion.first,
            until=str(conversion.until) if conversion.is_checked else None,
        )


def _task(
    connection: Connection,
    table: str,
    policy: PartitionPolicy,
    schema: str | None,
    config_schema: str | None,
    until: KeyValue | str | None,
    by_hand: bool,
) -> _Task:
    door = door_to(connection, config_schema)
    # Before search_path is set aside: it says where things are.
    home, where = door.home, door.schema_of(schema, table)
    return _Task(connection, door, str(home), str(where), table, policy, until, by_hand)


def _with_free_names(connection: Connection, make: Callable[[Container[str]], Conversion]) -> Conversion:
    taken: set[str] = set()
    while True:
        planned = make(taken)
        found = catalog.names_in_use(connection, planned.table.schema, names_of_conversion(planned)) - taken
        if not found:
            return planned
        taken |= found


def _first_windows(
    connection: Connection, conversion: Conversion, first: Window
) -> tuple[CreatePartition, ...]:
    """Plan the windows that are made in the swap, so that rows from ``until`` on have a place at once."""
    table, windows = executor.table_to_be(conversion), [first]
    with suppress(WindowRangeError):
        while len(windows) < FIRST_WINDOWS:
            windows.append(table.grid.after(windows[-1]))
    planned = maintenance.with_free_names(
        connection, lambda taken: plan_windows(table, windows, taken, made_by="convert")
    )
    return planned.steps
