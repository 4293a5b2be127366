"""Partitions held against their parent: what differs, and what to do about it. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from alembic_partitions.naming import partition_name

from .values import PARTITION_MARK, Finding, Refusal

#: What REINDEX CONCURRENTLY leaves when it is interrupted.
_LEFT_BY_REINDEX = re.compile(r".*_cc(new|old)\d*")


class Mending(Enum):
    """What is done to a partition, in the order in which it is done."""

    OWNER = "owner"
    ROW_SECURITY = "row-level security"
    STATISTICS = "statistics target"
    DROP_INDEX = "left-over index dropped"
    REBUILD_INDEX = "invalid index rebuilt"
    BUILD_INDEX = "missing index built"
    ATTACH_INDEX = "index attached"
    REPLICA_IDENTITY = "replica identity"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an index stands behind."""

    name: str
    #: ``p`` PRIMARY KEY, ``u`` UNIQUE, ``x`` EXCLUDE
    kind: str
    deferrable: bool = False
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a parent or of a partition."""

    oid: int
    schema: str
    name: str
    #: From USING on, as PostgreSQL writes it; ``None`` where it could not be told.
    body: str | None
    unique: bool = False
    valid: bool = True
    #: The parent's index that it belongs to.
    attached_to: int | None = None
    constraint: Constraint | None = None
    #: ``None`` is the database's own.
    tablespace: str | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """A parent or a partition, as far as the two can differ."""

    oid: int
    schema: str
    name: str
    owner: str
    kind: str = "r"
    mark: str | None = None
    row_security: bool = False
    #: ``d``, ``f``, ``n`` or ``i``
    replica_identity: str = "d"
    #: The index behind ``i``.
    replica_index: int | None = None
    statistics: Mapping[str, int] = field(default_factory=dict)
    indexes: tuple[Index, ...] = ()
    #: Citus keeps its rows in shards, on workers.
    distributed: bool = False

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def is_ours(self) -> bool:
        """Whether its comment says that we made it."""
        return self.mark is not None and self.mark.startswith(PARTITION_MARK)


@dataclass(frozen=True, slots=True)
class Mend:
    """One thing to put right. What ``subject`` is goes by the kind: a role, a column, an index."""

    mending: Mending
    child: Relation
    subject: str = ""
    goal: int = -1
    #: The parent's index, for what is done to one of the child's.
    of: Index | None = None
    #: Whether the constraint of the parent's index has to be made on the child, too.
    constrain: bool = False
    #: An index of the same name that an interrupted run left behind.
    drop_first: bool = False

    def __str__(self) -> str:
        return f"{self.child.name}: {self.mending.value} {self.subject}".rstrip()


def differences(parent: Relation, children: Sequence[Relation]) -> tuple[list[Mend], list[Finding]]:
    """Hold each partition against its parent.

    :return: what to put right on partitions that carry our mark; and what only a person may.
    """
    mends, findings = list[Mend](), list[Finding]()
    for child in children:
        if child.kind == "f":  # a foreign table is somebody else's
            continue
        found: list[Mend | Finding] = [*_traits(parent, child), *_indexes(parent, child)]
        wrong = [item for item in found if isinstance(item, Mend)]
        if wrong and not child.is_ours:
            told = "; ".join(str(mend).removeprefix(f"{child.name}: ") for mend in wrong)
            findings.append(Finding(Refusal.FOREIGN_CHILD, f"{child} differs from its parent ({told})"))
        elif wrong and child.kind == "p":
            findings.append(Finding(Refusal.BY_HAND, f"{child} is partitioned itself and differs"))
        else:
            mends += wrong
        findings += [item for item in found if isinstance(item, Finding)]
    findings += _still_invalid(parent, children)
    order = list(Mending)
    return sorted(mends, key=lambda mend: order.index(mend.mending)), findings


def _still_invalid(parent: Relation, children: Sequence[Relation]) -> Iterator[Finding]:
    for index in parent.indexes:
        own = [i for child in children for i in child.indexes if i.attached_to == index.oid]
        if own and not index.valid and len(own) == len(children) and all(i.valid for i in own):
            told = (
                f"index {index.schema}.{index.name} is invalid though each partition has one; on a current"
                f" minor release, ALTER INDEX ... ATTACH PARTITION {own[0].name} once more makes it valid"
            )
            yield Finding(Refusal.BY_HAND, told)


def _traits(parent: Relation, child: Relation) -> Iterator[Mend | Finding]:
    if child.owner != parent.owner:
        yield Mend(Mending.OWNER, child, parent.owner)
    if parent.row_security and not child.row_security:
        yield Mend(Mending.ROW_SECURITY, child)
    elif child.row_security and not parent.row_security:
        # Access through the parent never asks the child, and somebody may have closed it on purpose.
        yield Finding(Refusal.BY_HAND, f"{child} has row-level security, its parent has not")
    for name in sorted({*parent.statistics, *child.statistics}):
        goal = parent.statistics.get(name, -1)
        if child.statistics.get(name, -1) != goal:
            yield Mend(Mending.STATISTICS, child, name, goal)
    yield from _replica_identity(parent, child)


def _replica_identity(parent: Relation, child: Relation) -> Iterator[Mend | Finding]:
    if parent.replica_identity != "i":
        if child.replica_identity != parent.replica_identity:
            words = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}
            yield Mend(Mending.REPLICA_IDENTITY, child, words[parent.replica_identity])
        return
    mine = next((i for i in child.indexes if i.attached_to == parent.replica_index and i.valid), None)
    if mine is None:
        return  # once its index is there, the next run sees to it
    if child.replica_identity != "i" or child.replica_index != mine.oid:
        of = next(index for index in parent.indexes if index.oid == parent.replica_index)
        yield Mend(Mending.REPLICA_IDENTITY, child, mine.name, of=of)


def _indexes(parent: Relation, child: Relation) -> Iterator[Mend | Finding]:
    free = [index for index in child.indexes if index.attached_to is None]
    own_names = {index_name(child, index) for index in parent.indexes}
    for index in free:
        if not index.valid and _LEFT_BY_REINDEX.fullmatch(index.name):
            yield Mend(Mending.DROP_INDEX, child, index.name)
        elif not index.valid and index.name not in own_names:
            told = f"index {index.schema}.{index.name} on {child} is invalid; REINDEX or DROP it"
            yield Finding(Refusal.BY_HAND, told)
    for wanted in parent.indexes:
        mine = next((index for index in child.indexes if index.attached_to == wanted.oid), None)
        if mine is None:
            yield _missing(child, wanted, free)
        elif not mine.valid and child.kind != "p":
            yield Mend(Mending.REBUILD_INDEX, child, mine.name, of=wanted)


def index_mends(wanted: Index, children: Sequence[Relation]) -> Iterator[Mend | Finding]:
    """Yield what it takes that each partition has its part of one index, whoever made the partition."""
    for child in children:
        mine = next((index for index in child.indexes if index.attached_to == wanted.oid), None)
        if child.kind != "f" and mine is None:
            yield _missing(child, wanted, [index for index in child.indexes if index.attached_to is None])
        elif mine is not None and not mine.valid and child.kind != "p":
            yield Mend(Mending.REBUILD_INDEX, child, mine.name, of=wanted)


def _missing(child: Relation, wanted: Index, free: list[Index]) -> Mend | Finding:
    if wanted.body is None or (wanted.constraint is not None and wanted.constraint.kind == "x"):
        told = f"{child} lacks the index of {wanted.name}, which cannot be built beside writers"
        return Finding(Refusal.BY_HAND, told)
    for index in free:
        # That of a partition which is partitioned itself becomes valid by and by.
        if (index.valid or child.kind == "p") and _equal(index, wanted):
            free.remove(index)
            constrain = wanted.constraint is not None and index.constraint is None
            return Mend(Mending.ATTACH_INDEX, child, index.name, of=wanted, constrain=constrain)
    name = index_name(child, wanted)
    left = any(index.name == name for index in free)
    return Mend(
        Mending.BUILD_INDEX,
        child,
        name,
        of=wanted,
        constrain=wanted.constraint is not None,
        drop_first=left,
    )


def _equal(index: Index, wanted: Index) -> bool:
    kind = wanted.constraint and wanted.constraint.kind
    own = index.constraint and index.constraint.kind
    return (index.body, index.unique) == (wanted.body, wanted.unique) and own in (None, kind)


def index_name(child: Relation, wanted: Index) -> str:
    """Return what we call a child's index: always the same, so that a later run knows it again."""
    digest = hashlib.blake2s(wanted.name.encode(), digest_size=4).hexdigest()
    return partition_name(child.name, f"idx_{digest}")
