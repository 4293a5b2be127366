"""``status``, ``check`` and ``history``: they change nothing, and need to read partition_config alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import Connection

from alembic_partitions import health, maintenance
from alembic_partitions.catalog import Run
from alembic_partitions.health import Level
from alembic_partitions.maintenance import NOW_VARIABLE, View
from alembic_partitions.standing import Found, judge

from .connecting import database_options, visit
from .door import CHECK_CRITICAL, CHECK_OK, CHECK_UNKNOWN, CHECK_WARNING, Call, Probe, busy, main, say
from .shapes import clock_json, health_json, run_json, status_json

if TYPE_CHECKING:  # rich is loaded by whoever draws
    from rich.console import Console
    from rich.table import Table

    from .screens import Paper

#: Columns where the output is no terminal, unless COLUMNS says otherwise.
PIPE_WIDTH = 100

# More than any list of partitions takes.
_ROOM = 10_000

_EXIT = {
    Level.OK: CHECK_OK,
    Level.WARNING: CHECK_WARNING,
    Level.CRITICAL: CHECK_CRITICAL,
    Level.UNKNOWN: CHECK_UNKNOWN,
}
_Look = Callable[[Connection, "Collection[str] | None"], View]


@main.command()
@click.option("--partitions", is_flag=True, help="List each partition, on the clocks of its table's zone.")
@click.option("--rows", is_flag=True, help="Count rows, oldest and newest key; reads whole tables.")
@database_options
@click.pass_obj
def status(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    partitions: bool,
    rows: bool,
) -> None:
    """Show each table's coverage as a line: past, today, ahead, gaps, and what retention takes next.

    Today is in the same column for all tables. Left of it time runs from a table's first partition, right of
    it to its last one, or to the end of the horizon that its policy asks for.

    With --json, a list with an object a table: database, table, enabled, level (OK, WARNING, CRITICAL), state
    (HEALTHY, CLEANUP_NEEDED, DEGRADED, CRITICAL, NO_PARTITIONS), reasons, runway_days (null: unknown, or
    unlimited), unlimited, covered_until, gaps ([from, to]...), partition_count, bytes, estimated_rows,
    stranded (rows in a DEFAULT partition), policy, cutoff, due (names that retention takes next), now,
    rehearsed; with --partitions or --rows also partitions (schema, name, from, to, bytes, estimated_rows,
    analyzed, state; rows, oldest, newest). What could not be read is null.
    """

    def look(side: Connection, some: Collection[str] | None) -> View:
        return maintenance.look(side, schema=schema, tables=some, rows=rows)

    found = _look(call, url, tables, look)
    judged = judge(found, health.WARN_DAYS)
    if as_json:
        click.echo(json.dumps([status_json(row, found, partitions or rows) for row in judged], indent=2))
        return
    if not judged:
        say("No table is managed here.")
        return

    from . import listings, screens

    console, paper = _console()
    _print(console, _preface(found))
    if not (partitions or rows):
        for line in screens.status(judged, paper):
            _print(console, line)
        return
    for number, row in enumerate(judged):
        if number:
            _print(console, "")
        for line in screens.one_table(row, paper):
            _print(console, line)
        if row.view.table.partitions:
            _print_table(console, listings.partitions(row, paper), whole=True)


@main.command(cls=Probe)
@click.option(
    "--warn-days",
    type=click.FloatRange(min=0),
    default=health.WARN_DAYS,
    show_default=True,
    help="Warn when a table's partitions end sooner.",
)
@database_options
@click.pass_obj
def check(
    call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool, warn_days: float
) -> int:
    """Tell how many days are left until inserts fail: exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

    CRITICAL: a table has no partition for now or for tomorrow, or is not what its policy says. WARNING: its
    partitions end within --warn-days (where its policy asks for less than twice that: within half of what it
    asks for); rows are stranded in a DEFAULT partition; a DETACH is stuck half-way; the last run failed. With
    a DEFAULT partition inserts do not fail, so that is a WARNING. UNKNOWN: nothing is managed, or anything
    went wrong with the check itself.

    With --json, an object: level, code, reasons (of all tables together), now, rehearsed, and tables, each
    with database, table, enabled, level, state, reasons, runway_days (null: unknown, or unlimited),
    unlimited, covered_until.
    """

    def look(side: Connection, some: Collection[str] | None) -> View:
        return maintenance.look(side, schema=schema, tables=some, sizes=False)

    found = _look(call, url, tables, look)
    judged = judge(found, warn_days)
    failures = list(dict.fromkeys(view.failure for _, view in found if view.failure))
    levels = [row.health.level for row in judged]
    level = health.worst([*levels, *([Level.WARNING] if failures and levels else [])])
    if as_json:
        told = {
            "level": level.name,
            "code": _EXIT[level],
            "reasons": failures,
            **clock_json(found),
            "tables": [health_json(row) for row in judged],
        }
        click.echo(json.dumps(told, indent=2))
        return _EXIT[level]

    from . import screens

    console, paper = _console()
    _print(console, screens.verdict(judged, level, failures, paper))
    _print(console, _preface(found))
    for line in screens.check(judged, paper):
        _print(console, line)
    return _EXIT[level]


@main.command()
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many runs."
)
@click.option("--failed", is_flag=True, help="Only runs that failed, wholly or in part.")
@database_options
@click.pass_obj
def history(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    limit: int,
    failed: bool,
) -> None:
    """Show past runs, the newest first: those that changed something, or failed; and what people were told.

    With --json, a list with an object a database: database, and runs (null if this role may not read them),
    each with id, started_at, finished_at, action, run_by, application, created, detached, archived, dropped,
    moved, error, details (what was done, by table).
    """

    def look(side: Connection, some: Collection[str] | None) -> View:
        return maintenance.past_runs(
            side, schema=schema, tables=some, limit=limit, failed=failed, alerts=True
        )

    found = _look(call, url, tables, look)
    runs: dict[str, list[Run] | None] = {
        database: _together([view for name, view in found if name == database], limit)
        for database, _ in found
    }
    if as_json:
        told = [
            {"database": database, "runs": None if some is None else list(map(run_json, some))}
            for database, some in runs.items()
        ]
        click.echo(json.dumps(told, indent=2))
        return
    if not any(runs.values()):
        say("No run is known." if None in runs.values() else "No run yet.")
        return

    from . import listings

    console, paper = _console()
    _print(console, _preface(found))
    now = next(view.now for _, view in found if view.now is not None)
    for database, some in runs.items():
        if len(runs) > 1:
            _print(console, f"database {paper.shown(database)}")
        if some:
            _print_table(console, listings.history(some, now, paper))


def _look(call: Call, url: str | None, tables: tuple[str, ...], look: _Look) -> Found:
    with busy("looking"):
        try:
            found = visit(call, url, tables, look)
        except SystemExit as error:  # its exit code is no answer of ours
            raise click.ClickException(f"env.py ended the process with exit code {error.code}") from error
    for line in dict.fromkeys(line for _, view in found for line in view.unknown):
        say(f"unknown: {line}")
    return found


def _together(views: list[View], limit: int) -> list[Run] | None:
    """Return the runs of several looks at one database, each once, the newest first."""
    if any(view.runs is None and view.now is not None for view in views):
        return None
    runs = {run.id: run for view in views for run in view.runs or ()}
    return [runs[number] for number in sorted(runs, reverse=True)][:limit]


def _preface(found: Found) -> str | None:
    """What must be known of all that follows: another day is rehearsed, the server is a standby."""
    views = [view for _, view in found if view.now is not None]
    rehearsed = next((view.now for view in views if view.rehearsed), None)
    told = [f"Rehearsing {rehearsed:%Y-%m-%d %H:%M:%S} UTC ({NOW_VARIABLE})."] if rehearsed else []
    told += ["This server is a standby."] * any(view.in_recovery for view in views)
    return " ".join(told) or None


# -- where it goes -------------------------------------------------------------------------------------


def _console() -> tuple[Console, Paper]:
    from rich.console import Console

    from .screens import Paper

    width = None
    if not sys.stdout.isatty():
        told = os.environ.get("COLUMNS", "")
        width = int(told) if told.isdecimal() and int(told) > 0 else PIPE_WIDTH
    console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)
    return console, Paper(console.width, console.encoding.lower().startswith("utf"))


def _print(console: Console, line: Any) -> None:
    """Print a line as it is, never cut: a terminal wraps it, a file keeps it."""
    if line is not None:
        console.print(line, soft_wrap=True)


def _print_table(console: Console, table: Table, whole: bool = False) -> None:
    """Print a table without the blanks that fill its last column up.

    :param whole: as wide as it is, rather than with names cut in pieces.
    """
    from rich.text import Text

    drawn_on = console.options.update(width=_ROOM) if whole else console.options
    width = console.measure(table, options=drawn_on).maximum
    usual, console.width = console.width, max(console.width, width)
    with console.capture() as drawn:
        console.print(table)
    console.width = usual
    for line in drawn.get().splitlines():
        _print(console, Text.from_ansi(line.rstrip()))
