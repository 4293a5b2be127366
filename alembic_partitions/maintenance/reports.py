"""How a run went, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alembic_partitions import executor
from alembic_partitions.plan import Plan

_DONE = ("created", "detached", "archived", "dropped", "restored", "moved", "mended", "tended", "proof")


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What one table lacks, and the SQL that would make it."""

    table: str
    plan: Plan
    user: str | None = None
    #: The instant that it was planned at.
    now: datetime | None = None

    def sql(self) -> str:
        """Return the script: byte for byte what :func:`ensure` would send."""
        return executor.script(self.plan, self.user)


@dataclass(frozen=True, slots=True)
class TableResult:
    """How a run went for one table."""

    table: str
    created: tuple[str, ...] = ()
    detached: tuple[str, ...] = ()
    #: Moved to the archive schema, or exported and verified.
    archived: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    #: Rows moved out of a DEFAULT partition.
    moved: int = 0
    #: What was put right, in words.
    mended: tuple[str, ...] = ()
    #: Tables that were analyzed or vacuumed.
    tended: tuple[str, ...] = ()
    #: What became of the row that was inserted and rolled back to prove the path.
    proof: str | None = None
    #: A row written now would find no partition.
    current_missing: bool = False
    #: Some window that should stand ready does not.
    horizon_short: bool = False
    error: str | None = None
    findings: tuple[str, ...] = ()

    @property
    def changes(self) -> dict[str, Any]:
        """What was done, without what was not: names, counts and words that JSON holds."""
        done = {name: getattr(self, name) for name in _DONE}
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in done.items() if value
        }

    @property
    def failure(self) -> str | None:
        """Why the run failed for this table, or ``None`` where rows that are written now find a partition."""
        return self.error or ("; ".join(self.findings) if self.current_missing else None)


@dataclass(frozen=True, slots=True)
class Report:
    """How a run went: one result a table; ``in_recovery`` on a standby, which nothing can be made on."""

    results: tuple[TableResult, ...] = ()
    in_recovery: bool = False
    #: Why the run as a whole came to an early end.
    error: str | None = None

    @property
    def created(self) -> int:
        """How many partitions the run made."""
        return self.count("created")

    def count(self, what: str) -> int:
        """Return how many partitions were created, detached, archived, dropped or restored in all."""
        return sum(len(getattr(result, what)) for result in self.results)

    @property
    def failure(self) -> str | None:
        """Why the run failed, a line a table; ``None`` if it did not."""
        failed = [f"{result.table}: {result.failure}" for result in self.results if result.failure]
        return "\n".join([*failed, *([self.error] if self.error else [])]) or None
