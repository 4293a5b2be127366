"""Rows of a DEFAULT partition moved to their windows, with writers at work.

A window of few rows gets its partition in one transaction: made, filled and attached. It keeps readers out
meanwhile, or one of them might miss rows: who waits for the DEFAULT partition alone has already looked up
which partitions there are, and would find the rows neither here nor there.

Rows of a larger window are gathered beside the table first, a batch a transaction, and cannot be seen through
the table until the last transaction attaches what they were gathered in. A run that is cut off leaves that
table under its mark, and the next one carries on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import WorkFailed
from alembic_partitions.plan import (
    CreatePartition,
    Drain,
    Partition,
    Source,
    Staged,
    in_order,
    is_too_much,
)

from .creating import LOST_RACE, TURN_TIMEOUT_MS, attach_locks
from .statements import LOCK_TIMEOUT_MS, Batch, Statement, insist, send, transaction

#: Seconds that a lock is tried for before a table is given up in this run.
PATIENCE = 30.0
#: Longest statement of the transaction that keeps readers out. ATTACH reads the DEFAULT partition through.
ATTACH_TIMEOUT_MS = 20_000

_QUERY_CANCELED = "57014"
# Beside writers that never rest the last rows are left to the last transaction.
_MOST_SHORT_BATCHES = 20

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class DrainScript:
    """The transactions of one drain: ``gather`` is sent until it moves nothing more."""

    prepare: Batch | None
    gather: Batch | None
    attach: Batch

    def sql(self) -> str:
        """Return what psql would run, with what it means for readers."""
        told = []
        if self.prepare is not None:
            told += ["-- first, a table to gather rows in", self.prepare.sql().rstrip("\n")]
        if self.gather is not None:
            told += [
                "-- again until it moves no row; rows moved cannot be seen through the table until the end",
                self.gather.sql().rstrip("\n"),
            ]
        return "\n".join([*told, self.attach.sql()])


def drain_script(drain: Drain, user: str | None = None) -> DrainScript:
    """Return the SQL of one drain."""
    step, source = drain.step, drain.source
    assert step.table.oid is not None
    elements = ddl.partition_elements(step, user)
    attach = next(n for n, element in enumerate(elements) if isinstance(element, ddl.Attach))
    making, attaching = elements[:attach], elements[attach:]
    turn: list[ddl.Element] = [ddl.LockParent(step.table.oid), ddl.SetLockTimeout(LOCK_TIMEOUT_MS)]
    last = _moving(drain, None, ddl.CheckConstraintsNow())
    ending = [*last, *(_statement(element, step, drain) for element in attaching)]
    beginning: list[ddl.Element] = [*making] if drain.how is Staged.AT_ONCE else [ddl.MarkPartition(step)]
    if source is not None and source.distributed_by is not None:
        beginning.append(ddl.Distribute(step, source.distributed_by))
    final = transaction(
        *turn,
        ddl.SetStatementTimeout(ATTACH_TIMEOUT_MS),
        *_locked(drain),
        *beginning,
        *ending,
        lock_timeout_ms=TURN_TIMEOUT_MS,
        distributed=step.table.traits.distributed,
    )
    prepare = gather = None
    if drain.how is not Staged.AT_ONCE and source is not None:
        gather = transaction(*_moving(drain, drain.batch))
    if drain.how is Staged.GATHERED:
        # The mark that says "ours" is for partitions; this is none yet.
        bare = [ddl.MarkDraining(step) if isinstance(e, ddl.MarkPartition) else e for e in making]
        keys = [_keyed(ddl.AddForeignKey(step, key), step) for key in source.foreign_keys] if source else []
        prepare = transaction(*turn, *bare, *keys, lock_timeout_ms=TURN_TIMEOUT_MS)
    return DrainScript(prepare, gather, final)


def drain(
    connection: Connection, work: Drain, *, user: str | None = None, moved: Told = lambda rows: None
) -> bool:
    """Move the rows of one window; return whether it was us, not a competitor, who made its partition.

    :param connection: not in a transaction.
    :param moved: told of the rows of each transaction, once it is committed.
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused; rows moved so far are safe, and the next run carries on.
    """
    step, work = work.step, _grown(connection, work)
    script = drain_script(work, user)
    what = f"moving rows of its DEFAULT partition to {step.name}"
    if script.prepare is not None:
        # Rows are hidden only if what brings them back can be had.
        _insist(connection, transaction(*_locked(work)), work, what)
        if not _once(connection, script.prepare, work, what):
            return False
    if script.gather is not None:
        # A row that is changed beside a batch is left by it, so a short batch is not the last one.
        short = 0
        while short < _MOST_SHORT_BATCHES:
            rows = _insist(connection, script.gather, work, what)
            moved(rows)
            short += rows < work.batch
            if rows == 0:
                break
    try:
        rows = _insist(connection, script.attach, work, what)
    except WorkFailed as failed:
        if not _lost_race(failed) or not _overlapped(connection, step):
            raise
        if work.how is not Staged.AT_ONCE:
            _pour(connection, work, what)
        return False
    moved(rows)
    return True


def _grown(connection: Connection, work: Drain) -> Drain:
    """Look again: a window may have grown since it was planned, and nobody is to wait for all of it."""
    if work.how is not Staged.AT_ONCE or work.source is None or work.hot:
        return work
    step = work.step
    with connection.begin():
        catalog.see_all_rows(connection)
        rows = catalog.rows_within(connection, step.table, work.source.partition, step.lower, step.upper)
    if rows <= work.batch:
        return work
    grown = dataclasses.replace(work, rows=rows, how=Staged.GATHERED)
    if is_too_much(grown):
        what, why = f"moving {rows} rows to {step.name}", "they have become too many; repair again"
        raise WorkFailed(table=str(step.table), what=what, reason=why)
    return grown


def _once(connection: Connection, batch: Batch, work: Drain, what: str) -> bool:
    """Make the table to gather rows in; tell whether it was us who made something there."""
    try:
        _insist(connection, batch, work, what)
    except WorkFailed as failed:
        if _lost_race(failed) and _overlapped(connection, work.step):
            return False
        raise
    return True


def _pour(connection: Connection, work: Drain, what: str) -> None:
    """Move gathered rows on: a competitor has made partitions of their window meanwhile.

    What no partition covers goes back to the DEFAULT partition, for the next run. Then the table that they
    were gathered in is dropped.

    :raises WorkFailed: rows are left that have nowhere to go.
    """
    step, table = work.step, work.step.table
    with connection.begin():
        parts = catalog.partitions_of(connection, table)
        covering = _touching(parts, step) + [part for part in parts if part.is_default]
        columns = catalog.movable_columns(connection, table.schema, step.name)
        targets = [
            Source(part, columns=columns, triggers=catalog.insert_triggers(connection, part.oid))
            for part in covering
        ]
    for target in targets:
        part = target.partition
        move = ddl.MoveRows(
            (table.schema, step.name),
            (part.schema, part.name),
            columns,
            _key(step),
            table.grid.key_type,
            part.lower,
            part.upper,
            work.batch,
        )
        batch = transaction(ddl.SeeAllRows(), *_silenced(target, Statement(move.sql())))
        while _insist(connection, batch, work, what) == work.batch:
            pass
    with connection.begin():
        catalog.see_all_rows(connection)
        if catalog.has_rows(connection, table.schema, step.name):
            why = f"rows in {table.schema}.{step.name} have nowhere to go"
            raise WorkFailed(table=str(table), what=what, reason=why)
    _insist(connection, transaction(ddl.DropTable(table.schema, step.name)), work, what)


def _locked(drain: Drain) -> list[Statement]:
    """Keep everybody out while rows are neither here nor there."""
    if drain.source is None:
        return []
    table, default = drain.step.table, drain.source.partition
    parent = ddl.LockAgainstAll(table.schema, table.name)
    lock = ddl.LockAgainstAll(default.schema, default.name)
    return [
        Statement(parent.sql(), f"ACCESS EXCLUSIVE on {table}, until the rows are attached"),
        Statement(lock.sql(), f"ACCESS EXCLUSIVE on {default.schema}.{default.name} (DEFAULT)"),
    ]


def _moving(drain: Drain, limit: int | None, *closing: ddl.Element) -> list[ddl.Element | Statement]:
    """Return what moves rows to a table that is not attached yet, in a transaction."""
    step, source = drain.step, drain.source
    if source is None:
        return [ddl.SeeAllRows(), *closing]
    part = source.partition
    move = ddl.MoveRows(
        (part.schema, part.name),
        (step.table.schema, step.name),
        source.columns,
        _key(step),
        step.table.grid.key_type,
        step.lower,
        step.upper,
        limit,
    )
    locks = f"ROW EXCLUSIVE on {part.schema}.{part.name}" if limit is not None else ""
    return [ddl.SeeAllRows(), *_silenced(source, Statement(move.sql(), locks)), *closing]


def _silenced(source: Source, moving: Statement) -> list[ddl.Element | Statement]:
    """Keep the triggers of a table quiet while rows move, and restore them in the same transaction."""
    where = source.partition.schema, source.partition.name
    locks = f"SHARE ROW EXCLUSIVE on {where[0]}.{where[1]}, whose writers wait for this transaction"
    return [
        *(Statement(ddl.Silence(*where, trigger).sql(), locks) for trigger in source.triggers),
        moving,
        *(ddl.Wake(*where, trigger) for trigger in source.triggers),
    ]


def _statement(element: ddl.Element, step: CreatePartition, drain: Drain) -> ddl.Element | Statement:
    if not isinstance(element, ddl.Attach):
        return element
    locks = attach_locks(step.table)
    if drain.how is not Staged.AT_ONCE:  # the foreign key of its own is merged into the parent's
        locks = locks.replace("SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE")
    return Statement(element.sql(), locks)


def _keyed(element: ddl.Element, step: CreatePartition) -> Statement:
    names = ", ".join(step.table.traits.key_tables)
    return Statement(element.sql(), f"SHARE ROW EXCLUSIVE on {names} (foreign key)")


def _key(step: CreatePartition) -> str:
    assert step.table.policy is not None
    return step.table.policy.key


def _insist(connection: Connection, batch: Batch, work: Drain, what: str) -> int:
    """Send a transaction until its locks are had; return how many rows it moved."""

    def attempt() -> int:
        rows = 0
        with connection.begin():
            for statement in batch.statements:
                count = _sent(connection, statement, work, what)
                rows += count if statement.sql.startswith(ddl.MOVING) else 0
        return rows

    relations = [work.step.table.oid or 0] + ([work.source.partition.oid] if work.source else [])
    return insist(
        attempt,
        connection,
        table=str(work.step.table),
        what=what,
        relations=relations,
        give_up_at=time.monotonic() + PATIENCE,
    )


def _sent(connection: Connection, statement: Statement, work: Drain, what: str) -> int:
    try:
        return send(connection, statement)
    except DBAPIError as error:
        if sqlstate(error) != _QUERY_CANCELED:
            raise
        # A second try would take as long, and keep others waiting once more.
        told = (
            f"{reason(error)}: its DEFAULT partition takes too long to read. CREATE INDEX CONCURRENTLY on its"
            " key, or move rows by hand"
        )
        raise WorkFailed(table=str(work.step.table), what=what, reason=told) from error


def took_too_long(failed: WorkFailed) -> bool:
    """Tell whether a statement was cancelled: the next window would take as long."""
    return isinstance(failed.__cause__, DBAPIError) and sqlstate(failed.__cause__) == _QUERY_CANCELED


def _lost_race(failed: WorkFailed) -> bool:
    return isinstance(failed.__cause__, DBAPIError) and sqlstate(failed.__cause__) in LOST_RACE


def _overlapped(connection: Connection, step: CreatePartition) -> bool:
    """Tell whether some partition stands in the window already."""
    with connection.begin():
        return bool(_touching(catalog.partitions_of(connection, step.table), step))


def _touching(parts: Sequence[Partition], step: CreatePartition) -> list[Partition]:
    found = in_order(part for part in parts if not part.is_default)
    return [
        part
        for part in found
        if (part.lower is None or part.lower < step.upper) and (part.upper is None or step.lower < part.upper)
    ]
