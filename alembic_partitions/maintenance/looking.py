"""Look at the managed tables without changing anything: what `status`, `check` and `history` show."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog
from alembic_partitions.drivers import reason
from alembic_partitions.plan import ManagedTable, Partition, Plan, cutoff, is_off_grid, plan_horizon

from .ensuring import snapshot_of
from .settings import NOW_VARIABLE, clock

T = TypeVar("T")

# A failure that no later run of its kind has made good is worth a warning this long.
_FAILURE_COUNTS = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class TableView:
    """One table as it stands; what could not be read is ``None``."""

    #: With the marks of its partitions, where these could be read.
    table: ManagedTable
    plan: Plan
    figures: Mapping[int, catalog.Figures] | None = None
    stranded: bool | None = None
    #: Its rows by partition, where they were asked for; empty where they could not be counted.
    rows: Mapping[int, catalog.Rows] | None = None
    #: What its last run failed over.
    failure: str | None = None
    #: Tables that rows of a drain are hidden in, which has not come to its end.
    gathered: tuple[str, ...] = ()

    @property
    def bytes(self) -> int | None:
        """Return the size of all partitions."""
        sizes = [figures.bytes for figures in (self.figures or {}).values()]
        known = [size for size in sizes if size is not None]
        return sum(known) if self.figures is not None and len(known) == len(sizes) else None

    @property
    def estimated_rows(self) -> int | None:
        """Return the rows of all partitions, as ANALYZE has counted them."""
        counts = [figures.rows for figures in (self.figures or {}).values()]
        known = [count for count in counts if count is not None]
        return sum(known) if self.figures is not None and len(known) == len(counts) else None


@dataclass(frozen=True, slots=True)
class View:
    """All managed tables as they stand; without any where ``now`` is ``None``."""

    now: datetime | None = None
    #: Whether an operator rehearses another day.
    rehearsed: bool = False
    in_recovery: bool = False
    tables: tuple[TableView, ...] = ()
    #: The newest run first; ``None`` where they could not be read.
    runs: tuple[catalog.Run, ...] | None = None
    #: When the last run of each kind that went well ended; ``None`` where they could not be read.
    successes: Mapping[str, datetime] | None = None
    #: What the last run failed over and no table's name stands at.
    failure: str | None = None
    #: What could not be read, and why.
    unknown: tuple[str, ...] = ()


@dataclass(slots=True)
class _Gaps:
    """What could not be read."""

    told: list[str] = field(default_factory=list)

    def read(self, connection: Connection, what: str, read: Callable[[], T]) -> T | None:
        """Read in a transaction of its own, so that nobody waits for us; what fails is unknown."""
        try:
            with connection.begin():
                catalog.only_reading(connection)
                return read()
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self.told.append(f"{what}: {reason(error)}")
            return None


def look(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    sizes: bool = True,
    rows: bool = False,
) -> View:
    """Look at the managed tables; nothing that this role may not read is a failure.

    :param connection: not in a transaction.
    :param tables: only these, ``name`` or ``schema.name``.
    :param sizes: read sizes, estimates and marks of all partitions; health needs none of them.
    :param rows: count each partition's rows, which reads them all.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return View()
    now, unknown = clock(snapshot.now), _Gaps()
    managed = snapshot.tables
    if any(is_off_grid(finding) for table in managed for finding in plan_horizon(table, now).findings):
        known = unknown.read(connection, "splits", lambda: catalog.with_splits(connection, managed))
        managed = tuple(known or managed)
    figures = unknown.read(
        connection,
        "sizes and rows" if sizes else "DEFAULT partitions",
        lambda: catalog.partition_figures(connection, managed, defaults=not sizes),
    )
    defaults = [p for t in managed for p in t.partitions if p.is_default]
    readable = [p for p in defaults if (figures or {}).get(p.oid, _NOTHING).default_is == "readable"]
    holding = unknown.read(
        connection, "rows in DEFAULT partitions", lambda: catalog.holding_rows(connection, readable)
    )
    runs, successes = unknown.read(
        connection,
        "past runs",
        lambda: catalog.last_runs(connection, snapshot.config_schema),
    ) or (None, None)
    gathered = unknown.read(
        connection,
        "rows of a drain that was cut off",
        lambda: {
            str(t): tuple(f"{s.schema}.{s.name}" for s in catalog.read_stagings(connection, t))
            for t in managed
            if t.has_default
        },
    )
    if not sizes:  # what retention takes is told by the marks of what has expired, which are few
        expired = [p.oid for t in managed for p in _expired(t, now)]
        marks = unknown.read(connection, "marks", lambda: catalog.partition_marks(connection, expired))
        managed = tuple(_marked(table, marks or {}) for table in managed)
    views = [
        dataclasses.replace(
            _view(table, now, figures, holding, sizes), gathered=(gathered or {}).get(str(table), ())
        )
        for table in managed
    ]
    if rows:
        views = [_counted(connection, view, unknown) for view in views]
    return _with_failures(
        View(
            now=now,
            rehearsed=bool(os.environ.get(NOW_VARIABLE)),
            in_recovery=snapshot.in_recovery,
            tables=tuple(views),
            runs=None if runs is None else tuple(runs),
            successes=successes,
            unknown=tuple(unknown.told),
        ),
        alone=tables is not None,
    )


def past_runs(
    connection: Connection,
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
    limit: int = 20,
    failed: bool = False,
    alerts: bool = False,
) -> View:
    """Look at past runs only, the newest first.

    :param failed: only those that failed, wholly or in part.
    :param alerts: and what people were told of.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return View()
    names = [str(table) for table in snapshot.tables] if tables is not None else None
    unknown = _Gaps()
    runs = unknown.read(
        connection,
        "past runs",
        lambda: catalog.recent_runs(
            connection, snapshot.config_schema, limit, failed=failed, alerts=alerts, tables=names
        ),
    )
    return View(
        clock(snapshot.now),
        bool(os.environ.get(NOW_VARIABLE)),
        snapshot.in_recovery,
        runs=None if runs is None else tuple(runs),
        unknown=tuple(unknown.told),
    )


_NOTHING = catalog.Figures()


def _expired(table: ManagedTable, now: datetime) -> Sequence[Partition]:
    if table.problem is not None or table.policy is None:
        return ()
    oldest = cutoff(table.policy, table.grid, now)
    if oldest is None:
        return ()
    return [p for p in table.partitions if not p.is_default and p.upper is not None and p.upper <= oldest]


def _marked(table: ManagedTable, marks: Mapping[int, str | None]) -> ManagedTable:
    parts = (dataclasses.replace(p, mark=marks.get(p.oid, p.mark)) for p in table.partitions)
    return dataclasses.replace(table, partitions=tuple(parts))


def _view(
    table: ManagedTable,
    now: datetime,
    figures: Mapping[int, catalog.Figures] | None,
    holding: Collection[int] | None,
    sizes: bool,
) -> TableView:
    mine = None
    stranded: bool | None = False
    if figures is not None and sizes:
        mine = {p.oid: figures[p.oid] for p in table.partitions if p.oid in figures}
        table = _marked(table, {p.oid: figures.get(p.oid, _NOTHING).mark or "" for p in table.partitions})
    for part in table.partitions:
        if part.is_default:
            known = (figures or {}).get(part.oid, _NOTHING).default_is
            told = {"empty": False, "readable": part.oid in (holding or ())}
            stranded = None if known == "readable" and holding is None else told.get(known or "")
    return TableView(table, plan_horizon(table, now), mine, stranded)


def _counted(connection: Connection, view: TableView, unknown: _Gaps) -> TableView:
    table = view.table
    if table.problem is not None:
        return dataclasses.replace(view, rows={})
    rows = unknown.read(connection, f"rows of {table}", lambda: catalog.counted_rows(connection, table))
    return dataclasses.replace(view, rows=rows or {})


def _with_failures(view: View, alone: bool) -> View:
    """Say of each table what its last run failed over, and of all what no table's name stands at.

    :param alone: these are not all tables, so lines of others are none of our business.
    """
    lines = [
        (run, line)
        for run in view.runs or ()
        if view.now is not None and run.error and view.now - run.started_at < _FAILURE_COUNTS
        for line in run.error.splitlines()
    ]
    tables, left = [], list(lines)
    for item in view.tables:
        begin = f"{item.table}: "
        mine = [(run, line) for run, line in lines if line.startswith(begin)]
        left = [pair for pair in left if pair not in mine]
        # A run with nothing to do is not written down: what is in place by now was made good.
        still = [
            f"the last {run.action} failed: {line.removeprefix(begin)}"
            for run, line in mine
            if run.action != "ensure" or item.plan.steps or item.plan.findings
        ]
        tables.append(dataclasses.replace(item, failure=_joined(still)))
    return dataclasses.replace(
        view,
        tables=tuple(tables),
        failure=None if alone else _joined([f"the last {run.action} failed: {line}" for run, line in left]),
    )


def _joined(lines: Sequence[str]) -> str | None:
    return "; ".join(lines) or None
