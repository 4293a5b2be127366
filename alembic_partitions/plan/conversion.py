"""A plain table + the policy it is to have -> how it becomes its own first partition, or why it cannot. Pure.

The old table keeps its rows where they are: under another name it is attached for everything before
``until``, and windows stand from there on.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from alembic_partitions.errors import ConversionRefused, WindowRangeError
from alembic_partitions.naming import Names, partition_name
from alembic_partitions.periods import Grid, KeyType, KeyValue, Window, iso_time
from alembic_partitions.policy import PartitionPolicy

from .belongings import Belongings, Name, OwnIndex
from .values import MARKS, PARTITION_MARK

#: The CHECK that keeps rows of new windows out of the old table until it is a partition.
UNTIL_CHECK = "alembic_partitions_until"
#: Begins the comment of that CHECK; how far the conversion has been planned follows, as JSON.
CONVERTING_MARK = f"{MARKS}converting "
#: What the comment of the old table says once it is the first partition; the key it had follows, as JSON.
CONVERTED_MARK = f"{PARTITION_MARK}convert "
#: How far beyond now, and beyond the newest row, the old table goes on: time to come back to a conversion
#: that was cut off, before its CHECK would refuse rows.
MARGIN = timedelta(days=7)
# Less than this before its end, a conversion that was cut off begins anew.
_LITTLE_TIME = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ends:
    """The oldest and the newest key of a table; ``None`` where it is empty."""

    oldest: KeyValue | None = None
    newest: KeyValue | None = None
    #: The same as PostgreSQL prints them.
    printed: tuple[str | None, str | None] = (None, None)
    has_null: bool = False
    #: A key lies where no calendar of ours reaches.
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Conversion:
    """How one table is converted, and how much of it is done already."""

    table: Belongings
    policy: PartitionPolicy
    key_type: KeyType
    #: The key value that the first of the new windows begins at.
    until: KeyValue
    #: The old table's name as a partition.
    first: str
    #: New names of its indexes and statistics, by old name.
    renamed: tuple[tuple[str, str], ...] = ()
    #: The columns of the primary key to be, where the one that is there lacks the partition key.
    primary_key: tuple[str, ...] = ()
    #: The unique index that is built for it.
    key_index: str | None = None
    has_index: bool = False
    #: It was cut off while it was built.
    index_is_broken: bool = False
    #: An earlier run has planned otherwise, or its time is over.
    is_stale: bool = False
    is_checked: bool = False
    is_proven: bool = False
    notes: tuple[str, ...] = ()

    @property
    def goal(self) -> Name:
        """The table that is to be, under the old one's name."""
        return self.table.schema, self.table.name

    @property
    def origin(self) -> Name:
        """The old table, under the name that it gets."""
        return self.table.schema, self.first

    def name_of(self, name: str) -> str:
        """Return the new name of an index, or of statistics."""
        return dict(self.renamed)[name]

    @property
    def mark(self) -> str:
        """What the comment of the old table says afterwards, so that there is a way back."""
        before = self.table.primary_key
        key = self.table.column(self.policy.key)
        told = {
            "primary_key": [name for name in before.columns if name] if before else [],
            "nullable": [self.policy.key] if key is not None and not key.not_null else [],
        }
        return CONVERTED_MARK + json.dumps(told, ensure_ascii=False)

    @property
    def told(self) -> str:
        """What the comment of its CHECK says, so that the next run goes on with the same."""
        told = {"until": self.until.isoformat(), "key": self.policy.key}
        return CONVERTING_MARK + json.dumps(told, ensure_ascii=False)


def begun(table: Belongings) -> tuple[str, str] | None:
    """Return what an earlier run has begun: ``until`` as text, and the key."""
    check = table.check(UNTIL_CHECK)
    if check is None or check.comment is None or not check.comment.startswith(CONVERTING_MARK):
        return None
    try:
        told = json.loads(check.comment.removeprefix(CONVERTING_MARK))
        return str(told["until"]), str(told["key"])
    except (ValueError, KeyError, TypeError):  # a comment that a person edited
        return None


def key_index_of(table: Belongings, policy: PartitionPolicy) -> tuple[str, tuple[str, ...]] | None:
    """Return the unique index that the primary key will need: its name and columns; ``None`` where it has the
    partition key already, or there is no primary key."""
    before = table.primary_key
    if before is None or policy.key in before.columns:
        return None
    return _extended(before, policy.key)


def left_index(table: Belongings) -> str | None:
    """Return the unique index that a conversion which was cut off has left, whatever its key."""
    before = table.primary_key
    wanted = [_extended(before, column.name) for column in table.columns] if before is not None else []
    found = (i.name for i in table.indexes if i.unique and i.kind is None and (i.name, i.columns) in wanted)
    return next(found, None)


def _extended(primary_key: OwnIndex, key: str) -> tuple[str, tuple[str, ...]]:
    columns = (*(name for name in primary_key.columns if name is not None), key)
    return partition_name(primary_key.name, f"with_{key}"), columns


def first_window(
    table: Belongings,
    policy: PartitionPolicy,
    grid: Grid,
    ends: Ends,
    now: datetime,
    asked: KeyValue | str | None = None,
) -> Window:
    """Return the first of the new windows; the old table takes what comes before it.

    :param asked: where somebody wants it to begin, moved to the begin of its window.
    :raises ConversionRefused: it would begin before rows that exist, or before now.
    """
    latest = grid.key_at(now)
    if ends.newest is not None:
        latest = max(latest, ends.newest)
    try:
        if asked is None:
            begun_with = _begun_with(table, policy, grid)
            if begun_with is not None and begun_with.begin > latest + _LITTLE_TIME:
                return begun_with
            return grid.after(grid.at(latest + MARGIN))
        window = grid.at(grid.key_of(asked))
    except WindowRangeError as error:
        raise ConversionRefused(table=str(table), problems=str(error)) from error
    except (ValueError, TypeError) as error:
        told = f"until {asked!r} is no moment: give a date, a time, or either as ISO 8601 text"
        raise ConversionRefused(table=str(table), problems=told) from error
    if window.begin <= latest:
        what = "its newest row" if ends.newest == latest else "now"
        raise ConversionRefused(
            table=str(table),
            problems=f"the first window would begin at {window.begin}, before {what} ({latest}): begin later",
        )
    return window


def _begun_with(table: Belongings, policy: PartitionPolicy, grid: Grid) -> Window | None:
    """Return the window that an earlier run has begun with, if it is one of the policy's."""
    told = begun(table)
    if told is None or told[1] != policy.key:
        return None
    with suppress(ValueError):  # edited, or of a key of another type
        begin = date.fromisoformat(told[0]) if grid.key_type == "date" else iso_time(told[0])
        with suppress(TypeError, WindowRangeError):
            window = grid.at(begin)
            return window if window.begin == begin else None
    return None


def plan_conversion(
    table: Belongings,
    policy: PartitionPolicy,
    key_type: KeyType,
    window: Window,
    taken: Container[str] = (),
) -> Conversion:
    """Plan a conversion whose table and rows have passed all the checks.

    :param window: the first of the new ones.
    :param taken: names in the table's schema that must not be used.
    """
    wanted = key_index_of(table, policy)
    suffix = f"until_{window.suffix}"
    used = Names(taken)
    first = used.new(table.name, suffix)
    names = [index.name for index in table.indexes if wanted is None or index.name != wanted[0]]
    names += [statistics.name for statistics in table.statistics]
    renamed = tuple((name, used.new(name, suffix)) for name in names)
    check = table.check(UNTIL_CHECK)
    is_checked = check is not None and begun(table) == (window.begin.isoformat(), policy.key)
    built = table.index(wanted[0]) if wanted else None
    return Conversion(
        table,
        policy,
        key_type,
        window.begin,
        first,
        renamed,
        primary_key=wanted[1] if wanted else (),
        key_index=wanted[0] if wanted else None,
        has_index=built is not None and built.valid,
        index_is_broken=built is not None and not built.valid,
        is_stale=check is not None and not is_checked,
        is_checked=is_checked,
        is_proven=is_checked and check is not None and check.validated,
        notes=tuple(_notes(table, policy)),
    )


def _notes(table: Belongings, policy: PartitionPolicy) -> Iterator[str]:
    before = table.primary_key
    if before is not None and policy.key not in before.columns:
        columns = ", ".join(name for name in before.columns if name)
        yield (
            f"the primary key ({columns}) becomes ({columns}, {policy.key}): PostgreSQL no longer keeps"
            f" ({columns}) unique over all partitions"
        )
    own = [option for option in table.options if option.partition("=")[0] not in policy.storage_parameters]
    if own:
        yield (
            f"{', '.join(own)} stays with the rows that are there; new partitions get what the policy's"
            " storage_parameters say"
        )
    for trigger in table.triggers:
        if trigger.for_each_row and trigger.before:
            yield (
                f"trigger {trigger.name} must not move a row to another window by changing {policy.key}:"
                " PostgreSQL refuses that"
            )
    for index in table.indexes:
        if index.tablespace is not None:
            yield (
                f"index {index.name} stays in tablespace {index.tablespace}; new partitions' go to the usual"
                " one"
            )


def names_of_conversion(conversion: Conversion) -> Sequence[str]:
    """Return the names that a conversion gives."""
    return [conversion.first, *(new for _, new in conversion.renamed)]
