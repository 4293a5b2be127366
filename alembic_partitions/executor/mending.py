"""Partitions put right: each thing in a short transaction, indexes beside readers and writers."""

from __future__ import annotations

import time

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import ddl
from alembic_partitions.drivers import reason
from alembic_partitions.errors import WorkFailed
from alembic_partitions.plan import ManagedTable, Mend, Mending, Relation

from .statements import Batch, Statement, alone, apply, insist, transaction

#: CONCURRENTLY waits for transactions that began before it.
CONCURRENT_LOCK_TIMEOUT_MS = 30_000
CONCURRENT_STATEMENT_TIMEOUT_MS = 3_600_000
#: The same where nobody wants to begin again because a report took its time. Behind such a wait nobody queues
#: but other DDL on that partition.
UNHURRIED_LOCK_TIMEOUT_MS = 600_000
UNHURRIED_STATEMENT_TIMEOUT_MS = 0
#: Seconds that the lock of one thing is tried for.
PATIENCE = 10.0
UNHURRIED_PATIENCE = 60.0


def mend_batches(mend: Mend, unhurried: bool = False) -> list[Batch]:
    """Return what is sent to put one thing right."""
    if mend.mending is Mending.BUILD_INDEX and mend.child.kind == "p":
        place = [Statement(element.sql()) for element in _tablespace(mend, local=True)]
        return [_attached(mend, *place, Statement(_build(mend).sql(), f"SHARE on {mend.child}"))]
    if mend.mending in (Mending.BUILD_INDEX, Mending.ATTACH_INDEX):
        return [*_built(mend, unhurried), _attached(mend)]
    if mend.mending is Mending.DROP_INDEX:
        return [_beside(mend, unhurried, ddl.DropIndex(mend.child.schema, mend.subject))]
    if mend.mending is Mending.REBUILD_INDEX:
        # It is attached already; told so once more, current releases look whether the parent's is valid now.
        rebuild = ddl.RebuildIndex(mend.child.schema, mend.subject)
        return [_beside(mend, unhurried, rebuild), _attached(mend)]
    lock = "SHARE UPDATE EXCLUSIVE" if mend.mending is Mending.STATISTICS else "ACCESS EXCLUSIVE"
    alteration = Statement(_alteration(mend).sql(), f"{lock} on {mend.child}")
    return [transaction(alteration, distributed=mend.child.distributed)]


def _alteration(mend: Mend) -> ddl.Element:
    child = mend.child.schema, mend.child.name
    if mend.mending is Mending.OWNER:
        return ddl.ChangeOwner(*child, mend.subject)
    if mend.mending is Mending.ROW_SECURITY:
        return ddl.SecureRows(*child)
    if mend.mending is Mending.STATISTICS:
        return ddl.ChangeStatistics(*child, mend.subject, mend.goal)
    return ddl.ChangeReplicaIdentity(*child, mend.subject, index=mend.of is not None)


def _built(mend: Mend, unhurried: bool) -> list[Batch]:
    if mend.mending is not Mending.BUILD_INDEX:
        return []
    leftover = [ddl.DropIndex(mend.child.schema, mend.subject)] if mend.drop_first else []
    return [_beside(mend, unhurried, *leftover, *_tablespace(mend, local=False), _build(mend))]


def _tablespace(mend: Mend, *, local: bool) -> list[ddl.Element]:
    place = mend.of and mend.of.tablespace
    return [ddl.SetTablespace(place, local)] if place else []


def _build(mend: Mend) -> ddl.BuildIndex:
    assert mend.of is not None
    assert mend.of.body is not None
    child, only = mend.child, mend.child.kind == "p"
    return ddl.BuildIndex(child.schema, child.name, mend.subject, mend.of.body, mend.of.unique, only)


def _attached(mend: Mend, *before: Statement) -> Batch:
    assert mend.of is not None
    attach = ddl.AttachIndex((mend.of.schema, mend.of.name), (mend.child.schema, mend.subject))
    locks = (
        f"SHARE UPDATE EXCLUSIVE on the index {mend.of.schema}.{mend.of.name}, ACCESS EXCLUSIVE on the"
        " partition's own"
    )
    statements = [*before, Statement(attach.sql(), locks)]
    if mend.constrain and mend.of.constraint is not None:
        child = mend.child.schema, mend.child.name
        constrain = ddl.ConstrainByIndex(*child, mend.subject, mend.of.constraint)
        statements.insert(0, Statement(constrain.sql(), f"ACCESS EXCLUSIVE on {mend.child}"))
    return transaction(*statements, distributed=mend.child.distributed)


def _beside(mend: Mend, unhurried: bool, *elements: ddl.Element) -> Batch:
    locks = f"SHARE UPDATE EXCLUSIVE on {mend.child}; waits for older transactions"
    places = [element for element in elements if isinstance(element, ddl.SetTablespace)]
    return alone(
        *(Statement(element.sql(), "" if element in places else locks) for element in elements),
        lock_timeout_ms=UNHURRIED_LOCK_TIMEOUT_MS if unhurried else CONCURRENT_LOCK_TIMEOUT_MS,
        statement_timeout_ms=UNHURRIED_STATEMENT_TIMEOUT_MS if unhurried else CONCURRENT_STATEMENT_TIMEOUT_MS,
        reset=["default_tablespace"] if places else [],
    )


def mend_child(
    connection: Connection, table: ManagedTable | Relation, mend: Mend, *, unhurried: bool = False
) -> None:
    """Put one thing right.

    :param connection: not in a transaction.
    :param unhurried: wait for older transactions, and build, as long as it takes.
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused; what an index left half built is built anew by the next run.
    """
    what = f"mending partition {mend}"
    for batch in mend_batches(mend, unhurried):
        if not batch.in_transaction:
            # Not again in this run: each try waits as long as it may.
            try:
                apply(connection, batch)
            except DBAPIError as error:
                raise WorkFailed(table=str(table), what=what, reason=reason(error)) from error
            continue
        insist(
            lambda batch=batch: apply(connection, batch),  # type: ignore[misc]
            connection,
            table=str(table),
            what=what,
            relations=[mend.child.oid],
            give_up_at=time.monotonic() + (UNHURRIED_PATIENCE if unhurried else PATIENCE),
        )
