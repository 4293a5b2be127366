"""What a partition is that is to be split, and how far a split has come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnClause, Connection, Text, cast, column, func, select, table, text
from sqlalchemy.engine import Row

from alembic_partitions.periods import KeyValue
from alembic_partitions.plan import (
    SPLIT_GROUP_MARK,
    SPLIT_MARK,
    SPLITTING_MARK,
    ForeignKey,
    Group,
    Identified,
    ManagedTable,
    Partition,
    Piece,
    Split,
    Splittable,
)

from .values import partition_of, value_of

# Of several unique indexes over columns that are never NULL the primary key is the first choice. The equality
# operator is the index's own, with its schema: search_path may lead to another one, which no index serves.
_FACTS = text("""
SELECT c.relkind::text AS kind, c.relpersistence::text AS persistence, c.relhasrules AS has_rules,
       (SELECT m.amname FROM pg_am m WHERE m.oid = c.relam) AS access_method,
       row_security_active(c.oid) OR row_security_active(p.oid) AS hides_rows,
       (SELECT json_agg(json_build_array(a.attname, a.attgenerated = '') ORDER BY a.attnum)::text
        FROM pg_attribute a
        WHERE a.attrelid = p.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
       (SELECT u.told FROM (
            SELECT x.indisprimary, x.indexrelid,
                   json_agg(json_build_array(a.attname, format('OPERATOR(%I.%s)', n.nspname, o.oprname))
                            ORDER BY k.n)::text AS told,
                   bool_and(a.attnotnull) AS never_null, count(a.attname) = x.indnkeyatts AS columns_only
            FROM pg_index x
            CROSS JOIN LATERAL unnest(x.indkey::int2[], x.indclass::oid[])
                WITH ORDINALITY k (attnum, opclass, n)
            LEFT JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum = k.attnum AND k.attnum <> 0
            LEFT JOIN pg_opclass f ON f.oid = k.opclass
            LEFT JOIN pg_amop w ON w.amopfamily = f.opcfamily AND w.amopstrategy = 3
                AND w.amoplefttype = f.opcintype AND w.amoprighttype = f.opcintype
            LEFT JOIN pg_operator o ON o.oid = w.amopopr
            LEFT JOIN pg_namespace n ON n.oid = o.oprnamespace
            WHERE x.indrelid = p.oid AND x.indisunique AND x.indimmediate AND x.indisvalid
              AND x.indpred IS NULL AND k.n <= x.indnkeyatts
            GROUP BY x.indexrelid, x.indisprimary, x.indnkeyatts
        ) u WHERE u.never_null AND u.columns_only
        ORDER BY u.indisprimary DESC, u.indexrelid LIMIT 1) AS identity,
       (SELECT json_agg(json_build_array(k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname)::text
        FROM pg_constraint k WHERE k.conrelid = p.oid AND k.contype = 'f') AS foreign_keys,
       (SELECT json_agg(k.conname ORDER BY k.conname)::text
        FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'f') AS own_keys,
       (SELECT json_agg(format('%I on %I.%I', k.conname, n.nspname, r.relname) ORDER BY k.conname)::text
        FROM pg_constraint k
        JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
        WHERE k.confrelid IN (p.oid, c.oid) AND k.contype = 'f' AND k.conparentid = 0) AS incoming,
       (SELECT json_agg(k.conname ORDER BY k.conname)::text FROM pg_constraint k
        WHERE k.conrelid IN (p.oid, c.oid) AND k.contype IN ('c', 'f')
          AND NOT k.convalidated) AS unproven,
       (SELECT json_agg(k.conname ORDER BY k.conname)::text FROM pg_constraint k
        WHERE k.conrelid = p.oid AND k.contype IN ('p', 'u', 'x') AND k.condeferrable) AS deferrable,
       (SELECT json_agg(t.tgname ORDER BY t.tgname)::text FROM pg_trigger t
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgparentid = 0
          AND NOT starts_with(t.tgname, :ours)) AS own_triggers,
       (SELECT json_agg(DISTINCT format('%I.%I', n.nspname, v.relname))::text
        FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
        JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace n ON n.oid = v.relnamespace
        WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
          AND d.refobjid = c.oid AND r.ev_class <> c.oid) AS readers,
       (SELECT json_agg(i.relname ORDER BY i.relname)::text
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
        WHERE x.indrelid = c.oid AND NOT i.relispartition) AS own_indexes,
       -- A table of the split would be sent to subscribers, unless the publication names the parent alone and
       -- sends all as the parent's.
       (SELECT json_agg(b.pubname ORDER BY b.pubname)::text FROM pg_publication b
        WHERE current_setting('wal_level') = 'logical'
          AND (b.puballtables
               OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = b.oid
                          AND r.prrelid IN (p.oid, c.oid)
                          AND NOT (b.pubviaroot AND r.prrelid = p.oid AND p.relreplident <> 'i'))
               OR EXISTS (SELECT FROM pg_publication_namespace s
                          WHERE s.pnpubid = b.oid AND s.pnnspid IN (p.relnamespace, c.relnamespace)))
       ) AS publications,
       greatest(c.reltuples, 0)::bigint AS rows, pg_total_relation_size(c.oid) AS bytes,
       pg_relation_size(c.oid) / current_setting('block_size')::bigint AS blocks,
       current_setting('block_size')::int AS block_size,
       (SELECT count(*) FROM pg_index x WHERE x.indrelid = p.oid) AS indexes,
       current_setting('max_locks_per_transaction')::bigint
         * (current_setting('max_connections')::bigint
            + current_setting('max_prepared_transactions')::bigint) AS lock_table
FROM pg_class c, pg_class p
WHERE c.oid = CAST(:source AS oid) AND p.oid = CAST(:parent AS oid)
""")

# Tables that rows are gathered in. Whoever owns a table may write any comment on it, so the owner matters.
_SPLITS = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, d.description AS mark,
       pg_get_userbyid(c.relowner) AS owner, c.relowner = to_regrole(quote_ident(current_user)) AS mine
FROM pg_description d
JOIN pg_class c ON c.oid = d.objoid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND c.relkind = 'p' AND NOT c.relispartition
  AND starts_with(d.description, :mark)
""")

# The partitions of a table with their comments, as children of another: groups, and windows.
_BELOW = text("""
SELECT i.inhparent AS parent, c.oid AS oid, n.nspname AS schema, c.relname AS name,
       pg_get_expr(c.relpartbound, 0) AS bound, i.inhdetachpending AS detach_pending,
       obj_description(c.oid, 'pg_class') AS mark, c.relkind::text AS kind
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.inhparent = ANY (CAST(:parents AS oid[]))
""")

_SOURCE = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, pg_get_expr(c.relpartbound, 0) AS bound,
       obj_description(c.oid, 'pg_class') AS mark,
       (SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parent
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = CAST(:oid AS oid)
""")

_KEYS_OF = text("""
SELECT c.relname AS relation, k.conname AS name, k.convalidated AS validated
FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = ANY (CAST(:names AS text[])) AND k.contype = 'f'
""")

# Transactions that may have a snapshot of this database. Where this role may see that, those without one are
# left out; autovacuum and its like have no user. Our own locks are held by transactions without a snapshot.
_OTHERS = text("""
SELECT l.virtualtransaction AS transaction, l.pid AS pid, a.application_name AS application
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid()
  AND a.datname = current_database() AND a.usename IS NOT NULL
  AND NOT starts_with(coalesce(a.application_name, ''), :ours)
  AND (a.backend_xmin IS NOT NULL OR a.state IS NULL)
""")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the rows of one source are copied, in blocks; and whether it is still the file that it was."""

    next_block: int
    end_block: int
    rows: int
    verified: bool
    is_same_file: bool

    @property
    def is_copied(self) -> bool:
        return self.is_same_file and self.next_block >= self.end_block


@dataclass(frozen=True, slots=True)
class Entries:
    """Changes that wait to be caught up with: how many were looked at, and the last of them."""

    count: int
    last: int


def read_splittable(connection: Connection, managed: ManagedTable, source: Partition) -> Splittable | None:
    """Return what a split has to mind; under :func:`~alembic_partitions.catalog.see_all_rows`."""
    row = connection.execute(
        _FACTS, {"source": source.oid, "parent": managed.oid, "ours": "alembic_partitions_"}
    ).one_or_none()
    if row is None:
        return None
    columns = [(name, is_written) for name, is_written in json.loads(row.columns)]
    return Splittable(
        problems=tuple(_problems(row, managed, connection)),
        columns=tuple(name for name, is_written in columns if is_written),
        compared=tuple(name for name, _ in columns),
        identity=tuple(Identified(*pair) for pair in json.loads(row.identity or "[]")),
        foreign_keys=tuple(ForeignKey(*pair) for pair in json.loads(row.foreign_keys or "[]")),
        own_keys=tuple(json.loads(row.own_keys or "[]")),
        notes=tuple(
            f"index {name} stands on {source.schema}.{source.name} alone; windows do not get it"
            for name in json.loads(row.own_indexes or "[]")
        ),
        rows=row.rows,
        blocks=row.blocks,
        bytes=row.bytes,
        block_size=row.block_size,
        indexes=row.indexes,
        lock_table=row.lock_table,
    )


def read_told_by(
    connection: Connection, oid: int
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[Identified, ...]]:
    """Return the columns of a table that are written, all that it has, and those that tell its rows apart,
    none where nothing does."""
    row = connection.execute(_FACTS, {"source": oid, "parent": oid, "ours": "alembic_partitions_"}).one()
    columns = [(name, is_written) for name, is_written in json.loads(row.columns)]
    return (
        tuple(name for name, is_written in columns if is_written),
        tuple(name for name, _ in columns),
        tuple(Identified(*pair) for pair in json.loads(row.identity or "[]")),
    )


def _problems(row: Row[Any], managed: ManagedTable, connection: Connection) -> Iterator[tuple[str, str]]:
    version = int((connection.dialect.server_version_info or (0,))[0])
    found = {
        "no plain table": row.kind != "r" or row.access_method != "heap",
        "unlogged": row.persistence != "p",
        "rules": row.has_rules,
        "nameless": row.identity is None,
        "hidden": row.hides_rows,
        "exclusion": managed.traits.exclusions and version < 18,
        "distributed": managed.traits.distributed,
    }
    yield from (_OBSTACLES[name] for name, there in found.items() if there)
    for name, (told, remedy) in _NAMED_OBSTACLES.items():
        yield from ((told.format(one), remedy) for one in json.loads(row._mapping[name] or "[]"))


_OBSTACLES = {
    "no plain table": (
        "it is no plain table",
        "Split the partitions below it, or replace it by a plain table",
    ),
    "unlogged": ("it is UNLOGGED", "ALTER TABLE ... SET LOGGED"),
    "rules": ("it has rewrite rules, which would not follow", "Drop them"),
    "nameless": (
        "it has no primary key, nor a unique index over columns that are NOT NULL, to tell rows by",
        "Add one to the table, then split",
    ),
    "hidden": (
        "row-level security may hide rows of it from this role",
        "Split as a role with BYPASSRLS, or ALTER TABLE ... NO FORCE ROW LEVEL SECURITY meanwhile",
    ),
    "exclusion": (
        "an exclusion constraint would be built anew in every window while all wait",
        "Drop it, split, and add it again",
    ),
    "distributed": (
        "Citus has distributed it, and levels of partitions cannot be distributed",
        "Leave it as it is, or undistribute_table() it meanwhile",
    ),
}
_NAMED_OBSTACLES = {
    "incoming": (
        "foreign key {} refers to the table",
        "Drop the foreign keys that refer to it, split, and add them again",
    ),
    "unproven": ("constraint {} is NOT VALID", "VALIDATE CONSTRAINT first"),
    "deferrable": ("constraint {} is DEFERRABLE", "Add it again NOT DEFERRABLE"),
    "own_triggers": (
        "trigger {} stands on this partition alone, and windows would not have it",
        "Create such triggers on the table itself, or drop them",
    ),
    "readers": ("{} reads the partition itself", "Have such views read the table, or drop them"),
    "publications": (
        "publication {} would send the tables of a split, or its windows under names of their own",
        "Name the table alone in the publication and SET (publish_via_partition_root = true), or take it out",
    ),
}


def read_key_ends(
    connection: Connection, managed: ManagedTable, source: Partition
) -> tuple[KeyValue | None, KeyValue | None, str]:
    """Return the first and the last key of a partition, ``None`` where it is empty; and what is wrong with
    them. Under :func:`~alembic_partitions.catalog.see_all_rows`.

    By an index that begins with the key, or by reading the partition through where there is none.
    """
    assert managed.policy is not None
    assert managed.key_type is not None
    key = _column(managed.policy.key)
    rows = table(source.name, key, schema=source.schema)
    ends: list[KeyValue | None] = []
    wrong = []
    for order in (key.asc(), key.desc()):
        printed = connection.scalar(select(cast(key, Text)).select_from(rows).order_by(order).limit(1))
        ends.append(None if printed is None else value_of(printed, managed.key_type))
        if printed is not None and ends[-1] is None:
            wrong.append(f"a row has {printed} as {managed.policy.key!r}")
    return ends[0], ends[1], " and ".join(wrong)


def bounds_as_printed(connection: Connection, managed: ManagedTable) -> dict[int, str]:
    """Return the bounds of a table's partitions as PostgreSQL prints them, by OID."""
    return {row.oid: row.bound for row in connection.execute(_BELOW, {"parents": [managed.oid]})}


def split_sources(connection: Connection, parents: Collection[int]) -> dict[int, int]:
    """Return the partitions that are just being split, and the groups that they have been split into: for
    each OID that of its table."""
    found = {}
    for row in connection.execute(_SPLITS, {"mark": SPLITTING_MARK}):
        told = _told(row)
        if told is not None and told["of"] in parents:
            found[int(told["oid"])] = int(told["of"])
    if found:
        for row in connection.execute(_BELOW, {"parents": sorted(set(found.values()))}):
            if row.mark == SPLIT_GROUP_MARK:
                found[row.oid] = row.parent
    return found


def with_splits(connection: Connection, tables: Sequence[ManagedTable]) -> list[ManagedTable]:
    """Return tables with their partitions that are just being split told apart."""
    found = split_sources(connection, [table.oid for table in tables if table.oid is not None])
    if not found:
        return list(tables)
    return [
        dataclasses.replace(
            item,
            partitions=tuple(
                dataclasses.replace(part, is_splitting=part.oid in found) for part in item.partitions
            ),
        )
        for item in tables
    ]


def _told(row: Row[Any]) -> dict[str, Any] | None:
    with suppress(ValueError, KeyError, TypeError):  # a comment that a person edited
        told = json.loads(row.mark.removeprefix(SPLITTING_MARK))
        names = ("of", "oid", "partition", "bound", "log", "state", "kept_as")
        return told if all(name in told for name in names) else None
    return None


def read_split(connection: Connection, managed: ManagedTable) -> Split | None:
    """Return the split of a table that is under way; under
    :func:`~alembic_partitions.catalog.see_all_rows`."""
    assert managed.key_type is not None
    for row in connection.execute(_SPLITS, {"mark": SPLITTING_MARK}).all():
        told = _told(row)
        if told is None or told["of"] != managed.oid or row.schema != managed.schema:
            continue
        if not (row.mine or row.owner == managed.traits.owner):
            continue
        found = connection.execute(_SOURCE, {"oid": told["oid"]}).one_or_none()
        is_swapped = found is None or (found.mark or "").startswith(SPLIT_MARK)
        schema, name = told["partition"]
        kept_as = str(told["kept_as"])
        if found is not None:
            schema, name = found.schema, found.name
            kept_as = name if is_swapped else kept_as
        part = Partition(int(told["oid"]), schema, name, None, None, bound=str(told["bound"]))
        groups = _groups(connection, managed, int(row.oid), is_swapped)
        facts = read_splittable(connection, managed, part) or Splittable()
        watched = _state_row(connection, managed.schema, str(told["state"]), part.oid) is not None
        attached = found is not None and found.parent == managed.oid
        return Split(
            managed,
            part,
            kept_as if found is not None else "",
            row.name,
            str(told["log"]),
            str(told["state"]),
            groups,
            facts,
            is_swapped=is_swapped,
            is_watched=watched,
            is_attached=attached,
        )
    return None


def _groups(
    connection: Connection, managed: ManagedTable, staging: int, is_swapped: bool
) -> tuple[Group, ...]:
    assert managed.key_type is not None
    parents = [staging] if not is_swapped else [managed.oid]
    rows = connection.execute(_BELOW, {"parents": parents}).all()
    groups = [row for row in rows if row.mark == SPLIT_GROUP_MARK and row.kind == "p"]
    below = connection.execute(_BELOW, {"parents": [row.oid for row in groups]}).all() if groups else []
    made = []
    for row in groups:
        parts = [partition_of(leaf, managed.key_type) for leaf in below if leaf.parent == row.oid]
        bounds = {leaf.oid: leaf.bound for leaf in below}
        parts.sort(key=_begin)
        pieces = tuple(Piece(part.name, part.lower, part.upper, bounds[part.oid]) for part in parts)
        made.append((partition_of(row, managed.key_type), Group(row.name, pieces, row.bound)))
    made.sort(key=lambda pair: _begin(pair[0]))
    return tuple(group for _, group in made)


def _begin(part: Partition) -> tuple[bool, Any]:
    return part.lower is not None, part.lower or 0


def _state_row(connection: Connection, schema: str, name: str, source: int) -> Row[Any] | None:
    if connection.scalar(select(func.to_regclass(_qualified(schema, name)))) is None:
        return None
    names = ("source", "next_block", "end_block", "filenode", "rows", "verified")
    state = table(name, *map(column, names), schema=schema)
    now = func.pg_relation_filenode(state.c.source)
    same = (now == state.c.filenode).label("is_same_file")
    query = select(state, same).where(cast(state.c.source, Text) == str(source))
    return connection.execute(query).one_or_none()


def _qualified(schema: str, name: str) -> Any:
    return func.concat(func.quote_ident(cast(schema, Text)), ".", func.quote_ident(cast(name, Text)))


def _column(name: str) -> ColumnClause[Any]:
    return column(name)


def read_progress(connection: Connection, schema: str, state: str, source: int) -> Progress | None:
    """Return how far a source is copied."""
    row = _state_row(connection, schema, state, source)
    if row is None:
        return None
    return Progress(row.next_block, row.end_block, row.rows, row.verified, bool(row.is_same_file))


def read_entries(connection: Connection, schema: str, log: str, key: str, limit: int) -> Entries:
    """Look at the oldest changes that wait, at most so many."""
    entry, keys = _column("alembic_partitions_entry"), _column(key)
    first = (
        select(entry.label("entry"))
        .select_from(table(log, entry, keys, schema=schema))
        .where(keys.is_not(None))
        .order_by(entry)
        .limit(limit)
        .subquery()
    )
    row = connection.execute(select(func.count(), func.max(first.c.entry))).one()
    return Entries(row[0], row[1] or 0)


def waiting_entries(connection: Connection, schema: str, log: str) -> int:
    """Estimate how many changes wait: from the first to the last of them."""
    entry = _column("alembic_partitions_entry")
    rows = table(log, entry, schema=schema)
    query = select(func.coalesce(func.max(entry) - func.min(entry) + 1, 0)).select_from(rows)
    return int(connection.scalar(query) or 0)


def keys_of(connection: Connection, schema: str, names: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Return the foreign keys of some tables, and whether each has been checked."""
    found: dict[str, dict[str, bool]] = {}
    for row in connection.execute(_KEYS_OF, {"schema": schema, "names": list(names)}):
        found.setdefault(row.relation, {})[row.name] = row.validated
    return found


def others_with_snapshots(connection: Connection, ours: str) -> dict[str, str]:
    """Return the transactions of others that may have a snapshot, each with who it is.

    :param ours: what the application_name of our own lock holders begins with.
    """
    rows = connection.execute(_OTHERS, {"ours": ours})
    return {
        row.transaction: f"process {row.pid}" + (f" ({row.application})" if row.application else "")
        for row in rows
    }
