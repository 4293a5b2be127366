"""An index of a partitioned table: its definition is SQLAlchemy's own, which knows no ONLY."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Index, Table
from sqlalchemy.schema import CreateIndex

from .elements import DIALECT, Element, OfTable, qualified

#: A temporary table, with which an index is tried out.
PROBE_SCHEMA, PROBE = "pg_temp", "alembic_partitions_probe"
_PROBE = qualified(PROBE_SCHEMA, PROBE)


@dataclass(eq=False)
class CreateIndexOnly(Element):
    """CREATE INDEX ON ONLY a partitioned table: invalid, until each partition has its own."""

    index: Index

    def sql(self) -> str:
        table = DIALECT.identifier_preparer.format_table(indexed_table(self.index))
        return _create_on(self.index, f"ONLY {table}")


class CreateProbe(OfTable):
    """A temporary table with the columns of another: to see how PostgreSQL writes an index down."""

    def sql(self) -> str:
        return f"CREATE TEMPORARY TABLE {_PROBE} (LIKE {self.table})"


@dataclass(eq=False)
class CreateIndexOnProbe(Element):
    """The same index on the probe."""

    index: Index

    def sql(self) -> str:
        return _create_on(self.index, _PROBE)


class DropPartitionedIndex(OfTable):
    """DROP INDEX, each partition's own with it; ``name`` is the index's."""

    def sql(self) -> str:
        return f"DROP INDEX IF EXISTS {self.table}"


def indexed_table(index: Index) -> Table:
    """Return the table of an index that has one."""
    assert index.table is not None
    return index.table


def _create_on(index: Index, target: str) -> str:
    statement = str(CreateIndex(index).compile(dialect=DIALECT))
    preparer = DIALECT.identifier_preparer
    head = f"INDEX {preparer.format_index(index)} ON "
    before, _, rest = statement.partition(f"{head}{preparer.format_table(indexed_table(index))} ")
    assert rest, statement
    return f"{before}{head}{target} {rest}"
