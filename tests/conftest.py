"""One PostgreSQL server a run, one database a test.

The clock: tests of the package hand `now` over themselves, at an odd hour such as 13:37:11, never midnight;
the session's TimeZone here is America/St_Johns, so that nothing passes by the grace of UTC.
"""

from __future__ import annotations

import operator
import os
import re
import signal
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, make_url

from tests.databases import ALL_DRIVERS, SYNC_DRIVERS, Database, Databases, Roles
from tests.postgres import Server, ServerError, locate

HERE = Path(__file__).parent
WITHOUT_DATABASE = HERE / "unit"

SERVER = pytest.StashKey[Server]()
DATABASES = pytest.StashKey[Databases]()

COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


# The server: started by the process that pytest began in, shared with the workers of `pytest -n`.


def pytest_configure(config: pytest.Config) -> None:
    # A job in a shell's background ignores Ctrl-C, and so would all that the tests start and then interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "long: takes long and depends on no version; tox runs it once")
    config.addinivalue_line(
        "markers",
        "processes: starts processes by the dozen; tox runs few of them but on the newest versions",
    )
    config.addinivalue_line(
        "markers",
        "versions: depends on Alembic and SQLAlchemy more than on PostgreSQL; tox runs it with the oldest and"
        " the newest",
    )
    config.addinivalue_line(
        "markers",
        "ends: differs between releases at their ends, if at all; tox runs it not on those in the middle",
    )
    config.addinivalue_line("markers", 'pg(">= 17"): needs a PostgreSQL server of that major version')
    given: dict[str, Any] = getattr(config, "workerinput", {})
    if given:
        if given["server"]:
            config.stash[DATABASES] = Databases(make_url(given["server"]), given["prefix"])
    elif _wants_database(config):
        _begin(config)


def _wants_database(config: pytest.Config) -> bool:
    if config.option.collectonly:
        return False
    chosen = [
        Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args
    ]
    return not chosen or any(not path.is_relative_to(WITHOUT_DATABASE) for path in chosen)


def _begin(config: pytest.Config) -> None:
    address = os.environ.get("DATABASE_URL")
    try:
        if address:
            databases = Databases.at(address)
        else:
            config.stash[SERVER] = server = Server()
            databases = Databases(server.url)
        config.stash[DATABASES] = databases
        databases.make_template()
        config.pluginmanager.register(Undertaker(databases))
    except Exception as error:
        _end(config)
        pytest.exit(f"The tests have no PostgreSQL: {error}", returncode=3)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    databases = node.config.stash.get(DATABASES, None)
    node.workerinput["server"] = databases and databases.server.render_as_string(hide_password=False)
    node.workerinput["prefix"] = databases and databases.prefix


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _end(config)


def _end(config: pytest.Config) -> None:
    databases = config.stash.get(DATABASES, None)
    server = config.stash.get(SERVER, None)
    if databases is not None:
        if server is None and databases.alive():
            databases.drop_all()
        databases.close()
    if server is not None:
        server.close()


# What the tests ran on, at the head of the report.


def pytest_report_header(config: pytest.Config) -> list[str]:
    databases = config.stash.get(DATABASES, None)
    if databases is None:
        server = "none (unit tests alone)"
    elif config.stash.get(SERVER, None) is None:
        server = f"{databases.describe()} at DATABASE_URL"
    else:
        server = f"{databases.describe()} from {locate()}"
    packages = ("sqlalchemy", "alembic", "psycopg2-binary", "psycopg", "asyncpg", "pytz")
    return [f"PostgreSQL: {server}", "with " + ", ".join(f"{name} {_version(name)}" for name in packages)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


class Undertaker:
    """Ends the run with one line, not a thousand errors, when its server has died."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._databases.alive():
            pytest.exit(f"The PostgreSQL server of this run has died during {report.nodeid}.", returncode=3)


# pg(">= 17")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("pg"):
        wanted = marker.args[0]
        match = re.fullmatch(r"(<|<=|==|>=|>) *(\d+)", wanted)
        if match is None:
            raise pytest.UsageError(f"{item.nodeid}: pg({wanted!r}) is no comparison such as '>= 17'")
        major = _databases(item.config).version // 10000
        if not COMPARISONS[match[1]](major, int(match[2])):
            pytest.skip(f"needs PostgreSQL {wanted}, this server is {major}")


def _databases(config: pytest.Config) -> Databases:
    databases = config.stash.get(DATABASES, None)
    if databases is None:
        pytest.exit("A test below tests/unit asks for a database; it belongs below tests/db.", returncode=3)
    return databases


# Fixtures


@pytest.fixture(scope="session")
def databases(pytestconfig: pytest.Config) -> Databases:
    return _databases(pytestconfig)


@pytest.fixture
def database(databases: Databases) -> Iterator[Database]:
    """An empty database for this test alone."""
    yield from _borrowed(databases)


@pytest.fixture(scope="module")
def module_database(databases: Databases) -> Iterator[Database]:
    """An empty database that the tests of one module share (for hypothesis, and for big data loaded once)."""
    yield from _borrowed(databases)


def _borrowed(databases: Databases) -> Iterator[Database]:
    database = databases.clone()
    yield database
    databases.drop(database.name)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture(params=SYNC_DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ALL_DRIVERS)
def any_driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def roles(databases: Databases, database: Database) -> Roles:
    return Roles(databases, database)


@pytest.fixture
def private_server() -> Iterator[Server]:
    """A server for this test alone: to be killed, restarted, turned into a standby."""
    try:
        server = Server()
    except ServerError as error:
        pytest.skip(f"needs a server of its own: {error}")
    yield server
    server.close()
