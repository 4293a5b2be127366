"""Turn a plain table into a partitioned one while it is used, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Connection

from alembic_partitions import conversion
from alembic_partitions.errors import ConversionRefused, PolicyError
from alembic_partitions.periods import KeyValue
from alembic_partitions.policy import PartitionPolicy

from .doors import door_of, may_leave, outside

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext


@Operations.register_operation("convert_to_partitioned")
class ConvertToPartitionedOp(MigrateOperation):
    """Turn a plain table into a partitioned one."""

    def __init__(
        self,
        table_name: str,
        policy: PartitionPolicy,
        *,
        schema: str | None = None,
        until: KeyValue | str | None = None,
        existing_primary_key: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(policy, PartitionPolicy):
            raise PolicyError(
                field="policy",
                problem=f"{policy!r} is no PartitionPolicy",
                remedy="Pass a PartitionPolicy(...).",
            )
        self.table_name = table_name
        self.policy = policy
        self.schema = schema
        self.until = until
        self.existing_primary_key = existing_primary_key

    @classmethod
    def convert_to_partitioned(
        cls,
        operations: Operations,
        table_name: str,
        policy: PartitionPolicy,
        *,
        schema: str | None = None,
        until: KeyValue | str | None = None,
        existing_primary_key: Sequence[str] | None = None,
    ) -> None:
        """Partition a plain table while it is read and written; its rows stay where they are.

        The table becomes its own first partition, for everything before ``until``, under another name;
        windows stand from there on, and ``alembic-partitions split`` divides it afterwards. First a unique
        index is built CONCURRENTLY where the primary key lacks the partition key, then a CHECK is added and
        proven, beside readers and writers; then one short transaction changes the names, in tries of 40 ms
        for up to a minute. As with ``autocommit_block()`` what the migration has done so far is committed, so
        give it a migration of its own. One that was cut off goes on when it is run again.

        :param until: where the new windows begin, moved to the begin of a window: a date, a naive time (on
            the policy's clocks), an instant, or ISO 8601 text. Default: seven days or more after now, and
            after the newest row. Rows from there on are refused until the last step is done.
        :param existing_primary_key: the columns of the primary key as it was, for the reverse.
        :raises ConversionRefused: something would be lost, or rows have no place; nothing was changed.
        :raises PolicyError: the policy does not fit the key.
        :raises LockNotAvailable: the locks of a step were not to be had; run it again.
        """
        operations.invoke(
            cls(table_name, policy, schema=schema, until=until, existing_primary_key=existing_primary_key)
        )

    def reverse(self) -> UnpartitionTableOp:
        """Return the operation that undoes this one."""
        return UnpartitionTableOp(
            self.table_name,
            schema=self.schema,
            primary_key=self.existing_primary_key,
            existing_policy=self.policy,
        )

    def to_diff_tuple(self) -> tuple[str, str | None, str, PartitionPolicy]:
        """Return the change as autogenerate reports it."""
        return "convert_to_partitioned", self.schema, self.table_name, self.policy


@Operations.register_operation("unpartition_table")
class UnpartitionTableOp(MigrateOperation):
    """Turn a partitioned table into a plain one."""

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        primary_key: Sequence[str] | None = None,
        existing_policy: PartitionPolicy | None = None,
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.primary_key = primary_key
        self.existing_policy = existing_policy

    @classmethod
    def unpartition_table(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        primary_key: Sequence[str] | None = None,
        existing_policy: PartitionPolicy | None = None,
    ) -> None:
        """Make a partitioned table a plain one while it is read and written.

        Where all rows are still in the table that was converted, it takes its name back, and no row is
        copied. Otherwise rows are copied beside readers and writers, what changes meanwhile is caught up
        with, and one short transaction changes the names; it needs as much space as the table takes, and the
        partitions stay, under another name, until somebody drops them.

        :param primary_key: the columns of the primary key to be, where it is not to keep the partition key.
        :param existing_policy: what the reverse needs.
        :raises ConversionRefused: something would be lost; nothing was changed.
        :raises LockNotAvailable: the locks of a step were not to be had; run it again.
        """
        operations.invoke(
            cls(table_name, schema=schema, primary_key=primary_key, existing_policy=existing_policy)
        )

    def reverse(self) -> ConvertToPartitionedOp:
        """Return the operation that undoes this one."""
        if self.existing_policy is None:
            raise ValueError(f"unpartition_table({self.table_name!r}) needs existing_policy= to be reversed")
        return ConvertToPartitionedOp(
            self.table_name,
            self.existing_policy,
            schema=self.schema,
            existing_primary_key=self.primary_key,
        )

    def to_diff_tuple(self) -> tuple[str, str | None, str]:
        """Return the change as autogenerate reports it."""
        return "unpartition_table", self.schema, self.table_name


# -- what they do ---------------------------------------------------------------------------------------


@Operations.implementation_for(ConvertToPartitionedOp)
def _convert(operations: Operations, operation: ConvertToPartitionedOp) -> None:
    with _beside(operations, operation.schema, operation.table_name, "convert") as (connection, where, home):
        conversion.convert(
            connection,
            operation.table_name,
            operation.policy,
            schema=where,
            config_schema=home,
            until=operation.until,
        )


@Operations.implementation_for(UnpartitionTableOp)
def _unpartition(operations: Operations, operation: UnpartitionTableOp) -> None:
    with _beside(operations, operation.schema, operation.table_name, "unpartition") as found:
        connection, where, home = found
        conversion.unpartition(
            connection,
            operation.table_name,
            schema=where,
            config_schema=home,
            primary_key=operation.primary_key,
        )


@contextmanager
def _beside(
    operations: Operations, schema: str | None, table: str, verb: str
) -> Iterator[tuple[Connection, str, str]]:
    """Open a connection beside the migration's, and tell the schema of the table and of our own two."""
    door = door_of(operations, schema, table)
    if door.connection is None:
        raise ConversionRefused(
            table=table,
            problems="with --sql there is no table to look at, and what is sent depends on it;"
            f" `alembic-partitions {verb} --table {table} --dry-run` prints it for a database at hand",
        )
    where, home = str(door.schema_of(schema, table)), str(door.home)
    if not may_leave(operations):
        raise ConversionRefused(
            table=f"{where}.{table}",
            problems="its steps are transactions of their own, and env.py has begun one around the migrations"
            " that Alembic must not commit; leave that to context.begin_transaction(), or run"
            f" `alembic-partitions {verb} --table {table}`",
        )
    with outside(operations) as connection:
        yield connection, where, home


# -- how they are written into a migration ---------------------------------------------------------------


@renderers.dispatch_for(ConvertToPartitionedOp)
def _render_convert(context: AutogenContext, operation: ConvertToPartitionedOp) -> str:
    context.imports.add("from alembic_partitions import PartitionPolicy")
    told: dict[str, Any] = {"schema": operation.schema, "until": operation.until}
    told["existing_primary_key"] = operation.existing_primary_key and list(operation.existing_primary_key)
    return _call(context, "convert_to_partitioned", [operation.table_name, operation.policy], told)


@renderers.dispatch_for(UnpartitionTableOp)
def _render_unpartition(context: AutogenContext, operation: UnpartitionTableOp) -> str:
    told: dict[str, Any] = {"schema": operation.schema}
    told["primary_key"] = operation.primary_key and list(operation.primary_key)
    if operation.existing_policy is not None:
        context.imports.add("from alembic_partitions import PartitionPolicy")
        told["existing_policy"] = operation.existing_policy
    return _call(context, "unpartition_table", [operation.table_name], told)


def _call(context: AutogenContext, name: str, arguments: Sequence[Any], told: dict[str, Any]) -> str:
    words = [repr(argument) for argument in arguments]
    words += [f"{key}={value!r}" for key, value in told.items() if value is not None]
    return f"{context.opts.get('alembic_module_prefix') or ''}{name}({', '.join(words)})"
