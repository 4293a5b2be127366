"""Retention, read and planned: what goes now, and whether this is a moment to remove anything."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

from sqlalchemy import Connection

from alembic_partitions import catalog, executor
from alembic_partitions.errors import PolicyError
from alembic_partitions.plan import (
    DetachPartition,
    Finding,
    ManagedTable,
    MoveDetached,
    Refusal,
    RestoreDetached,
    Retention,
    plan_retention,
)
from alembic_partitions.policy import PartitionPolicy

from .settings import NOW_VARIABLE

#: The folder that partitions are exported to where their policy names no archive_schema.
ARCHIVE_VARIABLE = "ALEMBIC_PARTITIONS_ARCHIVE"

# Further apart, one of the two clocks is wrong.
_CLOCKS_AGREE = timedelta(hours=1)
# Where nothing has been kept for longer than that, the clock may have jumped. The next run tells.
_LONG_OUT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Moment:
    """When a run happens: the instant that it works at, the host's, and whether it only looks."""

    now: datetime
    database_now: datetime
    dry_run: bool = False

    def doubt(self, table: ManagedTable, made_now: Collection[str] = ()) -> Finding | None:
        """Tell why nothing of a table must be removed now.

        :param made_now: the partitions that this very run has made.
        """
        if self.dry_run:
            return None
        if os.environ.get(NOW_VARIABLE):
            return Finding(Refusal.REHEARSED, str(table))
        apart = abs(datetime.now(timezone.utc) - self.database_now)
        if apart > _CLOCKS_AGREE:
            return Finding(Refusal.CLOCK, f"{table}: the server's clock and this host's are {apart} apart")
        ends = [p.upper for p in table.partitions if p.upper is not None and p.name not in made_now]
        if ends and max(ends) < table.grid.key_at(self.now - _LONG_OUT):
            told = f"{table}: before this run the last partition ended at {max(ends)}"
            return Finding(Refusal.CLOCK, told)
        return None


@dataclass(frozen=True, slots=True)
class Planned:
    """What goes of one table now; ``problem`` tells why none of it can."""

    retention: Retention
    problem: str | None = None


def with_retention(tables: Sequence[ManagedTable], retention: str | None) -> list[ManagedTable]:
    """Return tables with another retention than their policies'.

    :raises PolicyError: it is no period, or shorter than a window of one of them.
    """
    if retention is None:
        return list(tables)
    return [
        dataclasses.replace(t, policy=t.policy.changed(retention=retention)) if t.policy is not None else t
        for t in tables
    ]


def plan_tables(
    connection: Connection,
    tables: Sequence[ManagedTable],
    moment: Moment,
    archive_to: str | None = None,
    made_now: Collection[str] = (),
) -> list[Planned]:
    """Plan what goes of each table; in a transaction."""
    return [
        _planned(connection, found, moment, archive_to, made_now)
        for found in catalog.read_removable(connection, tables)
    ]


def _planned(
    connection: Connection,
    found: catalog.Removable,
    moment: Moment,
    archive_to: str | None,
    made_now: Collection[str],
) -> Planned:
    table = found.table
    if table.problem is not None or table.policy is None:
        return Planned(Retention(table))
    doubt = moment.doubt(table, made_now)
    taken: set[tuple[str, str]] = set()
    while True:
        planned = plan_retention(
            table, found.detached, moment.now, taken=taken, referring=found.referring, doubt=doubt
        )
        more = names_taken(connection, planned) - taken
        if not more:
            break
        taken |= more
    if planned.findings and planned.findings[0] is doubt:
        return Planned(planned, str(doubt))
    problem = _nowhere_to_go(connection, table.policy, archive_to) if planned.steps else None
    if problem is not None:
        finding = Finding(Refusal.NO_ARCHIVE, f"{table}: {problem}")
        return Planned(Retention(table, findings=(finding, *planned.findings)), str(finding))
    return Planned(planned)


def names_taken(connection: Connection, planned: Retention) -> set[tuple[str, str]]:
    """Return which names that a plan gives are in use, each with its schema."""
    wanted = set()
    for step in planned.steps:
        if isinstance(step, DetachPartition):
            if not step.reattach:
                wanted.add((step.archive_schema or step.partition.schema, step.name))
        elif isinstance(step, MoveDetached):
            wanted.add((step.archive_schema, step.name))
        elif isinstance(step, RestoreDetached) and step.detached.name != step.name:
            wanted.add((step.table.schema, step.name))
    if not wanted:
        return set()
    schemas, names = {schema for schema, _ in wanted}, {name for _, name in wanted}
    return catalog.qualified_names_in_use(connection, schemas, names) & wanted


def _nowhere_to_go(connection: Connection, policy: PartitionPolicy, archive_to: str | None) -> str | None:
    if policy.on_expiry != "archive":
        return None
    if policy.archive_schema is None:
        return executor.check_folder(archive_to or os.environ.get(ARCHIVE_VARIABLE))
    if catalog.schema_exists(connection, policy.archive_schema):
        return None
    return f"there is no schema {policy.archive_schema!r}: create it, or correct archive_schema"


def archive_folder(archive_to: str | None) -> str:
    """Return the folder that :func:`plan_tables` has checked."""
    folder = archive_to or os.environ.get(ARCHIVE_VARIABLE)
    if folder is None:
        raise PolicyError(field="archive_schema", problem="there is none", remedy="Name a folder.")
    return folder
