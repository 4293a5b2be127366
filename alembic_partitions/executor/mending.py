"""Partitions put right: each thing in a short transaction, indexes beside readers and writers."""

from __future__ import annotations

import time

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import ddl
from alembic_partitions.drivers import reason
from alembic_partitions.errors import WorkFailed
from alembic_partitions.plan import ManagedTable, Mend, Mending

from .statements import Batch, Statement, alone, apply, insist, transaction

#: CONCURRENTLY waits for transactions that began before it.
CONCURRENT_LOCK_TIMEOUT_MS = 30_000
CONCURRENT_STATEMENT_TIMEOUT_MS = 3_600_000
#: Seconds that the lock of one thing is tried for.
PATIENCE = 10.0


def mend_batches(mend: Mend) -> list[Batch]:
    """Return what is sent to put one thing right."""
    if mend.mending in (Mending.BUILD_INDEX, Mending.ATTACH_INDEX):
        return [*_built(mend), _attached(mend)]
    if mend.mending is Mending.DROP_INDEX:
        return [_beside(mend, ddl.DropIndex(mend.child.schema, mend.subject))]
    if mend.mending is Mending.REBUILD_INDEX:
        # It is attached already; told so once more, current releases look whether the parent's is valid now.
        return [_beside(mend, ddl.RebuildIndex(mend.child.schema, mend.subject)), _attached(mend)]
    lock = "SHARE UPDATE EXCLUSIVE" if mend.mending is Mending.STATISTICS else "ACCESS EXCLUSIVE"
    return [transaction(Statement(_alteration(mend).sql(), f"{lock} on {mend.child}"))]


def _alteration(mend: Mend) -> ddl.Element:
    child = mend.child.schema, mend.child.name
    if mend.mending is Mending.OWNER:
        return ddl.ChangeOwner(*child, mend.subject)
    if mend.mending is Mending.ROW_SECURITY:
        return ddl.SecureRows(*child)
    if mend.mending is Mending.STATISTICS:
        return ddl.ChangeStatistics(*child, mend.subject, mend.goal)
    return ddl.ChangeReplicaIdentity(*child, mend.subject, index=mend.of is not None)


def _built(mend: Mend) -> list[Batch]:
    if mend.mending is not Mending.BUILD_INDEX:
        return []
    assert mend.of is not None
    assert mend.of.body is not None
    build = ddl.BuildIndex(mend.child.schema, mend.child.name, mend.subject, mend.of.body, mend.of.unique)
    leftover = [ddl.DropIndex(mend.child.schema, mend.subject)] if mend.drop_first else []
    return [_beside(mend, *leftover, build)]


def _attached(mend: Mend) -> Batch:
    assert mend.of is not None
    attach = ddl.AttachIndex((mend.of.schema, mend.of.name), (mend.child.schema, mend.subject))
    locks = (
        f"SHARE UPDATE EXCLUSIVE on the index {mend.of.schema}.{mend.of.name}, ACCESS EXCLUSIVE on the"
        " partition's own"
    )
    statements = [Statement(attach.sql(), locks)]
    if mend.constrain and mend.of.constraint is not None:
        child = mend.child.schema, mend.child.name
        constrain = ddl.ConstrainByIndex(*child, mend.subject, mend.of.constraint)
        statements.insert(0, Statement(constrain.sql(), f"ACCESS EXCLUSIVE on {mend.child}"))
    return transaction(*statements)


def _beside(mend: Mend, *elements: ddl.Element) -> Batch:
    locks = f"SHARE UPDATE EXCLUSIVE on {mend.child}; waits for older transactions"
    return alone(
        *(Statement(element.sql(), locks) for element in elements),
        lock_timeout_ms=CONCURRENT_LOCK_TIMEOUT_MS,
        statement_timeout_ms=CONCURRENT_STATEMENT_TIMEOUT_MS,
    )


def mend_child(connection: Connection, table: ManagedTable, mend: Mend) -> None:
    """Put one thing right.

    :param connection: not in a transaction.
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused; what an index left half built is built anew by the next run.
    """
    what = f"mending partition {mend}"
    for batch in mend_batches(mend):
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
            give_up_at=time.monotonic() + PATIENCE,
        )
