"""How each table of each database stands: looked at, and judged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection

from . import health, maintenance
from .health import Health, TableHealth
from .maintenance import TableView, View
from .plan import Partition, Runway, in_order, runway_of

#: What was looked at, with the name of its database.
Found: TypeAlias = "list[tuple[str, View]]"


@dataclass(frozen=True, slots=True)
class Row:
    """One table of one database, looked at and judged."""

    database: str
    view: TableView
    health: TableHealth
    #: How far it reaches; ``None`` where that cannot be told.
    runway: Runway | None

    @property
    def ordered(self) -> list[Partition]:
        """Its partitions, the oldest first, a DEFAULT one last."""
        parts = self.view.table.partitions
        return [*in_order(p for p in parts if not p.is_default), *(p for p in parts if p.is_default)]


def judge(found: Found, warn_days: float) -> list[Row]:
    """Judge every table that was looked at, each once."""
    rows: dict[tuple[str, str, str], Row] = {}  # by schema and name: "a"."b.c" is not "a.b"."c"
    for database, view in found:
        for item in view.tables:
            assert view.now is not None
            runway = runway_of(item.table, view.now)
            judged: TableHealth = health.assess(
                item.plan,
                view.now,
                warn_days=warn_days,
                stranded=item.stranded,
                failure=item.failure,
                gathered=item.gathered,
                runway=runway,
            )
            table = item.table
            rows.setdefault((database, table.schema, table.name), Row(database, item, judged, runway))
    return list(rows.values())


def survey(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    warn_days: float = health.WARN_DAYS,
    error: str | None = None,
    met: Mapping[str, int] | None = None,
) -> Health:
    """Tell how all tables stand: a few short reads of the catalog, no DDL, and no table's rows.

    :param connection: not in a transaction.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only these, ``name`` or ``schema.name``.
    :param warn_days: a runway in days that is worth a warning if it is shorter.
    :param error: what went wrong in a hook of this process.
    :param met: how many inserts of this process found no partition, by ``schema.table``.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    view = maintenance.look(connection, schema=schema, tables=tables, sizes=False)
    return health_of_view(view, warn_days=warn_days, error=error, met=met)


def health_of_view(
    view: View,
    *,
    warn_days: float = health.WARN_DAYS,
    error: str | None = None,
    met: Mapping[str, int] | None = None,
    rows: Iterable[Row] | None = None,
) -> Health:
    """Judge what was looked at.

    :param rows: what :func:`judge` has said of it already.
    """
    judged = tuple(row.health for row in (judge([("", view)], warn_days) if rows is None else rows))
    return Health(
        ok=not any(table.current_missing and table.enabled for table in judged),
        tables=judged,
        error=error or view.failure,
        now=view.now,
        last_run=next(iter(view.runs or ()), None),
        no_partition_errors=met,
    )


def partition_state(part: Partition, runway: Runway | None, marks: bool = True) -> list[str]:
    """Say where a partition stands: past, today or ahead; expired, pending, default; by hand.

    :param marks: whether marks were read, so that one without was made by hand.
    """
    state = []
    if part.is_default:
        state.append("default")
    elif part.detach_pending:
        state.append("pending")
    elif runway is not None:
        window = runway.window
        # By the cut-off: to look among ten thousand that are expired takes half a minute in all.
        if part.upper is not None and runway.cutoff is not None and part.upper <= runway.cutoff:
            state.append("expired")
        elif part.upper is not None and part.upper <= window.begin:
            state.append("past")
        elif part.lower is not None and part.lower >= window.end:
            state.append("ahead")
        else:
            state.append("today")
    if marks and not part.is_ours:
        state.append("by hand")
    return state
