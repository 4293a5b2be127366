"""What several commands may be told."""

from __future__ import annotations

from typing import get_args

import click

from alembic_partitions.periods import INTERVALS, WEEKDAYS
from alembic_partitions.policy import Epoch

from .door import Command, alembic_options


def policy_options(command: Command) -> Command:
    """Add what a person decides of a policy; its other fields can be changed afterwards."""
    for option in (
        click.option("--premake", type=click.IntRange(min=0), help="Windows ready after the current one."),
        click.option("--retention", help='How long rows are kept, as "90 days" (default: for good).'),
        click.option("--epoch", type=click.Choice(get_args(Epoch)), help="What an integer counts."),
        click.option("--week-start", type=click.Choice(WEEKDAYS), help="The day that a week begins on."),
        click.option("--day-start", help='The time that a day begins at, as "06:00".'),
        click.option("--timezone", help="The zone on whose clocks windows begin."),
        click.option("--every", type=click.IntRange(min=1), help="So many intervals make a window."),
        click.option("--interval", type=click.Choice(INTERVALS), help="The length of a window."),
    ):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """Add what a run of maintenance may be told beside the policies."""
    for option in (
        click.option(
            "--vacuum",
            multiple=True,
            metavar="PARTITION",
            help='Vacuum this partition, or with "closed" those that have just closed; may be repeated.',
        ),
        click.option("--analyze/--no-analyze", default=True, help="Keep statistics of what has just closed."),
        click.option(
            "--archive-to",
            type=click.Path(file_okay=False),
            help="Folder for what on_expiry='archive' exports (env: ALEMBIC_PARTITIONS_ARCHIVE).",
        ),
        click.option(
            "--retention-days",
            type=click.IntRange(min=1),
            help="Keep rows for so many days, whatever the policy of the table says.",
        ),
    ):
        command = option(command)
    return command


def one_table_options(command: Command) -> Command:
    """Add what a command takes that works on one table."""
    for option in (
        click.option(
            "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
        ),
        click.option("--schema", help="Where partition_config is, or is to be made."),
        click.option("--table", required=True, help="The table, [schema.]name."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout."),
        alembic_options,
    ):
        command = option(command)
    return command


def split_name(table: str) -> tuple[str | None, str]:
    """Read ``[schema.]name``."""
    schema, dot, name = table.partition(".")
    return (schema, name) if dot else (None, schema)
