"""The row that proves that inserts find their partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alembic_partitions import keys
from alembic_partitions.periods import KeyType, KeyValue

from .elements import Element, bound_literal, qualified, quote


@dataclass(eq=False)
class SetStatementTimeout(Element):
    """Bound each statement of this transaction."""

    milliseconds: int

    def sql(self) -> str:
        return f"SET LOCAL statement_timeout = '{self.milliseconds:d}ms'"


@dataclass(eq=False)
class TestRow(Element):
    """Insert a copy of the newest row under another key, or a row that holds the key alone.

    :param columns: what is copied beside the key; ``None`` copies nothing.
    """

    schema: str
    table: str
    key: str
    key_type: KeyType
    value: KeyValue
    columns: Sequence[str] | None = None

    def sql(self) -> str:
        table, key = qualified(self.schema, self.table), quote(self.key)
        value = f"CAST({bound_literal(self.value, self.key_type)} AS {keys.SQL_TYPES[self.key_type]})"
        where_to = (
            " RETURNING (SELECT concat(n.nspname, '.', c.relname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = tableoid)"
        )
        if self.columns is None:
            return f"INSERT INTO {table} ({key}) VALUES ({value}){where_to}"
        names = [str(quote(name)) for name in self.columns]
        return (
            f"INSERT INTO {table} ({', '.join([key, *names])}) SELECT {', '.join([value, *names])}"
            f" FROM {table} ORDER BY {key} DESC NULLS LAST LIMIT 1{where_to}"
        )
