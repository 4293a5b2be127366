"""``split``."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from alembic_partitions import maintenance
from alembic_partitions.talk import shown_log
from alembic_partitions.words import size

from .connecting import database_options, visit
from .door import EXIT_OK, Call, main, say
from .repairing import progressing
from .reporting import tell

_LENGTH = re.compile(r"(?P<count>\d+(?:\.\d+)?) ?(?P<unit>ms|s|min)")
_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0}


class _Length(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read "50ms", "2 s"; return seconds."""
        if isinstance(value, float):
            return value
        match = _LENGTH.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no time such as 50ms or 2s.", param, ctx)
        return float(match["count"]) * _SECONDS[match["unit"]]


@main.command()
@click.option("--partition", help="Which one, where several span more than one window.")
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1_000_000),
    default=10_000,
    show_default=True,
    help="Rows that one transaction copies.",
)
@click.option("--pause", type=_Length(), default=0.0, help="Rest after each, as 50ms.")
@click.option(
    "--lock-timeout",
    type=_Length(),
    default=0.04,
    help="How long others may have to wait at a time for the swap, as 200ms (default: 40ms).",
)
@click.option("--drop-old", is_flag=True, help="Drop what has been split, once it has been compared.")
@click.option("--no-verify", is_flag=True, help="Do not compare the copy before the swap.")
@click.option("--abort", is_flag=True, help="Take back a split that has not come to its swap.")
@click.option("--dry-run", is_flag=True, help="Print the SQL, with the locks it takes; change nothing.")
@database_options
@click.pass_obj
def split(
    call: Call,
    /,
    url: str | None,
    schema: str | None,
    tables: tuple[str, ...],
    as_json: bool,
    abort: bool,
    dry_run: bool,
    no_verify: bool,
    **wanted: Any,
) -> int:
    """Split a partition that spans several windows into these, beside readers and writers: the first one of a
    table that was converted, as a rule.

    Its rows are copied, a batch a transaction, and what changes meanwhile is caught up with; then one short
    transaction swaps the two. A run that is cut off, or killed, is gone on with by the next one. What has
    been split stays as a table of its own, unless --drop-old.
    """
    if len(tables) != 1:
        raise click.UsageError("name one table: --table.")
    if abort and dry_run:
        raise click.UsageError("--abort has no --dry-run.")
    wanted["verify"] = not no_verify
    if dry_run:
        return _rehearse(call, url, schema, tables, as_json, wanted)
    if abort:
        with shown_log():
            found = visit(
                call,
                url,
                tables,
                lambda side, some: maintenance.abort_split(side, table=tables[0], schema=schema),
            )
        return tell(found, as_json, _told)
    with shown_log(), progressing() as progress:

        def run(side: Any, some: Any) -> maintenance.Report:
            planned = maintenance.plan_split(side, table=tables[0], schema=schema, **_planning(wanted))
            if planned.bytes:
                say(f"{planned.table}: needs about {size(planned.bytes)} of disk while it runs")
            return maintenance.split(side, table=tables[0], schema=schema, progress=progress, **wanted)

        found = visit(call, url, tables, run)
    return tell(found, as_json, _told)


def _planning(wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if name != "pause"}


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
            lambda side, some: maintenance.plan_split(
                side, table=tables[0], schema=schema, **_planning(wanted)
            ),
        )
    if as_json:
        told = [
            {"database": database, "table": plan.table, "bytes": plan.bytes, "sql": plan.sql()}
            for database, plan in found
        ]
        click.echo(json.dumps(told, indent=2))
        return EXIT_OK
    for _, plan in found:
        click.echo(plan.sql(), nl=False)
        if plan.bytes:
            say(f"{plan.table}: needs about {size(plan.bytes)} of disk while it runs")
    return EXIT_OK


def _told(result: maintenance.TableResult) -> str:
    done = [f"{len(result.created)} windows"] if result.created else []
    done += [f"{result.moved:,} rows"] if result.moved else []
    done += [result.error] if result.error else []
    lines = [f"{result.table}: {', '.join(done) or 'nothing left to do'}"]
    lines += [f"  proof   {result.proof}"] if result.proof else []
    lines += [f"  note    {finding}" for finding in result.findings]
    return "\n".join(lines)
