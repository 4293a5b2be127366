"""Retention, read and planned: what goes now, and whether this is a moment to remove anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    is_healing,
    plan_retention,
)
from alembic_partitions.policy import PartitionPolicy

from .history import last_run
from .settings import NOW_VARIABLE

#: The folder that partitions are exported to where their policy names no archive_schema.
ARCHIVE_VARIABLE = "ALEMBIC_PARTITIONS_ARCHIVE"

# Further apart, one of the two clocks is wrong.
_CLOCKS_AGREE = timedelta(hours=1)
# If the last run was longer ago than that, the clock may have jumped. Runs of the last hours are no evidence
# that it has not: they may have been made by that very clock.
_LONG_OUT, _FRESH = timedelta(days=45), timedelta(hours=12)


# Up to these releases a statement that plans the table in the moment of a DETACH CONCURRENTLY may fail with
# "missing relpartbound".
_SAFE_RELEASES = {15: (15, 9), 16: (16, 5)}


def detaches_safely(version: tuple[int | str, ...] | None) -> bool:
    """Tell whether DETACH CONCURRENTLY does others no harm on a server of that version."""
    numbers = tuple(int(part) for part in version or ())
    return numbers >= _SAFE_RELEASES.get(numbers[0] if numbers else 0, (17,))


@dataclass(frozen=True, slots=True)
class Moment:
    """When a run happens, and why its clock may be wrong: ``doubt``."""

    now: datetime
    doubt: tuple[Refusal, str] | None = None

    def doubt_of(self, table: ManagedTable) -> Finding | None:
        """Tell why nothing of a table must be removed now."""
        if self.doubt is None:
            return None
        refusal, why = self.doubt
        return Finding(refusal, f"{table}: {why}" if why else str(table))


def moment(connection: Connection, snapshot: catalog.Snapshot, now: datetime, trust_clock: bool) -> Moment:
    """Return when a run happens, its clock held against this host's and against earlier runs.

    :param connection: not in a transaction.
    :param trust_clock: whether somebody has looked at it.
    """
    if os.environ.get(NOW_VARIABLE):
        return Moment(now, (Refusal.REHEARSED, ""))
    if trust_clock:
        return Moment(now)
    apart = abs(datetime.now(timezone.utc) - snapshot.now)
    if apart > _CLOCKS_AGREE:
        return Moment(now, (Refusal.CLOCK, f"the server's clock and this host's are {apart} apart"))
    before = last_run(connection, snapshot, now - _FRESH)
    if before is not None and now - before > _LONG_OUT:
        return Moment(now, (Refusal.CLOCK, f"the last run was on {before.astimezone(timezone.utc):%Y-%m-%d}"))
    return Moment(now)


@dataclass(frozen=True, slots=True)
class Planned:
    """What goes of one table now; ``problem`` tells why none of it can."""

    retention: Retention
    problem: str | None = None


def plan_tables(
    connection: Connection,
    tables: Sequence[ManagedTable],
    moment: Moment,
    archive_to: str | None = None,
) -> list[Planned]:
    """Plan what goes of each table; in a transaction."""
    return [
        _planned(connection, found, moment, archive_to)
        for found in catalog.read_removable(connection, tables)
    ]


def _planned(
    connection: Connection,
    found: catalog.Removable,
    moment: Moment,
    archive_to: str | None,
) -> Planned:
    table = found.table
    if table.problem is not None or table.policy is None:
        return Planned(Retention(table))
    doubt = moment.doubt_of(table)
    taken: set[tuple[str, str]] = set()
    while True:
        planned = plan_retention(
            table,
            found.detached,
            moment.now,
            taken=taken,
            referring=found.referring,
            doubt=doubt,
            in_progress=found.in_progress,
            concurrently=detaches_safely(connection.dialect.server_version_info),
        )
        more = names_taken(connection, planned) - taken
        if not more:
            break
        taken |= more
    first = planned.findings[0] if planned.findings else None
    if first is not None and (first is doubt or first.refusal is Refusal.TOO_SHORT):
        return Planned(planned, str(first))
    problem = _nowhere_to_go(connection, table, table.policy, archive_to) if planned.steps else None
    if problem is not None:
        finding = Finding(Refusal.NO_ARCHIVE, f"{table}: {problem}")
        # What is half-way and not expired is put back all the same.
        healing = [step for step in planned.steps if is_healing(step)]
        return Planned(Retention(table, tuple(healing), (finding, *planned.findings)), str(finding))
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
        elif isinstance(step, RestoreDetached):
            old = step.detached
            if (old.schema, old.name) != (old.home, step.name):
                wanted.add((old.home, step.name))
    return {
        (schema, name)
        for schema in {schema for schema, _ in wanted}
        for name in catalog.names_in_use(connection, schema, [n for where, n in wanted if where == schema])
    }


def _nowhere_to_go(
    connection: Connection, table: ManagedTable, policy: PartitionPolicy, archive_to: str | None
) -> str | None:
    if policy.on_expiry != "archive":
        return None
    if policy.archive_schema is None and table.traits.distributed:
        return (
            "rows of a distributed table come in no order of their own, so that a file could not be compared"
            " with them; set archive_schema"
        )
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
