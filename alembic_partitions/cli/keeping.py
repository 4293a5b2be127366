"""``plan`` and ``ensure``."""

from __future__ import annotations

import dataclasses
import json

import click

from alembic_partitions import maintenance
from alembic_partitions.talk import shown_log

from .connecting import database_options, visit
from .door import EXIT_OK, Call, busy, main, say


@main.command()
@database_options
@click.pass_obj
def plan(call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> None:
    """Print the exact SQL that `ensure` would run, with the locks it takes and why."""
    with shown_log():
        found = visit(
            call, url, tables, lambda side, some: maintenance.plan(side, schema=schema, tables=some)
        )
    scripts = [
        {"database": database, "table": plan.table, "sql": plan.sql()}
        for database, plans in found
        for plan in plans
    ]
    if as_json:
        click.echo(json.dumps(scripts, indent=2))
        return
    for script in scripts:
        click.echo(script["sql"], nl=False)
    if not any(script["sql"] for script in scripts):
        say(f"{len(scripts)} tables, nothing to do." if scripts else "No table is managed here.")


@main.command()
@database_options
@click.pass_obj
def ensure(call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> int:
    """Make the partitions that are missing, each committed by itself."""
    with shown_log(), busy("making partitions"):
        found = visit(
            call, url, tables, lambda side, some: maintenance.ensure(side, schema=schema, tables=some)
        )
    results = [result for _, report in found for result in report.results]
    if as_json:
        rows = [
            {"database": database, **dataclasses.asdict(result)}
            for database, report in found
            for result in report.results
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        say("\n".join(map(_line, results)) or "No table is managed here.")
    if any(report.in_recovery for _, report in found):
        raise click.ClickException("this server is a standby: nothing can be made on it.")
    failed = [result.table for result in results if result.error or result.current_missing]
    if failed:
        raise click.ClickException(f"{len(failed)} of {len(results)} tables failed: {', '.join(failed)}")
    return EXIT_OK


def _line(result: maintenance.TableResult) -> str:
    state = (
        "current window MISSING"
        if result.current_missing
        else "horizon short"
        if result.horizon_short
        else "ready"
    )
    told = [f"{len(result.created)} made", state, *([result.error] if result.error else []), *result.findings]
    return f"{result.table}: {'; '.join(told)}"
