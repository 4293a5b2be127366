"""``plan`` and ``ensure``: the horizon."""

from __future__ import annotations

import click

from alembic_partitions import maintenance
from alembic_partitions.talk import shown_log

from .connecting import database_options, visit
from .door import EXIT_OK, Call, busy, main
from .reporting import tell, tell_scripts


@main.command()
@database_options
@click.pass_obj
def plan(call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> None:
    """Print the exact SQL that `ensure` would run, with the locks it takes and why."""
    _plan(call, url, schema, tables, as_json)


@main.command()
@click.option("--dry-run", is_flag=True, help="Print the SQL, as `plan` does; change nothing.")
@database_options
@click.pass_obj
def ensure(
    call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool, dry_run: bool
) -> int:
    """Make the partitions that are missing, each committed by itself."""
    if dry_run:
        _plan(call, url, schema, tables, as_json)
        return EXIT_OK
    with shown_log(), busy("making partitions"):
        found = visit(
            call,
            url,
            tables,
            lambda side, some: maintenance.ensure(side, schema=schema, tables=some, write_down="always"),
        )
    return tell(found, as_json)


def _plan(call: Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> None:
    with shown_log():
        found = visit(
            call, url, tables, lambda side, some: maintenance.plan(side, schema=schema, tables=some)
        )
    scripts = [(database, item.table, item.sql()) for database, plans in found for item in plans]
    tell_scripts(scripts, as_json, "nothing to do")
