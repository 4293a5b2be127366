"""The values that planning reads and writes, and the marks that make a table ours.

Times are values of the partition key (:data:`~alembic_partitions.periods.KeyValue`); ``None`` as a bound is
MINVALUE or MAXVALUE.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from alembic_partitions.errors import NotManagedError
from alembic_partitions.periods import Grid, KeyType, KeyValue
from alembic_partitions.policy import PartitionPolicy

#: Begins every comment that marks a table as ours.
MARKS = "alembic_partitions: "
#: The comments that make our two tables ours; the number is the layout's version.
CONFIG_MARK = f"{MARKS}configuration, layout 1"
RUNS_MARK = f"{MARKS}runs, layout 1"
#: Texts that a partition_config of an earlier version lacks until the next declaration adds them: NULL there.
CONFIG_ADDED = ("epoch",)
#: Begins the comment of every partition that we make; who made it follows.
PARTITION_MARK = f"{MARKS}made by "
#: Begins the comment of one that restore has attached again; when follows.
RESTORED_MARK = f"{PARTITION_MARK}restore at "
#: Begins the comment of a partition on its way out; what it was follows, as JSON.
DETACHING_MARK = f"{MARKS}detaching "
#: Begins the comment of a table that was our partition; what it was and when it went follow, as JSON.
DETACHED_MARK = f"{MARKS}detached "
#: Begins the comment of a table that rows of a DEFAULT partition are gathered in; of what follows, as JSON.
DRAINING_MARK = f"{MARKS}draining "
#: The comment of a partition attached by hand that was kept when its table was dropped.
KEPT_MARK = f"{MARKS}kept when its table was dropped"
#: First half of the advisory lock taken while a parent gets partitions; the second is the parent's OID.
PARENT_LOCK_CLASS = 1_634_496_609


class Reason(Enum):
    """Why something is done."""

    CURRENT = "the current window"
    AHEAD = "premake: windows that stand ready after now"
    BEHIND = "lookback: windows that stand ready before now"
    ROW = "a row needs it"
    REQUESTED = "asked for by create_partitions"
    REPAIR = "a gap in the range that repair was asked for"
    STRANDED = "rows of the DEFAULT partition belong here"
    EXPIRED = "all of it is older than its retention"
    CUT_OFF = "a run that was cut off left it half-way"
    GRACE_OVER = "detached longer ago than its grace"
    ARCHIVE = "on_expiry is archive"
    SPLIT = "a partition is split into its windows"
    FATE = "on_expiry has changed since it was detached, so its grace begins anew"


class Refusal(Enum):
    """Why something was left undone, or what a person should look at."""

    DISABLED = "the policy is disabled"
    NO_TABLE = "the table does not exist"
    UNFIT = "the table does not fit its policy"
    MISALIGNED = (
        "an existing partition is not on the policy's grid; filled around it. It may stay; split divides one"
        " of several windows; else DETACH it, repair the range, and INSERT its rows into the table again"
    )
    OTHER_GRID = (
        "they are on another grid, an earlier policy's perhaps; new windows begin where they end. They may"
        " stay; split divides one of several windows; else DETACH it, repair the range, and INSERT its rows"
        " into the table again"
    )
    DETACH_PENDING = "a partition is stuck half-way through DETACH CONCURRENTLY; inserts into it fail"
    DEFAULT = "a DEFAULT partition exists, so each ATTACH waits for its readers and writers"
    OUT_OF_RANGE = "the calendar of windows ends here"
    NOT_OURS = "expired, but attached by hand: it lacks our mark, so it stays until somebody detaches it"
    LAST = "expired, but the last partition of its table, which stays"
    TOO_SHORT = "its retention is shorter than one window, so nothing is removed; correct it"
    IN_PROGRESS = "somebody's DETACH CONCURRENTLY is under way; the next run looks again"
    MORE_WAIT = "more than max_drops; the next runs go on"
    CLOCK = "the clock is in doubt, so nothing is removed in this run"
    REHEARSED = "by a rehearsed clock nothing is removed; unset ALEMBIC_PARTITIONS_NOW, or use --dry-run"
    NO_ARCHIVE = "on_expiry is archive, and there is nowhere to put it"
    REFERRED_TO = (
        "rows there that refer to an expired partition keep it from being detached; delete them first,"
        " or drop the foreign key"
    )
    OCCUPIED = "its place is taken; drop that partition if it is empty, or move its rows, then restore"
    EXTENDED = "detached, but within its retention now, so it stays as it is; restore brings it back"
    SHORT_LIVED = "made as asked, but older than retention, which will take it; lengthen retention to keep it"
    INCOMING_KEY = (
        "a foreign key refers to the table, so moving its rows would cascade or fail; drop that key, repair,"
        " and add it again"
    )
    PUBLISHED = (
        "its publication tells subscribers of the rows that leave and not of where they go, so none is moved;"
        " take the table out of it, or DELETE out of what it publishes, repair, and bring subscribers in step"
    )
    HIDDEN = (
        "row-level security may hide rows of the DEFAULT partition from this role, so none is moved; repair"
        " as a role with BYPASSRLS, or ALTER TABLE ... NO FORCE ROW LEVEL SECURITY meanwhile"
    )
    DISTRIBUTED = (
        "Citus keeps it otherwise than by the hash of a column, or with triggers, so no partition can be made"
        " to fit before it is attached; move its rows by hand: INSERT INTO a table of their own, DELETE,"
        " repair, and INSERT INTO the table again"
    )
    TOO_MANY = (
        "more rows than one transaction moves, and those of a distributed table cannot be gathered batch by"
        " batch; repair with a larger --batch while nobody reads it"
    )
    UNDRAINABLE = "the DEFAULT partition is partitioned itself, foreign or has rules; move its rows by hand"
    OUTSIDE = (
        "rows that stay in the DEFAULT partition, their keys being beyond max_ahead, max_behind or the"
        " calendar; correct them, or raise the limit and repair again"
    )
    MORE_STRANDED = "more windows than one run drains; repair again"
    WAITING = "rows that a run which was cut off has gathered wait there until this is settled"
    UNCOMPARED = "partitions could not be compared with their table; repair again"
    FOREIGN_CHILD = "it lacks our mark, so it is not altered; do as its parent has it, or leave it so"
    SPLITTING = (
        "it is being split into its windows, and left alone until then; alembic-partitions split goes on with"
        " that, split --abort takes it back"
    )
    BY_HAND = "repair does not do this; see to it by hand"
    LANDED_IN_DEFAULT = "a test row went into the DEFAULT partition"
    UNPROVEN = "a test row could not be tried"


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
    #: Its comment, and its bounds as PostgreSQL prints them; only where retention is planned.
    mark: str | None = None
    bound: str = ""
    #: A split of it is under way, or it stands for windows that a split has made; read where it matters.
    is_splitting: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether its comment says that we made it."""
        return self.mark is not None and self.mark.startswith((PARTITION_MARK, DETACHING_MARK))

    @property
    def is_leaving(self) -> bool:
        """Whether its comment says that a run was about to detach it."""
        return self.mark is not None and self.mark.startswith(DETACHING_MARK)


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
    #: Citus keeps its rows in shards, on workers.
    distributed: bool = False


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
    #: Whether its usual name is taken: by another table, or by a competitor who has just made the same.
    is_renamed: bool = False


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
        for part in in_order(p for p in partitions if not p.is_default and not p.detach_pending):
            if ends and ends[-1] == part.lower:
                ends[-1] = part.upper
            else:
                begins.append(part.lower)
                ends.append(part.upper)
        return cls(tuple(begins), tuple(ends))

    def covers(self, low: KeyValue, high: KeyValue) -> bool:
        """Tell whether every value from ``low`` to ``high``, both included, has a partition."""
        run = self.run_at(low)
        return run is not None and (run[1] is None or high < run[1])

    def spans(self, lower: KeyValue, upper: KeyValue) -> bool:
        """Tell whether every value from ``lower`` up to, not including, ``upper`` has a partition."""
        run = self.run_at(lower)
        return run is not None and (run[1] is None or upper <= run[1])

    def run_at(self, value: KeyValue) -> tuple[KeyValue | None, KeyValue | None] | None:
        """Return from where up to where values have partitions without a gap around one that has one."""
        finite = 1 if self.begins and self.begins[0] is None else 0
        index = bisect_right(self.begins, value, lo=finite) - 1  # type: ignore[type-var]  # None is first
        if index < 0:
            return None
        begin, end = self.begins[index], self.ends[index]
        return (begin, end) if end is None or value < end else None


def in_order(partitions: Iterable[Partition]) -> list[Partition]:
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
