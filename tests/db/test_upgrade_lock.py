"""One of many replicas migrates, the others wait; whatever goes wrong, nobody is locked out afterwards."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

from alembic_partitions import deploy, upgrade_lock_key
from tests.databases import OF_THIS_DATABASE, Database, Databases
from tests.projects import Project, finish

pytestmark = pytest.mark.processes

# What a migration finds: how the migration lock of its database is held. It counts itself, too, so that a
# second run of the same migration shows.
SEEN = """
op.execute("CREATE TABLE IF NOT EXISTS seen (revision text, mode text)")
op.execute(sa.text(
    "INSERT INTO seen SELECT :revision, (SELECT string_agg(l.mode, ',') FROM pg_locks l JOIN pg_database d"
    " ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database())"
).bindparams(revision=revision))
"""

KILL_THE_LOCK = """
op.execute(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_locks USING (pid)"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)
"""

INDEX_CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.create_index("ix_orders", "orders", ["id"], postgresql_concurrently=True)
"""

ORDERS = """op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))"""

UPGRADING = """with alembic_partitions.upgrading(context):"""


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project.make(tmp_path, "generic", database.url)


@contextmanager
def lock_taken(engine: Engine, **names: str) -> Iterator[int]:
    """Hold the migration lock as a script of an operator's would, from a session of its own."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key_of(engine, **names)})
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.commit()
        assert isinstance(pid, int)
        yield pid
        connection.execute(text("SELECT pg_advisory_unlock_all()"))


def key_of(engine: Engine, **names: str) -> int:
    assert engine.url.database is not None
    return upgrade_lock_key(engine.url.database, **names)


def advisory_locks(engine: Engine) -> int:
    return int(
        scalar(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND " + OF_THIS_DATABASE)
    )


def scalar(engine: Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(query))


def rows(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def exists(engine: Engine, table: str) -> bool:
    return scalar(engine, f"SELECT to_regclass('{table}')") is not None


# Many replicas at once.


@pytest.mark.parametrize(
    ("template", "driver", "replicas"),
    [("generic", "psycopg2", 10), ("generic", "psycopg", 4), ("async", "asyncpg", 4)],
)
def test_of_many_replicas_one_migrates_and_all_succeed(
    tmp_path: Path, database: Database, engine: Engine, template: str, driver: str, replicas: int
) -> None:
    project = Project.make(tmp_path, template, database.driver_url(driver))
    project.add(ORDERS + SEEN)
    project.add(SEEN + INDEX_CONCURRENTLY)
    project.add(SEEN)

    outcomes = [finish(process) for process in [project.start("upgrade", "head") for _ in range(replicas)]]

    for outcome in outcomes:
        outcome.succeeded()
    assert sum("Running upgrade" in outcome.err for outcome in outcomes) == 1
    assert rows(engine, "SELECT revision, mode FROM seen ORDER BY revision") == [
        (revision, "ExclusiveLock") for revision in project.revisions
    ]
    assert exists(engine, "ix_orders")
    assert advisory_locks(engine) == 0


def test_many_multidb_replicas(tmp_path: Path, databases: Databases, database: Database) -> None:
    other = databases.clone()
    project = Project.make(tmp_path, "multidb", database.url, other.url)
    project.add(ORDERS + SEEN)

    outcomes = [finish(process) for process in [project.start("upgrade", "head") for _ in range(4)]]

    for outcome in outcomes:
        outcome.succeeded()
    for one in (database, other):
        engine = create_engine(one.url, poolclass=NullPool)
        assert rows(engine, "SELECT * FROM seen") == [("0001", "ExclusiveLock")]
        assert advisory_locks(engine) == 0


def test_many_replicas_of_a_project_without_migrations(project: Project, engine: Engine) -> None:
    """Alembic makes its version table even so."""
    for outcome in [finish(process) for process in [project.start("upgrade", "head") for _ in range(4)]]:
        outcome.succeeded()
    assert exists(engine, "alembic_version")


PER_MIGRATION = "target_metadata=target_metadata, transaction_per_migration=True"
IN_A_SCHEMA = "target_metadata=target_metadata, version_table_schema='ops', version_table='history'"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("target_metadata=target_metadata\n        )", PER_MIGRATION + ")"),
        ("target_metadata=target_metadata\n        )", IN_A_SCHEMA + ")"),
        ("poolclass=pool.NullPool", "poolclass=pool.NullPool, isolation_level='REPEATABLE READ'"),
        ("poolclass=pool.NullPool", "poolclass=pool.NullPool, isolation_level='AUTOCOMMIT'"),
        ("connectable.connect()", "connectable.begin()"),
    ],
    ids=[
        "transaction_per_migration",
        "version_table_schema",
        "repeatable_read",
        "autocommit",
        "engine_begin",
    ],
)
def test_replicas_of_an_env_py_with_settings_of_its_own(
    project: Project, engine: Engine, old: str, new: str
) -> None:
    project.edit_env(old, new)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ops"))
    project.add(ORDERS + SEEN)
    project.add(SEEN)

    outcomes = [finish(process) for process in [project.start("upgrade", "head") for _ in range(4)]]

    for outcome in outcomes:
        outcome.succeeded()
    seen = rows(engine, "SELECT revision, mode FROM seen ORDER BY revision")
    assert seen == [("0001", "ExclusiveLock"), ("0002", "ExclusiveLock")]
    assert advisory_locks(engine) == 0


# At head.


def test_at_head_nothing_is_created_and_nobody_excluded(project: Project, engine: Engine) -> None:
    project.add(ORDERS)
    project.run("upgrade", "head").succeeded()
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE 'somebody sent %', tg_tag; END $$"
            )
        )
        connection.execute(text("CREATE EVENT TRIGGER refuse ON ddl_command_start EXECUTE FUNCTION refuse()"))

    with engine.connect() as reader:
        # Another replica at head.
        reader.execute(text("SELECT pg_advisory_lock_shared(:key)"), {"key": key_of(engine)})
        reader.commit()
        project.run("upgrade", "head", "--lock-timeout", "0").succeeded()
        reader.execute(text("SELECT pg_advisory_unlock_all()"))

    with lock_taken(engine):
        assert "has held the migration lock" in project.run("upgrade", "--lock-timeout", "0").failed()


# The lock is not to be had.


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (["--lock-timeout", "0.3"], {}),
        ([], {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "0.3"}),
        ([], {"MIGRATION_LOCK_TIMEOUT_SECONDS": "0.3"}),
        (["--lock-timeout", "0.3"], {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "900"}),
        ([], {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "0.3", "MIGRATION_LOCK_TIMEOUT_SECONDS": "900"}),
    ],
)
def test_a_lock_not_had_in_time_says_who_holds_it(
    project: Project, engine: Engine, arguments: list[str], env: dict[str, str]
) -> None:
    project.add(ORDERS)
    with lock_taken(engine) as pid:
        complaint = project.run("upgrade", "head", *arguments, env=env).failed()
    assert f"for more than 0.3 s (process {pid} (" in complaint
    assert not exists(engine, "orders")
    project.run("upgrade", "head").succeeded()


@pytest.mark.parametrize("arguments", [("downgrade", "base"), ("downgrade", "-1"), ("stamp", "base")])
def test_downgrade_and_stamp_are_locked_too(
    project: Project, engine: Engine, arguments: tuple[str, ...]
) -> None:
    project.add(ORDERS, 'op.drop_table("orders")' + SEEN)
    project.run("upgrade", "head").succeeded()
    with lock_taken(engine):
        assert "migration lock" in project.run(*arguments, "--lock-timeout", "0").failed()
    assert scalar(engine, "SELECT version_num FROM alembic_version") == "0001"
    project.run(*arguments).succeeded()
    assert rows(engine, "SELECT * FROM alembic_version") == []
    assert exists(engine, "orders") == (arguments[0] == "stamp")
    if arguments[0] == "downgrade":
        assert rows(engine, "SELECT mode FROM seen") == [("ExclusiveLock",)]


def test_the_key_follows_the_version_table(project: Project, engine: Engine) -> None:
    project.edit_env("target_metadata=target_metadata\n        )", IN_A_SCHEMA + ")")
    project.add(ORDERS)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA ops"))
    with lock_taken(engine, version_table="history", version_table_schema="ops"):
        assert "migration lock" in project.run("upgrade", "head", "--lock-timeout", "0").failed()
    with lock_taken(engine):
        project.run("upgrade", "head", "--lock-timeout", "0").succeeded()


def test_the_key_can_be_computed_in_psql(engine: Engine) -> None:
    query = (
        "SELECT ('x' || left(encode(sha256(convert_to(concat_ws(E'\\n', 'alembic_partitions upgrade',"
        " current_database(), 'ops', 'history'), 'UTF8')), 'hex'), 16))::bit(64)::bigint"
    )
    assert scalar(engine, query) == key_of(engine, version_table="history", version_table_schema="ops")


# The lock is lost on the way.


def test_a_migration_whose_lock_was_lost_is_rolled_back(project: Project, engine: Engine) -> None:
    project.add(ORDERS)
    project.add(KILL_THE_LOCK)
    assert "This migration was rolled back" in project.run("upgrade", "head").failed()
    assert not exists(engine, "orders")
    assert advisory_locks(engine) == 0


def test_a_lost_lock_stops_before_the_next_migration(project: Project, engine: Engine) -> None:
    project.edit_env("target_metadata=target_metadata\n        )", PER_MIGRATION + ")")
    project.add(ORDERS)
    project.add('op.create_table("second", sa.Column("id", sa.Integer))' + KILL_THE_LOCK)
    project.add('op.create_table("third", sa.Column("id", sa.Integer))')
    assert "This migration was rolled back" in project.run("upgrade", "head").failed()
    assert rows(engine, "SELECT version_num FROM alembic_version") == [("0001",)]
    assert not exists(engine, "second")


def test_a_lost_lock_is_noticed_before_an_autocommit_block(project: Project, engine: Engine) -> None:
    project.add(ORDERS + KILL_THE_LOCK + INDEX_CONCURRENTLY)
    assert "This migration was rolled back" in project.run("upgrade", "head").failed()
    assert not exists(engine, "orders")


@pytest.mark.parametrize("template", ["async", "multidb"])
def test_a_lost_lock_in_other_templates(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine, template: str
) -> None:
    urls = [database.driver_url("asyncpg")] if template == "async" else [database.url, databases.clone().url]
    project = Project.make(tmp_path, template, *urls)
    project.add(ORDERS + KILL_THE_LOCK)
    assert "This migration was rolled back" in project.run("upgrade", "head").failed()
    assert not exists(engine, "orders")


def test_time_outs_of_the_database_do_not_end_the_session_that_holds_the_lock(
    project: Project, database: Database, engine: Engine
) -> None:
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    names += ["idle_session_timeout"] * (database.server_version >= 140000)
    names += ["transaction_timeout"] * (database.server_version >= 170000)
    project.add(
        f"for name in {names}: op.execute(sa.select(sa.func.set_config(name, '0', False)))\n"
        "op.execute('SELECT pg_sleep(0.6)')"
    )
    project.add(SEEN)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for name in names:
            connection.execute(text(f"ALTER DATABASE {database.name} SET {name} = '200ms'"))
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, "SELECT mode FROM seen") == "ExclusiveLock"


@pytest.mark.pg(">= 14")
@pytest.mark.parametrize("connecting", ["connectable.connect()", "connectable.begin()"])
def test_time_outs_of_the_database_do_not_end_a_replica_that_waits(
    project: Project, database: Database, engine: Engine, connecting: str
) -> None:
    project.edit_env("connectable.connect()", connecting)
    project.add(ORDERS)
    # The session that waits for the lock, and the one that will migrate.
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid NOT IN (:holder, pg_backend_pid()) AND backend_start < clock_timestamp() - interval '4 s'"
    )
    with lock_taken(engine) as holder, engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        for name in ("idle_session_timeout", "idle_in_transaction_session_timeout"):
            connection.execute(text(f"ALTER DATABASE {database.name} SET {name} = '2s'"))
        process = project.start("upgrade", "head", "--lock-timeout", "20")
        while connection.scalar(query, {"holder": holder}) < 2:
            assert process.poll() is None, finish(process)
    finish(process).succeeded()
    assert exists(engine, "orders")


# Nothing is left behind.


@pytest.mark.parametrize("template", ["generic", "async", "multidb"])
def test_a_failing_migration_leaves_no_lock(
    tmp_path: Path, databases: Databases, database: Database, engine: Engine, template: str
) -> None:
    urls = [database.driver_url("asyncpg")] if template == "async" else [database.url, databases.clone().url]
    project = Project.make(tmp_path, template, *urls)
    project.add(ORDERS)
    project.add('op.execute("SELECT 1 / 0")')
    assert project.run("upgrade", "head").failed() == "revision 0002: division by zero"
    assert not exists(engine, "orders")
    assert advisory_locks(engine) == 0


SLOW = '\nop.execute("SELECT pg_sleep(60)")'
ENDED_HERE = "FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"


@pytest.mark.parametrize(
    ("template", "driver", "by"),
    [
        ("generic", "psycopg2", "operator"),
        ("generic", "psycopg", "ctrl-c"),  # psycopg2 does not look at signals before its answer is there
        *(("async", "asyncpg", by) for by in ("operator", "ctrl-c")),
    ],
)
def test_a_migration_that_is_ended_says_why_and_leaves_no_lock(
    tmp_path: Path, database: Database, engine: Engine, template: str, driver: str, by: str
) -> None:
    project = Project.make(tmp_path, template, database.driver_url(driver))
    project.add(ORDERS + SLOW)
    process = project.start("upgrade", "head")
    while not scalar(engine, f"SELECT count(*) {ENDED_HERE}"):
        assert process.poll() is None
    if by == "operator":
        scalar(engine, f"SELECT count(pg_terminate_backend(pid)) {ENDED_HERE}")
        told = finish(process).failed()
        assert told.startswith("revision 0001: ")
        assert "terminat" in told or "closed" in told, told
    else:
        process.send_signal(signal.SIGINT)
        outcome = finish(process)
        assert (outcome.code, outcome.complaint) == (130, "interrupted")
    engine.dispose()
    scalar(engine, f"SELECT count(pg_terminate_backend(pid)) {ENDED_HERE}")
    assert not exists(engine, "orders")
    while advisory_locks(engine):
        time.sleep(0.01)


def test_a_killed_replica_leaves_no_lock(project: Project, engine: Engine) -> None:
    project.add(ORDERS)
    slow = project.add('op.execute("SELECT pg_sleep(60) /* killed here */")')
    process = project.start("upgrade", "head")
    with engine.connect() as connection:
        while not connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%killed here%'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        ):
            connection.rollback()
    process.kill()
    finish(process)
    (project.env.parent / "versions" / f"{slow}.py").unlink()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # PostgreSQL notices a client's death when it next writes to it; here the operator helps.
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%killed here%'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    project.run("upgrade", "head").succeeded()
    assert exists(engine, "orders")


# env.py with upgrading() of its own, plain alembic.


@pytest.fixture(params=["generic", "async"])
def upgrading_project(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Project:
    driver = "asyncpg" if request.param == "async" else "psycopg"
    project = Project.make(tmp_path, request.param, database.driver_url(driver))
    project.env.write_text("import alembic_partitions\n" + project.env.read_text())
    project.edit_env("with context.begin_transaction():", UPGRADING)
    return project


def test_env_py_with_upgrading_under_plain_alembic(upgrading_project: Project, engine: Engine) -> None:
    project = upgrading_project
    project.add(ORDERS + SEEN, 'op.drop_table("orders")')
    short = {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "0"}
    with lock_taken(engine):
        refused = project.alembic("upgrade", "head", env=short)
        assert refused.code == 1
        assert "UpgradeLockTimeout" in refused.err
        project.alembic("current", env=short).succeeded()
        project.alembic("revision", "-m", "empty", "--rev-id", "0002", env=short).succeeded()
    assert not exists(engine, "orders")
    project.alembic("upgrade", "head").succeeded()
    assert rows(engine, "SELECT * FROM seen") == [("0001", "ExclusiveLock")]
    with lock_taken(engine):
        assert "Target database is not up to date" not in project.alembic("check", env=short).err
        assert project.alembic("downgrade", "base", env=short).code == 1
    project.alembic("downgrade", "base").succeeded()
    assert not exists(engine, "orders")


def test_env_py_with_upgrading_under_our_command(upgrading_project: Project, engine: Engine) -> None:
    project = upgrading_project
    project.add(ORDERS + SEEN)
    project.add(INDEX_CONCURRENTLY)
    outcomes = [finish(process) for process in [project.start("upgrade", "head") for _ in range(3)]]
    for outcome in outcomes:
        outcome.succeeded()
    assert rows(engine, "SELECT * FROM seen") == [("0001", "ExclusiveLock")]
    assert exists(engine, "ix_orders")
    with lock_taken(engine):
        assert "0 s" in project.run("downgrade", "base", "--lock-timeout", "0").failed()


def test_upgrading_around_begin_transaction(project: Project, engine: Engine) -> None:
    project.edit_env(
        "with context.begin_transaction():\n            context.run_migrations()\n\n\nif",
        f"import alembic_partitions\n        {UPGRADING}\n"
        "            with context.begin_transaction():\n                context.run_migrations()\n\n\nif",
    )
    project.add(ORDERS + SEEN)
    project.alembic("upgrade", "head").succeeded()
    assert rows(engine, "SELECT * FROM seen") == [("0001", "ExclusiveLock")]
    project.run("downgrade", "base").succeeded()
    assert advisory_locks(engine) == 0


def test_an_env_py_that_forgets_its_transaction(project: Project, engine: Engine) -> None:
    """Plain Alembic exits 0 from such a downgrade and rolls it back."""
    project.edit_env(
        "with context.begin_transaction():\n            context.run_migrations()\n\n\nif",
        "context.run_migrations()\n\n\nif",
    )
    project.add(ORDERS, 'op.drop_table("orders")')
    project.run("upgrade", "head").succeeded()
    assert exists(engine, "orders")
    project.run("downgrade", "base").succeeded()
    assert not exists(engine, "orders")


# Somebody else's transaction.


def test_in_an_outer_transaction_the_lock_lasts_until_the_connection_is_returned(
    project: Project, engine: Engine
) -> None:
    project.env.write_text(SHARED_CONNECTION)
    project.add(ORDERS + SEEN, 'op.drop_table("orders")')
    project.add(SEEN)
    with engine.connect() as connection:
        config = _config(project, connection)
        with connection.begin():
            command.upgrade(config, "0001")
            command.upgrade(config, "head")  # the same transaction does not wait for itself
            command.downgrade(config, "base")
            command.upgrade(config, "head")
            assert advisory_locks(engine) == 1
        assert advisory_locks(engine) == 1
    assert advisory_locks(engine) == 0
    assert rows(engine, "SELECT DISTINCT mode FROM seen") == [("ExclusiveLock",)]


def test_version_tables_of_one_outer_transaction_have_a_lock_each(project: Project, engine: Engine) -> None:
    project.env.write_text("""
import alembic_partitions
from alembic import context

for name in ("first", "second"):
    context.configure(connection=context.config.attributes["connection"], version_table=name)
    with alembic_partitions.upgrading(context):
        context.run_migrations()
""")
    project.add("op.execute('CREATE TABLE IF NOT EXISTS orders ()')")
    with engine.connect() as connection, connection.begin():
        command.upgrade(_config(project, connection), "head")
        assert advisory_locks(engine) == 2
    assert advisory_locks(engine) == 0
    assert rows(engine, "SELECT * FROM first NATURAL JOIN second") == [("0001",)]


def test_a_connection_used_for_many_commands(project: Project, engine: Engine) -> None:
    project.env.write_text(SHARED_CONNECTION)
    project.add(ORDERS, 'op.drop_table("orders")')
    with engine.connect() as connection:
        config = _config(project, connection)
        for _ in range(3):
            command.upgrade(config, "head")
            assert advisory_locks(engine) == 0
            command.downgrade(config, "base")
        assert not event.contains(connection, "commit", deploy._checked_in)
    assert not exists(engine, "orders")


def test_a_pool_of_one_is_enough(project: Project, database: Database) -> None:
    engine = create_engine(database.url, pool_size=1, max_overflow=0, pool_timeout=1)
    project.env.write_text(SHARED_CONNECTION)
    project.add(ORDERS + SEEN)
    with engine.connect() as connection:
        command.upgrade(_config(project, connection), "head")
    assert rows(engine, "SELECT mode FROM seen") == [("ExclusiveLock",)]
    engine.dispose()


SHARED_CONNECTION = """
import alembic_partitions
from alembic import context

context.configure(connection=context.config.attributes["connection"])
with alembic_partitions.upgrading(context):
    context.run_migrations()
"""


def _config(project: Project, connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(project.env.parent))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


# A search_path of its own.


def test_tenants_by_search_path_are_not_taken_for_each_other(project: Project, engine: Engine) -> None:
    """The tenant's own alembic_version decides, which a connection beside it would not see."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    project.add(ORDERS + SEEN)
    project.run("upgrade", "head").succeeded()
    project.edit_env(
        "        context.configure(\n            connection=connection",
        "        connection.exec_driver_sql('SET search_path = tenant')\n"
        "        connection.commit()\n"
        "        connection.dialect.default_schema_name = 'tenant'\n"
        "        context.configure(\n            connection=connection",
    )
    project.run("upgrade", "head").succeeded()
    assert exists(engine, "tenant.orders")
    assert rows(engine, "SELECT mode FROM tenant.seen") == [("ExclusiveLock",)]
