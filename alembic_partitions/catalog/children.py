"""A parent and its partitions, as far as they can differ."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.engine import Row

from alembic_partitions.plan import Constraint, Index, ManagedTable, Relation

from .queries import IS_DISTRIBUTED

# attstattarget: -1 up to PostgreSQL 16, NULL from 17 on, where none is set; 0 on a dropped column up to 16.
# An index of a replica identity that was dropped since stays as 'i', and means NOTHING.
_RELATIONS = text(
    """
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner,
       c.relkind::text AS kind, obj_description(c.oid, 'pg_class') AS mark, c.relrowsecurity AS row_security,
       CASE WHEN c.relreplident = 'i' AND r.indexrelid IS NULL THEN 'n'
            ELSE c.relreplident::text END AS replica_identity,
       r.indexrelid AS replica_index,
       (SELECT json_object_agg(a.attname, a.attstattarget)::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND a.attstattarget >= 0) AS statistics,
       """
    + IS_DISTRIBUTED
    + """ AS distributed
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index r ON r.indrelid = c.oid AND r.indisreplident
WHERE c.oid = CAST(:parent AS oid)
   OR c.oid IN (SELECT i.inhrelid FROM pg_inherits i
                WHERE i.inhparent = CAST(:parent AS oid) AND NOT i.inhdetachpending)
ORDER BY c.oid <> CAST(:parent AS oid), c.relname
"""
)

# The definition from USING on: what stands before it is written here as PostgreSQL does, names and all, so
# that no name can be mistaken for it. search_path is pg_catalog, so every name has its schema.
# pg_get_indexdef() waits for whoever has locked the partition, so it is asked only where an index of the
# parent is invalid, and of those alone that may have to do with it, unless told otherwise.
_INDEXES = text("""
SELECT d.*, CASE WHEN starts_with(d.definition, d.head) THEN substr(d.definition, length(d.head) + 1)
            END AS body
FROM (
    SELECT x.indrelid AS relation, x.indexrelid AS oid, n.nspname AS schema, i.relname AS name,
           x.indisunique AS unique, x.indisvalid AND x.indisready AS valid, h.inhparent AS attached_to,
           k.conname AS constraint, k.contype::text AS constraint_kind,
           (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = i.reltablespace) AS tablespace,
           k.condeferrable AS deferrable, k.condeferred AS deferred,
           CASE WHEN CAST(:each AS boolean)
                     OR EXISTS (SELECT FROM pg_index p
                                WHERE p.indrelid = CAST(:parent AS oid) AND NOT p.indisvalid)
                        AND (h.inhparent IS NULL OR x.indrelid = CAST(:parent AS oid))
                THEN pg_get_indexdef(x.indexrelid) END AS definition,
           concat('CREATE ', CASE WHEN x.indisunique THEN 'UNIQUE ' END, 'INDEX ', quote_ident(i.relname),
                  ' ON ', CASE WHEN i.relkind = 'I' THEN 'ONLY ' END,
                  CASE WHEN m.oid = pg_my_temp_schema() THEN 'pg_temp' ELSE quote_ident(m.nspname) END,
                  '.', quote_ident(c.relname), ' ') AS head
    FROM pg_index x
    JOIN pg_class i ON i.oid = x.indexrelid
    JOIN pg_namespace n ON n.oid = i.relnamespace
    JOIN pg_class c ON c.oid = x.indrelid
    JOIN pg_namespace m ON m.oid = c.relnamespace
    LEFT JOIN pg_inherits h ON h.inhrelid = x.indexrelid
    LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid
                              AND k.contype IN ('p', 'u', 'x')
    WHERE x.indrelid = ANY (CAST(:relations AS oid[]))
) d
ORDER BY d.name
""")


_FIELDS = [item.name for item in dataclasses.fields(Relation) if item.name != "indexes"]


def read_family(connection: Connection, managed: ManagedTable) -> tuple[Relation, list[Relation]]:
    """Return a table and its partitions; under :func:`~alembic_partitions.catalog.see_all_rows`."""
    assert managed.oid is not None
    return family_of(connection, managed.oid)


def family_of(connection: Connection, parent: int) -> tuple[Relation, list[Relation]]:
    """Do the same for the table of that OID, managed or not."""
    rows = connection.execute(_RELATIONS, {"parent": parent}).all()
    indexes: dict[int, list[Index]] = {row.oid: [] for row in rows}
    wanted = {"parent": parent, "relations": list(indexes), "each": False}
    for row in connection.execute(_INDEXES, wanted):
        indexes[row.relation].append(_index(row))
    relations = [_relation(row, tuple(indexes[row.oid])) for row in rows]
    return relations[0], relations[1:]


def indexes_of(connection: Connection, relation: int) -> list[Index]:
    """Return the indexes of one table, all with their definitions; under see_all_rows()."""
    wanted = {"parent": relation, "relations": [relation], "each": True}
    return [_index(row) for row in connection.execute(_INDEXES, wanted)]


def _relation(row: Row[Any], indexes: tuple[Index, ...]) -> Relation:
    values: dict[str, Any] = {name: row._mapping[name] for name in _FIELDS}
    values |= {"statistics": json.loads(row.statistics or "{}"), "indexes": indexes}
    return Relation(**values)


def _index(row: Row[Any]) -> Index:
    constraint = None
    if row.constraint is not None:
        constraint = Constraint(row.constraint, row.constraint_kind, row.deferrable, row.deferred)
    return Index(
        row.oid,
        row.schema,
        row.name,
        row.body,
        row.unique,
        row.valid,
        row.attached_to,
        constraint,
        row.tablespace,
    )
