"""What a repair was asked for + what is there + now -> gaps to fill and rows to move. Pure."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from enum import Enum

from alembic_partitions.errors import PolicyError, RepairRangeError, WindowRangeError
from alembic_partitions.periods import Grid, KeyValue, Period, Window

from .horizon import cutoff, plan_horizon, plan_windows, windows_between
from .values import CreatePartition, Finding, ManagedTable, Partition, Plan, Reason, Refusal

#: Rows that one transaction of a drain moves at most.
BATCH = 10_000
#: Windows that one run drains at most.
MOST_STRANDED = 1_000


@dataclass(frozen=True, slots=True)
class Asked:
    """The range that somebody asked for, as they said it; dates and times are both included."""

    start: KeyValue | str | None = None
    stop: KeyValue | str | None = None
    days: int | None = None

    def __bool__(self) -> bool:
        return any(end is not None for end in (self.start, self.stop, self.days))


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger of a user's on a DEFAULT partition that would fire when rows are moved out."""

    name: str
    always: bool = False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of the parent, as PostgreSQL writes it down."""

    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Source:
    """What the DEFAULT partition is and what moving rows out of it has to mind."""

    partition: Partition
    is_plain: bool = True
    hides_rows: bool = False
    columns: tuple[str, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    incoming: tuple[str, ...] = ()
    publications: tuple[str, ...] = ()
    is_distributed: bool = False
    #: The column that Citus distributes the table by, if it does so by its hash.
    distributed_by: str | None = None

    @property
    def is_blind(self) -> bool:
        """Whether what it holds cannot be told from here."""
        return self.hides_rows or not self.is_plain

    def refusals(self) -> list[Finding]:
        """Tell why no row of it may be moved."""
        name = f"{self.partition.schema}.{self.partition.name}"
        found = [] if self.is_plain else [Finding(Refusal.UNDRAINABLE, name)]
        found += [Finding(Refusal.HIDDEN, name)] if self.hides_rows else []
        if self.is_distributed and (self.distributed_by is None or self.triggers):
            found.append(Finding(Refusal.DISTRIBUTED, name))
        found += [Finding(Refusal.PUBLISHED, f"{name}, by {told}") for told in self.publications]
        return found + [Finding(Refusal.INCOMING_KEY, key) for key in self.incoming]


class Staged(Enum):
    """How rows get to their new partition."""

    #: In one transaction: no reader at READ COMMITTED ever misses a row.
    AT_ONCE = "at once"
    #: Gathered in a table of their own first, which becomes the partition.
    GATHERED = "gathered"
    #: Gathered by an earlier run that was cut off.
    CARRIED_ON = "carried on"


@dataclass(frozen=True, slots=True)
class Drain:
    """One window whose rows are to be moved out of the DEFAULT partition."""

    step: CreatePartition
    source: Source | None
    rows: int
    how: Staged
    batch: int = BATCH
    #: Rows of it are still written and changed, so it moves at once however many there are.
    hot: bool = False


@dataclass(frozen=True, slots=True)
class Staging:
    """A table that rows are gathered in, found by its mark."""

    oid: int
    schema: str
    name: str
    lower: KeyValue
    upper: KeyValue
    #: Gathered for this very table, and beside it.
    certain: bool = True


def windows_asked(grid: Grid, now: datetime, asked: Asked) -> list[Window]:
    """Return the windows of the range, the nearest to now first; none where none was asked for.

    :raises RepairRangeError: the range is backwards, too long, off the calendar or no range at all.
    """
    if not asked:
        return []
    try:
        start, stop = _ends(grid, now, asked)
        windows = list(windows_between(grid, start, stop))
        current = grid.key_at(now)
    except RepairRangeError:
        raise
    except PolicyError as error:
        raise RepairRangeError(problem=error.problem, remedy=error.remedy) from None
    except (WindowRangeError, OverflowError) as error:
        raise RepairRangeError(
            problem=str(error) or "the calendar ends there", remedy="Ask for a shorter range."
        ) from None
    except ValueError as error:
        raise RepairRangeError(
            problem=str(error), remedy="Write dates as 2026-04-05, times as 2026-04-05T13:37."
        ) from None

    def distance(window: Window) -> timedelta:
        return max(window.begin - current, current - window.end, timedelta())  # type: ignore[operator]

    return sorted(windows, key=distance)


def _ends(grid: Grid, now: datetime, asked: Asked) -> tuple[KeyValue, KeyValue]:
    if asked.days is not None:
        if asked.start is not None or asked.stop is not None:
            raise RepairRangeError(problem="days and from or to are two ranges", remedy="Give one of them.")
        if not 0 <= asked.days < 1_000_000:
            raise RepairRangeError(
                problem=f"{asked.days} days is no reach around now", remedy="Give 0 or more days."
            )
        reach = Period(asked.days, "day")
        start = grid.key_at(reach.before(now, grid.timezone))
        return start, _just_after(grid.key_at(reach.after(now, grid.timezone)))
    start = grid.key_at(now) if asked.start is None else grid.key_of(asked.start)
    if asked.stop is None:
        stop = _just_after(grid.key_at(now))
    else:
        day = _as_date(asked.stop)
        stop = grid.key_of(day + timedelta(days=1)) if day else _just_after(grid.key_of(asked.stop))
    if not start < stop:
        told = ("now" if end is None else end for end in (asked.start, asked.stop))
        raise RepairRangeError(problem="{} is after {}".format(*told), remedy="Swap them.")
    return start, stop


def _as_date(moment: KeyValue | str) -> date | None:
    if isinstance(moment, str):
        return date.fromisoformat(moment) if len(moment) <= len("2026-04-05") else None
    return None if isinstance(moment, datetime) else moment


def _just_after(value: KeyValue) -> KeyValue:
    return value + (timedelta(microseconds=1) if isinstance(value, datetime) else timedelta(days=1))


def plan_gaps(
    table: ManagedTable,
    now: datetime,
    windows: Sequence[Window],
    taken: Container[str] = (),
    leave: Collection[tuple[KeyValue, KeyValue]] = (),
) -> Plan:
    """Plan the horizon and the windows asked for, the nearest to now first.

    :param leave: stretches that are somebody else's business: the drain's.
    """
    horizon = plan_horizon(table, now, taken)
    if table.problem is not None or table.policy is None or not table.policy.enabled:
        return horizon
    asked = plan_windows(table, windows, taken, made_by="repair", reason=Reason.REPAIR)
    steps: dict[tuple[KeyValue, KeyValue], CreatePartition] = {}
    for step in (*horizon.steps, *asked.steps):
        if not any(step.lower < upper and lower < step.upper for lower, upper in leave):
            steps.setdefault((step.lower, step.upper), dataclasses.replace(step, made_by="repair"))
    findings = [
        *dict.fromkeys((*horizon.findings, *asked.findings)),
        *short_lived(table, now, steps.values()),
    ]
    return Plan(table, tuple(steps.values()), tuple(findings), horizon.current_blocked)


def short_lived(table: ManagedTable, now: datetime, steps: Iterable[CreatePartition]) -> list[Finding]:
    """Tell which partitions retention will take again."""
    assert table.policy is not None
    oldest = cutoff(table.policy, table.grid, now)
    expired = [step for step in steps if oldest is not None and step.upper <= oldest]
    if not expired:
        return []
    first, last = min(expired, key=_lower), max(expired, key=_lower)
    names = first.name if first is last else f"{first.name} to {last.name}"
    return [Finding(Refusal.SHORT_LIVED, f"{table.schema}.{names}")]


def _lower(step: CreatePartition) -> KeyValue:
    return step.lower


def limits(table: ManagedTable, now: datetime) -> tuple[KeyValue, KeyValue]:
    """Return between which keys, both included, rows are moved to windows of their own.

    ``max_ahead`` and ``max_behind`` as for an insert; ``retention`` is none: what it takes, it takes from a
    partition.
    """
    assert table.policy is not None
    behind, zone = table.policy.max_behind, table.policy.timezone
    oldest = datetime.min.replace(tzinfo=timezone.utc)
    if behind is not None:
        oldest = Period.parse(behind).before(now, zone)
    newest = Period.parse(table.policy.max_ahead).after(now, zone)
    return _key_near(table.grid, oldest), _key_near(table.grid, newest)


def _key_near(grid: Grid, instant: datetime) -> KeyValue:
    room = timedelta(days=800)  # for another zone's clocks, and for a whole window of any usual length
    first, last = (end.replace(tzinfo=timezone.utc) for end in (datetime.min + room, datetime.max - room))
    return grid.key_at(min(max(instant, first), last))


def plan_stranded(
    table: ManagedTable, stranded: Sequence[tuple[Window, int]], taken: Container[str] = ()
) -> Plan:
    """Plan the windows that stranded rows belong to, the part of each that has no partition."""
    windows = [window for window, _ in stranded]
    return plan_windows(table, windows, taken, made_by="repair", reason=Reason.STRANDED)


def drains_of(
    planned: Plan,
    source: Source,
    stranded: Sequence[tuple[Window, int]],
    batch: int = BATCH,
    today: KeyValue | None = None,
) -> list[Drain]:
    """Return how the rows get to the partitions planned for them.

    :param today: the key of now: what has not ended by then is still written to, and what is changed while it
        is gathered would not be found.
    """
    begins = [window.begin for window, _ in stranded]
    drains = []
    for step in planned.steps:
        _, rows = stranded[bisect_right(begins, step.lower) - 1]
        hot = today is not None and step.upper > today
        how = Staged.AT_ONCE if rows <= batch or hot else Staged.GATHERED
        drains.append(Drain(step, source, rows, how, batch, hot))
    return drains


def too_many(drains: Iterable[Drain]) -> list[Finding]:
    """Tell which windows of a distributed table hold more rows than one transaction moves: there no batch
    can be taken out of shards."""
    return [
        Finding(Refusal.TOO_MANY, f"{drain.step.table.schema}.{drain.step.name}, {drain.rows} rows")
        for drain in drains
        if is_too_much(drain)
    ]


def is_too_much(drain: Drain) -> bool:
    """Tell whether rows would have to be gathered where Citus keeps them."""
    return drain.step.table.traits.distributed and drain.how is not Staged.AT_ONCE


def carried_on(
    table: ManagedTable, source: Source | None, staging: Staging, rows: int = 0, batch: int = BATCH
) -> Drain:
    """Return what is left to do of a drain that was cut off."""
    step = CreatePartition(
        table, staging.name, staging.lower, staging.upper, Reason.CUT_OFF, made_by="repair"
    )
    return Drain(step, source, rows, Staged.CARRIED_ON, batch)
