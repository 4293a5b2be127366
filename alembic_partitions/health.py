"""Whether inserts are safe: the plan seen from outside. No DDL, nothing that is not in the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .plan import Plan


@dataclass(frozen=True, slots=True)
class TableHealth:
    """One table seen from outside: what it lacks right now."""

    table: str
    #: A row written now would find no partition.
    current_missing: bool
    #: Windows that should stand ready and do not.
    missing: tuple[str, ...]
    findings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether inserts are safe. ``error`` is the last thing that went wrong in a hook, or ``None``."""

    ok: bool
    tables: tuple[TableHealth, ...] = ()
    error: str | None = None


def health_of(plans: Iterable[Plan], error: str | None = None) -> Health:
    """Tell how tables stand whose plans these are; every plan empty means healthy."""
    tables = tuple(
        TableHealth(
            table=str(plan.table),
            current_missing=plan.current_missing,
            missing=tuple(step.name for step in plan.steps),
            findings=tuple(map(str, plan.findings)),
        )
        for plan in plans
    )
    return Health(not any(table.current_missing for table in tables), tables, error)
