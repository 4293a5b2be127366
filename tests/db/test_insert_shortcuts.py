"""The hook's short cuts: what is quickly told of rows inside coverage is told right of those outside."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Iterator
from datetime import date, datetime
from functools import partial
from typing import Any

import pytest
import pytz
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import PartitionPolicy, catalog, maintenance, nz_racing_day
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.keeper import Keeper
from tests.apps import App, auckland_day, days_from_now, declare, partitions, rows_by_partition, running
from tests.databases import Database

pytestmark = pytest.mark.ends

NEAR, FAR = 50, 100
AUCKLAND = "Pacific/Auckland"


class Base(DeclarativeBase):
    pass


class Odds(Base):
    __tablename__ = "odds"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str | None]


class OneByOne(Base):
    """Without `autoincrement=True` a flush sends each row by itself."""

    __tablename__ = "odds"
    __table_args__ = {"schema": "public"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str | None]


class OnlyTimes(sa.types.TypeDecorator[datetime]):
    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        assert isinstance(value, datetime)
        return value


class Other(DeclarativeBase):
    pass


class Decorated(Other):
    __tablename__ = "odds"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(OnlyTimes, primary_key=True)


odds: Any = Odds.__table__


@pytest.fixture
def app(database: Database, any_driver: str, engine: Engine) -> Iterator[App]:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver, engine_options={"pool_size": 2}) as app:
        app.connection(lambda c: c.execute(sa.select(1)))
        yield app


def insert(connection: Connection, *moments: Any) -> None:
    """Send each by a statement of its own, the same one for all."""
    for moment in moments:
        connection.execute(odds.insert().values(at=moment))


def name_of(moment: datetime) -> str:
    return f"odds_{auckland_day(moment):%Y_%m_%d}"


def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note each closer look at rows."""
    noted: list[object] = []
    look = Keeper.look

    def noting(self: Keeper, *args: Any) -> None:
        noted.append(args)
        look(self, *args)

    monkeypatch.setattr(Keeper, "look", noting)
    return noted


# -- rows sent one by one --------------------------------------------------------------------------------


def test_of_single_rows_inside_coverage_only_the_first_is_looked_at_closely(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = looks(monkeypatch)
    app.connection(lambda c: insert(c, *(days_from_now(n / 100) for n in range(100))))
    assert len(noted) == 1


def test_a_flush_of_rows_one_by_one_is_looked_at_once_and_once_more_as_it_is_sent(
    app: App, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = looks(monkeypatch)
    app.session(lambda s: s.add_all([OneByOne(at=days_from_now(n / 100)) for n in range(100)]))
    assert len(noted) == 2
    assert sum(rows_by_partition(engine, "odds").values()) == 100


def test_a_single_row_beyond_what_the_one_before_lay_in_gets_its_window(app: App, engine: Engine) -> None:
    moments = [days_from_now(days) for days in (0, 0, FAR, FAR, NEAR, 0, FAR + 1, -NEAR)]
    app.connection(lambda c: insert(c, *moments))
    assert rows_by_partition(engine, "odds").keys() == {name_of(moment) for moment in moments}


@pytest.mark.parametrize(
    "zone", [zoneinfo.ZoneInfo("Pacific/Auckland"), pytz.timezone("Pacific/Auckland"), None]
)
def test_a_single_row_in_another_zone_or_none_gets_its_window(app: App, engine: Engine, zone: Any) -> None:
    far = days_from_now(FAR).replace(
        hour=0
    )  # the same day in Auckland, whatever the host's and session's zone
    shown = far.astimezone(zone) if zone else far.replace(tzinfo=None)
    app.connection(lambda c: insert(c, days_from_now(0), days_from_now(0), shown))
    assert name_of(far) in rows_by_partition(engine, "odds")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_single_row_whose_key_is_a_text_gets_its_window(
    database: Database, engine: Engine, driver: str
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    far = days_from_now(FAR)
    with running(database, driver) as app:
        app.connection(lambda c: insert(c, days_from_now(0), days_from_now(0), far.isoformat()))
    assert name_of(far) in rows_by_partition(engine, "odds")


@pytest.mark.parametrize(("key_type", "as_key"), [(sa.DateTime(), datetime), (sa.Date(), date)], ids=str)
def test_a_single_row_of_a_key_without_a_zone_gets_its_window(
    database: Database, engine: Engine, any_driver: str, key_type: Any, as_key: type
) -> None:
    declare(engine, "days", PartitionPolicy("at", premake=2), key_type=key_type)
    table = sa.Table("days", sa.MetaData(), sa.Column("at", key_type))
    moments = [days_from_now(days).replace(tzinfo=None) for days in (0, 0, FAR)]
    values = [moment if as_key is datetime else moment.date() for moment in moments]
    with running(database, any_driver) as app:
        app.connection(lambda c: [c.execute(table.insert().values(at=value)) for value in values])
    assert rows_by_partition(engine, "days").keys() == {f"days_{m:%Y_%m_%d}" for m in moments}


def test_a_single_row_for_another_tenants_table_gets_its_window_there(app: App, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA other")
    declare(engine, "odds", nz_racing_day("at", premake=2), schema="other")
    app.ensure()
    far = days_from_now(FAR)
    table: Any = OneByOne.__table__
    insert_far = table.insert().values(at=far)

    for translation in ({"elsewhere": "public"}, {"elsewhere": "public"}, {"public": "other"}):
        options: Any = {"execution_options": {"schema_translate_map": translation}}
        app.connection(partial(Connection.execute, statement=insert_far, **options))
    assert name_of(far) in partitions(engine, "other.odds")


def test_a_row_in_a_window_that_was_made_after_its_transaction_began_has_it_noticed(
    app: App, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, noticed, notice = days_from_now(FAR), list[int](), catalog.notice

    def noting(connection: Connection, oid: int) -> None:
        noticed.append(oid)
        notice(connection, oid)

    def work(connection: Connection) -> None:
        insert(connection, days_from_now(0), days_from_now(0))
        with app.engine.begin() as later:  # the same statement, by a transaction that begins after the look
            insert(later, far)
        with app.engine.begin() as later:
            insert(later, far, far)
        monkeypatch.setattr(catalog, "notice", noting)
        insert(connection, far)

    app.connection(work)
    assert len(noticed) == 1
    assert rows_by_partition(engine, "odds")[name_of(far)] == 4


def test_what_has_been_learned_meanwhile_counts(app: App, engine: Engine) -> None:
    far = days_from_now(FAR)
    app.connection(lambda c: insert(c, far, far, far))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {name_of(far)}")
    app.ensure()  # looks again
    app.connection(lambda c: insert(c, far))
    assert rows_by_partition(engine, "odds") == {name_of(far): 1}


# -- many at once ----------------------------------------------------------------------------------------


def _executemany(session: Session, moments: list[Any]) -> None:
    session.connection().execute(odds.insert(), [{"at": moment} for moment in moments])


def _flush(session: Session, moments: list[Any]) -> None:
    session.add_all([Odds(at=moment) for moment in moments])


def _flush_one_by_one(session: Session, moments: list[Any]) -> None:
    session.add_all([OneByOne(at=moment) for moment in moments])


WAYS = pytest.mark.parametrize("way", [_executemany, _flush, _flush_one_by_one])


@WAYS
def test_a_gap_between_the_first_and_the_last_key_is_filled(
    app: App, engine: Engine, way: Callable[[Session, list[Any]], None]
) -> None:
    app.connection(lambda c: insert(c, days_from_now(FAR)))
    moments = [days_from_now(days) for days in (0, FAR, NEAR, 0)]
    app.session(lambda session: way(session, moments))
    assert rows_by_partition(engine, "odds") == {
        name_of(days_from_now(0)): 2,
        name_of(days_from_now(NEAR)): 1,
        name_of(days_from_now(FAR)): 2,
    }


@WAYS
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_texts_among_times_are_seen(
    database: Database, engine: Engine, driver: str, way: Callable[[Session, list[Any]], None]
) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    moments = [days_from_now(days) for days in (0, FAR, NEAR)]
    with running(database, driver) as app:
        app.session(lambda session: way(session, [moments[0], moments[1].isoformat(), moments[2]]))
    assert rows_by_partition(engine, "odds").keys() == {name_of(moment) for moment in moments}


@pytest.mark.parametrize("model", [Odds, Decorated])
def test_an_expression_hides_no_other_key_of_a_flush(
    app: App, engine: Engine, model: type[Odds] | type[Decorated]
) -> None:
    """The window is there before the first statement, not only before its own."""
    far, stood = days_from_now(FAR), list[bool]()

    def note(*args: Any) -> None:
        if args[2].startswith("INSERT"):
            stood.append(name_of(far) in partitions(engine, "odds"))

    event.listen(app.engine, "before_cursor_execute", note, insert=True)
    keys = [days_from_now(0), sa.func.now(), far]
    app.session(lambda session: session.add_all([model(at=key) for key in keys]))
    assert stood[0]
    assert sum(rows_by_partition(engine, "odds").values()) == 3


@pytest.mark.parametrize("model", [Odds, OneByOne])
def test_a_key_that_is_changed_as_it_is_sent_is_seen(
    app: App, engine: Engine, model: type[Odds] | type[OneByOne]
) -> None:
    far = days_from_now(FAR)

    def change(mapper: Any, connection: Connection, target: Any) -> None:
        if target.note == "late":
            target.at = far

    event.listen(model, "before_insert", change)
    try:
        app.session(
            lambda s: s.add_all([model(at=days_from_now(0), note=note) for note in ("a", "late", "b")])
        )
    finally:
        event.remove(model, "before_insert", change)
    assert rows_by_partition(engine, "odds") == {name_of(days_from_now(0)): 2, name_of(far): 1}


def test_a_changed_key_among_objects_of_several_classes_is_seen(app: App, engine: Engine) -> None:
    far = days_from_now(FAR)

    def work(session: Session) -> None:
        objects: list[Any] = [Odds(at=days_from_now(0)), OneByOne(at=days_from_now(0))]
        session.add_all(objects)
        session.flush()
        for item in objects:
            item.at = far
        session.add_all([OneByOne(at=days_from_now(NEAR)), Odds(at=days_from_now(NEAR + 1))])

    app.session(work)
    days = {name_of(days_from_now(n)): 1 for n in (NEAR, NEAR + 1)}
    assert rows_by_partition(engine, "odds") == {name_of(far): 2, **days}


def test_a_transaction_finds_partitions_that_a_look_at_the_horizon_has_learned_since(
    database: Database, engine: Engine, any_driver: str
) -> None:
    """To JSON an OID is a text, unless it is told otherwise; asyncpg takes none."""
    declare(engine, "odds", nz_racing_day("at", premake=0, lookback=0))
    table = sa.table("odds", sa.column("at", sa.DateTime(timezone=True)))
    with running(database, any_driver, on_error="raise") as app:
        keeper = app.keeper.sync_keeper if isinstance(app.keeper, AsyncKeeper) else app.keeper
        assert keeper is not None
        learn = keeper.knowledge.learn
        app.connection(lambda connection: connection.execute(sa.insert(table).values(at=days_from_now(0))))

        def work(connection: Connection) -> None:
            connection.execute(sa.insert(table).values(at=days_from_now(0)))
            with engine.begin() as other:
                other.execute(sa.text("UPDATE partition_config SET premake = 3"))
            for _ in range(2):  # makes them; learns them
                with engine.connect() as other:
                    maintenance.ensure(other, seen=learn)
            connection.execute(sa.insert(table).values(at=days_from_now(2)))

        app.connection(work)
    assert sum(rows_by_partition(engine, "odds").values()) == 3
