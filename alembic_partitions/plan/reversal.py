"""A partitioned table whose rows are all in one partition -> how that takes its name, or why not. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alembic_partitions.errors import ConversionRefused
from alembic_partitions.naming import partition_name

from .belongings import Belongings, Name
from .conversion import CONVERTED_MARK
from .values import MARKS


@dataclass(frozen=True, slots=True)
class Part:
    """A partition, and whether it holds rows."""

    oid: int
    schema: str
    name: str
    kind: str
    mark: str | None
    #: Views that read it by its own name.
    readers: str | None
    has_rows: bool

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Reversal:
    """How a partitioned table becomes a plain one: ``heir`` keeps its rows and takes its name."""

    table: Belongings
    heir: Belongings
    #: The partitioned table's name from the swap to its end.
    aside: str
    #: The columns of the primary key to be; empty keeps the one that is there.
    primary_key: tuple[str, ...] = ()
    #: The unique index that is built for it.
    key_index: str | None = None
    has_index: bool = False
    index_is_broken: bool = False
    #: The columns that may be NULL again.
    nullable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def goal(self) -> Name:
        """The plain table that is to be."""
        return self.table.schema, self.table.name

    @property
    def origin(self) -> Name:
        """The partitioned table, under the name that it gets."""
        return self.table.schema, self.aside

    @property
    def partition(self) -> Name:
        """The partition that keeps the rows."""
        return self.heir.schema, self.heir.name


def told_of_conversion(mark: str | None) -> dict[str, list[str]]:
    """Return what a converted table's comment tells of how it was."""
    if mark is None or not mark.startswith(CONVERTED_MARK):
        return {}
    try:
        told = json.loads(mark.removeprefix(CONVERTED_MARK))
        return {name: [str(column) for column in told.get(name, ())] for name in ("primary_key", "nullable")}
    except (ValueError, AttributeError, TypeError):  # a comment that a person edited
        return {}


def refuse_reversal(
    table: Belongings, children: Sequence[Part], is_splitting: bool = False, is_draining: bool = False
) -> None:
    """Refuse to make a table plain that would lose something.

    :param is_splitting: one of its partitions is just being split.
    :param is_draining: rows of its DEFAULT partition are gathered beside it.
    :raises ConversionRefused: it would, or it is not partitioned.
    """
    problems = list(_problems(table, children))
    if table.is_distributed:
        problems.append("Citus has distributed it: undistribute_table() first, then distribute the plain one")
    if is_splitting:
        problems.append("a partition of it is being split: let that come to its end, or --abort it")
    if is_draining:
        problems.append("rows of its DEFAULT partition are gathered beside it: run repair first")
    if problems:
        raise ConversionRefused(table=str(table), problems="; ".join(problems))


def _problems(table: Belongings, children: Sequence[Part]) -> Iterator[str]:
    if table.kind != "p":
        yield "it is not partitioned: there is nothing to undo"
        return
    if table.is_partition:
        yield "it is a partition of another table: DETACH it first"
    if not children:
        yield "it has no partition: DROP it, and create a plain one"
    for child in children:
        if child.kind != "r":
            what = {"p": "partitioned itself", "f": "a foreign table"}.get(child.kind, "no plain table")
            yield f"partition {child} is {what}: DETACH it first"
        if child.readers:
            yield f"view {child.readers} reads partition {child}: drop it, or have it read {table}"
    for told in table.incoming:
        yield f"foreign key {told} refers to it: drop it, and add it again afterwards"
    for lacking in table.lacking:
        yield f"this role lacks {lacking}: grant it, or undo as another role"
    if table.is_subscribed:
        yield "a subscription writes to it, and would go on with what it was: drop that first"
    if table.has_rules:
        yield "it has rewrite rules, which would not follow: replace them by triggers"
    for told in table.bound:
        yield f"{told} depends on it and cannot follow: drop it, undo, and create it again"


def heir_of(children: Sequence[Part]) -> Part | None:
    """Return the partition that holds all the rows there are; ``None`` where there are several."""
    filled = [child for child in children if child.has_rows]
    if len(filled) > 1:
        return None
    converted = [c for c in children if c.mark is not None and c.mark.startswith(CONVERTED_MARK)]
    return (filled or converted or list(children))[0]


def plan_reversal(
    table: Belongings,
    heir: Belongings,
    primary_key: Sequence[str] | None,
    aside: str,
    converted: str | None,
) -> Reversal:
    """Plan the way back for a table that has passed the checks.

    :param primary_key: the columns asked for; ``None`` takes those that the conversion has noted down.
    :param aside: a free name.
    :param converted: where the conversion has noted down how the table was: a partition's comment.
    """
    told = told_of_conversion(converted)
    columns = tuple(told.get("primary_key", ()) if primary_key is None else primary_key)
    before = table.primary_key
    same = before is None or not columns or columns == before.columns
    name = None if same or before is None else partition_name(before.name, "without_key")
    built = heir.index(name) if name else None
    kept = () if before is None else before.columns if same else columns
    notes = []
    if heir.comment is not None and not heir.comment.startswith(MARKS):
        notes.append(f"the comment of {heir} gives way to that of {table}")
    return Reversal(
        table,
        heir,
        aside,
        primary_key=() if same else columns,
        key_index=name,
        has_index=built is not None and built.valid,
        index_is_broken=built is not None and not built.valid,
        nullable=tuple(column for column in told.get("nullable", ()) if column not in kept),
        notes=tuple(notes),
    )
