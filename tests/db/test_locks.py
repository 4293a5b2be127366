"""Nobody waits for us: the locks of a step, read from pg_locks while it is open right before its COMMIT."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text

from alembic_partitions import executor, maintenance
from alembic_partitions.errors import LockNotAvailable
from alembic_partitions.executor import creating
from alembic_partitions.plan import CreatePartition
from tests.databases import OF_THIS_DATABASE, Database, locks_referrers
from tests.tables import NOW, columns, declare, listening, partitions, policy, rows, run, scalar

ACCESS_EXCLUSIVE = "AccessExclusiveLock"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.fixture
def ours(database: Database) -> Iterator[Engine]:
    """The engine that makes partitions; `engine` is everybody else."""
    ours = create_engine(database.url, poolclass=NullPool)
    yield ours
    ours.dispose()


def short_of_today(engine: Engine, *changes: str, items: Any = ()) -> None:
    declare(engine, "odds", policy(premake=0, lookback=0), *columns(), *items)
    run(engine, "DROP TABLE odds_2026_04_05", *changes)


def ensure(engine: Engine, **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection, **kw).results
    return result


def step(engine: Engine) -> CreatePartition:
    with engine.connect() as connection:
        (planned,) = maintenance.plan(connection)
    (making,) = planned.plan.steps
    return making


@contextmanager
def before_commit(ours: Engine, look: Any) -> Iterator[None]:
    """Look around when a partition is attached and its transaction about to be committed."""
    attached: list[bool] = []

    def attach(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if " ATTACH " in statement:
            attached.append(True)

    def commit(connection: Connection) -> None:
        if attached:
            attached.clear()
            look(connection)

    event.listen(ours, "after_cursor_execute", attach)
    event.listen(ours, "commit", commit)
    yield
    event.remove(ours, "after_cursor_execute", attach)
    event.remove(ours, "commit", commit)


def locks(engine: Engine, connection: Connection) -> dict[str, set[str]]:
    """Return what a session holds on tables, by name; its new partition's as "new"."""
    pid = connection.connection.dbapi_connection.get_backend_pid()  # type: ignore[union-attr]
    found: dict[str, set[str]] = {}
    for name, mode in rows(
        engine,
        "SELECT coalesce(c.relname, 'new'), l.mode FROM pg_locks l"
        " LEFT JOIN pg_class c ON c.oid = l.relation"
        " WHERE l.pid = :pid AND l.locktype = 'relation' AND l.granted"
        "   AND (c.oid IS NULL OR c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace)",
        pid=pid,
    ):
        found.setdefault(name, set()).add(mode)
    return found


def held(engine: Engine, ours: Engine) -> dict[str, set[str]]:
    """Make the missing partition, and return the locks it held on tables that others can see."""
    seen: list[dict[str, set[str]]] = []
    with before_commit(ours, lambda connection: seen.append(locks(engine, connection))):
        result = ensure(ours)
    assert result.error is None
    (found,) = seen
    found.pop("new", None)
    return found


# -- what is held --------------------------------------------------------------------------------------


def test_on_the_parent_nothing_stronger_than_share_update_exclusive(engine: Engine, ours: Engine) -> None:
    short_of_today(engine)
    found = held(engine, ours)
    assert found == {"odds": {"AccessShareLock", "ShareUpdateExclusiveLock"}}


def test_every_trait_that_is_carried_over_leaves_the_locks_as_they_are(engine: Engine, ours: Engine) -> None:
    short_of_today(
        engine,
        "ALTER TABLE odds REPLICA IDENTITY USING INDEX odds_pkey",
        "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE odds ALTER note SET STATISTICS 7",
        "ALTER TABLE odds ADD CHECK (note <> '')",
        "CREATE INDEX ON odds (lower(note)) WHERE id > 7",
    )
    found = held(engine, ours)
    assert "ShareUpdateExclusiveLock" in found["odds"]
    assert found["odds"] <= {"AccessShareLock", "ShareUpdateExclusiveLock"}


def test_at_either_end_of_a_foreign_key_share_row_exclusive_as_the_plan_says(
    database: Database, engine: Engine, ours: Engine
) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)")
    short_of_today(
        engine,
        "CREATE TABLE bets (id int, odds_id bigint, odds_at timestamptz,"
        " FOREIGN KEY (odds_id, odds_at) REFERENCES odds (id, at))",
        items=[sa.Column("race", sa.Integer, sa.ForeignKey("races.id"))],
    )
    (statement,) = [s for s in executor.render(step(engine)) if s.locks]
    assert statement.locks == (
        "SHARE UPDATE EXCLUSIVE on public.odds; SHARE ROW EXCLUSIVE on public.bets (foreign key);"
        " SHARE ROW EXCLUSIVE on public.races (foreign key)"
    )
    found = held(engine, ours)
    assert ACCESS_EXCLUSIVE not in {mode for modes in found.values() for mode in modes}
    assert found.keys() == {"odds", "races", "bets"}
    for name in ("races", "bets") if locks_referrers(database.server_version) else ("races",):
        assert "ShareRowExclusiveLock" in found[name]
        assert found[name] <= {"AccessShareLock", "RowShareLock", "ShareRowExclusiveLock"}
    assert "ShareUpdateExclusiveLock" in found["odds"]


def test_a_default_partition_is_locked_as_the_plan_says(engine: Engine, ours: Engine) -> None:
    short_of_today(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    (statement,) = [s for s in executor.render(step(engine)) if s.locks]
    assert statement.locks == (
        "SHARE UPDATE EXCLUSIVE on public.odds; ACCESS EXCLUSIVE on public.rest (DEFAULT)"
    )
    found = held(engine, ours)
    assert ACCESS_EXCLUSIVE in found["rest"]
    assert ACCESS_EXCLUSIVE not in found["odds"]


def test_other_partitions_are_not_locked(engine: Engine, ours: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    assert held(engine, ours).keys() == {"odds"}


# -- who waits -----------------------------------------------------------------------------------------


def test_readers_and_writers_go_on_while_a_partition_is_attached(engine: Engine, ours: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    done: list[object] = []

    def read_and_write(connection: Connection) -> None:
        with engine.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = '1ms'"))
            other.execute(text("INSERT INTO odds (at, note) VALUES ('2026-04-06 13:37:11+12', 'meanwhile')"))
            other.execute(text("UPDATE odds SET note = note || '!'"))
            done.extend(other.execute(text("SELECT note FROM odds")).scalars())
            other.execute(text("DELETE FROM odds WHERE false"))

    with before_commit(ours, read_and_write):
        assert ensure(ours).created == ("odds_2026_04_05",)
    assert done == ["meanwhile!"]


def test_open_readers_and_writers_of_the_parent_do_not_hold_us_up(engine: Engine, ours: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    with engine.connect() as reader, engine.connect() as writer:
        reader.execute(text("SELECT * FROM odds"))
        writer.execute(text("INSERT INTO odds (at) VALUES ('2026-04-06 13:37:11+12')"))
        with listening(ours) as sent:
            assert ensure(ours).created == ("odds_2026_04_05",)
        assert (
            len([s for s in sent.statements if s.startswith("SELECT pg_advisory")]) == 1
        )  # at the first try
        # Both are still in their transactions, and find what they need.
        writer.execute(text("INSERT INTO odds (at) VALUES ('2026-04-05 13:37:11+12')"))
        reader.execute(text("SELECT * FROM odds"))
        writer.commit()
    assert scalar(engine, "SELECT count(*) FROM odds") == 2


def test_nothing_is_sent_that_could_wait_without_a_lock_timeout(
    engine: Engine, ours: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    monkeypatch.setattr(creating, "AT_ONCE", 1)  # several are sent as the text of these
    run(engine, "DROP TABLE odds_2026_04_05, odds_2026_04_06")
    patience: list[tuple[str, str]] = []

    def ask(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(("SELECT pg_adv", "CREATE", "COMMENT", "ALTER", "DO")):
            cursor.execute("SHOW lock_timeout")
            patience.append((statement.split(maxsplit=1)[0], cursor.fetchone()[0]))

    event.listen(ours, "before_cursor_execute", ask)
    assert len(ensure(ours).created) == 2
    assert patience == [("SELECT", "2s"), ("CREATE", "40ms"), ("COMMENT", "40ms"), ("ALTER", "40ms")] * 2


def test_the_sessions_own_lock_timeout_is_what_it_was(engine: Engine, ours: Engine) -> None:
    short_of_today(engine)
    with ours.connect() as connection:
        connection.execute(text("SET lock_timeout = '7s'"))
        connection.commit()
        assert maintenance.ensure(connection).created == 1
        assert connection.scalar(text("SHOW lock_timeout")) == "7s"


# -- when the lock is not to be had --------------------------------------------------------------------

HOLDERS = {
    "a lock on the parent": ("LOCK TABLE odds IN SHARE MODE", "ShareLock on odds"),
    "ANALYZE": ("ANALYZE odds", "ShareUpdateExclusiveLock on odds"),
    "CREATE INDEX": ("CREATE INDEX ON odds (note)", "ShareLock on odds"),
    "a comment": ("COMMENT ON TABLE odds IS 'odds'", "ShareUpdateExclusiveLock on odds"),
    "a writer of the table referred to": ("INSERT INTO races VALUES (7)", "RowExclusiveLock on races"),
    "a reader of the DEFAULT partition": ("SELECT * FROM rest", "AccessShareLock on rest"),
    "a writer of a row in DEFAULT": (
        "INSERT INTO odds (at) VALUES ('1999-09-09 13:37:11+00')",
        "RowExclusiveLock on rest",
    ),
}


@pytest.mark.parametrize(("statement", "lock"), HOLDERS.values(), ids=HOLDERS.keys())
def test_who_holds_the_lock_is_named(
    database: Database, engine: Engine, ours: Engine, statement: str, lock: str
) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)")
    short_of_today(engine, items=[sa.Column("race", sa.Integer, sa.ForeignKey("races.id"))])
    if "rest" in lock:
        run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    others = create_engine(
        database.url.update_query_dict({"application_name": "nightly"}), poolclass=NullPool
    )
    making = step(engine)
    with others.connect() as holder:
        pid = holder.connection.dbapi_connection.get_backend_pid()  # type: ignore[union-attr]
        holder.execute(text(statement))
        with ours.connect() as connection, pytest.raises(LockNotAvailable) as refusal:
            executor.create_partition(connection, making, give_up_at=time.monotonic())
    assert refusal.value.table == "public.odds"
    assert f"process {pid} (nightly) holds {lock}" in refusal.value.reason
    assert "next run tries again" in str(refusal.value)
    assert partitions(engine) in ([], ["rest"])
    assert ensure(ours).created == ("odds_2026_04_05",)


def test_a_prepared_transaction_is_named_as_such(engine: Engine, ours: Engine) -> None:
    short_of_today(engine)
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE odds IN SHARE MODE"))
        holder.execute(text(f"PREPARE TRANSACTION '{engine.url.database}'"))
        holder.commit()
    with (
        ours.connect() as connection,
        pytest.raises(LockNotAvailable, match="a prepared transaction holds ShareLock"),
    ):
        executor.create_partition(connection, step(engine), give_up_at=time.monotonic())
    run(engine, f"ROLLBACK PREPARED '{engine.url.database}'")
    assert ensure(ours).created == ("odds_2026_04_05",)


def test_whoever_makes_partitions_of_it_longer_than_a_turn_is_no_reason_to_hang(
    engine: Engine, ours: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_today(engine)
    monkeypatch.setattr(creating, "TURN_TIMEOUT_MS", 50)
    making = step(engine)
    with engine.connect() as holder:
        holder.execute(text(executor.render(making)[1].sql))
        with ours.connect() as connection, pytest.raises(LockNotAvailable, match="another process is making"):
            executor.create_partition(connection, making, give_up_at=time.monotonic())
    assert ensure(ours).created == ("odds_2026_04_05",)


def test_waiting_is_futile_where_our_own_caller_holds_the_lock(engine: Engine, ours: Engine) -> None:
    short_of_today(engine)
    making = step(engine)
    with engine.connect() as caller:
        pid = caller.scalar(text("SELECT pg_backend_pid()"))
        caller.execute(text("LOCK TABLE odds IN SHARE MODE"))
        with listening(ours) as sent, ours.connect() as connection, pytest.raises(LockNotAvailable):
            executor.create_partition(connection, making, callers={pid}, give_up_at=time.monotonic() + 60)
        assert not [s for s in sent.statements if s.startswith("SELECT pg_advisory")]


def test_a_lock_given_back_in_time_costs_a_retry_and_nothing_else(engine: Engine, ours: Engine) -> None:
    short_of_today(engine)
    tries: list[str] = []
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE odds IN SHARE MODE"))

        def release_at_the_third_try(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.startswith("SELECT pg_advisory"):
                tries.append(statement)
                if len(tries) == 3:
                    holder.rollback()

        event.listen(ours, "before_cursor_execute", release_at_the_third_try)
        assert ensure(ours).created == ("odds_2026_04_05",)
    assert len(tries) == 3


def test_one_locked_table_stops_no_other_and_is_told(
    engine: Engine, ours: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "_LONGEST_PAUSE", 0.001)  # it would try to the very end of its time
    for name in ("odds", "other"):
        declare(engine, name)
        run(engine, f"DROP TABLE {name}_2026_04_05")
    with engine.connect() as holder:
        holder.execute(text("LOCK TABLE odds IN SHARE MODE"))
        with ours.connect() as connection:
            odds, other = maintenance.ensure(connection, give_up_at=time.monotonic() + 3).results
    assert odds.error is not None
    assert "holds ShareLock on odds" in odds.error
    assert odds.current_missing
    assert (other.created, other.error) == (("other_2026_04_05",), None)


def test_nobody_queues_behind_a_step_that_waits(
    engine: Engine, ours: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    monkeypatch.setattr(creating, "LOCK_TIMEOUT_MS", 60_000)  # or it would be over before we can look
    waiting = (
        "SELECT l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE c.relname = 'odds' AND NOT l.granted AND " + OF_THIS_DATABASE
    )
    with ThreadPoolExecutor() as pool, engine.connect() as holder:
        holder.execute(text("LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE"))
        running = pool.submit(ensure, ours)
        while not rows(engine, waiting):
            assert not running.done()
        assert rows(engine, waiting) == [("ShareUpdateExclusiveLock",)]
        with engine.begin() as newcomer:
            newcomer.execute(text("SET LOCAL lock_timeout = '1ms'"))
            newcomer.execute(text("INSERT INTO odds (at) VALUES ('2026-04-06 13:37:11+12')"))
            assert newcomer.scalar(text("SELECT count(*) FROM odds")) == 1
        assert rows(engine, waiting) == [("ShareUpdateExclusiveLock",)]
        holder.rollback()
        assert running.result().created == ("odds_2026_04_05",)
