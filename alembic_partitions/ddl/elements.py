"""What every statement of ours is, and how names and texts get into it: quoted, in the last step."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, Text, literal_column
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from alembic_partitions import keys
from alembic_partitions.periods import KeyType, KeyValue

# Statements are written without a driver's placeholders, so "%" stays as it is: what is printed is what is
# sent. standard_conforming_strings is on since PostgreSQL 9.1.
DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
DIALECT._backslash_escapes = False  # noqa: SLF001
# Words that SQLAlchemy does not quote, and PostgreSQL takes for something else (manual, appendix C).
DIALECT.identifier_preparer.reserved_words = DIALECT.identifier_preparer.reserved_words | {
    "collation",
    "concurrently",
    "lateral",
    "system_user",
    "tablesample",
}
# SQLAlchemy's own pattern lets a line break at the end pass, and that names another table.
DIALECT.identifier_preparer.legal_characters = re.compile(r"[A-Z0-9_$]+\Z", re.IGNORECASE | re.ASCII)
quote = DIALECT.identifier_preparer.quote
_write_text = String().literal_processor(DIALECT)  # type: ignore[no-untyped-call]
assert _write_text is not None


class Element(ExecutableDDLElement):
    """One statement. ``str(element)`` is what the server gets."""

    inherit_cache = False

    def sql(self) -> str:
        """Return the statement, quoted."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.sql()


@compiles(Element, "postgresql")
def _compile(element: Element, compiler: DDLCompiler, **kw: Any) -> str:
    # Drivers with %-placeholders halve each "%%" again on the way out.
    doubled: bool = compiler.preparer._double_percents  # noqa: SLF001
    return element.sql().replace("%", "%%") if doubled else element.sql()


def quoted_text(value: str) -> str:
    """Write a text as a literal."""
    return str(_write_text(value))


def text_literal(value: str) -> ColumnElement[str]:
    """Write a text into a statement. With --sql SQLAlchemy 2.0 would double each backslash: it cannot ask the
    server for standard_conforming_strings, and takes the answer of PostgreSQL 9.0."""
    return literal_column(quoted_text(value), Text())


def qualified(schema: str | None, name: str) -> str:
    """Write a table's name, quoted where PostgreSQL needs it."""
    return f"{quote(schema)}.{quote(name)}" if schema else str(quote(name))


@dataclass(eq=False)
class OfTable(Element):
    """A statement about one table: a partition, what was one, what is to be one."""

    schema: str
    name: str

    @property
    def table(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def regclass(self) -> str:
        return f"to_regclass({quoted_text(self.table)})"


@dataclass(eq=False)
class LockAgainstAll(OfTable):
    """Keep everybody out of a table until the transaction ends; ``only`` leaves its partitions out."""

    only: bool = True

    def sql(self) -> str:
        return f"LOCK TABLE {'ONLY ' if self.only else ''}{self.table} IN ACCESS EXCLUSIVE MODE"


class DropTable(OfTable):
    """Drop a table; nothing that depends on it goes with it."""

    def sql(self) -> str:
        return f"DROP TABLE {self.table}"


def is_distributed(relation: str) -> str:
    """Write the condition that Citus keeps the rows of a table: each of those bears a trigger of its own."""
    return (
        "EXISTS (SELECT FROM pg_trigger g JOIN pg_proc f ON f.oid = g.tgfoid"
        f" WHERE g.tgrelid = {relation} AND f.proname = 'citus_truncate_trigger'"
        " AND f.pronamespace = 'pg_catalog'::regnamespace)"
    )


def dollar_quoted(body: str) -> str:
    """Write a PL/pgSQL block in dollar quotes that no name inside can close."""
    tag = "$alembic_partitions$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"{tag}\n{body}END {tag}"


def do_block(body: str) -> str:
    """Write a PL/pgSQL block that runs at once."""
    return f"DO {dollar_quoted(body)}"


def bound_literal(value: KeyValue, key_type: KeyType, upper: bool = False) -> str:
    """Write a bound: an absolute instant (``+00``) for timestamptz, so no session's TimeZone can move it."""
    if not isinstance(value, datetime):
        return quoted_text(value.isoformat())
    if keys.is_encoded(key_type):
        return quoted_text(keys.bound_text(value, key_type, upper))
    text = value.replace(tzinfo=None).isoformat(sep=" ")
    return quoted_text(f"{text}+00" if key_type == "timestamptz" else text)
