"""A partition that spans several windows + the grid -> the windows that it is split into. Pure.

The windows are made in groups, each a partitioned table of its own: in the swap a group is attached as one,
so the time that it takes does not grow with the windows; later a group gives way to its windows.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from alembic_partitions.errors import SplitRefused, WindowRangeError
from alembic_partitions.naming import Names
from alembic_partitions.periods import Grid, KeyValue, exact_suffix

from .repairing import ForeignKey
from .values import MARKS, ManagedTable, Partition

#: Begins the comment of the table that a split gathers rows in; what it is for follows, as JSON.
SPLITTING_MARK = f"{MARKS}splitting "
#: The comments of what belongs to it.
SPLIT_GROUP_MARK = f"{MARKS}windows of a split"
SPLIT_HELPER_MARK = f"{MARKS}helper of a split"
#: Begins the comment of a table that was split; what it was follows, as JSON.
SPLIT_MARK = f"{MARKS}split "

#: Windows that one partition is split into at most.
MOST_WINDOWS = 10_000
# Windows of a group: one short transaction attaches them. Beyond 40 groups, the groups grow.
_GROUP, _MOST_GROUPS = 20, 40


@dataclass(frozen=True, slots=True)
class Piece:
    """One window to be; ``None`` as an end is MINVALUE or MAXVALUE."""

    name: str
    lower: KeyValue | None
    upper: KeyValue | None
    #: Its bounds as PostgreSQL prints them, once it is there.
    bound: str = ""

    @property
    def is_outermost(self) -> bool:
        """Whether it takes what lies beyond the rows that were there; empty at the end, it is dropped."""
        return self.lower is None or self.upper is None


@dataclass(frozen=True, slots=True)
class Group:
    """Windows that stand side by side, below a table of their own until they are partitions themselves."""

    name: str
    pieces: tuple[Piece, ...]
    bound: str = ""

    @property
    def lower(self) -> KeyValue | None:
        return self.pieces[0].lower

    @property
    def upper(self) -> KeyValue | None:
        return self.pieces[-1].upper


@dataclass(frozen=True, slots=True)
class Identified:
    """A column by which a row is told from others, and the operator that finds it by an index."""

    name: str
    equals: str


@dataclass(frozen=True, slots=True)
class Splittable:
    """What the catalog says of a partition that is to be split, and of its parent."""

    problems: tuple[tuple[str, str], ...] = ()
    #: What is written, in the parent's order; and all there is.
    columns: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    identity: tuple[Identified, ...] = ()
    #: The parent's foreign keys, and those that the partition has once it is none.
    foreign_keys: tuple[ForeignKey, ...] = ()
    own_keys: tuple[str, ...] = ()
    #: Estimates: what ANALYZE has counted, and what the disk holds.
    rows: int = 0
    blocks: int = 0
    bytes: int = 0
    block_size: int = 8192
    #: Indexes of each window, and locks that all transactions together can hold.
    indexes: int = 0
    lock_table: int = 0
    #: What a person should know.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """One partition on its way to its windows: all names, whether or not they exist yet."""

    table: ManagedTable
    source: Partition
    #: What the source is called once it has been split; empty once it is dropped.
    kept_as: str
    staging: str
    log: str
    state: str
    groups: tuple[Group, ...]
    facts: Splittable
    #: The rows are in the windows; what is left is to make the windows partitions of the table itself.
    is_swapped: bool = False
    #: All of it is there and changes are written down.
    is_watched: bool = False
    #: The source is a partition of the table.
    is_attached: bool = True
    #: Longest wait for a lock that others queue behind.
    wait_ms: int = 40

    @property
    def pieces(self) -> Iterator[Piece]:
        """All windows, in order."""
        return (piece for group in self.groups for piece in group.pieces)

    @property
    def schema(self) -> str:
        return self.table.schema


def refuse_split(source: Partition, facts: Splittable, windows: int) -> None:
    """Refuse a split that would lose something, or not come to its end.

    :raises SplitRefused: with all reasons, and what to do about each.
    """
    problems = list(facts.problems)
    if windows > MOST_WINDOWS:
        told = f"its rows span {windows} windows, more than {MOST_WINDOWS}"
        problems.append((told, "Correct rows with odd times, or choose a longer interval"))
    # The windows, their indexes where changes are caught up with, and their foreign keys in the swap.
    needed = windows * (2 + max(facts.indexes, 2 * len(facts.foreign_keys)))
    if facts.lock_table and needed > facts.lock_table * 0.7:
        told = f"{windows} windows need {needed} locks at once, and this server has {facts.lock_table}"
        problems.append((told, "Raise max_locks_per_transaction, or choose a longer interval"))
    if problems:
        raise SplitRefused(
            table=f"{source.schema}.{source.name}",
            problem="; ".join(problem for problem, _ in problems),
            remedy=". ".join(dict.fromkeys(remedy for _, remedy in problems)),
        )


def _pieces(
    table: ManagedTable,
    source: Partition,
    oldest: KeyValue | None,
    newest: KeyValue | None,
    names: Names,
) -> tuple[Group, ...]:
    """Return the windows of a partition in groups; where it has no end, they begin or end with its rows.

    :param oldest: the first key that it holds; ``None`` where it is empty.
    :raises SplitRefused: it lies in one window, or where no window can be.
    """
    grid = table.grid
    begin = source.lower if source.lower is not None else oldest
    last = source.upper if source.upper is not None else newest
    if begin is None or last is None:
        raise SplitRefused(
            table=f"{source.schema}.{source.name}",
            problem="it holds no row and has no end, so there are no windows to make",
            remedy="DETACH it, and windows are made as rows need them",
        )
    try:
        edges = list(_edges(grid, source, begin, last))
    except WindowRangeError as error:
        raise SplitRefused(
            table=f"{source.schema}.{source.name}",
            problem=str(error),
            remedy="Correct or delete those rows",
        ) from error
    pieces = [
        Piece(
            names.new(table.name, suffix if lower is None or not exact else exact_suffix(lower)), lower, upper
        )
        for lower, upper, suffix, exact in edges
    ]
    if len(pieces) < 2:
        raise SplitRefused(
            table=f"{source.schema}.{source.name}",
            problem="it lies within one window of the policy",
            remedy="There is nothing to split",
        )
    size = max(_GROUP, -(-len(pieces) // _MOST_GROUPS))
    return tuple(
        Group(names.new(table.name, f"split_{number}"), tuple(pieces[start : start + size]))
        for number, start in enumerate(range(0, len(pieces), size), start=1)
    )


def _edges(
    grid: Grid, source: Partition, begin: KeyValue, last: KeyValue
) -> Iterator[tuple[KeyValue | None, KeyValue | None, str, bool]]:
    """Yield lower and upper end, the suffix of the name, and whether the window begins off the grid."""
    window = grid.at(begin)
    if source.lower is None:
        yield None, window.begin, f"before_{window.suffix}", False
    for _ in range(MOST_WINDOWS + 1):
        lower = window.begin if source.lower is None else max(window.begin, source.lower)
        upper = window.end if source.upper is None else min(window.end, source.upper)
        if lower < upper:  # nothing is left of the first, where rows begin where the source ends
            yield lower, upper, window.suffix, lower != window.begin
        if window.end > last or window.end == source.upper:
            break
        window = grid.after(window)
    if source.upper is None:
        yield window.end, None, f"from_{grid.after(window).suffix}", False


def plan_split(
    table: ManagedTable,
    source: Partition,
    facts: Splittable,
    ends: tuple[KeyValue | None, KeyValue | None],
    taken: Container[str] = (),
) -> Split:
    """Plan a split from the beginning.

    :raises SplitRefused: it would lose something, or has nothing to do.
    """
    refuse_split(source, facts, 0)
    names = Names(taken)
    staging, log, state = (names.new(table.name, end) for end in ("split", "split_log", "split_state"))
    groups = _pieces(table, source, *ends, names)
    refuse_split(source, facts, sum(len(group.pieces) for group in groups))
    kept = names.new(source.name, "before_split")
    return Split(table, source, kept, staging, log, state, groups, facts)


def names_of_split(split: Split) -> Sequence[str]:
    """Return the names that a split gives."""
    names = [split.staging, split.log, split.state, split.kept_as]
    return [*names, *(g.name for g in split.groups), *(p.name for p in split.pieces)]
