"""A table that is not managed: what it is, what its partitions are, and what pg_partman knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, column, func, literal_column, select, table, text

from alembic_partitions.plan import PartmanSet

# What stands under a name, and by what it is partitioned.
_SHAPE = text("""
SELECT c.oid AS oid, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       c.relispartition AS is_partition, p.partstrat::text AS strategy, p.partnatts AS natts,
       pg_get_partkeydef(c.oid) AS partition_by, a.attname AS key,
       trim(a.atttypid::regtype::text, '"') AS type, NOT a.attnotnull AS nullable,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND p.partattrs[0] <> 0
WHERE n.nspname = CAST(:schema AS text) AND c.relname = CAST(:name AS text)
""")

# The partitions of a table: what they are, their comments, their bounds.
_CHILDREN = text("""
SELECT c.oid AS oid, c.relkind::text AS kind, d.description AS comment,
       pg_get_expr(c.relpartbound, 0) AS bound
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE i.inhparent = CAST(:parent AS oid)
""")

# The zones that sessions have here: of the owner of a table, of the database, of this session.
_ZONES = text("""
SELECT zone FROM (
    SELECT 1 AS rank, substr(given.one, length('TimeZone=') + 1) AS zone
    FROM pg_db_role_setting s, unnest(s.setconfig) AS given(one), pg_class c
    WHERE c.oid = CAST(:parent AS oid) AND s.setrole IN (c.relowner, 0) AND lower(given.one) ^@ 'timezone='
      AND s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
    UNION ALL SELECT 2, reset_val FROM pg_settings WHERE name = 'TimeZone'
) found GROUP BY zone ORDER BY min(rank), zone
""")

# Where pg_partman keeps what it manages: told by the columns that all its versions have.
_PARTMAN = text("""
SELECT n.nspname AS schema,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'part_config' AND c.relkind IN ('r', 'p', 'v')
  AND (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname IN
       ('parent_table', 'control', 'partition_interval', 'premake', 'automatic_maintenance')) = 5
ORDER BY n.nspname
""")


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands under a name."""

    oid: int
    kind: str
    temporary: bool
    is_partition: bool
    has_children: bool
    strategy: str | None
    #: PostgreSQL's own text, and the key's only column: ``None`` where there are several, or an expression.
    partition_by: str | None
    key: str | None
    key_type: str | None
    nullable: bool


@dataclass(frozen=True, slots=True)
class Child:
    """A partition, as far as adopting it goes."""

    kind: str
    comment: str | None
    bound: str


def read_shape(connection: Connection, schema: str, name: str) -> Shape | None:
    """Return what stands under a name, ``None`` where nothing does."""
    row = connection.execute(_SHAPE, {"schema": schema, "name": name}).one_or_none()
    if row is None:
        return None
    return Shape(
        row.oid,
        row.kind,
        row.persistence == "t",
        row.is_partition,
        row.has_children,
        row.strategy,
        row.partition_by,
        row.key if row.natts == 1 else None,
        row.type,
        bool(row.nullable),
    )


def read_children(connection: Connection, parent: int) -> dict[int, Child]:
    """Return the partitions of a table by OID; bounds as the session's settings print them."""
    rows = connection.execute(_CHILDREN, {"parent": parent})
    return {row.oid: Child(row.kind, row.comment, row.bound) for row in rows}


def session_zones(connection: Connection, parent: int) -> list[str]:
    """Return the zones that sessions have here: the owner's or the database's own, then the server's."""
    return list(connection.execute(_ZONES, {"parent": parent}).scalars())


def read_partman(connection: Connection, schema: str, name: str) -> tuple[PartmanSet | None, list[str]]:
    """Return what pg_partman knows of a table, and the schemas whose part_config this role may not read."""
    unread = []
    for found in connection.execute(_PARTMAN).all():
        if not found.readable:
            unread.append(found.schema)
            continue
        config = table("part_config", column("parent_table"), schema=found.schema).alias("config")
        row = connection.execute(
            select(func.to_jsonb(literal_column("config")))
            .select_from(config)
            .where(config.c.parent_table == f"{schema}.{name}")
        ).scalar_one_or_none()
        if row is not None:
            # asyncpg hands out jsonb as text without a type.
            return _partman_set(found.schema, json.loads(row) if isinstance(row, str) else row), unread
    return None, unread


def _partman_set(schema: str, row: Mapping[str, Any]) -> PartmanSet:
    return PartmanSet(
        schema=schema,
        parent=row["parent_table"],
        interval=row["partition_interval"],
        premake=row["premake"],
        retention=row.get("retention"),
        keeps_tables=row.get("retention_keep_table") is not False,
        epoch=row.get("epoch"),
        maintained=row["automatic_maintenance"] == "on",
    )
