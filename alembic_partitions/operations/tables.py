"""Create and drop a partitioned table, on Alembic's own CREATE TABLE and DROP TABLE."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import render_op_text, renderers
from alembic.operations import Operations
from alembic.operations.ops import CreateTableOp, DropTableOp
from sqlalchemy import Table
from sqlalchemy.schema import SchemaItem

from alembic_partitions.declare import declare, ensure_our_tables, forget, free_others
from alembic_partitions.errors import PolicyError
from alembic_partitions.policy import INFO_KEY, PartitionPolicy

from .doors import door_of

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext


@Operations.register_operation("create_partitioned_table")
class CreatePartitionedTableOp(CreateTableOp):
    """Create a partitioned table, its policy and its first partitions.

    A kind of Alembic's own operation: what a project does to every CreateTableOp it does to this one.
    """

    def __init__(
        self, table_name: str, columns: Sequence[SchemaItem], *, policy: PartitionPolicy, **kw: Any
    ) -> None:
        if not isinstance(policy, PartitionPolicy):
            raise PolicyError(
                field="policy",
                problem=f"{policy!r} is no PartitionPolicy",
                remedy="Pass policy=PartitionPolicy(...).",
            )
        if "postgresql_partition_by" in kw or any(isinstance(item, PartitionPolicy) for item in columns):
            raise PolicyError(
                field="key",
                problem=f"create_partitioned_table({table_name!r}) is told twice how to partition",
                remedy="Leave it to policy=.",
            )
        super().__init__(table_name, columns, **kw)
        self.policy = policy

    @classmethod
    def create_partitioned_table(
        cls,
        operations: Operations,
        table_name: str,
        *columns: SchemaItem,
        policy: PartitionPolicy,
        schema: str | None = None,
        **kw: Any,
    ) -> Table:
        """Create a table partitioned as ``policy`` says, with its first windows: rows can go in at once.

        :param columns: as for ``op.create_table``; the primary key holds the partition key.
        :param kw: further arguments of ``op.create_table``, such as ``comment``.
        :return: the table, as ``op.create_table`` does.
        :raises PolicyError: the policy does not fit the table; nothing was sent.
        :raises ConfigurationError: a partition_config that is not ours is in the way.
        """
        operation = cls(table_name, columns, policy=policy, schema=schema, **kw)
        table: Table = operations.invoke(operation)
        return table

    @classmethod
    def of(cls, operation: CreateTableOp, policy: PartitionPolicy) -> CreatePartitionedTableOp:
        """Return what creates the table of ``operation`` partitioned."""
        kw = {name: value for name, value in operation.kw.items() if name != "postgresql_partition_by"}
        return cls(
            operation.table_name,
            operation.columns,
            policy=policy,
            schema=operation.schema,
            if_not_exists=operation.if_not_exists,
            info={name: value for name, value in operation.info.items() if name != INFO_KEY},
            comment=operation.comment,
            prefixes=operation.prefixes,
            _namespace_metadata=operation._namespace_metadata,  # noqa: SLF001  # as Alembic hands it on
            _constraints_included=operation._constraints_included,  # noqa: SLF001
            **kw,
        )

    def reverse(self) -> DropPartitionedTableOp:
        """Return the operation that undoes this one."""
        return DropPartitionedTableOp(self.table_name, schema=self.schema, recreate=self)

    def to_diff_tuple(self) -> tuple[str, Table]:
        """Return the change as autogenerate reports it."""
        return "add_partitioned_table", self.to_table()

    def to_table(self, migration_context: MigrationContext | None = None) -> Table:
        """Return the table, PARTITION BY and all."""
        table = super().to_table(migration_context)
        by = self.policy.partition_by
        if migration_context is not None:
            by = self.policy.partition_by_for(migration_context.dialect.identifier_preparer)
        table.dialect_options["postgresql"]["partition_by"] = by
        return table


@Operations.register_operation("drop_partitioned_table")
class DropPartitionedTableOp(DropTableOp):
    """Drop a partitioned table with the partitions that we made, and forget its policy."""

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        if_exists: bool | None = None,
        recreate: CreatePartitionedTableOp | None = None,
    ) -> None:
        super().__init__(table_name, schema=schema, if_exists=if_exists, _reverse=recreate)

    @classmethod
    def drop_partitioned_table(
        cls,
        operations: Operations,
        table_name: str,
        *existing_columns: SchemaItem,
        existing_policy: PartitionPolicy | None = None,
        schema: str | None = None,
        if_exists: bool | None = None,
        **kw: Any,
    ) -> None:
        """Drop a partitioned table and its partitions.

        A partition that lacks our mark (attached by hand) is detached first and stays as a table.

        :param existing_columns: with ``existing_policy``, what the reverse needs to create it again.
        :param kw: further arguments that it was created with, such as ``comment``.
        """
        recreate = None
        if existing_policy is not None:
            recreate = CreatePartitionedTableOp(
                table_name, existing_columns, policy=existing_policy, schema=schema, **kw
            )
        operations.invoke(cls(table_name, schema=schema, if_exists=if_exists, recreate=recreate))

    def reverse(self) -> CreatePartitionedTableOp:
        """Return the operation that undoes this one."""
        recreate = self._reverse
        if not isinstance(recreate, CreatePartitionedTableOp):
            raise ValueError(
                f"drop_partitioned_table({self.table_name!r}) needs its columns and existing_policy="
                " to be reversed"
            )
        return recreate

    def to_diff_tuple(self) -> tuple[str, Table]:
        """Return the change as autogenerate reports it."""
        return "remove_partitioned_table", self.to_table()


# -- what they do ---------------------------------------------------------------------------------------


@Operations.implementation_for(CreatePartitionedTableOp)
def _create_partitioned_table(operations: Operations, operation: CreatePartitionedTableOp) -> Table:
    door = door_of(operations, operation.schema, operation.table_name)
    policy, table = operation.policy, operation.to_table(operations.migration_context)
    key_type = policy.check_table(table)
    home = ensure_our_tables(door)
    options = {} if operation.if_not_exists is None else {"if_not_exists": operation.if_not_exists}
    operations.impl.create_table(table, **options)
    declare(door, home, operation.schema, table.name, policy, key_type)
    return table


@Operations.implementation_for(DropPartitionedTableOp)
def _drop_partitioned_table(operations: Operations, operation: DropPartitionedTableOp) -> None:
    door = door_of(operations, operation.schema, operation.table_name)
    home = ensure_our_tables(door)
    schema = door.schema_of(operation.schema, operation.table_name)
    free_others(door, operation.schema, operation.table_name)
    if door.connection is None:  # while its name still tells a script which table is meant
        forget(door, home, schema, operation.table_name)
    operations.invoke(
        DropTableOp(operation.table_name, schema=operation.schema, if_exists=operation.if_exists)
    )
    if door.connection is not None:
        forget(door, home, schema, operation.table_name)


# -- how they are written into a migration ---------------------------------------------------------------


_usual: Any = renderers.dispatch(CreateTableOp)


@renderers.dispatch_for(CreateTableOp, replace=True)
def _render_plain_create(context: AutogenContext, operation: CreateTableOp) -> str:
    """Leave the policy out of ``info=``, where its class is not imported: on another database than
    PostgreSQL, or with our part of autogenerate turned off."""
    plain = copy.copy(operation)
    plain.info = {name: value for name, value in operation.info.items() if name != INFO_KEY}
    return str(_usual(context, plain))


@renderers.dispatch_for(CreatePartitionedTableOp)
def _render_create(context: AutogenContext, operation: CreatePartitionedTableOp) -> str:
    context.imports.add("from alembic_partitions import PartitionPolicy")
    text = _render_plain_create(context, operation).replace("create_table", "create_partitioned_table", 1)
    return f"{text.removesuffix(')').rstrip()},\npolicy={operation.policy!r}\n)"


@renderers.dispatch_for(DropPartitionedTableOp)
def _render_drop(context: AutogenContext, operation: DropPartitionedTableOp) -> str:
    plain = DropTableOp(operation.table_name, schema=operation.schema, if_exists=operation.if_exists)
    return render_op_text(context, plain).replace("drop_table", "drop_partitioned_table", 1)
