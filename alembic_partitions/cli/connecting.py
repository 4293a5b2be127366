"""From what the user said to a connection: a URL, or wherever env.py connects."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

import click
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url

from alembic_partitions import deploy
from alembic_partitions.drivers import connect_arguments
from alembic_partitions.errors import NotManagedError
from alembic_partitions.sessions import side_connection

from .door import Call, Command, alembic_options

# SQLAlchemy 2.1 reads a plain "postgresql://" as psycopg 3, 2.0 as psycopg2: we take what is installed.
_DRIVERS = ("psycopg", "psycopg2", "asyncpg")

# Seconds that a host may take to answer, unless the URL says.
_CONNECT_TIMEOUT = 10.0

T = TypeVar("T")


def database_options(command: Command) -> Command:
    """Add what every command takes that looks at a database: where it is, which tables, and ``--json``."""
    for option in (
        click.option(
            "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
        ),
        click.option("--schema", help="Where partition_config is, if there are several."),
        click.option(
            "--table", "tables", multiple=True, help="Only this table, [schema.]name; may be repeated."
        ),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout."),
        alembic_options,
    ):
        command = option(command)
    return command


def visit(
    call: Call,
    url: str | None,
    tables: Collection[str],
    work: Callable[[Connection, Collection[str] | None], T],
) -> list[tuple[str, T]]:
    """Call ``work`` with a connection of its own to ``url``, or to each database that env.py opens.

    Of several databases each need not know every one of ``tables``.

    :return: what it returned, with the name of the database.
    """
    done: list[tuple[str, T]] = []
    turns: list[list[str] | None] = [[table] for table in tables]
    unknown = set(tables)

    def beside(connection: Connection) -> None:
        if connection.dialect.name != "postgresql":
            raise click.ClickException(f"{connection.dialect.name} is not PostgreSQL.")
        database = connection.engine.url.database or ""
        with side_connection(connection.engine) as side:
            for some in turns or [None]:
                with suppress(NotManagedError):
                    done.append((database, work(side, some)))
                    unknown.difference_update(some or ())

    _connect(call, url, beside)
    if unknown:
        raise NotManagedError(table=", ".join(sorted(unknown)))
    return done


def _connect(call: Call, url: str | None, beside: Callable[[Connection], None]) -> None:
    if url is None:
        with deploy.visiting(beside, prepare=call.learn):
            call.alembic("current")
        return
    engine = _engine(address(call, url))
    if not engine.dialect.is_async:
        with engine.connect() as connection:
            beside(connection)
        return

    import asyncio

    from sqlalchemy.ext.asyncio import AsyncEngine

    async def open_async() -> None:
        async with AsyncEngine(engine).connect() as connection:
            await connection.run_sync(beside)

    asyncio.run(open_async())


def place(url: URL) -> tuple[str | None, int, str | None]:
    return url.host, url.port or 5432, url.database


def engine_at(call: Call, url: str) -> Engine:
    """Return an engine for a URL, without asking whether the database is there."""
    engine = _engine(address(call, url))
    if engine.dialect.name != "postgresql":
        raise click.ClickException(f"{engine.dialect.name} is not PostgreSQL.")
    return engine


def _engine(url: URL) -> Engine:
    dialect = url.get_dialect()
    arguments = {}
    if dialect.name == "postgresql":  # what else there is, is told in our own words
        arguments = connect_arguments(dialect.driver, url.query, _CONNECT_TIMEOUT)
    if not dialect.is_async:
        return create_engine(url, poolclass=NullPool, connect_args=arguments)
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url, poolclass=NullPool, connect_args=arguments).sync_engine


def address(call: Call, url: str) -> URL:
    """Read a URL as people write it: "postgres://" too, and without a driver for one that is installed."""
    call.urls.append(url)
    made = make_url(url)
    if made.drivername not in {"postgres", "postgresql"}:
        return made
    for driver in _DRIVERS:
        if importlib.util.find_spec(driver):
            return made.set(drivername=f"postgresql+{driver}")
    raise click.ClickException(f"no PostgreSQL driver is installed: pip install {_DRIVERS[1]}-binary")
