"""``maintain`` and ``restore``: the way out, and back."""

from __future__ import annotations

import click

from alembic_partitions import maintenance
from alembic_partitions.maintenance import Orders
from alembic_partitions.talk import shown_log

from .connecting import database_options, visit
from .door import EXIT_OK, Call, busy, main, say
from .options import run_options
from .reporting import tell, tell_scripts


@main.command()
@run_options
@click.option(
    "--trust-clock", is_flag=True, help="Remove things though the last run was long ago: the clock is right."
)
@click.option("--dry-run", is_flag=True, help="Print the SQL; change nothing.")
@database_options
@click.pass_obj
def maintain(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    retention_days: int | None,
    archive_to: str | None,
    analyze: bool,
    vacuum: tuple[str, ...],
    trust_clock: bool,
    dry_run: bool,
) -> int:
    """Bring tables to their horizon, remove what their retention lets go, and keep their statistics.

    An expired partition is detached; with on_expiry='drop' it is dropped once its grace has passed. `restore`
    brings it back until then. Exit code 1: a table failed, the others were done.
    """
    retention = None if retention_days is None else f"{retention_days} days"
    orders = Orders(retention, archive_to, analyze, vacuum, trust_clock)
    if dry_run:
        with shown_log():
            scripts = visit(
                call,
                url,
                tables,
                lambda side, some: maintenance.plan_maintain(side, schema=schema, tables=some, orders=orders),
            )
        flat = [(database, table, sql) for database, told in scripts for table, sql in told]
        tell_scripts(flat, as_json, "nothing to do", guarded=True)
        return EXIT_OK
    with shown_log(), busy("maintaining partitions") as progress:
        found = visit(
            call,
            url,
            tables,
            lambda side, some: maintenance.maintain(
                side, schema=schema, tables=some, orders=orders, progress=progress
            ),
        )
    return tell(found, as_json)


@main.command()
@click.argument("partitions", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that was detached and is still there.")
@click.option("--dry-run", is_flag=True, help="Print the SQL; change nothing.")
@database_options
@click.pass_obj
def restore(
    call: Call,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    partitions: tuple[str, ...],
    everything: bool,
    dry_run: bool,
) -> int:
    """Attach PARTITIONS again that were detached or moved to an archive schema.

    Each by the name that it has now or had as a partition. Retention leaves them alone for another grace; to
    keep them longer raise the retention of their table.
    """
    if not (partitions or everything or dry_run):
        raise click.UsageError("name the partitions, or say --all.")
    if partitions and everything:
        raise click.UsageError("name the partitions or say --all, not both.")
    wanted = tables or None
    if dry_run:
        with shown_log():
            scripts = visit(
                call,
                url,
                (),
                lambda side, _: maintenance.plan_restoring(side, partitions, schema=schema, tables=wanted),
            )
        flat = [(database, table, sql) for database, told in scripts for table, sql in told]
        if not flat and not as_json:
            say("Nothing was detached.")
            return EXIT_OK
        tell_scripts(flat, as_json, "nothing to restore")
        return EXIT_OK
    with shown_log(), busy("restoring partitions"):
        found = visit(
            call,
            url,
            (),
            lambda side, _: maintenance.restore(side, partitions, schema=schema, tables=wanted),
        )
    return tell(found, as_json, nothing="Nothing was detached.")
