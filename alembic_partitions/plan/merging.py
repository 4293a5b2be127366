"""A partitioned table with rows in several partitions -> the plain one that they are copied into. Pure."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alembic_partitions.errors import ConversionRefused
from alembic_partitions.naming import Names

from .belongings import Belongings, Name, OwnIndex
from .splitting import Identified
from .values import MARKS

#: Begins the comment of the table that partitions are merged into; what it is for follows, as JSON.
MERGING_MARK = f"{MARKS}merging "
#: Begins the comment of a partitioned table that was made plain; what took its place follows, as JSON.
UNPARTITIONED_MARK = f"{MARKS}unpartitioned "

# Locks that this may take of those that all transactions together can hold.
_SHARE_OF_LOCKS = 0.7


@dataclass(frozen=True, slots=True)
class Leaf:
    """A partition whose rows are copied, and how far that has come."""

    oid: int
    schema: str
    name: str
    kind: str = "r"
    persistence: str = "p"
    access_method: str | None = "heap"
    has_rules: bool = False
    hides_rows: bool = False
    detach_pending: bool = False
    options: tuple[str, ...] = ()
    mark: str | None = None
    #: What hangs on it alone, in words.
    alone: tuple[str, ...] = ()
    #: Estimates.
    rows: int = 0
    blocks: int = 0
    bytes: int = 0
    #: Changes of it are written down.
    is_known: bool = False
    is_copied: bool = False
    is_verified: bool = False
    copied: int = 0
    next_block: int = 0
    end_block: int = 0

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Mergeable:
    """What the catalog says of the rows of a table that is to be made plain."""

    columns: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    identity: tuple[Identified, ...] = ()
    hides_rows: bool = False
    #: Changes are sent to subscribers.
    is_logical: bool = False
    #: Locks that all transactions together can hold.
    lock_table: int = 0


@dataclass(frozen=True, slots=True)
class Merge:
    """One table on its way: all names, whether or not they exist yet."""

    table: Belongings
    facts: Mergeable
    leaves: tuple[Leaf, ...]
    #: The plain table until the swap, and as it is if it is there.
    name: str
    log: str
    state: str
    #: What the indexes of the table are called on the plain one until the swap.
    built: tuple[tuple[str, str], ...]
    #: What the table is called from the swap on, and its indexes and statistics.
    aside: str
    renamed: tuple[tuple[str, str], ...]
    target: Belongings | None = None
    #: Storage parameters of the plain table.
    options: tuple[str, ...] = ()
    #: Longest wait for a lock that others queue behind.
    wait_ms: int = 40

    @property
    def schema(self) -> str:
        return self.table.schema

    @property
    def goal(self) -> Name:
        """The partitioned table; from the swap on, the plain one."""
        return self.table.schema, self.table.name

    @property
    def origin(self) -> Name:
        """The partitioned table from the swap on."""
        return self.table.schema, self.aside

    @property
    def plain(self) -> Name:
        """The plain table until the swap."""
        return self.table.schema, self.name

    @property
    def blocks(self) -> int:
        return sum(leaf.blocks for leaf in self.leaves)

    @property
    def heir(self) -> Belongings:
        """The plain table, or what stands for it until it is there."""
        return self.target or Belongings(0, self.schema, self.name, self.table.owner)

    def with_leaves(self, leaves: Sequence[Leaf]) -> Merge:
        """Return it with what is known of its partitions."""
        return replace(self, leaves=tuple(leaves))

    @property
    def is_verified(self) -> bool:
        """Whether each copy was compared; what was empty when it was begun is in the log alone."""
        return all(leaf.is_known and (leaf.is_verified or not leaf.end_block) for leaf in self.leaves)


def constrained_by_index(index: OwnIndex) -> bool:
    """Tell whether a constraint is made of its index in the swap: so it is never deferred before, which no
    row could be copied beside."""
    return index.kind in ("p", "u") and index.body.startswith("USING btree")


def refuse_merge(table: Belongings, facts: Mergeable, leaves: Sequence[Leaf]) -> None:
    """Refuse to copy what would lose something.

    :raises ConversionRefused: it would.
    """
    problems = [*_problems(table, facts, leaves), *(told for leaf in leaves for told in _of_leaf(leaf))]
    if problems:
        filled = "several partitions hold rows, which have to be copied"
        raise ConversionRefused(table=str(table), problems=f"{filled}: {'; '.join(problems)}")


def _problems(table: Belongings, facts: Mergeable, leaves: Sequence[Leaf]) -> Iterator[str]:
    if not facts.identity:
        yield (
            "it has no primary key, nor a unique index over columns that are NOT NULL, to tell rows by: add"
            " one"
        )
    if facts.hides_rows:
        yield (
            "row-level security may hide rows from this role: do it as one with BYPASSRLS, or ALTER TABLE ..."
            " NO FORCE ROW LEVEL SECURITY meanwhile"
        )
    unproven = [check.name for check in table.checks if not check.validated]
    unproven += [key.name for key in table.foreign_keys if not key.validated]
    for name in unproven:
        yield f"constraint {name} is NOT VALID: VALIDATE CONSTRAINT, or drop it"
    for index in table.indexes:
        if index.deferrable and not constrained_by_index(index):
            yield f"constraint {index.name} is DEFERRABLE: add it again NOT DEFERRABLE"
    for publication in table.publications:
        if facts.is_logical and not publication.explicit:
            yield (
                f"publication {publication.name} would send the tables that this needs: name tables in it"
                " one by one"
            )
    needed = len(leaves) * (2 + len(table.indexes))
    if facts.lock_table and needed > facts.lock_table * _SHARE_OF_LOCKS:
        yield (
            f"{len(leaves)} partitions need {needed} locks at once, and this server has {facts.lock_table}:"
            " raise max_locks_per_transaction"
        )


def _of_leaf(leaf: Leaf) -> Iterator[str]:
    if leaf.kind == "r" and leaf.access_method != "heap":
        yield f"partition {leaf} is stored by {leaf.access_method}: SET ACCESS METHOD heap"
    if leaf.persistence != "p":
        yield f"partition {leaf} is UNLOGGED: ALTER TABLE ... SET LOGGED"
    if leaf.has_rules:
        yield f"partition {leaf} has rewrite rules, which would not follow: drop them"
    if leaf.hides_rows:
        yield f"row-level security may hide rows of partition {leaf} from this role: NO FORCE it meanwhile"
    if leaf.detach_pending:
        yield f"partition {leaf} is half-way through DETACH CONCURRENTLY: DETACH PARTITION ... FINALIZE"
    for told in leaf.alone:
        yield f"{told} has to do with partition {leaf} alone, and would not follow: drop it"


def plan_merge(
    table: Belongings,
    facts: Mergeable,
    leaves: Sequence[Leaf],
    options: tuple[str, ...],
    wait_ms: int,
    taken: Container[str] = (),
    begun: Belongings | None = None,
) -> Merge:
    """Plan a merge that has passed the checks.

    :param options: storage parameters of the plain table.
    :param wait_ms: longest wait for a lock that others queue behind.
    :param taken: names in the table's schema that must not be used.
    :param begun: the plain table of a run that was cut off.
    """
    names = Names(taken)
    told = told_of_merge(begun.comment) if begun is not None else None
    if begun is not None and told is not None:
        name, log, state = begun.name, str(told["log"]), str(told["state"])
        built = tuple((str(index), str(own)) for index, own in told["indexes"].items())
    else:
        name, log, state = (names.new(table.name, end) for end in ("plain", "plain_log", "plain_state"))
        built = tuple((index.name, names.new(index.name, "plain")) for index in table.indexes)
    given = [index.name for index in table.indexes] + [s.name for s in table.statistics]
    aside = names.new(table.name, "partitioned")
    renamed = tuple((one, names.new(one, "partitioned")) for one in given)
    return Merge(
        table,
        facts,
        tuple(leaves),
        name,
        log,
        state,
        built,
        aside,
        renamed,
        begun if told else None,
        options,
        wait_ms,
    )


def names_of_merge(merge: Merge) -> Sequence[str]:
    """Return the names that a merge gives from here on."""
    to_be = [merge.aside, *(new for _, new in merge.renamed)]
    if merge.target is not None:
        return to_be
    return [merge.name, merge.log, merge.state, *to_be, *(new for _, new in merge.built)]


def mark_of_merge(merge: Merge) -> dict[str, object]:
    """Return what the comment of the plain table tells until the swap."""
    return {
        "of": merge.table.oid,
        "table": [merge.schema, merge.table.name],
        "log": merge.log,
        "state": merge.state,
        "indexes": dict(merge.built),
    }


def told_of_merge(mark: str | None) -> dict[str, Any] | None:
    """Read that comment; ``None`` where a person has edited it."""
    if mark is None or not mark.startswith(MERGING_MARK):
        return None
    try:
        told: Any = json.loads(mark.removeprefix(MERGING_MARK))
    except ValueError:
        return None
    names = ("of", "table", "log", "state", "indexes")
    return told if isinstance(told, dict) and all(name in told for name in names) else None
