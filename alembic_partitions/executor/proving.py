"""A test row, inserted and rolled back: proof that rows with a key find their partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate, told_of_row
from alembic_partitions.periods import KeyValue
from alembic_partitions.plan import ManagedTable

from .statements import Batch, Statement

PROOF_TIMEOUT_MS = 5_000
PROOF_LOCK_TIMEOUT_MS = 500

_CHECK_VIOLATION = "23514"
_REFUSALS = {"23502": "not-null", "23503": "foreign key", "23505": "unique", "23P01": "exclusion"}


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of one test row."""

    value: KeyValue
    #: The partition that it found; ``None`` where that was not to be told.
    partition: str | None
    #: Why PostgreSQL refused it all the same, or why nothing was to be told.
    refused: str | None = None
    #: PostgreSQL found no partition for it.
    missing: bool = False

    def __str__(self) -> str:
        if self.missing:
            return f"{self.value}: no partition"
        if self.partition is None:
            return f"{self.value}: not tried to the end; {self.refused}"
        routed = f"{self.value} goes to {self.partition}"
        return f"{routed} (refused there by {self.refused})" if self.refused else routed


def proof_script(table: ManagedTable, values: Sequence[KeyValue], columns: Sequence[str]) -> str:
    """Return what :func:`prove` sends, row by row, where the table holds a row to copy."""
    batches = [Batch(_statements(table, value, columns)).sql() for value in values]
    return "".join(batch.removesuffix("COMMIT;\n") + "ROLLBACK;\n" for batch in batches)


def prove(connection: Connection, table: ManagedTable, values: Sequence[KeyValue]) -> list[Proof]:
    """Insert a row for each key and roll it back.

    The newest row of the table is copied, or else there is the key alone. PostgreSQL looks for the partition
    before it checks anything of the row, so a refusal that names a partition proves the path as well.

    :param connection: not in a transaction.
    """
    with connection.begin():
        columns = catalog.copied_columns(connection, table)
    return [_prove(connection, table, value, columns) for value in values]


def _prove(connection: Connection, table: ManagedTable, value: KeyValue, columns: Sequence[str]) -> Proof:
    found = _tried(connection, table, value, columns)
    if found is None or (found.partition is None and not found.missing):
        # Nothing to copy, or not in time.
        found = _tried(connection, table, value, None) or found
    return found or Proof(value, None, "the row went nowhere; a trigger, perhaps")


def _statements(table: ManagedTable, value: KeyValue, columns: Sequence[str] | None) -> tuple[Statement, ...]:
    assert table.policy is not None
    assert table.key_type is not None
    row = ddl.TestRow(table.schema, table.name, table.policy.key, table.key_type, value, columns)
    bounds = ddl.SetStatementTimeout(PROOF_TIMEOUT_MS), ddl.SetLockTimeout(PROOF_LOCK_TIMEOUT_MS)
    return tuple(Statement(element.sql()) for element in (*bounds, row))


def _tried(
    connection: Connection, table: ManagedTable, value: KeyValue, columns: Sequence[str] | None
) -> Proof | None:
    """Try one row; ``None`` if none was inserted."""
    transaction = connection.begin()
    try:
        *bounds, row = _statements(table, value, columns)
        for statement in bounds:
            connection.exec_driver_sql(statement.sql, execution_options={"no_parameters": True})
        result = connection.exec_driver_sql(row.sql, execution_options={"no_parameters": True})
        partition = result.scalar()
        return None if partition is None else Proof(value, str(partition))
    except DBAPIError as error:
        return _judged(table, value, error)
    finally:
        transaction.rollback()


def _judged(table: ManagedTable, value: KeyValue, error: DBAPIError) -> Proof:
    told, code = told_of_row(error.orig or error), sqlstate(error)
    where, constraint = told["table_name"], told["constraint_name"]
    if code == _CHECK_VIOLATION and where and not constraint:
        return Proof(value, None, missing=True)
    if where and (told["schema_name"], where) != (table.schema, table.name):
        kind = _REFUSALS.get(code or "", "check")
        named = f"its own {kind} constraint" + (f" {constraint}" if constraint else "")
        return Proof(value, f"{told['schema_name']}.{where}", named)
    return Proof(value, None, reason(error))
