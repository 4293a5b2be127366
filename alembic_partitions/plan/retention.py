"""What is there + policy + now -> what goes. Pure.

Nothing goes that does not carry our mark, or that is not wholly past by the policy's own zone and calendar;
nor a DEFAULT partition, nor the last one; and at most ``max_drops`` in a run. A partition is detached first.
It is dropped later, if at all, once ``grace`` has passed since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from alembic_partitions.errors import WindowRangeError
from alembic_partitions.naming import partition_name
from alembic_partitions.periods import Grid, KeyValue, Period, iso_time
from alembic_partitions.policy import PartitionPolicy

from .horizon import cutoff, refused
from .removals import (
    ChangeFate,
    Detached,
    DetachPartition,
    DropDetached,
    ExportDetached,
    How,
    KeepPartition,
    MoveDetached,
    Removal,
    RestoreDetached,
    Retention,
)
from .values import RESTORED_MARK, Finding, ManagedTable, Partition, Reason, Refusal, in_order

# A partition off the policy's grid was made by another zone or interval. Whichever it was: past by then.
_MARGIN = timedelta(days=2)


def plan_retention(
    table: ManagedTable,
    detached: Sequence[Detached],
    now: datetime,
    *,
    taken: Collection[tuple[str, str]] = (),
    referring: Sequence[str] = (),
    doubt: Finding | None = None,
    in_progress: bool = False,
    concurrently: bool = True,
) -> Retention:
    """Plan what goes.

    :param detached: the table's detached partitions.
    :param now: the instant, aware.
    :param taken: names that a detached partition must not get, each with its schema.
    :param referring: foreign keys that refer to the table.
    :param doubt: why nothing must be removed now; what is half-way and not expired is put back all the same.
    :param concurrently: whether the server detaches concurrently without harm to others.
    :param in_progress: somebody is just detaching a partition concurrently.
    """
    if refused(table) is not None or table.policy is None or table.key_type is None:
        return Retention(table)
    policy = table.policy
    if is_too_short(policy):
        return Retention(table, findings=(Finding(Refusal.TOO_SHORT, f"{table}: {policy.retention}"),))
    line = _Line(table.grid, cutoff(policy, table.grid, now))
    halves = list(_halves(table, detached, line, taken, in_progress))
    healing = [step for step in halves if is_healing(step)]
    aside = [old for old in detached if old.at is not None]
    fates, dropping, waiting = _aside(table, aside, line, now)
    settled = {old.oid for old in dropping} | {step.detached.oid for step in fates}
    archiving = _to_archive(table, [old for old in aside if old.oid not in settled], taken)
    expired, findings = _expired(table, line, now)
    if in_progress and any(part.detach_pending for part in table.partitions):
        findings.append(Finding(Refusal.IN_PROGRESS, str(table)))
    steps: list[Removal] = [step for step in halves if step not in healing]
    steps += [*fates, *archiving]
    # Citus knows no DETACH CONCURRENTLY.
    beside = concurrently and not table.has_default and not table.traits.distributed
    how = How.CONCURRENTLY if beside else How.PLAIN
    steps += [_detach(table, part, taken, how) for part in expired[: policy.max_drops]]
    steps += [DropDetached(table, old) for old in dropping]
    waiting += max(len(expired) - policy.max_drops, 0)
    if waiting:
        findings.append(Finding(Refusal.MORE_WAIT, f"{table}: {waiting} expired partitions wait"))
    if any(isinstance(step, DetachPartition) for step in steps):
        findings += [Finding(Refusal.REFERRED_TO, f"{table} <- {key}") for key in referring]
    inside = [old for old in aside if not line.passed(old.lower, old.upper)]
    if inside:
        more = f" and {len(inside) - 1} more" * (len(inside) > 1)
        findings.append(Finding(Refusal.EXTENDED, f"{inside[0].schema}.{inside[0].name}{more}"))
    if steps and doubt is not None:
        return Retention(table, tuple(healing), (doubt, *findings))
    return Retention(table, (*healing, *steps), tuple(findings))


def is_healing(step: Removal) -> bool:
    """Tell whether a step only puts back what is half-way and not expired."""
    return isinstance(step, KeepPartition) or (isinstance(step, DetachPartition) and step.reattach)


# The least and the most hours in each, by the calendar.
_HOURS: Mapping[str, tuple[int, int]] = {
    "hour": (1, 1),
    "day": (24, 24),
    "week": (7 * 24, 7 * 24),
    "month": (28 * 24, 31 * 24),
    "quarter": (90 * 24, 92 * 24),
    "year": (365 * 24, 366 * 24),
}


def is_too_short(policy: PartitionPolicy) -> bool:
    """Tell whether a retention is shorter than one window: nobody means that."""
    if policy.retention is None:
        return False
    period = Period.parse(policy.retention)
    return period.count * _HOURS[period.unit][1] < policy.every * _HOURS[policy.interval][0]


def plan_restore(
    table: ManagedTable,
    detached: Sequence[Detached],
    wanted: Collection[str] = (),
    taken: Collection[tuple[str, str]] = (),
) -> Retention:
    """Plan what comes back, each to the schema that it came from.

    :param wanted: names that they have, or had as partitions; none means all.
    :param taken: names in use, each with its schema.
    """
    steps, findings = list[RestoreDetached](), list[Finding]()
    standing = [p for p in table.partitions if not p.is_default]
    for old in sorted(detached, key=_begin):
        if wanted and not names_of(old) & set(wanted):
            continue
        in_the_way = [p for p in standing if _overlap(p, old)]
        if in_the_way:
            told = f"{old.schema}.{old.name}, by {in_the_way[0].schema}.{in_the_way[0].name}"
            findings.append(Finding(Refusal.OCCUPIED, told))
            continue
        name = old.partition
        if (old.home, name) in taken and (old.schema, old.name) != (old.home, name):
            name = partition_name(name, "restored", _names(taken, old.home))
        steps.append(RestoreDetached(table, old, name))
        standing.append(Partition(old.oid, old.schema, old.name, old.lower, old.upper))
    return Retention(table, tuple(steps), tuple(findings))


def names_of(old: Detached) -> set[str]:
    """Return the names that a detached partition may be called by."""
    return {old.name, old.partition, f"{old.schema}.{old.name}"}


def _aside(
    table: ManagedTable, aside: Sequence[Detached], line: _Line, now: datetime
) -> tuple[list[ChangeFate], list[Detached], int]:
    """Return which detached partitions get another fate, which are dropped, and how many of those wait."""
    assert table.policy is not None
    fates, dropping = list[ChangeFate](), list[Detached]()
    for old in sorted(aside, key=_begin):
        # What lies in another schema was archived, or is somebody's own by now.
        if old.renamed or old.schema != old.home or not line.passed(old.lower, old.upper):
            continue
        if old.fate != table.policy.on_expiry:
            fates.append(ChangeFate(table, old))
        elif _ripe(table.policy, old, now):
            dropping.append(old)
    most = table.policy.max_drops
    return fates, dropping[:most], max(len(dropping) - most, 0)


def _ripe(policy: PartitionPolicy, old: Detached, now: datetime) -> bool:
    """Tell whether it is time to drop what is expired."""
    if old.at is None or Period.parse(policy.grace).after(old.at, policy.timezone) > now:
        return False
    exported = policy.on_expiry == "archive" and policy.archive_schema is None and old.export is not None
    return policy.on_expiry == "drop" or exported


def _overlap(part: Partition, old: Detached) -> bool:
    begins_before = part.lower is None or old.upper is None or part.lower < old.upper
    return begins_before and (part.upper is None or old.lower is None or old.lower < part.upper)


@dataclass(frozen=True, slots=True)
class _Line:
    """The line that a partition must lie wholly before; ``at`` is ``None`` where everything is kept."""

    grid: Grid
    at: KeyValue | None

    def passed(self, lower: KeyValue | None, upper: KeyValue | None) -> bool:
        if self.at is None or upper is None or upper > self.at:
            return False
        with suppress(OverflowError):  # the margin reaches beyond the calendar
            if upper + _MARGIN <= self.at:
                return True
        return self._on_grid(lower, upper)

    def _on_grid(self, lower: KeyValue | None, upper: KeyValue) -> bool:
        try:
            window = None if lower is None else self.grid.at(lower)
        except WindowRangeError:
            return False
        return window is not None and (window.begin, window.end) == (lower, upper)


def _halves(
    table: ManagedTable,
    detached: Sequence[Detached],
    line: _Line,
    taken: Collection[tuple[str, str]],
    in_progress: bool,
) -> Iterator[DetachPartition | KeepPartition]:
    """What a run that was cut off, or a time-out, has left half-way."""
    for part in table.partitions:
        if part.detach_pending and part.is_ours and not in_progress:
            yield _detach(table, part, taken, How.FINALIZE, not line.passed(part.lower, part.upper))
        elif part.is_leaving and not part.detach_pending and not line.passed(part.lower, part.upper):
            yield KeepPartition(table, part)
    for old in detached:
        if old.at is None:
            part = Partition(old.oid, old.schema, old.name, old.lower, old.upper, bound=old.bound)
            yield _detach(table, part, taken, How.DONE, not line.passed(old.lower, old.upper))


def _expired(table: ManagedTable, line: _Line, now: datetime) -> tuple[list[Partition], list[Finding]]:
    bounded = in_order(p for p in table.partitions if not p.is_default and not p.detach_pending)
    past = [part for part in bounded if line.passed(part.lower, part.upper)]
    splitting = [part for part in past if part.is_splitting]
    findings = [Finding(Refusal.SPLITTING, f"{part.schema}.{part.name}") for part in splitting]
    past = [part for part in past if not part.is_splitting]
    others = [part for part in past if not part.is_ours]
    if others:
        told = f"{others[0].schema}.{others[0].name}" + (f" and {len(others) - 1} more" * (len(others) > 1))
        findings.append(Finding(Refusal.NOT_OURS, told))
    expired = [part for part in past if part.is_ours and not _held(table, part, now)]
    if expired and len(expired) == len(bounded):
        kept = expired.pop()
        findings.append(Finding(Refusal.LAST, f"{kept.schema}.{kept.name}"))
    if expired and any(p.detach_pending and not p.is_ours for p in table.partitions):
        # PostgreSQL knows one pending detach a table, and this one is none of ours.
        stuck = next(p for p in table.partitions if p.detach_pending and not p.is_ours)
        return [], [*findings, Finding(Refusal.DETACH_PENDING, f"{stuck.schema}.{stuck.name}")]
    return expired, findings


def _held(table: ManagedTable, part: Partition, now: datetime) -> bool:
    """Tell whether a partition was restored so lately that its grace begins anew."""
    if part.mark is None or not part.mark.startswith(RESTORED_MARK) or table.policy is None:
        return False
    try:
        restored = iso_time(part.mark.removeprefix(RESTORED_MARK))
    except ValueError:
        return False
    return Period.parse(table.policy.grace).after(restored, table.policy.timezone) > now


def _detach(
    table: ManagedTable,
    part: Partition,
    taken: Collection[tuple[str, str]],
    how: How,
    reattach: bool = False,
) -> DetachPartition:
    assert table.policy is not None
    archive = table.policy.archive_schema if table.policy.on_expiry == "archive" else None
    # In a schema of its own the name may stay.
    name = (
        partition_name(part.name, "detached", _names(taken, part.schema))
        if archive is None
        else _archived_name(part.name, archive, taken)
    )
    reason = Reason.EXPIRED if how in (How.PLAIN, How.CONCURRENTLY) else Reason.CUT_OFF
    return DetachPartition(table, part, how, reason, part.name if reattach else name, archive, reattach)


def _to_archive(
    table: ManagedTable, aside: Sequence[Detached], taken: Collection[tuple[str, str]]
) -> Iterator[MoveDetached | ExportDetached]:
    assert table.policy is not None
    if table.policy.on_expiry != "archive":
        return
    archive = table.policy.archive_schema
    for old in sorted(aside, key=_begin):
        if old.renamed:
            continue
        if archive is not None and old.schema == old.home != archive:
            yield MoveDetached(table, old, _archived_name(old.partition, archive, taken), archive)
        elif archive is None and old.export is None and old.schema == old.home:
            yield ExportDetached(table, old)


def _archived_name(name: str, schema: str, taken: Collection[tuple[str, str]]) -> str:
    return partition_name(name, "archived", _names(taken, schema)) if (schema, name) in taken else name


def _names(taken: Collection[tuple[str, str]], schema: str) -> set[str]:
    return {name for where, name in taken if where == schema}


def _begin(detached: Detached) -> tuple[bool, str]:
    return detached.upper is None, str(detached.upper)
