"""What the page says of tables, in words. Pure: values in, values out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from alembic_partitions.health import Health, Level, State
from alembic_partitions.plan import Partition, Runway
from alembic_partitions.standing import Row, partition_state
from alembic_partitions.words import (
    UNKNOWN,
    policy_words,
    retention_words,
    runway_words,
    size,
    some,
    stretch,
    when,
)

from .drawing import Drawing, draw, is_off_grid

# Partitions that are listed in all, and of one table.
_LISTED, _MOST, _LEAST = 2_000, 150, 20
_WORST_FIRST = (
    State.CRITICAL,
    State.NO_PARTITIONS,
    State.DEGRADED,
    State.CLEANUP_NEEDED,
    State.HEALTHY,
)


@dataclass(frozen=True, slots=True)
class Badge:
    """A state in words, with a sign and a class of colours."""

    text: str
    sign: str
    style: str


_BADGES = {
    State.HEALTHY: Badge("Healthy", "✓", "healthy"),
    State.CLEANUP_NEEDED: Badge("Cleanup needed", "↻", "cleanup"),
    State.DEGRADED: Badge("Degraded", "!", "degraded"),
    State.CRITICAL: Badge("Critical", "✕", "critical"),
    State.NO_PARTITIONS: Badge("No partitions", "✕", "critical"),
}
_DISABLED = Badge("Disabled", "–", "disabled")
_NOTHING = Badge("Nothing managed", "–", "disabled")


@dataclass(frozen=True, slots=True)
class PartitionTold:
    """A line of a table's list of partitions."""

    name: str
    begin: str
    end: str
    size: str
    rows: str
    state: str


@dataclass(frozen=True, slots=True)
class TableTold:
    """One table."""

    name: str
    badge: Badge
    policy: str
    retention: str
    runway: str
    until: str
    asked: str
    partitions: int
    size: str
    rows: str
    #: Of how many partitions these are not known.
    uncounted: int
    reasons: tuple[str, ...]
    #: What wants to be seen though it may be no reason, and the rest of what is drawn.
    remarks: tuple[str, ...]
    facts: tuple[str, ...]
    #: ``None`` where how far it reaches cannot be told.
    drawing: Drawing | None
    #: What the drawing says.
    label: str
    #: Its DEFAULT partition: empty, stranded or unknown; nothing where there is none.
    default: str
    listed: tuple[PartitionTold, ...]
    #: Partitions that are not listed.
    left_out: int


# -- all together ---------------------------------------------------------------------------------------


def overall(health: Health) -> Badge:
    """Say how all tables stand together."""
    return _BADGES[health.state] if health.tables else _NOTHING


def headline(health: Health) -> str:
    """Say in a sentence whether inserts are safe."""
    failing = [table.table for table in health.tables if table.current_missing and table.enabled]
    if failing:
        return f"Rows that are written now find no partition in {some(failing)}."
    enabled = [table for table in health.tables if table.enabled]
    known = [table for table in enabled if table.runway is not None]
    if not enabled:
        return "Nothing is enabled: every table is left alone."
    soonest = min(known, key=lambda table: table.runway or 0.0, default=None)
    if soonest is None or len(known) < len(enabled):
        return "Not all can be told: see below."
    if math.isinf(soonest.runway or 0.0):
        return "Inserts are safe, without end."
    if not soonest.runway:
        return f"Rows of {soonest.table} go to its DEFAULT partition."
    return f"Inserts are safe. {soonest.table} runs out first, in {runway_words(soonest)}."


def counts(rows: Sequence[Row]) -> list[tuple[Badge, int]]:
    """Count the tables by state, the worst first."""
    found = Counter(_badge(row).text for row in rows)
    badges = [*(_BADGES[state] for state in _WORST_FIRST), _DISABLED]
    return [(badge, found[badge.text]) for badge in badges if found[badge.text]]


def tables(rows: Sequence[Row], now: datetime) -> list[TableTold]:
    """Tell of each table, the worst first."""
    most = max(_LEAST, min(_MOST, _LISTED // max(len(rows), 1)))
    ordered = sorted(
        rows,
        key=lambda row: (not row.health.enabled, _WORST_FIRST.index(row.health.state), row.health.table),
    )
    return [_table(row, now, most) for row in ordered]


# -- one table ------------------------------------------------------------------------------------------


def _badge(row: Row) -> Badge:
    return _BADGES[row.health.state] if row.health.enabled else _DISABLED


def _table(row: Row, now: datetime, most: int) -> TableTold:
    table, runway, health = row.view.table, row.runway, row.health
    policy = table.policy
    drawing = draw(table, runway, now) if runway is not None else None
    listed = _near(row, most)
    remarks, facts = tuple(_remarks(row)), tuple(_facts(row))
    ends = health.horizon if runway is not None and runway.days else None
    left = runway_words(health)
    figures = list((row.view.figures or {}).values())
    return TableTold(
        name=health.table,
        badge=_badge(row),
        policy=policy_words(policy) if policy is not None else f"policy {UNKNOWN}",
        retention=retention_words(policy, None) if policy is not None else "",
        runway={"none": "none left", "no end": "never runs out"}.get(left, left),
        until="" if ends is None else f"until {when(table.grid, ends)}",
        asked="" if runway is None else _asked(runway),
        partitions=len(table.partitions),
        size=_held((f.bytes for f in figures), size),
        rows=_held((f.rows for f in figures), "about {:,}".format),
        uncounted=sum(1 for f in figures if f.rows is None),
        reasons=health.reasons,
        remarks=remarks,
        facts=facts,
        drawing=drawing,
        label="; ".join([f"Coverage of {health.table}", *facts, *health.reasons, *remarks]),
        default={True: "stranded", False: "empty", None: UNKNOWN}[row.view.stranded]
        if table.has_default
        else "",
        listed=tuple(_partition(row, part) for part in listed),
        left_out=len(table.partitions) - len(listed),
    )


def _asked(runway: Runway) -> str:
    days = runway.wanted_days
    return f"asked for: {days:.0f} days" if days >= 2 else f"asked for: {24 * days:.0f} hours"


def _facts(row: Row) -> Iterator[str]:
    """Say what is drawn of every table."""
    table, runway = row.view.table, row.runway
    if runway is None:
        return
    grid, bounded = table.grid, [part for part in row.ordered if not part.is_default]
    if bounded:
        yield f"partitions {stretch(grid, bounded[0].lower, bounded[-1].upper)}"
    else:
        yield "no partition at all"
    yield f"the policy asks for them until {when(grid, runway.wanted)}"
    yield f"times are those of {grid.timezone}"


def _remarks(row: Row) -> Iterator[str]:
    """Say what is drawn and wants to be seen, but for what the reasons say already."""
    table, runway = row.view.table, row.runway
    if runway is None:
        return
    grid, bounded = table.grid, [part for part in row.ordered if not part.is_default]
    told = row.health.level is not Level.OK  # of the one that ends the runway
    gaps = [stretch(grid, *gap) for gap in runway.gaps if not (told and gap[0] == runway.end)]
    if gaps and bounded:
        yield f"no partition {some(gaps, few=2)}"
    if runway.due:
        first, last = runway.due[0], runway.due[-1]
        yield f"retention takes {len(runway.due):,} next: {stretch(grid, first.lower, last.upper)}"
    kept = len(runway.expired) - len(runway.due)
    if kept:
        yield f"{kept:,} expired, but not taken: see maintain --dry-run"
    odd = [part.name for part in bounded if is_off_grid(grid, part)]
    if odd:
        yield f"{len(odd):,} not on the policy's grid: {some(odd)}"
    pending = [part.name for part in bounded if part.detach_pending]
    if pending:
        yield f"half detached: {some(pending)}"
    if table.has_default and not row.view.stranded:
        yield f"its DEFAULT partition {'may hold rows' if row.view.stranded is None else 'is empty'}"


def _near(row: Row, most: int) -> list[Partition]:
    """Return the partitions nearest to today, and DEFAULT ones."""
    if row.view.table.policy is None or row.view.table.key_type is None:
        return []
    bounded = [part for part in row.ordered if not part.is_default]
    default = [part for part in row.ordered if part.is_default]
    here = row.runway.here if row.runway is not None else None
    ahead = sum(1 for p in bounded if here is None or p.upper is None or p.upper > here)
    first = min(max(len(bounded) - ahead - most // 2, 0), max(len(bounded) - most, 0))
    return [*bounded[first : first + most], *default]


def _partition(row: Row, part: Partition) -> PartitionTold:
    grid = row.view.table.grid
    figures = (row.view.figures or {}).get(part.oid)
    state = partition_state(part, row.runway, marks=row.view.figures is not None)
    if is_off_grid(grid, part):
        state.append("off the grid")
    return PartitionTold(
        name=part.name,
        begin="" if part.lower is None else when(grid, part.lower),
        end="" if part.upper is None else when(grid, part.upper),
        size=size(figures.bytes if figures else None),
        rows=UNKNOWN if figures is None or figures.rows is None else f"{figures.rows:,}",
        state=", ".join(state),
    )


def _held(counts: Iterable[int | None], told: Callable[[int], str]) -> str:
    """Say how much all partitions hold, as far as it is known."""
    known = [count for count in counts if count is not None]
    return told(sum(known)) if known else UNKNOWN
