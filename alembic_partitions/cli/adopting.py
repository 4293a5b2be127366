"""``adopt``: a table that is partitioned already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from sqlalchemy import Connection

from alembic_partitions import adoption, maintenance
from alembic_partitions.adoption import Adoptable
from alembic_partitions.declare import Door
from alembic_partitions.errors import AdoptionRefused, NotManagedError
from alembic_partitions.executor import Batch
from alembic_partitions.maintenance import TablePlan
from alembic_partitions.talk import shown_log

from .connecting import visit
from .door import EXIT_OK, Call, alembic_options, main, say
from .fitting import NOTHING_FITS, SAY_WHICH, as_json, as_text
from .options import policy_options
from .reporting import line, refuse


@main.command()
@click.option("--table", required=True, help="The table, [schema.]name.")
@click.option("--apply", "doing", is_flag=True, help="Adopt it, with the policy that was proposed.")
@click.option("--mark", is_flag=True, help="Mark the partitions on the grid as ours: retention takes these.")
@click.option("--beside-partman", is_flag=True, help="Adopt it even while pg_partman maintains it.")
@click.option("--forget", is_flag=True, help="Un-adopt it: forget its policy; nothing is dropped.")
@click.option("--dry-run", is_flag=True, help="Print the SQL; change nothing.")
@policy_options
@click.option(
    "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
)
@click.option("--schema", help="Where partition_config is, or is to be.")
@click.option("--json", "in_json", is_flag=True, help="Machine-readable, to stdout.")
@alembic_options
@click.pass_obj
def adopt(
    call: Call,
    /,
    table: str,
    url: str | None,
    schema: str | None,
    doing: bool,
    mark: bool,
    beside_partman: bool,
    forget: bool,
    dry_run: bool,
    in_json: bool,
    **fields: Any,
) -> int:
    """Take over a table that is partitioned already, by hand or by another tool.

    Without --apply: read its partitions, and print the policy that fits them best as the line of a migration,
    with what does not fit. With it: write that policy down, and make the windows that are missing, from the
    end of what is covered on. Partitions that exist stay as they are; without --mark retention takes none.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if forget:
        if doing or mark or given:
            raise click.UsageError("--forget goes with --dry-run alone.")
        return _forget(call, url, schema, table, dry_run)
    if mark and not (doing or dry_run):
        raise click.UsageError("--mark goes with --apply.")

    order = _Order(table, given, schema, mark, beside_partman)
    if dry_run:
        _print(_each(call, url, table, order.script), in_json)
        return EXIT_OK
    if doing:
        with shown_log():
            taken = _each(call, url, table, order.take)
        return _told(taken, in_json)
    looked = _each(call, url, table, order.look)
    if in_json:
        click.echo(json.dumps([as_json(database, found) for database, found in looked], indent=2))
    else:
        click.echo("\n".join(as_text(found, table, order.decided) for _, found in looked), nl=False)
    return EXIT_OK


@dataclass(frozen=True)
class _Order:
    """What is to be adopted, and how."""

    table: str
    given: Mapping[str, Any]
    schema: str | None
    mark: bool
    beside_partman: bool

    @property
    def decided(self) -> bool:
        """Whether a person has said what windows are meant."""
        return bool(self.given.keys() & {"interval", "every", "timezone", "day_start", "week_start"})

    def look(self, connection: Connection) -> Adoptable | None:
        return adoption.look(connection, self.table, self.given)

    def script(self, connection: Connection) -> str | None:
        found = self.look(connection)
        if found is None:
            return None
        adopting = "".join(batch.sql() for batch in self._batches(connection, found))
        return adopting + TablePlan(str(found.table), found.plan, found.user, found.now).sql()

    def take(self, connection: Connection) -> tuple[Adoptable, maintenance.Report] | None:
        found = self.look(connection)
        if found is None:
            return None
        name = str(found.table)
        adoption.apply(connection, self._batches(connection, found), name)
        report = maintenance.ensure(connection, schema=self.schema, tables=[name], write_down="always")
        return found, report

    def _batches(self, connection: Connection, found: Adoptable) -> list[Batch]:
        there, policy = found.table, found.proposal.policy
        if not (found.fits or self.decided):
            raise AdoptionRefused(table=there, problem=NOTHING_FITS, remedy=SAY_WHICH.capitalize())

        def work(door: Door) -> None:
            adoption.adopt(
                door,
                there.schema,
                there.name,
                policy,
                mark=self.mark,
                beside_partman=self.beside_partman,
                by_hand=True,
            )

        return adoption.batches(connection, self.schema, work)


def _told(taken: Sequence[tuple[str, tuple[Adoptable, maintenance.Report]]], in_json: bool) -> int:
    if in_json:
        click.echo(json.dumps([as_json(database, found) for database, (found, _) in taken], indent=2))
    results = [result for _, (_, report) in taken for result in report.results]
    for _, (found, _) in taken:
        say(f"{found.table}: adopted, {found.proposal.policy!r}")
    for result in results:
        say(line(result))
    return refuse([r.table for r in results if r.error or r.current_missing], len(results))


def _forget(call: Call, url: str | None, schema: str | None, table: str, dry_run: bool) -> int:
    def work(connection: Connection) -> list[Batch] | None:
        place = adoption.managed_place(connection, table)
        if place is None:
            return None
        found = adoption.batches(connection, schema, lambda door: adoption.unadopt(door, *place))
        if not dry_run:
            adoption.apply(connection, found, table)
        return found

    try:
        done = _each(call, url, table, work)
    except AdoptionRefused:
        raise NotManagedError(table=table) from None
    if dry_run:
        _print([(database, "".join(b.sql() for b in found)) for database, found in done], False)
    else:
        say(f"{table}: forgotten; the table and its partitions stay.")
    return EXIT_OK


def _each(
    call: Call, url: str | None, table: str, work: Callable[[Connection], Any]
) -> list[tuple[str, Any]]:
    """Call ``work`` on each database; of several, each need not have the table."""
    found = visit(call, url, (), lambda side, _: work(side))
    done = [(database, result) for database, result in found if result is not None]
    if not done:
        raise AdoptionRefused(
            table=table, problem="there is no such table", remedy="Correct --table, or name its schema there."
        )
    return done


def _print(found: Sequence[tuple[str, str]], in_json: bool) -> None:
    if in_json:
        click.echo(json.dumps([{"database": database, "sql": sql} for database, sql in found], indent=2))
        return
    for _, sql in found:
        click.echo(sql, nl=False)
