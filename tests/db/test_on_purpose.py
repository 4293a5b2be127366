"""What somebody asks for by name: windows ahead, statistics of one table, retention by itself."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.errors import NoPartitionError, NotManagedError, PolicyError
from alembic_partitions.maintenance import Ahead, Orders
from alembic_partitions.periods import Period
from alembic_partitions.sessions import side_connection
from alembic_partitions.standing import survey
from tests.apps import running
from tests.clock import Clock
from tests.databases import Database, Roles
from tests.tables import declare, instants, partitions, policy, quote, rows, run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(monkeypatch)
    made.set(made.now)
    return made


@pytest.fixture
def side(engine: Engine, clock: Clock, connection: Connection) -> Connection:
    declare(engine, "odds", policy())
    return connection


def test_windows_ahead_are_made_as_planned_on_the_day_of_25_hours(side: Connection, engine: Engine) -> None:
    lines: list[str] = []
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)))
    (planned,) = maintenance.plan_ahead(side, "odds", Ahead(windows=2))
    report = maintenance.make_ahead(side, "public.odds", Ahead(windows=2), progress=lines.append)
    assert report.created == len(planned.plan.steps) == len(lines) == 3
    assert planned.sql().count("CREATE TABLE") == 3
    assert instants(engine)[0] == ("2026-04-04 11:00:00+00", "2026-04-05 12:00:00+00")
    assert maintenance.make_ahead(side, "odds", Ahead(windows=2)).created == 0
    # A period reaches the window that its end lies in.
    maintenance.make_ahead(side, "odds", Ahead(period=Period(1, "week")))
    assert instants(engine)[-1] == ("2026-04-11 12:00:00+00", "2026-04-12 12:00:00+00")
    actions = rows(engine, "SELECT action, created, error FROM partition_runs ORDER BY id")
    assert actions == [("create", 3, None), ("create", 0, None), ("create", 5, None)]


def test_more_windows_than_the_policy_lets_one_call_make_are_refused(
    side: Connection, engine: Engine
) -> None:
    before = partitions(engine)
    for ahead in (Ahead(windows=400), Ahead(period=Period(120, "month"))):
        with pytest.raises(PolicyError, match="more than 400 windows at once"):
            maintenance.make_ahead(side, "odds", ahead)
    with pytest.raises(NotManagedError):
        maintenance.plan_ahead(side, "nobody", Ahead(windows=1))
    for wrong in ({}, {"windows": 0}, {"windows": 1, "period": Period(1, "day")}):
        with pytest.raises(ValueError, match="how far ahead"):
            Ahead(**wrong)
    assert partitions(engine) == before


def test_statistics_of_one_table_on_any_driver(database: Database, engine: Engine, any_driver: str) -> None:
    declare(engine, "odds", policy())

    def work() -> None:
        with side_connection(app.engine) as side:
            (analyzed,) = maintenance.tend(side, "odds").results
            assert (set(analyzed.tended), analyzed.error) == ({*partitions(engine), "odds"}, None)
            (vacuumed,) = maintenance.tend(side, "odds", partitions(engine)[0], vacuum=True).results
            assert (vacuumed.tended, vacuumed.error) == ((partitions(engine)[0],), None)
            with pytest.raises(NoPartitionError):
                maintenance.plan_tending(side, "odds", "odds_1999")

    with running(database, any_driver, kept=False) as app:
        if app.async_engine is None:
            work()
        else:
            app.run(greenlet_spawn(work))
    assert rows(engine, "SELECT action FROM partition_runs ORDER BY id") == [("analyze",), ("vacuum",)]


def test_retention_by_itself_makes_and_counts_nothing(side: Connection, engine: Engine, clock: Clock) -> None:
    clock.forward(days=10)
    before = partitions(engine)
    orders = Orders("2 days", analyze=False, horizon=False)
    ((_, script),) = maintenance.plan_maintain(side, tables=["odds"], orders=orders)
    assert "CREATE TABLE" not in script
    report = maintenance.maintain(side, tables=["odds"], orders=orders)
    (result,) = report.results
    assert (result.created, result.tended, result.error) == ((), (), None)
    # The last partition of a table stays.
    assert result.detached == tuple(before[:-1])
    assert script.count("DETACH PARTITION") == len(result.detached)
    assert rows(engine, "SELECT action, detached FROM partition_runs") == [("cleanup", 3)]


class _Stopped(BaseException):
    """As Ctrl-C, or the end of a process."""


@pytest.mark.parametrize("action", ["ensure", "create", "maintain"])
def test_what_was_done_until_somebody_stopped_it_is_written_down(
    side: Connection, engine: Engine, action: str
) -> None:
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)))
    told: list[str] = []

    def progress(line: str) -> None:
        told.append(line)
        if len(told) == (2 if action != "maintain" else 5):
            raise _Stopped

    doing = {
        "ensure": lambda: maintenance.ensure(side, progress=progress),
        "create": lambda: maintenance.make_ahead(side, "odds", Ahead(windows=3), progress=progress),
        "maintain": lambda: maintenance.maintain(side, progress=progress),
    }
    with pytest.raises(_Stopped):
        doing[action]()
    assert told[0].startswith("public.odds: made odds_2026_04_0")
    ((created, error, found),) = rows(
        engine, f"SELECT created, error, action FROM partition_runs WHERE action = '{action}'"
    )
    assert (created, found) == (len([line for line in told if "made" in line]), action)
    assert "stopped before its end" in error
    assert maintenance.maintain(side).failure is None, "the next run does what is left"


def test_what_postgresql_only_skips_is_not_told_as_done(
    side: Connection, engine: Engine, roles: Roles
) -> None:
    """It warns, and raises nothing."""
    url = roles.create("reader")
    name = quote(url.username or "")
    run(
        engine,
        f"GRANT SELECT ON partition_config TO {name}",
        f"GRANT SELECT, INSERT ON partition_runs TO {name}",
    )
    reader = create_engine(url, poolclass=NullPool)
    for vacuum in (False, True):
        with reader.connect() as connection:
            (result,) = maintenance.tend(connection, "odds", vacuum=vacuum).results
        assert result.tended == ()
        assert "PostgreSQL has skipped it" in (result.error or "")
    (result,) = maintenance.tend(side, "odds", vacuum=True).results
    assert (set(result.tended), result.error) == (set(partitions(engine)), None)
    (result,) = maintenance.tend(side, "odds").results
    assert (set(result.tended), result.error) == ({*partitions(engine), "odds"}, None)


def test_a_name_that_fits_two_tables_is_no_order_for_both(side: Connection, engine: Engine) -> None:
    run(engine, "CREATE SCHEMA other")
    declare(engine, "odds", policy(), schema="other")
    orders = Orders(retention="30 days")
    with pytest.raises(PolicyError, match=r"the name of other\.odds and public\.odds"):
        maintenance.maintain(side, tables=["odds"], orders=orders)
    with pytest.raises(PolicyError, match=r"Say schema\.name"):
        maintenance.plan_maintain(side, tables=["odds"], orders=orders)
    assert len(maintenance.maintain(side, tables=["other.odds"], orders=orders).results) == 1
    assert len(maintenance.maintain(side, tables=["odds"]).results) == 2, "without an order of its own"


def test_a_table_that_is_gone_is_refused_by_name_and_reason(side: Connection, engine: Engine) -> None:
    run(engine, "DROP TABLE odds")
    with pytest.raises(PolicyError, match=r"public\.odds: the table does not exist"):
        maintenance.make_ahead(side, "odds", Ahead(windows=1))


def test_names_that_read_alike_are_two_tables(side: Connection, engine: Engine) -> None:
    run(engine, "CREATE SCHEMA a", 'CREATE SCHEMA "a.b"')
    declare(engine, "b.c", policy(), schema="a")
    declare(engine, "c", policy(), schema="a.b")
    found = survey(side)
    assert [table.table for table in found.tables].count("a.b.c") == 2


def test_a_table_without_partitions_has_nothing_to_analyze(side: Connection, engine: Engine) -> None:
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)))
    (result,) = maintenance.tend(side, "odds").results
    assert (result.tended, result.error) == ((), None)
