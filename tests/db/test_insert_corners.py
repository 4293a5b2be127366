"""Corners of the insert paths: what a key looks like on its way, and what is none of the hook's business."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import KeyOutsideLimits, PartitionPending, PartitionPolicy, nz_racing_day
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.keeper import Keeper
from tests.apps import App, auckland_day, days_from_now, declare, partitions, rows_by_partition, running
from tests.databases import Database
from tests.db.test_insert_paths import EpochMilliseconds

pytestmark = pytest.mark.ends

FAR = 100

odds = sa.Table(
    "odds",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, sa.Identity()),
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("note", sa.Text),
)
epochs = sa.Table(
    "odds",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, sa.Identity()),
    sa.Column("at", EpochMilliseconds()),
)


class Base(DeclarativeBase):
    pass


class Tick(Base):
    __tablename__ = "odds"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    at: Mapped[int] = mapped_column(EpochMilliseconds(), primary_key=True)


@pytest.fixture
def app(database: Database, any_driver: str, engine: Engine) -> Iterator[App]:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        yield app


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def name_of(moment: datetime) -> str:
    return f"odds_{auckland_day(moment):%Y_%m_%d}"


def made(engine: Engine, before: dict[str, str]) -> set[str]:
    return set(partitions(engine, "odds")) - set(before)


# -- how values stand in a statement --------------------------------------------------------------------


def _decorated_rows(moments: list[datetime]) -> sa.Executable:
    return epochs.insert().values([{"at": milliseconds(moment)} for moment in moments])


def _literals(moments: list[datetime]) -> sa.Executable:
    return odds.insert().values([{"at": sa.literal(moment)} for moment in moments])


def _own_binds(moments: list[datetime]) -> sa.Executable:
    return odds.insert().values([{"at": sa.bindparam(f"m{n}", m)} for n, m in enumerate(moments)])


def _tuples(moments: list[datetime]) -> sa.Executable:
    return odds.insert().values([(n, moment, None) for n, moment in enumerate(moments)])


@pytest.mark.parametrize("write", [_decorated_rows, _literals, _own_binds, _tuples])
def test_every_row_of_a_multi_values_insert_is_seen(
    app: App, engine: Engine, write: Callable[[list[datetime]], sa.Executable]
) -> None:
    moments = [days_from_now(FAR), days_from_now(FAR + 3)]
    app.connection(lambda c: c.execute(write(moments)))
    assert rows_by_partition(engine, "odds") == {name_of(moment): 1 for moment in moments}


def test_ordered_values_of_an_update_are_seen(app: App, engine: Engine) -> None:
    def work(connection: Connection) -> None:
        connection.execute(odds.insert().values(at=days_from_now(0)))
        connection.execute(odds.update().ordered_values((odds.c.note, "x"), (odds.c.at, days_from_now(FAR))))

    app.connection(work)
    assert rows_by_partition(engine, "odds") == {name_of(days_from_now(FAR)): 1}


@pytest.mark.parametrize("days", [FAR, -1000], ids=["ahead", "behind"])
def test_a_bind_in_the_where_of_an_update_is_no_key(
    database: Database, any_driver: str, engine: Engine, days: int
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2, retention="90 days"))
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        before = partitions(engine, "odds")
        where = odds.c.at < sa.bindparam("at", days_from_now(days))
        app.connection(lambda c: c.execute(odds.update().where(where).values(note="x")))
    assert made(engine, before) == set()


def test_a_decorated_key_is_seen_in_a_flush(app: App, engine: Engine) -> None:
    moment = days_from_now(FAR)
    sent: list[str] = []

    def work(session: Session) -> None:
        session.add(Tick(at=milliseconds(moment)))
        session.connection().exec_driver_sql("SELECT 1")
        event.listen(app.engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
        session.flush()

    app.session(work)
    assert sent[-1].startswith("INSERT")
    assert rows_by_partition(engine, "odds") == {name_of(moment): 1}


def test_a_decorator_that_refuses_a_value_says_so_as_without_us(app: App) -> None:
    with pytest.raises(sa.exc.StatementError, match="unsupported operand"):
        app.session(lambda session: session.add(Tick(at="soon")))


class InAuckland(sa.types.TypeDecorator[datetime]):
    """What is sent is a local time; PostgreSQL makes an instant of it."""

    impl = sa.DateTime()
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.timezone("Pacific/Auckland", bindparam)


def test_a_value_that_sql_changes_on_its_way_is_not_taken_for_the_key(app: App, engine: Engine) -> None:
    table = sa.Table("odds", sa.MetaData(), sa.Column("at", InAuckland()))
    # 23:59 in Auckland: as an instant, the day before.
    local = datetime.combine(auckland_day(days_from_now(FAR)), datetime.min.time()) + timedelta(minutes=1)
    before = partitions(engine, "odds")
    with pytest.raises(PartitionPending, match="made meanwhile"):
        app.connection(lambda c: c.execute(table.insert().values(at=local)))
    app.connection(lambda c: c.execute(table.insert().values(at=local)))
    assert made(engine, before) == {f"odds_{local:%Y_%m_%d}"} == set(rows_by_partition(engine, "odds"))


@pytest.mark.parametrize("key_type", [sa.DateTime(), sa.Date()], ids=["timestamp", "date"])
def test_the_offset_of_a_text_for_a_naive_key_is_dropped(
    database: Database, driver: str, engine: Engine, key_type: Any
) -> None:
    declare(engine, "odds", PartitionPolicy("at", max_ahead="100 years"), key_type=key_type)
    table = sa.Table("odds", sa.MetaData(), sa.Column("at", key_type))
    with running(database, driver) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        before = partitions(engine, "odds")
        app.connection(lambda c: c.execute(table.insert(), {"at": "2031-03-05T23:00:00-10:00"}))
    assert made(engine, before) == {"odds_2031_03_05"} == set(rows_by_partition(engine, "odds"))


@pytest.fixture
def in_auckland(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The host's clock is on New Zealand time."""
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    yield
    monkeypatch.undo()
    assert os.environ.get("TZ") == before
    time.tzset()


@pytest.mark.parametrize("month", [1, 7], ids=["summer", "winter"])
def test_a_date_for_an_instant_lies_where_the_driver_puts_it(
    database: Database, any_driver: str, engine: Engine, in_auckland: None, month: int
) -> None:
    policy = PartitionPolicy("at", interval="hour", premake=1, max_ahead="100 years")
    declare(engine, "odds", policy)
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        before = partitions(engine, "odds")
        app.connection(lambda c: c.execute(odds.insert().values(at=date(2031, month, 15))))
    assert made(engine, before) == set(rows_by_partition(engine, "odds"))


@pytest.mark.parametrize("precision", [0, 3])
def test_a_key_is_rounded_as_the_column_rounds_it(
    database: Database, any_driver: str, engine: Engine, precision: int
) -> None:
    declare(
        engine,
        "odds",
        nz_racing_day("at", premake=0, lookback=0),
        key_type=TIMESTAMP(timezone=True, precision=precision),
    )
    midnight = datetime.combine(auckland_day(days_from_now(FAR)), datetime.min.time()) - timedelta(hours=12)
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        before = partitions(engine, "odds")
        for short in (timedelta(microseconds=500), timedelta(milliseconds=499)):
            moment = midnight.replace(tzinfo=timezone.utc) - short
            app.connection(lambda c, moment=moment: c.execute(odds.insert(), [{"at": moment}]))  # type: ignore[misc]
    assert made(engine, before) == set(rows_by_partition(engine, "odds"))


# -- what PostgreSQL says of a key that did not show ----------------------------------------------------


@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY", "ISO, DMY"])
def test_an_unseen_key_is_read_in_any_datestyle(
    database: Database, any_driver: str, engine: Engine, style: str
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {database.name} SET datestyle = '{style}'")
    moment = days_from_now(FAR)
    statement = sa.text(f"INSERT INTO odds (at) VALUES (timestamptz '{moment.isoformat()}')")
    with running(database, any_driver) as app:
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.connection(lambda c: c.execute(statement))
        app.connection(lambda c: c.execute(statement))
    assert rows_by_partition(engine, "odds") == {name_of(moment): 1}


def test_a_server_default_is_served_by_the_horizon(
    database: Database, any_driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=0, lookback=0))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE odds ALTER COLUMN at SET DEFAULT now()")
        connection.exec_driver_sql(f"DROP TABLE {name_of(days_from_now(0))}")
    table = sa.table("odds", sa.column("note"))
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(sa.insert(table).values(note="now")))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


# -- limits, before anything is sent --------------------------------------------------------------------


def _flush(session: Session, moment: datetime) -> None:
    session.add(Tick(at=milliseconds(moment)))
    session.flush()


def _update(session: Session, moment: datetime) -> None:
    session.connection().execute(odds.update().values(at=moment))


def _rows(session: Session, moment: datetime) -> None:
    session.connection().execute(odds.insert().values([{"at": moment}, {"at": days_from_now(0)}]))


@pytest.mark.parametrize("write", [_flush, _update, _rows])
@pytest.mark.parametrize(("days", "field"), [(400, "max_ahead"), (-10, "max_behind")])
def test_a_key_beyond_the_limits_never_reaches_the_server(
    database: Database,
    any_driver: str,
    engine: Engine,
    write: Callable[[Session, datetime], None],
    days: int,
    field: str,
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2, max_behind="3 days"))
    sent: list[str] = []
    with running(database, any_driver) as app:
        app.connection(lambda c: None)
        event.listen(app.engine, "after_cursor_execute", lambda *args: sent.append(args[2]))
        with pytest.raises(KeyOutsideLimits) as refusal:
            app.session(lambda session: write(session, days_from_now(days)))
    assert refusal.value.field == field
    assert not [statement for statement in sent if statement.startswith(("INSERT", "UPDATE"))]


# -- COPY, past SQLAlchemy ------------------------------------------------------------------------------


def _copy(connection: Connection, moment: datetime) -> None:
    raw: Any = connection.connection.driver_connection
    if connection.dialect.driver == "psycopg2":
        raw.cursor().copy_expert("COPY odds (at) FROM STDIN", io.StringIO(f"{moment.isoformat()}\n"))
    else:
        with raw.cursor() as cursor, cursor.copy("COPY odds (at) FROM STDIN") as copy:
            copy.write_row([moment])


def test_rows_of_a_copy_find_the_horizon_and_beyond_it_a_retry_passes(
    database: Database, driver: str, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, driver) as app:
        keeper = app.keeper
        assert isinstance(keeper, Keeper)

        def work(connection: Connection, moment: datetime) -> None:
            with keeper.watching(connection):
                _copy(connection, moment)

        app.connection(lambda c: work(c, days_from_now(1)))
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.connection(lambda c: work(c, days_from_now(FAR)))
        app.connection(lambda c: work(c, days_from_now(FAR)))
        with (
            pytest.raises(ZeroDivisionError),
            app.engine.connect() as connection,
            keeper.watching(connection),
        ):
            _ = 1 / 0
    assert rows_by_partition(engine, "odds") == {name_of(days_from_now(n)): 1 for n in (1, FAR)}


def test_rows_of_asyncpgs_copy_find_the_horizon_and_beyond_it_a_retry_passes(
    database: Database, engine: Engine
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, "asyncpg") as app:
        keeper, async_engine = app.keeper, app.async_engine
        assert isinstance(keeper, AsyncKeeper)
        assert async_engine is not None

        async def copy(moment: datetime) -> None:
            async with async_engine.begin() as connection, keeper.watching(connection):
                await connection.execute(sa.select(1))
                raw: Any = (await connection.get_raw_connection()).driver_connection
                await raw.copy_records_to_table("odds", records=[(moment,)], columns=["at"])

        app.run(copy(days_from_now(1)))
        with pytest.raises(PartitionPending, match="made meanwhile"):
            app.run(copy(days_from_now(FAR)))
        app.run(copy(days_from_now(FAR)))
    assert rows_by_partition(engine, "odds") == {name_of(days_from_now(n)): 1 for n in (1, FAR)}
