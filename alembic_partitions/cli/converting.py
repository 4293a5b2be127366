"""``convert`` and ``unpartition``: a plain table becomes a partitioned one, and plain again."""

from __future__ import annotations

from typing import Any

import click

from alembic_partitions import conversion
from alembic_partitions.maintenance import TableResult
from alembic_partitions.policy import PartitionPolicy
from alembic_partitions.talk import shown_log

from .connecting import visit
from .door import EXIT_OK, Call, busy, main, say
from .options import one_table_options, policy_options, split_name
from .repairing import progressing
from .reporting import tell, tell_scripts


@main.command()
@click.option("--key", help="The partition key: the column that tells the time of a row.")
@policy_options
@click.option("--until", help="Where the new windows begin, as 2026-12-01 (default: in a week or more).")
@click.option(
    "--dry-run", is_flag=True, help="Print every statement with the locks it takes; change nothing."
)
@click.option("--abort", is_flag=True, help="Take back what a conversion that was cut off has made.")
@one_table_options
@click.pass_obj
def convert(
    call: Call,
    /,
    url: str | None,
    schema: str | None,
    table: str,
    as_json: bool,
    key: str | None,
    until: str | None,
    dry_run: bool,
    abort: bool,
    **fields: Any,
) -> int:
    """Partition a plain table while it is read and written; its rows stay where they are.

    The table becomes its own first partition, for everything before --until; windows stand from there on.
    Run it again if it is cut off: it goes on from there. `split` divides the first partition afterwards. In a
    migration it is op.convert_to_partitioned().
    """
    where, name = split_name(table)
    if abort:
        return _abort(call, url, where, name)
    if key is None:
        raise click.UsageError("Missing option '--key'.")
    policy = PartitionPolicy(key, **{field: value for field, value in fields.items() if value is not None})
    wanted: dict[str, Any] = {"schema": where, "config_schema": schema, "until": until, "by_hand": True}
    if dry_run:
        with shown_log():
            plans = visit(
                call, url, (), lambda side, _: conversion.plan_convert(side, name, policy, **wanted)
            )
        scripts = [(database, plan.table, plan.sql()) for database, plan in plans]
        tell_scripts(scripts, as_json, "partitioned already", guarded=True)
        return EXIT_OK
    with shown_log(), busy(f"converting {table}") as told:
        found = visit(
            call, url, (), lambda side, _: conversion.convert(side, name, policy, told=told, **wanted)
        )
    return tell(found, as_json, _told)


def _told(result: TableResult) -> str:
    state = "current window MISSING" if result.current_missing else "partitioned"
    made = f"{len(result.created)} partitions made" + (f"; {result.error}" if result.error else "")
    return "\n".join([f"{result.table}: {state}; {made}", *(f"  note  {told}" for told in result.findings)])


def _abort(call: Call, url: str | None, schema: str | None, table: str) -> int:
    undone = visit(call, url, (), lambda side, _: conversion.abort_conversion(side, table, schema=schema))
    lines = [line for _, some in undone for line in some]
    say("\n".join(lines) if lines else "Nothing of a conversion was left.")
    return EXIT_OK


@main.command()
@click.option(
    "--primary-key",
    help="Columns of the primary key to be, as id,at (default: as it was before it was converted).",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1, max=1_000_000),
    default=10_000,
    show_default=True,
    help="Rows that one transaction copies.",
)
@click.option("--pause", type=click.FloatRange(min=0), default=0.0, help="Seconds to rest after each.")
@click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0.001),
    default=0.04,
    show_default=True,
    help="Seconds that others may have to wait at a time, where rows are copied.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare the copy with its origin.")
@click.option("--drop-old", is_flag=True, help="Drop the partitions once their rows are copied and compared.")
@click.option(
    "--dry-run", is_flag=True, help="Print every statement with the locks it takes; change nothing."
)
@click.option("--abort", is_flag=True, help="Take back what a run that was cut off has made.")
@one_table_options
@click.pass_obj
def unpartition(
    call: Call,
    /,
    url: str | None,
    schema: str | None,
    table: str,
    as_json: bool,
    primary_key: str | None,
    pause: float,
    no_verify: bool,
    dry_run: bool,
    abort: bool,
    **manner: Any,
) -> int:
    """Make a partitioned table a plain one while it is read and written: what undoes `convert`.

    Where one partition holds all rows it takes the table's name. Else the rows are copied into a plain table,
    as much space as they take is needed, and the partitions stay under another name until they are dropped.

    Run it again if it is cut off: it goes on from there. In a migration it is op.unpartition_table().
    """
    where, name = split_name(table)
    if abort:
        undone = visit(
            call,
            url,
            (),
            lambda side, _: conversion.abort_unpartition(side, name, schema=where, config_schema=schema),
        )
        lines = [f"dropped: {line}" for _, some in undone for line in some]
        say("\n".join(lines) if lines else "Nothing of it was left.")
        return EXIT_OK
    columns = None if primary_key is None else [column.strip() for column in primary_key.split(",")]
    wanted: dict[str, Any] = {"schema": where, "config_schema": schema, "primary_key": columns}
    wanted |= {"verify": not no_verify, **manner}
    if dry_run:
        with shown_log():
            plans = visit(call, url, (), lambda side, _: conversion.plan_unpartition(side, name, **wanted))
        scripts = [(database, plan.table, plan.sql()) for database, plan in plans]
        tell_scripts(scripts, as_json, "nothing to undo", guarded=True)
        return EXIT_OK
    with shown_log(), progressing() as progress:
        found = visit(
            call,
            url,
            (),
            lambda side, _: conversion.unpartition(
                side, name, pause=pause, told=say, progress=progress, **wanted
            ),
        )
    return tell(found, as_json, _plain)


def _plain(result: TableResult) -> str:
    copied = [f"{result.moved:,} rows copied"] if result.moved else []
    copied += [result.proof] if result.proof else []
    return "\n".join(["; ".join([f"{result.table}: a plain table", *copied]), *result.findings])
