"""`alembic upgrade head --sql`, run by psql, gives what the migration itself gives."""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine

from alembic_partitions import PolicyError
from alembic_partitions.errors import SettingError
from tests.databases import Database, Databases
from tests.db.test_operations import NAMES, configured, create, drop
from tests.postgres import ServerError, locate
from tests.projects import Project
from tests.tables import NOW, Dump, catalog, partitions, quote, rows, run, scalar, without

pytestmark = pytest.mark.versions

Psql: TypeAlias = Callable[[str], str]

POLICY = 'PartitionPolicy("at", timezone="Pacific/Auckland", premake=9, day_start="06:00")'


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project.make(tmp_path, "generic", database.url)


@pytest.fixture
def alembic(project: Project, database: Database) -> Config:
    return configured(project, database)


@pytest.fixture
def psql(database: Database) -> Psql:
    """The psql beside the test server; it stops at the first error, which fails the test."""
    try:
        program = locate() / "psql"
    except ServerError as error:
        pytest.skip(f"needs psql: {error}")
    if not program.exists():
        pytest.skip(f"needs psql: {program}")
    address = database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def send(script: str) -> str:
        done = subprocess.run(
            [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", address, "-f", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            encoding="utf-8",
            env={**os.environ, "PGCLIENTENCODING": "UTF8", "PGTZ": "Asia/Kathmandu"},
        )
        assert done.returncode == 0, f"{done.stderr}\n{script}"
        return done.stderr

    return send


def offline(alembic: Config, direction: str, span: str) -> str:
    """Return what `alembic upgrade|downgrade span --sql` prints."""
    alembic.output_buffer = buffer = io.StringIO()
    getattr(command, direction)(alembic, span, sql=True)
    return buffer.getvalue()


@contextmanager
def another(databases: Databases, alembic: Config) -> Iterator[Engine]:
    """Point the project at a second database meanwhile."""
    before = alembic.get_main_option("sqlalchemy.url")
    assert before is not None
    other = databases.clone()
    engine = create_engine(other.url)
    alembic.set_main_option("sqlalchemy.url", other.url.render_as_string(hide_password=False))
    try:
        yield engine
    finally:
        alembic.set_main_option("sqlalchemy.url", before)
        engine.dispose()
        databases.drop(other.name)


def told_online(databases: Databases, alembic: Config, schema: str | None = None) -> tuple[Dump, Dump]:
    """Return the catalogs that the migrations themselves leave: at head, and back at the base."""
    with another(databases, alembic) as engine:
        if schema is not None:
            run(engine, f"CREATE SCHEMA {quote(schema)}")
        command.upgrade(alembic, "head")
        head = catalog(engine)
        command.downgrade(alembic, "base")
        return head, catalog(engine)


def long_story(project: Project) -> None:
    """Every operation, in revisions of their own."""
    project.add(
        create(
            rules='premake=2, retention="90 days", storage_parameters={"fillfactor": 70}',
            more='sa.Column("price", sa.Numeric, comment="in %", index=True),',
            kw='comment="it\'s 100%",',
        )
        + """op.execute("INSERT INTO odds (at, note) VALUES ('2026-04-05T13:37:11+12', '100%')")""",
        drop(),
    )
    project.add(
        'op.alter_partition_policy("odds", premake=9, day_start="06:00", retention=None,'
        " storage_parameters={})",
        'op.alter_partition_policy("odds", premake=2, day_start="00:00", retention="90 days",'
        ' storage_parameters={"fillfactor": 70})',
    )
    project.add(
        f'op.create_partitions("odds", "2026-06-01", "2026-06-04", existing_policy={POLICY})',
        'op.drop_partitions("odds", "2026-06-01", "2026-06-04")',
    )


def test_a_script_gives_what_the_migration_gives_up_and_down(
    project: Project, alembic: Config, engine: Engine, databases: Databases, psql: Psql
) -> None:
    long_story(project)
    head, base = told_online(databases, alembic)

    psql(offline(alembic, "upgrade", "head"))
    assert catalog(engine) == head
    assert len(partitions(engine)) == 7
    assert (
        scalar(engine, "SELECT tableoid::regclass::text FROM odds WHERE note = '100%'") == "odds_2026_04_05"
    )

    psql(offline(alembic, "downgrade", "head:base"))
    run(engine, "DROP TABLE IF EXISTS alembic_version")  # a script of Alembic's begins without it
    found = catalog(engine)
    assert without(found) == without(base, "alembic_version")
    assert found["configuration in public"] == []
    psql(offline(alembic, "upgrade", "head"))
    assert catalog(engine) == head


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_a_script_holds_any_name(
    project: Project,
    alembic: Config,
    engine: Engine,
    databases: Databases,
    psql: Psql,
    names: tuple[str | None, str, str],
) -> None:
    schema, name, key = names
    project.add(
        create(name, key, schema=schema)
        + f"rules = PartitionPolicy({key!r}, timezone='Pacific/Auckland')\n"
        + f'op.create_partitions({name!r}, "2026-06-01", "2026-06-03", schema={schema!r},'
        + " existing_policy=rules)",
        f'op.drop_partitions({name!r}, "2026-06-01", "2026-06-03", schema={schema!r})\n' + drop(name, schema),
    )
    head, _ = told_online(databases, alembic, schema)
    if schema is not None:
        run(engine, f"CREATE SCHEMA {quote(schema)}")
    psql(offline(alembic, "upgrade", "head"))
    assert catalog(engine) == head
    psql(offline(alembic, "downgrade", "head:base"))
    assert partitions(engine, name) == []
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0


def test_a_script_makes_no_partition_twice_and_finds_out_what_the_table_has_since(
    project: Project, alembic: Config, engine: Engine, databases: Databases, psql: Psql
) -> None:
    project.add(create(rules="premake=2"), drop())
    project.add(
        """
        op.execute("ALTER TABLE odds ENABLE ROW LEVEL SECURITY")
        op.execute("ALTER TABLE odds REPLICA IDENTITY FULL")
        op.execute("ALTER TABLE odds ALTER COLUMN note SET STATISTICS 7")
        rules = PartitionPolicy("at", timezone="Pacific/Auckland", premake=2)
        op.create_partitions("odds", "2026-04-06", "2026-04-12", existing_policy=rules)
        """
    )
    head, _ = told_online(databases, alembic)
    psql(offline(alembic, "upgrade", "head"))
    assert catalog(engine) == head
    assert scalar(engine, "SELECT relrowsecurity FROM pg_class WHERE relname = 'odds_2026_04_11'")


def test_a_script_finds_a_table_further_down_the_search_path(
    project: Project, alembic: Config, engine: Engine, psql: Psql
) -> None:
    project.add(create(), drop())
    project.add(
        'op.alter_partition_policy("odds", premake=9)', 'op.alter_partition_policy("odds", premake=2)'
    )
    psql(offline(alembic, "upgrade", "0001"))
    run(engine, "CREATE SCHEMA app")
    path = "SET search_path = app, public;\n"
    psql(path + offline(alembic, "upgrade", "0001:head"))
    assert scalar(engine, "SELECT premake FROM partition_config") == 9
    psql(path + offline(alembic, "downgrade", "head:base"))
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0


def test_the_default_of_premake_cannot_be_told_offline(project: Project, alembic: Config) -> None:
    project.add('op.alter_partition_policy("odds", premake=None)')
    with pytest.raises(PolicyError) as refusal:
        offline(alembic, "upgrade", "head")
    assert refusal.value.field == "premake"


def test_a_script_runs_in_whatever_zone_psql_has(
    project: Project, alembic: Config, engine: Engine, psql: Psql
) -> None:
    project.add(create())
    psql("SET TimeZone = 'America/St_Johns';\n" + offline(alembic, "upgrade", "head"))
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-04 11:00+00'), ('2026-04-05 11:59:59+00')")
    assert rows(engine, "SELECT DISTINCT tableoid::regclass::text FROM odds") == [("odds_2026_04_05",)]


def test_the_script_says_which_clock_it_went_by(project: Project, alembic: Config) -> None:
    project.add(create())
    script = offline(alembic, "upgrade", "head")
    (said,) = [line for line in script.splitlines() if line.startswith("-- alembic_partitions")]
    assert "as of 2026-04-05 01:37:11+00" in said
    assert "this host's clock or ALEMBIC_PARTITIONS_NOW" in said


def test_without_a_rehearsed_clock_the_script_goes_by_the_hosts(
    project: Project, alembic: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")
    project.add(create())
    before = datetime.now().astimezone()
    script = offline(alembic, "upgrade", "head")
    said = re.search(r"as of (\S+ \S+\+00), from this host's clock", script)
    assert said is not None
    told = datetime.fromisoformat(f"{said[1]}:00")
    assert before.replace(microsecond=0) <= told <= datetime.now().astimezone()


def test_a_rehearsed_clock_that_cannot_be_read_is_refused(
    project: Project, alembic: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2026-04-05T13:37:11")
    project.add(create())
    with pytest.raises(SettingError, match="offset"):
        offline(alembic, "upgrade", "head")


def test_create_partitions_cannot_look_its_policy_up_offline(project: Project, alembic: Config) -> None:
    project.add('op.create_partitions("odds", "2026-06-01", "2026-06-04")')
    with pytest.raises(PolicyError, match="existing_policy=PartitionPolicy") as refusal:
        offline(alembic, "upgrade", "head")
    assert refusal.value.field == "existing_policy"


def test_a_wrong_alteration_is_refused_offline_too(project: Project, alembic: Config) -> None:
    project.add('op.alter_partition_policy("odds", retention="soon")')
    with pytest.raises(PolicyError) as refusal:
        offline(alembic, "upgrade", "head")
    assert refusal.value.field == "retention"


def test_a_script_run_over_somebody_elses_table_stops_before_anything(
    project: Project, alembic: Config, engine: Engine, psql: Psql
) -> None:
    run(engine, "CREATE TABLE partition_runs (id int)")
    before = catalog(engine)
    project.add(create())
    with pytest.raises(AssertionError, match="partition_runs is not ours: set ALEMBIC_PARTITIONS_SCHEMA"):
        psql(offline(alembic, "upgrade", "head"))
    assert catalog(engine) == before


def test_a_script_leaves_partitions_with_rows_and_says_so(
    project: Project, alembic: Config, engine: Engine, psql: Psql
) -> None:
    long_story(project)
    psql(offline(alembic, "upgrade", "head"))
    run(engine, "INSERT INTO odds (at) VALUES ('2026-06-02 13:37:11+12')")
    said = psql(offline(alembic, "downgrade", "0003:0002"))
    assert "partition odds_2026_06_02 is not empty and stays" in said
    assert [name for name in partitions(engine) if "_06_" in name] == ["odds_2026_06_02"]
