"""``MetaData.create_all()`` and ``drop_all()``: the same tables and partitions, for who has no migrations.

A test suite, mostly. Models are compared as autogenerate compares them, and what is missing goes through the
same :class:`~alembic_partitions.declare.Door`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, MetaData, Table, event

from . import catalog
from .compare import Declare, compare
from .declare import Door, declare, ensure_our_tables, forget, free_others
from .maintenance import SCHEMA_VARIABLE
from .policy import INFO_KEY, policy_of
from .rows import schema_of


@contextmanager
def plain_tables(metadata: MetaData) -> Iterator[None]:
    """Make the partitioned models of ``metadata`` plain tables, as long as the block lasts.

    For unit tests that care for rows and not for partitions::

        with plain_tables(Base.metadata):
            Base.metadata.create_all(engine)
    """
    partitioned = [(table, policy) for table in metadata.tables.values() if (policy := policy_of(table))]
    for table, _ in partitioned:
        del table.info[INFO_KEY]
        table.dialect_options["postgresql"]["partition_by"] = None
    try:
        yield
    finally:
        for table, policy in partitioned:
            table.info[INFO_KEY] = policy
            table.dialect_options["postgresql"]["partition_by"] = policy.partition_by


def _before_create(table: Table, connection: Any, **kw: Any) -> None:
    if _is_ours(table, connection):
        compare(table, None)  # a policy that does not fit its table is refused before anything changes
        ensure_our_tables(_door(connection))


def _after_create(table: Table, connection: Any, **kw: Any) -> None:
    if not _is_ours(table, connection):
        return
    door = _door(connection)
    for difference in compare(table, None):
        if isinstance(difference, Declare):
            schema = _schema(table, connection)
            declare(door, door.home, schema, table.name, difference.policy, difference.key_type)


def _before_drop(table: Table, connection: Any, **kw: Any) -> None:
    if _is_ours(table, connection):
        door, schema = _door(connection), _schema(table, connection)
        # While it stands: without a schema its name leads to it, wherever on the search_path that is.
        connection.info[_dropping(table)] = door.schema_of(schema, table.name)
        free_others(door, schema, table.name)


def _after_drop(table: Table, connection: Any, **kw: Any) -> None:
    if not _is_ours(table, connection):
        return
    door, schema = _door(connection), connection.info.pop(_dropping(table), None)
    home = catalog.find_config(connection, door.told or catalog.meant(connection).config_schema)
    if home is not None:
        forget(door, home, schema, table.name)


def _dropping(table: Table) -> str:
    return f"alembic_partitions.dropping.{table.fullname}"


def _is_ours(table: Table, connection: Any) -> bool:
    # Alembic with --sql has no connection, create_mock_engine() one that answers nothing.
    return (
        policy_of(table) is not None
        and isinstance(connection, Connection)
        and connection.dialect.name == "postgresql"
    )


def _door(connection: Connection) -> Door:
    # Where our tables are is known: no schema_translate_map of the application's applies to them.
    as_it_stands: Any = {"schema_translate_map": {}}
    return Door(
        execute=partial(connection.execute, execution_options=as_it_stands),
        connection=connection,
        told=os.environ.get(SCHEMA_VARIABLE) or None,
        remark=lambda text: None,
    )


def _schema(table: Table, connection: Connection) -> str | None:
    return schema_of(connection.get_execution_options(), connection.dialect, table)


for _name, _listener in (
    ("before_create", _before_create),
    ("after_create", _after_create),
    ("before_drop", _before_drop),
    ("after_drop", _after_drop),
):
    event.listen(Table, _name, _listener)
