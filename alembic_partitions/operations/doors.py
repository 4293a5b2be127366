"""The way in of a migration: its own connection and transaction, or with ``--sql`` its script; and the way
out of that transaction, for what PostgreSQL runs in none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from alembic.operations import Operations
from sqlalchemy import Connection, false, func, select

from alembic_partitions import maintenance
from alembic_partitions.declare import Door
from alembic_partitions.naming import check_name, check_text
from alembic_partitions.sessions import in_autocommit, side_connection

_CARRIED = ("search_path", "role")


def door_of(operations: Operations, schema: str | None = None, *names: str | None) -> Door:
    """Return where the statements of a migration go.

    :param names: of tables and indexes that it speaks of.
    :raises PolicyError: no name of PostgreSQL's can be like one of them, or like ``schema``.
    """
    check_text("schema", schema)
    for name in names:
        check_name("name", name)
    migration = operations.migration_context
    return Door(
        execute=operations.execute,
        connection=None if migration.as_sql else migration.connection,
        told=maintenance.config_home(migration),
        remark=migration.impl.static_output,
    )


def may_leave(operations: Operations) -> bool:
    """Tell whether Alembic can commit what the migration has done so far."""
    migration = operations.migration_context
    assert migration.connection is not None
    ours = migration._transaction is not None  # noqa: SLF001  # Alembic itself merely asserts it
    return ours or not migration.connection.in_transaction() or in_autocommit(migration.connection)


@contextmanager
def outside(operations: Operations) -> Iterator[Connection]:
    """Commit what the migration has done so far, as Alembic's ``autocommit_block()`` does, and open a second
    connection beside its own: as the same role, with the same search_path, and transactions of its own."""
    migration = operations.migration_context
    assert migration.connection is not None
    block = nullcontext() if in_autocommit(migration.connection) else migration.autocommit_block()
    with block, side_connection(migration.connection.engine) as connection:
        settings = migration.connection.execute(select(*map(func.current_setting, _CARRIED))).one()
        named = zip(_CARRIED, settings, strict=True)
        with connection.begin():
            connection.execute(select(*(func.set_config(name, value, false()) for name, value in named)))
        yield connection
