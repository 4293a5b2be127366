"""Adopt a table that is partitioned already, and let it go again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.autogenerate.render import renderers
from alembic.operations import MigrateOperation, Operations

from alembic_partitions.adoption import adopt, unadopt
from alembic_partitions.errors import PolicyError
from alembic_partitions.periods import KeyType
from alembic_partitions.policy import PartitionPolicy

from .doors import door_of

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext


@Operations.register_operation("adopt_partitioned_table")
class AdoptPartitionedTableOp(MigrateOperation):
    """Take a table over that is partitioned by hand, or by another tool."""

    def __init__(
        self,
        table_name: str,
        policy: PartitionPolicy,
        *,
        schema: str | None = None,
        mark: bool = False,
        beside_partman: bool = False,
        existing_key_type: KeyType | None = None,
    ) -> None:
        if not isinstance(policy, PartitionPolicy):
            raise PolicyError(
                field="policy",
                problem=f"{policy!r} is no PartitionPolicy",
                remedy="Pass PartitionPolicy(...): `alembic-partitions adopt --table` tells which fits best.",
            )
        self.table_name = table_name
        self.policy = policy
        self.schema = schema
        self.mark = mark
        self.beside_partman = beside_partman
        self.existing_key_type = existing_key_type

    @classmethod
    def adopt_partitioned_table(
        cls,
        operations: Operations,
        table_name: str,
        policy: PartitionPolicy,
        *,
        schema: str | None = None,
        mark: bool = False,
        beside_partman: bool = False,
        existing_key_type: KeyType | None = None,
    ) -> None:
        """Write a policy down for a table that is partitioned already. Nothing of the table changes; new
        windows follow with the next run, from the end of what is covered on.

        :param mark: mark the partitions ours that are windows of the policy and bear no comment; retention
            takes no others.
        :param beside_partman: even while pg_partman maintains the table.
        :param existing_key_type: with ``mark`` and --sql, for another key than a timestamptz or a bigint:
            ``timestamp``, ``date``, ``uuidv7``.
        :raises AdoptionRefused: it is no table that this policy can be of, or another has it in hand.
        """
        operations.invoke(
            cls(
                table_name,
                policy,
                schema=schema,
                mark=mark,
                beside_partman=beside_partman,
                existing_key_type=existing_key_type,
            )
        )

    def reverse(self) -> UnadoptPartitionedTableOp:
        """Return the operation that undoes this one."""
        return UnadoptPartitionedTableOp(self.table_name, adopted=self, schema=self.schema)

    def to_diff_tuple(self) -> tuple[str, str, str | None, PartitionPolicy]:
        """Return the change as autogenerate reports it."""
        return "adopt_partitioned_table", self.table_name, self.schema, self.policy


@Operations.register_operation("unadopt_partitioned_table")
class UnadoptPartitionedTableOp(MigrateOperation):
    """Let a table go: forget its policy, and drop nothing."""

    def __init__(
        self, table_name: str, *, adopted: AdoptPartitionedTableOp | None = None, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.adopted = adopted
        self.schema = schema

    @classmethod
    def unadopt_partitioned_table(
        cls,
        operations: Operations,
        table_name: str,
        *,
        existing_policy: PartitionPolicy | None = None,
        schema: str | None = None,
    ) -> None:
        """Forget the policy of a table, and take the marks away that adopting it has set.

        The table and all its partitions stay, those that we have made as well.

        :param existing_policy: what the reverse needs to adopt it again.
        :raises NotManagedError: it has no policy.
        """
        adopted = None
        if existing_policy is not None:
            adopted = AdoptPartitionedTableOp(table_name, existing_policy, schema=schema)
        operations.invoke(cls(table_name, adopted=adopted, schema=schema))

    def reverse(self) -> AdoptPartitionedTableOp:
        """Return the operation that undoes this one."""
        if self.adopted is None:
            raise ValueError(
                f"unadopt_partitioned_table({self.table_name!r}) needs existing_policy= to be reversed"
            )
        return self.adopted

    def to_diff_tuple(self) -> tuple[str, str, str | None]:
        """Return the change as autogenerate reports it."""
        return "unadopt_partitioned_table", self.table_name, self.schema


@Operations.implementation_for(AdoptPartitionedTableOp)
def _adopt(operations: Operations, operation: AdoptPartitionedTableOp) -> None:
    adopt(
        door_of(operations, operation.schema, operation.table_name),
        operation.schema,
        operation.table_name,
        operation.policy,
        mark=operation.mark,
        beside_partman=operation.beside_partman,
        key_type=operation.existing_key_type,
    )


@Operations.implementation_for(UnadoptPartitionedTableOp)
def _unadopt(operations: Operations, operation: UnadoptPartitionedTableOp) -> None:
    unadopt(
        door_of(operations, operation.schema, operation.table_name), operation.schema, operation.table_name
    )


@renderers.dispatch_for(AdoptPartitionedTableOp)
def _render_adopt(context: AutogenContext, operation: AdoptPartitionedTableOp) -> str:
    context.imports.add("from alembic_partitions import PartitionPolicy")
    arguments = [repr(operation.table_name), repr(operation.policy)]
    arguments += [f"schema={operation.schema!r}"] if operation.schema else []
    arguments += ["mark=True"] if operation.mark else []
    prefix = context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}adopt_partitioned_table({', '.join(arguments)})"


@renderers.dispatch_for(UnadoptPartitionedTableOp)
def _render_unadopt(context: AutogenContext, operation: UnadoptPartitionedTableOp) -> str:
    arguments = [repr(operation.table_name)]
    if operation.adopted is not None:
        context.imports.add("from alembic_partitions import PartitionPolicy")
        arguments.append(f"existing_policy={operation.adopted.policy!r}")
    arguments += [f"schema={operation.schema!r}"] if operation.schema else []
    prefix = context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}unadopt_partitioned_table({', '.join(arguments)})"
