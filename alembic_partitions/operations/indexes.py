"""Create and drop an index of a partitioned table while it is read and written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alembic.autogenerate.render import renderers
from alembic.operations import Operations
from alembic.operations.ops import CreateIndexOp, DropIndexOp
from sqlalchemy import Column, ColumnElement, TextClause
from sqlalchemy.types import NullType

from alembic_partitions import catalog, ddl, maintenance
from alembic_partitions.declare import Door
from alembic_partitions.errors import IndexRefused

from .doors import door_of, may_leave, outside

if TYPE_CHECKING:  # half imported while Alembic loads its plugins
    from alembic.autogenerate.api import AutogenContext

CONCURRENTLY = "postgresql_concurrently"


@Operations.register_operation("create_partitioned_index")
class CreatePartitionedIndexOp(CreateIndexOp):
    """Create an index of a partitioned table.

    A kind of Alembic's own operation: what a project does to every CreateIndexOp it does to this one.
    """

    def __init__(
        self,
        index_name: str | None,
        table_name: str,
        columns: Sequence[str | TextClause | ColumnElement[Any]],
        *,
        concurrently: bool = True,
        **kw: Any,
    ) -> None:
        kw.pop(CONCURRENTLY, None)  # what PostgreSQL refuses for the table itself
        super().__init__(index_name, table_name, columns, **kw)
        self.concurrently = concurrently

    @classmethod
    def create_partitioned_index(
        cls,
        operations: Operations,
        index_name: str | None,
        table_name: str,
        columns: Sequence[str | TextClause | ColumnElement[Any]],
        *,
        schema: str | None = None,
        unique: bool = False,
        concurrently: bool = True,
        if_not_exists: bool | None = None,
        **kw: Any,
    ) -> None:
        """Create an index of a partitioned table and of all its partitions, while they are read and written.

        ON ONLY the table first (SHARE for a moment, asked for in tries of 40 ms for up to 30 s), then
        CONCURRENTLY on each partition, attached one by one. As with ``autocommit_block()`` what the migration
        has done so far is committed, so give an index a migration of its own. One that was cut off goes on
        when it is run again; ``alembic-partitions repair`` finishes it, too. An index of the same name and
        definition is taken for the same; with another definition it is an error.

        :param columns: as for ``op.create_index``; a unique index holds the partition key.
        :param concurrently: ``False`` is a plain CREATE INDEX in the migration's transaction: nobody can
            write meanwhile. So it is with ``--sql``, where no partition can be looked up.
        :param if_not_exists: for a plain CREATE INDEX.
        :param kw: further arguments of ``op.create_index``, such as ``postgresql_where``.
        :raises IndexRefused: it cannot be made so; nothing was changed.
        :raises LockNotAvailable: a lock was not to be had.
        :raises WorkFailed: PostgreSQL refused a partition's index. What is there by then stays, invalid:
            correct the rows and run it again, or ``op.drop_partitioned_index``.
        """
        kw |= {"schema": schema, "unique": unique, "if_not_exists": if_not_exists}
        operations.invoke(cls(index_name, table_name, columns, concurrently=concurrently, **kw))

    @classmethod
    def of(cls, operation: CreateIndexOp) -> CreatePartitionedIndexOp:
        """Return what creates the index of ``operation`` concurrently."""
        return cls(
            operation.index_name,
            operation.table_name,
            operation.columns,
            schema=operation.schema,
            unique=operation.unique,
            if_not_exists=operation.if_not_exists,
            **operation.kw,
        )

    def plain(self) -> CreateIndexOp:
        """Return Alembic's own operation."""
        return CreateIndexOp(
            self.index_name,
            self.table_name,
            self.columns,
            schema=self.schema,
            unique=self.unique,
            if_not_exists=self.if_not_exists,
            **self.kw,
        )

    def reverse(self) -> DropPartitionedIndexOp:
        """Return the operation that undoes this one."""
        return DropPartitionedIndexOp(
            self.to_index().name or "",
            self.table_name,
            schema=self.schema,
            concurrently=self.concurrently,
            recreate=self,
            unique=self.unique,
            **self.kw,
        )


@Operations.register_operation("drop_partitioned_index")
class DropPartitionedIndexOp(DropIndexOp):
    """Drop an index of a partitioned table."""

    def __init__(
        self,
        index_name: str,
        table_name: str,
        *,
        concurrently: bool = True,
        recreate: CreatePartitionedIndexOp | None = None,
        **kw: Any,
    ) -> None:
        kw.pop(CONCURRENTLY, None)
        super().__init__(index_name, table_name, _reverse=recreate, **kw)
        self.concurrently = concurrently

    @classmethod
    def drop_partitioned_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        *,
        existing_columns: Sequence[str | TextClause | ColumnElement[Any]] | None = None,
        schema: str | None = None,
        concurrently: bool = True,
        if_exists: bool | None = None,
        **kw: Any,
    ) -> None:
        """Drop an index of a partitioned table with those of its partitions, left half built or not.

        PostgreSQL drops it by ACCESS EXCLUSIVE on the table and all its partitions, and has nothing gentler.
        That lasts a moment, in a transaction of its own, and is asked for in short tries for up to 30 s. What
        the migration has done so far is committed before.

        :param existing_columns: with ``kw``, what the reverse needs to create it again.
        :param concurrently: ``False`` is a plain DROP INDEX in the migration's transaction, which waits for
            its locks as long as it takes and keeps them until that ends.
        :param kw: further arguments that it was created with, such as ``unique``.
        :raises IndexRefused: it is no index of that table, or a constraint's; nothing was changed.
        :raises LockNotAvailable: the locks were not to be had; nothing was changed.
        """
        recreate = None
        if existing_columns is not None:
            recreate = CreatePartitionedIndexOp(
                index_name, table_name, existing_columns, schema=schema, concurrently=concurrently, **kw
            )
        kw |= {"schema": schema, "if_exists": if_exists, "concurrently": concurrently}
        operations.invoke(cls(index_name, table_name, recreate=recreate, **kw))

    @classmethod
    def of(cls, operation: DropIndexOp) -> DropPartitionedIndexOp:
        """Return what drops the index of ``operation`` in short tries."""
        recreate = operation.reverse()
        return cls(
            operation.index_name,
            str(operation.table_name),
            schema=operation.schema,
            if_exists=operation.if_exists,
            recreate=CreatePartitionedIndexOp.of(recreate),
            **operation.kw,
        )

    def plain(self) -> DropIndexOp:
        """Return Alembic's own operation."""
        return DropIndexOp(
            self.index_name, self.table_name, schema=self.schema, if_exists=self.if_exists, **self.kw
        )

    def reverse(self) -> CreatePartitionedIndexOp:
        """Return the operation that undoes this one."""
        recreate = self._reverse
        if not isinstance(recreate, CreatePartitionedIndexOp):
            raise ValueError(
                f"drop_partitioned_index({self.index_name!r}) needs existing_columns= to be reversed"
            )
        return recreate


# -- what they do ---------------------------------------------------------------------------------------


@Operations.implementation_for(CreatePartitionedIndexOp)
def _create_partitioned_index(operations: Operations, operation: CreatePartitionedIndexOp) -> None:
    door = door_of(operations, operation.schema, operation.index_name, operation.table_name)
    if door.connection is None or not operation.concurrently:
        if operation.concurrently:
            _remark(door, "CREATE INDEX", operation, "nobody can write to the table meanwhile")
        operations.invoke(operation.plain())
        return
    there = copy.copy(operation)
    there.schema = door.schema_of(operation.schema, operation.table_name)
    index = there.to_index(operations.migration_context)
    table = ddl.indexed_table(index)
    for name in index.kwargs.get("postgresql_include") or ():  # to_index() knows the indexed ones alone
        if name not in table.c:
            table.append_column(Column(name, NullType()))
    told = str(table)
    if not index.name:
        raise IndexRefused(
            index="", table=told, problem="it has no name", remedy="Give it one, or use a naming convention."
        )
    _check_way_out(operations, str(index.name), told)
    home = catalog.find_config(door.connection, door.home)
    with outside(operations) as connection:
        maintenance.create_index(connection, index, config_schema=home)


@Operations.implementation_for(DropPartitionedIndexOp)
def _drop_partitioned_index(operations: Operations, operation: DropPartitionedIndexOp) -> None:
    door = door_of(operations, operation.schema, operation.index_name, operation.table_name)
    if door.connection is None or not operation.concurrently:
        if operation.concurrently:
            _remark(door, "DROP INDEX", operation, "it waits for all who use the table, and others for it")
        operations.invoke(operation.plain())
        return
    schema = str(door.schema_of(operation.schema, operation.table_name))
    table = str(operation.table_name)
    _check_way_out(operations, operation.index_name, f"{schema}.{table}")
    home = catalog.find_config(door.connection, door.home)
    with outside(operations) as connection:
        maintenance.drop_index(
            connection,
            schema,
            table,
            operation.index_name,
            if_exists=bool(operation.if_exists),
            config_schema=home,
        )


def _remark(door: Door, what: str, operation: CreateIndexOp | DropIndexOp, price: str) -> None:
    door.remark(
        f"-- alembic_partitions: a plain {what} for {operation.index_name!r}, as with --sql no partition can"
        f" be looked up; {price}\n"
    )


def _check_way_out(operations: Operations, index: str, table: str) -> None:
    if not may_leave(operations):
        raise IndexRefused(
            index=index,
            table=table,
            problem="it cannot be built or dropped inside a transaction, and env.py has begun one of its own"
            " that Alembic must not commit",
            remedy="Leave the transaction to context.begin_transaction(), or pass concurrently=False.",
        )


# -- how they are written into a migration ---------------------------------------------------------------


_rendered_create: Any = renderers.dispatch(CreateIndexOp)
_rendered_drop: Any = renderers.dispatch(DropIndexOp)


@renderers.dispatch_for(CreatePartitionedIndexOp)
def _render_create(context: AutogenContext, operation: CreatePartitionedIndexOp) -> str:
    text = str(_rendered_create(context, operation))
    return _renamed(text, "create_index", "create_partitioned_index", operation.concurrently)


@renderers.dispatch_for(DropPartitionedIndexOp)
def _render_drop(context: AutogenContext, operation: DropPartitionedIndexOp) -> str:
    text = str(_rendered_drop(context, operation))
    return _renamed(text, "drop_index", "drop_partitioned_index", operation.concurrently)


def _renamed(text: str, name: str, ours: str, concurrently: bool) -> str:
    text = text.replace(name, ours, 1)
    return text if concurrently else f"{text.removesuffix(')')}, concurrently=False)"
