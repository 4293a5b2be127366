"""Statistics: of what has just closed and of parents, bounded, and in the way of no ATTACH."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from alembic_partitions import maintenance
from alembic_partitions.executor import tending
from alembic_partitions.executor.creating import UPKEEP
from tests.clock import Clock
from tests.databases import OF_THIS_DATABASE
from tests.db.test_retention import KEPT, PAST, history, somebody
from tests.tables import NOW, declare, listening, partitions, policy, rows, run, scalar

CLOSED = [*PAST, *KEPT[:3]]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


def maintained(engine: Engine, **kw: object) -> maintenance.TableResult:
    orders = maintenance.Orders(**kw)  # type: ignore[arg-type]
    with engine.connect() as connection:
        (found,) = maintenance.maintain(connection, orders=orders).results
    return found


def analyzed(engine: Engine) -> set[str]:
    found = rows(engine, "SELECT relname FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL")
    return {name for (name,) in found if name.startswith("odds")}


def test_closed_partitions_and_the_parent_are_analyzed_once(engine: Engine) -> None:
    history(engine, rules=policy())
    told = maintained(engine)
    assert set(told.tended) == {*CLOSED, "odds"}
    assert analyzed(engine) >= {*CLOSED, "odds"}
    assert scalar(engine, "SELECT count(*) FROM pg_stats WHERE tablename = 'odds' AND inherited") == 3
    # By the clock of the test these statistics, made in the meantime, come long after the partitions closed.
    assert maintained(engine).tended == ()


def test_a_change_of_its_partitions_makes_the_parent_worth_another_look(engine: Engine) -> None:
    history(engine)
    maintained(engine)
    run(engine, "UPDATE partition_config SET retention = '2 days'")
    told = maintained(engine)
    assert told.detached == (KEPT[0],)
    assert told.tended == ("odds",)


def test_not_where_it_was_told_not_to(engine: Engine) -> None:
    history(engine)
    assert maintained(engine, analyze=False).tended == ()


def test_chosen_partitions_are_vacuumed(engine: Engine) -> None:
    history(engine, rules=policy())
    assert set(maintained(engine, analyze=False, vacuum=(KEPT[1],)).tended) == {KEPT[1]}
    vacuumed = "SELECT relname FROM pg_stat_user_tables WHERE last_vacuum IS NOT NULL"
    assert rows(engine, vacuumed) == [(KEPT[1],)]
    run(engine, "DROP TABLE odds")
    run(engine, "DELETE FROM partition_config")
    history(engine, rules=policy())
    assert set(maintained(engine, vacuum=("closed",)).tended) == {*CLOSED, "odds"}


def test_each_runs_outside_any_transaction_with_bounds_that_are_taken_back(engine: Engine) -> None:
    history(engine, rules=policy())
    own = create_engine(engine.url, poolclass=NullPool)
    with own.connect() as connection, listening(connection) as sent:
        before = connection.scalar(text("SHOW application_name"))
        connection.rollback()
        maintenance.maintain(connection, orders=maintenance.Orders(vacuum=("closed",)))
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
        assert connection.scalar(text("SHOW lock_timeout")) == "0"
        assert connection.scalar(text("SHOW application_name")) == before
    last = [s for s in sent.statements if s.startswith(("ANALYZE", "VACUUM"))][-1]
    at = sent.statements.index(last)
    assert sent.statements[at - 3 : at] == [
        "SET lock_timeout = '40ms'",
        "SET statement_timeout = '60000ms'",
        f"SET application_name = '{UPKEEP}'",
    ]
    own.dispose()


def test_a_table_that_others_hold_is_left_for_the_next_run(engine: Engine) -> None:
    history(engine, rules=policy())
    with somebody(engine, f"LOCK TABLE {KEPT[0]} IN SHARE UPDATE EXCLUSIVE MODE"):
        told = maintained(engine)
    assert KEPT[0] not in told.tended
    assert told.error is None
    assert any(f"statistics of {KEPT[0]} were left for the next run" in finding for finding in told.findings)
    assert maintained(engine).tended == (KEPT[0], "odds")


def test_it_is_bounded_in_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    history(engine, rules=policy())
    monkeypatch.setattr(tending, "ANALYZE_TIMEOUT_MS", 1)
    run(engine, "INSERT INTO odds (at, note) SELECT '2026-04-05 01:00+13', repeat('x', g % 900) FROM"
        " generate_series(1, 60000) g")  # fmt: skip
    told = maintained(engine)
    assert told.error is None
    assert any("canceling statement due to statement timeout" in finding for finding in told.findings)


def test_whoever_makes_a_partition_cancels_it(engine: Engine) -> None:
    """An ANALYZE of ours that holds the parent for long; one of somebody else's is waited for."""
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    other = create_engine(engine.url, poolclass=NullPool)
    ended = []

    def analyze() -> None:
        with other.connect() as connection:
            connection.execute(text(f"SET application_name = '{UPKEEP}'"))
            connection.execute(text("ANALYZE odds"))
            try:
                connection.execute(text("SELECT pg_sleep(60)"))
            except Exception as error:
                ended.append(str(error))

    thread = threading.Thread(target=analyze)
    thread.start()
    holds = (
        "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE c.relname = 'odds' AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted AND "
        + OF_THIS_DATABASE
    )
    while not scalar(engine, holds):
        time.sleep(0.05)
    with engine.connect() as connection:
        (told,) = maintenance.ensure(connection).results
    thread.join()
    assert told.error is None
    assert "odds_2026_04_05" in partitions(engine)
    assert len(ended) == 1
    assert "canceling statement due to user request" in ended[0]
    other.dispose()
