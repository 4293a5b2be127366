"""Tables declared as a migration declares them, and what a database then holds, for comparing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.schema import SchemaItem

import alembic_partitions.operations  # noqa: F401  # an installed package needs no such line
from alembic_partitions import PartitionPolicy
from tests.zones import utc

# 13:37:11 in Auckland, on the day of 25 hours.
NOW = utc("2026-04-05 01:37:11")

Dump: TypeAlias = dict[str, list[tuple[Any, ...]]]


def policy(key: str = "at", **fields: Any) -> PartitionPolicy:
    """Return a small Auckland policy: yesterday, today and the next two days."""
    return PartitionPolicy(key, **{"timezone": "Pacific/Auckland", "premake": 2, "lookback": 1, **fields})


@contextmanager
def operations(engine: Engine, **options: Any) -> Iterator[Any]:
    """Open what a migration calls ``op``, in a transaction that is committed at the end."""
    with engine.begin() as connection:
        yield Operations(MigrationContext.configure(connection, opts=options))


def columns(key: str = "at", key_type: Any = None) -> list[SchemaItem]:
    return [
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column(key, key_type or sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("id", key),
    ]


def declare(
    engine: Engine, name: str = "odds", rules: PartitionPolicy | None = None, *items: SchemaItem, **kw: Any
) -> sa.Table:
    """Declare a partitioned table as a migration does."""
    rules = rules or policy()
    with operations(engine) as op:
        table: sa.Table = op.create_partitioned_table(
            name, *(items or columns(rules.key)), policy=rules, **kw
        )
    return table


def quote(name: str) -> str:
    """Quote a name always, by hand."""
    return '"' + name.replace('"', '""') + '"'


def run(engine: Engine, *statements: str) -> None:
    """Send statements as an administrator does, each on its own."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def rows(engine: Engine, query: str, **values: Any) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def scalar(engine: Engine, query: str, **values: Any) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(query), values)


def partitions(engine: Engine, parent: str = "odds") -> list[str]:
    """Return the names of a table's partitions, in order."""
    found = rows(
        engine,
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = :parent AND p.relkind = 'p' ORDER BY 1",
        parent=parent,
    )
    return [name for (name,) in found]


def instants(engine: Engine, parent: str = "odds") -> list[tuple[datetime | str, datetime | str]]:
    """Return the bounds of a table's partitions in order, read under UTC."""
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
        found = connection.execute(
            text(
                "SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i"
                " JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent"
                " WHERE p.relname = :parent AND p.relkind = 'p'"
            ),
            {"parent": parent},
        ).scalars()
        return sorted(_bounds(bound) for bound in found)


def _bounds(text: str) -> tuple[datetime | str, datetime | str]:
    lower, upper = (part.strip("()'") for part in text.removeprefix("FOR VALUES FROM ").split(" TO "))
    return lower, upper


@dataclass
class Sent:
    """The statements that a block sent, as the server got them."""

    statements: list[str] = field(default_factory=list)

    def writes(self) -> list[str]:
        """Those that are no look-up of ours."""
        return [
            s
            for s in self.statements
            if s.startswith(("SET LOCAL", "SELECT pg_adv", "CREATE", "ALTER", "COM", "DO"))
        ]


@contextmanager
def listening(target: Engine | Connection) -> Iterator[Sent]:
    """Note down every statement sent meanwhile."""
    sent = Sent()

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.statements.append(statement)

    event.listen(target, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(target, "before_cursor_execute", note)


# -- a catalog as plain values: nothing in it depends on an OID or on the order of creation --------------

_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_CATALOG = {
    "relations": f"""
        SELECT n.nspname, c.relname, c.relkind, c.relpersistence, pg_get_userbyid(c.relowner), c.reloptions,
               s.spcname, c.relreplident, c.relrowsecurity, a.amname, pg_get_partkeydef(c.oid),
               pg_get_expr(c.relpartbound, c.oid), i.inhparent::regclass::text, i.inhdetachpending,
               obj_description(c.oid, 'pg_class'), x.indisvalid, x.indisunique,
               CASE WHEN x.indexrelid IS NOT NULL THEN pg_get_indexdef(c.oid) END
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace LEFT JOIN pg_am a ON a.oid = c.relam
        LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_index x ON x.indexrelid = c.oid
        WHERE {_OURS}""",
    "columns": f"""
        SELECT n.nspname, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
               a.attnotnull, a.attidentity, a.attgenerated, a.attislocal, a.attinhcount, a.attcollation,
               a.attstattarget, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE {_OURS} AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraints": f"""
        SELECT n.nspname, c.relname, k.conname, k.contype, pg_get_constraintdef(k.oid), k.convalidated,
               k.conislocal, k.coninhcount, k.confrelid::regclass::text,
               obj_description(k.oid, 'pg_constraint')
        FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE {_OURS}""",
}


def catalog(engine: Engine) -> Dump:
    """Return tables, columns, indexes, constraints, bounds and comments, and our configuration's rows."""
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
        found = {name: _sorted(connection, query) for name, query in _CATALOG.items()}
        for schema in {row[0] for row in found["relations"] if row[1] == "partition_config"}:
            found[f"configuration in {schema}"] = _sorted(
                connection, f"SELECT to_jsonb(c)::text FROM {quote(schema)}.partition_config c"
            )
    return found


def _sorted(connection: Connection, query: str) -> list[tuple[Any, ...]]:
    # no_parameters: "%" in a query is a "%".
    found = connection.exec_driver_sql(query, execution_options={"no_parameters": True})
    return sorted((tuple(row) for row in found), key=str)


def without(dump: Dump, *names: str) -> Dump:
    """Return a catalog without some tables, and without what hangs on them by name."""
    return {
        part: [row for row in found if not (len(row) > 1 and str(row[1]).startswith(names))]
        for part, found in dump.items()
        if not part.startswith("configuration")
    }
