"""Every way a row reaches PostgreSQL: its window is there first, on each driver."""

from __future__ import annotations

import zoneinfo
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any, cast

import pytest
import pytz
import sqlalchemy as sa
from sqlalchemy import Engine, event, insert
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import KeyOutsideLimits, PartitionPending, PartitionPolicy, nz_racing_day
from tests.apps import App, auckland_day, days_from_now, declare, partitions, rows_by_partition, running
from tests.databases import Database

pytestmark = pytest.mark.ends

FAR = 100  # days ahead, far beyond premake


class Base(DeclarativeBase):
    pass


class EpochMilliseconds(sa.types.TypeDecorator[int]):
    """The application counts milliseconds, the column is a timestamptz."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value / 1000, timezone.utc)


class Odds(Base):
    __tablename__ = "odds"
    __table_args__ = (nz_racing_day("at", premake=2),)

    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    when: Mapped[datetime] = mapped_column("at", sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str | None]


odds = cast("sa.Table", Odds.__table__)


@pytest.fixture
def app(database: Database, any_driver: str, engine: Engine) -> Iterator[App]:
    declare(engine, "odds", nz_racing_day("at", premake=2))
    with running(database, any_driver) as app:
        yield app


def _moments(count: int = 3) -> list[datetime]:
    return [days_from_now(FAR + 2 * n) for n in range(count)]


def _orm_flush(session: Session, moments: list[datetime]) -> None:
    session.add_all([Odds(when=moment, note="flush") for moment in moments])
    session.flush()


def _orm_bulk_insert(session: Session, moments: list[datetime]) -> None:
    session.execute(insert(Odds), [{"when": moment} for moment in moments])


def _orm_bulk_insert_returning(session: Session, moments: list[datetime]) -> None:
    rows = [{"when": moment} for moment in moments]
    assert len(session.scalars(insert(Odds).returning(Odds.id), rows).all()) == len(moments)


def _bulk_save(session: Session, moments: list[datetime]) -> None:
    session.bulk_save_objects([Odds(when=moment) for moment in moments])


def _bulk_insert_mappings(session: Session, moments: list[datetime]) -> None:
    session.bulk_insert_mappings(sa.inspect(Odds), [{"when": moment} for moment in moments])


def _orm_insert_values(session: Session, moments: list[datetime]) -> None:
    for moment in moments:
        session.execute(insert(Odds).values(when=moment))


def _orm_update_statement(session: Session, moments: list[datetime]) -> None:
    for moment in moments:
        row = session.scalars(insert(Odds).values(when=days_from_now(0)).returning(Odds.id)).one()
        session.execute(sa.update(Odds).where(Odds.id == row).values(when=moment))


def _orm_insert_values_by_attribute(session: Session, moments: list[datetime]) -> None:
    statement = insert(Odds).values({Odds.when: sa.bindparam("moment")})
    session.connection().execute(statement, [{"moment": moment} for moment in moments])


def _core_single(session: Session, moments: list[datetime]) -> None:
    for moment in moments:
        session.connection().execute(odds.insert().values(at=moment))


def _core_light_table(session: Session, moments: list[datetime]) -> None:
    light = sa.table("odds", sa.column("at", sa.DateTime(timezone=True)))
    session.connection().execute(light.insert(), [{"at": moment} for moment in moments])


def _core_own_bind_name(session: Session, moments: list[datetime]) -> None:
    statement = odds.insert().values(at=sa.bindparam("moment"))
    session.connection().execute(statement, [{"moment": moment} for moment in moments])


def _core_executemany(session: Session, moments: list[datetime]) -> None:
    session.connection().execute(odds.insert(), [{"at": moment} for moment in moments])


def _core_multi_values(session: Session, moments: list[datetime]) -> None:
    session.connection().execute(odds.insert().values([{"at": moment} for moment in moments]))


def _insertmanyvalues_returning(session: Session, moments: list[datetime]) -> None:
    statement = odds.insert().returning(odds.c.id, sort_by_parameter_order=True)
    session.connection().execute(statement, [{"at": moment} for moment in moments])


def _on_conflict(session: Session, moments: list[datetime]) -> None:
    statement = pg_insert(odds)
    statement = statement.on_conflict_do_update(
        index_elements=["id", "at"], set_={"note": statement.excluded.note}
    )
    session.execute(statement, [{"at": moment, "note": "upsert"} for moment in moments])


def _update_of_the_key(session: Session, moments: list[datetime]) -> None:
    for moment in moments:
        row = session.execute(odds.insert().values(at=days_from_now(0)).returning(odds.c.id)).scalar_one()
        session.execute(odds.update().where(odds.c.id == row).values(at=moment))


def _orm_update_of_the_key(session: Session, moments: list[datetime]) -> None:
    objects = [Odds(when=days_from_now(0)) for _ in moments]
    session.add_all(objects)
    session.flush()
    for obj, moment in zip(objects, moments, strict=True):
        obj.when = moment
    session.flush()


def _text_values(session: Session, moments: list[datetime]) -> None:
    session.connection().execute(odds.insert(), [{"at": moment.isoformat()} for moment in moments])


PATHS = (
    _orm_flush,
    _orm_bulk_insert,
    _orm_bulk_insert_returning,
    _bulk_save,
    _bulk_insert_mappings,
    _orm_insert_values,
    _orm_insert_values_by_attribute,
    _orm_update_statement,
    _core_single,
    _core_light_table,
    _core_own_bind_name,
    _core_executemany,
    _core_multi_values,
    _insertmanyvalues_returning,
    _on_conflict,
    _update_of_the_key,
    _orm_update_of_the_key,
)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.strip("_"))
def test_each_row_lies_in_the_partition_of_its_local_day(
    app: App, engine: Engine, path: Callable[[Session, list[datetime]], None]
) -> None:
    moments = _moments()
    app.session(lambda session: path(session, moments))
    assert rows_by_partition(engine, "odds") == {
        f"odds_{auckland_day(moment):%Y_%m_%d}": 1 for moment in moments
    }


def test_only_the_windows_that_rows_need_are_made(app: App, engine: Engine) -> None:
    app.session(lambda session: session.scalar(sa.select(1)))
    before = set(partitions(engine, "odds"))
    moments = [days_from_now(FAR), days_from_now(FAR + 90)]
    app.session(lambda session: _core_executemany(session, moments))
    assert set(partitions(engine, "odds")) - before == {
        f"odds_{auckland_day(moment):%Y_%m_%d}" for moment in moments
    }


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_a_key_given_as_text_is_understood(database: Database, engine: Engine, driver: str) -> None:
    declare(engine, "odds", nz_racing_day("at"))
    with running(database, driver) as app:
        app.session(lambda session: _text_values(session, _moments()))
    assert len(rows_by_partition(engine, "odds")) == 3


def test_twenty_thousand_rows_cost_the_hook_no_statement_inside_coverage(app: App, engine: Engine) -> None:
    app.session(lambda session: session.scalar(sa.select(1)))
    statements: list[str] = []
    event.listen(app.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    app.session(
        lambda session: _core_executemany(session, [days_from_now(n / 20_000) for n in range(20_000)])
    )
    assert {statement.split()[0] for statement in statements} == {"INSERT"}


def test_python_side_defaults_are_seen(database: Database, engine: Engine, any_driver: str) -> None:
    declare(engine, "defaulted", nz_racing_day("at"))
    moment = days_from_now(FAR)
    table = sa.Table(
        "defaulted",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger),
        sa.Column("at", sa.DateTime(timezone=True), default=lambda: moment),
        sa.Column("note", sa.Text),
    )
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(table.insert(), [{"note": "a"}, {"note": "b"}]))
        app.connection(lambda c: c.execute(table.insert().values([{"note": "c"}, {"note": "d"}])))
    assert rows_by_partition(engine, "defaulted") == {f"defaulted_{auckland_day(moment):%Y_%m_%d}": 4}


def test_the_default_of_the_first_of_several_rows_is_seen(
    database: Database, engine: Engine, any_driver: str
) -> None:
    declare(engine, "defaulted", nz_racing_day("at"))
    moments = iter(_moments())
    table = sa.Table(
        "defaulted",
        sa.MetaData(),
        sa.Column("at", sa.DateTime(timezone=True), default=lambda: next(moments)),
        sa.Column("note", sa.Text),
    )
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(table.insert().values([{"note": "a"}])))
        app.connection(lambda c: c.execute(table.insert().values([{"note": "b"}, {"note": "c"}])))
    assert len(rows_by_partition(engine, "defaulted")) == 3


def test_an_expression_as_an_attribute_is_left_to_the_server(
    database: Database, engine: Engine, any_driver: str
) -> None:
    class Strict(sa.types.TypeDecorator[datetime]):
        impl = sa.DateTime(timezone=True)
        cache_ok = True

        def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
            if value is not None and value.tzinfo is None:
                raise TypeError("naive")
            return value

    class Own(DeclarativeBase):
        pass

    class Event(Own):
        __tablename__ = "events"
        id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
        at: Mapped[datetime] = mapped_column(Strict, primary_key=True)

    declare(engine, "events", nz_racing_day("at"))
    with running(database, any_driver) as app:
        app.session(lambda session: session.add(Event(at=sa.func.now())))
    assert sum(rows_by_partition(engine, "events").values()) == 1


def test_both_instants_of_a_repeated_hour_find_their_window(
    database: Database, engine: Engine, any_driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2026-04-04T01:37:11+13:00")
    declare(engine, "odds", PartitionPolicy("at", interval="hour", timezone="Pacific/Auckland", premake=0))
    first = datetime(2026, 4, 5, 2, 30, tzinfo=zoneinfo.ZoneInfo("Pacific/Auckland"))
    with running(database, any_driver) as app:
        rows = [{"at": first}, {"at": first.replace(fold=1)}]
        app.connection(lambda c: c.execute(odds.insert(), rows))
    assert rows_by_partition(engine, "odds") == {"odds_2026_04_05_02": 1, "odds_2026_04_05_02b": 1}


def test_a_type_decorator_on_the_key_is_seen_through(
    database: Database, engine: Engine, any_driver: str
) -> None:
    declare(engine, "ticks", nz_racing_day("at"))
    table = sa.Table(
        "ticks", sa.MetaData(), sa.Column("id", sa.BigInteger), sa.Column("at", EpochMilliseconds())
    )
    moment = days_from_now(FAR)
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(table.insert(), [{"at": int(moment.timestamp() * 1000)}] * 2))
    assert rows_by_partition(engine, "ticks") == {f"ticks_{auckland_day(moment):%Y_%m_%d}": 2}


# -- values the driver turns into something else --------------------------------------------------------


@pytest.mark.parametrize("session_zone", ["Asia/Tokyo", "America/St_Johns"])
def test_a_naive_time_for_timestamptz_lies_where_the_driver_puts_it(
    database: Database, engine: Engine, any_driver: str, session_zone: str
) -> None:
    declare(engine, "odds", PartitionPolicy("at", interval="hour", premake=1))
    naive = days_from_now(FAR).replace(tzinfo=None)
    with running(database, any_driver) as app:

        def work(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SET TimeZone = '{session_zone}'")
            connection.execute(odds.insert(), [{"at": naive}, {"at": naive}])

        app.connection(work)
    with engine.connect() as connection:
        stored = connection.execute(sa.select(odds.c.at)).scalars().first()
    assert isinstance(stored, datetime)
    assert rows_by_partition(engine, "odds") == {f"odds_{stored.astimezone(pytz.utc):%Y_%m_%d_%H}": 2}


@pytest.mark.parametrize("key_type", [sa.DateTime(), sa.Date()], ids=["timestamp", "date"])
@pytest.mark.parametrize(
    "value",
    [
        datetime(2031, 3, 5, 13, 37, 11),
        datetime(2031, 3, 5, 13, 37, 11, tzinfo=timezone(timedelta(hours=13))),
        date(2031, 3, 5),
    ],
    ids=["naive", "aware", "date"],
)
def test_times_and_dates_for_naive_keys_lie_where_the_driver_puts_them(
    database: Database, engine: Engine, driver: str, key_type: Any, value: Any
) -> None:
    policy = PartitionPolicy("at", max_ahead="100 years", timezone="Pacific/Auckland")
    declare(engine, "naive", policy, key_type=key_type)
    table = sa.Table("naive", sa.MetaData(), sa.Column("at", key_type))
    with running(database, driver) as app:
        app.connection(lambda c: c.execute(table.insert(), [{"at": value}, {"at": value}]))
    with engine.connect() as connection:
        stored = connection.scalar(sa.select(table.c.at))
    assert rows_by_partition(engine, "naive") == {f"naive_{stored:%Y_%m_%d}": 2}


def test_asyncpg_takes_dates_and_naive_times_as_they_are_written(database: Database, engine: Engine) -> None:
    policy = PartitionPolicy("at", max_ahead="100 years")
    declare(engine, "plain", policy, key_type=sa.DateTime())
    declare(engine, "dated", policy, key_type=sa.Date())
    plain = sa.Table("plain", sa.MetaData(), sa.Column("at", sa.DateTime()))
    dated = sa.Table("dated", sa.MetaData(), sa.Column("at", sa.Date()))
    with running(database, "asyncpg") as app:
        app.connection(lambda c: c.execute(plain.insert().values(at=datetime(2031, 3, 5, 23, 59, 59))))
        app.connection(lambda c: c.execute(dated.insert().values(at=date(2031, 3, 5))))
        app.connection(lambda c: c.execute(dated.insert().values(at=datetime(2031, 3, 6, 23, 59, 59))))
    assert rows_by_partition(engine, "plain") == {"plain_2031_03_05": 1}
    assert rows_by_partition(engine, "dated") == {"dated_2031_03_05": 1, "dated_2031_03_06": 1}


# -- values that cannot be seen --------------------------------------------------------------------------

_INSERT = "INSERT INTO odds (at) VALUES (now() + interval '100 days')"
UNSEEN: dict[str, Callable[[], sa.Executable]] = {
    "text": lambda: sa.text(_INSERT),
    "from_select": lambda: odds.insert().from_select(["at"], sa.select(sa.func.now() + timedelta(days=FAR))),
    "expression": lambda: odds.insert().values(at=sa.func.now() + timedelta(days=FAR)),
    "cte": lambda: sa.select(odds.insert().values(at=days_from_now(FAR)).returning(odds.c.id).cte("made")),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_an_unseen_key_raises_that_a_retry_will_pass_and_it_does(app: App, engine: Engine, kind: str) -> None:
    with pytest.raises(
        PartitionPending, match=r"run it again; the partition has been made meanwhile"
    ) as caught:
        app.session(lambda session: session.execute(UNSEEN[kind]()))
    assert caught.value.__cause__ is not None
    app.session(lambda session: session.execute(UNSEEN[kind]()))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_after_a_savepoint_the_same_transaction_goes_on(app: App, engine: Engine) -> None:
    def work(session: Session) -> None:
        with pytest.raises(PartitionPending), session.begin_nested():
            session.execute(sa.text(_INSERT))
        session.execute(sa.text(_INSERT))

    app.session(work)
    assert sum(rows_by_partition(engine, "odds").values()) == 1


# -- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [400, -10], ids=["max_ahead", "retention"])
def test_a_key_beyond_the_limits_is_refused_before_anything_is_sent(
    database: Database, engine: Engine, any_driver: str, days: int
) -> None:
    declare(engine, "odds", nz_racing_day("at", retention="3 days"))
    field = "max_ahead" if days > 0 else "retention"
    with running(database, any_driver) as app:
        sent: list[str] = []
        app.connection(lambda c: None)
        event.listen(app.engine, "before_cursor_execute", lambda *args: sent.append(args[2]), insert=True)
        event.listen(app.engine, "after_cursor_execute", lambda *args: sent.append("executed " + args[2]))
        with pytest.raises(KeyOutsideLimits, match=field):
            app.session(lambda session: _orm_bulk_insert(session, [days_from_now(0), days_from_now(days)]))
        assert not [statement for statement in sent if statement.startswith("executed INSERT")]
    assert rows_by_partition(engine, "odds") == {}


def test_a_covered_key_is_not_judged(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", max_ahead="1 day", premake=5))
    with running(database, "psycopg2") as app:
        app.session(lambda session: _orm_flush(session, [days_from_now(4)]))
    assert sum(rows_by_partition(engine, "odds").values()) == 1


def test_one_statement_makes_no_more_than_max_create_windows(database: Database, engine: Engine) -> None:
    declare(engine, "odds", nz_racing_day("at", premake=0, max_create=5))
    with running(database, "psycopg2") as app, pytest.raises(KeyOutsideLimits, match="max_create"):
        app.session(lambda session: _core_executemany(session, _moments(6)))
