"""Whether inserts are safe: the plan seen from outside. No DDL, nothing that is not in the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum

from .catalog import Run
from .periods import KeyValue
from .plan import Finding, ManagedTable, Plan, Refusal, Runway, Stretch, is_off_grid, local, runway_of

#: Days of runway under which a table is worth a warning.
WARN_DAYS = 7.0


class Level(IntEnum):
    """How bad it is, numbered as monitoring plugins exit."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    #: It could not be told.
    UNKNOWN = 3


class State(str, Enum):
    """What is to be done about it, the worst last."""

    HEALTHY = "HEALTHY"
    #: Inserts are safe; retention has something to take.
    CLEANUP_NEEDED = "CLEANUP_NEEDED"
    #: Inserts are safe for now; something wants looking at.
    DEGRADED = "DEGRADED"
    #: Inserts fail now or tomorrow, or nobody can tell.
    CRITICAL = "CRITICAL"
    #: There is nothing to insert into, or nothing is managed at all.
    NO_PARTITIONS = "NO_PARTITIONS"


@dataclass(frozen=True, slots=True)
class TableHealth:
    """One table seen from outside: what it lacks right now."""

    table: str
    #: A row written now would find no partition.
    current_missing: bool
    #: Windows that should stand ready and do not.
    missing: tuple[str, ...]
    findings: tuple[str, ...]
    level: Level = Level.OK
    #: What is to be done about it.
    state: State = State.HEALTHY
    #: Why it is not OK.
    reasons: tuple[str, ...] = ()
    #: Days until inserts find no partition; infinite with MAXVALUE, ``None`` where it cannot be told.
    runway: float | None = None
    #: The first key from now on that has no partition; ``None`` with MAXVALUE, too.
    horizon: KeyValue | None = None
    #: Keys without a partition between the first and the last one, or within the policy's horizon.
    gaps: tuple[Stretch, ...] = ()
    #: Whether rows lie in the DEFAULT partition; ``None`` where that was not asked, or may not be.
    stranded: bool | None = None
    enabled: bool = True
    #: How many partitions there are.
    partitions: int = 0
    #: Partitions that retention takes next.
    due: tuple[str, ...] = ()
    #: Partitions that are no windows of the policy, in words.
    misaligned: tuple[str, ...] = ()
    #: What its last run failed over.
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether inserts are safe. ``error`` is the last thing that went wrong in a hook, or ``None``."""

    ok: bool
    tables: tuple[TableHealth, ...] = ()
    error: str | None = None
    #: The instant that all was judged at.
    now: datetime | None = None
    #: The newest run; ``None`` where there was none, or none could be read.
    last_run: Run | None = None
    #: Inserts of this process that found no partition, by ``schema.table``; ``None`` where nobody counts.
    no_partition_errors: Mapping[str, int] | None = None

    @property
    def status(self) -> str:
        """``ok`` while inserts are safe, else ``failing``."""
        return "ok" if self.ok else "failing"

    @property
    def state(self) -> State:
        """The worst of all tables; one table without partitions among others is CRITICAL."""
        states = {table.state for table in self.tables if table.enabled}
        if not states:
            return State.NO_PARTITIONS if self.ok else State.CRITICAL
        if states == {State.NO_PARTITIONS}:
            return State.NO_PARTITIONS
        if states & {State.NO_PARTITIONS, State.CRITICAL}:
            return State.CRITICAL
        if self.error is not None or State.DEGRADED in states:
            return State.DEGRADED
        return State.CLEANUP_NEEDED if State.CLEANUP_NEEDED in states else State.HEALTHY

    @property
    def level(self) -> Level:
        """The worst of all tables; UNKNOWN where none is managed."""
        return worst(table.level for table in self.tables)


def worst(levels: Iterable[Level]) -> Level:
    """Return the worst level, something unknown being less bad than something wrong."""
    found = set(levels)
    order = (Level.CRITICAL, Level.WARNING, Level.UNKNOWN, Level.OK)
    return next((level for level in order if level in found), Level.UNKNOWN)


def assess(
    plan: Plan,
    now: datetime | None,
    *,
    warn_days: float = WARN_DAYS,
    stranded: bool | None = None,
    failure: str | None = None,
    gathered: Sequence[str] = (),
    runway: Runway | None = None,
) -> TableHealth:
    """Judge one table.

    :param now: the instant of its plan; without it no runway is measured.
    :param warn_days: a runway that is shorter is worth a warning. Where the policy itself asks for less than
        twice as much, it is half of what the policy asks for.
    :param stranded: whether rows lie in its DEFAULT partition, ``None`` if that is unknown.
    :param failure: what went wrong in its last run.
    :param gathered: tables in which rows of a drain that was cut off are hidden.
    :param runway: what was measured at that instant, if it was.
    """
    table = plan.table
    if runway is None and now is not None:
        runway = runway_of(table, now)
    enabled = table.policy is None or table.policy.enabled
    found: list[tuple[Level, str]] = []
    if table.problem is not None and enabled:
        found.append((Level.CRITICAL, str(Finding(*table.problem)).removeprefix(f"{table}: ")))
    elif enabled:
        found += _of_coverage(plan, runway, warn_days)
        found += [(Level.WARNING, why) for why in _of_other_things(plan, stranded, failure)]
        found += [
            (Level.WARNING, f"rows in {name} cannot be seen until repair succeeds") for name in gathered
        ]
    level = worst([level for level, _ in found] or [Level.OK])
    due = tuple(part.name for part in runway.due) if runway is not None and enabled else ()
    return TableHealth(
        table=str(table),
        current_missing=plan.current_missing,
        missing=tuple(step.name for step in plan.steps),
        findings=tuple(map(str, plan.findings)),
        level=level,
        state=_state(plan, level, due) if enabled else State.HEALTHY,
        reasons=tuple(why for _, why in found),
        runway=runway.days if runway is not None else 0.0 if plan.current_missing else None,
        horizon=runway.end if runway is not None else None,
        gaps=runway.gaps if runway is not None else (),
        stranded=stranded,
        enabled=enabled,
        partitions=len(table.partitions),
        due=due,
        misaligned=tuple(str(finding) for finding in plan.findings if is_off_grid(finding)),
        failure=failure,
    )


def _state(plan: Plan, level: Level, due: Sequence[str]) -> State:
    table = plan.table
    if table.problem is None and not table.partitions and plan.current_missing:
        return State.NO_PARTITIONS
    if level is Level.CRITICAL:
        return State.CRITICAL
    if level is not Level.OK:
        return State.DEGRADED
    return State.CLEANUP_NEEDED if due else State.HEALTHY


def _of_coverage(plan: Plan, runway: Runway | None, warn_days: float) -> list[tuple[Level, str]]:
    table = plan.table
    strand = ": they strand in the DEFAULT partition" if table.has_default else ""
    level = Level.WARNING if strand else Level.CRITICAL
    if runway is None or runway.days == 0:
        missing = plan.current_missing if runway is None else True
        return [(level, f"no partition for rows that are written now{strand}")] if missing else []
    if plan.current_missing:
        return [(level, f"no partition for some rows of the current window{strand}")]
    if runway.end is None:
        return []
    shown = local(table.grid, runway.end)
    end = f"{shown:%Y-%m-%d %H:%M} {table.grid.timezone}" if isinstance(shown, datetime) else f"{shown}"
    if not runway.reaches_tomorrow:
        return [(level, f"no partition for rows from {end} on{strand}")]
    asked = runway.wanted_days
    if runway.days < (asked / 2 if asked < 2 * warn_days else warn_days):
        return [(Level.WARNING, f"no partition for rows from {end} on; the policy asks for {_length(asked)}")]
    return []


def _length(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours"


def _of_other_things(plan: Plan, stranded: bool | None, failure: str | None) -> Iterable[str]:
    table: ManagedTable = plan.table
    if stranded:
        yield "the DEFAULT partition holds rows: see repair --dry-run"
    for part in table.partitions:
        if part.detach_pending:
            yield str(Finding(Refusal.DETACH_PENDING, f"{part.schema}.{part.name}"))
    for finding in plan.findings:
        if finding.refusal is Refusal.OUT_OF_RANGE:
            yield str(finding)
    if failure is not None:
        yield failure
