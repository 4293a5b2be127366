"""Make the windows of a stretch of time on purpose, and remove them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from datetime import date
from typing import Any

from alembic.operations import MigrateOperation, Operations

from alembic_partitions import catalog, ddl, maintenance
from alembic_partitions.declare import managed, run_steps
from alembic_partitions.errors import PolicyError, WindowRangeError
from alembic_partitions.naming import check_text
from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import ManagedTable, Plan, plan_windows, windows_between
from alembic_partitions.policy import PartitionPolicy

from .doors import door_of

#: Windows that one op.create_partitions makes; more would exhaust max_locks_per_transaction.
MOST_WINDOWS = 400


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
        existing_key_type: KeyType | None = None,
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
        :param kw: ``schema``; and, as offline mode cannot look, ``existing_policy`` and, for another key
            than a timestamptz or a bigint, ``existing_key_type``: ``timestamp``, ``date``, ``uuidv7``.
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


@Operations.implementation_for(CreatePartitionsOp)
def _create_partitions(operations: Operations, operation: CreatePartitionsOp) -> None:
    door = door_of(operations, operation.schema, operation.table_name)
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
        key_type=operation.existing_key_type or operation.existing_policy.usual_key_type,
    )


@Operations.implementation_for(DropPartitionsOp)
def _drop_partitions(operations: Operations, operation: DropPartitionsOp) -> None:
    door = door_of(operations, operation.schema, operation.table_name)
    for name, moment in (("start", operation.start), ("stop", operation.stop)):
        check_text(name, _iso(moment))  # drivers end a statement at a zero byte
    door.execute(ddl.DropEmptyPartitions(operation.schema, operation.table_name, operation.made_by))


def _iso(moment: KeyValue | str) -> str:
    return moment if isinstance(moment, str) else moment.isoformat()
