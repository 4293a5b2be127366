"""Retention on a real server: what goes, how it goes, who waits for it, and what it leaves alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, text

from alembic_partitions import PartitionPolicy, maintenance
from alembic_partitions.errors import NoPartitionError, NotManagedError, PolicyError, RunUnderWay
from alembic_partitions.executor import removing, statements
from alembic_partitions.locks import one_run
from alembic_partitions.maintenance import Orders, Report, TableResult
from tests.clock import Clock
from tests.databases import Database, Roles
from tests.tables import NOW, columns, declare, listening, operations, partitions, policy, rows, run, scalar

PAST = ["odds_2026_03_30", "odds_2026_03_31", "odds_2026_04_01"]
COUNT = "SELECT count(*) FROM odds"
KEPT = [f"odds_2026_04_0{day}" for day in range(2, 8)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


def keeping(**fields: Any) -> PartitionPolicy:
    """Three days: at 13:37 on 5 April the partition of 2 April is the oldest to stay."""
    return policy(**{"retention": "3 days", **fields})


def history(
    engine: Engine,
    name: str = "odds",
    rules: PartitionPolicy | None = None,
    *items: Any,
    stored: str = "t",
) -> None:
    """A table with a partition and three rows a day, from 30 March on."""
    declare(engine, name, rules or keeping(), *(items or columns()))
    with operations(engine) as op:
        op.create_partitions(name, date(2026, 3, 30), date(2026, 4, 4))
    run(
        engine,
        f"INSERT INTO {name} (at) SELECT {stored} FROM generate_series('2026-03-30 01:00+13'::timestamptz,"
        " '2026-04-05 13:00+12', '8 hours') t",
    )


_ORDERS = ("retention", "archive_to", "vacuum", "trust_clock")


def maintain(engine: Engine, **kw: Any) -> Report:
    orders = {name: kw.pop(name) for name in list(kw) if name in _ORDERS}
    orders = {"analyze": False, **orders}
    with engine.connect() as connection:
        return maintenance.maintain(connection, orders=Orders(**orders), **kw)


def result(engine: Engine, **kw: Any) -> TableResult:
    (found,) = maintain(engine, **kw).results
    return found


def dry_run(engine: Engine, **kw: Any) -> str:
    with engine.connect() as connection:
        return "".join(sql for _, sql in maintenance.plan_maintain(connection, orders=Orders(**kw)))


def detached(engine: Engine) -> list[str]:
    return [
        name
        for (name,) in rows(
            engine,
            "SELECT relname FROM pg_class WHERE obj_description(oid, 'pg_class')"
            " LIKE 'alembic_partitions: detached%' ORDER BY 1",
        )
    ]


def mark(engine: Engine, name: str) -> dict[str, Any]:
    told = scalar(engine, "SELECT obj_description(to_regclass(:name), 'pg_class')", name=name)
    found: dict[str, Any] = json.loads(told.removeprefix("alembic_partitions: detached "))
    return found


@contextmanager
def somebody(engine: Engine, *statements: str) -> Iterator[sa.Connection]:
    """Somebody else's open transaction."""
    other = create_engine(engine.url, poolclass=NullPool)
    with other.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        yield connection
    other.dispose()


# What goes.


def test_nothing_goes_without_a_retention(engine: Engine) -> None:
    history(engine, rules=policy())
    assert result(engine).detached == ()
    assert partitions(engine) == PAST + KEPT


def test_what_is_wholly_older_is_detached_and_keeps_its_rows(engine: Engine) -> None:
    history(engine)
    before = scalar(engine, "SELECT count(*) FROM odds")
    assert result(engine).detached == tuple(PAST)
    assert partitions(engine) == KEPT
    assert detached(engine) == [f"{name}_detached" for name in PAST]
    kept = "".join(f" + (SELECT count(*) FROM {name}_detached)" for name in PAST)
    assert scalar(engine, f"SELECT (SELECT count(*) FROM odds) {kept}") == before
    assert result(engine).detached == (), "the next run finds nothing to do"


def test_its_mark_says_what_it_was_and_since_when_it_is_detached(engine: Engine) -> None:
    history(engine)
    maintain(engine)
    assert mark(engine, "odds_2026_04_01_detached") == {
        "oid": scalar(engine, "SELECT 'odds_2026_04_01_detached'::regclass::oid::bigint"),
        "of": scalar(engine, "SELECT 'odds'::regclass::oid::bigint"),
        "at": "2026-04-05 01:37:11.000000Z",
        "table": ["public", "odds"],
        "schema": "public",
        "partition": "odds_2026_04_01",
        "bound": "FOR VALUES FROM ('2026-03-31 11:00:00+00') TO ('2026-04-01 11:00:00+00')",
        "key": "timestamptz",
        "fate": "detach",
        "as": ["public", "odds_2026_04_01_detached"],
    }


def test_the_check_that_postgresql_leaves_is_removed_and_the_tables_own_stay(engine: Engine) -> None:
    history(engine, "odds", None, *columns(), sa.CheckConstraint("id > 0", name="positive"))
    run(engine, "ALTER TABLE odds_2026_04_01 ADD CONSTRAINT of_this_one CHECK (note IS NULL)")
    maintain(engine)
    checks = rows(
        engine,
        "SELECT conname FROM pg_constraint WHERE contype = 'c'"
        " AND conrelid = 'odds_2026_04_01_detached'::regclass ORDER BY 1",
    )
    assert [name for (name,) in checks] == ["of_this_one", "positive"]


def test_what_plan_maintain_prints_is_what_maintain_sends(engine: Engine) -> None:
    history(engine)
    printed = dry_run(engine)
    assert partitions(engine) == PAST + KEPT, "nothing was changed"
    with listening(engine) as sent, engine.connect() as connection:
        maintenance.maintain(connection)
    rest = printed
    for statement in sent.statements:
        if statement.startswith(("SET", "RESET", "DO", "ALTER", "ANALYZE", "SELECT pg_advisory_xact_lock")):
            before, found, rest = rest.partition(f"{statement};\n")
            assert found, statement
            assert all(line.startswith(("--", "BEGIN", "COMMIT")) for line in before.splitlines()), before
    assert rest == ""


def test_the_plan_names_locks_and_reasons(engine: Engine) -> None:
    run(engine, "CREATE TABLE meetings (id int PRIMARY KEY)", "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"))
    history(engine, "odds", keeping(on_expiry="drop"), *columns(), key)
    printed = dry_run(engine)
    assert "SHARE UPDATE EXCLUSIVE on public.odds, then ACCESS EXCLUSIVE on public.odds_2026_03_30" in printed
    assert "all of it is older than its retention" in printed
    maintain(engine)
    clock_days_later(engine, 8)
    printed = dry_run(engine)
    assert "-- locks: ACCESS EXCLUSIVE on public.meetings" in printed
    assert "detached longer ago than its grace" in printed


def clock_days_later(engine: Engine, days: int) -> None:
    """Let what is detached have been detached earlier, as the server counts."""
    for name in detached(engine):
        told = mark(engine, name)
        at = datetime.fromisoformat(told["at"].rstrip("Z")) - timedelta(days=days)
        told["at"] = f"{at:%Y-%m-%d %H:%M:%S.%f}Z"
        comment = "alembic_partitions: detached " + json.dumps(told)
        run(engine, f"COMMENT ON TABLE {name} IS $${comment}$$")


def test_it_is_dropped_after_its_grace_where_that_was_asked_for(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="2 days"))
    assert result(engine).detached == tuple(PAST)
    clock.forward(days=1)
    assert result(engine).dropped == ()
    clock.forward(days=1, minutes=1)
    assert result(engine).dropped == tuple(f"{name}_detached" for name in PAST)
    assert not {f"{name}_detached" for name in PAST} & set(detached(engine))


def test_detach_alone_never_drops(engine: Engine, clock: Clock) -> None:
    history(engine)
    maintain(engine)
    clock.forward(days=6)
    assert result(engine).dropped == ()


def test_an_update_of_partition_config_takes_effect_at_the_next_run(engine: Engine) -> None:
    history(engine, rules=policy())
    assert result(engine).detached == ()
    run(engine, "UPDATE partition_config SET retention = '4 days', max_drops = 1")
    assert result(engine).detached == ("odds_2026_03_30",)
    run(engine, "UPDATE partition_config SET retention = '3 days', max_drops = 10, enabled = false")
    assert result(engine).detached == ()
    assert partitions(engine) == PAST[1:] + KEPT


@pytest.mark.parametrize("retention", ["1 fortnight", "3 weeks ago", "0 days"])
def test_the_database_refuses_a_retention_that_cannot_be_meant(engine: Engine, retention: str) -> None:
    history(engine)
    with pytest.raises(sa.exc.IntegrityError, match="partition_config_retention_check"):
        run(engine, f"UPDATE partition_config SET retention = '{retention}'")
    run(engine, "UPDATE partition_config SET retention = '999999 years'")
    assert result(engine).detached == ()


def test_a_retention_shorter_than_a_window_removes_nothing_and_is_an_error(engine: Engine) -> None:
    history(engine)
    run(engine, "UPDATE partition_config SET retention = '1 hour'")
    told = result(engine)
    assert "its retention is shorter than one window, so nothing is removed" in str(told.error)
    assert partitions(engine) == PAST + KEPT
    run(engine, "UPDATE partition_config SET retention = '3 days'")
    assert result(engine).detached == tuple(PAST)


def test_another_retention_for_one_run(engine: Engine) -> None:
    history(engine, rules=policy())
    assert result(engine, retention="3 days").detached == tuple(PAST)
    with pytest.raises(PolicyError, match="shorter than one window"):
        maintain(engine, retention="1 hour")
    declare(engine, "other")
    with pytest.raises(PolicyError, match="given for 2 tables at once"):
        maintain(engine, retention="3 days")
    assert len(maintain(engine, retention="3 days", tables=["odds", "other"]).results) == 2


# How it goes.


def test_readers_and_writers_do_not_wait_for_a_partition_to_go(engine: Engine) -> None:
    """Somebody has read the whole table and goes on reading; PostgreSQL lets it be detached only after."""
    history(engine)
    with somebody(engine, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", COUNT) as reader:
        waiting = threading.Thread(target=maintain, args=(engine,))
        waiting.start()
        until(engine, "SELECT count(*) = 1 FROM pg_inherits WHERE inhdetachpending")
        assert reader.scalar(text(COUNT)) == 20, "it still sees every row"
        reader.execute(text("INSERT INTO odds (at) VALUES ('2026-04-05 13:37+12')"))
        run(engine, "INSERT INTO odds (at) VALUES ('2026-04-05 13:38+12')")
        reader.commit()
        waiting.join()
    assert partitions(engine) == KEPT


def until(engine: Engine, query: str) -> None:
    for _ in range(600):
        if scalar(engine, query):
            return
        time.sleep(0.05)
    pytest.fail(f"never came true: {query}")


def test_who_has_used_the_table_for_long_keeps_it_from_being_left_half_detached(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    monkeypatch.setattr(removing, "DETACH_TIMEOUT_MS", 100)
    with somebody(engine, "SELECT count(*) FROM odds"):
        time.sleep(0.2)
        told = result(engine)
    assert told.error is not None
    assert "holds AccessShareLock on odds" in told.error
    assert partitions(engine) == PAST + KEPT
    assert not scalar(engine, "SELECT bool_or(inhdetachpending) FROM pg_inherits")
    assert result(engine).detached == tuple(PAST), "the next run carries on"


def test_a_detach_that_ran_into_its_time_out_is_finished_by_the_next_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    run(engine, "ALTER DATABASE " + str(engine.url.database) + " SET statement_timeout = 0")
    with somebody(engine, "SELECT count(*) FROM odds") as reader:
        other = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with other.connect() as connection:
            connection.execute(text("SET lock_timeout = '50ms'"))
            with pytest.raises(sa.exc.OperationalError):
                connection.execute(text("ALTER TABLE odds DETACH PARTITION odds_2026_03_31 CONCURRENTLY"))
        other.dispose()
        reader.rollback()
    assert scalar(engine, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 1
    assert "DETACH PARTITION public.odds_2026_03_31 FINALIZE" in dry_run(engine)
    assert set(result(engine).detached) == set(PAST)
    assert partitions(engine) == KEPT


def test_a_pending_one_that_is_not_expired_comes_back_with_its_rows(engine: Engine) -> None:
    history(engine)
    before = scalar(engine, "SELECT count(*) FROM odds")
    with somebody(engine, "SELECT count(*) FROM odds") as reader:
        other = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with other.connect() as connection:
            connection.execute(text("SET lock_timeout = '50ms'"))
            with pytest.raises(sa.exc.OperationalError):
                connection.execute(text("ALTER TABLE odds DETACH PARTITION odds_2026_04_04 CONCURRENTLY"))
        other.dispose()
        reader.rollback()
    with pytest.raises(sa.exc.IntegrityError, match="no partition of relation"):
        run(engine, "INSERT INTO odds (at) VALUES ('2026-04-04 13:00+13')")
    told = result(engine)
    assert told.restored == ("odds_2026_04_04",)
    assert partitions(engine) == KEPT
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-04 13:00+13')")
    gone = "".join(f" + (SELECT count(*) FROM {name}_detached)" for name in PAST)
    assert scalar(engine, f"SELECT (SELECT count(*) FROM odds) {gone}") == before + 1
    left = "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid = 'odds_2026_04_04'::regclass"
    assert scalar(engine, left) == 0


def test_beside_a_default_partition_it_is_detached_plainly_in_a_bounded_wait(engine: Engine) -> None:
    history(engine)
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    printed = dry_run(engine)
    assert (
        "-- locks: ACCESS EXCLUSIVE on public.odds; ACCESS EXCLUSIVE on public.odds_rest (DEFAULT)" in printed
    )
    assert " CONCURRENTLY" not in printed
    assert result(engine).detached == tuple(PAST)
    assert "odds_rest" in partitions(engine)


def test_a_plain_detach_gives_up_and_nobody_queues_behind_it_for_long(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    monkeypatch.setattr(removing, "insist", impatient(statements.insist))
    with somebody(engine, "SELECT count(*) FROM odds"):
        told = result(engine)
    assert told.error is not None
    assert "holds AccessShareLock on odds" in told.error
    assert result(engine).detached == tuple(PAST)


def impatient(insist: Callable[..., int]) -> Callable[..., int]:
    def once(*args: Any, **kw: Any) -> int:
        return insist(*args, **{**kw, "give_up_at": time.monotonic()})

    return once


def test_a_foreign_key_is_dropped_by_itself_before_its_table(engine: Engine, clock: Clock) -> None:
    run(engine, "CREATE TABLE meetings (id int PRIMARY KEY)", "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"))
    history(engine, "odds", keeping(on_expiry="drop", grace="1 day"), *columns(), key)
    maintain(engine)
    clock.forward(days=1, minutes=1)
    with somebody(engine, "SELECT * FROM meetings") as reader:
        waiting = threading.Thread(target=maintain, args=(engine,))
        waiting.start()
        time.sleep(0.3)
        run(engine, "INSERT INTO meetings VALUES (2)")
        reader.rollback()
        waiting.join()
    assert not {f"{name}_detached" for name in PAST} & set(detached(engine))


def test_rows_that_refer_to_an_expired_partition_keep_it_and_the_remedy_is_told(engine: Engine) -> None:
    history(engine)
    run(
        engine,
        "CREATE TABLE bets (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES odds (id, at))",
        "INSERT INTO bets SELECT id, at FROM odds WHERE at < '2026-03-31 00:00+13' LIMIT 1",
    )
    assert "public.bets (bets_id_at_fkey)" in dry_run(engine)
    told = result(engine)
    assert told.error is not None
    assert "violates foreign key constraint" in told.error
    assert "Delete the rows that refer to it first" in told.error
    assert told.detached == tuple(PAST[1:]), "one bad partition stops no other"
    assert partitions(engine) == PAST[:1] + KEPT
    marked = "SELECT obj_description(CAST(:name AS regclass), 'pg_class')"
    assert scalar(engine, marked, name=PAST[0]).startswith("alembic_partitions: made by create_partitions")
    run(engine, "DELETE FROM bets")
    assert result(engine).detached == (PAST[0],)


def test_what_is_not_what_was_planned_any_more_stays(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the plan and the first statement somebody puts another table in its place."""
    history(engine)
    real = removing.detach_batches

    def swapped(step: Any) -> Any:
        if step.partition.name == PAST[0]:
            run(
                engine,
                f"DROP TABLE {PAST[0]}",
                f"CREATE TABLE {PAST[0]} PARTITION OF odds FOR VALUES"
                " FROM ('2026-03-29 11:00+00') TO ('2026-03-30 11:00+00')",
            )
        return real(step)

    monkeypatch.setattr(removing, "detach_batches", swapped)
    told = result(engine)
    assert told.error is not None
    assert "is not what it was when this was planned" in told.error
    assert PAST[0] in partitions(engine)


def test_bounds_that_moved_meanwhile_keep_a_partition(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    real = removing.detach_batches

    def moved(step: Any) -> Any:
        if step.partition.name == PAST[0]:
            run(
                engine,
                f"ALTER TABLE odds DETACH PARTITION {PAST[0]}",
                f"ALTER TABLE odds ATTACH PARTITION {PAST[0]}"
                " FOR VALUES FROM ('2026-03-29 11:00+00') TO ('2026-03-30 10:00+00')",
            )
        return real(step)

    run(engine, f"DELETE FROM {PAST[0]}")
    monkeypatch.setattr(removing, "detach_batches", moved)
    assert "is not what it was" in str(result(engine).error)
    assert PAST[0] in partitions(engine)


def test_a_detached_table_that_is_a_partition_again_is_not_dropped(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    run(
        engine,
        f"ALTER TABLE odds ATTACH PARTITION {PAST[2]}_detached"
        " FOR VALUES FROM ('2026-03-31 11:00+00') TO ('2026-04-01 11:00+00')",
        "UPDATE partition_config SET retention = '1 year'",
    )
    clock.forward(days=2)
    assert result(engine).dropped == ()
    assert f"{PAST[2]}_detached" in partitions(engine)


def test_views_over_a_detached_table_keep_it(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    run(engine, f"CREATE VIEW old_odds AS SELECT * FROM {PAST[0]}_detached")
    clock.forward(days=1, minutes=1)
    told = result(engine)
    assert "cannot drop table" in str(told.error)
    assert f"{PAST[0]}_detached" in detached(engine)


# When nothing goes.


def test_a_rehearsed_clock_removes_nothing_and_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    monkeypatch.setenv(maintenance.NOW_VARIABLE, NOW.isoformat())
    told = result(engine)
    assert "by a rehearsed clock nothing is removed" in str(told.error)
    assert partitions(engine) == PAST + KEPT
    assert "DETACH PARTITION" in dry_run(engine), "a dry run shows it all the same"


def test_clocks_that_disagree_remove_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    history(engine)
    monkeypatch.setattr(maintenance.retaining, "_CLOCKS_AGREE", timedelta(microseconds=-1))
    told = result(engine)
    assert "the server's clock and this host's are" in str(told.error)
    assert partitions(engine) == PAST + KEPT


def written_down_now(engine: Engine, clock: Clock) -> None:
    """Have the server's own clock have been the test's."""
    run(engine, f"UPDATE partition_runs SET started_at = '{clock.now}' WHERE started_at > '2026-11-01'")


def test_a_clock_that_jumps_years_ahead_removes_nothing_nor_does_a_retry(
    engine: Engine, clock: Clock
) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day", retention="4 days"))
    assert result(engine).detached == tuple(PAST[:2])
    written_down_now(engine, clock)
    clock.forward(days=3000)
    for _ in range(3):
        told = result(engine)
        assert "the last run was on 2026-04-05: the clock is in doubt" in str(told.error)
        with engine.connect() as connection:
            maintenance.ensure(connection)
        written_down_now(engine, clock)
        clock.forward(hours=1)
    assert set(PAST[2:] + KEPT) <= set(partitions(engine))
    assert len(detached(engine)) == 2
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE started_at < '2026-05-01'"), "not pruned"
    clock.set(NOW + timedelta(days=1))
    assert result(engine).detached == (PAST[2],), "and once it is right again, what is due goes"


def test_after_a_long_time_without_a_run_somebody_may_say_that_the_clock_is_right(
    engine: Engine, clock: Clock
) -> None:
    history(engine)
    run(engine, "UPDATE partition_config SET enabled = false")
    maintain(engine)
    run(engine, "UPDATE partition_config SET enabled = true")
    written_down_now(engine, clock)
    clock.forward(days=100)
    assert "the clock is in doubt" in str(result(engine).error)
    assert len(result(engine, trust_clock=True).detached) == 9


def test_rare_runs_are_no_reason_for_doubt(engine: Engine, clock: Clock) -> None:
    history(engine)
    for _ in range(3):
        told = result(engine)
        written_down_now(engine, clock)
        assert told.error is None
        clock.forward(days=31)
    assert len(partitions(engine)) < 9


def test_partitions_made_by_hand_stay(engine: Engine) -> None:
    history(engine)
    run(engine, f"COMMENT ON TABLE {PAST[1]} IS NULL")
    told = result(engine)
    assert told.detached == (PAST[0], PAST[2])
    assert any(f"public.{PAST[1]}: expired, but attached by hand" in finding for finding in told.findings)


def test_the_last_partition_stays_on_the_server_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others vanish between the plan and the first statement."""
    history(engine)
    real = removing.detach_batches

    def alone(step: Any) -> Any:
        for name in set(partitions(engine)) - {PAST[0]}:
            run(engine, f"DROP TABLE {name}")
        return real(step)

    monkeypatch.setattr(removing, "detach_batches", alone)
    assert "is the last partition, and stays" in str(result(engine).error)
    assert partitions(engine) == PAST[:1]


# One bad table, one run at a time, who did what.


def test_one_bad_table_stops_no_other(engine: Engine) -> None:
    history(engine, "a")
    history(engine, "b")
    run(
        engine,
        "CREATE TABLE bets (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES a (id, at))",
        "INSERT INTO bets SELECT id, at FROM a WHERE at < '2026-03-31 00:00+13' LIMIT 1",
    )
    first, second = maintain(engine).results
    assert first.error
    assert second.error is None
    assert len(second.detached) == 3


def test_one_run_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    history(engine)
    other = create_engine(engine.url, poolclass=NullPool)
    monkeypatch.setattr(
        maintenance.maintaining, "one_run", lambda engine, home: one_run(engine, home, patience=0.2)
    )
    with one_run(other, "public"):
        with pytest.raises(RunUnderWay, match="alembic-partitions lock"):
            maintain(engine)
        assert partitions(engine) == PAST + KEPT
    assert result(engine).detached == tuple(PAST)


def test_every_run_is_written_down_and_old_ones_are_forgotten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine)
    maintain(engine)
    maintain(engine)
    found = rows(engine, "SELECT action, detached, dropped, error, details FROM partition_runs ORDER BY id")
    assert [row[:4] for row in found if row[0] == "maintain"] == [
        ("maintain", 3, 0, None),
        ("maintain", 0, 0, None),
    ]
    assert found[-2][4] == {"public.odds": {"detached": PAST}}
    run(engine, "UPDATE partition_runs SET started_at = now() - interval '91 days' WHERE detached > 0")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_HISTORY", "90 days")
    maintain(engine)
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE detached > 0") == 0
    monkeypatch.setenv("ALEMBIC_PARTITIONS_HISTORY", "for ever")
    with pytest.raises(PolicyError.__mro__[1], match="ALEMBIC_PARTITIONS_HISTORY"):
        maintain(engine)


def test_an_unknown_table_is_an_error(engine: Engine) -> None:
    history(engine)
    with pytest.raises(NotManagedError, match="nowhere"):
        maintain(engine, tables=["nowhere"])
    with pytest.raises(NoPartitionError, match="odds_2020"):
        maintain(engine, vacuum=("odds_2020",))


# Who may.


def test_a_keeper_that_is_a_member_of_the_owner_does_it_all(
    engine: Engine, roles: Roles, clock: Clock
) -> None:
    owner, keeper = roles.create("owner"), roles.create("keeper")
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    run(
        engine,
        f"GRANT {owner.username} TO {keeper.username}",
        f"GRANT CREATE, USAGE ON SCHEMA public TO {owner.username}",
        f"GRANT SELECT ON partition_config TO {keeper.username}",
        f"GRANT INSERT ON partition_runs TO {keeper.username}",
        *(f"ALTER TABLE {name} OWNER TO {owner.username}" for name in ["odds", *PAST, *KEPT]),
    )
    theirs = create_engine(keeper, poolclass=NullPool)
    told = result(theirs)
    assert (told.error, told.detached) == (None, tuple(PAST))
    clock.forward(days=1, minutes=1)
    told = result(theirs)
    assert (told.error, len(told.dropped)) == (None, 3)
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'") == 2
    theirs.dispose()


def test_a_role_without_the_right_gets_a_clear_error_and_changes_nothing(
    engine: Engine, roles: Roles
) -> None:
    history(engine)
    writer = roles.create("writer")
    run(engine, f"GRANT SELECT ON partition_config TO {writer.username}")
    theirs = create_engine(writer, poolclass=NullPool)
    assert "must be owner of table odds" in str(result(theirs).error)
    assert partitions(engine) == PAST + KEPT
    theirs.dispose()


# Names, schemas, keys, drivers.


def test_names_that_need_quotes_in_another_schema(engine: Engine, clock: Clock) -> None:
    run(engine, 'CREATE SCHEMA "Rennen %s"', "SET search_path = public")
    name = 'Quoten "é" %(x)s'
    declare(engine, name, keeping(on_expiry="drop", grace="1 day"), schema="Rennen %s")
    with operations(engine) as op:
        op.create_partitions(name, date(2026, 3, 30), date(2026, 4, 4), schema="Rennen %s")
    assert len(result(engine).detached) == 3
    clock.forward(days=1, minutes=1)
    told = result(engine)
    assert (told.error, len(told.dropped)) == (None, 3)


@pytest.mark.parametrize("key_type", [sa.Date(), sa.DateTime()], ids=["date", "timestamp"])
def test_other_keys(engine: Engine, key_type: Any) -> None:
    local = "t AT TIME ZONE 'Pacific/Auckland'"
    history(engine, "odds", None, *columns(key_type=key_type), stored=local)
    told = result(engine)
    assert (told.error, told.detached) == (None, tuple(PAST))
    with engine.connect() as connection:
        assert maintenance.restore(connection).results[0].error is None
    assert partitions(engine) == PAST + KEPT


def test_any_driver_detaches_drops_and_restores(database: Database, any_driver: str, clock: Clock) -> None:
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    plain = create_engine(database.url, poolclass=NullPool)
    history(plain, rules=keeping(on_expiry="drop", grace="1 day"))
    url = database.driver_url(any_driver)

    def work(connection: sa.Connection) -> TableResult:
        (found,) = maintenance.maintain(connection).results
        return found

    def once() -> TableResult:
        if any_driver != "asyncpg":
            engine = create_engine(url, poolclass=NullPool)
            with engine.connect() as connection:
                return work(connection)

        async def go() -> TableResult:
            engine = create_async_engine(url, poolclass=NullPool)
            async with engine.connect() as connection:
                return await connection.run_sync(work)

        return asyncio.run(go())

    told = once()
    assert (told.error, told.detached) == (None, tuple(PAST))
    assert set(told.tended) >= {"odds", "odds_2026_04_04"}
    clock.forward(days=1, minutes=1)
    told = once()
    assert (told.error, len(told.dropped)) == (None, 3)
    plain.dispose()


# What a critical reader found.


def test_a_table_that_is_given_the_name_of_another_takes_nothing_of_it(engine: Engine, clock: Clock) -> None:
    history(engine)
    maintain(engine)
    run(
        engine,
        "ALTER TABLE odds RENAME TO odds_v1",
        "UPDATE partition_config SET table_name = 'odds_v1'",
    )
    declare(engine, "odds", keeping(on_expiry="drop", grace="1 day"))
    clock.forward(days=2)
    assert [told.dropped for told in maintain(engine).results] == [(), ()]
    assert {f"{name}_detached" for name in PAST} <= set(detached(engine))
    with engine.connect() as connection:
        told = maintenance.restore(connection, PAST[:1]).results
    assert [(r.table, r.restored) for r in told] == [("public.odds_v1", (PAST[0],))], "its own comes back"


def test_a_database_that_came_out_of_a_dump_knows_its_detached_partitions(
    engine: Engine, clock: Clock
) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    for name in PAST:  # as pg_dump and pg_restore give back: the same comments on other OIDs
        told = mark(engine, f"{name}_detached") | {"oid": 1, "of": 2}
        run(
            engine, f"COMMENT ON TABLE {name}_detached IS $$alembic_partitions: detached {json.dumps(told)}$$"
        )
    clock.forward(days=1, minutes=1)
    assert len(result(engine).dropped) == 3


def test_a_table_that_is_declared_anew_takes_nothing_of_the_dropped_one(engine: Engine, clock: Clock) -> None:
    history(engine)
    maintain(engine)
    with operations(engine) as op:
        op.drop_partitioned_table("odds")
    declare(engine, "odds", keeping(on_expiry="drop", grace="1 day"))
    clock.forward(days=2)
    assert result(engine).dropped == ()
    assert detached(engine) == [f"{name}_detached" for name in PAST]


def test_a_partition_with_a_view_on_it_stops_no_other(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    run(engine, f"CREATE VIEW old_odds AS SELECT * FROM {PAST[0]}_detached")
    clock.forward(days=1, minutes=1)
    told = result(engine)
    assert "cannot drop table" in str(told.error)
    assert told.dropped == tuple(f"{name}_detached" for name in PAST[1:])
    assert told.detached == (KEPT[0],)


def test_names_with_line_breaks_stay_within_their_comment(engine: Engine) -> None:
    name = "y\nALTER ROLE mallory SUPERUSER;\n--"
    declare(engine, name, keeping())
    with operations(engine) as op:
        op.create_partitions(name, date(2026, 3, 30), date(2026, 4, 4))
    printed = dry_run(engine)
    assert "DETACH PARTITION" in printed
    assert not any(line.startswith("ALTER ROLE") for line in outside_quotes(printed))


def outside_quotes(script: str) -> list[str]:
    """What psql would take for statements of their own: lines that begin outside of any quotes."""
    lines, quoted = [], ""
    for line in script.split("\n"):
        if not quoted:
            lines.append(line)
        if not quoted and line.startswith("--"):
            continue
        for mark in line:
            if mark in "\"'" and quoted in ("", mark):
                quoted = "" if quoted else mark
    return lines


def test_a_forged_mark_on_somebody_elses_table_is_not_believed(
    engine: Engine, roles: Roles, clock: Clock
) -> None:
    mallory = roles.create("mallory")
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    told = scalar(engine, f"SELECT obj_description('{PAST[0]}_detached'::regclass, 'pg_class')")
    forged = told.replace(f"{PAST[0]}_detached", "mine")
    run(engine, "CREATE TABLE mine (LIKE odds)", f"ALTER TABLE mine OWNER TO {mallory.username}")
    run(engine, f"COMMENT ON TABLE mine IS $${forged}$$")
    clock.forward(days=2)
    assert "mine" not in result(engine).dropped
    assert scalar(engine, "SELECT to_regclass('mine') IS NOT NULL")


@pytest.mark.parametrize("comment", ["alembic_partitions: detached {", "alembic_partitions: detached []"])
def test_a_mark_that_somebody_has_edited_stops_nothing(engine: Engine, clock: Clock, comment: str) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    maintain(engine)
    run(engine, f"COMMENT ON TABLE {PAST[0]}_detached IS '{comment}'")
    clock.forward(days=1, minutes=1)
    told = result(engine)
    assert (told.error, len(told.dropped)) == (None, 2)


def test_a_connection_that_dies_as_it_leaves_autocommit_ends_no_other_step(
    engine: Engine,
) -> None:
    """psycopg2 sends something then, and its own error would come up unwrapped."""
    history(engine, "a")
    history(engine, "b")
    own = create_engine(engine.url, poolclass=NullPool)
    died: list[int] = []

    def kill(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement == "RESET application_name" and not died:
            died.append(connection.connection.dbapi_connection.get_backend_pid())  # type: ignore[union-attr]
            run(engine, f"SELECT pg_terminate_backend({died[0]}, 10000)")

    sa.event.listen(own, "after_cursor_execute", kill)
    with own.connect() as connection:
        first, second = maintenance.maintain(connection).results
    assert died
    assert (first.error, len(first.detached)) == (None, 3)
    assert "statistics of a_2026_04_04 were left for the next run" in " ".join(first.findings)
    assert (second.error, len(second.detached), len(second.tended)) == (None, 3, 4)


def test_a_connection_that_dies_in_the_middle_ends_that_step_and_no_other_table(engine: Engine) -> None:
    history(engine, "a")
    history(engine, "b")
    own = create_engine(engine.url, poolclass=NullPool)
    died: list[int] = []

    def kill(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if "DETACH PARTITION" in statement and "CONCURRENTLY" in statement and not died:
            died.append(connection.connection.dbapi_connection.get_backend_pid())  # type: ignore[union-attr]
            run(engine, f"SELECT pg_terminate_backend({died[0]})")

    sa.event.listen(own, "before_cursor_execute", kill)
    with own.connect() as connection:
        first, second = maintenance.maintain(connection).results
    assert died
    assert first.error
    assert (second.error, second.detached) == (None, ("b_2026_03_30", "b_2026_03_31", "b_2026_04_01"))
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'") == 1
    assert [told.error for told in maintain(engine).results] == [None, None]
    own.dispose()


def test_a_role_that_may_not_see_how_old_others_are_waits_and_leaves_nothing_half_way(
    engine: Engine, roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = roles.create("owner")
    history(engine)
    run(
        engine,
        f"GRANT ALL ON SCHEMA public TO {owner.username}",
        *(f"ALTER TABLE {name} OWNER TO {owner.username}" for name in ["odds", *PAST, *KEPT]),
        f"GRANT ALL ON partition_config, partition_runs TO {owner.username}",
    )
    monkeypatch.setattr(removing, "DETACH_TIMEOUT_MS", 300)
    theirs = create_engine(owner, poolclass=NullPool)
    with somebody(engine, COUNT):
        told = result(theirs)
    assert "holds AccessShareLock on odds" in str(told.error)
    assert not scalar(engine, "SELECT bool_or(inhdetachpending) FROM pg_inherits")
    assert result(theirs).detached == tuple(PAST)
    theirs.dispose()


def test_a_shorter_retention_for_one_run_makes_nothing_only_to_remove_it(engine: Engine) -> None:
    history(engine, rules=policy(lookback=7))
    assert result(engine, retention="3 days").detached == tuple(PAST)
    told = result(engine, retention="3 days")
    assert (told.created, told.detached) == ((), ())


def test_a_partition_that_is_partitioned_itself_goes_and_comes_back(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(on_expiry="drop", grace="1 day"))
    run(
        engine,
        f"ALTER TABLE odds DETACH PARTITION {PAST[0]}",
        f"DROP TABLE {PAST[0]}",
        f"CREATE TABLE {PAST[0]} PARTITION OF odds FOR VALUES FROM ('2026-03-29 11:00+00')"
        " TO ('2026-03-30 11:00+00') PARTITION BY HASH (id)",
        f"CREATE TABLE {PAST[0]}_0 PARTITION OF {PAST[0]} FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        f"COMMENT ON TABLE {PAST[0]} IS 'alembic_partitions: made by hand'",
    )
    assert result(engine).detached == tuple(PAST)
    with engine.connect() as connection:
        assert maintenance.restore(connection, [PAST[0]]).results[0].error is None
    assert PAST[0] in partitions(engine)


def test_an_engine_in_autocommit_has_bounds_too(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    history(engine)
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    monkeypatch.setattr(removing, "insist", impatient(statements.insist))
    own = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with somebody(engine, COUNT):
        told = result(own)
    assert "holds AccessShareLock on odds" in str(told.error)
    own.dispose()
