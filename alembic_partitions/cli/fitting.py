"""A table that could be adopted, in words and as JSON: what is there, what fits, and what does not. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import date
from typing import Any

from alembic_partitions import ddl
from alembic_partitions.adoption import Adoptable
from alembic_partitions.periods import Grid, KeyValue
from alembic_partitions.plan import MARKS, Era, Partition, Stretch, in_order, uncovered
from alembic_partitions.policy import PartitionPolicy
from alembic_partitions.words import policy_words, printable, stretch, when

_WIDTH = 80
_LABEL = 13
NOTHING_FITS = "no policy has these partitions for its windows"
SAY_WHICH = "say which is meant, with --interval, --every, --timezone, --day-start."
#: Of zones that fit alike so many are named, and of what has no end of them.
_NAMED = 3
_MOST = 8


def as_text(found: Adoptable, name: str, given: bool) -> str:
    """Return what is to be known of a table before it is adopted, and the line of a migration.

    :param given: a person has said what interval or zone is meant.
    """
    lines = [f"{printable(str(found.table))}, partitioned by {printable(found.partition_by)}"]
    for label, told in _findings(found):
        wrapped = textwrap.wrap(
            printable(told), _WIDTH - _LABEL - 2, break_long_words=False, break_on_hyphens=False
        )
        lines += [f"  {label if not n else '':<{_LABEL}}{text}" for n, text in enumerate(wrapped)]
    if found.declared is not None:
        return "\n".join([*lines, "", "It is adopted already.", ""])
    if not (found.fits or given):
        return "\n".join([*lines, "", f"{NOTHING_FITS}: {SAY_WHICH}", ""])
    if found.partman is not None and found.partman.maintained:
        lines += ["", "First take it out of pg_partman's hands:", "", f"{ddl.partman_off(found.partman)};"]
    lines += ["", "Then in a migration, or now with --apply:", "", migration_line(found, name), ""]
    return "\n".join(lines)


def migration_line(found: Adoptable, name: str) -> str:
    """Return what adopts a table in a migration."""
    where = f", schema={found.table.schema!r}" if name != found.table.name else ""
    policy = repr(found.proposal.policy)
    call = f"op.adopt_partitioned_table({found.table.name!r}, {policy}{where})"
    if len(call) <= _WIDTH:
        return call
    if len(policy) > _WIDTH - 5:
        # Only between arguments; none of these fields holds a comma, but perhaps the key.
        given = policy.removeprefix("PartitionPolicy(").removesuffix(")").split(", ")
        policy = "\n".join(["PartitionPolicy(", *(f"        {one}," for one in given), "    )"])
    where = f"\n    {where.removeprefix(', ')}," if where else ""
    return f"op.adopt_partitioned_table(\n    {found.table.name!r},\n    {policy},{where}\n)"


def as_json(database: str, found: Adoptable) -> dict[str, Any]:
    """Return the same for programs: times in ISO 8601, a policy as its fields."""
    proposal = found.proposal
    parts = _bounded(found)
    return {
        "database": database,
        "table": str(found.table),
        "partition_by": found.partition_by,
        "key_type": found.table.key_type,
        "policy": proposal.policy.to_dict(),
        "adopted": found.declared is not None,
        "partitions": len(parts),
        "from": _iso(parts[0].lower) if parts else None,
        "to": _iso(parts[-1].upper) if parts else None,
        "on_grid": len(proposal.on_grid),
        "off_grid": [
            {
                "partitions": [f"{p.schema}.{p.name}" for p in era.partitions],
                "from": _iso(era.partitions[0].lower),
                "to": _iso(era.partitions[-1].upper),
                "policy": era.policy.to_dict() if era.policy else None,
            }
            for era in proposal.off_grid
        ],
        "drifted": proposal.drift is not None,
        "fits_as_well": list(proposal.also),
        "gaps": [[_iso(low), _iso(high)] for low, high in _gaps(found)],
        "default": next((f"{p.schema}.{p.name}" for p in found.table.partitions if p.is_default), None),
        "default_has_rows": found.stranded,
        "half_detached": [f"{p.schema}.{p.name}" for p in found.table.partitions if p.detach_pending],
        "pg_partman": None
        if found.partman is None
        else {"schema": found.partman.schema, "maintained": found.partman.maintained},
        "windows": [[_iso(s.lower), _iso(s.upper)] for s in found.plan.steps],
        "notes": list(found.notes),
    }


def _findings(found: Adoptable) -> Iterator[tuple[str, str]]:
    proposal, policy, grid = found.proposal, found.proposal.policy, found.table.grid
    parts = _bounded(found)
    if not parts:
        yield "partitions", "none with bounds, so nothing tells what policy would fit"
    else:
        reach = stretch(grid, parts[0].lower, parts[-1].upper)
        yield "partitions", f"{len(parts):,}, {reach} on the clocks of {policy.timezone}"
        yield (
            "fits best",
            f"{policy_words(policy)}: {len(proposal.on_grid):,} of {len(parts):,} are its windows",
        )
    if proposal.also:
        more = len(proposal.also) - _NAMED
        named = ", ".join(proposal.also[:_NAMED]) + (f" and {more} more zones" if more > 0 else "")
        yield "fits as well", named
    for era in proposal.off_grid[-_MOST:]:
        yield "off the grid", _era(grid, era)
    if len(proposal.off_grid) > _MOST:
        yield "off the grid", f"and {len(proposal.off_grid) - _MOST} older stretches"
    if proposal.drift is not None and proposal.drift.policy is not None:
        yield "drifted", _drift(proposal.drift, policy, proposal.on_grid[-1])
    gaps = _gaps(found)
    for low, high in gaps[-_MOST:]:
        yield "gap", f"{stretch(grid, low, high)} has no partition"
    if len(gaps) > _MOST:
        yield "gap", f"and {len(gaps) - _MOST} older ones"
    for part in found.table.partitions:
        if part.is_default:
            holds = {True: "it holds rows: `repair` moves them to their windows", False: "empty"}
            yield "DEFAULT", f"{part.name}, {holds.get(found.stranded, 'whether it holds rows is unknown')}"  # type: ignore[arg-type]
        if part.detach_pending:
            yield "pending", f"{part.name} is half-way through DETACH CONCURRENTLY: FINALIZE it"
    yield from _oddities(found)
    if policy.retention is not None:
        told = f"{policy.retention}, then {policy.on_expiry}: of what bears our mark"
        yield "retention", f"{told}, which --mark sets on the {len(proposal.on_grid)} windows of the grid"
    yield "from here on", _windows(found)


def _oddities(found: Adoptable) -> Iterator[tuple[str, str]]:
    kinds = [child.kind for child in found.children.values()]
    if kinds.count("p"):
        yield "children", f"{kinds.count('p')} partitioned in turn, which ours will not be"
    if kinds.count("f"):
        yield "children", f"{kinds.count('f')} foreign, which --mark leaves out"
    on_grid = {part.oid for part in found.proposal.on_grid}
    comments = [found.children[oid].comment for oid in on_grid if oid in found.children]
    own = sum(1 for comment in comments if comment is not None and not comment.startswith(MARKS))
    if own:
        yield "comments", f"{own} on the grid bear one, which stays: --mark leaves them out"
    if found.nullable:
        yield "key", "it may be NULL: such rows find a DEFAULT partition or none"
    if found.table.key_type == "timestamp":
        zone = found.proposal.policy.column_timezone or found.proposal.policy.timezone
        yield "key", f"it is without time zone, and taken for {zone}: --timezone says another"
    if found.partman is not None:
        yield "pg_partman", _partman(found)
    for note in found.notes:
        yield "note", note


def _partman(found: Adoptable) -> str:
    partman = found.partman
    assert partman is not None
    told = f"in schema {partman.schema}, interval {partman.interval!r}"
    told += f", retention {partman.retention!r}" if partman.retention else ""
    if not partman.maintained:
        return f"{told}; its maintenance is off"
    return f"{told}, and it maintains the table: two masters would be in each other's way"


def _era(grid: Grid, era: Era) -> str:
    first, last = era.partitions[0], era.partitions[-1]
    names = first.name if first is last else f"{first.name} to {last.name}"
    count = f"{len(era.partitions)}, " if first is not last else ""
    told = f"{names}: {count}{stretch(grid, first.lower, last.upper)}"
    return f"{told} (these are: {policy_words(era.policy)})" if era.policy else told


def _drift(era: Era, before: PartitionPolicy, last: Partition) -> str:
    after = era.policy
    assert after is not None
    grid = before.grid("timestamptz") if isinstance(last.upper, date) else None
    until = when(grid, last.upper) if grid is not None and last.upper is not None else "?"
    if (before.interval, before.every) != (after.interval, after.every):
        return f"until {until} it is {policy_words(before)}, from then on {policy_words(after)}"
    return (
        f"until {until} its {before.interval}s begin at {before.day_start} in {before.timezone}, from"
        f" then on at {after.day_start} in {after.timezone}; ours begin as those before"
    )


def _windows(found: Adoptable) -> str:
    steps = sorted(found.plan.steps, key=lambda s: s.lower)
    grid = found.table.grid
    if not steps:
        end = _bounded(found)[-1].upper if _bounded(found) else None
        begin = "" if end is None else f"; our windows begin at {when(grid, end)}"
        return f"nothing is missing yet{begin}"
    count = "1 window is" if len(steps) == 1 else f"{len(steps)} windows are"
    return f"{count} missing: {when(grid, steps[0].lower)} to {when(grid, steps[-1].upper)}"


def _bounded(found: Adoptable) -> list[Partition]:
    return in_order(p for p in found.table.partitions if not p.is_default)


def _gaps(found: Adoptable) -> list[Stretch]:
    parts = [p for p in _bounded(found) if not p.detach_pending]
    ends = [p.lower for p in parts if p.lower is not None] + [p.upper for p in parts if p.upper is not None]
    if not ends:
        return []
    first: KeyValue = ends[0]
    return uncovered(parts, first, first)


def _iso(value: KeyValue | None) -> str | None:
    return None if value is None else value.isoformat()
