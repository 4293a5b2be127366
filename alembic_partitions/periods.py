"""Windows of local time: where each begins and ends, and what it is called.

Pure: no database, no clock. A :class:`Grid` divides the values of a partition key into windows that tile:
each value lies in exactly one. Windows are counted from 1970-01-01 in local time, never from "now", so
every process, at every hour, in every session zone, gets the same ones.

What the clocks of a zone do to the begin of a day is decided here, once (:func:`first_instant`): a day
begins at the first instant at which the local clock shows its start time *or later*. So

* a midnight that does not exist (Beirut, Havana, Santiago...) begins at the first instant after it;
* a midnight that happens twice begins at its first occurrence;
* a day that was skipped whole (Apia, 2011-12-30) has no instant and no window;
* where clocks step back into the middle of an hour (Chatham, Lord Howe...), the repeated part lies in the
  hour that it interrupts;
* where clocks step back across midnight itself (St John's and its like until 2011), the first midnight
  rules: the repeated last hour of the old date belongs to the window of the new one.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, tzinfo
from functools import cache, lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import pytz

from .errors import WindowRangeError

Interval: TypeAlias = Literal["hour", "day", "week", "month", "quarter", "year"]
#: What a partition key holds. All but ``timestamp`` and ``date`` stand for instants: ``epoch_*`` are integers
#: that count since 1970, ``uuidv7_full`` is a ``uuid`` whose table has version bits in its bounds.
KeyType: TypeAlias = Literal[
    "timestamptz",
    "timestamp",
    "date",
    "epoch_s",
    "epoch_s_int4",
    "epoch_ms",
    "epoch_us",
    "epoch_ns",
    "uuidv7",
    "uuidv7_full",
]
#: A value of the partition key: aware UTC datetime (an instant), naive datetime (timestamp), or date.
KeyValue: TypeAlias = "datetime | date"

INTERVALS: tuple[Interval, ...] = get_args(Interval)
KEY_TYPES: tuple[KeyType, ...] = get_args(KeyType)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_EPOCH = date(1970, 1, 1)
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
#: The first and the last bound that a key can hold, where that is not all of the calendar.
_REACH: Mapping[KeyType, tuple[datetime, datetime | None, str]] = {
    "epoch_s_int4": (
        datetime(1901, 12, 13, 20, 45, 52, tzinfo=pytz.utc),
        datetime(2038, 1, 19, 3, 14, 7, tzinfo=pytz.utc),
        "an integer counts seconds to 2038-01-19 03:14:07 UTC only, a bigint further",
    ),
    "epoch_ns": (
        datetime(1677, 9, 21, 0, 12, 43, 145225, tzinfo=pytz.utc),
        datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=pytz.utc),
        "a bigint counts nanoseconds from 1677 to 2262 only",
    ),
    "uuidv7": (datetime(1970, 1, 1, tzinfo=pytz.utc), None, "a UUIDv7 knows no time before 1970"),
    "uuidv7_full": (datetime(1970, 1, 1, tzinfo=pytz.utc), None, "a UUIDv7 knows no time before 1970"),
}
#: The last day whose begin pytz computes right in a zone with clock changes: its tables end with 2037.
_LAST_DAY_OF_PYTZ = date(2038, 1, 1)


@cache
def zone(name: str) -> pytz.BaseTzInfo:
    """Return the zone of that IANA name; raise ``pytz.UnknownTimeZoneError`` for any other."""
    return pytz.timezone(name)


@cache
def changes_clocks(name: str) -> bool:
    """Tell whether the zone's offset from UTC changes between 2000 and 2037."""
    tz, start = zone(name), datetime(2000, 1, 1, tzinfo=pytz.utc)
    # Clock changes are weeks apart; the shortest period on record in these years is Ramadan's, a month.
    return len({(start + timedelta(days=7 * n)).astimezone(tz).utcoffset() for n in range(1983)}) > 1


@lru_cache(maxsize=4096)
def first_instant(wall: datetime, zone_name: str) -> datetime:
    """Return the first instant (aware, UTC) at which the clocks of a zone show ``wall`` or later."""
    tz = zone(zone_name)
    try:
        return tz.localize(wall, is_dst=None).astimezone(pytz.utc)
    except pytz.AmbiguousTimeError:
        return min(tz.localize(wall, is_dst=dst).astimezone(pytz.utc) for dst in (True, False))
    except pytz.NonExistentTimeError:
        # The clocks jumped over ``wall``. Read with the offsets before and after, it brackets the jump, which
        # is on a whole second.
        wall = wall.replace(microsecond=0)
        low, high = sorted(tz.localize(wall, is_dst=dst).astimezone(pytz.utc) for dst in (True, False))
        seconds = range(int((high - low).total_seconds()))
        jump = bisect_left(seconds, True, key=lambda s: wall_clock(low + timedelta(seconds=s), tz) >= wall)
        return low + timedelta(seconds=jump)


def wall_clock(instant: datetime, tz: tzinfo) -> datetime:
    """Return what the clocks of a zone show at an instant, as a naive datetime."""
    return instant.astimezone(tz).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Window:
    """The key values from ``begin`` up to, not including, ``end``; ``suffix`` ends its partition's name."""

    begin: KeyValue
    end: KeyValue
    suffix: str


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows of one policy over the values of one key column.

    ``week_start`` counts from Monday = 0. For a ``timestamp`` key ``column_timezone`` is the zone that its
    naive values are written in. For a ``date`` key the windows are whole dates; ``timezone`` and
    ``day_start`` only say which date it is now.
    """

    interval: Interval
    every: int
    timezone: str
    day_start: time
    week_start: int
    key_type: KeyType
    column_timezone: str

    def at(self, value: KeyValue) -> Window:
        """Return the window that holds ``value``; raise :class:`WindowRangeError` if none can."""
        try:
            window = self._hour_at(value) if self.interval == "hour" else self._span_at(value)
        except OverflowError:
            raise WindowRangeError(value=value, problem="the calendar ends there") from None
        if self.key_type in _REACH:
            first, last, why = _REACH[self.key_type]
            if window.begin < first or (last is not None and window.end > last):
                raise WindowRangeError(value=value, problem=why)
        return window

    def after(self, window: Window) -> Window:
        """Return the window that begins where ``window`` ends."""
        return _window_at(self, window.end)

    def before(self, window: Window) -> Window:
        """Return the window that ends where ``window`` begins."""
        tick = timedelta(microseconds=1) if isinstance(window.begin, datetime) else timedelta(days=1)
        try:
            last = window.begin - tick
        except OverflowError:
            raise WindowRangeError(value=window.begin, problem="the calendar begins there") from None
        return _window_at(self, last)

    def key_at(self, instant: datetime) -> KeyValue:
        """Return the key value that stands for an instant: what a row written then would carry.

        :raises WindowRangeError: on the clocks of the zone the instant is off the calendar.
        """
        try:
            return self._key_at(instant)
        except OverflowError:
            raise WindowRangeError(value=instant, problem="the calendar ends there") from None

    def _key_at(self, instant: datetime) -> KeyValue:
        if self.key_type == "date":
            return self._day_of(instant)
        if self.key_type == "timestamp":
            return wall_clock(instant, zone(self.column_timezone))
        return instant.astimezone(pytz.utc)

    def key_of(self, moment: KeyValue | str) -> KeyValue:
        """Return the key value that a person means: a date is the begin of that local day, a naive time is
        on the local clocks, an aware one is an instant; text is ISO 8601.

        :raises ValueError: the text is none of these, or (:class:`WindowRangeError`) off the calendar.
        """
        if isinstance(moment, str):
            moment = date.fromisoformat(moment) if len(moment) <= len("2026-04-05") else iso_time(moment)
        if not isinstance(moment, datetime):
            if self.key_type == "date":
                return moment
            moment = datetime.combine(moment, self.day_start)
        try:
            return self._key_of_time(moment)
        except OverflowError:
            raise WindowRangeError(value=moment, problem="the calendar ends there") from None

    def _key_of_time(self, moment: datetime) -> KeyValue:
        if moment.tzinfo is not None:
            return self._key_at(moment)
        if self.key_type == "date":
            return (moment - _since_midnight(self.day_start)).date()
        if self.key_type == "timestamp" and self.timezone == self.column_timezone:
            return moment
        return self._key_at(first_instant(moment, self.timezone))

    # -- days and longer: window number n begins on _first_day(n) --------------------------------------

    def _span_at(self, value: KeyValue) -> Window:
        number = self._locate(value)
        return Window(_edge(self, number), _edge(self, number + 1), self._suffix(self._first_day(number)))

    def _locate(self, value: KeyValue) -> int:
        number = self._number(self._guess_day(value))
        # Around a clock change the local date is only a first guess; the edges decide.
        while _edge(self, number) > value:
            number -= 1
        while _edge(self, number + 1) <= value:
            number += 1
        return number

    def _number(self, day: date) -> int:
        if self.interval in _MONTHS:
            return ((day.year - 1970) * 12 + day.month - 1) // (_MONTHS[self.interval] * self.every)
        return (day - self._anchor()).days // self._days()

    def _first_day(self, number: int) -> date:
        if self.interval in _MONTHS:
            year, month = divmod(number * _MONTHS[self.interval] * self.every, 12)
            if not date.min.year <= 1970 + year <= date.max.year:
                raise OverflowError
            return date(1970 + year, month + 1, 1)
        return self._anchor() + timedelta(days=number * self._days())

    def _anchor(self) -> date:
        if self.interval != "week":
            return _EPOCH
        return _EPOCH - timedelta(days=(_EPOCH.weekday() - self.week_start) % 7)

    def _days(self) -> int:
        if self.interval == "hour":
            return 1
        return self.every * (7 if self.interval == "week" else 1)

    def _suffix(self, day: date) -> str:
        if self.interval == "quarter":
            return f"{day:%Y}_q{(day.month + 2) // 3}"
        return format(day, {"month": "%Y_%m", "year": "%Y"}.get(self.interval, "%Y_%m_%d"))

    # -- hours: counted on the wall clock from the begin of each day -----------------------------------

    def _hour_at(self, value: KeyValue) -> Window:
        number = self._locate(value)
        marks = _hour_marks(self, self._edge_instant(number), self._edge_instant(number + 1))
        edges = [*map(self._key_at, marks)]
        index = bisect_right(edges, value) - 1
        return Window(edges[index], edges[index + 1], self._hour_suffix(marks[index]))

    def _hour_suffix(self, instant: datetime) -> str:
        wall = wall_clock(instant, zone(self.timezone))
        clock = "%H" if wall.time() == time(wall.hour) else "%H%M" if not wall.second else "%H%M%S"
        second_time = first_instant(wall, self.timezone) < instant
        return f"{wall:%Y_%m_%d}_{wall.strftime(clock)}{'b' if second_time else ''}"

    # -- between local days and key values -------------------------------------------------------------

    def edge(self, number: int) -> KeyValue:
        """Return where window ``number``, counted from 1970, begins; of hours, where that day does."""
        day = self._first_day(number)
        if self.key_type == "date":
            return day
        if self.key_type == "timestamp" and self.timezone == self.column_timezone:
            # Wall-clock time in, wall-clock time out: the column cannot tell a repeated hour anyway.
            return datetime.combine(day, self.day_start)
        return self._key_at(self._edge_instant(number))

    def _edge_instant(self, number: int) -> datetime:
        day = self._first_day(number)
        zones = {self.timezone} | ({self.column_timezone} if self.key_type == "timestamp" else set())
        for name in zones if day > _LAST_DAY_OF_PYTZ else ():
            if changes_clocks(name):
                raise WindowRangeError(value=day, problem=f"pytz knows no clock changes of {name} after 2037")
        return first_instant(datetime.combine(day, self.day_start), self.timezone)

    def _guess_day(self, value: KeyValue) -> date:
        if not isinstance(value, datetime):
            return value
        if value.tzinfo is not None:
            return self._day_of(value)
        if self.timezone == self.column_timezone:
            return (value - _since_midnight(self.day_start)).date()
        return self._day_of(first_instant(value, self.column_timezone))

    def _day_of(self, instant: datetime) -> date:
        return (wall_clock(instant, zone(self.timezone)) - _since_midnight(self.day_start)).date()


# Tables of one grid have the same windows, and each look asks for those of the last one again.


@lru_cache(maxsize=4096)
def _window_at(grid: Grid, value: KeyValue) -> Window:
    return grid.at(value)


@lru_cache(maxsize=4096)
def _edge(grid: Grid, number: int) -> KeyValue:
    return grid.edge(number)


@lru_cache(maxsize=512)
def _hour_marks(grid: Grid, begin: datetime, end: datetime) -> tuple[datetime, ...]:
    """Return where the windows of the local day ``begin``..``end`` begin, and the day's end.

    A window begins each time the wall clock strikes an hour of the grid: twice in a repeated hour; and,
    where the clocks jump over a strike, at the jump.
    """
    tz = zone(grid.timezone)
    marks = {begin}
    for start, stop in _stretches(begin, end, tz):
        if start > begin:
            shown_before = wall_clock(start - timedelta(seconds=1), tz) + timedelta(seconds=1)
            if _slot(grid, wall_clock(start, tz)) > _slot(grid, shown_before - timedelta(microseconds=1)):
                marks.add(start)
        offset = start.astimezone(tz).utcoffset() or timedelta()
        first = _slot(grid, wall_clock(start, tz) - timedelta(microseconds=1)) + 1
        for slot in range(first, first + 25):
            strike = (_slot_begin(grid, slot) - offset).replace(tzinfo=pytz.utc)
            if start <= strike < stop:
                marks.add(strike)
    return (*sorted(marks), end)


def _slot(grid: Grid, wall: datetime) -> int:
    elapsed = wall - datetime.combine(_EPOCH, grid.day_start)
    return elapsed // timedelta(hours=grid.every)


def _slot_begin(grid: Grid, slot: int) -> datetime:
    return datetime.combine(_EPOCH, grid.day_start) + slot * timedelta(hours=grid.every)


def _stretches(begin: datetime, end: datetime, tz: tzinfo) -> list[tuple[datetime, datetime]]:
    """Cut ``begin``..``end`` (about a day) where the zone's offset changes."""
    hours = [begin + timedelta(hours=n) for n in range(int((end - begin) / timedelta(hours=1)) + 1)] + [end]
    cuts = [begin]
    for low, high in pairwise(hours):
        before = low.astimezone(tz).utcoffset()
        if high.astimezone(tz).utcoffset() != before:
            seconds = range(int((high - low).total_seconds()))
            jump = bisect_left(
                seconds,
                True,
                key=lambda s, low=low, before=before: (  # type: ignore[misc]
                    (low + timedelta(seconds=s)).astimezone(tz).utcoffset() != before
                ),
            )
            cuts.append(low + timedelta(seconds=jump))
    cuts.append(end)
    return [pair for pair in pairwise(cuts) if pair[0] < pair[1]]


def exact_suffix(value: KeyValue) -> str:
    """Return the suffix of a window that begins off the grid: its full start, instants in UTC (``z``)."""
    if not isinstance(value, datetime):
        return f"{value:%Y_%m_%d}"
    if value.tzinfo is not None:
        value = value.astimezone(pytz.utc)
    fraction = f"_{value:%f}" if value.microsecond else ""
    return f"{value:%Y_%m_%d_%H%M%S}{fraction}{'z' if value.tzinfo else ''}"


_ISO_TIME = re.compile(r"(?P<time>.*?:\d\d)(?:\.(?P<fraction>\d{1,6}))?(?P<offset>Z|[+-]\d\d(?::\d\d)*)?")


def iso_time(text: str) -> datetime:
    """Read a time as PostgreSQL and people write it; raise ``ValueError`` for what is none.

    Python 3.10 reads neither "Z" nor "+13", and fractions of three or six digits only.
    """
    match = _ISO_TIME.fullmatch(text)
    if match is None:
        return datetime.fromisoformat(text)
    offset = (match["offset"] or "").replace("Z", "+00")
    return datetime.fromisoformat(
        f"{match['time']}.{match['fraction'] or '':0<6}{offset}{':00' if len(offset) == len('+13') else ''}"
    )


def _since_midnight(clock: time) -> timedelta:
    return timedelta(hours=clock.hour, minutes=clock.minute, seconds=clock.second)


_PERIOD = re.compile(r"([1-9][0-9]{0,5}) (hour|day|week|month|quarter|year)s?")


@dataclass(frozen=True, slots=True)
class Period:
    """A length of time as people say it, "90 days" or "12 months", counted by the calendar."""

    count: int
    unit: Interval

    @classmethod
    def parse(cls, text: str) -> Period:
        """Read ``"<n> <unit>[s]"``; raise ``ValueError`` for anything else."""
        match = _PERIOD.fullmatch(text)
        if match is None:
            raise ValueError(f'{text!r} is not a period such as "90 days" or "12 months"')
        return cls(int(match[1]), match[2])  # type: ignore[arg-type]  # the pattern holds the units

    def before(self, instant: datetime, zone_name: str) -> datetime:
        """Return the instant this long before ``instant`` by the calendar and clocks of a zone."""
        return self._move(instant, zone_name, -self.count)

    def after(self, instant: datetime, zone_name: str) -> datetime:
        """Return the instant this long after ``instant`` by the calendar and clocks of a zone."""
        return self._move(instant, zone_name, self.count)

    def _move(self, instant: datetime, zone_name: str, count: int) -> datetime:
        try:
            if self.unit == "hour":
                return instant + timedelta(hours=count)
            wall = wall_clock(instant, zone(zone_name))
            return first_instant(self._shift(wall, count), zone_name)
        except (OverflowError, ValueError):  # beyond the years 1 to 9999: as far as the calendar goes
            return (datetime.max if count > 0 else datetime.min).replace(tzinfo=pytz.utc)

    def _shift(self, wall: datetime, count: int) -> datetime:
        if self.unit in ("day", "week"):
            return wall + timedelta(days=count * (7 if self.unit == "week" else 1))
        year, month = divmod(wall.year * 12 + wall.month - 1 + count * _MONTHS[self.unit], 12)
        last_day = calendar.monthrange(year, month + 1)[1]
        return wall.replace(year=year, month=month + 1, day=min(wall.day, last_day))
