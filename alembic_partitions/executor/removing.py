"""How a partition goes: detached, renamed or moved away, later dropped. Each step stands alone.

A process that is killed between two statements leaves a mark behind that tells the next run how far it came.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, PartitionError, WorkFailed
from alembic_partitions.plan import (
    ChangeFate,
    DetachPartition,
    DropDetached,
    How,
    KeepPartition,
    MoveDetached,
    RestoreDetached,
    as_partition,
    told_again,
    told_of,
)
from alembic_partitions.sessions import pause

from .creating import TURN_TIMEOUT_MS, attach_locks, shard_locks
from .statements import LOCK_TIMEOUT_MS, TRY_AGAIN, Batch, Statement, alone, apply, insist, transaction

#: Longest wait for those who use a partition that is being detached concurrently; nobody queues behind it.
DETACH_TIMEOUT_MS = 5_000
#: The same for FINALIZE, which keeps others from making partitions while it waits for older snapshots. One of
#: those may itself wait for a partition: between two tries it is made.
FINALIZE_TIMEOUT_MS = 500

_FOREIGN_KEY_VIOLATION = "23503"
_DOING: Mapping[type, str] = {
    DetachPartition: "Detaching",
    MoveDetached: "Archiving",
    DropDetached: "Dropping",
    RestoreDetached: "Restoring",
    ChangeFate: "Marking",
    KeepPartition: "Marking",
}

_Step: TypeAlias = (
    "DetachPartition | KeepPartition | MoveDetached | ChangeFate | DropDetached | RestoreDetached"
)


def detach_batches(step: DetachPartition) -> tuple[Batch, ...]:
    """Return what detaches a partition: one transaction, or three parts where it is done concurrently."""
    table, part = step.table, step.partition
    where = part.schema, part.name
    after_name = (step.archive_schema or part.schema, step.name)
    told = told_of(table, part, after_name)
    confirm = ddl.ConfirmPartition(*where, part.oid, _oid(step), part.bound)
    parent = ddl.qualified(table.schema, table.name)
    detach = ddl.Detach(*where, parent, step.how)
    last = _put_away(step, told)
    if step.how is How.PLAIN:
        locks = [f"ACCESS EXCLUSIVE on {table}"]
        locks += [
            f"ACCESS EXCLUSIVE on {p.schema}.{p.name} (DEFAULT)" for p in table.partitions if p.is_default
        ]
        plain = Statement(detach.sql(), "; ".join([*locks, *shard_locks(table)]))
        return (_in_turn(step, confirm, plain, *last),)
    after = _in_turn(step, ddl.ConfirmDetached(*where, part.oid), *last)
    if step.how is How.DONE:
        return (after,)
    if step.how is How.CONCURRENTLY:
        begin = [_in_turn(step, confirm, ddl.MarkDetaching(*where, told))]
    else:
        # Whoever began it may have left no mark; one that is there must not be lost: it tells the CHECKs.
        begin = [] if part.is_leaving else [_in_turn(step, ddl.MarkDetaching(*where, told))]
    waits = f"SHARE UPDATE EXCLUSIVE on {table}, then ACCESS EXCLUSIVE on {part.schema}.{part.name}"
    patience = FINALIZE_TIMEOUT_MS if step.how is How.FINALIZE else DETACH_TIMEOUT_MS
    middle = alone(Statement(detach.sql(), waits), lock_timeout_ms=patience)
    return (*begin, middle, after)


def detach(connection: Connection, step: DetachPartition, give_up_at: float | None = None) -> None:
    """Detach a partition.

    :param connection: not in a transaction.
    :param give_up_at: ``time.monotonic()`` after which there is no further try.
    :raises LockNotAvailable: the locks were not to be had; a DETACH CONCURRENTLY may be left half-way, for
        the next run to finish.
    :raises WorkFailed: PostgreSQL refused.
    """
    for batch in detach_batches(step):
        if batch.in_transaction:
            insist_on(connection, batch, step, give_up_at)
        else:
            _concurrently(connection, batch, step, give_up_at)


def move_batches(step: MoveDetached) -> tuple[Batch, ...]:
    """Return what moves a detached partition to the archive."""
    old = step.detached
    where, table = (old.schema, old.name), step.table
    assert old.at is not None
    told = told_of(table, as_partition(old), (step.archive_schema, step.name), old.export)
    first = ddl.ConfirmDetached(*where, old.oid), ddl.MarkAgain(*where, told, old.at)
    return (
        transaction(
            *first, *_move(*where, step.name, step.archive_schema), distributed=table.traits.distributed
        ),
    )


def fate_batches(step: ChangeFate) -> tuple[Batch, ...]:
    """Return what notes another on_expiry, from now on."""
    old = step.detached
    where = old.schema, old.name
    mark = ddl.MarkDetached(*where, told_again(step.table, old))
    return (
        transaction(ddl.ConfirmDetached(*where, old.oid), mark, distributed=step.table.traits.distributed),
    )


def keep_batches(step: KeepPartition) -> tuple[Batch, ...]:
    """Return what gives a partition its comment back."""
    return (_in_turn(step, ddl.MarkKept(step.partition.schema, step.partition.name)),)


def drop_batches(step: DropDetached) -> tuple[Batch, ...]:
    """Return what drops a detached partition: its foreign keys first, each in a transaction of its own."""
    old = step.detached
    where = old.schema, old.name
    confirm = ddl.ConfirmDetached(*where, old.oid)
    compare: list[ddl.Element | Statement] = []
    if old.export is not None:
        told = f"compared with {old.export.path}; if they differ, nothing is dropped"
        copy = ddl.CopyOut(*where, old.columns).sql()
        compare = [ddl.HoldStill(), Statement(copy, remark=told)]
    keys = [
        transaction(
            confirm,
            Statement(ddl.DropKey(*where, key).sql(), f"ACCESS EXCLUSIVE on {other}"),
            distributed=step.table.traits.distributed,
        )
        for key, other, _ in old.keys
    ]
    return (
        *keys,
        transaction(
            ddl.LockAgainstAll(*where, only=False),
            confirm,
            *compare,
            ddl.DropTable(*where),
            distributed=step.table.traits.distributed,
        ),
    )


def remove(connection: Connection, step: _Step, give_up_at: float | None = None) -> None:
    """Move, mark or drop what has been detached; raises as :func:`detach` does."""
    for batch in BATCHES[type(step)](step):
        insist_on(connection, batch, step, give_up_at)


def restore_batches(step: RestoreDetached) -> tuple[Batch, ...]:
    """Return what brings a detached partition back: its bounds proved first, where nobody waits for it."""
    table, old = step.table, step.detached
    assert table.policy is not None
    assert table.key_type is not None
    where, home = (old.schema, old.name), (old.home, step.name)
    confirm = ddl.ConfirmDetached(*where, old.oid)
    proof = ddl.ProveBound(*where, table.policy.key, table.key_type, old.lower, old.upper)
    away = old.schema != old.home
    moved = [ddl.MakeRoom(*where, old.home), ddl.SetSchema(*where, old.home)] if away else []
    renamed = [ddl.Rename(old.home, old.name, step.name)] if old.name != step.name else []
    attach = Statement(
        ddl.Reattach(*home, ddl.qualified(table.schema, table.name), old.bound).sql(), attach_locks(table)
    )
    last = [ddl.DropProof(*home), ddl.DropLeftCheck(*home), ddl.MarkRestored(*home)]
    return (
        transaction(
            ddl.SetStatementTimeout(0),
            confirm,
            ddl.DropProof(*where),
            proof,
            distributed=table.traits.distributed,
        ),
        _in_turn(step, ddl.SetStatementTimeout(0), confirm, *moved, *renamed, attach, *last),
    )


def restore(connection: Connection, step: RestoreDetached, give_up_at: float | None = None) -> None:
    """Attach what has been detached; raises as :func:`detach` does."""
    old = step.detached
    try:
        for batch in restore_batches(step):
            insist_on(connection, batch, step, give_up_at)
    except PartitionError:
        with suppress(DBAPIError):  # nothing of ours stays on it; where it does, the next try takes it away
            apply(
                connection,
                transaction(ddl.DropProof(old.schema, old.name), distributed=step.table.traits.distributed),
            )
        raise


def _put_away(step: DetachPartition, told: dict[str, object]) -> Sequence[ddl.Element | Statement]:
    part = step.partition
    where = part.schema, part.name
    cleaned = ddl.DropLeftCheck(*where)
    if step.reattach:
        parent = ddl.qualified(step.table.schema, step.table.name)
        attach = Statement(ddl.Reattach(*where, parent, part.bound).sql(), attach_locks(step.table))
        return [ddl.SetStatementTimeout(0), attach, cleaned, ddl.MarkRestored(*where)]
    first = [] if step.how is How.PLAIN else [cleaned]
    return [*first, ddl.MarkDetached(*where, told), *_move(*where, step.name, step.archive_schema)]


def _move(schema: str, name: str, to: str, archive_schema: str | None) -> list[ddl.Element]:
    # Where its name is taken, it is renamed on the way out.
    renamed: list[ddl.Element] = [] if to == name else [ddl.Rename(schema, name, to)]
    if archive_schema is None or archive_schema == schema:
        return renamed
    return [*renamed, ddl.MakeRoom(schema, to, archive_schema), ddl.SetSchema(schema, to, archive_schema)]


def _in_turn(
    step: DetachPartition | KeepPartition | RestoreDetached, *elements: ddl.Element | Statement
) -> Batch:
    """A transaction that begins when nobody else makes or removes partitions of the table."""
    opening = [ddl.LockParent(_oid(step)), ddl.SetLockTimeout(LOCK_TIMEOUT_MS)]
    return transaction(
        *opening, *elements, lock_timeout_ms=TURN_TIMEOUT_MS, distributed=step.table.traits.distributed
    )


def insist_on(
    connection: Connection,
    batch: Batch,
    step: _Step,
    give_up_at: float | None = None,
) -> None:
    """Send a batch until its locks are had; raises as :func:`detach` does."""
    name, oid = _subject(step)
    relations = [oid, *([step.table.oid] if step.table.oid else [])]
    relations += [other for _, _, other in step.detached.keys] if isinstance(step, DropDetached) else []
    what = f"{_DOING[type(step)]} {name}"
    insist(
        lambda: apply(connection, batch),
        connection,
        table=str(step.table),
        what=what,
        relations=relations,
        give_up_at=give_up_at,
    )


def _subject(step: _Step) -> tuple[str, int]:
    if isinstance(step, (DetachPartition, KeepPartition)):
        return step.partition.name, step.partition.oid
    return step.detached.name, step.detached.oid


def _concurrently(
    connection: Connection, batch: Batch, step: DetachPartition, give_up_at: float | None
) -> None:
    deadline = time.monotonic() + 10 if give_up_at is None else give_up_at
    part, oid = step.partition, _oid(step)
    finalize = ddl.Detach(
        part.schema, part.name, ddl.qualified(step.table.schema, step.table.name), How.FINALIZE
    )
    with connection.begin():
        state = catalog.detach_state(connection, part.oid)
    if state == "attached":
        # One that has used the table for long would only leave it half detached.
        slow = _slow(connection, oid)
        if slow:
            _leave_no_mark(connection, step)
            raise LockNotAvailable(table=str(step.table), reason="; ".join(map(str, slow)))
    while state not in ("detached", "gone"):
        if state == "pending":
            batch = alone(finalize, lock_timeout_ms=FINALIZE_TIMEOUT_MS)
        try:
            apply(connection, batch)
            return
        except DBAPIError as error:
            if sqlstate(error) not in TRY_AGAIN:
                if not error.connection_invalidated:
                    _leave_no_mark(connection, step)
                raise _refused(step, error) from error
            if time.monotonic() > deadline:
                with connection.begin():
                    told = "; ".join(map(str, catalog.holders(connection, [oid, part.oid])))
                _leave_no_mark(connection, step)
                raise LockNotAvailable(table=str(step.table), reason=told or reason(error)) from error
        pause(connection, random.uniform(0.1, 0.3))
        with connection.begin():
            state = catalog.detach_state(connection, part.oid)


def _slow(connection: Connection, oid: int) -> list[catalog.Blocker]:
    """Return who has used a table for longer than a DETACH would wait.

    Since when, PostgreSQL tells of this role's own sessions alone; the others are waited for.
    """
    deadline = time.monotonic() + DETACH_TIMEOUT_MS / 1000
    seen: set[str] | None = None
    while True:
        with connection.begin():
            holders = catalog.holders(connection, [oid])
        slow = [h for h in holders if h.seconds is not None and h.seconds > DETACH_TIMEOUT_MS / 1000]
        hidden = [h for h in holders if h.seconds is None and (seen is None or h.transaction in seen)]
        if slow or not hidden or time.monotonic() > deadline:
            return slow or hidden
        seen = {holder.transaction for holder in hidden}
        pause(connection, 0.1)


def _leave_no_mark(connection: Connection, step: DetachPartition) -> None:
    """Give a partition its comment back whose DETACH has not begun; the next run does where this fails."""
    if step.how is not How.CONCURRENTLY:
        return
    with suppress(DBAPIError):
        with connection.begin():
            attached = catalog.detach_state(connection, step.partition.oid) == "attached"
        if attached:
            apply(connection, *keep_batches(KeepPartition(step.table, step.partition)))


def _refused(step: DetachPartition, error: DBAPIError) -> WorkFailed:
    told = reason(error)
    if sqlstate(error) == _FOREIGN_KEY_VIOLATION:
        told += ". Delete the rows that refer to it first, or drop the foreign key"
    return WorkFailed(table=str(step.table), what=f"Detaching {step.partition.name}", reason=told)


def _oid(step: DetachPartition | KeepPartition | RestoreDetached) -> int:
    assert step.table.oid is not None
    return step.table.oid


#: What each kind of step sends.
BATCHES: Mapping[type, Callable[[Any], tuple[Batch, ...]]] = {
    DetachPartition: detach_batches,
    KeepPartition: keep_batches,
    MoveDetached: move_batches,
    ChangeFate: fate_batches,
    DropDetached: drop_batches,
    RestoreDetached: restore_batches,
}
