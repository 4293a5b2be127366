"""Functions for people in psql, put into the database and taken out of it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from alembic_partitions import ddl
from alembic_partitions.declare import ensure_our_tables

from .doors import door_of

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext


@Operations.register_operation("create_partition_functions")
class CreatePartitionFunctionsOp(MigrateOperation):
    """Put the SQL functions into the database."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema

    @classmethod
    def create_partition_functions(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Put the functions for people in psql into the database: ``partition_health_summary()``,
        ``list_partitions()``, ``create_daily_partitions()``, ``create_future_partitions(table, n)``,
        ``analyze_partitions(table)``, ``drop_old_partitions(table, retention, dry_run)``,
        ``run_partition_maintenance(table, dry_run)``, and the view ``partition_metadata``.

        They run with the rights of whoever calls them. Run it again in a later migration to have those of a
        later version.

        :param schema: where they go; by default where partition_config lives.
        """
        operations.invoke(cls(schema))

    def reverse(self) -> DropPartitionFunctionsOp:
        """Return the operation that undoes this one."""
        return DropPartitionFunctionsOp(self.schema)

    def to_diff_tuple(self) -> tuple[str, str | None]:
        """Return the change as autogenerate reports it."""
        return "create_partition_functions", self.schema


@Operations.register_operation("drop_partition_functions")
class DropPartitionFunctionsOp(MigrateOperation):
    """The reverse of create_partition_functions."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema

    @classmethod
    def drop_partition_functions(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Remove the functions that ``op.create_partition_functions`` put into a schema, and nothing else: no
        row, no partition, no policy hangs on them.

        :param schema: where they are; by default where partition_config lives.
        """
        operations.invoke(cls(schema))

    def reverse(self) -> CreatePartitionFunctionsOp:
        """Return the operation that undoes this one."""
        return CreatePartitionFunctionsOp(self.schema)

    def to_diff_tuple(self) -> tuple[str, str | None]:
        """Return the change as autogenerate reports it."""
        return "drop_partition_functions", self.schema


@Operations.implementation_for(CreatePartitionFunctionsOp)
def _create_functions(operations: Operations, operation: CreatePartitionFunctionsOp) -> None:
    door = door_of(operations, operation.schema)
    home = ensure_our_tables(door)
    for element in ddl.function_elements(operation.schema, home):
        door.execute(element)


@Operations.implementation_for(DropPartitionFunctionsOp)
def _drop_functions(operations: Operations, operation: DropPartitionFunctionsOp) -> None:
    door = door_of(operations, operation.schema)
    home = door.home
    door.execute(ddl.DropFunctions(operation.schema if operation.schema is not None else home, home))


@renderers.dispatch_for(CreatePartitionFunctionsOp)
def _render_create(context: AutogenContext, operation: CreatePartitionFunctionsOp) -> str:
    return _rendered(context, "create_partition_functions", operation.schema)


@renderers.dispatch_for(DropPartitionFunctionsOp)
def _render_drop(context: AutogenContext, operation: DropPartitionFunctionsOp) -> str:
    return _rendered(context, "drop_partition_functions", operation.schema)


def _rendered(context: AutogenContext, name: str, schema: str | None) -> str:
    prefix = context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}{name}({f'schema={schema!r}' if schema else ''})"
