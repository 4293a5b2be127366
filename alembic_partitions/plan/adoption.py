"""Bounds that somebody else has made -> the policy whose windows they are. Pure.

Lengths tell the interval; what the clocks of a zone show at the edges tells the zone and the begin of a day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pytz

from alembic_partitions.errors import PolicyError, WindowRangeError
from alembic_partitions.periods import Grid, Interval, KeyType, wall_clock, zone
from alembic_partitions.policy import PartitionPolicy

from .clocks import MIDNIGHT, RECENT, WELL_KNOWN, candidates, instant, sample_of, zones_to_try
from .values import Partition, in_order

#: An interval and a multiple of it.
Size: TypeAlias = "tuple[Interval, int]"

#: Edges beyond it tell nothing new, and cost time.
_MOST = 2_000
_ROUNDS = 3
#: Nobody has partitions of 1985 and none after it: smaller integers are numbers.
_FIRST_SECOND = 500_000_000
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Era:
    """Partitions off the grid that touch each other, and the policy that they are on, if there is one."""

    partitions: tuple[Partition, ...]
    policy: PartitionPolicy | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """The policy that fits best, and what does not fit it."""

    policy: PartitionPolicy
    on_grid: tuple[Partition, ...] = ()
    off_grid: tuple[Era, ...] = ()
    #: Zones on whose clocks these very edges are the same, the better known ones first.
    also: tuple[str, ...] = ()

    @property
    def drift(self) -> Era | None:
        """The newest partitions, where they went over to another grid than those before."""
        last = self.off_grid[-1] if self.off_grid else None
        if last is None or last.policy is None or not self.on_grid:
            return None
        newest = self.on_grid[-1].upper, last.partitions[-1].upper
        later = newest[0] is not None and newest[1] is not None and newest[1] > newest[0]
        return last if later else None


@dataclass(frozen=True, slots=True)
class _Try:
    policy: PartitionPolicy
    fitting: frozenset[int]
    natural: bool


def propose(
    key: str,
    key_type: KeyType,
    partitions: Collection[Partition],
    *,
    zones: Sequence[str] = (),
    size: Size | None = None,
    given: Mapping[str, Any] | None = None,
) -> Proposal:
    """Find the policy with the most windows among the partitions; where they have changed, the newest decide.

    :param zones: what is tried first, such as the database's TimeZone.
    :param size: what another tool has noted down as the length of a partition.
    :param given: fields that are decided.
    :raises PolicyError: a field that was given is wrong.
    """
    fields = dict(given or {})
    PartitionPolicy(key, **fields)
    parts = _finite(partitions)
    best = _best(key, key_type, parts, zones_to_try(zones, fields), size, fields)
    if best is None:
        interval, every = size or ("day", 1)
        plain = {"interval": interval, "every": every, "timezone": next(iter(zones), "UTC")}
        policy = PartitionPolicy(key, **{**plain, **fields})
        return judge(policy, key_type, partitions)
    also = () if "timezone" in fields else _also(best.policy, key_type, parts)
    judged = judge(best.policy, key_type, partitions)
    eras = tuple(_explained(key, key_type, era, zones) for era in judged.off_grid)
    return Proposal(best.policy, judged.on_grid, eras, also)


def judge(policy: PartitionPolicy, key_type: KeyType, partitions: Iterable[Partition]) -> Proposal:
    """Tell which partitions are windows of a policy; a DEFAULT one is neither."""
    grid = policy.grid(key_type)
    on: list[Partition] = []
    eras: list[list[Partition]] = []
    for part in in_order(p for p in partitions if not p.is_default):
        if _is_window(grid, part):
            on.append(part)
        elif eras and eras[-1][-1].upper == part.lower:
            eras[-1].append(part)
        else:
            eras.append([part])
    return Proposal(policy, tuple(on), tuple(Era(tuple(era)) for era in eras))


def guess_epoch(bounds: Sequence[int]) -> str | None:
    """Tell what integers count since 1970, by their size; ``None`` if it is no such time, but a number."""
    newest = max(bounds, default=0)
    for unit, most in (("s", 10**11), ("ms", 10**14), ("us", 10**17)):
        if newest < most:
            return unit if newest >= _FIRST_SECOND else None
    return "ns"


def _finite(partitions: Iterable[Partition]) -> list[Partition]:
    return in_order(p for p in partitions if p.lower is not None and p.upper is not None and not p.is_default)


def _is_window(grid: Grid, part: Partition) -> bool:
    if part.lower is None or part.upper is None:
        return False
    try:
        window = grid.at(part.lower)
    except WindowRangeError:
        return False
    return (window.begin, window.end) == (part.lower, part.upper)


def _explained(key: str, key_type: KeyType, era: Era, zones: Sequence[str]) -> Era:
    """Find the policy of some partitions that are off another's grid; one alone may be anything."""
    parts = _finite(era.partitions)
    if len(parts) < 2:
        return era
    best = _best(key, key_type, parts, ["UTC", *zones], None, {})
    return Era(era.partitions, best.policy) if best and 2 * len(best.fitting) > len(parts) else era


def _best(
    key: str,
    key_type: KeyType,
    parts: Sequence[Partition],
    zones: Sequence[str],
    size: Size | None,
    fields: dict[str, Any],
) -> _Try | None:
    tries: list[_Try] = []
    recent = parts[-RECENT:]
    votes = Counter(found for part in recent for found in _sizes(part))
    enough = max(votes.values(), default=0) / 2
    wanted = {found for found, count in votes.items() if count >= enough} | ({size} if size else set())
    for interval, every in sorted(wanted, key=lambda found: (found != size, found[1], found[0])):
        told = {"interval": interval, "every": every}
        if any(fields.get(name, value) != value for name, value in told.items()):
            continue
        tries += _tries(key, key_type, parts, zones, {**told, **fields})
        if tries and len(tries[-1].fitting) == len(parts):
            break
    if not tries and parts and fields.keys() & {"interval", "every"}:
        tries = list(_tries(key, key_type, parts, zones, fields))
    order = {name: -number for number, name in enumerate(zones)}
    # The first of equals: the simplest.
    best = max(tries, key=lambda t: (_era(t, parts), t.natural, order[t.policy.timezone]), default=None)
    return best if best is None else _before_it_drifted(best, tries, key_type, parts)


def _era(found: _Try, parts: Sequence[Partition]) -> int:
    """Return how many fit among the newest, back to where three together do not."""
    count = odd = 0
    for part in reversed(parts):
        odd = 0 if part.oid in found.fitting else odd + 1
        if odd == 3:
            break
        count += not odd
    return count


def _sizes(part: Partition) -> Iterator[Size]:
    """Yield what a partition of that length may be, clock changes considered."""
    assert part.lower is not None
    assert part.upper is not None
    length: timedelta = part.upper - part.lower
    hours, days = length / _HOUR, length / _DAY
    for every in (1, 2, 3, 4, 6, 8, 12):
        if abs(hours - every) <= 1 and every > hours / 2:
            yield "hour", every
    count = round(days)
    if 1 <= count <= 1000 and abs(hours - 24 * count) <= 3:
        yield "day", count
        if count % 7 == 0:
            yield "week", count // 7
    months = round(days / 30.4375)
    if 1 <= months <= 1000 and abs(days - 30.4375 * months) <= 3.5:
        yield "month", months
        if months % 3 == 0:
            yield "quarter", months // 3
        if months % 12 == 0:
            yield "year", months // 12


def _tries(
    key: str, key_type: KeyType, parts: Sequence[Partition], zones: Sequence[str], fields: dict[str, Any]
) -> Iterator[_Try]:
    """Yield policies of one interval, held against all partitions."""
    parts = parts[-_MOST:]
    edges = sorted({edge for part in parts for edge in (part.lower, part.upper) if edge is not None})
    sample, tried = sample_of(edges), set[tuple[tuple[str, str], ...]]()
    for _ in range(_ROUNDS):
        best = _Try(PartitionPolicy(key), frozenset(), natural=False)
        for wanted in candidates(key_type, sample, zones, fields):
            if wanted in tried:
                continue
            tried.add(wanted)
            try:
                policy = PartitionPolicy(key, **{**dict(wanted), **fields})
                grid = policy.grid(key_type)
            except PolicyError:  # hours of a date; naive hours in a zone with clock changes
                continue
            fitting = frozenset(part.oid for part in parts if _is_window(grid, part))
            found = _Try(policy, fitting, policy.day_start == "00:00")
            best = max(best, found, key=lambda t: len(t.fitting))
            yield found
            if len(fitting) == len(parts):  # none can do better, and those that follow are not simpler
                return
        # What does not fit tells zones apart that the first edges did not.
        odd = [e for p in parts if p.oid not in best.fitting for e in (p.lower, p.upper) if e is not None]
        more = [edge for edge in odd if edge not in sample][-RECENT:]
        if not best.fitting or not more:
            return
        sample += more


def _before_it_drifted(
    best: _Try, tries: Sequence[_Try], key_type: KeyType, parts: Sequence[Partition]
) -> _Try:
    """Return the midnights that a set was made by, where others are beside them by a clock change at most.

    Made in one session zone and extended from another, most of it may fit a zone that has no clock changes.
    What tells is a day of 23 or 25 hours, which only the zone that it was made in has.
    """
    if key_type == "date" or len(best.fitting) == len(parts) or (best.natural and _is_utc(best)):
        return best
    odd = {p.oid for p in parts if (p.upper - p.lower) % _DAY}  # type: ignore[operator]
    size = best.policy.interval, best.policy.every
    alike = [t for t in tries if t.natural and (t.policy.interval, t.policy.every) == size]
    made_by = max(alike, key=lambda t: (len(t.fitting & odd), len(t.fitting)), default=best)
    explains = made_by.fitting & odd - best.fitting and 2 * len(made_by.fitting) >= len(parts)
    tz = zone(made_by.policy.timezone)
    for part in parts if explains else ():
        if part.oid not in made_by.fitting and part.lower is not None:
            wall = wall_clock(instant(part.lower), tz)
            late = wall - datetime.combine(wall.date(), MIDNIGHT)
            if min(late, _DAY - late) > _HOUR:
                return best
    return made_by if explains else best


def _is_utc(found: _Try) -> bool:
    return found.policy.timezone == "UTC"


def _also(policy: PartitionPolicy, key_type: KeyType, parts: Sequence[Partition]) -> tuple[str, ...]:
    if key_type == "date" or (key_type == "timestamp" and policy.column_timezone is None):
        return ()
    grid = policy.grid(key_type)
    fitting = [part for part in parts[-_MOST:] if _is_window(grid, part)]
    edges = dict.fromkeys(edge for part in fitting for edge in (part.lower, part.upper) if edge is not None)
    instants = [instant(edge) for edge in edges]
    shown = [wall_clock(i, zone(policy.timezone)) for i in instants]
    # Of UTC there are many by other names.
    names = dict.fromkeys([*WELL_KNOWN, *(pytz.common_timezones if policy.timezone != "UTC" else ())])
    return tuple(
        name
        for name in names
        if name != policy.timezone
        and all(wall_clock(i, zone(name)) == wall for i, wall in zip(instants, shown, strict=True))
    )
