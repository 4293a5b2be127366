"""Change the policy of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from alembic_partitions import ddl
from alembic_partitions.declare import managed
from alembic_partitions.errors import PolicyError
from alembic_partitions.policy import PartitionPolicy

from .doors import door_of

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext

_EXISTING = "existing_"


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


@Operations.implementation_for(AlterPartitionPolicyOp)
def _alter_partition_policy(operations: Operations, operation: AlterPartitionPolicyOp) -> None:
    door, changes = door_of(operations, operation.schema, operation.table_name), dict(operation.changes)
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
        .where(ddl.row_of(config, schema, operation.table_name))
        .values(declared=config.c.declared.op("||")(ddl.as_json(changes)), **ddl.columns_of(changes))
    )


@renderers.dispatch_for(AlterPartitionPolicyOp)
def _render_alter(context: AutogenContext, operation: AlterPartitionPolicyOp) -> str:
    fields = [f"{name}={value!r}" for name, value in operation.changes.items()]
    fields += [f"existing_{name}={value!r}" for name, value in operation.existing.items()]
    where = [f"schema={operation.schema!r}"] if operation.schema else []
    arguments = ", ".join([repr(operation.table_name), *fields, *where])
    prefix = context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}alter_partition_policy({arguments})"
