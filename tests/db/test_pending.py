"""A transaction that began earlier, or that holds what ATTACH needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
import tenacity
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from alembic_partitions import PartitionPending, catalog, nz_racing_day
from tests.apps import App, auckland_day, days_from_now, declare, partitions, rows_by_partition, running
from tests.databases import Database, locks_referrers

odds = sa.table("odds", sa.column("at", sa.DateTime(timezone=True)), sa.column("note"))
entrants = sa.table("entrants", sa.column("id", sa.Integer), sa.column("name"))
history = sa.table("history", sa.column("at", sa.DateTime(timezone=True)), sa.column("entrant_id"))

odds_table = sa.Table("odds", sa.MetaData(), sa.Column("id"), sa.Column("at", sa.DateTime(timezone=True)))
history_table = sa.Table(
    "history",
    sa.MetaData(),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("entrant_id", sa.Integer),
)


class Base(DeclarativeBase):
    pass


class Entrant(Base):
    __tablename__ = "entrants"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class History(Base):
    __tablename__ = "history"
    __table_args__ = (nz_racing_day("at"),)
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    entrant_id: Mapped[int] = mapped_column(sa.ForeignKey("entrants.id"))
    entrant: Mapped[Entrant] = relationship()


PREPARING: dict[str, dict[str, Any]] = {
    "psycopg2": {},
    "psycopg": {"connect_args": {"prepare_threshold": 0}},
    "asyncpg": {},
}
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def app(database: Database, any_driver: str, engine: Engine) -> Iterator[App]:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, engine_options=PREPARING[any_driver]) as app:
        yield app


def _insert(connection: Connection, moment: datetime) -> None:
    connection.execute(odds_table.insert().values(at=moment))


# -- prepared statements in a long transaction -----------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_long_transaction_sees_a_window_that_it_asked_for(app: App, engine: Engine, level: str) -> None:
    def work(connection: Connection) -> None:
        connection.execute(sa.text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        for moment in (days_from_now(0), days_from_now(0), days_from_now(100)):
            _insert(connection, moment)

    app.connection(work)
    assert sum(rows_by_partition(engine, "odds").values()) == 3


@pytest.mark.parametrize("level", LEVELS)
def test_a_long_transaction_sees_a_window_made_by_another_process(
    app: App, database: Database, engine: Engine, level: str
) -> None:
    def work(connection: Connection) -> None:
        connection.execute(sa.text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        _insert(connection, days_from_now(0))
        with running(database, "psycopg2") as other:
            other.connection(lambda c: _insert(c, days_from_now(100)))
        _insert(connection, days_from_now(100))

    app.connection(work)
    assert sum(rows_by_partition(engine, "odds").values()) == 3


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_long_transaction_sees_a_window_made_by_a_background_look(
    database: Database, engine: Engine, driver: str
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, driver, engine_options=PREPARING[driver]) as app:

        def work(connection: Connection) -> None:
            _insert(connection, days_from_now(0))
            with engine.begin() as operator:
                operator.exec_driver_sql("UPDATE partition_config SET premake = 9")
            assert app.ensure().created > 0
            _insert(connection, days_from_now(8))

        app.connection(work)
    assert sum(rows_by_partition(engine, "odds").values()) == 2


def test_without_the_notice_a_prepared_statement_fails(
    database: Database, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the notice is for. Not at every try: a server whose other sessions change much interrupts the idle
    ones, and has them read what was changed."""
    declare(engine, "odds", nz_racing_day("at", premake=2))
    monkeypatch.setattr(catalog, "notice", lambda connection, oid: None)
    failed = 0
    with running(database, "asyncpg") as app:
        for days in range(100, 110):

            def work(connection: Connection, days: int = days) -> None:
                _insert(connection, days_from_now(0))
                _insert(connection, days_from_now(days))

            try:
                app.connection(work)
            except PartitionPending:
                failed += 1
    assert failed


# -- a foreign key whose other end the same transaction writes ------------------------------------------


@pytest.fixture
def racing(database: Database, any_driver: str, engine: Engine) -> Iterator[App]:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE entrants (id int PRIMARY KEY, name text)")
    declare(
        engine,
        "history",
        nz_racing_day("at", premake=2),
        sa.Column("entrant_id", sa.Integer, sa.ForeignKey("entrants.id")),
    )
    with running(database, any_driver) as app:
        yield app


def _entrant_then_history(connection: Connection, number: int, moment: datetime) -> None:
    connection.execute(entrants.insert().values(id=number))
    connection.execute(history_table.insert().values(at=moment, entrant_id=number))


def test_the_writer_of_the_other_end_is_told_at_once_and_its_retry_passes(
    racing: App, engine: Engine
) -> None:
    moment = days_from_now(100)
    with pytest.raises(PartitionPending, match=r"holds RowExclusiveLock on entrants.*run it again") as caught:
        racing.connection(lambda c: _entrant_then_history(c, 1, moment))
    assert caught.value.window == f"{auckland_day(moment):%Y_%m_%d}"
    racing.connection(lambda c: _entrant_then_history(c, 1, moment))
    assert rows_by_partition(engine, "history") == {f"history_{auckland_day(moment):%Y_%m_%d}": 1}


def test_the_window_is_made_as_soon_as_the_transaction_is_over(racing: App, engine: Engine) -> None:
    moment = days_from_now(100)
    with pytest.raises(PartitionPending):
        racing.connection(lambda c: _entrant_then_history(c, 1, moment))
    assert f"history_{auckland_day(moment):%Y_%m_%d}" in partitions(engine, "history")


def test_who_came_back_too_early_lets_go_at_once(racing: App, engine: Engine) -> None:
    """Without a second connection first: what it holds meanwhile keeps others from making the window."""
    moment, connected = days_from_now(100), list[Any]()

    def again(connection: Connection) -> None:
        sa.event.listen(racing.engine, "do_connect", lambda *args: connected.append(args))
        try:
            _entrant_then_history(connection, 1, moment)
        finally:
            assert not connected

    with engine.connect() as peer:
        peer.exec_driver_sql("LOCK TABLE history IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(PartitionPending):
            racing.connection(lambda c: _entrant_then_history(c, 1, moment))
        with pytest.raises(PartitionPending, match="holds RowExclusiveLock on entrants") as caught:
            racing.connection(again)
        assert "ShareUpdateExclusiveLock" not in str(caught.value)  # told of its own lock alone
    again_and_again = tenacity.Retrying(stop=tenacity.stop_after_attempt(20), wait=tenacity.wait_fixed(0.1))
    again_and_again(racing.connection, lambda c: _entrant_then_history(c, 1, moment))
    assert sum(rows_by_partition(engine, "history").values()) == 1


def test_a_flush_is_looked_at_before_its_first_statement(racing: App, engine: Engine) -> None:
    def work(session: Session) -> None:
        session.add(History(at=days_from_now(100), entrant=Entrant(id=1)))
        session.flush()

    racing.session(work)
    assert sum(rows_by_partition(engine, "history").values()) == 1


def test_the_documented_retry_passes(racing: App, engine: Engine) -> None:
    @tenacity.retry(
        retry=tenacity.retry_if_exception_type(PartitionPending),
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_random(0.01, 0.2),
        reraise=True,
    )
    def write() -> None:
        racing.connection(lambda c: _entrant_then_history(c, 1, days_from_now(100)))

    write()
    assert sum(rows_by_partition(engine, "history").values()) == 1


def test_a_table_that_refers_to_the_parent_counts_as_well(database: Database, engine: Engine) -> None:
    if not locks_referrers(database.server_version):
        pytest.skip("before November 2024 ATTACH did not lock the tables that refer to the parent")
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE bets (odds_id bigint, at timestamptz, FOREIGN KEY (odds_id, at) REFERENCES odds)"
        )
    with running(database, "psycopg2") as app:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("INSERT INTO bets VALUES (NULL, NULL)")
            _insert(connection, days_from_now(100))

        with pytest.raises(PartitionPending, match="RowExclusiveLock on bets"):
            app.connection(work)


def test_a_peer_that_holds_the_lock_is_named_after_the_wait(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, wait="300 ms") as app, engine.connect() as peer:
        app.connection(lambda c: None)
        peer.exec_driver_sql("SET application_name = 'night watch'")
        peer.exec_driver_sql("LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(PartitionPending, match=r"night watch.*ShareUpdateExclusiveLock on odds"):
            app.connection(lambda c: _insert(c, days_from_now(100)))
        peer.rollback()
        app.connection(lambda c: _insert(c, days_from_now(100)))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_a_prepared_transaction_is_named_too(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, "psycopg2", wait="300 ms") as app, engine.connect() as peer:
        app.connection(lambda c: None)
        peer.exec_driver_sql("LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE")
        peer.exec_driver_sql("PREPARE TRANSACTION 'forgotten'")
        try:
            with pytest.raises(PartitionPending, match="a prepared transaction holds"):
                app.connection(lambda c: _insert(c, days_from_now(100)))
        finally:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
                admin.exec_driver_sql("ROLLBACK PREPARED 'forgotten'")


def test_truncate_before_an_insert_is_told_at_once(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver) as app:

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("TRUNCATE odds")
            _insert(connection, days_from_now(100))

        with pytest.raises(PartitionPending, match="AccessExclusiveLock on odds"):
            app.connection(work)


def test_a_migration_under_way_does_not_keep_an_application_from_starting(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.connect() as migration, running(database, any_driver, wait="300 ms") as app:
        migration.exec_driver_sql("ALTER TABLE odds ADD COLUMN more int")
        app.connection(lambda c: c.execute(sa.select(1)))


def test_a_locked_configuration_is_not_waited_for_for_ever(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.connect() as operator, running(database, any_driver) as app:
        operator.exec_driver_sql("LOCK TABLE partition_config IN ACCESS EXCLUSIVE MODE")
        app.connection(lambda c: c.execute(sa.select(1)))
    assert "lock timeout" in caplog.text


def test_while_a_window_is_pending_others_go_on(database: Database, any_driver: str, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, wait="200 ms") as app, engine.connect() as peer:
        app.connection(lambda c: None)
        peer.exec_driver_sql("LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(PartitionPending):
            app.connection(lambda c: _insert(c, days_from_now(100)))
        for _ in range(3):
            app.connection(lambda c: _insert(c, days_from_now(0)))
    assert sum(rows_by_partition(engine, "odds").values()) == 3


# -- a DEFAULT partition --------------------------------------------------------------------------------


def _with_default(engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE odds_rest PARTITION OF odds DEFAULT")


def test_beside_a_default_partition_the_window_is_made_all_the_same(
    database: Database, any_driver: str, engine: Engine
) -> None:
    _with_default(engine)
    moment = days_from_now(100)
    with running(database, any_driver) as app:
        app.connection(lambda c: _insert(c, moment))
    assert rows_by_partition(engine, "odds") == {f"odds_{auckland_day(moment):%Y_%m_%d}": 1}


def test_where_it_cannot_be_made_the_row_goes_to_default_and_nothing_is_raised(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    _with_default(engine)
    with running(database, any_driver) as app, caplog.at_level(logging.WARNING, "alembic_partitions"):

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("SELECT count(*) FROM odds").scalar()  # holds a lock on DEFAULT
            _insert(connection, days_from_now(100))

        app.connection(work)
    assert rows_by_partition(engine, "odds") == {"odds_rest": 1}
    assert "go to its DEFAULT partition" in caplog.text


def test_rows_already_in_default_keep_their_window_from_being_made(
    database: Database, any_driver: str, engine: Engine
) -> None:
    _with_default(engine)
    moment = days_from_now(100)
    with engine.begin() as connection:
        _insert(connection, moment)
    with running(database, any_driver) as app:
        app.connection(lambda c: _insert(c, moment))
    assert rows_by_partition(engine, "odds") == {"odds_rest": 2}


@pytest.mark.parametrize("days", [500, -500], ids=["max_ahead", "retention"])
def test_beside_default_no_limit_refuses_a_row(
    database: Database, any_driver: str, engine: Engine, days: int
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2, retention="30 days"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    with running(database, any_driver) as app:
        app.connection(lambda c: _insert(c, days_from_now(days)))
    assert rows_by_partition(engine, "odds") == {"odds_rest": 1}


def test_a_window_left_to_default_is_tried_once_a_look(
    database: Database, any_driver: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    _with_default(engine)
    moment = days_from_now(100)
    with engine.begin() as connection:
        _insert(connection, moment)
    with running(database, any_driver) as app:
        for _ in range(5):
            app.connection(lambda c: _insert(c, moment))
    assert rows_by_partition(engine, "odds") == {"odds_rest": 6}
    assert caplog.text.count("partitions are not kept") == 1
