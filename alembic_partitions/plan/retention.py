"""What is there + policy + now -> what goes. Pure.

Nothing goes that does not carry our mark, or that is not wholly past by the policy's own zone and calendar;
nor a DEFAULT partition, nor the last one; and at most ``max_drops`` in a run. A partition is detached first.
It is dropped later, if at all, once ``grace`` has passed since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from alembic_partitions.errors import WindowRangeError
from alembic_partitions.naming import partition_name
from alembic_partitions.periods import Grid, KeyValue, Period, iso_time
from alembic_partitions.policy import PartitionPolicy

from .horizon import cutoff, refused
from .removals import (
    Detached,
    DetachPartition,
    DropDetached,
    ExportDetached,
    How,
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
) -> Retention:
    """Plan what goes.

    :param detached: the table's detached partitions.
    :param now: the instant, aware.
    :param taken: names that a detached partition must not get, each with its schema.
    :param referring: foreign keys that refer to the table.
    :param doubt: why nothing must be removed now.
    """
    if refused(table) is not None or table.policy is None or table.key_type is None:
        return Retention(table)
    policy = table.policy
    line = _Line(table.grid, cutoff(policy, table.grid, now))
    steps, findings = list[Removal](), list[Finding]()
    steps += _halves(table, detached, line, taken)
    ripe = [old for old in sorted(detached, key=_begin) if _ripe(policy, old, now)]
    dropped = [old for old in ripe if line.passed(old.lower, old.upper)]
    findings += [Finding(Refusal.EXTENDED, f"{old.schema}.{old.name}") for old in ripe if old not in dropped]
    going = dropped[: policy.max_drops]
    steps += [DropDetached(table, old) for old in going]
    steps += _to_archive(table, [d for d in detached if d not in going and d.at is not None], taken)
    expired, more = _expired(table, line, now)
    findings += more
    steps += [_detach(table, part, taken) for part in expired[: policy.max_drops]]
    waiting = max(len(expired) - policy.max_drops, 0) + len(dropped) - len(going)
    if waiting:
        findings.append(Finding(Refusal.MORE_WAIT, f"{table}: {waiting} expired partitions wait"))
    detaching = any(isinstance(step, DetachPartition) for step in steps)
    findings += [Finding(Refusal.REFERRED_TO, f"{table} <- {key}") for key in referring if detaching]
    if steps and doubt is not None:
        return Retention(table, findings=(doubt, *findings))
    return Retention(table, tuple(steps), tuple(findings))


def plan_restore(
    table: ManagedTable,
    detached: Sequence[Detached],
    wanted: Collection[str] = (),
    taken: Collection[tuple[str, str]] = (),
) -> Retention:
    """Plan what comes back.

    :param wanted: names that they have, or had as partitions; none means all.
    """
    steps, findings = list[RestoreDetached](), list[Finding]()
    for old in sorted(detached, key=_begin):
        if wanted and not {old.name, old.partition, f"{old.schema}.{old.name}"} & set(wanted):
            continue
        in_the_way = [p for p in table.partitions if not p.is_default and _overlap(p, old)]
        if in_the_way:
            told = f"{old.schema}.{old.name}, by {in_the_way[0].schema}.{in_the_way[0].name}"
            findings.append(Finding(Refusal.OCCUPIED, told))
        else:
            name = old.partition
            if (table.schema, name) in taken:
                name = partition_name(name, "restored", _names(taken, table.schema))
            steps.append(RestoreDetached(table, old, name))
    return Retention(table, tuple(steps), tuple(findings))


def _ripe(policy: PartitionPolicy, old: Detached, now: datetime) -> bool:
    """Tell whether a detached partition would be dropped if it is expired still."""
    if old.at is None or Period.parse(policy.grace).after(old.at, policy.timezone) > now:
        return False
    return policy.on_expiry == "drop" or (policy.on_expiry == "archive" and old.export is not None)


def _overlap(part: Partition, old: Detached) -> bool:
    begins_before = part.lower is None or old.upper is None or part.lower < old.upper
    return begins_before and (part.upper is None or old.lower is None or old.lower < part.upper)


@dataclass(frozen=True, slots=True)
class _Line:
    """The line that a partition must lie wholly before; ``at`` is ``None`` where everything is kept."""

    grid: Grid
    at: KeyValue | None

    def passed(self, lower: KeyValue | None, upper: KeyValue | None) -> bool:
        if self.at is None or upper is None:
            return False
        if self._on_grid(lower, upper):
            return upper <= self.at
        try:
            return upper + _MARGIN <= self.at
        except OverflowError:
            return False

    def _on_grid(self, lower: KeyValue | None, upper: KeyValue) -> bool:
        try:
            window = None if lower is None else self.grid.at(lower)
        except WindowRangeError:
            return False
        return window is not None and (window.begin, window.end) == (lower, upper)


def _halves(
    table: ManagedTable, detached: Sequence[Detached], line: _Line, taken: Collection[tuple[str, str]]
) -> Iterator[DetachPartition]:
    """What a run that was cut off, or a time-out, has left half-way."""
    for part in table.partitions:
        if part.detach_pending and part.is_ours:
            yield _detach(table, part, taken, How.FINALIZE, not line.passed(part.lower, part.upper))
    for old in detached:
        if old.at is None:
            part = Partition(old.oid, old.schema, old.name, old.lower, old.upper, bound=old.bound)
            yield _detach(table, part, taken, How.DONE, not line.passed(old.lower, old.upper))


def _expired(table: ManagedTable, line: _Line, now: datetime) -> tuple[list[Partition], list[Finding]]:
    bounded = in_order(p for p in table.partitions if not p.is_default and not p.detach_pending)
    past = [part for part in bounded if line.passed(part.lower, part.upper)]
    findings = []
    others = [part for part in past if not part.is_ours]
    if others:
        told = f"{others[0].schema}.{others[0].name}" + (f" and {len(others) - 1} more" * (len(others) > 1))
        findings.append(Finding(Refusal.NOT_OURS, told))
    expired = [part for part in past if part.is_ours and not _held(table, part, now)]
    if expired and len(expired) == len(bounded):
        kept = expired.pop()
        findings.append(Finding(Refusal.LAST, f"{kept.schema}.{kept.name}"))
    if expired and any(p.detach_pending and not p.is_ours for p in table.partitions):
        # PostgreSQL knows one pending detach a table; whose this is, nobody can tell.
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
    how: How | None = None,
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
    if how is None:
        how = How.PLAIN if table.has_default else How.CONCURRENTLY
    reason = Reason.EXPIRED if how in (How.PLAIN, How.CONCURRENTLY) else Reason.CUT_OFF
    return DetachPartition(table, part, how, reason, part.name if reattach else name, archive, reattach)


def _to_archive(
    table: ManagedTable, detached: Sequence[Detached], taken: Collection[tuple[str, str]]
) -> Iterator[MoveDetached | ExportDetached]:
    assert table.policy is not None
    if table.policy.on_expiry != "archive":
        return
    archive = table.policy.archive_schema
    for old in sorted(detached, key=_begin):
        if archive is not None and old.schema != archive:
            yield MoveDetached(table, old, _archived_name(old.partition, archive, taken), archive)
        elif archive is None and old.export is None:
            yield ExportDetached(table, old)


def _archived_name(name: str, schema: str, taken: Collection[tuple[str, str]]) -> str:
    return partition_name(name, "archived", _names(taken, schema)) if (schema, name) in taken else name


def _names(taken: Collection[tuple[str, str]], schema: str) -> set[str]:
    return {name for where, name in taken if where == schema}


def _begin(detached: Detached) -> tuple[bool, str]:
    return detached.upper is None, str(detached.upper)
