"""``repair``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from alembic_partitions import maintenance
from alembic_partitions.errors import RepairRangeError
from alembic_partitions.talk import shown_log

from .connecting import database_options, visit
from .door import Call, main, say
from .reporting import refuse, tell, tell_scripts

if TYPE_CHECKING:
    from rich.progress import TaskID


@main.command()
@click.option("--from", "start", help="First date or time to fill from, as 2025-10-01 (default: now).")
@click.option("--to", "stop", help="Last one, included (default: now).")
@click.option("--days", type=click.IntRange(min=0), help="Instead: that many days before and after now.")
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1_000_000),
    default=10_000,
    show_default=True,
    help="Rows that one transaction moves at most.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print the SQL, with the locks it takes and why; change nothing."
)
@database_options
@click.pass_obj
def repair(
    call: Call,
    /,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    **wanted: Any,
) -> int:
    """Fill gaps, move rows that are stranded in a DEFAULT partition to their windows, put partitions right
    that differ from their table, and prove by a test row (rolled back) that inserts find their way.

    A past window with more than --batch stranded rows is gathered beside the table first: its rows can be
    neither seen nor changed through the table until the last transaction. Other windows move in one
    transaction each. The test row fires triggers and takes numbers from sequences.
    """
    try:
        if dry_run:
            return _rehearse(call, url, schema, tables, as_json, wanted)
        return _repair(call, url, schema, tables, as_json, wanted)
    except RepairRangeError as error:
        raise click.UsageError(str(error)) from error


def _rehearse(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    wanted: dict[str, Any],
) -> int:
    with shown_log():
        found = visit(
            call,
            url,
            tables,
            lambda side, some: maintenance.plan_repair(side, schema=schema, tables=some, **wanted),
        )
    plans = [(database, plan) for database, some in found for plan in some]
    if as_json:
        rows = [
            {
                "database": database,
                "table": str(plan.table),
                "sql": plan.sql(),
                "error": plan.error,
                "findings": [str(finding) for finding in plan.findings],
            }
            for database, plan in plans
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        scripts = [(database, str(plan.table), plan.sql()) for database, plan in plans]
        tell_scripts(scripts, as_json, "nothing to repair")
    return refuse([str(plan.table) for _, plan in plans if plan.error], len(plans))


def _repair(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    wanted: dict[str, Any],
) -> int:
    with shown_log(), progressing() as progress:
        found = visit(
            call,
            url,
            tables,
            lambda side, some: maintenance.repair(
                side, schema=schema, tables=some, progress=progress, **wanted
            ),
        )
    return tell(found, as_json, _told)


def _told(result: maintenance.TableResult) -> str:
    done = [f"{len(result.created)} made"]
    done += [f"{result.moved} rows moved"] if result.moved else []
    done += [f"{len(result.mended)} mended"] if result.mended else []
    lines = [f"{result.table}: {', '.join(done)}" + (f"; {result.error}" if result.error else "")]
    lines += [f"  mended  {mended}" for mended in result.mended]
    lines += [f"  proof   {proof}" for proof in (result.proof or "").split("; ") if proof]
    lines += [f"  note    {finding}" for finding in result.findings]
    return "\n".join(lines)


@contextmanager
def progressing() -> Iterator[maintenance.Progress]:
    """Show long work as it goes on: a bar in a terminal, a plain line for each tenth where piped."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("{task.description}", markup=False)
    columns = told, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[tuple[str, str], TaskID] = {}

        def show(table: str, unit: str, done: int, total: int) -> None:
            if (table, unit) not in tasks:
                tasks[table, unit] = bars.add_task(f"{table}, {unit}", total=total)
            bars.update(tasks[table, unit], completed=done, total=total)

        yield show


class _Lines:
    """Long work in plain lines."""

    def __init__(self) -> None:
        self._tenths: dict[tuple[str, str], int] = {}

    def __call__(self, table: str, unit: str, done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        if total >= 10 and tenth > self._tenths.get((table, unit), 0):
            self._tenths[table, unit] = tenth
            say(f"{table}: {done} of {total} {unit}")
