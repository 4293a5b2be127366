"""What is there + policy + now -> the partitions to make. Pure: plain values in, plain values out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from alembic_partitions.errors import KeyOutsideLimits, NotManagedError, PolicyError, WindowRangeError
from alembic_partitions.keys import doubt
from alembic_partitions.naming import partition_name
from alembic_partitions.periods import Grid, KeyValue, Period, Window, exact_suffix
from alembic_partitions.policy import PartitionPolicy

from .values import (
    Coverage,
    CreatePartition,
    Finding,
    ManagedTable,
    Partition,
    Plan,
    Reason,
    Refusal,
    in_order,
)


def plan_horizon(table: ManagedTable, now: datetime, taken: Container[str] = ()) -> Plan:
    """Plan the windows that must stand ready: the current one, ``premake`` after and ``lookback`` before.

    :param now: the instant, aware.
    :param taken: names in the table's schema that a new partition must not use.
    """
    why = refused(table)
    if why is not None or table.policy is None:
        return Plan(table, findings=(why,) if why else ())
    wanted, findings = _wanted(table.policy, table.grid, now)
    if not wanted:
        return Plan(table, findings=tuple(findings), current_blocked=True)
    steps, more = _fill(table, wanted, taken, oldest=cutoff(table.policy, table.grid, now))
    return Plan(
        table,
        tuple(sorted(steps, key=lambda s: s.distance)),
        (*findings, *more),
        current_blocked=any(p.detach_pending for p in _overlapping(_bounded(table), wanted[0][0])),
    )


def stands(table: ManagedTable, now: datetime) -> bool:
    """Tell whether each window of the horizon has its very own partition, so that the plan is empty.

    Partitions do not overlap, so that is told by these alone, whatever others there are.
    """
    if refused(table) is not None or table.policy is None:
        return False
    there = {(part.lower, part.upper) for part in table.partitions if not part.detach_pending}
    wanted, findings = _wanted(table.policy, table.grid, now)
    return not findings and all((window.begin, window.end) in there for window, _, _ in wanted)


_Wanted: TypeAlias = "list[tuple[Window, Reason, int]]"


def _wanted(policy: PartitionPolicy, grid: Grid, now: datetime) -> tuple[_Wanted, list[Finding]]:
    """Return the windows that must stand ready, with how far each is away; none where the calendar ends."""
    findings = list[Finding]()
    try:
        current = grid.at(grid.key_at(now))
    except WindowRangeError as error:
        return [], [Finding(Refusal.OUT_OF_RANGE, str(error))]
    wanted = [(current, Reason.CURRENT, 0)]
    try:
        window = current
        for distance in range(1, policy.premake + 1):
            window = grid.after(window)
            wanted.append((window, Reason.AHEAD, distance))
    except WindowRangeError as error:
        findings.append(Finding(Refusal.OUT_OF_RANGE, str(error)))
    oldest = cutoff(policy, grid, now)
    try:
        window = current
        for distance in range(1, policy.lookback + 1):
            window = grid.before(window)
            if oldest is not None and window.end <= oldest:
                break
            wanted.append((window, Reason.BEHIND, distance))
    except WindowRangeError as error:
        findings.append(Finding(Refusal.OUT_OF_RANGE, str(error)))
    return wanted, findings


def plan_rows(
    table: ManagedTable, values: Collection[KeyValue], now: datetime, taken: Container[str] = ()
) -> Plan:
    """Plan the windows that rows with these keys need; keys that have a partition are not judged.

    :raises KeyOutsideLimits: a key lies beyond ``max_ahead`` or ``max_behind``, or the keys need more than
        ``max_create`` windows.
    :raises WindowRangeError: a key lies where no window can.
    """
    if table.policy is None or table.problem is not None:
        raise NotManagedError(table=str(table))
    policy, grid = table.policy, table.grid
    coverage = Coverage.of(table.partitions)
    windows: dict[KeyValue, Window] = {}
    for value in values:
        if not coverage.covers(value, value):
            _check_limits(table, value, now)
            window = grid.at(value)
            windows[window.begin] = window
    if len(windows) > policy.max_create:
        raise KeyOutsideLimits(
            table=str(table),
            value=f"{min(values)} and others",
            problem=f"one of {len(windows)} windows that a single statement asks for",
            field="max_create",
            limit=policy.max_create,
        )
    steps, findings = _fill(table, [(w, Reason.ROW, 0) for w in windows.values()], taken, made_by="insert")
    return Plan(table, tuple(steps), tuple(findings))


def plan_windows(
    table: ManagedTable,
    windows: Iterable[Window],
    taken: Container[str] = (),
    made_by: str = "request",
    reason: Reason = Reason.REQUESTED,
) -> Plan:
    """Plan the given windows, as far as they are not there."""
    why = refused(table)
    if why is not None:
        return Plan(table, findings=(why,))
    steps, findings = _fill(table, [(w, reason, 0) for w in windows], taken, made_by=made_by)
    return Plan(table, tuple(steps), tuple(findings))


def windows_between(grid: Grid, start: KeyValue, stop: KeyValue, most: int = 10_000) -> Iterator[Window]:
    """Yield the windows that hold the values from ``start`` up to, not including, ``stop``.

    :raises PolicyError: ``start`` is not before ``stop``, or there are more than ``most`` windows.
    """
    if not start < stop:
        raise PolicyError(field="start", problem=f"{start} is not before {stop}", remedy="Swap them.")
    window = grid.at(start)
    for _ in range(most):
        yield window
        if window.end >= stop:
            return
        window = grid.after(window)
    raise PolicyError(
        field="stop",
        problem=f"there are more than {most} windows from {start} to {stop}",
        remedy="Ask for a shorter range at a time.",
    )


def is_off_grid(finding: Finding) -> bool:
    """Tell whether a partition is said to be off the grid; so is one that is just being split, until that is
    looked up."""
    return finding.refusal in (Refusal.MISALIGNED, Refusal.OTHER_GRID)


def refused(table: ManagedTable) -> Finding | None:
    """Tell why nothing is to be done to a table."""
    if table.problem is not None:
        return Finding(*table.problem)
    if table.policy is not None and not table.policy.enabled:
        return Finding(Refusal.DISABLED, str(table))
    return None


def cutoff(policy: PartitionPolicy, grid: Grid, now: datetime) -> KeyValue | None:
    """Return the key value before which rows are older than their retention; ``None`` keeps everything."""
    if policy.retention is None:
        return None
    return key_near(grid, Period.parse(policy.retention).before(now, policy.timezone))


def key_near(grid: Grid, instant: datetime) -> KeyValue:
    """Return the key of an instant, which a very long period may have moved to an end of the calendar, where
    there is no room for another zone's clocks."""
    room = timedelta(days=2)
    first, last = (end.replace(tzinfo=timezone.utc) for end in (datetime.min + room, datetime.max - room))
    return grid.key_at(min(max(instant, first), last))


def _check_limits(table: ManagedTable, value: KeyValue, now: datetime) -> None:
    policy, grid = table.policy, table.grid
    assert policy is not None
    newest = key_near(grid, Period.parse(policy.max_ahead).after(now, policy.timezone))
    if value > newest:
        raise KeyOutsideLimits(
            table=str(table),
            value=value,
            problem=f"later than {newest}{doubt(grid.key_type)}",
            field="max_ahead",
            limit=policy.max_ahead,
        )
    name = "retention" if policy.max_behind is None else "max_behind"
    reach = policy.max_behind or policy.retention
    if reach is None:
        return
    oldest = key_near(grid, Period.parse(reach).before(now, policy.timezone))
    if value < oldest:
        raise KeyOutsideLimits(
            table=str(table),
            value=value,
            problem=f"earlier than {oldest}{doubt(grid.key_type)}",
            field=name,
            limit=reach,
        )


def _fill(
    table: ManagedTable,
    wanted: Sequence[tuple[Window, Reason, int]],
    taken: Container[str],
    made_by: str = "ensure",
    oldest: KeyValue | None = None,
) -> tuple[list[CreatePartition], list[Finding]]:
    """Cut what exists out of the wanted windows; each piece left is a step.

    :param oldest: what ends before it is expired, so retention would remove it again: nothing is made there
        for the sake of ``lookback``.
    """
    neighbours = _bounded(table)
    used = _Names(taken, {p.name for p in table.partitions})
    steps, findings = [], dict[str, Finding]()
    odd = set[str]()
    for window, reason, distance in wanted:
        begin: KeyValue = window.begin
        for part in _overlapping(neighbours, window):
            if part.is_splitting:
                findings[part.name] = Finding(Refusal.SPLITTING, f"{part.schema}.{part.name}")
            elif (part.lower, part.upper) != (window.begin, window.end):
                odd.add(part.name)
            if part.detach_pending:
                findings[part.name] = Finding(Refusal.DETACH_PENDING, f"{part.schema}.{part.name}")
            if part.lower is not None and begin < part.lower:
                steps.append(_step(table, window, begin, part.lower, reason, distance, used, made_by))
            begin = window.end if part.upper is None else max(begin, part.upper)
        if begin < window.end:
            steps.append(_step(table, window, begin, window.end, reason, distance, used, made_by))
    if oldest is not None:
        steps = [step for step in steps if step.reason is not Reason.BEHIND or step.upper > oldest]
    if steps and table.has_default:
        findings[""] = Finding(Refusal.DEFAULT, str(table))
    return steps, [*map(_off_the_grid, _runs(p for p in neighbours if p.name in odd)), *findings.values()]


def _runs(ordered: Iterable[Partition]) -> Iterator[list[Partition]]:
    """Yield the partitions that touch each other together."""
    run: list[Partition] = []
    for part in ordered:
        if run and run[-1].upper != part.lower:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _off_the_grid(run: list[Partition]) -> Finding:
    first, last = run[0], run[-1]
    stretch = f"[{first.lower or 'MINVALUE'}, {last.upper or 'MAXVALUE'})"
    if first is last:
        return Finding(Refusal.MISALIGNED, f"{first.schema}.{first.name} {stretch}")
    return Finding(
        Refusal.OTHER_GRID, f"{first.schema}.{first.name} to {last.name}, {len(run)} partitions {stretch}"
    )


def _step(
    table: ManagedTable,
    window: Window,
    lower: KeyValue,
    upper: KeyValue,
    reason: Reason,
    distance: int,
    used: _Names,
    made_by: str,
) -> CreatePartition:
    suffix = window.suffix if lower == window.begin else exact_suffix(lower)
    name = partition_name(table.name, suffix, used)
    used.mine.add(name)
    is_renamed = name != partition_name(table.name, suffix)
    return CreatePartition(table, name, lower, upper, reason, distance, made_by, is_renamed)


@dataclass(slots=True)
class _Names:
    """Names that are taken: by others, and by the steps planned so far."""

    others: Container[str]
    mine: set[str] = field(default_factory=set)

    def __contains__(self, name: object) -> bool:
        return name in self.mine or name in self.others


def _bounded(table: ManagedTable) -> list[Partition]:
    return in_order(p for p in table.partitions if not p.is_default)


def _overlapping(ordered: Sequence[Partition], window: Window) -> Iterator[Partition]:
    unbounded = 1 if ordered and ordered[0].lower is None else 0
    start = bisect_right(ordered, window.begin, lo=unbounded, key=lambda p: p.lower)
    for part in ordered[max(start - 1, 0) :]:
        if part.lower is not None and part.lower >= window.end:
            return
        if part.upper is None or part.upper > window.begin:
            yield part
