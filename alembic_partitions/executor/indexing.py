"""The index of a partitioned table itself: a moment's lock, asked for in short tries."""

from __future__ import annotations

import time
from collections.abc import Collection

from sqlalchemy import Connection, Index

from alembic_partitions import catalog, ddl, plan

from .statements import Statement, apply, insist, send, transaction

#: Seconds that the lock on the table is tried for. Nobody waits for us longer than one try.
PATIENCE = 30.0
#: A DROP waits for one partition after the other, and all the while keeps readers from the first.
DROP_TIMEOUT_MS = 1_000


def place_index(connection: Connection, index: Index, table: int, *, distributed: bool = False) -> None:
    """Make an index ON ONLY a partitioned table, for its partitions to be attached to.

    :param connection: not in a transaction.
    :param index: of a table that names its schema.
    :param table: the table's OID.
    :param distributed: whether Citus has distributed it.
    :raises LockNotAvailable: the lock was not to be had.
    :raises WorkFailed: PostgreSQL refused; nothing was changed.
    """
    name = str(ddl.indexed_table(index))
    create = Statement(ddl.CreateIndexOnly(index).sql(), f"SHARE on {name}")
    insist(
        lambda: apply(connection, transaction(create, distributed=distributed)),
        connection,
        table=name,
        what=f"creating index {index.name}",
        relations=[table],
        give_up_at=time.monotonic() + PATIENCE,
    )


def tried_index(connection: Connection, index: Index) -> plan.Index:
    """Return an index as PostgreSQL writes it down: made of a temporary table, and rolled back.

    :param connection: not in a transaction.
    :raises LockNotAvailable: the table could not even be read.
    :raises WorkFailed: PostgreSQL refused.
    """
    table = ddl.indexed_table(index)
    probe = transaction(ddl.CreateProbe(str(table.schema), table.name), ddl.CreateIndexOnProbe(index))
    found: list[plan.Index] = []

    def look() -> int:
        with connection.begin() as trial:
            for statement in probe.statements:
                send(connection, statement)
            oid = catalog.resolve(connection, ddl.PROBE_SCHEMA, ddl.PROBE)
            assert oid is not None
            catalog.see_all_rows(connection)
            found[:] = catalog.indexes_of(connection, oid)
            trial.rollback()
        return 0

    insist(look, connection, table=str(table), what=f"trying out index {index.name}")
    return found[0]


def drop_index(
    connection: Connection,
    schema: str,
    name: str,
    *,
    table: str,
    relations: Collection[int],
    distributed: bool = False,
) -> None:
    """Drop the index of a partitioned table, and with it each partition's.

    PostgreSQL has nothing gentler: ACCESS EXCLUSIVE on the table and its partitions, for the blink of an eye.

    :param connection: not in a transaction.
    :param relations: the OIDs of the table and its partitions.
    :param distributed: whether Citus has distributed it.
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused.
    """
    drop = Statement(
        ddl.DropPartitionedIndex(schema, name).sql(), f"ACCESS EXCLUSIVE on {table} and its partitions"
    )
    batch = transaction(ddl.SetStatementTimeout(DROP_TIMEOUT_MS), drop, distributed=distributed)
    insist(
        lambda: apply(connection, batch),
        connection,
        table=table,
        what=f"dropping index {name}",
        relations=relations,
        give_up_at=time.monotonic() + PATIENCE,
    )
