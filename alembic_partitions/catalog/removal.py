"""What retention must know: marks and bounds of partitions, what has been detached, who refers to a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, table, text
from sqlalchemy.engine import Row

from alembic_partitions.periods import KeyType, iso_time
from alembic_partitions.plan import (
    DETACHED_MARK,
    DETACHING_MARK,
    Detached,
    Export,
    ManagedTable,
)

from .queries import PARTITIONS
from .reads import utc_settings
from .splitting import split_sources
from .values import bounds_of, partition_of

# The comments of partitions, by OID. A foreign table can be detached, but neither locked nor indexed: it is
# left to whoever made it.
_MARKS = text("""
SELECT i.inhrelid AS oid, d.description AS mark
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid AND c.relkind <> 'f'
JOIN pg_description d ON d.objoid = i.inhrelid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
WHERE i.inhparent = ANY (CAST(:parents AS oid[]))
""")

# Whether somebody else is just detaching: as far as this role may see what others do.
_IN_PROGRESS = text("""
SELECT EXISTS (SELECT FROM pg_stat_activity a
               WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.state = 'active'
               AND a.query ~* 'detach\\s+partition.*concurrently')
""")

# Tables that were partitions of ours, by their marks; with their own foreign keys, as dropping one of those
# locks the table that it refers to. Whoever owns a table may write any comment on it, so the owner matters.
_DETACHED = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, d.description AS mark,
       pg_get_userbyid(c.relowner) AS owner, c.relowner = to_regrole(quote_ident(current_user)) AS mine,
       (SELECT json_agg(a.attname ORDER BY a.attnum)::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns,
       (SELECT json_agg(json_build_array(
            x.conname, format('%I.%I', o.nspname, r.relname), r.oid::bigint))::text
        FROM pg_constraint x
        JOIN pg_class r ON r.oid = x.confrelid JOIN pg_namespace o ON o.oid = r.relnamespace
        WHERE x.conrelid = c.oid AND x.contype = 'f' AND x.conparentid = 0) AS keys
FROM pg_description d
JOIN pg_class c ON c.oid = d.objoid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (starts_with(d.description, :detached) OR starts_with(d.description, :detaching))
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
""")

# Foreign keys that refer to some tables, as they were declared.
_REFERRING = text("""
SELECT x.confrelid AS parent, format('%I.%I (%I)', n.nspname, c.relname, x.conname) AS told
FROM pg_constraint x
JOIN pg_class c ON c.oid = x.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE x.contype = 'f' AND x.conparentid = 0 AND x.confrelid = ANY (CAST(:parents AS oid[]))
ORDER BY 2
""")

# How far a DETACH has come: nothing there, no partition, a partition, one half-way.
_DETACH_STATE = text("""
SELECT c.relispartition AS attached, coalesce(i.inhdetachpending, false) AS pending
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE c.oid = CAST(:oid AS oid)
""")


@dataclass(frozen=True, slots=True)
class Removable:
    """A table as retention sees it: its partitions with their marks, and what was detached from it."""

    table: ManagedTable
    detached: tuple[Detached, ...] = ()
    referring: tuple[str, ...] = ()
    #: Somebody is just detaching a partition concurrently.
    in_progress: bool = False


def read_removable(connection: Connection, tables: Sequence[ManagedTable]) -> list[Removable]:
    """Read what retention plans with; in a transaction."""
    known = {t.oid: t for t in tables if t.oid is not None and t.problem is None}
    wanted = {"parents": list(known)}
    partitions: dict[int, list[Any]] = {oid: [] for oid in known}
    referring: dict[int, list[str]] = {oid: [] for oid in known}
    with utc_settings(connection):
        splitting = split_sources(connection, known)
        marks = {row.oid: row.mark for row in connection.execute(_MARKS, wanted)}
        for row in connection.execute(PARTITIONS, wanted):
            part = partition_of(row, known[row.parent].key_type)
            splits = row.oid in splitting
            part = dataclasses.replace(part, mark=marks.get(row.oid), bound=row.bound, is_splitting=splits)
            partitions[row.parent].append(part)
        for row in connection.execute(_REFERRING, wanted):
            referring[row.parent].append(row.told)
        in_progress = bool(connection.execute(_IN_PROGRESS).scalar())
        rows = connection.execute(_DETACHED, {"detached": DETACHED_MARK, "detaching": DETACHING_MARK}).all()
    found = []
    for managed in tables:
        if managed.oid not in known:
            found.append(Removable(managed))
            continue
        detached = (_detached(row, managed) for row in rows)
        found.append(
            Removable(
                dataclasses.replace(managed, partitions=tuple(partitions[managed.oid])),
                tuple(item for item in detached if item is not None),
                tuple(referring[managed.oid]),
                in_progress,
            )
        )
    return found


def detach_state(connection: Connection, oid: int) -> str:
    """Return how far a DETACH has come: ``gone``, ``detached``, ``pending`` or ``attached``."""
    row = connection.execute(_DETACH_STATE, {"oid": oid}).one_or_none()
    if row is None:
        return "gone"
    return "pending" if row.pending else "attached" if row.attached else "detached"


def count_rows(connection: Connection, schema: str, name: str) -> int:
    """Count the rows of one table."""
    found = table(name, schema=schema)
    return int(connection.execute(select(func.count()).select_from(found)).scalar_one())


def _detached(row: Row[Any], owner: ManagedTable) -> Detached | None:
    if not (row.mine or row.owner == owner.traits.owner):
        return None
    for prefix in (DETACHED_MARK, DETACHING_MARK):
        if row.mark.startswith(prefix):
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # a comment that a person edited
                return _from_mark(row, json.loads(row.mark.removeprefix(prefix)), owner, prefix)
    return None


def _from_mark(row: Row[Any], told: Mapping[str, Any], table: ManagedTable, prefix: str) -> Detached | None:
    # A name may be another table's by now, so OIDs decide; but for what came out of a dump: there its OIDs
    # mean nothing, or another table.
    if told["oid"] == row.oid:
        is_ours = told["of"] == table.oid
    else:
        is_ours = told["table"] == [table.schema, table.name]
    if not is_ours or told["key"] != table.key_type:
        return None
    lower, upper = bounds_of(str(told["bound"]), _key_type(table))
    export = told.get("export")
    at = iso_time(told["at"]) if prefix == DETACHED_MARK else None
    if at is not None and at.tzinfo is None:
        return None
    return Detached(
        row.oid,
        row.schema,
        row.name,
        partition=str(told["partition"]),
        home=str(told["schema"]),
        bound=str(told["bound"]),
        lower=lower,
        upper=upper,
        at=at,
        fate=str(told["fate"]),
        export=Export(str(export["path"]), int(export["rows"]), str(export["sha256"])) if export else None,
        renamed=prefix == DETACHED_MARK and told["as"] != [row.schema, row.name],
        keys=tuple((name, other, oid) for name, other, oid in json.loads(row.keys or "[]")),
        columns=tuple(json.loads(row.columns or "[]")),
    )


def _key_type(table: ManagedTable) -> KeyType:
    assert table.key_type is not None
    return table.key_type
