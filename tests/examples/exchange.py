"""The stream recorder's database, roles and processes, for the tests of examples/ladder_levels."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, NullPool, create_engine

from tests.databases import Database, Databases, Roles
from tests.postgres import locate
from tests.tables import rows, run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from ladder_levels.feed import Message  # noqa: E402

HERE = EXAMPLES / "ladder_levels"
TABLE = "stream_ingest.ladder_levels"
#: Half a minute before a midnight, on which nothing but the tests' own clock goes by.
EVENING = datetime(2026, 11, 25, 23, 59, 30, tzinfo=timezone.utc)


def names(first: int, last: int, today: datetime = EVENING) -> list[str]:
    """The partitions of the days from ``first`` to ``last`` after today, both included."""
    days = (today + timedelta(days=day) for day in range(first, last + 1))
    return [f"{TABLE}_{day:%Y_%m_%d}" for day in days]


@dataclass(frozen=True)
class Ended:
    """What a process said until it ended."""

    out: str
    err: str

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.splitlines()]

    def events(self, logger: str) -> list[str]:
        """The events of one logger, in order."""
        return [line["event"] for line in self.log if line["logger"] == logger]


def ended(process: subprocess.Popen[str], code: int = 0, stdin: str | None = None) -> Ended:
    """Wait for the end of a process, and see that it is the right one."""
    out, err = process.communicate(stdin, timeout=60)
    assert process.returncode == code, f"{process.returncode}: {out}\n{err}"
    return Ended(out, err)


@dataclass(frozen=True)
class Exchange:
    """A database, and what runs beside it; the environment names its roles."""

    engine: Engine
    url: URL
    environment: dict[str, str]

    def role(self, name: str) -> str:
        return self.environment[name]

    def connect(self, name: str) -> Engine:
        """Return an engine for the role that a variable names."""
        return create_engine(self.url.set(username=self.role(name)), poolclass=NullPool)

    def start(self, *words: str, **pipes: Any) -> subprocess.Popen[str]:
        """Start a command in this environment, or in that of ``env``."""
        environment = pipes.pop("env", {})
        process: subprocess.Popen[str] = subprocess.Popen(
            words, cwd=HERE, env=self.environment | environment, text=True, **pipes
        )
        return process

    def run(self, *words: str, code: int = 0, stdin: str = "", **environment: str) -> Ended:
        """Run a command, and see how it ends."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return ended(self.start(*words, env=environment, **pipes), code, stdin)

    def python(self, module: str, *words: str, **options: Any) -> Ended:
        """Run one of the example's own modules."""
        return self.run(sys.executable, "-m", f"ladder_levels.{module}", *words, **options)

    def psql(self, script: str, code: int = 0, **environment: str) -> str:
        environment = self.environment | environment
        url = environment["DATABASE_URL"].replace("postgresql+psycopg2", "postgresql")
        program = shutil.which("psql", path=locate())
        assert program is not None
        done = self.run(program, "-X", url, "-f", script, code=code, **environment)
        return done.out + done.err

    def partitions(self) -> list[str]:
        return [name for (name,) in rows(self.engine, PARTITIONS)]

    def owners(self) -> set[str]:
        """The owners of the table and its partitions."""
        return {
            owner
            for (owner,) in rows(
                self.engine,
                "SELECT pg_get_userbyid(relowner) FROM pg_partition_tree(:name) JOIN pg_class ON oid = relid",
                name=TABLE,
            )
        }


PARTITIONS = f"SELECT relid::regclass::text FROM pg_partition_tree('{TABLE}') WHERE isleaf ORDER BY 1"


def alembic() -> Config:
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config


def prepare(databases: Databases, database: Database, patch: pytest.MonkeyPatch) -> Exchange:
    """Return an empty database that belongs to whoever migrates, who is no superuser."""
    owner = str(Roles(databases, database).create("admin", "CREATEROLE").username)
    engine, url = create_engine(database.url, poolclass=NullPool), database.url
    run(engine, f"ALTER DATABASE {database.name} OWNER TO {owner}")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(scratch.SETTINGS)}
    given = {
        "DATABASE_URL": url.set(username=owner).render_as_string(hide_password=False),
        "POSTGRES_HOST": str(url.host),
        "POSTGRES_PORT": str(url.port),
        "POSTGRES_DB": str(url.database),
        "POSTGRES_USER": f"{database.name}_Stream writer",
        "POSTGRES_PASSWORD": "it's his",
        "POSTGRES_PARTITION_USER": f"{database.name}_partitions",
        "POSTGRES_PARTITION_PASSWORD": "it's ours",
        "ALEMBIC_PARTITIONS_NOW": EVENING.isoformat(),
        "ALEMBIC_PARTITIONS_TOKEN": "a-token-of-the-tests",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path]),
    }
    for name, value in given.items():
        patch.setenv(name, value)
    return Exchange(engine, url, inherited | given)


def migrate(exchange: Exchange) -> Exchange:
    """Make the roles, the table and the grants."""
    exchange.psql("roles.sql")
    command.upgrade(alembic(), "head")
    exchange.psql("grants.sql")
    return exchange


def messages(stream: Iterable[Message]) -> str:
    return "".join(f"{json.dumps(message)}\n" for message in stream)


@dataclass(frozen=True)
class Served:
    exchange: Exchange
    process: subprocess.Popen[str]
    log: Path

    def await_event(self, pattern: str) -> re.Match[str]:
        """Wait until the log tells of something."""
        found: list[re.Match[str]] = []

        def told() -> bool:
            lines = (line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n"))
            found[:] = filter(None, (re.match(pattern, json.loads(line)["event"]) for line in lines))
            return bool(found)

        self.await_that(told)
        return found[0]

    def await_that(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened, for as long as the process lives."""
        for _ in range(600):
            if happened():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())


@contextmanager
def serving(exchange: Exchange, log: Path, *options: str) -> Iterator[Served]:
    """Run the service on a stream that goes on."""
    with log.open("w") as stderr:
        words = (sys.executable, "-m", "ladder_levels.service", *options)
        process = exchange.start(*words, stdin=subprocess.PIPE, stderr=stderr)
    try:
        yield Served(exchange, process, log)
    finally:
        process.kill()
        process.communicate()
