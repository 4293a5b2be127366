"""The way in of a migration: its own connection and transaction, or with ``--sql`` its script."""

from __future__ import annotations

from alembic.operations import Operations

from alembic_partitions import maintenance
from alembic_partitions.declare import Door


def door_of(operations: Operations) -> Door:
    """Return where the statements of a migration go."""
    migration = operations.migration_context
    return Door(
        execute=operations.execute,
        connection=None if migration.as_sql else migration.connection,
        told=maintenance.config_home(migration),
        remark=migration.impl.static_output,
    )
