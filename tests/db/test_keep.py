"""The keeper over an application's life: start, refresh, failure, roles, pools, processes."""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from alembic_partitions import PartitionPending, PolicyError, keep, nz_racing_day
from alembic_partitions.errors import ConfigurationError
from tests.apps import App, auckland_day, days_from_now, declare, partitions, rows_by_partition, running
from tests.databases import Database, Roles
from tests.postgres import Server

odds = sa.Table("odds", sa.MetaData(), sa.Column("id"), sa.Column("at", sa.DateTime(timezone=True)))
FAR = 100


def _insert(connection: Connection, moment: datetime) -> None:
    connection.execute(odds.insert().values(at=moment))


def _nothing(connection: Connection) -> None:
    connection.execute(sa.select(1))


def _set(engine: Engine, assignments: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE partition_config SET {assignments}")


def _made_for(moment: datetime) -> str:
    return f"odds_{auckland_day(moment):%Y_%m_%d}"


# -- connect and refresh --------------------------------------------------------------------------------


def test_the_first_connection_brings_tables_to_their_horizon(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6")
    with running(database, any_driver) as app:
        app.connection(_nothing)
    assert len(partitions(engine, "odds")) == 1 + 1 + 6  # lookback, now, premake


def test_a_checkout_after_refresh_looks_again(database: Database, any_driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, refresh="50 ms") as app:
        app.connection(_nothing)
        _set(engine, "premake = 6")
        time.sleep(0.06)
        app.connection(_nothing)
    assert len(partitions(engine, "odds")) == 8


def test_before_refresh_a_checkout_asks_nothing(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, "psycopg2", refresh="1 h") as app:
        app.connection(_nothing)
        connected: list[Any] = []
        event.listen(app.engine, "do_connect", lambda *args: connected.append(args))
        app.connection(_nothing)
        assert not connected


def test_a_later_look_does_not_read_again_what_has_not_changed(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        for year in range(1900, 1980):
            bounds = f"FROM ('{year}-01-01') TO ('{year}-02-01')"
            connection.exec_driver_sql(f"CREATE TABLE old_{year} PARTITION OF odds FOR VALUES {bounds}")
    read = list[int]()

    def note(connection: Connection, cursor: Any, *args: Any) -> None:
        read.append(max(cursor.rowcount, 0))

    with running(database, any_driver, refresh="1 ms") as app:
        app.connection(_nothing)
        event.listen(Engine, "after_cursor_execute", note)
        try:
            time.sleep(0.002)
            app.connection(_nothing)
            unchanged, read[:] = sum(read), ()
            _remake(engine, "old_1900", "1901-03-01", "1901-04-01")
            app.connection(lambda c: _insert(c, datetime(1901, 3, 7, tzinfo=timezone.utc)))
            app.connection(lambda c: _insert(c, datetime(1900, 1, 7, tzinfo=timezone.utc)))
        finally:
            event.remove(Engine, "after_cursor_execute", note)
        assert unchanged < 40
        assert sum(read) > 80
    assert set(rows_by_partition(engine, "odds")) == {"old_1900", "odds_1900_01_07"}


def _remake(engine: Engine, name: str, begin: str, end: str) -> None:
    """Attach the same partition with other bounds."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE odds DETACH PARTITION {name}")
        connection.exec_driver_sql(
            f"ALTER TABLE odds ATTACH PARTITION {name} FOR VALUES FROM ('{begin}') TO ('{end}')"
        )


def test_processes_that_start_together_do_not_look_again_together(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, connected = [0.0], list[Any]()
    monkeypatch.setattr("alembic_partitions.keeper.time", SimpleNamespace(monotonic=lambda: 1_000 + clock[0]))
    engines = [sa.create_engine(database.url) for _ in range(12)]
    for engine in engines:
        keep(engine, refresh="100 s")
        engine.connect().close()
        event.listen(engine, "do_connect", lambda *args: connected.append(args))

    looks = list[int]()
    for now in (74.0, 80.0, 85.0, 90.0, 95.0, 100.0):
        clock[0], before = now, len(connected)
        for engine in engines:
            engine.connect().close()
        looks.append(len(connected) - before)
    assert looks[0] == 0
    assert max(looks) < 12
    assert sum(looks) == 12
    for engine in engines:
        engine.dispose()


def test_a_process_that_lives_past_midnight_does_not_run_out(
    database: Database, any_driver: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=0, lookback=0))
    with running(database, any_driver, refresh="1 ms") as app:
        for day in range(4):
            moment = datetime(2026, 4, 3, 13, 37, 11, tzinfo=timezone.utc) + timedelta(days=day)
            monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", moment.isoformat())
            app.connection(_nothing)
            assert _made_for(moment) in partitions(engine, "odds")
            time.sleep(0.002)


def test_threads_wait_for_the_first_look(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=0, lookback=0))
    failures: list[Exception] = []
    with running(database, "psycopg2", engine_options={"pool_size": 8}) as app:
        barrier = threading.Barrier(8)

        def work(day: int) -> None:
            try:
                barrier.wait()
                app.connection(lambda c: _insert(c, days_from_now(FAR + day)))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(day,)) for day in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert sum(rows_by_partition(engine, "odds").values()) == 8


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_the_level_of_the_engine_is_not_that_of_the_side_connection(
    database: Database, any_driver: str, engine: Engine, level: str
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    options = {"isolation_level": level}
    with (
        running(database, any_driver, engine_options=options, wait="200 ms") as app,
        engine.connect() as peer,
    ):
        app.connection(_nothing)
        peer.exec_driver_sql("LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(PartitionPending):
            app.connection(lambda c: _insert(c, days_from_now(FAR)))
        # A table left half-made would show that CREATE and ATTACH were not one transaction.
        assert not sa.inspect(engine).has_table(_made_for(days_from_now(FAR)))
        peer.rollback()
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_an_unseen_row_of_a_table_declared_since_is_found(database: Database, engine: Engine) -> None:
    with running(database, "psycopg2", refresh="1 h") as app:
        app.connection(_nothing)
        declare(engine, "odds", nz_racing_day("at", premake=2))
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.connection(lambda c: _insert(c, days_from_now(FAR)))
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_a_check_constraint_of_the_users_stays_what_it_is(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2), sa.CheckConstraint("id > 0", name="positive"))
    with running(database, "psycopg2") as app, pytest.raises(DBAPIError, match='"positive"'):
        app.connection(
            lambda c: c.exec_driver_sql("INSERT INTO odds OVERRIDING SYSTEM VALUE VALUES (-1, now())")
        )


def test_an_engine_is_not_kept_alive_by_its_hooks(database: Database) -> None:
    engine = sa.create_engine(database.url)
    keep(engine)
    gone = weakref.ref(engine)
    engine.dispose()
    del engine
    gc.collect()
    assert gone() is None


def test_another_database_than_postgresql_is_refused() -> None:
    with pytest.raises(PolicyError, match="sqlite has no partitions"):
        keep(sa.create_engine("sqlite://"))


def test_a_table_declared_later_is_found_at_the_next_look(database: Database, engine: Engine) -> None:
    with running(database, "psycopg2", refresh="1 ms") as app:
        app.connection(_nothing)
        declare(engine, "odds", nz_racing_day("at", premake=2))
        time.sleep(0.002)
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_a_disabled_table_is_left_alone(database: Database, any_driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6, enabled = false")
    with running(database, any_driver) as app, pytest.raises(DBAPIError, match="no partition"):
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert len(partitions(engine, "odds")) == 4


def test_the_calls_of_an_async_keeper_are_awaited(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6")
    with running(database, any_driver) as app:
        assert len(app.health().tables[0].missing) == 4
        assert app.ensure().created == 4
        health = app.health()
        assert health.ok
        assert not health.tables[0].missing
        assert health.error is None


# -- nothing is dropped, nothing is hidden: failures ----------------------------------------------------


def test_a_failure_at_start_is_logged_and_shown_and_the_application_runs(
    database: Database, any_driver: str, engine: Engine, roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        connection.exec_driver_sql("GRANT INSERT, SELECT ON odds TO PUBLIC")
    url = roles.create("app", "NOSUPERUSER")
    with running(database, any_driver, url=url) as app:
        app.connection(lambda c: _insert(c, days_from_now(0)))
        health = app.health()
    assert not health.ok
    assert "permission denied for table partition_config" in str(health.error)
    assert "permission denied for table partition_config" in caplog.text


def test_on_error_raise_raises(database: Database, any_driver: str, engine: Engine, roles: Roles) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    url = roles.create("app", "NOSUPERUSER")
    with (
        running(database, any_driver, url=url, on_error="raise") as app,
        pytest.raises(DBAPIError, match="permission denied for table partition_config"),
    ):
        app.connection(_nothing)


def test_wrong_options_are_refused_where_they_are_given(engine: Engine) -> None:
    with pytest.raises(PolicyError, match="'refresh'"):
        keep(engine, refresh="now and then")
    with pytest.raises(PolicyError, match="'on_error'"):
        keep(engine, on_error="ignore")  # type: ignore[call-overload]


@pytest.mark.parametrize("url", ["", "postgres//keeper:s3cret@db.internal/app"])
def test_a_malformed_ddl_url_is_refused_at_once_without_its_password(engine: Engine, url: str) -> None:
    with pytest.raises(PolicyError, match="'ddl_url'") as caught:
        keep(engine, ddl_url=url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_ddl_host_that_does_not_answer_is_given_up(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        url = f"postgresql://keeper:secret@127.0.0.1:{silent.getsockname()[1]}/x"
        with running(database, any_driver, ddl_url=url) as app:
            app.connection(lambda c: _insert(c, days_from_now(0)))
    assert "partitions are not kept" in caplog.text


def test_a_log_handler_that_writes_through_the_engine_does_not_wait_for_us(
    database: Database, driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    wrong = database.url.set(username="nobody_like_that")
    with running(database, driver, ddl_url=wrong, engine_options={"pool_size": 3}) as app:

        class Writing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                app.connection(lambda c: _insert(c, days_from_now(0)))

        handler, logger = Writing(), logging.getLogger("alembic_partitions")
        logger.addHandler(handler)
        try:
            app.connection(_nothing)
        finally:
            logger.removeHandler(handler)
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_a_table_dropped_and_declared_again_is_found(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, refresh="1 h") as app:
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE odds")
        declare(engine, "odds", nz_racing_day("at", premake=2))
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.connection(lambda c: _insert(c, days_from_now(FAR)))
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_two_keepers_on_one_engine_mind_a_configuration_each(database: Database, engine: Engine) -> None:
    for schema in ("north", "south"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        own = sa.create_engine(database.url, connect_args={"options": f"-csearch_path={schema}"})
        declare(own, "odds", nz_racing_day("at", premake=2))
        own.dispose()
    with running(database, "psycopg2", schema="north") as app:
        keep(app.engine, schema="south")

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("SET search_path = south")
            _insert(connection, days_from_now(FAR))

        app.connection(work)
    assert len(partitions(engine, "south.odds")) == 5


def test_a_success_clears_what_went_wrong_before(
    database: Database, any_driver: str, engine: Engine, roles: Roles
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    url = roles.create("app", "NOSUPERUSER")
    with running(database, any_driver, url=url) as app:
        app.connection(_nothing)
        with engine.begin() as connection:
            connection.exec_driver_sql("GRANT SELECT ON partition_config TO PUBLIC")
        app.ensure()
        assert app.health().error is None


def test_two_configurations_are_an_error_that_names_both(database: Database, engine: Engine) -> None:
    for schema in ("north", "south"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        options = {"options": f"-csearch_path={schema}"}
        own = sa.create_engine(database.url, connect_args=options)
        declare(own, "odds", nz_racing_day("at", premake=2))
        own.dispose()
    with (
        running(database, "psycopg2", on_error="raise") as app,
        pytest.raises(ConfigurationError, match="schema 'north' and schema 'south'"),
    ):
        app.connection(_nothing)
    with running(database, "psycopg2", on_error="raise", schema="south") as app:
        assert [t.table for t in app.health().tables] == ["south.odds"]


def test_on_a_standby_nothing_is_tried_and_reads_go_on(private_server: Server) -> None:
    engine = sa.create_engine(private_server.url)
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6")
    engine.dispose()
    private_server.restart(mode="fast", standby=True)
    database = Database(private_server.url, 180000)
    with running(database, "psycopg2", on_error="raise") as app:
        app.connection(_nothing)
        with pytest.raises(DBAPIError, match="read-only transaction"):
            app.connection(lambda c: _insert(c, days_from_now(FAR)))
        assert len(app.health().tables[0].missing) == 4


def test_a_server_restart_is_survived(private_server: Server) -> None:
    engine = sa.create_engine(private_server.url)
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(
        Database(private_server.url, 180000), "psycopg2", engine_options={"pool_pre_ping": True}
    ) as app:
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
        private_server.restart(mode="fast")
        app.connection(lambda c: _insert(c, days_from_now(FAR + 1)))
    engine.dispose()
    assert sum(rows_by_partition(engine, "odds").values()) == 2
    engine.dispose()


def test_a_partition_that_was_detached_meanwhile_is_made_again(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, "psycopg2") as app:
        app.connection(_nothing)
        name = _made_for(days_from_now(2))
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE odds DETACH PARTITION {name}")
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.connection(lambda c: _insert(c, days_from_now(2)))
        app.connection(lambda c: _insert(c, days_from_now(2)))
    assert rows_by_partition(engine, "odds") == {f"{name}_2": 1}  # the detached one is not in the way


# -- how the application connects -----------------------------------------------------------------------


def test_the_side_connection_has_the_connect_args_of_the_engine(
    database: Database, driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    options = {"connect_args": {"application_name": "odds recorder"}}
    _set(engine, "premake = 6")
    with running(database, driver, engine_options=options) as app:
        app.connection(_nothing)
    with engine.begin() as connection:
        row = connection.exec_driver_sql("SELECT application, created, run_by FROM partition_runs").one()
        assert row == ("odds recorder", 4, database.url.username)


def test_a_creator_of_the_users_own_is_used(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    calls: list[int] = []

    def connect() -> Any:
        calls.append(1)
        url = database.url
        return psycopg2.connect(host=url.host, port=url.port, user=url.username, dbname=url.database)

    # The address leads nowhere: only the creator knows the way.
    nowhere = Database(sa.make_url("postgresql+psycopg2://nobody@nowhere.invalid/x"), database.server_version)
    with running(nowhere, "psycopg2", engine_options={"creator": connect}) as app:
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert len(calls) > 1
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_do_connect_and_connect_listeners_are_kept_also_those_added_later(
    database: Database, any_driver: str, engine: Engine, roles: Roles
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    login = roles.create("login", "NOSUPERUSER NOINHERIT")
    owner = database.url.username
    with engine.begin() as connection:
        connection.exec_driver_sql(f'GRANT "{owner}" TO {login.username}')
    with running(database, any_driver, url=login.set(password="fetched at connect time")) as app:

        @event.listens_for(app.engine, "do_connect")
        def fetch_token(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
            params["password"] = login.password

        @event.listens_for(app.engine, "connect")
        def set_role(dbapi_connection: Any, record: Any) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute(f'SET SESSION ROLE "{owner}"')
            cursor.close()
            if hasattr(dbapi_connection, "commit"):
                dbapi_connection.commit()

        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_threads_that_need_the_same_day_make_it_once(database: Database, driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    moment, failures = days_from_now(FAR), []
    options = {"pool_size": 8, "max_overflow": 0}
    with running(database, driver, engine_options=options) as app:
        app.connection(_nothing)
        barrier = threading.Barrier(8)

        def work() -> None:
            try:
                barrier.wait()
                app.connection(lambda c: _insert(c, moment))
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert rows_by_partition(engine, "odds") == {_made_for(moment): 8}


def test_a_fork_after_keep_works_on_both_sides(database: Database, driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    app = App(database, driver)
    app.connection(_nothing)
    assert app.keeper is not None
    with app.keeper._turn():  # type: ignore[union-attr]  # a thread is in the middle of DDL while we fork
        child = os.fork()
        if child == 0:
            try:
                app.engine.dispose(close=False)
                app.connection(lambda c: _insert(c, days_from_now(FAR)))
                os._exit(0)
            except BaseException:
                os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    app.connection(lambda c: _insert(c, days_from_now(FAR)))
    app.close()
    assert rows_by_partition(engine, "odds") == {_made_for(days_from_now(FAR)): 2}


# -- roles ----------------------------------------------------------------------------------------------


@pytest.fixture
def separated(engine: Engine, roles: Roles) -> tuple[sa.URL, sa.URL]:
    """An owner that may do DDL, and a writer that holds INSERT and SELECT on the table, nothing else."""
    owner = roles.create("owner", "NOSUPERUSER", password="the owners secret")
    writer = roles.create("writer", "NOSUPERUSER", password="the writers secret")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"GRANT CREATE, USAGE ON SCHEMA public TO {owner.username}")
    own = sa.create_engine(owner)
    declare(own, "odds", nz_racing_day("at", premake=2))
    with own.begin() as connection:
        connection.exec_driver_sql(f"GRANT INSERT, SELECT ON odds TO {writer.username}")
    own.dispose()
    return owner, writer


def test_with_a_ddl_url_the_application_needs_insert_and_select_alone(
    database: Database, any_driver: str, engine: Engine, separated: tuple[sa.URL, sa.URL]
) -> None:
    owner, writer = separated
    plain = owner.set(drivername="postgresql").render_as_string(hide_password=False)
    with running(database, any_driver, url=writer, ddl_url=plain, on_error="raise") as app:
        app.connection(lambda c: _insert(c, days_from_now(0)))
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert sum(rows_by_partition(engine, "odds").values()) == 2
    with engine.connect() as connection:
        owners = connection.exec_driver_sql(
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class"
            " JOIN pg_inherits ON inhrelid = pg_class.oid WHERE relkind = 'r'"
        )
        assert owners.scalars().all() == [owner.username]


def test_there_is_no_fall_back_to_the_applications_role(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    wrong = database.url.set(username="nobody_like_that", password="hunter2")
    with running(database, any_driver, ddl_url=wrong) as app:
        app.connection(lambda c: _insert(c, days_from_now(0)))
        with pytest.raises(DBAPIError, match="no partition of relation") as caught:
            app.connection(lambda c: _insert(c, days_from_now(FAR)))
        health = app.health()
    assert not health.ok
    assert "nobody_like_that" in str(health.error)
    assert "hunter2" not in caplog.text + str(health) + str(caught.value) + repr(app.keeper)
    assert len(partitions(engine, "odds")) == 4


@pytest.fixture
def crowded(engine: Engine, separated: tuple[sa.URL, sa.URL]) -> tuple[sa.URL, sa.URL]:
    """The same two; of the owner there may be one connection at a time."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE {separated[0].username} CONNECTION LIMIT 1")
    return separated


def _taken(url: sa.URL) -> Any:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))


def test_a_connection_that_is_to_be_had_in_a_moment_is_waited_for(
    database: Database, any_driver: str, engine: Engine, crowded: tuple[sa.URL, sa.URL]
) -> None:
    owner, writer = crowded
    with running(database, any_driver, url=writer, ddl_url=owner, wait="5 s") as app:
        app.connection(_nothing)
        gone = threading.Timer(0.3, _taken(owner).close)
        gone.start()
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
        gone.join()
        assert app.health().error is None
    assert rows_by_partition(engine, "odds") == {_made_for(days_from_now(FAR)): 1}


def test_so_it_is_for_the_first_look(
    database: Database, any_driver: str, engine: Engine, crowded: tuple[sa.URL, sa.URL]
) -> None:
    owner, writer = crowded
    _set(engine, "premake = 6")
    gone = threading.Timer(0.3, _taken(owner).close)
    with running(database, any_driver, url=writer, ddl_url=owner, wait="5 s", on_error="raise") as app:
        gone.start()
        app.connection(_nothing)
        gone.join()
    assert len(partitions(engine, "odds")) == 8


def test_where_all_connections_stay_taken_the_transaction_is_run_again(
    database: Database, any_driver: str, engine: Engine, crowded: tuple[sa.URL, sa.URL]
) -> None:
    owner, writer = crowded
    with running(database, any_driver, url=writer, ddl_url=owner, wait="200 ms") as app:
        app.connection(_nothing)
        other = _taken(owner)
        for _ in range(2):
            with pytest.raises(PartitionPending, match=r"no connection .*too many connections"):
                app.connection(lambda c: _insert(c, days_from_now(FAR)))
        other.close()
        time.sleep(0.1)
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert rows_by_partition(engine, "odds") == {_made_for(days_from_now(FAR)): 1}


# -- names that mean different tables -------------------------------------------------------------------


@pytest.fixture
def tenants(database: Database, engine: Engine) -> Engine:
    """Two tenants with a managed table each, and a guest whose table of that name is a plain one."""
    with engine.begin() as connection:
        for schema in ("north", "south", "guest"):
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        connection.exec_driver_sql("CREATE TABLE guest.odds (id int, at timestamptz)")
    declare(engine, "odds", nz_racing_day("at", premake=2), schema="north")
    declare(engine, "odds", nz_racing_day("at", premake=2), schema="south")
    return engine


@pytest.mark.parametrize("tenant", ["north", "south"])
def test_search_path_decides_whose_table_gets_the_partition(
    database: Database, any_driver: str, tenants: Engine, tenant: str
) -> None:
    with running(database, any_driver) as app:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql(f"SET search_path = {tenant}")
            _insert(connection, days_from_now(FAR))

        app.connection(work)
    sizes = {name: len(partitions(tenants, f"{name}.odds")) for name in ("north", "south")}
    assert sizes == {"north": 4, "south": 4, tenant: 5}


def test_a_plain_table_of_the_same_name_is_none_of_our_business(
    database: Database, any_driver: str, tenants: Engine
) -> None:
    with running(database, any_driver) as app:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("SET search_path = guest")
            _insert(connection, days_from_now(5000))  # beyond max_ahead of the others

        app.connection(work)
    assert {len(partitions(tenants, f"{name}.odds")) for name in ("north", "south")} == {4}


def test_schema_translate_map_is_followed(database: Database, any_driver: str, tenants: Engine) -> None:
    tenant = sa.Table("odds", sa.MetaData(schema="tenant"), sa.Column("at", sa.DateTime(timezone=True)))
    with running(database, any_driver) as app:

        def work(connection: Connection) -> None:
            connection = connection.execution_options(schema_translate_map={"tenant": "south"})
            connection.execute(tenant.insert().values(at=days_from_now(FAR)))

        app.connection(work)
    assert len(partitions(tenants, "south.odds")) == 5
    assert len(partitions(tenants, "north.odds")) == 4


def test_a_quoted_mixed_case_non_ascii_name_is_kept(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, 'Größe "x" 100%', nz_racing_day("Wann", premake=2))
    table = sa.Table('Größe "x" 100%', sa.MetaData(), sa.Column("Wann", sa.DateTime(timezone=True)))
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(table.insert().values(Wann=days_from_now(FAR))))
    quoted = '"Größe ""x"" 100%"'
    assert f'Größe "x" 100%_{auckland_day(days_from_now(FAR)):%Y_%m_%d}' in partitions(engine, quoted)


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None  # as on a machine where nobody asked for sqlalchemy[asyncio]
import sqlalchemy as sa
from alembic_partitions import keep
engine = sa.create_engine(sys.argv[1])
keeper = keep(engine, on_error="raise")
odds = sa.table("odds", sa.column("at", sa.DateTime(timezone=True)))
with engine.begin() as connection:
    connection.execute(odds.insert().values(at=sys.argv[2]))
engine.dispose()
assert keeper.health().ok
"""


def test_a_sync_application_needs_no_greenlet(database: Database, driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    url = database.driver_url(driver).render_as_string(hide_password=False)
    moment = days_from_now(FAR)
    arguments = [sys.executable, "-c", WITHOUT_GREENLET, url, moment.isoformat()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows_by_partition(engine, "odds") == {_made_for(moment): 1}


def test_levels_of_logging_stay_quiet_when_all_is_well(
    database: Database, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with caplog.at_level(logging.WARNING), running(database, "psycopg2") as app:
        app.connection(lambda c: _insert(c, days_from_now(FAR)))
    assert not caplog.records
