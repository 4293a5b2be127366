"""One index on all partitions of a table, beside readers and writers."""

from __future__ import annotations

import logging
from collections.abc import Collection

from sqlalchemy import Column, Connection, Index

from alembic_partitions import catalog, ddl, executor
from alembic_partitions.errors import IndexRefused, WorkFailed
from alembic_partitions.executor.statements import insist
from alembic_partitions.locks import one_run
from alembic_partitions.plan import Index as FoundIndex
from alembic_partitions.plan import Mend, Mending, Relation, index_mends, index_name

logger = logging.getLogger("alembic_partitions")


def create_index(connection: Connection, index: Index, *, config_schema: str | None = None) -> None:
    """Make an index of a partitioned table and all its partitions, those attached meanwhile included.

    ON ONLY the table first, then CONCURRENTLY on each partition, attached one by one. What an earlier run has
    done of it stays; what it left half done is done anew.

    :param connection: not in a transaction.
    :param index: of a table that names its schema.
    :param config_schema: whose runs are kept out meanwhile.
    :raises IndexRefused: it cannot be made, or another index has its name; nothing was changed.
    :raises LockNotAvailable: a lock was not to be had.
    :raises WorkFailed: PostgreSQL refused a partition's index.
    :raises RunUnderWay: another run has not ended for a minute.
    """
    table = _table_of(connection, index)
    with one_run(connection.engine, config_schema or ""):
        oid = _placed(connection, index, table)
        _complete(connection, table, oid, str(index.name))


def drop_index(
    connection: Connection,
    schema: str,
    table: str,
    name: str,
    *,
    if_exists: bool = False,
    config_schema: str | None = None,
) -> None:
    """Drop an index of a partitioned table with those of its partitions, attached or left half built.

    :param connection: not in a transaction.
    :param if_exists: do nothing where there is none.
    :param config_schema: whose runs are kept out meanwhile.
    :raises IndexRefused: it is no index of that table, or a constraint's; nothing was changed.
    :raises LockNotAvailable: the locks were not to be had.
    :raises RunUnderWay: another run has not ended for a minute.
    """
    with connection.begin():
        oid = catalog.resolve(connection, schema, table)
        found = catalog.standing_index(connection, schema, name)
    if found is None and if_exists:
        return
    told = f"{schema}.{table}"
    if found is None or found.relation is None or found.relation != oid:
        raise IndexRefused(
            index=name, table=told, problem="there is none of that name", remedy="Correct the name."
        )
    if found.constraint is not None:
        raise IndexRefused(
            index=name,
            table=told,
            problem=f"it stands behind the constraint {found.constraint}",
            remedy="Drop that instead: op.drop_constraint().",
        )
    if found.attached_to is not None:
        raise IndexRefused(
            index=name,
            table=told,
            problem="it is part of an index of the table that this one is a partition of",
            remedy="Drop that one.",
        )
    with one_run(connection.engine, config_schema or ""):
        relations = _clear_away(connection, oid, found.oid)
        parent, _ = _family(connection, oid)
        executor.drop_index(
            connection, schema, name, table=told, relations=relations, distributed=parent.distributed
        )


def _table_of(connection: Connection, index: Index) -> int:
    """Return the table's OID, once nothing speaks against the index."""
    table = ddl.indexed_table(index)

    def refused(problem: str, remedy: str) -> IndexRefused:
        return IndexRefused(index=index.name, table=str(table), problem=problem, remedy=remedy)

    with connection.begin():
        oid = catalog.resolve(connection, table.schema, table.name)
        levels = [] if oid is None else catalog.partition_levels(connection, oid)
    if oid is None:
        raise refused("there is no such table", "Correct the name.")
    if levels[0].kind != "p":
        raise refused(
            "the table is not partitioned", "Use op.create_index() with postgresql_concurrently=True."
        )
    for level in levels:
        if level.kind == "f":
            raise refused(
                f"{level} is a foreign table, which has no index, so this one would never become valid",
                "Pass concurrently=False, which leaves foreign tables out.",
            )
        lacking = _lacking(index, level.key) if index.unique else []
        if lacking:
            raise refused(
                f"a unique index has to hold the partition key, and of that of {level} it lacks"
                f" {', '.join(lacking)}",
                "Add it to the columns, or make the index without unique.",
            )
    return oid


def _lacking(index: Index, key: Collection[str | None]) -> list[str]:
    """Return what of a partition key is not among an index's columns, as far as those can be told."""
    columns = {item.name if isinstance(item, Column) else None for item in index.expressions}
    if None in columns:  # what an expression is, PostgreSQL tells
        return []
    return ["an expression" if name is None else name for name in key if name not in columns]


def _placed(connection: Connection, index: Index, table: int) -> int:
    """See to it that the table itself has the index; return that index's OID."""
    name, told = str(index.name), ddl.indexed_table(index)
    schema = str(told.schema)
    with connection.begin():
        found = catalog.standing_index(connection, schema, name)
    try:
        if found is None:
            parent, _ = _family(connection, table)
            executor.place_index(connection, index, table, distributed=parent.distributed)
            with connection.begin():
                found = catalog.standing_index(connection, schema, name)
            assert found is not None
            return found.oid
        if found.relation == table:
            with connection.begin():
                catalog.see_all_rows(connection)
                (mine,) = (own for own in catalog.indexes_of(connection, table) if own.oid == found.oid)
            wanted = executor.tried_index(connection, index)
            if (mine.body, mine.unique) == (wanted.body, wanted.unique) and mine.body is not None:
                return found.oid
    except WorkFailed as error:
        raise IndexRefused(
            index=name, table=str(told), problem=error.reason, remedy="Correct it; nothing was changed."
        ) from error
    raise IndexRefused(
        index=name,
        table=str(told),
        problem="something else has that name, or an index with another definition",
        remedy="Choose another name, or drop that first. Nothing was changed.",
    )


def _complete(connection: Connection, table: int, oid: int, name: str) -> None:
    """Give each partition its part of an index, and look again until none is lacking."""
    told_again = False
    while True:
        parent, children = _family(connection, table)
        wanted = next((index for index in parent.indexes if index.oid == oid), None)
        if wanted is not None and wanted.valid:
            return
        if wanted is None:
            raise _incomplete(parent, name, "the index was dropped meanwhile")
        mends = list(index_mends(wanted, children))
        for number, mend in enumerate(mends, start=1):
            if not isinstance(mend, Mend):
                raise _incomplete(parent, name, str(mend))
            executor.mend_child(connection, parent, mend, unhurried=True)
            logger.info("index %s: %s has it (%d of %d)", name, mend.child, number, len(mends))
        if mends:
            continue
        parts = [(child, part) for child in children for part in child.indexes if part.attached_to == oid]
        deeper = [(child, part) for child, part in parts if not part.valid]
        for child, part in deeper:
            _complete(connection, child.oid, part.oid, name)
        if deeper:
            continue
        if told_again or not parts:
            raise _incomplete(parent, name, "it is still invalid though each partition has its part of it")
        # Current minor releases look whether it is valid when they are told once more.
        child, part = parts[0]
        executor.mend_child(connection, parent, Mend(Mending.ATTACH_INDEX, child, part.name, of=wanted))
        told_again = True


def _incomplete(parent: Relation, name: str, why: str) -> WorkFailed:
    return WorkFailed(table=str(parent), what=f"building index {name}", reason=why)


def _clear_away(connection: Connection, table: int, oid: int) -> list[int]:
    """Drop what was built for an index and never attached; return the table and its partitions."""
    parent, children = _family(connection, table)
    relations = [parent.oid]
    wanted = next((index for index in parent.indexes if index.oid == oid), None)
    for child in children:
        relations.append(child.oid)
        for index in child.indexes:
            if wanted is not None and _is_left_over(child, index, wanted):
                mend = Mend(Mending.DROP_INDEX, child, index.name)
                executor.mend_child(connection, parent, mend, unhurried=True)
            elif index.attached_to == oid and child.kind == "p":
                relations += _clear_away(connection, child.oid, index.oid)[1:]
    return relations


def _is_left_over(child: Relation, index: FoundIndex, wanted: FoundIndex) -> bool:
    return (
        index.attached_to is None
        and index.constraint is None
        and child.kind == "r"
        and index.name == index_name(child, wanted)
    )


def _family(connection: Connection, table: int) -> tuple[Relation, list[Relation]]:
    found: list[tuple[Relation, list[Relation]]] = []

    def read() -> int:
        with connection.begin():
            catalog.see_all_rows(connection)
            found.append(catalog.family_of(connection, table))
        return 0

    insist(read, connection, table=str(table), what="reading the partitions", relations=[table])
    return found[-1]
