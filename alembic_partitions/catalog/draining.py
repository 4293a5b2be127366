"""What a DEFAULT partition holds, and what moving rows out of it has to mind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

import pytz
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Interval,
    Select,
    cast,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    table,
    text,
)

from alembic_partitions.keys import TICKS, is_encoded, tick_instant
from alembic_partitions.periods import KeyType, KeyValue, Window, iso_time
from alembic_partitions.plan import (
    DRAINING_MARK,
    ForeignKey,
    ManagedTable,
    Partition,
    Source,
    Staging,
    Trigger,
)

from .keys import key_column, key_literal, printed_ends, ticks_of

# Generated columns are left out of what is moved (attgenerated), internal triggers are foreign keys'
# (tgisinternal), bit 8 of tgtype is DELETE, and 'D' and 'R' do not fire in a session such as ours.
_SOURCE = text("""
SELECT c.relkind = 'r' AND NOT c.relhasrules AS is_plain,
       row_security_active(c.oid) AS hides_rows,
       (SELECT json_agg(a.attname ORDER BY a.attnum)::text FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') AS columns,
       (SELECT json_agg(json_build_array(t.tgname, t.tgenabled = 'A') ORDER BY t.tgname)::text
        FROM pg_trigger t
        WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgtype::int & 8 <> 0
          AND t.tgenabled IN ('O', 'A')) AS triggers,
       (SELECT json_agg(json_build_array(k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname)::text
        FROM pg_constraint k WHERE k.conrelid = CAST(:parent AS oid) AND k.contype = 'f') AS foreign_keys,
       (SELECT json_agg(format('%I on %I.%I', k.conname, n.nspname, r.relname) ORDER BY k.conname)::text
        FROM pg_constraint k
        JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
        WHERE k.confrelid IN (CAST(:parent AS oid), c.oid) AND k.contype = 'f' AND k.conparentid = 0
       ) AS incoming,
       -- Subscribers are told of what leaves a partition, not of what goes into a table that is none yet.
       (SELECT json_agg(p.pubname ORDER BY p.pubname)::text FROM pg_publication p
        WHERE p.pubdelete AND current_setting('wal_level') = 'logical'
          AND (p.puballtables
               OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid
                          AND r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid)))
               OR EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid
                          AND s.pnnspid IN (SELECT a.relnamespace FROM pg_class a
                                            JOIN pg_partition_ancestors(c.oid) x ON x.relid = a.oid)))
       ) AS publications
FROM pg_class c WHERE c.oid = CAST(:source AS oid)
""")

# The column that Citus distributes a table by; none where it keeps the table on all nodes, or on one.
_DISTRIBUTED_BY = text("""
SELECT column_to_column_name(d.logicalrelid, d.partkey) FROM pg_catalog.pg_dist_partition d
WHERE d.logicalrelid = CAST(CAST(:parent AS oid) AS regclass) AND d.partmethod = 'h'
""")

# Tables that rows are gathered in: not partitions yet. Whoever owns a table may write any comment on it, so
# the owner matters; and one with code of its own is none that we have made.
_STAGINGS = text("""
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, d.description AS mark,
       pg_get_userbyid(c.relowner) AS owner, c.relowner = to_regrole(quote_ident(current_user)) AS mine,
       c.relhasrules OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
       OR EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) AS odd
FROM pg_description d
JOIN pg_class c ON c.oid = d.objoid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND c.relkind = 'r' AND NOT c.relispartition
  AND starts_with(d.description, :mark)
""")

_COLUMNS = text("""
SELECT a.attname FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = :name AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = ''
ORDER BY a.attnum
""")

# Without what PostgreSQL gives a row by itself.
_COPIED = text("""
SELECT a.attname FROM pg_attribute a
WHERE a.attrelid = CAST(:oid AS oid) AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = '' AND a.attidentity = '' AND a.attname <> :key
ORDER BY a.attnum
""")

# Bit 4 of tgtype is INSERT.
_INSERT_TRIGGERS = text("""
SELECT t.tgname AS name, t.tgenabled = 'A' AS always
FROM pg_trigger t
WHERE t.tgrelid = CAST(:oid AS oid) AND NOT t.tgisinternal AND t.tgtype::int & 4 <> 0
  AND t.tgenabled IN ('O', 'A')
ORDER BY t.tgname
""")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Rows that no window takes, with the oldest and the newest key as PostgreSQL prints them."""

    rows: int
    oldest: str | None
    newest: str | None

    def __str__(self) -> str:
        span = "without a key" if self.oldest is None else f"from {self.oldest} to {self.newest}"
        return f"{self.rows} {span}"


def see_all_rows(connection: Connection) -> None:
    """Have a read of rows that row-level security would hide fail, until the transaction ends; and have
    PostgreSQL write down names with their schemas, under UTC and ISO."""
    settings = {
        "row_security": "off",
        "search_path": "pg_catalog",
        "TimeZone": "UTC",
        "DateStyle": "ISO, YMD",
        "lock_timeout": "2s",  # pg_get_indexdef() locks tables
        "statement_timeout": "10min",  # a DEFAULT partition without an index on the key is read through
    }
    connection.execute(select(*(func.set_config(name, value, True) for name, value in settings.items())))


def read_source(connection: Connection, managed: ManagedTable) -> Source | None:
    """Return the DEFAULT partition of a table, if there is one; under :func:`see_all_rows`."""
    default = next((p for p in managed.partitions if p.is_default), None)
    if default is None:
        return None
    row = connection.execute(_SOURCE, {"parent": managed.oid, "source": default.oid}).one_or_none()
    if row is None:  # gone meanwhile
        return None
    by = connection.execute(_DISTRIBUTED_BY, {"parent": managed.oid}) if managed.traits.distributed else None
    return Source(
        partition=default,
        is_plain=row.is_plain,
        hides_rows=row.hides_rows,
        columns=tuple(json.loads(row.columns)),
        triggers=tuple(Trigger(name, always) for name, always in json.loads(row.triggers or "[]")),
        foreign_keys=tuple(ForeignKey(name, told) for name, told in json.loads(row.foreign_keys or "[]")),
        incoming=tuple(json.loads(row.incoming or "[]")),
        publications=tuple(json.loads(row.publications or "[]")),
        is_distributed=managed.traits.distributed,
        distributed_by=None if by is None else by.scalar(),
    )


def stranded_windows(
    connection: Connection, managed: ManagedTable, default: Partition, oldest: KeyValue, newest: KeyValue
) -> Iterator[tuple[Window, int]]:
    """Yield the windows that rows of the DEFAULT partition belong to, with how many there are.

    One pass over the rows, however many windows there are: by the hour, where these are days or longer.

    :raises WindowRangeError: the windows end before the keys do.
    """
    grid = managed.grid
    rows = _Rows(managed, default)
    counts: dict[KeyValue, int] = {}
    windows: dict[KeyValue, Window] = {}
    torn = set[KeyValue]()  # where a stretch holds the rows of several windows
    for low, high, count in rows.stretches(connection, oldest, newest, fine=grid.interval == "hour"):
        window = grid.at(low)
        alone = high < window.end
        while True:
            windows[window.begin] = window
            counts[window.begin] = counts.get(window.begin, 0) + count
            torn |= set() if alone else {window.begin}
            if high < window.end:
                break
            window = grid.after(window)
    for begin, window in sorted(windows.items()):
        exact = rows.count(connection, begin, window.end) if begin in torn else counts[begin]
        if exact:
            yield window, exact


def rows_outside(
    connection: Connection, managed: ManagedTable, default: Partition, oldest: KeyValue, newest: KeyValue
) -> Leftover | None:
    """Return the rows whose keys are NULL, infinite or not between ``oldest`` and ``newest``."""
    rows = _Rows(managed, default)
    count, low, high = connection.execute(
        select(func.count(), *printed_ends(rows.key, rows.key_type))
        .select_from(rows.table)
        .where(or_(rows.key.is_(None), not_(rows.within(oldest, newest))))
    ).one()
    return Leftover(count, low, high) if count else None


def rows_within(
    connection: Connection, managed: ManagedTable, default: Partition, lower: KeyValue, upper: KeyValue
) -> int:
    """Count the rows from ``lower`` up to, not including, ``upper``; under :func:`see_all_rows`."""
    return _Rows(managed, default).count(connection, lower, upper)


class _Rows:
    """The rows of one partition, by their keys."""

    def __init__(self, managed: ManagedTable, default: Partition) -> None:
        assert managed.policy is not None
        assert managed.key_type is not None
        self.key_type: KeyType = managed.key_type
        self.key = key_column(managed.policy.key, self.key_type)
        self.table = table(default.name, self.key, schema=default.schema)

    def stretches(
        self, connection: Connection, low: KeyValue, high: KeyValue, fine: bool
    ) -> list[tuple[KeyValue, KeyValue, int]]:
        """Return the first key, the last one and how many there are in each hour, or quarter of an hour."""
        if is_encoded(self.key_type):
            return self._counted_stretches(connection, low, high, fine)
        key = func.timezone("UTC", self.key) if self.key_type == "timestamptz" else cast(self.key, DateTime())
        width = cast(timedelta(minutes=15 if fine else 60), Interval())
        bins = func.date_bin(width, key, cast(datetime.combine(date(2000, 1, 1), time()), DateTime()))
        shape = "YYYY-MM-DD HH24:MI:SS.US"
        found = connection.execute(
            select(func.to_char(func.min(key), shape), func.to_char(func.max(key), shape), func.count())
            .select_from(self.table)
            .where(self.within(low, high))
            .group_by(bins)
        ).all()
        return [
            (key_of_text(str(row[0]), self.key_type), key_of_text(str(row[1]), self.key_type), int(row[2]))
            for row in found
        ]

    def _counted_stretches(
        self, connection: Connection, low: KeyValue, high: KeyValue, fine: bool
    ) -> list[tuple[KeyValue, KeyValue, int]]:
        ticks = ticks_of(self.key, self.key_type)
        width = TICKS[self.key_type] * (15 if fine else 60) * 60
        found = connection.execute(
            select(func.min(ticks), func.max(ticks), func.count())
            .select_from(self.table)
            .where(self.within(low, high))
            .group_by(ticks // literal(width, BigInteger()))
        ).all()
        ends = ((tick_instant(row[0], self.key_type), tick_instant(row[1], self.key_type)) for row in found)
        return [(*pair, int(row[2])) for pair, row in zip(ends, found, strict=True)]

    def count(self, connection: Connection, low: KeyValue, high: KeyValue) -> int:
        begin, end = key_literal(low, self.key_type), key_literal(high, self.key_type, upper=True)
        counting = self._of(func.count()).where(self.key >= begin, self.key < end)
        return int(connection.execute(counting).scalar_one())

    def within(self, low: KeyValue, high: KeyValue) -> ColumnElement[bool]:
        return self.key.between(key_literal(low, self.key_type), key_literal(high, self.key_type))

    def _of(self, what: ColumnElement[Any]) -> Select[Any]:
        return select(what).select_from(self.table)


def key_of_text(printed: str, key_type: KeyType) -> KeyValue:
    """Read a key as ``isoformat()`` or :func:`stranded_windows` writes it, instants under UTC."""
    if key_type == "date":
        return date.fromisoformat(printed[: len("2026-04-05")])
    value = iso_time(printed)
    if key_type == "timestamp":
        return value.replace(tzinfo=None)
    return value.replace(tzinfo=pytz.utc) if value.tzinfo is None else value.astimezone(pytz.utc)


def read_stagings(connection: Connection, managed: ManagedTable) -> list[Staging]:
    """Return the tables that earlier runs gathered rows of ``managed`` in, and did not attach."""
    found = []
    for row in connection.execute(_STAGINGS, {"mark": DRAINING_MARK}):
        if row.odd or not (row.mine or row.owner == managed.traits.owner) or managed.key_type is None:
            continue
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # a comment that a person edited
            told = json.loads(row.mark.removeprefix(DRAINING_MARK))
            named = (told["schema"], told["table"]) == (managed.schema, managed.name)
            lower, upper = (key_of_text(told[end], managed.key_type) for end in ("lower", "upper"))
            # By its name alone it may have been gathered for a table that is gone.
            certain = told["oid"] == managed.oid and row.schema == managed.schema
            if certain or named or told["oid"] == managed.oid:
                found.append(Staging(row.oid, row.schema, row.name, lower, upper, certain))
    return sorted(found, key=lambda staging: staging.lower)


def movable_columns(connection: Connection, schema: str, name: str) -> tuple[str, ...]:
    """Return the columns of a table but for the generated ones."""
    return tuple(connection.execute(_COLUMNS, {"schema": schema, "name": name}).scalars())


def copied_columns(connection: Connection, managed: ManagedTable) -> list[str]:
    """Return the columns of a row that another row can have: not the key, generated or identity."""
    assert managed.policy is not None
    return list(connection.execute(_COPIED, {"oid": managed.oid, "key": managed.policy.key}).scalars())


def insert_triggers(connection: Connection, oid: int) -> tuple[Trigger, ...]:
    """Return the triggers of a user's that would fire for rows that are moved into a table."""
    rows = connection.execute(_INSERT_TRIGGERS, {"oid": oid})
    return tuple(Trigger(row.name, row.always) for row in rows)


def has_rows(connection: Connection, schema: str, name: str) -> bool:
    """Tell whether a table holds rows; under :func:`see_all_rows`."""
    return bool(connection.scalar(select(exists().select_from(table(name, schema=schema)))))
