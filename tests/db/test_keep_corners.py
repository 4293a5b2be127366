"""Corners of the keeper: other sessions' business, failures inside failures, and how long a hook may take."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import PartitionPending, keep, keeper, nz_racing_day
from alembic_partitions.errors import StepFailed
from alembic_partitions.health import Health
from alembic_partitions.keeper import Keeper
from tests.apps import days_from_now, declare, hours_from_now, partitions, rows_by_partition, running
from tests.databases import Database, Databases, Roles
from tests.db.test_keep import FAR, _insert, _made_for, _nothing, _set

history = sa.table("history", sa.column("at", sa.DateTime(timezone=True)), sa.column("entrant_id"))


class Base(DeclarativeBase):
    pass


class Odds(Base):
    __tablename__ = "odds"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    at: Mapped[Any] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str | None]


# -- how long a hook may take ---------------------------------------------------------------------------


def test_whoever_holds_the_turn_for_ever_holds_up_no_application(
    database: Database, any_driver: str, engine: Engine
) -> None:
    """A provisioner that hangs: without a bound each of these steps took from ten to twenty-five seconds."""
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6")
    with running(database, any_driver, wait="500 ms", refresh="1 ms") as app, engine.connect() as stuck:
        stuck.execute(sa.text("SELECT pg_advisory_xact_lock(1634496609, 'odds'::regclass::oid::int)"))
        began = time.monotonic()
        app.connection(_nothing)
        app.connection(_nothing)
        assert time.monotonic() - began < 9


# -- a failure inside a failure -------------------------------------------------------------------------


def test_a_failing_check_in_keeps_no_connection(
    database: Database, any_driver: str, engine: Engine, roles: Roles
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE entrants (id int PRIMARY KEY)")
    declare(
        engine,
        "history",
        nz_racing_day("at", premake=2),
        sa.Column("entrant_id", sa.Integer, sa.ForeignKey("entrants.id")),
    )
    ddl = roles.create("ddl", "SUPERUSER")

    def login(allowed: bool) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER ROLE {ddl.username} {'LOGIN' if allowed else 'NOLOGIN'}")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO entrants VALUES (1)")
        try:
            connection.execute(history.insert().values(at=days_from_now(FAR), entrant_id=1))
        except PartitionPending:
            login(False)  # the DDL role is out for a moment
            raise

    with running(database, any_driver, on_error="raise", ddl_url=ddl) as app:
        app.connection(_nothing)
        with pytest.raises(PartitionPending):
            app.connection(work)
        login(True)
        app.connection(_nothing)  # of a pool of one


def test_a_log_handler_that_asks_for_the_health_is_answered(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    wrong = database.url.set(username="nobody_like_that")
    answers: list[Health] = []
    with running(database, any_driver, ddl_url=wrong) as app:
        sync_keeper = app.keeper if isinstance(app.keeper, Keeper) else app.keeper._keeper  # type: ignore[union-attr]

        class Asking(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                answers.append(sync_keeper.health())

        handler, logger = Asking(), logging.getLogger("alembic_partitions")
        logger.addHandler(handler)
        try:
            app.connection(_nothing)
        finally:
            logger.removeHandler(handler)
    assert [answer.ok for answer in answers] == [False]


def test_a_table_that_is_gone_is_logged_once_and_raised_where_that_is_asked_for(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE odds RENAME TO evens")
    with running(database, any_driver, refresh="1 ms") as app:
        for _ in range(3):
            app.connection(_nothing)
            time.sleep(0.002)
        assert "the table does not exist" in str(app.health().error)
    assert caplog.text.count("the table does not exist") == 1
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM partition_runs").scalar() == 1
    with (
        running(database, any_driver, on_error="raise") as app,
        pytest.raises(StepFailed, match="the table does not exist"),
    ):
        app.connection(_nothing)


def test_after_a_failure_the_next_look_comes_sooner(
    database: Database, any_driver: str, engine: Engine, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    _set(engine, "premake = 6")
    monkeypatch.setattr(keeper, "_SOON", 0.05)
    ddl = roles.create("ddl", "SUPERUSER")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE {ddl.username} NOLOGIN")
    with running(database, any_driver, refresh="1 h", ddl_url=ddl) as app:
        app.connection(_nothing)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER ROLE {ddl.username} LOGIN")
        time.sleep(0.06)
        app.connection(_nothing)
    assert len(partitions(engine, "odds")) == 8


# -- sessions and engines of every make -----------------------------------------------------------------


def test_a_connection_that_was_there_before_keep(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, "psycopg2", kept=False) as app, app.engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
        keep(app.engine)
        _insert(connection, days_from_now(FAR))
    assert rows_by_partition(engine, "odds") == {_made_for(days_from_now(FAR)): 1}


def test_of_two_kept_engines_each_flush_goes_to_its_own(
    databases: Databases, database: Database, engine: Engine
) -> None:
    other = databases.clone()
    elsewhere = sa.create_engine(other.url)
    for one in (engine, elsewhere):
        declare(one, "odds", nz_racing_day("at", premake=2))
    with running(database, "psycopg2") as here, running(other, "psycopg2") as there:
        for app, days in ((here, FAR), (there, FAR + 1)):
            app.session(lambda session, days=days: session.add(Odds(at=days_from_now(days))))  # type: ignore[misc]
    assert rows_by_partition(engine, "odds") == {_made_for(days_from_now(FAR)): 1}
    assert len(partitions(engine, "odds")) == 5
    assert rows_by_partition(elsewhere, "odds") == {_made_for(days_from_now(FAR + 1)): 1}
    assert len(partitions(elsewhere, "odds")) == 5
    elsewhere.dispose()


def test_a_sharded_session_is_left_to_its_own_devices(
    databases: Databases, database: Database, engine: Engine
) -> None:
    other = databases.clone()
    elsewhere = sa.create_engine(other.url)
    for one in (engine, elsewhere):
        declare(one, "odds", nz_racing_day("at", premake=2))
        keep(one)

    def choose(mapper: Any, instance: Any, clause: Any = None) -> Any:
        return instance.note

    with ShardedSession(
        shards={"a": engine, "b": elsewhere},
        shard_chooser=choose,
        identity_chooser=lambda *args, **kw: ["a", "b"],
        execute_chooser=lambda *args: ["a", "b"],
    ) as session:
        session.add_all([Odds(at=days_from_now(FAR), note="a"), Odds(at=days_from_now(FAR), note="b")])
        session.commit()
    for one in (engine, elsewhere):
        assert rows_by_partition(one, "odds") == {_made_for(days_from_now(FAR)): 1}
        one.dispose()


@pytest.fixture
def tenants(engine: Engine) -> Engine:
    for schema in ("north", "south"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        declare(engine, "odds", nz_racing_day("at", premake=2), schema=schema)
    return engine


def test_a_flush_follows_schema_translate_map(database: Database, any_driver: str, tenants: Engine) -> None:
    options = {"execution_options": {"schema_translate_map": {None: "south"}}}
    with running(database, any_driver, engine_options=options) as app:

        def work(session: Session) -> None:
            session.add(Odds(at=days_from_now(FAR)))
            session.flush()

        app.session(work)
    assert len(partitions(tenants, "south.odds")) == 5
    assert len(partitions(tenants, "north.odds")) == 4


def test_a_schema_translated_to_none_is_the_default_one(
    database: Database, any_driver: str, tenants: Engine
) -> None:
    declare(tenants, "odds", nz_racing_day("at", premake=2), schema="public")
    table = sa.Table("odds", sa.MetaData(schema="tenant"), sa.Column("at", sa.DateTime(timezone=True)))
    with running(database, any_driver) as app:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("SET search_path = south")
            connection = connection.execution_options(schema_translate_map={"tenant": None})
            connection.execute(table.insert().values(at=days_from_now(FAR)))

        app.connection(work)
    assert len(partitions(tenants, "public.odds")) == 5
    assert len(partitions(tenants, "south.odds")) == 4


def test_merge_and_two_phases(database: Database, driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, driver) as app:
        app.session(lambda session: session.merge(Odds(id=1, at=days_from_now(FAR))))
        app.session(lambda session: session.add(Odds(at=days_from_now(FAR + 1))), twophase=True)
    assert sum(rows_by_partition(engine, "odds").values()) == 2


def test_a_row_that_cannot_be_sent_is_the_applications_own_error(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver) as app, pytest.raises(DBAPIError, match="does not exist"):
        app.connection(
            lambda c: c.execute(sa.insert(sa.table("nowhere", sa.column("at"))), {"at": hours_from_now(1)})
        )
