"""Several partitions in one round trip: each stands by itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import executor, maintenance
from alembic_partitions.errors import StepFailed
from alembic_partitions.executor import creating
from alembic_partitions.plan import plan_horizon
from tests.databases import Database
from tests.tables import NOW, catalog, declare, listening, partitions, policy, rows, run, scalar

DAYS = [f"odds_2026_04_{n:02}" for n in range(5, 12)]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.fixture
def seven(engine: Engine) -> Engine:
    """A table whose seven partitions are missing."""
    declare(engine, "odds", policy(premake=6, lookback=0))
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)))
    return engine


def ensure(engine: Engine) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection).results
    return result


@contextmanager
def before_the_message(target: Engine, act: Callable[[], None], about: str = DAYS[0]) -> Iterator[None]:
    """Do something when the text of several partitions, one of them ``about``, is about to be sent."""
    todo = [act]

    def listener(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("--") and about in statement and todo:
            todo.pop()()

    event.listen(target, "before_cursor_execute", listener)
    yield
    event.remove(target, "before_cursor_execute", listener)
    assert not todo


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_the_present_is_one_message_and_all_that_follows_another(
    seven: Engine, database: Database, driver: str
) -> None:
    other = create_engine(database.driver_url(driver), poolclass=NullPool)
    with other.connect() as connection:
        printed = "".join(item.sql() for item in maintenance.plan(connection))
    with listening(other) as sent:
        assert list(ensure(other).created) == DAYS
    messages = [statement for statement in sent.statements if " ATTACH " in statement]
    assert len(messages) == 2
    assert "".join(messages) == printed
    xmins = rows(seven, "SELECT DISTINCT xmin FROM pg_class WHERE relname LIKE 'odds_2%' AND relkind = 'r'")
    assert len(xmins) == len(DAYS)


@pytest.mark.parametrize(
    ("at", "counts"),
    [("2026-04-05T13:37:11+12:00", [6]), ("2026-04-05T23:37:11+12:00", [1, 5])],
    ids=["hours to go", "tomorrow begins soon"],
)
def test_the_next_window_comes_first_only_where_it_begins_soon(
    seven: Engine, monkeypatch: pytest.MonkeyPatch, at: str, counts: list[int]
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", at)
    ensure(seven)
    run(seven, *(f"DROP TABLE {name}" for name in DAYS[1:]))
    with listening(seven) as sent:
        assert list(ensure(seven).created) == DAYS[1:]
    assert len([text for text in sent.statements if text.endswith("COMMIT;\n") or "\nATTACH" in text]) >= 1
    made = [statement.count("CREATE TABLE") for statement in sent.statements if "CREATE TABLE" in statement]
    assert made == counts


def test_names_are_asked_for_once_whatever_the_number_of_tables(engine: Engine) -> None:
    for name in ("odds", "runs", "bets"):
        declare(engine, name, policy(premake=6, lookback=0))
    run(engine, *(f"DROP TABLE {name}_2026_04_08" for name in ("odds", "runs", "bets")))
    run(engine, "CREATE TYPE runs_2026_04_08 AS ENUM ()")
    with listening(engine) as sent, engine.connect() as connection:
        report = maintenance.ensure(connection)
    assert [result.created for result in report.results] == [
        ("bets_2026_04_08",),
        ("odds_2026_04_08",),
        ("runs_2026_04_08_2",),
    ]
    asked = [statement for statement in sent.statements if "FROM pg_type t" in statement]
    assert len(asked) == 1 + 2, "once for all, and until one is free for the table whose name is taken"


def test_asyncpg_which_prepares_each_statement_gets_them_one_by_one(
    seven: Engine, database: Database
) -> None:
    async def ensured() -> maintenance.Report:
        other = create_async_engine(database.driver_url("asyncpg"), poolclass=NullPool)
        async with other.connect() as connection:
            report = await connection.run_sync(maintenance.ensure)
        await other.dispose()
        return report

    assert list(asyncio.run(ensured()).results[0].created) == DAYS


def test_one_whose_lock_is_not_to_be_had_ends_the_message_and_is_waited_for(seven: Engine) -> None:
    run(seven, "CREATE TABLE races (id int PRIMARY KEY)", "ALTER TABLE odds ADD race int REFERENCES races")
    with seven.connect() as writer:

        def write() -> None:
            writer.execute(text("INSERT INTO races VALUES (1)"))
            threading.Timer(0.3, writer.commit).start()

        other = create_engine(seven.url, poolclass=NullPool)
        with before_the_message(other, write):
            result = ensure(other)
    assert (list(result.created), result.error) == (DAYS, None)
    assert partitions(seven) == DAYS


def test_what_stood_before_the_one_that_fails_stays_and_is_told(seven: Engine) -> None:
    run(
        seven,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF to_regclass('odds_2026_04_09') IS NOT NULL THEN RAISE 'not this one'; END IF; END $$",
        "CREATE EVENT TRIGGER refuse ON ddl_command_end EXECUTE FUNCTION refuse()",
    )
    result = ensure(seven)
    assert list(result.created) == DAYS[:4]
    assert result.error is not None
    assert "odds_2026_04_09" in result.error
    assert "not this one" in result.error
    run(seven, "DROP EVENT TRIGGER refuse")
    assert list(ensure(seven).created) == DAYS[4:]


def test_a_competitors_partition_is_not_ours_and_those_around_it_are(seven: Engine) -> None:
    """He makes the third and the last of a message, between our look and our sending."""
    with seven.connect() as connection:
        (planned,) = maintenance.plan(connection)
    steps = planned.plan.steps

    def compete() -> None:
        with seven.connect() as his:
            for step in (steps[4], steps[6]):
                assert executor.create_partition(his, step, user=planned.user)

    other = create_engine(seven.url, poolclass=NullPool)
    with before_the_message(other, compete, about=DAYS[2]):
        result = ensure(other)
    ours = [name for number, name in enumerate(DAYS) if number not in (4, 6)]
    assert (list(result.created), result.error) == (ours, None)
    assert partitions(seven) == DAYS


def test_whoever_found_the_usual_names_taken_by_a_competitor_sends_nothing_that_overlaps(
    seven: Engine,
) -> None:
    """He committed after we had read the partitions, and before we asked which names are free."""
    with seven.connect() as connection:
        (usual,) = maintenance.plan(connection)
        late = plan_horizon(usual.plan.table, NOW, DAYS)
        assert [step.name for step in late.steps] == [f"{name}_2" for name in DAYS]
        ensure(seven)
        with listening(seven) as sent:
            done = executor.create_next(connection, late.steps, user=usual.user)
    assert done == [(late.steps[0], False)]
    assert not [statement for statement in sent.statements if "CREATE TABLE" in statement]
    assert partitions(seven) == DAYS


def test_a_table_that_was_replaced_meanwhile_gets_none(seven: Engine) -> None:
    with seven.connect() as connection:
        (planned,) = maintenance.plan(connection)
        run(
            seven,
            "DROP TABLE odds",
            "CREATE TABLE odds (at timestamptz NOT NULL) PARTITION BY RANGE (at)",
        )
        with pytest.raises(StepFailed, match="dropped or replaced"):
            executor.create_next(connection, planned.plan.steps, user=planned.user)
    assert partitions(seven) == []


def test_a_backend_that_dies_in_the_middle_leaves_whole_partitions_alone(seven: Engine) -> None:
    before = catalog(seven)
    run(
        seven,
        "CREATE FUNCTION die() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF to_regclass('odds_2026_04_09') IS NOT NULL THEN PERFORM pg_terminate_backend(pg_backend_pid());"
        " END IF; END $$",
        "CREATE EVENT TRIGGER die ON ddl_command_end EXECUTE FUNCTION die()",
    )
    other = create_engine(seven.url, poolclass=NullPool)
    result = ensure(other)
    assert result.error is not None
    assert result.horizon_short
    assert partitions(seven) == DAYS[:4]
    left = scalar(seven, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds_2%' AND relkind = 'r'")
    assert left == 4
    run(seven, "DROP EVENT TRIGGER die", "DROP FUNCTION die")
    assert list(ensure(seven).created) == DAYS[4:]
    run(seven, *(f"DROP TABLE {name}" for name in DAYS), "TRUNCATE partition_runs")
    assert catalog(seven) == before


def test_more_than_a_message_holds_go_in_several(seven: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creating, "AT_ONCE", 2)
    with listening(seven) as sent:
        assert list(ensure(seven).created) == DAYS
    assert sum(statement.startswith("--") for statement in sent.statements) == 3
