"""How far a table's partitions reach, seen from now: what is covered, what is not, and what is past. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from alembic_partitions.errors import WindowRangeError
from alembic_partitions.periods import Grid, KeyValue, Period, Window, first_instant, wall_clock, zone

from .horizon import cutoff
from .removals import DetachPartition
from .retention import plan_retention
from .values import Coverage, ManagedTable, Partition, Reason, in_order

#: Key values without a partition: from the first up to, not including, the second.
Stretch: TypeAlias = "tuple[KeyValue, KeyValue]"

_DAY = timedelta(days=1)
_TOMORROW = Period(1, "day")
#: As many as a policy may ask for.
_ALL = 10_000


@dataclass(frozen=True, slots=True)
class Runway:
    """One table's coverage seen from an instant; partitions half-way through DETACH cover nothing."""

    #: The key of a row that is written now, and the window that it lies in.
    here: KeyValue
    window: Window
    #: The partition of that row; ``None`` where it finds none but a DEFAULT one.
    current: Partition | None
    #: The first key from now on that has no partition; ``None`` with MAXVALUE.
    end: KeyValue | None
    #: Days until then: 0 where even now has none, infinite with MAXVALUE.
    days: float
    #: Where the horizon ends that the policy asks for, and the days until then.
    wanted: KeyValue
    wanted_days: float
    #: Rows of the next 24 hours find a partition; where the horizon is shorter, those of the next window.
    reaches_tomorrow: bool
    #: What lies between the first and the last partition, or within the horizon, without one.
    gaps: tuple[Stretch, ...]
    #: Rows before it are older than their retention; ``None`` where everything is kept.
    cutoff: KeyValue | None
    #: Partitions that lie wholly before it, oldest first; and those of them that retention takes.
    expired: tuple[Partition, ...]
    due: tuple[Partition, ...]


def runway_of(table: ManagedTable, now: datetime) -> Runway | None:
    """Measure the runway of a table at an instant; ``None`` where it has none.

    :param table: with its partitions; whether these are :attr:`Runway.due` is told by their marks.
    """
    if table.problem is not None or table.policy is None:
        return None
    policy, grid = table.policy, table.grid
    try:
        here = grid.key_at(now)
        windows = [grid.at(here)]
    except WindowRangeError:
        return None
    try:
        for _ in range(policy.premake):
            windows.append(grid.after(windows[-1]))
        # The same time of day: the clocks may make that 23 hours, or 25.
        tomorrow = grid.key_at(_TOMORROW.after(now, grid.timezone))
    except (WindowRangeError, OverflowError):  # as far as the calendar goes
        tomorrow = windows[-1].end
    wanted = windows[-1].end
    coverage = Coverage.of(table.partitions)
    end = _end(coverage, here)
    if wanted > tomorrow:
        reaches = end is None or end > tomorrow
    else:
        reaches = end is None or end >= windows[:2][-1].end
    bounded = in_order(p for p in table.partitions if not p.is_default)
    oldest = cutoff(policy, grid, now)
    expired = [p for p in bounded if oldest is not None and p.upper is not None and p.upper <= oldest]
    return Runway(
        here=here,
        window=windows[0],
        current=next((p for p in bounded if _holds(p, here)), None),
        end=end,
        days=float("inf") if end is None else _days(grid, now, end) if end != here else 0.0,
        wanted=wanted,
        wanted_days=_days(grid, now, wanted),
        reaches_tomorrow=reaches,
        gaps=tuple(uncovered(table.partitions, windows[0].begin, wanted)),
        cutoff=oldest,
        expired=tuple(expired),
        due=_due(table, now),
    )


def _due(table: ManagedTable, now: datetime) -> tuple[Partition, ...]:
    """Return what retention would detach, were it not for ``max_drops``: by its own plan."""
    assert table.policy is not None
    unhurried = dataclasses.replace(table, policy=table.policy.changed(max_drops=_ALL))
    steps = plan_retention(unhurried, (), now).steps
    return tuple(s.partition for s in steps if isinstance(s, DetachPartition) and s.reason is Reason.EXPIRED)


def uncovered(
    partitions: Iterable[Partition], begin: KeyValue, end: KeyValue, pending: bool = False
) -> list[Stretch]:
    """Return what has no partition between the first and the last one, and from ``begin`` to ``end``.

    :param pending: let partitions half-way through DETACH count.
    """
    if pending:
        partitions = [dataclasses.replace(p, detach_pending=False) for p in partitions]
    coverage = Coverage.of(partitions)
    first = coverage.begins[0] if coverage.begins else begin
    gaps, reached = list[Stretch](), begin if first is None else min(begin, first)
    for lower, upper in zip(coverage.begins, coverage.ends, strict=True):
        if lower is not None and reached < lower:
            gaps.append((reached, lower))
        if upper is None:
            return gaps
        reached = upper
    if reached < end:
        gaps.append((reached, end))
    return gaps


def instant_of(grid: Grid, value: KeyValue) -> datetime:
    """Return the instant that a key value stands for: of a date, the begin of that day."""
    try:
        if not isinstance(value, datetime):
            return first_instant(datetime.combine(value, grid.day_start), grid.timezone)
        return value if value.tzinfo is not None else first_instant(value, grid.column_timezone)
    except (OverflowError, ValueError):  # a bound at an end of the calendar
        end = datetime.max if value.year > 5000 else datetime.min
        return end.replace(tzinfo=timezone.utc)


def local(grid: Grid, value: KeyValue) -> KeyValue:
    """Return a key value as the clocks of the policy's zone show it: a naive time, or a date."""
    if not isinstance(value, datetime) or (value.tzinfo is None and grid.timezone == grid.column_timezone):
        return value
    try:
        return wall_clock(instant_of(grid, value), zone(grid.timezone))
    except OverflowError:
        return value.replace(tzinfo=None)


def _end(coverage: Coverage, here: KeyValue) -> KeyValue | None:
    for lower, upper in zip(coverage.begins, coverage.ends, strict=True):
        if (lower is None or lower <= here) and (upper is None or here < upper):
            return upper
    return here


def _holds(part: Partition, value: KeyValue) -> bool:
    if part.is_default or part.detach_pending:
        return False
    return (part.lower is None or part.lower <= value) and (part.upper is None or value < part.upper)


def _days(grid: Grid, now: datetime, value: KeyValue) -> float:
    return max((instant_of(grid, value) - now) / _DAY, 0.0)
