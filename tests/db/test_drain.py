"""Drain: rows of a DEFAULT partition moved to their windows, none lost, none twice, whoever is at work."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import executor, maintenance
from alembic_partitions.drivers import backend_pid
from alembic_partitions.health import assess
from alembic_partitions.maintenance import repairing
from alembic_partitions.plan import DRAINING_MARK, Staged
from tests.databases import Database, Roles
from tests.postgres import Server, ServerError
from tests.tables import NOW, columns, declare, listening, partitions, policy, quote, rows, run, scalar

WINDOW = "odds_2026_03_20"
# 2026-03-20 in Auckland.
BEGIN, END = "2026-03-19 11:00:00+00", "2026-03-20 11:00:00+00"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock, and not by ALEMBIC_PARTITIONS_NOW: nothing is moved by a rehearsed one."""
    monkeypatch.setattr(repairing, "clock", lambda database_now: NOW)


def repair(engine: Engine, **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.repair(connection, **kw).results
    return result


def script(engine: Engine, **kw: Any) -> str:
    with engine.connect() as connection:
        return "".join(plan.sql() for plan in maintenance.plan_repair(connection, **kw))


def with_default(engine: Engine, name: str = "odds", *items: Any, **kw: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, name, kw.pop("rules", None), *items, **kw)
    run(engine, f"CREATE TABLE {quote(name + '_rest')} PARTITION OF {quote(name)} DEFAULT")


def strand(engine: Engine, count: int = 100, begin: str = BEGIN, table: str = "odds") -> None:
    """Write rows, a minute apart, where no partition is."""
    run(
        engine,
        f"INSERT INTO {quote(table)} (at, note) SELECT timestamptz '{begin}' + i * interval '14 s', 'n' || i"
        f" FROM generate_series(0, {count - 1}) i",
    )


def state(engine: Engine, table: str = "odds") -> tuple[Any, ...]:
    """Count the rows and sum them up, those in a table that rows are gathered in included."""
    apart = rows(
        engine,
        "SELECT d.objoid::regclass::text FROM pg_description d JOIN pg_class c ON c.oid = d.objoid"
        " WHERE starts_with(d.description, :mark) AND NOT c.relispartition",
        mark=DRAINING_MARK,
    )
    sources = [quote(table), *(name for (name,) in apart)]
    union = " UNION ALL ".join(f"SELECT id, at, note FROM {name}" for name in sources)
    (found,) = rows(
        engine,
        "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id, at)) FROM"
        f" (SELECT id, at AT TIME ZONE 'UTC', note, at FROM ({union}) u) t",
    )
    return found


def in_default(engine: Engine, table: str = "odds_rest") -> int:
    return int(scalar(engine, f"SELECT count(*) FROM ONLY {quote(table)}"))


def nothing_is_held(engine: Engine) -> bool:
    held = rows(
        engine,
        "SELECT l.locktype, l.mode, a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE pid <> pg_backend_pid() AND a.datname = current_database()"
        " AND (l.locktype = 'advisory' OR l.locktype = 'relation' AND l.mode <> 'AccessShareLock')",
    )
    return not held


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_stranded_rows_move_to_their_windows(engine: Engine, batch: int) -> None:
    with_default(engine)
    strand(engine)
    strand(engine, 5, "2026-03-25 01:37:11+00")
    before = state(engine)
    result = repair(engine, batch=batch)
    assert result.error is None
    assert result.moved == 105
    assert result.created == (WINDOW, "odds_2026_03_25")
    assert state(engine) == before
    assert in_default(engine) == 0
    assert scalar(engine, f"SELECT count(*) FROM {WINDOW}") == 100
    mark = scalar(engine, f"SELECT obj_description('{WINDOW}'::regclass)")
    assert mark == "alembic_partitions: made by repair"
    again = repair(engine, batch=batch)
    assert (again.moved, again.created, again.error) == (0, (), None)
    assert nothing_is_held(engine)


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_what_is_printed_is_what_is_sent(engine: Engine, batch: int) -> None:
    with_default(engine, "100% of 'it'")
    strand(engine, table="100% of 'it'")
    printed = script(engine, batch=batch)
    with listening(engine) as sent:
        repair(engine, batch=batch)
    lines = [line.removesuffix(";") for line in printed.splitlines() if not line.startswith("--")]
    known = {*lines, "BEGIN", "COMMIT"}
    words = (
        "SET LOCAL",
        "SELECT pg_adv",
        "CREATE",
        "ALTER",
        "COMMENT",
        "LOCK",
        "WITH moved",
        "DROP",
        "SET CONSTRAINTS",
    )
    changes = [s for s in sent.statements if s.startswith(words)]
    assert [s for s in changes if s not in known] == []
    assert {line for line in lines if line.startswith(words)} == set(changes)
    assert ("cannot be seen through the table" in printed) is (batch == 30)


# -- who is at work meanwhile ---------------------------------------------------------------------------


def test_a_reader_who_waits_for_the_move_finds_every_row(engine: Engine) -> None:
    """One who waits for the DEFAULT partition alone has looked up the partitions already, and finds none."""
    with_default(engine)
    strand(engine)
    found: list[int] = []
    started = threading.Event()

    def read() -> None:
        with engine.connect() as connection:
            started.set()
            query = text(f"SELECT count(*) FROM odds WHERE at >= '{BEGIN}' AND at < '{END}'")
            found.append(connection.scalar(query) or 0)

    reader = threading.Thread(target=read)

    def meanwhile(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "ATTACH PARTITION" in statement and WINDOW in statement:
            reader.start()
            started.wait()
            wait_until(lambda: waits_for_a_lock(engine))

    event.listen(engine, "before_cursor_execute", meanwhile)
    assert repair(engine).moved == 100
    reader.join()
    assert found == [100]


@contextmanager
def once_gathered(engine: Engine, act: Callable[[], None]) -> Iterator[None]:
    """Act when no row is left in the DEFAULT partition, right before a transaction takes its turn."""
    acted = False

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal acted
        if not acted and statement.startswith("SELECT pg_advisory") and in_default(engine) == 0:
            acted = True
            act()

    event.listen(engine, "before_cursor_execute", look)
    yield
    event.remove(engine, "before_cursor_execute", look)
    assert acted


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def waits_for_a_lock(engine: Engine) -> bool:
    return bool(
        scalar(
            engine,
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
    )


@pytest.mark.parametrize("batch", [100_000, 40], ids=["at once", "gathered"])
@pytest.mark.long
def test_beside_eight_writers_no_row_is_lost_or_twice(
    database: Database, engine: Engine, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with_default(engine)
    strand(engine, 400)
    strand(engine, 200, "2026-04-04 12:00:00+00")  # inside the horizon
    with Writers(database) as alone:
        time.sleep(1)
    with Writers(database, seen=alone) as beside:
        for _ in range(20):  # writers strand rows anew all the while
            result = repair(engine, batch=batch)
            assert result.error is None or "not to be had" in result.error
        time.sleep(0.2)
    repair(engine, batch=batch)
    repair(engine, batch=batch)
    assert not alone.errors
    assert not beside.errors
    found = dict(rows(engine, "SELECT note, count(*) FROM odds WHERE note LIKE 'w%' GROUP BY note"))
    assert found == beside.expected
    assert in_default(engine) == 0
    assert scalar(engine, "SELECT count(*) FROM odds WHERE note NOT LIKE 'w%'") == 600
    with capsys.disabled():
        print(
            f"\nlongest wait of a writer: {alone.longest * 1000:.0f} ms alone, "
            f"{beside.longest * 1000:.0f} ms beside 20 drains (batch {batch})"
        )


class Writers:
    """Eight writers at work, each with rows of its own, in windows that have a partition and in those that
    have none."""

    def __init__(self, database: Database, seen: Writers | None = None) -> None:
        self.expected: dict[str, int] = dict(seen.expected) if seen else {}
        self.errors: list[str] = []
        self.longest = 0.0
        self._generation = "v" if seen else "u"
        self._engine = create_engine(database.url, pool_size=8)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(8)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _write(self, number: int) -> None:
        chance, mine = random.Random(number), list[str]()
        count = 0
        try:
            while not self._stop.is_set():
                count += 1
                note = f"w{self._generation}{number}-{count}"
                at = chance.choice([BEGIN, "2026-03-22 23:30:00+00", "2026-04-04 13:37:11+00"])
                began = time.monotonic()
                with self._engine.begin() as connection:
                    connection.execute(
                        text("INSERT INTO odds (at, note) VALUES (CAST(:at AS timestamptz), :note)"),
                        {"at": at, "note": note},
                    )
                    old = chance.choice(mine) if mine and chance.random() < 0.5 else None
                    new, gone = None, False
                    if old is not None and chance.random() < 0.5:
                        # What is gathered at this moment cannot be seen, and so is not changed.
                        done = connection.execute(text("DELETE FROM odds WHERE note = :old"), {"old": old})
                        gone = done.rowcount == 1
                    elif old is not None:
                        new = f"{old}x"
                        done = connection.execute(
                            text("UPDATE odds SET note = :new WHERE note = :old"), {"old": old, "new": new}
                        )
                        new = new if done.rowcount == 1 else None
                self.longest = max(self.longest, time.monotonic() - began)
                mine.append(note)
                self.expected[note] = 1
                if old is not None and (gone or new):
                    mine.remove(old)
                    del self.expected[old]
                if new:
                    mine.append(new)
                    self.expected[new] = 1
        except Exception as error:
            self.errors.append(str(error))


def test_a_competitor_who_covers_the_window_meanwhile_gets_the_rows(engine: Engine) -> None:
    with_default(engine)
    run(
        engine,
        "CREATE TABLE log (what text)",
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (tg_op); RETURN NEW; END $$",
    )
    strand(engine)
    run(engine, "CREATE TRIGGER tell AFTER INSERT ON odds FOR EACH ROW EXECUTE FUNCTION tell()")
    before = state(engine)

    theirs = (
        f"CREATE TABLE theirs PARTITION OF odds FOR VALUES FROM ('{BEGIN}') TO ('2026-03-19 11:10:00+00')"
    )
    with once_gathered(engine, lambda: run(engine, theirs)):
        result = repair(engine, batch=30)
    assert (result.error, result.moved) == (None, 100)
    assert state(engine) == before
    assert scalar(engine, f"SELECT to_regclass('{WINDOW}')") is None
    assert scalar(engine, "SELECT count(*) FROM theirs") == 43
    # What they do not cover went back, and the next run sees to it.
    assert in_default(engine) == 57
    assert repair(engine).created == ("odds_2026_03_19_111000z",)
    assert (state(engine), in_default(engine)) == (before, 0)
    assert rows(engine, "SELECT * FROM log") == []
    assert nothing_is_held(engine)


# -- killed at any moment -------------------------------------------------------------------------------


class Killed(BaseException):
    """This process is gone."""


@contextmanager
def killing(database: Database, engine: Engine, at: int, after: bool) -> Iterator[list[int]]:
    """Kill the session before or after the statement of that number, and the process with it."""
    count, killed = 0, list[int]()

    def kill(connection: Any, cursor: Any, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == at + 1:
            pid = backend_pid(connection)
            killed.append(pid)
            admin = create_engine(database.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            with admin.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            raise Killed

    name = "after_cursor_execute" if after else "before_cursor_execute"
    event.listen(engine, name, kill)
    try:
        yield killed
    except (Killed, DBAPIError):
        pass
    finally:
        event.remove(engine, name, kill)


def start_again(engine: Engine) -> None:
    run(engine, f"DROP TABLE IF EXISTS {WINDOW}", "TRUNCATE odds RESTART IDENTITY")
    strand(engine)


@pytest.mark.parametrize("batch", [10_000, 40], ids=["at once", "gathered"])
@pytest.mark.long
def test_killed_at_any_statement_the_next_run_finishes(
    database: Database, engine: Engine, batch: int
) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)", "INSERT INTO races VALUES (1)")
    race = sa.Column("race", sa.Integer, sa.ForeignKey("races.id"), server_default="1")
    with_default(engine, "odds", *columns(), race)
    run(engine, "ALTER TABLE odds REPLICA IDENTITY FULL")
    repair(engine)
    start_again(engine)
    expected = state(engine)
    doomed = create_engine(database.url, poolclass=NullPool)
    doomed.connect().close()  # SQLAlchemy has questions of its own, the first time
    with listening(doomed) as undisturbed:
        repair(doomed, batch=batch)
    for number in range(len(undisturbed.statements)):
        for after in (False, True):
            start_again(engine)
            with killing(database, doomed, number, after) as killed:
                repair(doomed, batch=batch)
                assert killed, number
            assert state(engine) == expected, (number, after)
            result = repair(doomed, batch=batch)
            assert result.error is None, (number, after)
            assert (state(engine), in_default(engine)) == (expected, 0), (number, after)
            assert scalar(engine, f"SELECT count(*) FROM {WINDOW}") == 100
            assert scalar(engine, f"SELECT obj_description('{WINDOW}'::regclass)").endswith("made by repair")
            assert nothing_is_held(engine), (number, after)


def cut_off(engine: Engine, batches: int = 2) -> None:
    """Leave a table that some batches of 30 rows have been gathered in."""
    doomed = create_engine(engine.url, poolclass=NullPool)
    count = 0

    def kill(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal count
        count += statement.startswith("WITH moved")
        if count > batches:
            raise Killed

    event.listen(doomed, "before_cursor_execute", kill)
    with pytest.raises(Killed):
        repair(doomed, batch=30)


def test_a_table_that_a_killed_run_left_is_found_and_carried_on(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    expected = state(engine)
    cut_off(engine)
    assert in_default(engine) == 40
    assert scalar(engine, "SELECT count(*) FROM odds") == 40, "what is gathered cannot be seen yet"
    assert "left it half-way" in script(engine)
    result = repair(engine, batch=30)
    assert (result.error, result.moved, result.created) == (None, 40, (WINDOW,))
    assert state(engine) == expected


# -- what rows bring with them --------------------------------------------------------------------------


def the_works() -> list[Any]:
    return [
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text),
        sa.Column('do"uble %', sa.Integer, sa.Computed("length(note) * 2", persisted=True)),
        sa.Column("race", sa.Integer, sa.ForeignKey("races.id", deferrable=True, initially="DEFERRED")),
        sa.PrimaryKeyConstraint("id", "at"),
    ]


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_identity_generated_and_foreign_key_columns_move_as_they_are(engine: Engine, batch: int) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)", "INSERT INTO races SELECT generate_series(1, 9)")
    with_default(engine, "odds", *the_works())
    # A DEFAULT partition that was attached by hand may have its columns in another order.
    run(
        engine,
        "DROP TABLE odds_rest",
        "CREATE TABLE odds_rest (race int, note text, gone int, at timestamptz NOT NULL, id bigint NOT NULL,"
        ' "do""uble %" int GENERATED ALWAYS AS (length(note) * 2) STORED)',
        "ALTER TABLE odds_rest DROP COLUMN gone",
        "ALTER TABLE odds ATTACH PARTITION odds_rest DEFAULT",
    )
    strand(engine)
    run(engine, "UPDATE odds SET race = 1 + id % 9")
    everything = 'SELECT id, at, note, "do""uble %", race FROM odds ORDER BY id'
    before = rows(engine, everything)
    result = repair(engine, batch=batch)
    assert (result.error, result.moved) == (None, 100)
    assert rows(engine, everything) == before
    keys = "SELECT count(*) FROM pg_constraint WHERE conrelid = :part ::regclass AND contype = 'f'"
    assert scalar(engine, keys, part=WINDOW) == 1, "the parent's key and none beside it"
    with pytest.raises(DBAPIError, match="violates foreign key"):
        run(engine, "DELETE FROM races WHERE id = 1")


def test_nobody_deletes_what_gathered_rows_refer_to(database: Database, engine: Engine) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)", "INSERT INTO races VALUES (1)")
    race = sa.Column("race", sa.Integer, sa.ForeignKey("races.id"), server_default="1")
    with_default(engine, "odds", *columns(), race)
    strand(engine)
    refused: list[str] = []

    def meddle() -> None:
        try:
            run(engine, "DELETE FROM races")
        except DBAPIError as error:
            refused.append(str(error.orig))

    with once_gathered(engine, meddle):
        assert repair(engine, batch=30).error is None
    assert len(refused) == 1
    assert "violates foreign key" in refused[0]


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_no_trigger_fires_for_a_move_and_each_is_as_it_was(engine: Engine, batch: int) -> None:
    with_default(engine)
    strand(engine)
    run(
        engine,
        "CREATE TABLE log (what text)",
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (tg_name); RETURN OLD; END $$",
        *(
            f"CREATE TRIGGER {quote(name)} {when} ON {table} FOR EACH {level} EXECUTE FUNCTION tell()"
            for name, when, table, level in (
                ('of the "parent"', "AFTER DELETE OR INSERT", "odds", "ROW"),
                ("always", "BEFORE DELETE", "odds_rest", "ROW"),
                ("replica", "AFTER DELETE", "odds_rest", "ROW"),
                ("never", "AFTER DELETE", "odds_rest", "ROW"),
                ("once", "AFTER DELETE", "odds_rest", "STATEMENT"),
                ("update", "AFTER UPDATE", "odds_rest", "ROW"),
            )
        ),
        "ALTER TABLE odds_rest ENABLE ALWAYS TRIGGER always",
        "ALTER TABLE odds_rest ENABLE REPLICA TRIGGER replica",
        "ALTER TABLE odds_rest DISABLE TRIGGER never",
    )
    states = "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'odds_rest'::regclass ORDER BY 1"
    before = rows(engine, states)
    assert {state for _, state in before} == {"O", "A", "R", "D"}
    assert "DISABLE TRIGGER always" in script(engine, batch=batch)
    result = repair(engine, batch=batch)
    assert (result.error, result.moved) == (None, 100)
    assert rows(engine, "SELECT * FROM log") == []
    assert rows(engine, states) == before
    # And the new partition has the parent's.
    run(engine, f"DELETE FROM odds WHERE at = '{BEGIN}'")
    assert rows(engine, "SELECT what FROM log") == [('of the "parent"',)]


def test_a_foreign_key_to_the_table_keeps_its_rows_where_they_are(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    run(
        engine,
        "CREATE TABLE bets (odds bigint, at timestamptz, CONSTRAINT to_odds"
        " FOREIGN KEY (odds, at) REFERENCES odds ON DELETE CASCADE)",
        "INSERT INTO bets SELECT id, at FROM odds",
    )
    result = repair(engine)
    assert (result.error, result.moved) == (None, 0)
    (finding,) = [f for f in result.findings if "foreign key" in f]
    assert finding.startswith("to_odds on public.bets: ")
    assert "drop that key" in finding
    assert (in_default(engine), scalar(engine, "SELECT count(*) FROM bets")) == (100, 100)


def test_rows_that_row_level_security_hides_are_not_left_behind_in_silence(
    database: Database, engine: Engine, roles: Roles
) -> None:
    url = roles.create("owner")
    owner = url.username
    with_default(engine)
    strand(engine)
    run(
        engine,
        f"GRANT ALL ON SCHEMA public TO {owner}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {owner}",
        *(f"ALTER TABLE {name} OWNER TO {owner}" for name in ["odds", *partitions(engine)]),
        "ALTER TABLE odds_rest ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE odds_rest FORCE ROW LEVEL SECURITY",
        "CREATE POLICY few ON odds_rest USING (note = 'n1')",
    )
    theirs = create_engine(url, poolclass=NullPool)
    result = repair(theirs)
    assert result.moved == 0
    assert any("NO FORCE ROW LEVEL SECURITY" in finding for finding in result.findings)
    run(engine, "ALTER TABLE odds_rest NO FORCE ROW LEVEL SECURITY")
    result = repair(theirs, batch=30)
    assert (result.error, result.moved) == (None, 100)
    found = scalar(engine, "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = :n", n=WINDOW)
    assert found == owner


@pytest.mark.parametrize(
    ("key_type", "literal", "name"),
    [
        (sa.DateTime(), "timestamp '2026-03-20 00:00'", WINDOW),
        (sa.Date(), "date '2026-03-20'", WINDOW),
        (sa.DateTime(timezone=True), f"timestamptz '{BEGIN}'", WINDOW),
    ],
    ids=["timestamp", "date", "timestamptz"],
)
@pytest.mark.parametrize("batch", [10_000, 3], ids=["at once", "gathered"])
def test_each_type_of_key(engine: Engine, key_type: Any, literal: str, name: str, batch: int) -> None:
    with_default(engine, "odds", *columns("at", key_type))
    run(engine, f"INSERT INTO odds (at, note) SELECT {literal}, i::text FROM generate_series(1, 10) i")
    result = repair(engine, batch=batch)
    assert (result.error, result.moved, result.created) == (None, 10, (name,))


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_names_that_need_quotes(engine: Engine, batch: int) -> None:
    run(engine, 'CREATE SCHEMA "a.b %s"')
    key = 'wh"en %(at)s'
    name = "o" * 50 + " \"'ö%"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, name, policy(key), *columns(key), schema="a.b %s")
    table = f'"a.b %s".{quote(name)}'
    run(
        engine,
        f'CREATE TABLE "a.b %s"."the rest %" PARTITION OF {table} DEFAULT',
        f"INSERT INTO {table} ({quote(key)}) SELECT timestamptz '{BEGIN}' + i * interval '1 s'"
        " FROM generate_series(1, 100) i",
    )
    result = repair(engine, batch=batch)
    assert (result.error, result.moved) == (None, 100)
    assert len(result.created) == 1
    assert len(result.created[0].encode()) <= 63


# -- what stays -----------------------------------------------------------------------------------------


def test_keys_beyond_the_limits_stay_and_are_told(engine: Engine) -> None:
    with_default(engine, rules=policy(max_ahead="30 days", max_behind="60 days"))
    strand(engine, 3)
    for at in ("infinity", "-infinity", "2026-12-31", "1999-01-01", "0044-03-15 BC", "20000-01-01"):
        run(engine, f"INSERT INTO odds (at) VALUES ('{at}')")
    result = repair(engine)
    assert (result.error, result.moved, result.created) == (None, 3, (WINDOW,))
    assert in_default(engine) == 6
    (finding,) = [f for f in result.findings if "max_ahead" in f]
    assert finding.startswith("public.odds_rest, 6 from -infinity to infinity: ")


def test_rows_without_a_key_stay_and_are_told(engine: Engine) -> None:
    at = sa.Column("at", sa.DateTime(timezone=True), nullable=False)
    with_default(engine, "odds", at, sa.Column("note", sa.Text))
    run(engine, "ALTER TABLE odds ALTER at DROP NOT NULL", "INSERT INTO odds VALUES (NULL, 'x')")
    strand(engine, 2)
    result = repair(engine)
    assert result.moved == 2
    assert any(f.startswith("public.odds_rest, 1 without a key: ") for f in result.findings)


def test_only_the_windows_that_rows_need_are_made(engine: Engine) -> None:
    with_default(engine)
    strand(engine, 1, "2019-07-01 00:00:00+00")
    strand(engine, 1, "2026-03-25 00:00:00+00")
    assert repair(engine).created == ("odds_2019_07_01", "odds_2026_03_25")


def test_a_window_that_is_covered_in_part_gets_the_rest(engine: Engine) -> None:
    with_default(engine)
    run(
        engine,
        f"CREATE TABLE morning PARTITION OF odds FOR VALUES FROM ('{BEGIN}') TO ('2026-03-19 23:00:00+00')",
    )
    strand(engine, 3_500)
    assert in_default(engine) > 0
    before = state(engine)
    result = repair(engine)
    assert result.created == ("odds_2026_03_19_230000z",)
    assert (state(engine), in_default(engine)) == (before, 0)


def test_by_a_rehearsed_clock_no_row_is_moved(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with_default(engine)
    strand(engine)
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
    assert "WITH moved" in script(engine)
    result = repair(engine, start="2026-03-20", stop="2026-03-22")
    assert result.moved == 0
    assert result.created == ("odds_2026_03_22", "odds_2026_03_21")
    assert any("rehearsed" in finding for finding in result.findings)
    assert in_default(engine) == 100


def test_two_rows_of_one_key_are_an_error_and_none_is_lost(engine: Engine) -> None:
    """Somebody has written a row again that could not be seen while it was gathered."""
    with_default(engine)
    strand(engine)
    before = state(engine)

    again = f"INSERT INTO odds (id, at, note) OVERRIDING SYSTEM VALUE VALUES (1, '{BEGIN}', 'again')"
    with once_gathered(engine, lambda: run(engine, again)):
        result = repair(engine, batch=30)
    assert result.error is not None
    assert "duplicate key" in result.error
    assert state(engine)[0] == before[0] + 1
    run(engine, "DELETE FROM odds WHERE note = 'again'")
    assert repair(engine).error is None
    assert state(engine) == before


def test_a_window_that_has_grown_since_it_was_planned_is_gathered(engine: Engine) -> None:
    with_default(engine)
    strand(engine, 20)
    with engine.connect() as connection:
        (plan,) = maintenance.plan_repair(connection, batch=30)
        (planned,) = plan.drains
        assert planned.how is Staged.AT_ONCE
        strand(engine, 80, "2026-03-20 01:37:11+00")
        with listening(engine) as sent:
            assert executor.drain(connection, planned)
    assert len([s for s in sent.statements if "LIMIT 30 FOR UPDATE SKIP LOCKED" in s]) == 5
    assert scalar(engine, f"SELECT count(*) FROM {WINDOW}") == 100


def test_who_is_in_the_way_is_named(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alembic_partitions.executor.draining.PATIENCE", 0.3)
    with_default(engine)
    strand(engine)
    with engine.begin() as other:
        other.execute(text("SET LOCAL application_name = 'slow report'"))
        other.execute(text("SELECT count(*) FROM odds"))
        result = repair(engine)
    assert result.error is not None
    assert "slow report" in result.error
    assert result.moved == 0
    assert repair(engine).moved == 100


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_a_move_that_takes_too_long_is_given_up_at_once_and_loses_nothing(
    engine: Engine, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alembic_partitions.executor.draining.ATTACH_TIMEOUT_MS", 250)
    with_default(engine)
    strand(engine)
    run(
        engine,
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF current_query() LIKE '%ATTACH%' THEN PERFORM pg_sleep(5); END IF; END $$",
        "CREATE EVENT TRIGGER slow ON ddl_command_end EXECUTE FUNCTION slow()",
    )
    before = state(engine)
    with listening(engine) as sent:
        result = repair(engine, batch=batch)
    assert result.error is not None
    assert "CREATE INDEX CONCURRENTLY on its key" in result.error
    assert len([s for s in sent.statements if "ATTACH" in s]) == 1, "others waited once"
    assert state(engine) == before
    run(engine, "DROP EVENT TRIGGER slow")
    assert repair(engine, batch=batch).error is None
    assert (state(engine), in_default(engine)) == (before, 0)


def test_gathered_rows_come_back_though_the_default_partition_has_gone(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    before = state(engine)
    cut_off(engine, 4)
    run(engine, "ALTER TABLE odds DETACH PARTITION odds_rest")
    assert in_default(engine) == 0
    assert repair(engine).error is None
    assert state(engine) == before
    assert scalar(engine, f"SELECT count(*) FROM {WINDOW}") == 100


def test_gathered_rows_wait_while_a_foreign_key_refers_to_the_table(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    before = state(engine)
    cut_off(engine)
    key = "CONSTRAINT k FOREIGN KEY (o, at) REFERENCES odds"
    run(engine, f"CREATE TABLE bets (o bigint, at timestamptz, {key})")
    result = repair(engine)
    assert result.error is None
    assert any(f.startswith(f"public.{WINDOW}: rows that a run") for f in result.findings)
    assert state(engine) == before
    run(engine, "DROP TABLE bets")
    assert "(40 rows)" in script(engine)
    assert repair(engine).moved == 40
    assert (state(engine), in_default(engine)) == (before, 0)


def test_a_default_partition_that_is_partitioned_itself_is_told(engine: Engine) -> None:
    with_default(engine)
    run(
        engine,
        "DROP TABLE odds_rest",
        "CREATE TABLE odds_rest PARTITION OF odds DEFAULT PARTITION BY RANGE (id)",
        "CREATE TABLE deeper PARTITION OF odds_rest DEFAULT",
    )
    strand(engine)
    result = repair(engine)
    assert result.moved == 0
    assert any("partitioned itself" in finding for finding in result.findings)
    assert scalar(engine, "SELECT count(*) FROM deeper") == 100


# What a critical reader found.


def test_the_current_window_moves_at_once_however_many_rows_there_are(engine: Engine) -> None:
    """Rows that are still changed would not be found while they are gathered."""
    with_default(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    strand(engine, 100, "2026-04-04 12:00:00+00")
    with listening(engine) as sent:
        assert repair(engine, batch=30).moved == 100
    assert not any("SKIP LOCKED" in statement for statement in sent.statements)


def test_rows_are_gathered_only_if_what_brings_them_back_can_be_had(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_default(engine)
    strand(engine)
    monkeypatch.setattr(executor.draining, "PATIENCE", 0.2)
    other = create_engine(engine.url, poolclass=NullPool)
    with other.connect() as writer:
        writer.execute(text("INSERT INTO odds (at) VALUES ('2026-04-05 01:00+00')"))
        assert "holds RowExclusiveLock" in str(repair(engine, batch=30).error)
        assert scalar(engine, "SELECT count(*) FROM odds") == 100, "nothing is hidden"
    assert repair(engine, batch=30).moved == 100
    other.dispose()


def forged(mark: str) -> list[str]:
    return [f"CREATE TABLE {WINDOW} (LIKE odds)", f"COMMENT ON TABLE {WINDOW} IS '{DRAINING_MARK}{mark}'"]


@pytest.mark.parametrize(
    "mark", ["x", "{}", "[]", '{"schema": 1, "table": 2, "oid": 3, "lower": 4, "upper": 5}']
)
def test_a_mark_that_somebody_has_edited_stops_nothing(engine: Engine, mark: str) -> None:
    with_default(engine)
    strand(engine)
    run(engine, *forged(mark))
    result = repair(engine)
    assert (result.error, result.moved) == (None, 100)


def test_a_table_of_somebody_elses_is_not_taken_for_one_of_ours(engine: Engine, roles: Roles) -> None:
    mallory = roles.create("mallory")
    with_default(engine)
    strand(engine)
    oid = scalar(engine, "SELECT 'odds'::regclass::oid::bigint")
    mark = f'{{"schema": "public", "table": "odds", "oid": {oid}, "lower": "{BEGIN}", "upper": "{END}"}}'
    run(engine, *forged(mark), f"ALTER TABLE {WINDOW} OWNER TO {mallory.username}")
    assert repair(engine).moved == 100
    assert WINDOW not in partitions(engine)


def test_names_with_line_breaks_stay_within_their_comment(engine: Engine) -> None:
    with_default(engine)
    name = "evil\nDROP TABLE odds; --"
    run(
        engine,
        f"CREATE TABLE {quote(name)} PARTITION OF odds"
        " FOR VALUES FROM ('2026-03-20 01:00+00') TO ('2026-03-20 02:00+00')",
    )
    strand(engine, 10)
    assert "\nDROP TABLE odds" not in script(engine)


def test_what_retention_will_take_is_said_before_it_moves(engine: Engine) -> None:
    with_default(engine, rules=policy(retention="3 days"))
    strand(engine)
    assert "older than retention" in script(engine)
    assert any("older than retention" in finding for finding in repair(engine).findings)


def test_a_published_table_is_refused_since_subscribers_would_lose_the_rows() -> None:
    try:
        server = Server(settings={"wal_level": "logical"})
    except ServerError as error:
        pytest.skip(f"needs a server of its own: {error}")
    engine = create_engine(server.url, poolclass=NullPool)
    try:
        with_default(engine)
        strand(engine, 10)
        for publication in ("FOR TABLE odds", "FOR ALL TABLES", "FOR TABLES IN SCHEMA public"):
            run(engine, f"CREATE PUBLICATION told {publication} WITH (publish_via_partition_root)")
            result = repair(engine)
            assert result.moved == 0
            assert any("by told: its publication tells subscribers" in told for told in result.findings)
            run(engine, "DROP PUBLICATION told")
        run(engine, "CREATE PUBLICATION inserts FOR TABLE odds WITH (publish = 'insert, update')")
        assert repair(engine).moved == 10
    finally:
        engine.dispose()
        server.close()


def test_a_drain_that_was_cut_off_is_a_warning_until_it_is_over(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    own = create_engine(engine.url, poolclass=NullPool)

    def power_cut(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if " ATTACH " in statement:
            run(engine, f"SELECT pg_terminate_backend({backend_pid(connection)})")

    event.listen(own, "before_cursor_execute", power_cut)
    assert repair(own, batch=30).error
    run(engine, "DELETE FROM partition_runs")
    with engine.connect() as connection:
        (view,) = maintenance.look(connection).tables
    judged = assess(view.plan, NOW, stranded=view.stranded, gathered=view.gathered)
    assert f"rows in public.{WINDOW} cannot be seen until repair succeeds" in judged.reasons
    assert repair(engine).error is None
    with engine.connect() as connection:
        assert maintenance.look(connection).tables[0].gathered == ()
    own.dispose()


def test_at_serializable_by_default_it_sees_what_was_just_committed(engine: Engine) -> None:
    with_default(engine)
    strand(engine)
    own = create_engine(engine.url, poolclass=NullPool, isolation_level="SERIALIZABLE")
    with listening(own) as sent:
        assert repair(own).moved == 100
    assert sent.statements
    with own.connect() as connection:
        maintenance.repair(connection)
        assert connection.get_isolation_level() == "SERIALIZABLE", "and that is put back"
    own.dispose()
