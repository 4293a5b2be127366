"""Everything that hangs on a table: what a conversion carries over, and what stands in its way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    Text,
    cast,
    exists,
    false,
    func,
    select,
    table,
    text,
)
from sqlalchemy.engine import Row

from alembic_partitions.periods import KeyType
from alembic_partitions.plan import (
    Belongings,
    Ends,
    OwnCheck,
    OwnColumn,
    OwnIndex,
    OwnKey,
    OwnPolicy,
    OwnStatistics,
    OwnTrigger,
    Part,
    Publication,
    Reader,
)

from .draining import has_rows
from .keys import key_column, printed_ends
from .queries import IS_DISTRIBUTED
from .values import value_of

_TABLE = text(
    """
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner,
       c.relkind::text AS kind, c.relpersistence::text AS persistence, c.relispartition AS is_partition,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid) AS inherits,
       EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_heirs,
       c.reloftype <> 0 AS of_type,
       EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN') AS has_rules,
       obj_description(c.oid, 'pg_class') AS comment,
       (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace) AS tablespace,
       (SELECT m.amname FROM pg_am m WHERE m.oid = c.relam AND m.amname <> 'heap') AS access_method,
       to_json(coalesce(c.reloptions, '{}'))::text AS options,
       CASE WHEN c.relreplident = 'i' AND x.indexrelid IS NULL THEN 'n' ELSE c.relreplident::text
       END AS replica_identity,
       (SELECT i.relname FROM pg_class i WHERE i.oid = x.indexrelid) AS replica_index,
       EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid = c.oid) AS is_subscribed,
       """
    + IS_DISTRIBUTED
    + """ AS is_distributed,
       pg_has_role(c.relowner, 'USAGE') AS is_owned,
       has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(c.relowner, n.oid, 'CREATE')
           AS may_create,
       c.relrowsecurity AS row_security, c.relforcerowsecurity AS force_row_security,
       pg_relation_size(c.oid) / current_setting('block_size')::bigint AS pages,
       greatest(c.reltuples, 0)::float8 AS rows
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index x ON x.indrelid = c.oid AND x.indisreplident
WHERE n.nspname = :schema AND c.relname = :name AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'i', 'I', 'c')
"""
)

# attstattarget: -1 up to PostgreSQL 16, NULL from 17 on, where none is set.
_COLUMNS = text("""
SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       a.attidentity::text AS identity, a.attgenerated <> '' AS generated,
       CASE WHEN a.attstattarget >= 0 THEN a.attstattarget::int END AS statistics,
       to_json(coalesce(a.attoptions, '{}'))::text AS options,
       col_description(a.attrelid, a.attnum) AS comment,
       (SELECT json_agg(json_build_array(n.nspname, s.relname, d.deptype) ORDER BY d.deptype, s.relname)::text
        FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
        JOIN pg_namespace n ON n.oid = s.relnamespace
        WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum AND d.deptype IN ('a', 'i')) AS sequences
FROM pg_attribute a
WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
""")

# The definition from USING on: what stands before it is written here as PostgreSQL does, names and all.
_INDEXES = text("""
SELECT n.nspname AS schema, i.relname AS name, x.indisunique AS unique,
       x.indisvalid AND x.indisready AS valid,
       substr(pg_get_indexdef(x.indexrelid), length(concat(
           'CREATE ', CASE WHEN x.indisunique THEN 'UNIQUE ' END, 'INDEX ', quote_ident(i.relname), ' ON ',
           CASE WHEN i.relkind = 'I' THEN 'ONLY ' END,
           quote_ident(m.nspname), '.', quote_ident(c.relname), ' ')) + 1) AS body,
       (SELECT json_agg(a.attname ORDER BY k.n)::text
        FROM unnest(x.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum AND k.attnum <> 0
        WHERE k.n <= x.indnkeyatts) AS columns,
       (SELECT json_agg(a.attname ORDER BY k.n)::text
        FROM unnest(x.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
        WHERE k.n > x.indnkeyatts) AS included,
       k.contype::text AS kind, pg_get_constraintdef(k.oid) AS definition,
       coalesce(k.condeferrable, false) AS deferrable, coalesce(k.condeferred, false) AS deferred,
       obj_description(x.indexrelid, 'pg_class') AS comment, obj_description(k.oid, 'pg_constraint') AS told,
       (SELECT s.spcname FROM pg_tablespace s WHERE s.oid = i.reltablespace) AS tablespace,
       x.indisexclusion AS exclusion, to_json(coalesce(i.reloptions, '{}'))::text AS options,
       (SELECT p.relname FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
        WHERE h.inhrelid = x.indexrelid) AS parent
FROM pg_index x
JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_namespace n ON n.oid = i.relnamespace
JOIN pg_class c ON c.oid = x.indrelid
JOIN pg_namespace m ON m.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = x.indexrelid AND k.conrelid = x.indrelid
                          AND k.contype IN ('p', 'u', 'x')
WHERE x.indrelid = CAST(:oid AS oid)
ORDER BY k.contype = 'p' DESC NULLS LAST, i.relname
""")

_CONSTRAINTS = text("""
SELECT k.conname AS name, k.contype::text AS kind, pg_get_constraintdef(k.oid) AS definition,
       k.convalidated AS validated, NOT k.connoinherit AS inherited,
       obj_description(k.oid, 'pg_constraint') AS comment,
       (SELECT format('%I.%I', n.nspname, r.relname) FROM pg_class r
        JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = k.confrelid) AS refers_to,
       k.confrelid = 0 OR has_table_privilege(k.confrelid, 'REFERENCES') AS may_refer
FROM pg_constraint k
WHERE k.conrelid = CAST(:oid AS oid) AND k.conparentid = 0
  -- NOT NULL may be NOT VALID from PostgreSQL 18 on.
  AND (k.contype IN ('f', 'c') OR k.contype = 'n' AND NOT k.convalidated)
ORDER BY k.conname
""")

# tgtype: bit 1 FOR EACH ROW, bit 2 BEFORE. The one by which rows are just being copied is ours.
_TRIGGERS = text("""
SELECT t.tgname AS name, pg_get_triggerdef(t.oid) AS definition, t.tgenabled::text AS enabled,
       obj_description(t.oid, 'pg_trigger') AS comment,
       t.tgtype::int & 1 <> 0 AS for_each_row, t.tgtype::int & 2 <> 0 AS before,
       t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL AS transition_tables
FROM pg_trigger t
WHERE t.tgrelid = CAST(:oid AS oid) AND NOT t.tgisinternal AND t.tgname <> 'alembic_partitions_watch'
ORDER BY t.tgname
""")

_POLICIES = text("""
SELECT p.polname AS name, p.polpermissive AS permissive,
       CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                     WHEN 'd' THEN 'DELETE' ELSE 'ALL' END AS command,
       (SELECT json_agg(r.rolname ORDER BY r.rolname)::text
        FROM pg_roles r WHERE r.oid = ANY (p.polroles)) AS roles,
       pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check,
       obj_description(p.oid, 'pg_policy') AS comment
FROM pg_policy p
WHERE p.polrelid = CAST(:oid AS oid)
ORDER BY p.polname
""")

_STATISTICS = text("""
SELECT n.nspname AS schema, s.stxname AS name, pg_get_statisticsobjdef(s.oid) AS definition,
       pg_get_userbyid(s.stxowner) AS owner, obj_description(s.oid, 'pg_statistic_ext') AS comment,
       CASE WHEN s.stxstattarget >= 0 THEN s.stxstattarget::int END AS goal
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
WHERE s.stxrelid = CAST(:oid AS oid)
ORDER BY 1, 2
""")

_PUBLICATIONS = text("""
SELECT p.pubname AS name, p.pubviaroot AS via_root, r.oid IS NOT NULL AS explicit,
       pg_has_role(p.pubowner, 'USAGE') AS owned, pg_get_userbyid(p.pubowner) AS owner,
       (SELECT json_agg(a.attname ORDER BY a.attnum)::text FROM pg_attribute a
        WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])) AS columns,
       pg_get_expr(r.prqual, r.prrelid) AS where
FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = CAST(:oid AS oid)
WHERE r.oid IS NOT NULL OR p.puballtables
   OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_class c ON c.relnamespace = s.pnnspid
              WHERE s.pnpubid = p.oid AND c.oid = CAST(:oid AS oid))
ORDER BY p.pubname
""")

# Whatever depends on the table, on its row type or on one of its constraints, and is not its own. A view can
# be told to read another table, under its old name; nothing else can, nor a view that groups by a key.
_DEPENDENTS = text("""
SELECT DISTINCT v.oid IS NOT NULL AS view, vn.nspname AS schema, v.relname AS name,
       pg_has_role(v.relowner, 'USAGE') AS owned, pg_get_userbyid(v.relowner) AS owner,
       CASE WHEN v.oid IS NOT NULL THEN pg_get_viewdef(v.oid) END AS definition,
       to_json(coalesce(v.reloptions, '{}'))::text AS options,
       CASE WHEN v.oid IS NULL THEN
           coalesce((SELECT pg_describe_object('pg_class'::regclass, m.ev_class, 0) FROM pg_rewrite m
                     WHERE d.classid = 'pg_rewrite'::regclass AND m.oid = d.objid
                       AND m.rulename = '_RETURN'),
                    pg_describe_object(d.classid, d.objid, 0)) END AS told
FROM pg_class c
JOIN pg_type t ON t.oid = c.reltype
JOIN pg_depend d ON (d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid)
                 OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray))
                 OR (d.refclassid = 'pg_constraint'::regclass
                     AND d.refobjid IN (SELECT k.oid FROM pg_constraint k WHERE k.conrelid = c.oid))
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v' AND d.refclassid = 'pg_class'::regclass
                     AND r.rulename = '_RETURN'
LEFT JOIN pg_namespace vn ON vn.oid = v.relnamespace
WHERE c.oid = CAST(:oid AS oid) AND d.deptype = 'n' AND r.ev_class IS DISTINCT FROM c.oid
  AND NOT (d.classid = 'pg_constraint'::regclass
           AND EXISTS (SELECT FROM pg_constraint k WHERE k.oid = d.objid
                       AND (k.conrelid = c.oid OR k.confrelid = c.oid)))
  AND NOT (d.classid = 'pg_policy'::regclass
           AND EXISTS (SELECT FROM pg_policy p WHERE p.oid = d.objid AND p.polrelid = c.oid))
  AND NOT (d.classid = 'pg_trigger'::regclass
           AND EXISTS (SELECT FROM pg_trigger g WHERE g.oid = d.objid AND g.tgrelid = c.oid))
  AND NOT (d.classid = 'pg_attrdef'::regclass
           AND EXISTS (SELECT FROM pg_attrdef f WHERE f.oid = d.objid AND f.adrelid = c.oid))
  AND NOT (d.classid = 'pg_class'::regclass
           AND EXISTS (SELECT FROM pg_inherits h WHERE h.inhparent = c.oid AND h.inhrelid = d.objid))
  AND NOT (d.classid = 'pg_publication_rel'::regclass)
UNION ALL
-- The sequence of an identity is made anew.
SELECT false, NULL, NULL, NULL, NULL, NULL, NULL, pg_describe_object(d.classid, d.objid, 0)
FROM pg_depend i
JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = i.objid AND d.deptype = 'n'
WHERE i.classid = 'pg_class'::regclass AND i.refclassid = 'pg_class'::regclass
  AND i.refobjid = CAST(:oid AS oid) AND i.refobjsubid > 0 AND i.deptype = 'i'
UNION ALL
SELECT false, NULL, NULL, NULL, NULL, NULL, NULL, concat('security label of provider ', l.provider)
FROM pg_seclabel l WHERE l.classoid = 'pg_class'::regclass AND l.objoid = CAST(:oid AS oid)
ORDER BY 2, 3, 8
""")

_INCOMING = text("""
SELECT format('%I.%I (%I)', n.nspname, c.relname, k.conname) AS told
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.confrelid = CAST(:oid AS oid) AND k.contype = 'f' AND k.conparentid = 0
ORDER BY 1
""")


_CHILDREN = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       obj_description(c.oid, 'pg_class') AS mark,
       (SELECT min(format('%I.%I', vn.nspname, v.relname))
        FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace vn ON vn.oid = v.relnamespace
        WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.deptype = 'n'
          AND v.oid <> c.oid) AS readers
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = CAST(:oid AS oid)
ORDER BY c.relname
""")


def read_belongings(connection: Connection, schema: str, name: str) -> Belongings | None:
    """Return a relation with everything that hangs on it, ``None`` where there is none; under
    :func:`~alembic_partitions.catalog.see_all_rows`, so that every name is written with its schema."""
    row = connection.execute(_TABLE, {"schema": schema, "name": name}).one_or_none()
    if row is None:
        return None

    def rows(query: Any) -> list[Row[Any]]:
        return list(connection.execute(query, {"oid": row.oid}).all())

    columns = rows(_COLUMNS)
    sequences: dict[str, list[list[str]]] = {c.name: json.loads(c.sequences or "[]") for c in columns}
    constraints, dependents, publications = rows(_CONSTRAINTS), rows(_DEPENDENTS), rows(_PUBLICATIONS)
    apart = "options", "is_owned", "may_create"
    told = {key: value for key, value in row._mapping.items() if key not in apart}
    return Belongings(
        **told,
        options=tuple(json.loads(row.options)),
        columns=tuple(_column(c, sequences[c.name]) for c in columns),
        indexes=tuple(_index(i) for i in rows(_INDEXES)),
        foreign_keys=tuple(
            OwnKey(k.name, k.definition, k.validated, k.comment, k.refers_to)
            for k in constraints
            if k.kind == "f"
        ),
        checks=tuple(
            OwnCheck(k.name, k.validated, k.inherited, k.comment, k.definition)
            for k in constraints
            if k.kind != "f"
        ),
        triggers=tuple(OwnTrigger(**t._mapping) for t in rows(_TRIGGERS)),
        policies=tuple(
            OwnPolicy(**{**p._mapping, "roles": tuple(json.loads(p.roles or "[]"))}) for p in rows(_POLICIES)
        ),
        statistics=tuple(OwnStatistics(**s._mapping) for s in rows(_STATISTICS)),
        sequences=tuple(
            (column, (schema, name))
            for column, found in sequences.items()
            for schema, name, kind in found
            if kind == "a"
        ),
        publications=tuple(
            Publication(p.name, p.via_root, p.explicit, p.columns and tuple(json.loads(p.columns)), p.where)
            for p in publications
        ),
        views=tuple(
            Reader(d.schema, d.name, d.definition, tuple(json.loads(d.options))) for d in dependents if d.view
        ),
        incoming=tuple(i.told for i in rows(_INCOMING)),
        bound=tuple(d.told for d in dependents if not d.view),
        lacking=tuple(_lacking(row, dependents, publications, constraints)),
    )


def _lacking(
    row: Row[Any],
    dependents: list[Row[Any]],
    publications: list[Row[Any]],
    constraints: list[Row[Any]],
) -> Iterator[str]:
    """Yield what this role lacks to take a table's place with another."""
    if not row.is_owned:
        yield f"membership in {row.owner}, who owns it"
    if not row.may_create:
        yield f"CREATE on schema {row.schema}, it or {row.owner}"
    for view in dependents:
        if view.view and not view.owned:
            yield f"membership in {view.owner}, who owns view {view.schema}.{view.name}"
    for publication in publications:
        if publication.explicit and not publication.owned:
            yield f"membership in {publication.owner}, who owns publication {publication.name}"
    for key in constraints:
        if not key.may_refer:
            yield f"REFERENCES on {key.refers_to}"


def _column(row: Row[Any], sequences: list[list[str]]) -> OwnColumn:
    sequence = next((found for found in sequences if found[2] == "i"), None)
    return OwnColumn(
        row.name,
        row.type,
        row.not_null,
        row.identity,
        row.generated,
        (sequence[0], sequence[1]) if sequence is not None else None,
        row.statistics,
        tuple(json.loads(row.options)),
        row.comment,
    )


def _index(row: Row[Any]) -> OwnIndex:
    values = {**row._mapping}
    values |= {name: tuple(json.loads(values[name] or "[]")) for name in ("columns", "included", "options")}
    return OwnIndex(**values)


def read_ends(connection: Connection, of: Belongings, key: str, key_type: KeyType) -> Ends:
    """Return the oldest and the newest key; under :func:`~alembic_partitions.catalog.see_all_rows`.

    By the index on the key, or by reading the table through once where there is none, however long it takes.
    """
    connection.execute(select(func.set_config("statement_timeout", "0", True)))
    keys = key_column(key, key_type)
    rows = table(of.name, keys, schema=of.schema)
    known = of.column(key)
    nullable = known is None or not known.not_null
    if of.is_indexed_by(key):
        present = select(cast(keys, Text)).select_from(rows).where(keys.is_not(None)).limit(1)
        ends = (present.order_by(order).scalar_subquery() for order in (keys.asc(), keys.desc()))
        has_null = exists(select(keys).select_from(rows).where(keys.is_(None))) if nullable else false()
        query: Select[Any] = select(*ends, has_null)
    else:
        query = select(*printed_ends(keys, key_type), func.bool_or(keys.is_(None))).select_from(rows)
    first, last, has_null_keys = connection.execute(query).one()
    if first is None or last is None:
        return Ends(has_null=bool(has_null_keys))
    oldest, newest = (value_of(text, key_type) for text in (first, last))
    endless = oldest is None or newest is None
    return Ends(oldest, newest, (first, last), bool(has_null_keys), endless)


def read_parts(connection: Connection, of: Belongings) -> list[Part]:
    """Return the partitions of a table, and which of them hold rows; under
    :func:`~alembic_partitions.catalog.see_all_rows`."""
    return [
        Part(**row._mapping, has_rows=has_rows(connection, row.schema, row.name))
        for row in connection.execute(_CHILDREN, {"oid": of.oid}).all()
    ]
