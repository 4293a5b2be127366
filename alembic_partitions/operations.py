"""Alembic operations: declare, alter and drop a partitioned table in a migration.

They stand on Alembic's own CREATE TABLE and DROP TABLE, send everything through the migration's own
connection and transaction, and print with ``--sql`` what they would send.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Container, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import render_op_text, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateTableOp, DropTableOp
from sqlalchemy import Table
from sqlalchemy.schema import SchemaItem

from . import catalog, ddl, maintenance
from .declare import (
    Door,
    as_json,
    columns_of,
    declare,
    ensure_our_tables,
    forget,
    free_others,
    managed,
    row_of,
    run_steps,
)
from .errors import PolicyError, WindowRangeError
from .periods import KeyType, KeyValue
from .plan import ManagedTable, Plan, plan_windows, windows_between
from .policy import INFO_KEY, PartitionPolicy

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext

#: Windows that one op.create_partitions makes; more would exhaust max_locks_per_transaction.
MOST_WINDOWS = 400

_EXISTING = "existing_"


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


@Operations.register_operation("alter_partition_policy")
class AlterPartitionPolicyOp(MigrateOperation):
    """Change fields of a table's policy, declared and in force."""

    def __init__(
        self,
        table_name: str,
        changes: Mapping[str, Any],
        existing: Mapping[str, Any],
        *,
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.changes = changes
        self.existing = existing
        self.schema = schema

    @classmethod
    def alter_partition_policy(
        cls, operations: Operations, table_name: str, *, schema: str | None = None, **fields: Any
    ) -> None:
        """Change fields of a table's policy from now on; partitions that exist stay as they are.

        :param fields: fields of :class:`PartitionPolicy` with their new values, and ``existing_<field>`` with
            the values before, which the reverse needs.
        :raises PolicyError: a value is wrong, or the field cannot be changed.
        :raises NotManagedError: the table has no policy.
        """
        existing = {k.removeprefix(_EXISTING): v for k, v in fields.items() if k.startswith(_EXISTING)}
        changes = {k: v for k, v in fields.items() if not k.startswith(_EXISTING)}
        operations.invoke(cls(table_name, changes, existing, schema=schema))

    def reverse(self) -> AlterPartitionPolicyOp:
        """Return the operation that undoes this one."""
        missing = self.changes.keys() - self.existing.keys()
        if missing:
            needed = ", ".join(f"existing_{name}=" for name in sorted(missing))
            raise ValueError(f"alter_partition_policy({self.table_name!r}) needs {needed} to be reversed")
        return AlterPartitionPolicyOp(self.table_name, self.existing, self.changes, schema=self.schema)

    def to_diff_tuple(self) -> tuple[str, str, str | None, Mapping[str, Any]]:
        """Return the change as autogenerate reports it."""
        return "alter_partition_policy", self.table_name, self.schema, self.changes


@Operations.register_operation("create_partitions")
class CreatePartitionsOp(MigrateOperation):
    """Make the windows of a stretch of time."""

    def __init__(
        self,
        table_name: str,
        start: KeyValue | str,
        stop: KeyValue | str,
        *,
        schema: str | None = None,
        existing_policy: PartitionPolicy | None = None,
        existing_key_type: KeyType = "timestamptz",
    ) -> None:
        self.table_name = table_name
        self.start = start
        self.stop = stop
        self.schema = schema
        self.existing_policy = existing_policy
        self.existing_key_type = existing_key_type

    @classmethod
    def create_partitions(
        cls, operations: Operations, table_name: str, start: KeyValue | str, stop: KeyValue | str, **kw: Any
    ) -> None:
        """Make the windows from ``start`` up to, not including, ``stop`` that do not exist yet.

        :param start: a date (the begin of that local day), a naive time (on the policy's clocks) or an
            instant; ISO 8601 text works too.
        :param stop: likewise.
        :param kw: ``schema``; and, as offline mode cannot look, ``existing_policy`` and
            ``existing_key_type``.
        :raises NotManagedError: the table has no policy.
        :raises PolicyError: ``start`` is not before ``stop``, the windows are too many for one transaction,
            or the policy is disabled.
        """
        operations.invoke(cls(table_name, start, stop, **kw))

    @property
    def made_by(self) -> str:
        """What the mark of its partitions says, so that the reverse finds them."""
        return f"create_partitions {_iso(self.start)}/{_iso(self.stop)}"

    @property
    def _existing(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "existing_policy": self.existing_policy,
            "existing_key_type": self.existing_key_type,
        }

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropPartitionsOp(self.table_name, self.start, self.stop, **self._existing)

    def to_diff_tuple(self) -> tuple[str, str, str | None, str, str]:
        """Return the change as autogenerate reports it."""
        return "create_partitions", self.table_name, self.schema, _iso(self.start), _iso(self.stop)


@Operations.register_operation("drop_partitions")
class DropPartitionsOp(CreatePartitionsOp):
    """The reverse of create_partitions: remove what it made, as long as it is empty."""

    @classmethod
    def drop_partitions(
        cls, operations: Operations, table_name: str, start: KeyValue | str, stop: KeyValue | str, **kw: Any
    ) -> None:
        """Remove the partitions that ``op.create_partitions`` of the same stretch made, if they are empty.

        One that holds rows stays, with a notice. Takes ACCESS EXCLUSIVE on the table.
        """
        operations.invoke(cls(table_name, start, stop, **kw))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return CreatePartitionsOp(self.table_name, self.start, self.stop, **self._existing)


# -- what they do ---------------------------------------------------------------------------------------


@Operations.implementation_for(CreatePartitionedTableOp)
def _create_partitioned_table(operations: Operations, operation: CreatePartitionedTableOp) -> Table:
    door = _door(operations)
    policy, table = operation.policy, operation.to_table(operations.migration_context)
    key_type = policy.check_table(table)
    home = ensure_our_tables(door)
    options = {} if operation.if_not_exists is None else {"if_not_exists": operation.if_not_exists}
    operations.impl.create_table(table, **options)
    declare(door, home, operation.schema, table.name, policy, key_type)
    return table


@Operations.implementation_for(DropPartitionedTableOp)
def _drop_partitioned_table(operations: Operations, operation: DropPartitionedTableOp) -> None:
    door = _door(operations)
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


@Operations.implementation_for(AlterPartitionPolicyOp)
def _alter_partition_policy(operations: Operations, operation: AlterPartitionPolicyOp) -> None:
    door, changes = _door(operations), dict(operation.changes)
    if "key" in changes:
        raise PolicyError(
            field="key",
            problem="the partition key of a table cannot be changed in place",
            remedy="Create a new table with the new key and move the rows.",
        )
    if door.connection is None:
        if "premake" in changes and changes["premake"] is None and "interval" not in changes:
            raise PolicyError(
                field="premake",
                problem="with --sql its default cannot be told, which depends on the interval in force",
                remedy="Give the number of windows, or the interval with it.",
            )
        checked = PartitionPolicy("key").changed(**changes)
    else:
        found = managed(door, door.connection, operation.schema, operation.table_name)
        # A row that an operator spoiled by SQL can still be mended by a migration.
        checked = (found.policy or PartitionPolicy("key")).changed(**changes)
        if found.key_type is not None:
            checked.grid(found.key_type)
    changes = {name: checked.to_dict()[name] for name in changes}
    config = ddl.config_table(door.home)
    schema = door.schema_of(operation.schema, operation.table_name)
    door.execute(
        config.update()
        .where(row_of(config, schema, operation.table_name))
        .values(declared=config.c.declared.op("||")(as_json(changes)), **columns_of(changes))
    )


@Operations.implementation_for(CreatePartitionsOp)
def _create_partitions(operations: Operations, operation: CreatePartitionsOp) -> None:
    door = _door(operations)
    connection = door.connection
    if connection is None:
        found = _offline_table(operation)
    else:
        found = managed(door, connection, operation.schema, operation.table_name)
    if found.problem is not None:
        raise PolicyError(field="key", problem=found.problem[1], remedy="Correct the policy or the table.")
    if found.policy is not None and not found.policy.enabled:
        raise PolicyError(
            field="enabled",
            problem=f"the policy of {found} is disabled, so nothing is made",
            remedy="Enable it first: op.alter_partition_policy(..., enabled=True).",
        )
    if connection is not None and found.oid is not None:
        # Take our turn, then look again: an application may be making the same windows.
        door.execute(ddl.LockParent(found.oid))
        found = dataclasses.replace(found, partitions=catalog.partitions_of(connection, found))
    start, stop = (_key(found, name, getattr(operation, name)) for name in ("start", "stop"))
    windows = list(windows_between(found.grid, start, stop, most=MOST_WINDOWS))

    def make(taken: Container[str]) -> Plan:
        return plan_windows(found, windows, taken, made_by=operation.made_by)

    run_steps(door, make(()) if connection is None else maintenance.with_free_names(connection, make))


def _key(table: ManagedTable, name: str, moment: KeyValue | str) -> KeyValue:
    if isinstance(moment, (str, date)):
        try:
            return table.grid.key_of(moment)
        except WindowRangeError:
            raise
        except ValueError:
            pass
    raise PolicyError(
        field=name,
        problem=f"{moment!r} is no moment",
        remedy="Give a date, a datetime, or either as ISO 8601 text.",
    )


def _offline_table(operation: CreatePartitionsOp) -> ManagedTable:
    if operation.existing_policy is None:
        raise PolicyError(
            field="existing_policy",
            problem=f"create_partitions({operation.table_name!r}) cannot look the policy up with --sql",
            remedy="Pass existing_policy=PartitionPolicy(...).",
        )
    return ManagedTable(
        operation.schema or "",
        operation.table_name,
        operation.existing_policy,
        oid=0,
        key_type=operation.existing_key_type,
    )


@Operations.implementation_for(DropPartitionsOp)
def _drop_partitions(operations: Operations, operation: DropPartitionsOp) -> None:
    operations.execute(ddl.DropEmptyPartitions(operation.schema, operation.table_name, operation.made_by))


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


@renderers.dispatch_for(AlterPartitionPolicyOp)
def _render_alter(context: AutogenContext, operation: AlterPartitionPolicyOp) -> str:
    fields = [f"{name}={value!r}" for name, value in operation.changes.items()]
    fields += [f"existing_{name}={value!r}" for name, value in operation.existing.items()]
    where = [f"schema={operation.schema!r}"] if operation.schema else []
    arguments = ", ".join([repr(operation.table_name), *fields, *where])
    prefix = context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}alter_partition_policy({arguments})"


# -- where things are -----------------------------------------------------------------------------------


def _door(operations: Operations) -> Door:
    """Return the way in of a migration: its own connection and transaction, or with --sql its script."""
    migration = operations.migration_context
    return Door(
        execute=operations.execute,
        connection=None if migration.as_sql else migration.connection,
        told=maintenance.config_home(migration),
        remark=migration.impl.static_output,
    )


def _iso(moment: KeyValue | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat()
