"""``alembic revision --autogenerate`` and ``alembic check``: partitions left out, policies compared.

Alembic's own comparison does the work. Before it, partitions are taken out of its sight; during it, each
table's policy is compared; after it, its operations on partitioned tables are put right.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import render_op_text, renderers
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import (
    AlterColumnOp,
    CreateIndexOp,
    CreateTableCommentOp,
    CreateTableOp,
    DropIndexOp,
    DropTableCommentOp,
    DropTableOp,
    ModifyTableOps,
)
from alembic.util import CommandError, PriorityDispatchResult
from sqlalchemy import Column, ForeignKeyConstraint, Table

from . import adoption, catalog, ddl
from .catalog import TableKey
from .compare import Adopt, Alter, Convert, Relation, Remark, Unpartition, compare
from .errors import PartitionError
from .operations import (
    CONCURRENTLY,
    AdoptPartitionedTableOp,
    AlterPartitionPolicyOp,
    ConvertToPartitionedOp,
    CreatePartitionedIndexOp,
    CreatePartitionedTableOp,
    DropPartitionedIndexOp,
    DropPartitionedTableOp,
    UnpartitionTableOp,
)
from .plan import MARKS
from .policy import INFO_KEY

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps

_KEY = "alembic_partitions"
_WIDTH = 92


class PartitionRemarkOp(MigrateOperation):
    """A comment in a migration: what no operation may do by itself, and what to do about it."""

    def __init__(self, table_name: str, schema: str | None, remark: Remark | None) -> None:
        self.table_name = table_name
        self.schema = schema
        self.remark = remark
        #: Nothing else is in the migration, and a body of comments is none in Python.
        self.alone = False

    def reverse(self) -> PartitionRemarkOp:
        """Return the operation that undoes this one: nothing was done, unless its line was taken in."""
        back = None
        if self.remark is not None and self.remark.line is not None:
            line = self.remark.line.reverse()
            back = Remark("what takes the line back that is commented out above:", "", line)
        reverse = PartitionRemarkOp(self.table_name, self.schema, back)
        reverse.alone = self.alone
        return reverse

    def to_diff_tuple(self) -> tuple[str, str | None, str, str]:
        """Return the difference as autogenerate reports it."""
        assert self.remark is not None
        return "partition_remark", self.schema, self.table_name, self.remark.problem


@Operations.implementation_for(PartitionRemarkOp)
def _nothing(operations: Operations, operation: PartitionRemarkOp) -> None:
    """Do nothing, as the comment in a migration does."""


@dataclass
class _Found:
    """What one comparison found out, and what it adds to the migration."""

    relations: Mapping[TableKey, Relation]
    inherited_keys: Mapping[TableKey, set[str]]
    default_schema: str | None
    ours: set[TableKey] = field(default_factory=set)
    added: list[MigrateOperation] = field(default_factory=list)
    created: set[TableKey] = field(default_factory=set)

    def relation(self, schema: str | None, name: str) -> Relation:
        return self.relations.get((schema, name), Relation())

    def key(self, schema: str | None, name: str) -> TableKey:
        """Return what Alembic calls a table: the default schema goes without saying."""
        return None if schema == self.default_schema else schema, name


def begin(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: object) -> PriorityDispatchResult:
    """Leave partitions out before anything of them is reflected."""
    connection = context.connection
    assert connection is not None
    found, usual = _found(context), context.run_name_filters
    shown, found.ours = catalog.shown_tables(connection)
    # A partition may be a model of its own; our tables are nobody's to change.
    shown |= {found.key(t.schema, t.name) for t in context.sorted_tables} - found.ours

    def run_name_filters(name: str | None, type_: Any, parent_names: Any) -> bool:
        schema = parent_names.get("schema_name")
        if type_ == "table" and (schema, name) not in shown:
            return False
        if type_ == "foreign_key_constraint":
            inherited = found.inherited_keys.get((schema, parent_names.get("table_name")), ())
            if name in inherited:
                return False
        return usual(name, type_, parent_names)

    context.run_name_filters = run_name_filters  # type: ignore[method-assign]
    return PriorityDispatchResult.CONTINUE


def compare_table(
    context: AutogenContext,
    modify_ops: ModifyTableOps,
    schema: str | None,
    name: str,
    there: Table | None,
    model: Table | None,
) -> PriorityDispatchResult:
    """Compare the policy of one table, once Alembic and the project's own filters have let it through."""
    found = _found(context)
    if model is not None:
        relation = found.relation(schema, name)
        try:
            differences = compare(model, relation if there is not None else None)
        except PartitionError as error:
            raise CommandError(str(error)) from error
        for difference in differences:
            if isinstance(difference, Alter):
                found.added.append(_altered(name, schema, difference))
            elif isinstance(difference, Adopt):
                assert context.connection is not None
                remark = adoption.remark_on(context.connection, schema, name, difference.policy)
                found.added += [PartitionRemarkOp(name, schema, remark)] if remark is not None else []
                found.added.append(AdoptPartitionedTableOp(name, difference.policy, schema=schema))
            elif isinstance(difference, Remark):
                found.added.append(PartitionRemarkOp(name, schema, _with_key(difference, there)))
        for index in sorted(relation.invalid_indexes & {str(index.name) for index in model.indexes}):
            found.added.append(PartitionRemarkOp(name, schema, _half_done(index)))
    return PriorityDispatchResult.CONTINUE


def end(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: object) -> PriorityDispatchResult:
    """Put Alembic's operations on partitioned tables right, and add ours."""
    found = _found(context)
    upgrade_ops.ops[:] = [*_put_right(upgrade_ops.ops, found), *found.added]
    if upgrade_ops.ops and all(isinstance(op, PartitionRemarkOp) for op in upgrade_ops.ops):
        upgrade_ops.ops[-1].alone = True  # type: ignore[attr-defined]
    return PriorityDispatchResult.CONTINUE


def _put_right(operations: Iterable[MigrateOperation], found: _Found) -> Iterator[MigrateOperation]:
    for operation in operations:
        if isinstance(operation, CreateTableOp) and _is_ours(operation, found):
            continue  # an application may read partition_config as a model; it comes with the first policy
        if isinstance(operation, CreateTableOp) and INFO_KEY in operation.info:
            found.created.add(found.key(operation.schema, operation.table_name))
            yield CreatePartitionedTableOp.of(operation, operation.info[INFO_KEY])
        elif isinstance(operation, DropTableOp):
            _forget_keys(operation, found.inherited_keys.get((operation.schema, operation.table_name), set()))
            yield _dropped(operation, found.relation(operation.schema, operation.table_name))
        elif isinstance(operation, ModifyTableOps):
            is_new = found.key(operation.schema, operation.table_name) in found.created
            yield from _modified(operation, found.relation(operation.schema, operation.table_name), is_new)
        else:
            yield operation


def _is_ours(operation: CreateTableOp, found: _Found) -> bool:
    """Tell whether a model is of one of our own two tables: that stands, or looks like one."""
    if found.key(operation.schema, operation.table_name) in found.ours:
        return True
    names = {item.name for item in operation.columns if isinstance(item, Column)}
    for ours in (ddl.config_table(None), ddl.runs_table(None)):
        if operation.table_name == ours.name:
            columns = {column.name for column in ours.columns}
            return names <= columns or columns <= names
    return False


def _forget_keys(operation: DropTableOp, names: set[str]) -> None:
    """Leave the foreign keys to partitions out of what the downgrade creates again."""
    recreate = operation._reverse  # noqa: SLF001  # where Alembic keeps it
    if recreate is not None and names:
        recreate.columns = [
            item
            for item in recreate.columns
            if not (isinstance(item, ForeignKeyConstraint) and item.name in names)
        ]


def _dropped(operation: DropTableOp, there: Relation) -> MigrateOperation:
    try:
        policy = there.policy
    except PartitionError as error:
        raise CommandError(str(error)) from error
    if policy is not None:
        recreate = CreatePartitionedTableOp.of(operation.reverse(), policy)
        return DropPartitionedTableOp(operation.table_name, schema=operation.schema, recreate=recreate)
    if there.partition_by is not None:
        # SQLAlchemy does not reflect PARTITION BY (sqlalchemy/alembic#539); the downgrade needs it.
        operation.table_kw["postgresql_partition_by"] = there.partition_by
    return operation


def _modified(operation: ModifyTableOps, there: Relation, is_new: bool) -> Iterator[MigrateOperation]:
    kept: list[MigrateOperation] = []
    beside = [] if is_new or there.partition_by is None else list(_built_beside(operation.ops))
    for change in operation.ops:
        if isinstance(change, AlterColumnOp) and change.column_name in there.primary_key:
            if change.modify_nullable:
                change.modify_nullable = None  # PostgreSQL refuses: the primary key forces NOT NULL
            if not change.has_changes():
                continue
        elif isinstance(change, (CreateIndexOp, DropIndexOp)) and change.index_name in beside:
            # By itself: in a block of op.batch_alter_table() it would run before what stands above it.
            if kept:
                yield ModifyTableOps(operation.table_name, kept, schema=operation.schema)
                kept = []
            if isinstance(change, CreateIndexOp):
                yield CreatePartitionedIndexOp.of(change)
            else:
                yield DropPartitionedIndexOp.of(change)
            continue
        elif isinstance(change, CreateIndexOp) and is_new:
            change.kw.pop(CONCURRENTLY, None)  # nobody writes to it yet
        elif _takes_a_mark(change):
            continue
        kept.append(change)
    operation.ops[:] = kept
    if kept:
        yield operation


def _built_beside(operations: Iterable[MigrateOperation]) -> Iterator[str | None]:
    """Yield the indexes whose model says CONCURRENTLY, which PostgreSQL refuses for the table itself."""
    for operation in operations:
        if isinstance(operation, CreateIndexOp) and operation.kw.get(CONCURRENTLY):
            yield operation.index_name


def _takes_a_mark(change: MigrateOperation) -> bool:
    """Tell whether a comment that makes a table ours would go: of a partition that is a model, too."""
    if isinstance(change, (CreateTableCommentOp, DropTableCommentOp)):
        return (change.existing_comment or "").startswith(MARKS)
    return False


def _operation(remark: PartitionRemarkOp, line: Alter | Convert | Unpartition) -> MigrateOperation:
    """Return the operation that a remark holds ready."""
    name, schema = remark.table_name, remark.schema
    if isinstance(line, Alter):
        return _altered(name, schema, line)
    key = line.primary_key or None
    if isinstance(line, Convert):
        return ConvertToPartitionedOp(name, line.policy, schema=schema, existing_primary_key=key)
    return UnpartitionTableOp(name, schema=schema, primary_key=key, existing_policy=line.policy)


def _altered(name: str, schema: str | None, difference: Alter) -> AlterPartitionPolicyOp:
    return AlterPartitionPolicyOp(name, difference.changes, difference.existing, schema=schema)


def _with_key(remark: Remark, there: Table | None) -> Remark:
    """Add the primary key that a table has, which the way back needs."""
    if not isinstance(remark.line, Convert) or there is None:
        return remark
    columns = tuple(column.name for column in there.primary_key)
    return dataclasses.replace(remark, line=dataclasses.replace(remark.line, primary_key=columns))


def _half_done(index: str) -> Remark:
    return Remark(
        f"the index {index} is invalid, as not every partition has its part of it.",
        "alembic-partitions repair builds what is lacking; so does op.create_partitioned_index() with the"
        " index's own definition.",
    )


def _found(context: AutogenContext) -> _Found:
    """Return what this comparison has found out; it is read when it is first asked for."""
    cache, connection = context.inspector.info_cache, context.connection
    assert connection is not None
    if _KEY not in cache:
        try:
            relations = catalog.partitioned_tables(connection)
        except PartitionError as error:
            raise CommandError(str(error)) from error
        inherited = catalog.inherited_keys(connection)
        cache[_KEY] = _Found(relations, inherited, connection.dialect.default_schema_name)
    found: _Found = cache[_KEY]
    return found


# -- how it is written into a migration ------------------------------------------------------------------


@renderers.dispatch_for(PartitionRemarkOp)
def _render_remark(context: AutogenContext, operation: PartitionRemarkOp) -> list[str]:
    remark, lines = operation.remark, list[str]()
    if remark is not None:
        lines += textwrap.wrap(f"alembic_partitions: {remark.problem}", _WIDTH)
        lines += textwrap.wrap(remark.remedy, _WIDTH)
    if remark is not None and remark.line is not None:
        lines += render_op_text(context, _operation(operation, remark.line)).splitlines()
    return [f"# {line}" for line in lines] + ["pass"] * operation.alone
