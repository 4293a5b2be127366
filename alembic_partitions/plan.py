"""What is there + policy + now -> what to do. Pure: plain values in, plain values out.

This module owns the value types that the floors above read and write. Times are values of the partition
key (:data:`~alembic_partitions.periods.KeyValue`); ``None`` as a bound is MINVALUE or MAXVALUE.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum

from .errors import KeyOutsideLimits, NotManagedError, PolicyError, WindowRangeError
from .naming import partition_name
from .periods import Grid, KeyType, KeyValue, Period, Window, exact_suffix
from .policy import PartitionPolicy

#: Begins every comment that marks a table as ours.
MARKS = "alembic_partitions: "
#: The comments that make our two tables ours; the number is the layout's version.
CONFIG_MARK = f"{MARKS}configuration, layout 1"
RUNS_MARK = f"{MARKS}runs, layout 1"
#: Begins the comment of every partition that we make; who made it follows.
PARTITION_MARK = f"{MARKS}made by "
#: The comment of a partition attached by hand that was kept when its table was dropped.
KEPT_MARK = f"{MARKS}kept when its table was dropped"
#: First half of the advisory lock taken while a parent gets partitions; the second is the parent's OID.
PARENT_LOCK_CLASS = 1_634_496_609


class Reason(Enum):
    """Why a partition is made."""

    CURRENT = "the current window"
    AHEAD = "premake: windows that stand ready after now"
    BEHIND = "lookback: windows that stand ready before now"
    ROW = "a row needs it"
    REQUESTED = "asked for by create_partitions"


class Refusal(Enum):
    """Why something was left undone, or what a person should look at."""

    DISABLED = "the policy is disabled"
    NO_TABLE = "the table does not exist"
    UNFIT = "the table does not fit its policy"
    MISALIGNED = "an existing partition is not on the policy's grid; filled around it"
    OTHER_GRID = "they are on another grid, an earlier policy's perhaps; new windows begin where they end"
    DETACH_PENDING = "a partition is stuck half-way through DETACH CONCURRENTLY; inserts into it fail"
    DEFAULT = "a DEFAULT partition exists, so each ATTACH waits for its readers and writers"
    OUT_OF_RANGE = "the calendar of windows ends here"


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition as the catalog has it."""

    oid: int
    schema: str
    name: str
    lower: KeyValue | None
    upper: KeyValue | None
    is_default: bool = False
    detach_pending: bool = False


@dataclass(frozen=True, slots=True)
class Traits:
    """What a new partition must be given because LIKE and ATTACH leave it behind; and whom ATTACH locks."""

    owner: str | None = None
    replica_identity: str = "d"
    row_security: bool = False
    statistics: tuple[tuple[str, int], ...] = ()
    access_method: str | None = None
    tablespace: str | None = None
    exclusions: bool = False
    key_tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ManagedTable:
    """A row of partition_config with what the catalog says of its table.

    ``problem`` tells why the table cannot be worked on; ``oid``, ``policy`` and ``key_type`` are there
    when it is ``None``.
    """

    schema: str
    name: str
    policy: PartitionPolicy | None = None
    oid: int | None = None
    key_type: KeyType | None = None
    traits: Traits = Traits()
    partitions: tuple[Partition, ...] = ()
    problem: tuple[Refusal, str] | None = None
    #: Digits of the second that the key keeps, as in ``timestamptz(0)``; ``None`` for all six.
    precision: int | None = None

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def grid(self) -> Grid:
        """The windows of the table."""
        if self.policy is None or self.key_type is None:
            raise NotManagedError(table=str(self))
        return self.policy.grid(self.key_type)

    @property
    def has_default(self) -> bool:
        """Whether a DEFAULT partition takes the rows that no other does."""
        return any(p.is_default for p in self.partitions)


@dataclass(frozen=True, slots=True)
class CreatePartition:
    """One partition to make, in a transaction of its own."""

    table: ManagedTable
    name: str
    lower: KeyValue
    upper: KeyValue
    reason: Reason
    #: How many windows away from the current one; the nearest are made first.
    distance: int = 0
    #: What the partition's comment says beside our mark: who made it.
    made_by: str = "ensure"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something left undone, and why."""

    refusal: Refusal
    detail: str

    def __str__(self) -> str:
        return f"{self.detail}: {self.refusal.value}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that bring one table to where its policy wants it. Empty means healthy."""

    table: ManagedTable
    steps: tuple[CreatePartition, ...] = ()
    findings: tuple[Finding, ...] = ()
    #: No step can give the current window its partition: the calendar ends, or one there is half detached.
    current_blocked: bool = False

    @property
    def current_missing(self) -> bool:
        """Whether a row written now would find no partition."""
        if self.table.problem is not None:
            return True
        current = self.current_blocked or any(s.reason is Reason.CURRENT for s in self.steps)
        return current and not self.table.has_default


@dataclass(frozen=True, slots=True)
class Coverage:
    """The key values that have a partition, as merged, ordered runs; answers in O(log n)."""

    begins: tuple[KeyValue | None, ...] = ()
    ends: tuple[KeyValue | None, ...] = ()

    @classmethod
    def of(cls, partitions: Iterable[Partition]) -> Coverage:
        """Merge partitions that touch; DEFAULT ones and half-detached ones cover nothing."""
        begins: list[KeyValue | None] = []
        ends: list[KeyValue | None] = []
        for part in _in_order(p for p in partitions if not p.is_default and not p.detach_pending):
            if ends and ends[-1] == part.lower:
                ends[-1] = part.upper
            else:
                begins.append(part.lower)
                ends.append(part.upper)
        return cls(tuple(begins), tuple(ends))

    def covers(self, low: KeyValue, high: KeyValue) -> bool:
        """Tell whether every value from ``low`` to ``high``, both included, has a partition."""
        found, end = self._run_at(low)
        return found and (end is None or high < end)

    def spans(self, lower: KeyValue, upper: KeyValue) -> bool:
        """Tell whether every value from ``lower`` up to, not including, ``upper`` has a partition."""
        found, end = self._run_at(lower)
        return found and (end is None or upper <= end)

    def _run_at(self, value: KeyValue) -> tuple[bool, KeyValue | None]:
        finite = 1 if self.begins and self.begins[0] is None else 0
        index = bisect_right(self.begins, value, lo=finite) - 1  # type: ignore[type-var]  # None is first
        if index < 0:
            return False, None
        end = self.ends[index]
        return end is None or value < end, end


def plan_horizon(table: ManagedTable, now: datetime, taken: Container[str] = ()) -> Plan:
    """Plan the windows that must stand ready: the current one, ``premake`` after and ``lookback`` before.

    :param now: the instant, aware.
    :param taken: names in the table's schema that a new partition must not use.
    """
    refused = _refused(table)
    if refused is not None or table.policy is None:
        return Plan(table, findings=(refused,) if refused else ())
    policy, grid = table.policy, table.grid
    try:
        current = grid.at(grid.key_at(now))
    except WindowRangeError as error:
        return Plan(table, findings=(Finding(Refusal.OUT_OF_RANGE, str(error)),), current_blocked=True)
    wanted, findings = [(current, Reason.CURRENT, 0)], list[Finding]()
    try:
        window = current
        for distance in range(1, policy.premake + 1):
            window = grid.after(window)
            wanted.append((window, Reason.AHEAD, distance))
    except WindowRangeError as error:
        findings.append(Finding(Refusal.OUT_OF_RANGE, str(error)))
    try:
        window, oldest = current, _cutoff(policy, grid, now)
        for distance in range(1, policy.lookback + 1):
            window = grid.before(window)
            if oldest is not None and window.end <= oldest:
                break
            wanted.append((window, Reason.BEHIND, distance))
    except WindowRangeError as error:
        findings.append(Finding(Refusal.OUT_OF_RANGE, str(error)))
    steps, more = _fill(table, wanted, taken)
    return Plan(
        table,
        tuple(sorted(steps, key=lambda s: s.distance)),
        (*findings, *more),
        current_blocked=any(p.detach_pending for p in _overlapping(_bounded(table), current)),
    )


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
    table: ManagedTable, windows: Iterable[Window], taken: Container[str] = (), made_by: str = "request"
) -> Plan:
    """Plan the given windows, as far as they are not there."""
    refused = _refused(table)
    if refused is not None:
        return Plan(table, findings=(refused,))
    steps, findings = _fill(table, [(w, Reason.REQUESTED, 0) for w in windows], taken, made_by=made_by)
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


def _refused(table: ManagedTable) -> Finding | None:
    if table.problem is not None:
        return Finding(*table.problem)
    if table.policy is not None and not table.policy.enabled:
        return Finding(Refusal.DISABLED, str(table))
    return None


def _cutoff(policy: PartitionPolicy, grid: Grid, now: datetime) -> KeyValue | None:
    if policy.retention is None:
        return None
    return _key_near(grid, Period.parse(policy.retention).before(now, policy.timezone))


def _key_near(grid: Grid, instant: datetime) -> KeyValue:
    """Return the key of an instant, which a very long period may have moved to an end of the calendar, where
    there is no room for another zone's clocks."""
    room = timedelta(days=2)
    first, last = (end.replace(tzinfo=timezone.utc) for end in (datetime.min + room, datetime.max - room))
    return grid.key_at(min(max(instant, first), last))


def _check_limits(table: ManagedTable, value: KeyValue, now: datetime) -> None:
    policy, grid = table.policy, table.grid
    assert policy is not None
    newest = _key_near(grid, Period.parse(policy.max_ahead).after(now, policy.timezone))
    if value > newest:
        raise KeyOutsideLimits(
            table=str(table),
            value=value,
            problem=f"later than {newest}",
            field="max_ahead",
            limit=policy.max_ahead,
        )
    name = "retention" if policy.max_behind is None else "max_behind"
    reach = policy.max_behind or policy.retention
    if reach is None:
        return
    oldest = _key_near(grid, Period.parse(reach).before(now, policy.timezone))
    if value < oldest:
        raise KeyOutsideLimits(
            table=str(table), value=value, problem=f"earlier than {oldest}", field=name, limit=reach
        )


def _fill(
    table: ManagedTable,
    wanted: Sequence[tuple[Window, Reason, int]],
    taken: Container[str],
    made_by: str = "ensure",
) -> tuple[list[CreatePartition], list[Finding]]:
    """Cut what exists out of the wanted windows; each piece left is a step."""
    neighbours = _bounded(table)
    used = _Names(taken, {p.name for p in table.partitions})
    steps, findings = [], dict[str, Finding]()
    odd = set[str]()
    for window, reason, distance in wanted:
        begin: KeyValue = window.begin
        for part in _overlapping(neighbours, window):
            if (part.lower, part.upper) != (window.begin, window.end):
                odd.add(part.name)
            if part.detach_pending:
                findings[part.name] = Finding(Refusal.DETACH_PENDING, f"{part.schema}.{part.name}")
            if part.lower is not None and begin < part.lower:
                steps.append(_step(table, window, begin, part.lower, reason, distance, used, made_by))
            begin = window.end if part.upper is None else max(begin, part.upper)
        if begin < window.end:
            steps.append(_step(table, window, begin, window.end, reason, distance, used, made_by))
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
    return CreatePartition(table, name, lower, upper, reason, distance, made_by)


@dataclass(slots=True)
class _Names:
    """Names that are taken: by others, and by the steps planned so far."""

    others: Container[str]
    mine: set[str] = field(default_factory=set)

    def __contains__(self, name: object) -> bool:
        return name in self.mine or name in self.others


def _bounded(table: ManagedTable) -> list[Partition]:
    return _in_order(p for p in table.partitions if not p.is_default)


def _in_order(partitions: Iterable[Partition]) -> list[Partition]:
    partitions = list(partitions)
    # Several begin before the calendar where hand-made bounds are -infinity or BC; the last one reaches into
    # it, or none does.
    unbounded = sorted(
        (p for p in partitions if p.lower is None),
        key=lambda p: (p.upper is None, p.upper),  # at most one ends nowhere, so None meets no other
    )[-1:]
    bounded = sorted(
        (p for p in partitions if p.lower is not None),
        key=lambda p: p.lower,  # type: ignore[arg-type,return-value]  # None is not among them
    )
    return unbounded + bounded


def _overlapping(ordered: Sequence[Partition], window: Window) -> Iterator[Partition]:
    unbounded = 1 if ordered and ordered[0].lower is None else 0
    start = bisect_right(ordered, window.begin, lo=unbounded, key=lambda p: p.lower)
    for part in ordered[max(start - 1, 0) :]:
        if part.lower is not None and part.lower >= window.end:
            return
        if part.upper is None or part.upper > window.begin:
            yield part
