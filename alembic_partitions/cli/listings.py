"""Partitions and past runs as tables. Values in, tables of rich out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from alembic_partitions.catalog import Run
from alembic_partitions.plan import Partition
from alembic_partitions.standing import Row, partition_state
from alembic_partitions.words import UNKNOWN, done, duration, size, utc, when

from .screens import Paper


def partitions(row: Row, paper: Paper) -> Table:
    """List the partitions of one table, on the clocks of its policy."""
    view, runway = row.view, row.runway
    drawn = _plain_table()
    drawn.add_column("PARTITION", overflow="fold")
    drawn.add_column("FROM", no_wrap=True)
    drawn.add_column("TO", no_wrap=True)
    drawn.add_column("SIZE", justify="right", no_wrap=True)
    drawn.add_column("ROWS" if view.rows is not None else "EST. ROWS", justify="right", no_wrap=True)
    if view.rows is not None:
        drawn.add_column("OLDEST", overflow="fold")
        drawn.add_column("NEWEST", overflow="fold")
    drawn.add_column("STATE", overflow="fold")
    for part in row.ordered:
        figures, rows = (view.figures or {}).get(part.oid), (view.rows or {}).get(part.oid)
        state = partition_state(part, runway, marks=view.figures is not None)
        count = rows.count if rows else None if view.rows is not None else figures and figures.rows
        drawn.add_row(
            Text(paper.shown(part.name)),
            "" if part.lower is None else when(view.table.grid, part.lower),
            "" if part.upper is None else when(view.table.grid, part.upper),
            size(figures.bytes if figures else None),
            UNKNOWN if count is None else f"{count:,}",
            *(_ends(row, part) if view.rows is not None else ()),
            Text(", ".join(state), _state_style(state)),
        )
    return drawn


def _ends(row: Row, part: Partition) -> list[str]:
    rows = (row.view.rows or {}).get(part.oid)
    ends = (rows.oldest, rows.newest) if rows is not None else (None, None)
    return ["" if end is None else when(row.view.table.grid, end) for end in ends]


def _state_style(state: Sequence[str]) -> str:
    styles = {"expired": "yellow", "today": "bold green", "ahead": "green", "pending": "bold magenta"}
    return styles.get(state[0], "") if state else ""


def history(runs: Sequence[Run], now: datetime, paper: Paper) -> Table:
    """List past runs, the newest first."""
    drawn = _plain_table()
    drawn.add_column("STARTED (UTC)", no_wrap=True)
    drawn.add_column("AGO", justify="right", no_wrap=True)
    drawn.add_column("RUN", no_wrap=True)
    drawn.add_column("TOOK", justify="right", no_wrap=True)
    drawn.add_column("BY", overflow="fold")
    drawn.add_column("WHAT", overflow="fold")
    for run in runs:
        what = Text(paper.shown(done(run)))
        if run.error:
            what.append("\n" * bool(what.plain) + "\n".join(map(paper.shown, run.error.splitlines())), "red")
        by = run.run_by + (f" ({run.application})" if run.application else "")
        drawn.add_row(
            utc(run.started_at),
            duration(now - run.started_at),
            Text(paper.shown(run.action)),
            duration(run.finished_at - run.started_at),
            Text(paper.shown(by)),
            what,
        )
    return drawn


def _plain_table() -> Table:
    # No box: piped, a line is a line.
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
