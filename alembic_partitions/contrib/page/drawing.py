"""Coverage along time as shapes of an SVG: places in per cent of its width, so that it fits any screen. Pure.

Today stands in the same column for all tables. Left and right of it time has a scale of its own: three years
of months behind and half a year ahead can both be read, and dates below say how long each is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache

from alembic_partitions.coverage import TODAY, Span, Spans
from alembic_partitions.errors import WindowRangeError
from alembic_partitions.periods import Grid, KeyValue, first_instant, wall_clock, zone
from alembic_partitions.plan import ManagedTable, Partition, Runway, instant_of
from alembic_partitions.words import stretch

# The column of today, and how narrow a shape may be, in per cent.
_LEFT, _RIGHT = 100 * TODAY - 1, 100 * TODAY + 1
_NARROW = 0.9
# A gap is never drawn over, however short it is.
_SEEN = 0.8
# Where there is room for a date between those at both ends and today's; and how much one takes.
_ROOM = ((24.0, 42.0), (75.0, 80.0))
_LABEL = 13.0

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = timedelta(days=1)
_STEPS = (
    *(("hour", count, timedelta(hours=count)) for count in (1, 2, 3, 6, 12)),
    *(("day", count, count * _DAY) for count in (1, 2, 7, 14)),
    *(("month", count, count * 30 * _DAY) for count in (1, 2, 3, 6)),
    *(("month", 12 * count, count * 365 * _DAY) for count in (1, 2, 5, 10, 20, 50, 100, 500, 1000)),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Something that reaches from here to there, and what it says to who points at it."""

    kind: str
    left: float
    width: float
    title: str

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.left + self.width


@dataclass(frozen=True, slots=True)
class Tick:
    """A date below the line."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """One table's coverage."""

    shapes: tuple[Shape, ...]
    #: The instant that is looked from, with its day; and its time of day.
    now: Tick
    clock: str
    #: Where the horizon ends that the policy asks for.
    wanted: float
    #: The dates at both ends, and some between: these may be left out where there is no room.
    first: Tick | None
    last: Tick
    ticks: tuple[Tick, ...]
    without_begin: bool
    without_end: bool


def draw(table: ManagedTable, runway: Runway, now: datetime) -> Drawing:
    """Draw a table's coverage: thousands of partitions that touch become a few shapes."""
    grid, scale = table.grid, _Scale(Spans.of(table, runway))
    bounded = [p for p in table.partitions if not p.is_default]
    due = {p.oid for p in runway.due}
    pieces = [_Piece(_kind(grid, part, runway, due), scale.span_of(grid, part), part) for part in bounded]
    shapes = list(_merged(grid, scale, sorted(pieces, key=lambda piece: piece.span)))
    for gap in scale.spans.gaps:
        words = f"no partition: {_between(grid, gap)}"
        shapes.append(_shape("gap", *scale.stretch(gap), words))
    hours = table.policy is not None and table.policy.interval == "hour"
    return Drawing(
        shapes=tuple(shapes),
        now=Tick(scale.at(now), f"now {_day(_wall(grid, now))}"),
        clock=f"{_wall(grid, now):%H:%M}",
        wanted=scale.at(instant_of(grid, runway.wanted)),
        first=Tick(0.0, _end(grid, scale.spans.first, hours)) if scale.has_past else None,
        last=Tick(100.0, _end(grid, scale.spans.last, hours)),
        ticks=tuple(_ticks(grid, scale)),
        without_begin=scale.has_past and any(p.lower is None for p in bounded),
        without_end=any(p.upper is None for p in bounded),
    )


def is_off_grid(grid: Grid, part: Partition) -> bool:
    """Tell whether a partition is no window of the policy."""
    if part.is_default or part.is_splitting:
        return False
    return part.lower is None or part.upper is None or not _is_window(grid, part.lower, part.upper)


@lru_cache(maxsize=32_768)  # most of the work of a drawing, and the next one asks the same
def _is_window(grid: Grid, lower: KeyValue, upper: KeyValue) -> bool:
    try:
        window = grid.at(lower)
    except WindowRangeError:
        return False
    return (window.begin, window.end) == (lower, upper)


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where an instant stands."""

    spans: Spans

    @property
    def has_past(self) -> bool:
        return self.spans.first < self.spans.today[0]

    def at(self, instant: datetime) -> float:
        first, (begin, end), last = self.spans.first, self.spans.today, self.spans.last
        if instant < begin:
            return _LEFT * _share(instant, first, begin)
        if instant <= end:
            return _LEFT + (_RIGHT - _LEFT) * _share(instant, begin, end)
        return _RIGHT + (100 - _RIGHT) * _share(instant, end, last)

    def stretch(self, span: Span) -> tuple[float, float]:
        return self.at(span[0]), self.at(span[1])

    def span_of(self, grid: Grid, part: Partition) -> Span:
        return (
            self.spans.first if part.lower is None else instant_of(grid, part.lower),
            self.spans.last if part.upper is None else instant_of(grid, part.upper),
        )


def _share(instant: datetime, begin: datetime, end: datetime) -> float:
    return min(max((instant - begin) / (end - begin), 0.0), 1.0) if begin < end else 0.0


# -- partitions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    kind: str
    span: Span
    part: Partition


def _kind(grid: Grid, part: Partition, runway: Runway, due: set[int]) -> str:
    window = runway.window
    if part.detach_pending:
        kind = "pending"
    elif part.oid in due:
        kind = "due"
    elif part.upper is not None and part.upper <= window.begin:
        kind = "past"
    elif part.lower is not None and part.lower >= window.end:
        kind = "ahead"
    else:
        kind = "today"
    return f"{kind} odd" if is_off_grid(grid, part) else kind


def _merged(grid: Grid, scale: _Scale, pieces: Sequence[_Piece]) -> Iterator[Shape]:
    """Yield a shape for each partition that is wide enough to be seen, else for neighbours together."""
    run: list[_Piece] = []
    for piece in pieces:
        narrow = bool(run) and scale.at(run[-1].span[1]) - scale.at(run[-1].span[0]) < _NARROW
        if run and not (narrow and run[-1].kind == piece.kind and run[-1].span[1] == piece.span[0]):
            yield _run(grid, scale, run)
            run = []
        run.append(piece)
    if run:
        yield _run(grid, scale, run)


def _run(grid: Grid, scale: _Scale, run: Sequence[_Piece]) -> Shape:
    first, last = run[0], run[-1]
    told = first.part.name if first is last else f"{len(run):,} partitions"
    words = f"{told}: {stretch(grid, first.part.lower, last.part.upper)}"
    return _shape(first.kind, scale.at(first.span[0]), scale.at(last.span[1]), words)


def _shape(kind: str, left: float, right: float, title: str) -> Shape:
    width = max(right - left, _SEEN if kind not in {"past", "ahead"} else 0.0)
    return Shape(kind, min(left, 100 - width), width, title)


def _between(grid: Grid, span: Span) -> str:
    begin, end = (_wall(grid, instant) for instant in span)
    shape = "%Y-%m-%d" if begin.time() == end.time() == time.min else "%Y-%m-%d %H:%M"
    return f"{begin:{shape}} to {end:{shape}}"


# -- dates ----------------------------------------------------------------------------------------------


def _wall(grid: Grid, instant: datetime) -> datetime:
    try:
        return wall_clock(instant, zone(grid.timezone))
    except OverflowError:  # where the calendar ends
        return instant.replace(tzinfo=None)


def _day(moment: date) -> str:
    # strftime would ask the locale of the host.
    return f"{moment.day} {_MONTHS[moment.month - 1]}"


def _end(grid: Grid, instant: datetime, hours: bool) -> str:
    wall = _wall(grid, instant)
    return f"{_day(wall)} {wall:%H:%M}" if hours else f"{_day(wall)} {wall.year}"


def _ticks(grid: Grid, scale: _Scale) -> Iterator[Tick]:
    spans = scale.spans
    sides = ((spans.first, spans.today[0], _LEFT), (spans.today[1], spans.last, 100 - _RIGHT))
    for (begin, end, width), (low, high) in zip(sides, _ROOM, strict=True):
        if begin >= end:
            continue
        least = (end - begin) * (_LABEL / width)
        unit, count = next(((u, c) for u, c, length in _STEPS if length >= least), ("month", 12_000))
        for wall in _walls(unit, count, _wall(grid, begin), _wall(grid, end)):
            at = scale.at(first_instant(wall, grid.timezone))
            if low <= at <= high:
                yield Tick(at, _label(unit, count, wall))


def _walls(unit: str, count: int, begin: datetime, end: datetime) -> Iterable[datetime]:
    """Yield the round times of a step between two: whole hours of the day, days and weeks, months, years."""
    if unit == "month":
        number = (begin.year * 12 + begin.month - 1) // count + 1
        while (wall := _month(number * count)) is not None and wall < end:
            yield wall
            number += 1
        return
    days = count if unit == "day" else 1
    ordinal = begin.toordinal() - 1
    wall = datetime.combine(date.fromordinal(ordinal - ordinal % days + 1), time.min)
    step = timedelta(**{f"{unit}s": count})
    while wall < end:
        if wall > begin:
            yield wall
        wall += step


def _month(number: int) -> datetime | None:
    year, month = divmod(number, 12)
    return datetime(year, month + 1, 1) if 2 <= year < 9999 else None  # noqa: DTZ001  # a wall-clock time


def _label(unit: str, count: int, wall: datetime) -> str:
    if unit == "month":
        return f"{wall.year}" if count % 12 == 0 else f"{_MONTHS[wall.month - 1]} {wall.year}"
    return f"{wall:%H:%M}" if unit == "hour" and wall.time() != time.min else _day(wall)
