"""How a partition goes: detached, renamed or moved away, later dropped. Each step stands alone.

A process that is killed between two statements leaves a mark behind that tells the next run how far it came.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, WorkFailed
from alembic_partitions.plan import (
    DETACHING_MARK,
    DetachPartition,
    DropDetached,
    How,
    MoveDetached,
    RestoreDetached,
    told_of,
)
from alembic_partitions.sessions import pause

from .creating import TURN_TIMEOUT_MS, attach_locks
from .statements import LOCK_TIMEOUT_MS, TRY_AGAIN, Batch, Statement, alone, apply, insist, transaction

#: Longest wait for those who use a partition that is being detached concurrently; nobody queues behind it.
DETACH_TIMEOUT_MS = 5_000

_FOREIGN_KEY_VIOLATION = "23503"
_DOING: Mapping[type, str] = {
    DetachPartition: "Detaching",
    MoveDetached: "Archiving",
    DropDetached: "Dropping",
    RestoreDetached: "Restoring",
}

_Step: TypeAlias = "DetachPartition | MoveDetached | DropDetached | RestoreDetached"


def detach_batches(step: DetachPartition) -> tuple[Batch, ...]:
    """Return what detaches a partition: one transaction, or three parts where it is done concurrently."""
    table, part = step.table, step.partition
    where = part.schema, part.name
    told = told_of(table, part.name, part.schema, part.bound)
    confirm = ddl.ConfirmPartition(*where, part.oid, _oid(step), part.bound)
    parent = ddl.qualified(table.schema, table.name)
    detach = ddl.Detach(*where, parent, step.how)
    last = _put_away(step, told)
    if step.how is How.PLAIN:
        locks = [f"ACCESS EXCLUSIVE on {table}"]
        locks += [
            f"ACCESS EXCLUSIVE on {p.schema}.{p.name} (DEFAULT)" for p in table.partitions if p.is_default
        ]
        plain = Statement(detach.sql(), "; ".join(locks))
        return (_in_turn(step, confirm, plain, *last),)
    after = _in_turn(step, ddl.ConfirmDetached(*where, part.oid), *last)
    if step.how is How.DONE:
        return (after,)
    if step.how is How.CONCURRENTLY:
        begin = [_in_turn(step, confirm, ddl.MarkDetaching(*where, told))]
    else:
        # Whoever began it may have left no mark; one that is there must not be lost: it tells the CHECKs.
        begin = [] if _has_mark(step) else [_in_turn(step, ddl.MarkDetaching(*where, told))]
    waits = f"SHARE UPDATE EXCLUSIVE on {table}, then ACCESS EXCLUSIVE on {part.schema}.{part.name}"
    middle = alone(Statement(detach.sql(), waits), lock_timeout_ms=DETACH_TIMEOUT_MS)
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
            _insist(connection, batch, step, give_up_at)
        else:
            _concurrently(connection, batch, step, give_up_at)


def move_batches(step: MoveDetached) -> tuple[Batch, ...]:
    """Return what moves a detached partition to the archive."""
    old = step.detached
    elements = [ddl.ConfirmDetached(old.schema, old.name, old.oid)]
    return (transaction(*elements, *_move(old.schema, old.name, step.name, step.archive_schema)),)


def drop_batches(step: DropDetached) -> tuple[Batch, ...]:
    """Return what drops a detached partition: its foreign keys first, each in a transaction of its own."""
    old = step.detached
    where = old.schema, old.name
    confirm = ddl.ConfirmDetached(*where, old.oid)
    keys = [
        transaction(confirm, Statement(ddl.DropKey(*where, key).sql(), f"ACCESS EXCLUSIVE on {other}"))
        for key, other in old.keys
    ]
    return (*keys, transaction(ddl.LockAlone(*where), confirm, ddl.DropDetachedTable(*where)))


def remove(
    connection: Connection, step: MoveDetached | DropDetached, give_up_at: float | None = None
) -> None:
    """Move or drop what has been detached; raises as :func:`detach` does."""
    batches = drop_batches(step) if isinstance(step, DropDetached) else move_batches(step)
    for batch in batches:
        _insist(connection, batch, step, give_up_at)


def restore_batches(step: RestoreDetached) -> tuple[Batch, ...]:
    """Return what brings a detached partition back: its bounds proved first, where nobody waits for it."""
    table, old = step.table, step.detached
    assert table.policy is not None
    assert table.key_type is not None
    where, home = (old.schema, old.name), (table.schema, step.name)
    confirm = ddl.ConfirmDetached(*where, old.oid)
    proof = ddl.ProveBound(*where, table.policy.key, table.key_type, old.lower, old.upper)
    moved = [ddl.SetSchema(*where, table.schema)] if old.schema != table.schema else []
    renamed = [ddl.Rename(table.schema, old.name, step.name)] if old.name != step.name else []
    attach = Statement(
        ddl.Reattach(*home, ddl.qualified(table.schema, table.name), old.bound).sql(), attach_locks(table)
    )
    last = [ddl.DropProof(*home), ddl.MarkRestored(*home)]
    return (
        transaction(confirm, ddl.DropProof(*where), proof),
        _in_turn(step, confirm, *moved, *renamed, attach, *last),
    )


def restore(connection: Connection, step: RestoreDetached, give_up_at: float | None = None) -> None:
    """Attach what has been detached; raises as :func:`detach` does."""
    for batch in restore_batches(step):
        _insist(connection, batch, step, give_up_at)


def _put_away(step: DetachPartition, told: dict[str, object]) -> Sequence[ddl.Element | Statement]:
    part = step.partition
    where = part.schema, part.name
    cleaned = ddl.DropLeftCheck(*where)
    if step.reattach:
        parent = ddl.qualified(step.table.schema, step.table.name)
        return [ddl.Reattach(*where, parent, part.bound), cleaned, ddl.MarkRestored(*where)]
    first = [] if step.how is How.PLAIN else [cleaned]
    return [*first, ddl.MarkDetached(*where, told), *_move(*where, step.name, step.archive_schema)]


def _move(schema: str, name: str, to: str, archive_schema: str | None) -> list[ddl.Element]:
    # Where its name is taken, it is renamed on the way out.
    renamed: list[ddl.Element] = [] if to == name else [ddl.Rename(schema, name, to)]
    moved: list[ddl.Element] = (
        [] if archive_schema in (None, schema) else [ddl.SetSchema(schema, to, str(archive_schema))]
    )
    return [*renamed, *moved]


def _in_turn(step: DetachPartition | RestoreDetached, *elements: ddl.Element | Statement) -> Batch:
    """A transaction that begins when nobody else makes or removes partitions of the table."""
    opening = [ddl.LockParent(_oid(step)), ddl.SetLockTimeout(LOCK_TIMEOUT_MS)]
    return transaction(*opening, *elements, lock_timeout_ms=TURN_TIMEOUT_MS)


def _insist(
    connection: Connection,
    batch: Batch,
    step: _Step,
    give_up_at: float | None,
) -> None:
    name, oid = _subject(step)
    relations = [oid, *([step.table.oid] if step.table.oid else [])]
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
    if isinstance(step, DetachPartition):
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
    while True:
        with connection.begin():
            state = catalog.detach_state(connection, part.oid)
            # One that has used the table for long would only leave it half detached.
            slow = catalog.holders(connection, [oid], seconds=DETACH_TIMEOUT_MS / 1000)
        if state in ("detached", "gone"):
            return
        if slow and state == "attached":
            raise LockNotAvailable(table=str(step.table), reason="; ".join(map(str, slow)))
        if state == "pending":
            batch = alone(finalize, lock_timeout_ms=DETACH_TIMEOUT_MS)
        try:
            apply(connection, batch)
            return
        except DBAPIError as error:
            if sqlstate(error) not in TRY_AGAIN:
                raise _refused(step, error) from error
            if time.monotonic() > deadline:
                with connection.begin():
                    told = "; ".join(map(str, catalog.holders(connection, [oid, part.oid])))
                raise LockNotAvailable(table=str(step.table), reason=told or reason(error)) from error
        pause(connection, random.uniform(0.1, 0.3))


def _refused(step: DetachPartition, error: DBAPIError) -> WorkFailed:
    told = reason(error)
    if sqlstate(error) == _FOREIGN_KEY_VIOLATION:
        told += ". Delete the rows that refer to it first, or drop the foreign key"
    return WorkFailed(table=str(step.table), what=f"Detaching {step.partition.name}", reason=told)


def _has_mark(step: DetachPartition) -> bool:
    return step.partition.mark is not None and step.partition.mark.startswith(DETACHING_MARK)


def _oid(step: DetachPartition | RestoreDetached) -> int:
    assert step.table.oid is not None
    return step.table.oid
