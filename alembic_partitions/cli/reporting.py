"""How a run is told: a line a table, or JSON; and the exit code that follows from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

import click

from alembic_partitions.maintenance import Report, TableResult

from .door import EXIT_OK, say


def line(result: TableResult) -> str:
    """Return how a run went for one table, in one line."""
    state = (
        "current window MISSING"
        if result.current_missing
        else "horizon short"
        if result.horizon_short
        else "ready"
    )
    counts = {
        "made": len(result.created),
        "detached": len(result.detached),
        "archived": len(result.archived),
        "dropped": len(result.dropped),
        "restored": len(result.restored),
        "rows moved": result.moved,
        "analyzed": len(result.tended),
    }
    told = [f"{count:,} {what}" for what, count in counts.items() if count or what == "made"]
    told += [*result.mended, state, *([result.proof] if result.proof else [])]
    told += [result.error] if result.error else []
    return f"{result.table}: {'; '.join([*told, *result.findings])}"


def tell(
    found: Sequence[tuple[str, Report]],
    as_json: bool,
    line: Callable[[TableResult], str] = line,
    nothing: str = "No table is managed here.",
) -> int:
    """Tell how runs went, by database; return the exit code.

    :param line: what is said of one table.
    :param nothing: what is said where there is no result.
    :raises click.ClickException: some table failed, or nothing could be changed at all.
    """
    results = [result for _, report in found for result in report.results]
    if as_json:
        rows = [
            {"database": database, **dataclasses.asdict(result)}
            for database, report in found
            for result in report.results
        ]
        click.echo(json.dumps(rows, indent=2))
    elif results:
        say("\n".join(map(line, results)))
    standby = any(report.in_recovery for _, report in found)
    if not (results or as_json or standby):
        say(nothing)
    if standby:
        raise click.ClickException("this server is a standby: nothing can be made on it.")
    return refuse(
        [result.table for result in results if result.error or result.current_missing], len(results)
    )


def refuse(failed: Sequence[str], tables: int) -> int:
    """Return the exit code of so many tables, or fail if some did."""
    if failed:
        raise click.ClickException(f"{len(failed)} of {tables} tables failed: {', '.join(failed)}")
    return EXIT_OK


def tell_scripts(
    found: Sequence[tuple[str, str, str]], as_json: bool, nothing: str, guarded: bool = False
) -> None:
    """Print what would be sent, by database and table: SQL to stdout.

    :param guarded: have psql stop at the first error.
    """
    if as_json:
        scripts = [{"database": database, "table": table, "sql": sql} for database, table, sql in found]
        click.echo(json.dumps(scripts, indent=2))
        return
    if guarded and any(sql for _, _, sql in found):
        # Of statements that stand in no transaction each relies on the check before it.
        click.echo("\\set ON_ERROR_STOP on")
    for _, _, sql in found:
        click.echo(sql, nl=False)
    if not any(sql for _, _, sql in found):
        tables = f"{len(found)} table{'s' * (len(found) != 1)}"
        say(f"{tables}, {nothing}." if found else "No table is managed here.")
