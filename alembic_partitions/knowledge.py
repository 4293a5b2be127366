"""What a process has learned of coverage, by parent OID: answers without a round trip.

Names are never believed: ``search_path`` may lead the same name to another tenant's table. Facts are replaced
whole, so readers need no lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytz
from sqlalchemy import Connection

from . import catalog, keys, rows
from .periods import KeyType, KeyValue
from .plan import Coverage, ManagedTable, Partition

# Python compares times of one zone by their clocks, which repeat an hour (on record, up to three).
_CLOCK_SLACK = timedelta(hours=3)

# What a single key must be to be quickly told, of what kind its zone, and the calendar. Beside UTC it is the
# instants that are compared, whatever the zone.
_SINGLE: Mapping[str, tuple[type, frozenset[type], KeyValue, KeyValue]] = {
    "timestamptz": (
        datetime,
        frozenset({timezone, type(pytz.utc), ZoneInfo}),
        datetime.min.replace(tzinfo=timezone.utc),
        datetime.max.replace(tzinfo=timezone.utc),
    ),
    "timestamp": (datetime, frozenset({type(None)}), datetime.min, datetime.max),
    "date": (date, frozenset(), date.min, date.max),
}


@dataclass(frozen=True, slots=True)
class Known:
    """One table as last seen; ``learned`` tells by partition OID in which generation we first saw it."""

    table: ManagedTable
    coverage: Coverage
    learned: dict[int, int]
    newest: int

    @property
    def key(self) -> str:
        """The name of the partition key."""
        assert self.table.policy is not None
        return self.table.policy.key

    @property
    def oid(self) -> int:
        """The parent's OID."""
        assert self.table.oid is not None
        return self.table.oid


@dataclass(frozen=True, slots=True)
class View:
    """Rows held against what is known: where their keys lie, and which of them have no partition."""

    known: Known
    range: tuple[KeyValue, KeyValue] | None = None
    lacking: set[KeyValue] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Cleared:
    """A stretch without gaps that a single row's key lay in: the next row is held against that alone."""

    #: What it was told by, see :attr:`Knowledge.edition`.
    edition: object
    #: Where the key stands among the compiled parameters.
    name: str
    #: What it has to be, and of what kind its zone.
    kind: Any
    zones: frozenset[type]
    low: Any
    #: Not included.
    high: Any
    #: The generation that a transaction must have begun in, under ``began`` in its connection's dictionary.
    newest: int
    began: str

    def holds(self, value: Any) -> bool:
        """Tell whether a key lies in it, as far as that is certain."""
        if type(value) is not self.kind or (self.zones and type(value.tzinfo) not in self.zones):
            return False
        return bool(self.low <= value < self.high)


class Knowledge:
    """The tables of one database as last seen."""

    def __init__(self) -> None:
        self._generation = 0
        self._tables: dict[int, Known] = {}
        #: Another one whenever something has been learned.
        self.edition = object()
        self._by_name: dict[str, tuple[Known, ...]] = {}
        # The dictionary of a connection is shared by all who keep its engine.
        self._began, self._noticed = (
            f"alembic_partitions.{what}.{id(self):x}" for what in ("began", "noticed")
        )

    def learn(self, tables: Sequence[ManagedTable]) -> None:
        """Take in what there is now."""
        generation, known = self._generation + 1, dict[int, Known]()
        for table in tables:
            if (
                table.oid is None
                or table.problem is not None
                or table.policy is None
                or not table.policy.enabled
            ):
                continue
            before = self._tables[table.oid].learned if table.oid in self._tables else {}
            learned = {part.oid: before.get(part.oid, generation) for part in table.partitions}
            newest = max(learned.values(), default=0)
            known[table.oid] = Known(table, Coverage.of(table.partitions), learned, newest)
        by_name: dict[str, tuple[Known, ...]] = {}
        for item in known.values():
            by_name[item.table.name] = (*by_name.get(item.table.name, ()), item)
        self._tables, self._by_name = known, by_name
        self._generation = generation  # last: who begins before this line notices once too often
        self.edition = object()

    def candidates(self, name: str, schema: str | None) -> Sequence[Known]:
        """Return the managed tables that a name in a statement may mean."""
        found = self._by_name.get(name, ())
        return found if schema is None else [known for known in found if known.table.schema == schema]

    def current(self, known: Known) -> Known | None:
        """Return what is known now of the table that bears that name, which may be another one by now."""
        return next(iter(self.candidates(known.table.name, known.table.schema)), None)

    def by_oid(self, oid: int) -> Known | None:
        """Return the table of that OID."""
        return self._tables.get(oid)

    def view(self, connection: Connection, known: Known, values: list[Any]) -> View:
        """Hold values against what is known, without touching each one if that can be helped."""
        key_type = known.table.key_type
        assert key_type is not None
        if not values:
            return View(known)
        stored = partial(rows.rounded, precision=known.table.precision)
        ends = (keys.ends if keys.is_encoded(key_type) else _ends)(values, key_type)
        if ends is not None:
            ends = stored(ends[0]), stored(ends[1])
            if known.coverage.covers(*ends):
                return View(known, ends)
        found = set(map(stored, rows.key_values(values, key_type, connection, _host_zone)))
        if not found:
            return View(known)
        lacking = {key for key in found if not known.coverage.covers(key, key)}
        return View(known, (min(found), max(found)), lacking)

    def cleared(
        self, known: Known, names: Sequence[tuple[str, Any]], sent: Sequence[dict[str, Any]]
    ) -> Cleared | None:
        """Return where a row's key has just been found covered; ``None`` where that takes a closer look.

        :param names: where a statement's keys stand, with what converts them.
        :param sent: its rows.
        """
        told = _SINGLE.get(known.table.key_type or "")
        if told is None or known.table.precision is not None or len(sent) != 1 or len(names) != 1:
            return None
        (name, process), (kind, zones, first, last) = names[0], told
        value: Any = sent[0].get(name)
        calendar = Cleared(self.edition, name, kind, zones, first, last, known.newest, self._began)
        if process is not None or self._tables.get(known.oid) is not known or not calendar.holds(value):
            return None
        run = known.coverage.run_at(value)
        if run is None:
            return None
        low, high = (_like(first, end) for end in run)
        return dataclasses.replace(calendar, low=low or first, high=high or last)

    def began(self, connection: Connection) -> None:
        """Note that a transaction begins: what is learned from here on it may not see by itself."""
        connection.info[self._began] = self._generation
        connection.info.pop(self._noticed, None)

    def let_notice(self, connection: Connection, known: Known, low: KeyValue, high: KeyValue) -> None:
        """Let a transaction that began earlier see partitions made since; see :func:`catalog.notice`."""
        began = connection.info.get(self._began, 0)
        current = self.current(known) or known
        if current.newest <= began:
            return
        noticed: set[int] = connection.info.setdefault(self._noticed, set())
        for part in current.table.partitions:
            new = current.learned[part.oid] > began and part.oid not in noticed
            if new and _touches(part, low, high):
                catalog.notice(connection, part.oid)
                noticed.add(part.oid)


def _like(first: KeyValue, end: KeyValue | None) -> KeyValue | None:
    """Return an end of a run in the zone that most rows come in: then the clocks alone are compared."""
    if isinstance(end, datetime) and isinstance(first, datetime):
        return end.replace(tzinfo=first.tzinfo)
    return end


def _host_zone() -> tzinfo:
    """Return the offset of the host's clock now, whatever the season of the date at hand: so does asyncpg."""
    return timezone(datetime.now().astimezone().utcoffset() or timedelta())


def _ends(values: list[Any], key_type: KeyType) -> tuple[KeyValue, KeyValue] | None:
    """Return bounds that hold all the values, where these compare as they are, whatever the driver."""
    try:
        low, high = min(values), max(values)
    except TypeError:  # naive beside aware, dates beside times
        return None
    if key_type == "date":
        native = not isinstance(low, datetime) and hasattr(low, "toordinal")
        return (low, high) if native and not isinstance(high, datetime) else None
    if not (_is_time(low, key_type) and _is_time(high, key_type)):
        return None
    if _is_steady(low) and _is_steady(high):
        return low, high
    try:
        return low - _CLOCK_SLACK, high + _CLOCK_SLACK
    except OverflowError:
        return None


def _is_time(value: Any, key_type: KeyType) -> bool:
    return isinstance(value, datetime) and (value.tzinfo is not None) == (key_type == "timestamptz")


def _is_steady(value: datetime) -> bool:
    """Tell whether a time's zone never changes its offset, or there is none."""
    return value.tzinfo is None or value.tzinfo.utcoffset(None) is not None


def _touches(part: Partition, low: KeyValue, high: KeyValue) -> bool:
    return (part.lower is None or part.lower <= high) and (part.upper is None or low < part.upper)
