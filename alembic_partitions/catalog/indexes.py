"""What an operation on a partitioned table's index has to know before it begins."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, text

# A name is cut to 63 bytes as PostgreSQL does it.
_STANDING_INDEX = text("""
SELECT c.oid AS oid, x.indrelid AS relation, h.inhparent AS attached_to, k.conname AS constraint
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index x ON x.indexrelid = c.oid
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
LEFT JOIN pg_constraint k ON k.conindid = c.oid AND k.conrelid = x.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE n.nspname = :schema AND c.relname = CAST(CAST(:name AS text) AS name)
""")

# The table itself, those of its partitions that are partitioned too, and foreign tables among them. A key
# that is an expression has no name.
_LEVELS = text("""
WITH RECURSIVE tree AS (
    SELECT CAST(:table AS oid) AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits i JOIN tree ON tree.oid = i.inhparent AND NOT i.inhdetachpending
)
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       (SELECT json_agg(a.attname)::text FROM unnest(p.partattrs::int2[]) k (attnum)
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum AND k.attnum <> 0) AS key
FROM tree
JOIN pg_class c ON c.oid = tree.oid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table p ON p.partrelid = c.oid
WHERE c.relkind IN ('p', 'f') OR c.oid = CAST(:table AS oid)
ORDER BY c.oid <> CAST(:table AS oid), n.nspname, c.relname
""")


@dataclass(frozen=True, slots=True)
class StandingIndex:
    """What stands under an index's name. ``relation`` is ``None`` where it is no index at all."""

    oid: int
    relation: int | None
    attached_to: int | None
    constraint: str | None


@dataclass(frozen=True, slots=True)
class Level:
    """A table, or a partition that is not a plain one. ``None`` in its key stands for an expression."""

    schema: str
    name: str
    kind: str
    key: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def standing_index(connection: Connection, schema: str, name: str) -> StandingIndex | None:
    """Return what stands under that name."""
    row = connection.execute(_STANDING_INDEX, {"schema": schema, "name": name}).one_or_none()
    return None if row is None else StandingIndex(*row)


def partition_levels(connection: Connection, table: int) -> list[Level]:
    """Return a table, and those of its partitions at any depth that are partitioned or foreign."""
    rows = connection.execute(_LEVELS, {"table": table})
    return [Level(row.schema, row.name, row.kind, tuple(json.loads(row.key or "[]"))) for row in rows]
