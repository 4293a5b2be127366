"""The values of a partition's way out, and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeAlias

from alembic_partitions.periods import KeyValue

from .values import Finding, ManagedTable, Partition, Reason


class How(Enum):
    """How a partition is detached."""

    #: Neither readers nor writers wait for it.
    CONCURRENTLY = " CONCURRENTLY"
    #: ACCESS EXCLUSIVE on the parent and on its DEFAULT partition, with which PostgreSQL has no other way.
    PLAIN = ""
    #: What is left of a DETACH CONCURRENTLY that was interrupted.
    FINALIZE = " FINALIZE"
    #: It is detached already; a run that was cut off did not come to rename it.
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Export:
    """A file that holds a detached partition's rows, as its mark tells."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Detached:
    """A table that was our partition, as its mark tells; ``at`` is ``None`` while it is not put away yet."""

    oid: int
    schema: str
    name: str
    #: What it was called as a partition, in which schema, and its bounds as PostgreSQL prints them.
    partition: str
    home: str
    bound: str
    lower: KeyValue | None
    upper: KeyValue | None
    at: datetime | None = None
    #: The ``on_expiry`` that it was detached by.
    fate: str = "detach"
    export: Export | None = None
    #: Somebody has given it another name or schema since: it is theirs to drop.
    renamed: bool = False
    #: Its own foreign keys, each with the table that it refers to, by name and OID.
    keys: tuple[tuple[str, str, int], ...] = ()
    #: Its columns but for generated ones.
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DetachPartition:
    """Detach a partition, then rename it or move it to the archive."""

    table: ManagedTable
    partition: Partition
    how: How
    reason: Reason
    #: Its name afterwards, and its schema where that is another.
    name: str
    archive_schema: str | None = None
    #: Expired no longer: what PostgreSQL cannot undo half-way is finished, and undone.
    reattach: bool = False


@dataclass(frozen=True, slots=True)
class MoveDetached:
    """Move a detached partition to the archive schema."""

    table: ManagedTable
    detached: Detached
    name: str
    archive_schema: str
    reason: Reason = Reason.ARCHIVE


@dataclass(frozen=True, slots=True)
class ExportDetached:
    """Write a detached partition's rows to a file, and verify it."""

    table: ManagedTable
    detached: Detached
    reason: Reason = Reason.ARCHIVE


@dataclass(frozen=True, slots=True)
class DropDetached:
    """Drop a detached partition, its foreign keys first."""

    table: ManagedTable
    detached: Detached
    reason: Reason = Reason.GRACE_OVER


@dataclass(frozen=True, slots=True)
class ChangeFate:
    """Note another ``on_expiry`` in the mark of a detached partition: its grace begins anew."""

    table: ManagedTable
    detached: Detached
    reason: Reason = Reason.FATE


@dataclass(frozen=True, slots=True)
class KeepPartition:
    """Give a partition back the comment that it had before a run, since cut off, was about to detach it."""

    table: ManagedTable
    partition: Partition
    reason: Reason = Reason.CUT_OFF


@dataclass(frozen=True, slots=True)
class RestoreDetached:
    """Attach a detached partition again, under ``name``."""

    table: ManagedTable
    detached: Detached
    name: str


Removal: TypeAlias = (
    "DetachPartition | KeepPartition | MoveDetached | ExportDetached | ChangeFate | DropDetached"
    " | RestoreDetached"
)


@dataclass(frozen=True, slots=True)
class Retention:
    """What retention does to one table now."""

    table: ManagedTable
    steps: tuple[Removal, ...] = ()
    findings: tuple[Finding, ...] = ()


def told_of(
    table: ManagedTable,
    partition: Partition,
    name: tuple[str, str],
    export: Export | None = None,
) -> dict[str, object]:
    """Return what the mark of a detached partition keeps of it, as JSON values.

    :param name: the schema and name that it gets.
    """
    assert table.policy is not None
    told: dict[str, object] = {
        # Names may be another table's by then; after a dump it is the OIDs that are others.
        "oid": partition.oid,
        "of": table.oid,
        "table": [table.schema, table.name],
        "key": table.key_type,
        "partition": partition.name,
        "schema": partition.schema,
        "bound": partition.bound,
        "fate": table.policy.on_expiry,
        "as": list(name),
    }
    return {**told, **({"export": dataclasses.asdict(export)} if export else {})}


def told_again(table: ManagedTable, old: Detached, export: Export | None = None) -> dict[str, object]:
    """Return what the mark of a detached partition keeps of it, with another fate or export."""
    return told_of(table, as_partition(old), (old.schema, old.name), export or old.export)


def as_partition(old: Detached) -> Partition:
    """Return what a detached partition was."""
    return Partition(old.oid, old.home, old.partition, old.lower, old.upper, bound=old.bound)
