"""Alembic operations: declare, alter and drop a partitioned table in a migration.

They stand on Alembic's own CREATE TABLE and DROP TABLE, send everything through the migration's own
connection and transaction, and print with ``--sql`` what they would send.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping, Sequence
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateTableOp, DropTableOp
from sqlalchemy import ColumnElement, Connection, Table, Time, and_, cast, func, select
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.schema import SchemaItem

from . import catalog, ddl, maintenance
from .errors import NotManagedError, PolicyError, WindowRangeError
from .periods import KeyType, KeyValue
from .plan import ManagedTable, Plan, plan_horizon, plan_windows, windows_between
from .policy import PartitionPolicy

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.runtime.migration import MigrationContext

#: Windows made inside the migration's own transaction, whose locks add up; the horizon follows after it.
FIRST_WINDOWS = 40
#: Windows that one op.create_partitions makes; more would exhaust max_locks_per_transaction.
MOST_WINDOWS = 400

_EXISTING = "existing_"


@Operations.register_operation("create_partitioned_table")
class CreatePartitionedTableOp(MigrateOperation):
    """Create a partitioned table, its policy and its first partitions."""

    def __init__(
        self, table_name: str, columns: Sequence[SchemaItem], *, policy: PartitionPolicy, **kw: Any
    ) -> None:
        self.table_name = table_name
        self.columns = columns
        self.policy = policy
        self.schema: str | None = kw.get("schema")
        self.kw = kw

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

    def reverse(self) -> DropPartitionedTableOp:
        """Return the operation that undoes this one."""
        return DropPartitionedTableOp(self.table_name, schema=self.schema, reverse=self)

    def to_diff_tuple(self) -> tuple[str, Table]:
        """Return the change as autogenerate reports it."""
        return "add_partitioned_table", self.to_table()

    def to_table(self, context: MigrationContext | None = None) -> Table:
        """Return the table, PARTITION BY and all."""
        by = self.policy.partition_by
        if context is not None:
            by = self.policy.partition_by_for(context.dialect.identifier_preparer)
        kw = {**self.kw, "postgresql_partition_by": by}
        return CreateTableOp(self.table_name, self.columns, **kw).to_table(context)


@Operations.register_operation("drop_partitioned_table")
class DropPartitionedTableOp(MigrateOperation):
    """Drop a partitioned table with the partitions that we made, and forget its policy."""

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        if_exists: bool | None = None,
        reverse: CreatePartitionedTableOp | None = None,
    ) -> None:
        self.table_name = table_name
        self.schema = schema
        self.if_exists = if_exists
        self._reverse = reverse

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
        reverse = None
        if existing_policy is not None:
            reverse = CreatePartitionedTableOp(
                table_name, existing_columns, policy=existing_policy, schema=schema, **kw
            )
        operations.invoke(cls(table_name, schema=schema, if_exists=if_exists, reverse=reverse))

    def reverse(self) -> CreatePartitionedTableOp:
        """Return the operation that undoes this one."""
        if self._reverse is None:
            raise ValueError(
                f"drop_partitioned_table({self.table_name!r}) needs its columns and existing_policy="
                " to be reversed"
            )
        return self._reverse

    def to_diff_tuple(self) -> tuple[str, str, str | None]:
        """Return the change as autogenerate reports it."""
        return "remove_partitioned_table", self.table_name, self.schema


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
    policy, table = operation.policy, operation.to_table(operations.migration_context)
    key_type = policy.check_table(table)
    home = _ensure_our_tables(operations)
    operations.impl.create_table(table)
    values = _columns(policy.to_dict())
    target = (
        insert(ddl.config_table(home))
        .inline()
        .values(
            table_schema=_schema(_table_schema(operations, operation.schema)),
            table_name=ddl.text_literal(table.name),
            declared=_json(policy.to_dict()),
            **values,
        )
    )
    operations.execute(
        target.on_conflict_do_update(
            index_elements=["table_schema", "table_name"],
            set_={name: target.excluded[name] for name in (*values, "declared")},
        )
    )
    _run_steps(operations, _first_windows(operations, operation, table, key_type))
    return table


def _first_windows(
    operations: Operations, operation: CreatePartitionedTableOp, table: Table, key_type: KeyType
) -> Plan:
    policy = operation.policy
    first = policy.changed(premake=min(policy.premake, FIRST_WINDOWS - 2), lookback=min(policy.lookback, 1))
    connection = _online(operations)
    if connection is None:
        now = _offline_now(operations)
        found = ManagedTable(operation.schema or "", table.name, first, oid=0, key_type=key_type)
        return plan_horizon(found, now)
    now = maintenance.clock(connection.execute(select(func.now())).scalar_one())
    found = catalog.describe_table(
        connection, str(_table_schema(operations, table.schema)), table.name, first
    )
    return maintenance.with_free_names(connection, lambda taken: plan_horizon(found, now, taken))


@Operations.implementation_for(DropPartitionedTableOp)
def _drop_partitioned_table(operations: Operations, operation: DropPartitionedTableOp) -> None:
    config = ddl.config_table(_ensure_our_tables(operations))
    schema = _table_schema(operations, operation.schema, operation.table_name)
    operations.execute(ddl.DetachForeign(operation.schema, operation.table_name))
    operations.invoke(
        DropTableOp(operation.table_name, schema=operation.schema, if_exists=operation.if_exists)
    )
    operations.execute(config.delete().where(_row(config, schema, operation.table_name)))


@Operations.implementation_for(AlterPartitionPolicyOp)
def _alter_partition_policy(operations: Operations, operation: AlterPartitionPolicyOp) -> None:
    changes = dict(operation.changes)
    if "key" in changes:
        raise PolicyError(
            field="key",
            problem="the partition key of a table cannot be changed in place",
            remedy="Create a new table with the new key and move the rows.",
        )
    connection = _online(operations)
    if connection is None:
        checked = PartitionPolicy("key").changed(**changes)
    else:
        found = _managed(operations, connection, operation.schema, operation.table_name)
        # A row that an operator spoiled by SQL can still be mended by a migration.
        checked = (found.policy or PartitionPolicy("key")).changed(**changes)
        if found.key_type is not None:
            checked.grid(found.key_type)
    changes = {name: checked.to_dict()[name] for name in changes}
    config = ddl.config_table(_home(operations))
    schema = _table_schema(operations, operation.schema, operation.table_name)
    operations.execute(
        config.update()
        .where(_row(config, schema, operation.table_name))
        .values(declared=config.c.declared.op("||")(_json(changes)), **_columns(changes))
    )


@Operations.implementation_for(CreatePartitionsOp)
def _create_partitions(operations: Operations, operation: CreatePartitionsOp) -> None:
    connection = _online(operations)
    if connection is None:
        found = _offline_table(operation)
    else:
        found = _managed(operations, connection, operation.schema, operation.table_name)
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
        operations.execute(ddl.LockParent(found.oid))
        found = dataclasses.replace(found, partitions=catalog.partitions_of(connection, found))
    start, stop = (_key(found, name, getattr(operation, name)) for name in ("start", "stop"))
    windows = list(windows_between(found.grid, start, stop, most=MOST_WINDOWS))

    def make(taken: Container[str]) -> Plan:
        return plan_windows(found, windows, taken, made_by=operation.made_by)

    planned = make(()) if connection is None else maintenance.with_free_names(connection, make)
    _run_steps(operations, planned)


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


@Operations.implementation_for(DropPartitionsOp)
def _drop_partitions(operations: Operations, operation: DropPartitionsOp) -> None:
    operations.execute(ddl.DropEmptyPartitions(operation.schema, operation.table_name, operation.made_by))


def _run_steps(operations: Operations, planned: Plan) -> None:
    connection = _online(operations)
    # A migration may run as a mere member of the owner.
    user = None if connection is None else connection.scalar(select(func.current_user()))
    for step in planned.steps:
        for element in ddl.partition_elements(step, user):
            operations.execute(element)


# -- where things are -----------------------------------------------------------------------------------


def _online(operations: Operations) -> Connection | None:
    context = operations.migration_context
    return None if context.as_sql else context.connection


def _offline_now(operations: Operations) -> datetime:
    """Offline no database can be asked: the host's clock, or the instant that is rehearsed."""
    now = maintenance.clock(datetime.now(timezone.utc))
    operations.migration_context.impl.static_output(
        f"-- alembic_partitions: first windows as of {now:%Y-%m-%d %H:%M:%S}+00, from this host's clock or"
        f" {maintenance.NOW_VARIABLE}; the horizon follows with the first online run\n"
    )
    return now


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


def _home(operations: Operations) -> str | None:
    """Return the schema of our two tables; online always one, offline ``None`` for the default one."""
    told, connection = maintenance.config_home(operations.migration_context), _online(operations)
    if told is not None or connection is None:
        return told
    meant = catalog.meant(connection)
    return str(meant.config_schema or _existing(meant.default_schema))


def _ensure_our_tables(operations: Operations) -> str | None:
    home, connection = _home(operations), _online(operations)
    if connection is not None:
        catalog.find_config(connection, home)  # a clear error before anything
    operations.execute(ddl.EnsureOurTables(home))
    return home


def _table_schema(operations: Operations, schema: str | None, name: str | None = None) -> str | None:
    """Return the schema of a table that exists, or (without ``name``) of one to be made; offline as given."""
    connection = _online(operations)
    if schema is not None or connection is None:
        return schema
    meant = catalog.meant(connection, name or "")
    return str((name and meant.table_schema) or _existing(meant.default_schema))


def _existing(schema: str | None) -> str:
    if schema is None:
        raise PolicyError(
            field="schema",
            problem="search_path names no schema that exists, so there is no place for the table",
            remedy="Pass schema=, or set search_path.",
        )
    return schema


def _managed(operations: Operations, connection: Connection, schema: str | None, name: str) -> ManagedTable:
    """Read one managed table in the middle of a migration's transaction, whose settings stay as they are."""
    wanted = f"{_table_schema(operations, schema, name)}.{name}"
    found = catalog.find_config(connection, _home(operations))
    if found is not None:
        with catalog.utc_settings(connection):
            snapshot = catalog.read_snapshot(connection, found, {wanted})
        for managed in snapshot.tables:
            return managed
    raise NotManagedError(table=wanted)


def _row(config: Table, schema: str | None, name: str) -> ColumnElement[bool]:
    return and_(config.c.table_schema == _schema(schema), config.c.table_name == ddl.text_literal(name))


def _schema(schema: str | None) -> ColumnElement[str]:
    return func.current_schema() if schema is None else ddl.text_literal(schema)


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return policy fields as columns of partition_config, each a value that --sql can print."""
    columns: dict[str, Any] = {
        "partition_key" if name == "key" else name: ddl.text_literal(value)
        if isinstance(value, str)
        else value
        for name, value in fields.items()
    }
    if "day_start" in columns:
        columns["day_start"] = cast(columns["day_start"], Time())
    if "storage_parameters" in columns:
        columns["storage_parameters"] = _json(columns["storage_parameters"])
    return columns


def _json(value: Mapping[str, Any]) -> ColumnElement[Any]:
    return cast(ddl.text_literal(json.dumps(value)), JSONB())


def _iso(moment: KeyValue | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat()
