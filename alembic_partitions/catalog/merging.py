"""What partitions are that are to be merged into one plain table, and how far that has come."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, column, select, table, text
from sqlalchemy.engine import Row

from alembic_partitions.plan import (
    DRAINING_MARK,
    MERGING_MARK,
    SPLITTING_MARK,
    UNPARTITIONED_MARK,
    Belongings,
    Leaf,
    Mergeable,
    told_of_merge,
)

from .belongings import read_belongings
from .splitting import read_told_by

# What hangs on a partition alone: triggers (not our own), views, foreign keys of others.
_LEAVES = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       c.relpersistence::text AS persistence, m.amname AS access_method, c.relhasrules AS has_rules,
       row_security_active(c.oid) AS hides_rows, i.inhdetachpending AS detach_pending,
       to_json(coalesce(c.reloptions, '{}'))::text AS options, obj_description(c.oid, 'pg_class') AS mark,
       (SELECT json_agg(x.told ORDER BY x.told)::text FROM (
            SELECT format('trigger %I', t.tgname) AS told FROM pg_trigger t
            WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgparentid = 0
              AND NOT starts_with(t.tgname, :ours)
            UNION
            SELECT format('view %I.%I', w.nspname, v.relname)
            FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
            JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace w ON w.oid = v.relnamespace
            WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
              AND d.refobjid = c.oid AND r.ev_class <> c.oid
            UNION
            SELECT format('foreign key %I of %I.%I', k.conname, w.nspname, f.relname)
            FROM pg_constraint k
            JOIN pg_class f ON f.oid = k.conrelid JOIN pg_namespace w ON w.oid = f.relnamespace
            WHERE k.confrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0
        ) x) AS alone,
       greatest(c.reltuples, 0)::bigint AS rows, coalesce(pg_total_relation_size(c.oid), 0) AS bytes,
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::bigint AS blocks,
       pg_relation_filenode(c.oid) AS filenode,
       (SELECT t.oid FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = :watching) AS watcher
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_am m ON m.oid = c.relam
WHERE i.inhparent = CAST(:oid AS oid)
ORDER BY c.relname
""")

_SERVER = text("""
SELECT row_security_active(CAST(CAST(:oid AS oid) AS regclass)) AS hides_rows,
       current_setting('wal_level') = 'logical' AS is_logical,
       current_setting('max_locks_per_transaction')::bigint
         * (current_setting('max_connections')::bigint
            + current_setting('max_prepared_transactions')::bigint) AS lock_table
""")

# Tables by what their comments say. Whoever owns a table may write any comment on it, so the owner matters.
_MARKED = text("""
SELECT n.nspname AS schema, c.relname AS name, d.description AS mark, pg_get_userbyid(c.relowner) AS owner,
       c.relowner = to_regrole(quote_ident(current_user)) AS mine
FROM pg_description d
JOIN pg_class c ON c.oid = d.objoid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND NOT c.relispartition
  AND c.relkind IN ('r', 'p') AND n.nspname = :schema AND starts_with(d.description, :mark)
""")

_WATCHING = "alembic_partitions_watch"


def _marked(connection: Connection, of: Belongings, mark: str) -> list[Row[Any]]:
    rows = connection.execute(_MARKED, {"schema": of.schema, "mark": mark})
    return [row for row in rows if row.mine or row.owner == of.owner]


def read_merging(connection: Connection, of: Belongings) -> Belongings | None:
    """Return the plain table that the partitions of one are just being merged into; under
    :func:`~alembic_partitions.catalog.see_all_rows`."""
    for row in _marked(connection, of, MERGING_MARK):
        told = told_of_merge(row.mark)
        if told is not None and told["of"] == of.oid:
            return read_belongings(connection, row.schema, row.name)
    return None


def other_work(connection: Connection, of: Belongings) -> tuple[bool, bool]:
    """Tell whether a partition of a table is just being split, and whether rows of its DEFAULT partition are
    gathered beside it."""
    found = []
    for mark, names in ((SPLITTING_MARK, "of"), (DRAINING_MARK, "oid")):
        oids = set()
        for row in _marked(connection, of, mark):
            with suppress(ValueError, KeyError, TypeError):  # a comment that a person edited
                oids.add(json.loads(row.mark.removeprefix(mark))[names])
        found.append(of.oid in oids)
    return found[0], found[1]


def read_unpartitioned(connection: Connection, of: Belongings) -> tuple[str, bool] | None:
    """Return the partitioned table that a plain one has taken the place of, and whether both were
    compared."""
    for row in _marked(connection, of, UNPARTITIONED_MARK):
        with suppress(ValueError, KeyError, TypeError):  # a comment that a person edited
            told = json.loads(row.mark.removeprefix(UNPARTITIONED_MARK))
            if int(told["plain"]) == of.oid:
                return row.name, bool(told["verified"])
    return None


def read_mergeable(connection: Connection, of: Belongings) -> Mergeable:
    """Return what copying the rows of a table has to mind; under
    :func:`~alembic_partitions.catalog.see_all_rows`."""
    row = connection.execute(_SERVER, {"oid": of.oid}).one()
    return Mergeable(*read_told_by(connection, of.oid), row.hides_rows, row.is_logical, row.lock_table)


def read_leaves(
    connection: Connection, of: Belongings, state: tuple[str, str] | None = None
) -> tuple[Leaf, ...]:
    """Return the partitions of a table with all that hangs on each alone.

    :param state: the table that holds how far each is copied, if it is there.
    """
    copied = {} if state is None else _progress(connection, *state)
    found = connection.execute(_LEAVES, {"oid": of.oid, "ours": _WATCHING, "watching": _WATCHING}).all()
    return tuple(_leaf(row, copied.get(row.oid)) for row in found)


def _progress(connection: Connection, schema: str, name: str) -> dict[int, Row[Any]]:
    names = ("source", "next_block", "end_block", "filenode", "rows", "verified", "watcher")
    rows = connection.execute(select(table(name, *map(column, names), schema=schema)))
    return {row.source: row for row in rows}


def _leaf(row: Row[Any], copied: Row[Any] | None) -> Leaf:
    told = {key: value for key, value in row._mapping.items() if key not in ("filenode", "watcher")}
    told |= {"options": tuple(json.loads(row.options)), "alone": tuple(json.loads(row.alone or "[]"))}
    leaf = Leaf(**told)
    if copied is None:
        return leaf
    same = (copied.filenode, copied.watcher) == (row.filenode, row.watcher)
    return Leaf(
        **told,
        is_known=same,
        is_copied=same and copied.next_block >= copied.end_block,
        is_verified=same and copied.verified,
        copied=copied.rows,
        next_block=copied.next_block,
        end_block=copied.end_block,
    )


def left_leaves(connection: Connection, leaves: tuple[Leaf, ...], state: tuple[str, str]) -> bool:
    """Tell whether rows of what is no partition any more were copied."""
    return bool(_progress(connection, *state).keys() - {leaf.oid for leaf in leaves})
