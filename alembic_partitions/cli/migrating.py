"""``upgrade``, ``downgrade`` and ``stamp``: Alembic's own, under the lock."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import Connection
from sqlalchemy.exc import ArgumentError

from alembic_partitions import deploy
from alembic_partitions.talk import shown_log

from .connecting import address, place
from .door import PROGRAM, Call, alembic_options, main, say

if TYPE_CHECKING:
    from alembic.config import Config

_url_of_migrations = click.option("--url", help="Where to migrate: env.py finds it as sqlalchemy.url.")
_lock_timeout = click.option(
    "--lock-timeout",
    type=click.FloatRange(min=0),
    help="Seconds to wait for the migration lock (env: ALEMBIC_PARTITIONS_LOCK_TIMEOUT).",
)
_sql = click.option("--sql", is_flag=True, help="Print the SQL; neither lock nor horizon.")
_tag = click.option("--tag", help="Tag for the project's env.py.")
# "-1" is a revision: one step down.
_relative = {"ignore_unknown_options": True}


@main.command(context_settings=_relative)
@click.argument("revision", default="head")
@_sql
@_tag
@_url_of_migrations
@_lock_timeout
@alembic_options
@click.pass_obj
def upgrade(call: Call, /, revision: str, **options: Any) -> None:
    """Migrate to REVISION (head) under the lock, as `alembic upgrade` would; then extend the horizon."""
    _migrate(call, "upgrade", revision, **options)


@main.command(context_settings=_relative)
@click.argument("revision")
@_sql
@_tag
@_url_of_migrations
@_lock_timeout
@alembic_options
@click.pass_obj
def downgrade(call: Call, /, revision: str, **options: Any) -> None:
    """Revert to REVISION under the lock, as `alembic downgrade` would."""
    _migrate(call, "downgrade", revision, **options)


@main.command()
@click.argument("revisions", nargs=-1, required=True)
@_sql
@_tag
@click.option("--purge", is_flag=True, help="Empty the version table first.")
@_url_of_migrations
@_lock_timeout
@alembic_options
@click.pass_obj
def stamp(call: Call, /, revisions: tuple[str, ...], purge: bool, **options: Any) -> None:
    """Set the version table to REVISIONS under the lock, as `alembic stamp` would."""
    _migrate(call, "stamp", *(["--purge"] if purge else []), *revisions, **options)


def _migrate(
    call: Call,
    command: str,
    *arguments: str,
    sql: bool,
    tag: str | None,
    url: str | None,
    lock_timeout: float | None,
) -> None:
    switches = ["--sql"] if sql else []
    switches += [f"--tag={tag}"] if tag else []
    wanted = address(call, url) if url else None
    places = set()

    def prepare(config: Config) -> None:
        call.learn(config)
        if wanted is not None:
            address = wanted.render_as_string(hide_password=False)
            config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))

    def inspect(connection: Connection) -> None:
        found = connection.engine.url
        places.add(place(found))
        if wanted is not None and place(wanted) != place(found):
            raise click.ClickException(f"--url was not used: the project's env.py connects to {found!r}.")

    if wanted is not None:  # where env.py reads that instead
        os.environ["DATABASE_URL"] = wanted.render_as_string(hide_password=False)
    with shown_log(), deploy.guarding(lock_timeout=lock_timeout, prepare=prepare, inspect=inspect):
        call.alembic(command, *switches, *arguments)
    with suppress(ArgumentError, ValueError):  # one that cannot be read has not been followed either way
        told = os.environ.get("DATABASE_URL")
        if told and places and place(address(call, told)) not in places:
            say(f"{PROGRAM}: DATABASE_URL names another database than env.py, which was followed.")
