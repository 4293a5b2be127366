"""The acceptance list of the stream recorder, end to end on its own example (examples/ladder_levels).

Recorders, scripts and commands are real processes, with real roles; psql comes with the embedded server.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, NullPool, create_engine
from sqlalchemy.exc import ProgrammingError

from tests.databases import Database, Roles
from tests.postgres import locate
from tests.tables import rows, run, scalar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from ladder_levels.settings import Settings, SettingsError  # noqa: E402

HERE = EXAMPLES / "ladder_levels"
#: Beside the checkout, not in it: without it a made-up stream does.
RECORDING = EXAMPLES.parents[1] / "shared" / "data" / "betfair" / "BASIC-1.132153978"
TABLE = "stream_ingest.ladder_levels"
#: Half a minute before a midnight, on which nothing but the tests' own clock goes by.
EVENING = datetime(2026, 11, 25, 23, 59, 30, tzinfo=timezone.utc)
PARTITION_ROLE = ("POSTGRES_PARTITION_USER", "POSTGRES_PARTITION_PASSWORD")

pytestmark = pytest.mark.long


def names(first: int, last: int, today: datetime = EVENING) -> list[str]:
    """The partitions of the days from ``first`` to ``last`` after today, both included."""
    days = (today + timedelta(days=day) for day in range(first, last + 1))
    return [f"{TABLE}_{day:%Y_%m_%d}" for day in days]


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

    def run(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command, and see how it ends."""
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            cwd=HERE,
            env={**self.environment, **environment},
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    def psql(self, script: str, code: int = 0, **environment: str) -> str:
        environment = self.environment | environment
        url = environment["DATABASE_URL"].replace("postgresql+psycopg2", "postgresql")
        program = shutil.which("psql", path=locate())
        assert program is not None
        done = self.run(program, "-X", url, "-f", script, code=code, **environment)
        return done.stdout + done.stderr

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
BOUNDS = r"""
    SELECT match[1]::timestamptz AT TIME ZONE 'UTC', match[2]::timestamptz AT TIME ZONE 'UTC'
    FROM pg_class, regexp_match(pg_get_expr(relpartbound, oid), '\(''(.*)''\) TO \(''(.*)''\)') AS match
    WHERE relispartition AND relkind = 'r' ORDER BY 1"""


def alembic() -> Config:
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config


@pytest.fixture
def fresh(database: Database, engine: Engine, roles: Roles, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    """An empty database that belongs to whoever migrates, who is no superuser."""
    owner = str(roles.create("admin", "CREATEROLE").username)
    run(engine, f"ALTER DATABASE {database.name} OWNER TO {owner}")
    url = database.url
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
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), *sys.path]),
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return Exchange(engine, url, inherited | given)


@pytest.fixture
def exchange(fresh: Exchange) -> Exchange:
    """The table after the migration, the roles and the grants."""
    fresh.psql("roles.sql")
    command.upgrade(alembic(), "head")
    fresh.psql("grants.sql")
    return fresh


# -- by UTC day, 30 days ahead, in its own schema --------------------------------------------------------


def test_ladder_levels_has_a_partition_for_each_utc_day_30_days_ahead_in_its_own_schema(
    exchange: Exchange,
) -> None:
    assert exchange.partitions() == names(-1, 30)
    bounds = rows(exchange.engine, BOUNDS)
    yesterday = datetime(2026, 11, 24)
    days = [yesterday + timedelta(days=number) for number in range(33)]
    assert bounds == list(itertools.pairwise(days))


def test_the_model_is_the_end_state_of_the_migration_which_goes_back_and_applies_again(
    fresh: Exchange,
) -> None:
    for _ in range(2):
        command.upgrade(alembic(), "head")
        command.check(alembic())
        assert fresh.partitions() == names(-1, 30)
        command.downgrade(alembic(), "base")
        assert scalar(fresh.engine, "SELECT to_regnamespace('stream_ingest')") is None


# -- roles and grants ------------------------------------------------------------------------------------


def test_grants_make_the_partition_role_the_owner_of_the_table_and_of_every_partition(
    exchange: Exchange,
) -> None:
    assert exchange.owners() == {exchange.role("POSTGRES_PARTITION_USER")}


def test_roles_and_grants_run_again_change_nothing(exchange: Exchange) -> None:
    rights = """
        SELECT relname, relowner, relacl::text FROM pg_class WHERE relnamespace IN
            ('public'::regnamespace, 'stream_ingest'::regnamespace)
        UNION ALL SELECT nspname, nspowner, nspacl::text FROM pg_namespace ORDER BY 1"""
    before = rows(exchange.engine, rights)
    assert "CREATE ROLE" not in exchange.psql("roles.sql")
    assert "ALTER TABLE" not in exchange.psql("grants.sql")
    assert rows(exchange.engine, rights) == before


def test_grants_take_back_what_was_given_to_the_wrong_one(exchange: Exchange) -> None:
    writer, stray = exchange.role("POSTGRES_USER"), names(0, 0)[0]
    run(
        exchange.engine,
        f'GRANT CREATE ON SCHEMA stream_ingest TO "{writer}"',
        f'GRANT ALL ON {TABLE} TO "{writer}"',
        f"ALTER TABLE {stray} OWNER TO CURRENT_USER",
    )
    said = exchange.psql("grants.sql", DATABASE_URL=exchange.url.render_as_string(hide_password=False))
    assert "INSERT, SELECT\n" in said
    assert exchange.owners() == {exchange.role("POSTGRES_PARTITION_USER")}
    assert not scalar(exchange.engine, "SELECT has_schema_privilege(:w, 'stream_ingest', 'CREATE')", w=writer)


FORBIDDEN = (
    "CREATE TABLE stream_ingest.another (id int)",
    "CREATE TABLE {table}_default PARTITION OF {table} DEFAULT",
    "ALTER TABLE {table} ADD COLUMN note text",
    "ALTER TABLE {table} DETACH PARTITION {today}",
    "DROP TABLE {today}",
    "TRUNCATE {table}",
    "DELETE FROM {table}",
    "UPDATE {table} SET price = 1",
    "SELECT * FROM {today}",
    "SELECT * FROM public.partition_config",
)


def test_the_stream_writer_may_insert_and_select_and_nothing_else(exchange: Exchange) -> None:
    engine = exchange.connect("POSTGRES_USER")
    with engine.begin() as writer:
        writer.exec_driver_sql(f"INSERT INTO {TABLE} VALUES ('1.1', 7, '2026-11-25Z', 'back', 0, 3.5, 20)")
        assert writer.exec_driver_sql(f"SELECT count(*) FROM {TABLE}").scalar() == 1
    for statement in FORBIDDEN:
        with (
            pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
            engine.begin() as writer,
        ):
            writer.exec_driver_sql(statement.format(table=TABLE, today=names(0, 0)[0]))


@pytest.mark.parametrize("missing", [PARTITION_ROLE[:1], PARTITION_ROLE[1:], PARTITION_ROLE])
@pytest.mark.parametrize("empty", [False, True])
def test_both_partition_credentials_are_required_and_the_error_names_what_is_missing(
    fresh: Exchange, missing: tuple[str, ...], empty: bool
) -> None:
    given = dict(fresh.environment)
    for name in missing:
        given[name] = ""
        if not empty:
            del given[name]
    with pytest.raises(SettingsError) as refused:
        Settings.read(given)
    told = str(refused.value)
    assert told.startswith(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set.")
    assert "never taken in their place" in told


def test_the_stream_writer_cannot_be_the_partition_role(fresh: Exchange) -> None:
    same = {"POSTGRES_PARTITION_USER": fresh.role("POSTGRES_USER")}
    with pytest.raises(SettingsError, match="are both"):
        Settings.read(fresh.environment | same)
