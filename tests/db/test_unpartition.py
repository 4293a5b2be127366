"""Unpartition: rows of many partitions come back into one plain table, and nobody loses any meanwhile."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import executor, maintenance
from alembic_partitions.conversion import abort_unpartition, plan_unpartition, unpartition
from alembic_partitions.errors import ConversionRefused, SplitRefused, UnpartitionFailed, WorkFailed
from alembic_partitions.executor import converting, merge_swap
from alembic_partitions.maintenance import TableResult, ensuring
from tests.databases import Database, Roles
from tests.db.test_convert import (
    RICH,
    Cut,
    altering,
    content,
    cut_off,
    meanwhile,
    schema_of,
    to_partitioned,
)
from tests.ledger import LEVELS, Writer, at_work, differences, keep_ledger
from tests.tables import NOW, declare, listening, partitions, policy, quote, rows, run, scalar

pytestmark = pytest.mark.ends

FIRST_OF = "odds_2026_04_05"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maintenance, ensuring):
        monkeypatch.setattr(module, "clock", lambda database_now: NOW)
    monkeypatch.setattr(converting, "PATIENCE", 3.0)


@pytest.fixture
def odds(engine: Engine) -> Engine:
    """Three windows, with a few blocks of rows in each."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, rules=policy(premake=1))
    fill(engine, 60)
    assert scalar(engine, f"SELECT pg_relation_size('{FIRST_OF}')") > 8192
    return engine


def fill(engine: Engine, count: int) -> None:
    run(
        engine,
        "INSERT INTO odds (at, note) SELECT timestamptz '2026-04-05 13:37:11+00' - i * interval '49 hours' /"
        f" {count}, 'n' || i || repeat('x', {30_000 // count}) FROM generate_series(0, {count - 1}) i",
    )


def to_plain(engine: Engine, table: str = "odds", **kw: Any) -> TableResult:
    with engine.connect() as connection:
        (result,) = unpartition(connection, table, **kw).results
    return result


def script(engine: Engine, table: str = "odds", **kw: Any) -> str:
    with engine.connect() as connection:
        return plan_unpartition(connection, table, **kw).sql()


def left_over(engine: Engine) -> list[str]:
    """Return what belongs to a merge that is under way and not to the result."""
    found = rows(
        engine,
        "SELECT c.relname FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0"
        " WHERE d.description ~ '^alembic_partitions: (merging|helper)'"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '_plain_log'"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ '^alembic_partitions'"
        " UNION ALL SELECT relname FROM pg_class WHERE relname ~ '_plain' AND relkind <> 't'",
    )
    return [name for (name,) in found]


def kind(engine: Engine, table: str = "odds") -> str:
    return str(scalar(engine, "SELECT relkind::text FROM pg_class WHERE relname = :name", name=table))


def test_rows_of_many_partitions_come_back(odds: Engine) -> None:
    before, parts = content(odds), partitions(odds)
    assert len(before) == 60
    result = to_plain(odds, batch=7)
    assert result.moved == 60
    assert result.proof is not None
    assert result.proof.startswith("60 rows, checksum ")
    assert content(odds) == before
    assert kind(odds) == "r"
    assert left_over(odds) == []
    assert partitions(odds, "odds_partitioned") == parts
    assert content(odds, "odds_partitioned") == before
    assert result.findings == (
        "its partitions stay as they were; once you are sure: DROP TABLE public.odds_partitioned",
    )
    assert scalar(odds, "SELECT count(*) FROM partition_config") == 0
    run(odds, "INSERT INTO odds (at) VALUES ('1999-12-31')", "DROP TABLE odds_partitioned")
    assert scalar(odds, "SELECT max(id) FROM odds") == 61


def rich_rows(engine: Engine) -> None:
    run(
        engine,
        "INSERT INTO odds (at, venue, amount, note) SELECT timestamptz '2026-04-14 01:37:11+00'"
        " + i * interval '1 hour', 1 + i % 5, i, 'n' || i FROM generate_series(1, 30) i",
    )


def test_all_that_hung_on_it_hangs_on_it_again(engine: Engine, database: Database, roles: Roles) -> None:
    reader = str(roles.create("reader").username)
    run(engine, *(statement.replace("{reader}", reader) for statement in RICH))
    dumped = schema_of(database)
    to_partitioned(engine)
    run(engine, "SELECT setval('odds_n_seq', 1000)")
    maintenance_windows(engine)
    rich_rows(engine)
    before = content(engine)
    assert scalar(engine, "SELECT count(DISTINCT tableoid) FROM odds") == 3
    result = to_plain(engine, drop_old=True)
    assert result.findings == ()
    assert schema_of(database) == dumped
    assert content(engine) == before
    run(engine, "INSERT INTO odds (at, venue) VALUES (now(), 1)", "DELETE FROM venues WHERE id = 2")
    assert scalar(engine, "SELECT n FROM odds ORDER BY id DESC LIMIT 1") == 1031
    assert scalar(engine, "SELECT id FROM odds ORDER BY id DESC LIMIT 1") == 7 + 330 * 3
    assert scalar(engine, "SELECT count(*) FROM odds WHERE venue = 2") == 0


def maintenance_windows(engine: Engine) -> None:
    """Make the windows of the next days, past those that a conversion has made."""
    run(
        engine,
        "CREATE TABLE odds_more (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)",
        "ALTER TABLE odds ATTACH PARTITION odds_more"
        " FOR VALUES FROM ('2026-04-14 12:00+00') TO ('2026-05-01 12:00+00')",
    )


def test_what_is_written_meanwhile_is_kept(odds: Engine, database: Database) -> None:
    fill(odds, 3000)
    keep_ledger(odds)
    crowd = create_engine(database.url, poolclass=NullPool)
    # Up to 110 hours before: rows go from window to window, and where there is none writers are refused.
    writers = [Writer(crowd, LEVELS[n % 3], n, "2026-04-06 11:00+00") for n in range(5)]
    run(odds, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    with at_work(writers):
        time.sleep(0.3)
        result = to_plain(odds, batch=150, pause=0.01)
        time.sleep(0.3)
    assert differences(odds) == []
    assert left_over(odds) == []
    assert kind(odds) == "r"
    assert all(writer.changes for writer in writers)
    assert result.proof is not None
    print(result, [w.changes for w in writers], max(w.longest for w in writers))


# -- partitions that come and go meanwhile --------------------------------------------------------------

COPIES = "WITH copied AS"
ATTACH = "ALTER TABLE odds ATTACH PARTITION {} FOR VALUES FROM ('{}') TO ('{}')"
LATE, OF_FIRST = ("2026-05-01", "2026-05-02"), ("2026-04-04 11:00+00", "2026-04-05 12:00+00")
MEANWHILE: dict[str, tuple[str, ...]] = {
    "one is made and filled": (
        "CREATE TABLE late PARTITION OF odds FOR VALUES FROM ('2026-05-01') TO ('2026-05-02')",
        "INSERT INTO odds (at, note) VALUES ('2026-05-01 12:00', 'late')",
    ),
    "one comes with rows": (
        "CREATE TABLE late (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)",
        "INSERT INTO late SELECT 900 + i, '2026-05-01 12:00', 'late' FROM generate_series(1, 9) i",
        ATTACH.format("late", *LATE),
        "UPDATE odds SET note = 'changed' WHERE id = 903",
    ),
    "one goes": (f"ALTER TABLE odds DETACH PARTITION {FIRST_OF}",),
    "one is dropped": (f"DROP TABLE {FIRST_OF}",),
    "one goes and comes back changed": (
        f"ALTER TABLE odds DETACH PARTITION {FIRST_OF}",
        f"UPDATE {FIRST_OF} SET note = 'elsewhere'",
        f"DELETE FROM {FIRST_OF} WHERE id % 5 = 0",
        ATTACH.format(FIRST_OF, *OF_FIRST),
    ),
    "another takes its place": (
        f"CREATE TABLE other AS SELECT * FROM {FIRST_OF} WHERE id % 2 = 0",
        "UPDATE other SET note = 'another'",
        "ALTER TABLE other ALTER id SET NOT NULL, ALTER at SET NOT NULL",
        f"DROP TABLE {FIRST_OF}",
        ATTACH.format("other", *OF_FIRST),
    ),
    "all are emptied": (
        "TRUNCATE odds",
        "INSERT INTO odds (at, note) VALUES ('2026-04-05 12:01+00', 'after')",
    ),
    "one is emptied": (
        f"TRUNCATE {FIRST_OF}",
        "INSERT INTO odds (at, note) VALUES ('2026-04-05 11:00+00', 'after')",
    ),
    "one is written anew": (f"VACUUM FULL {FIRST_OF}", f"DELETE FROM {FIRST_OF} WHERE id % 2 = 0"),
}


WHEN = {
    "while it is copied": (COPIES, 5),
    "before the swap": ("LOCK TABLE public.odds IN SHARE UPDATE", 1),
}
CASES = [
    *((what, "before the swap") for what in MEANWHILE),
    *(
        (what, "while it is copied")
        for what in MEANWHILE
        if what.startswith(("one goes", "one is", "another"))
    ),
]


@pytest.mark.long
@pytest.mark.parametrize(("what", "when"), CASES)
def test_partitions_come_and_go_meanwhile(odds: Engine, what: str, when: str) -> None:
    other = create_engine(odds.url, poolclass=NullPool)
    with meanwhile(odds, WHEN[when][0], lambda: run(other, *MEANWHILE[what]), WHEN[when][1]):
        to_plain(odds, batch=7)
    assert content(odds) == content(odds, "odds_partitioned")
    assert kind(odds) == "r"
    assert left_over(odds) == []


def test_a_partition_half_way_through_being_detached_is_waited_for(
    odds: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "MERGE_PATIENCE", 0.5)
    gone = f"ALTER TABLE odds DETACH PARTITION {FIRST_OF} CONCURRENTLY"
    other = create_engine(odds.url, poolclass=NullPool)
    with other.connect() as reader:
        half_way = other.connect().execution_options(isolation_level="AUTOCOMMIT")
        half_way.exec_driver_sql("SET lock_timeout = '100ms'")

        def begin() -> None:
            reader.exec_driver_sql("SELECT 1 FROM odds")
            with pytest.raises(DBAPIError, match="lock timeout"):
                half_way.exec_driver_sql(gone)
            reader.rollback()

        with meanwhile(odds, COPIES, begin, 5), pytest.raises(UnpartitionFailed, match="half-way"):
            to_plain(odds, batch=7)
        half_way.exec_driver_sql(f"ALTER TABLE odds DETACH PARTITION {FIRST_OF} FINALIZE")
        half_way.close()
    to_plain(odds)
    assert content(odds) == content(odds, "odds_partitioned")


# -- cut off, given up, run again -----------------------------------------------------------------------


@pytest.mark.long
def test_cut_off_anywhere_it_goes_on(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE venues (id int PRIMARY KEY)",
        "INSERT INTO venues SELECT generate_series(1, 5)",
        "CREATE TABLE odds (id serial, at timestamptz NOT NULL, venue int REFERENCES venues,"
        " PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        *(
            f"CREATE TABLE odds_{day} PARTITION OF odds FOR VALUES FROM ('2026-04-0{day}') TO"
            f" ('2026-04-0{day + 1}')"
            for day in (3, 4)
        ),
        "INSERT INTO odds (at, venue) SELECT timestamptz '2026-04-05' - i * interval '1 h', 1 + i % 5"
        " FROM generate_series(1, 40) i",
    )
    before, number = content(engine), 1

    def work(other: Engine) -> None:
        if kind(engine) == "p":
            to_plain(other, primary_key=["id"], batch=9, drop_old=True)
        elif scalar(engine, "SELECT to_regclass('odds_partitioned') IS NOT NULL"):
            to_plain(other, drop_old=True)

    while cut_off(engine, number, work):
        assert content(engine) == before
        number += 1 if number < 130 else 9
    assert number > 130
    assert kind(engine) == "r"
    assert content(engine) == before
    assert left_over(engine) == []
    assert scalar(engine, "SELECT to_regclass('odds_partitioned')") is None
    assert (
        scalar(engine, "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'odds_pkey'")
        == "PRIMARY KEY (id)"
    )


def up_to(engine: Engine, begins: str) -> None:
    """Run until a statement that begins so."""

    def cut() -> None:
        raise Cut

    with suppress(Cut), meanwhile(engine, begins, cut):
        to_plain(engine, batch=7)


def test_a_merge_can_be_given_up(odds: Engine, database: Database) -> None:
    before = schema_of(database)
    up_to(odds, "LOCK TABLE public.odds IN ACCESS EXCLUSIVE")
    assert left_over(odds)
    run(odds, "INSERT INTO odds (at) VALUES ('2026-04-05 12:01+00')")
    with odds.connect() as connection:
        assert abort_unpartition(connection, "odds") == ("the table odds_plain that rows were copied into",)
        assert abort_unpartition(connection, "odds") == ()
    assert left_over(odds) == []
    assert schema_of(database) == before


def test_when_it_is_done_it_says_what_is_left(odds: Engine) -> None:
    to_plain(odds)
    (told,) = to_plain(odds).findings
    assert "once you are sure: DROP TABLE public.odds_partitioned" in told
    assert script(odds) == ""
    assert to_plain(odds, drop_old=True).findings == ()
    assert to_plain(odds).findings == ("it is a plain table already",)


@pytest.mark.long
@pytest.mark.parametrize(
    "alter",
    [
        "ALTER TABLE odds ADD more int DEFAULT 7",
        "CREATE INDEX late ON odds (note)",
        "ALTER TABLE odds ALTER note SET DEFAULT 'none'",
        "ALTER TABLE odds DROP CONSTRAINT odds_pkey, ADD CONSTRAINT k UNIQUE (at, id)",
    ],
)
def test_a_table_that_is_altered_meanwhile_is_begun_anew(odds: Engine, alter: str) -> None:
    other = create_engine(odds.url, poolclass=NullPool)
    with (
        meanwhile(odds, "LOCK TABLE public.odds IN SHARE UPDATE", lambda: run(other, alter)),
        pytest.raises(UnpartitionFailed, match="the table was altered"),
    ):
        to_plain(odds)
    with odds.connect() as connection:
        abort_unpartition(connection, "odds")
    dumped = content(odds)
    to_plain(odds)
    assert content(odds) == dumped


# -- the primary key ------------------------------------------------------------------------------------


def test_rows_that_are_not_unique_keep_it_from_its_end_and_nothing_is_lost(odds: Engine) -> None:
    run(odds, "INSERT INTO odds (id, at) OVERRIDING SYSTEM VALUE VALUES (1, '2026-04-05 12:01+00')")
    with pytest.raises(WorkFailed, match="could not create unique index"):
        to_plain(odds, primary_key=["id"])
    run(odds, "DELETE FROM odds WHERE at = '2026-04-05 12:01+00'")
    to_plain(odds, primary_key=["id"])
    assert content(odds) == content(odds, "odds_partitioned")


@pytest.mark.parametrize(
    ("begins", "number"),
    [("LOCK TABLE public.odds IN SHARE ROW", 2), ("LOCK TABLE public.odds IN SHARE UPDATE", 1)],
    ids=["before the copy is in step", "afterwards"],
)
def test_nor_do_rows_vanish_that_are_no_longer_unique_at_the_end(
    odds: Engine, begins: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_swap, "MERGE_PATIENCE", 0.5)
    other = create_engine(odds.url, poolclass=NullPool)
    double = "INSERT INTO odds (id, at) OVERRIDING SYSTEM VALUE VALUES (1, '2026-04-05 12:01+00')"
    again = meanwhile(odds, begins, lambda: run(other, double), number)
    with again, pytest.raises(WorkFailed, match=r"not unique by \(id\)"):
        to_plain(odds, primary_key=["id"])
    assert scalar(odds, "SELECT count(*) FROM odds") == 61
    run(odds, "DELETE FROM odds WHERE id = 1 AND note IS NOT NULL")
    to_plain(odds, primary_key=["id"])
    assert content(odds) == content(odds, "odds_partitioned")
    assert scalar(odds, "SELECT count(*) FROM odds") == 60


# -- refused --------------------------------------------------------------------------------------------

REFUSALS = {
    "no key": (("ALTER TABLE odds DROP CONSTRAINT odds_pkey",), "no primary key"),
    "a partition read by a view": (
        (f"CREATE VIEW v AS SELECT * FROM {FIRST_OF}",),
        f"view public.v reads partition public.{FIRST_OF}",
    ),
    "a CHECK that is not valid": (
        ("ALTER TABLE odds ADD CONSTRAINT c CHECK (id > 0) NOT VALID",),
        "constraint c is NOT VALID",
    ),
    "an unlogged partition": ((f"ALTER TABLE {FIRST_OF} SET UNLOGGED",), "is UNLOGGED"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_be_lost_is_refused_with_its_remedy(odds: Engine, case: str) -> None:
    statements, told = REFUSALS[case]
    run(odds, *statements)
    with pytest.raises(ConversionRefused, match=re.escape(told)):
        to_plain(odds)
    assert left_over(odds) == []


def test_nothing_is_dropped_that_is_not_compared(odds: Engine) -> None:
    with pytest.raises(ConversionRefused, match="leave out one"):
        to_plain(odds, drop_old=True, verify=False)
    assert to_plain(odds, verify=False).proof is None


# -- how it is told -------------------------------------------------------------------------------------


def test_what_is_printed_is_what_is_sent(engine: Engine) -> None:
    name, key = 'ev"ents % of :it' + "é" * 20, 'the "key" %s'
    table = f'"an other".{quote(name)}'
    run(
        engine,
        'CREATE SCHEMA "an other"',
        f"CREATE TABLE {table} ({quote(key)} date, n int, PRIMARY KEY ({quote(key)}, n))"
        f" PARTITION BY RANGE ({quote(key)})",
        f"CREATE TABLE p1 PARTITION OF {table} FOR VALUES FROM ('2026-04-01') TO ('2026-04-02')",
        f"CREATE TABLE p2 PARTITION OF {table} DEFAULT",
        f"CREATE INDEX {quote('in' + name)} ON {table} (n)",
        f'CREATE VIEW "an other"."re%ad" AS SELECT * FROM {table} WHERE n <> 7',
        f"INSERT INTO {table} VALUES ('2026-04-01', 1), ('2026-03-03', 2)",
    )
    printed = script(engine, name, schema="an other")
    with listening(engine) as sent:
        to_plain(engine, name, schema="an other")
    once = {line.removesuffix(";") for line in printed.splitlines()}
    made = [s for s in altering(sent) if "partition_runs" not in s]
    swap = next(n for n, s in enumerate(made) if s.endswith("ACCESS EXCLUSIVE MODE")) - 1
    missing = [s for s in (*made[:30], *made[swap:]) if s.splitlines()[0] not in once]
    assert [s[:80] for s in missing] == []
    assert scalar(engine, 'SELECT sum(n) FROM "an other"."re%ad"') == 3


def test_a_member_of_the_owner_is_enough(odds: Engine, roles: Roles) -> None:
    owner = str(roles.create("owner").username)
    url = roles.create("ddl", f"IN ROLE {owner}")
    parts = partitions(odds)
    run(
        odds,
        "CREATE STATISTICS st ON id, note FROM odds",
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        f"GRANT ALL ON partition_config, partition_runs TO {owner}",
        *(f"ALTER TABLE {table} OWNER TO {owner}" for table in ("odds", *parts)),
        f"ALTER STATISTICS st OWNER TO {owner}",
        "CREATE VIEW recent AS SELECT at FROM odds",
        f"ALTER VIEW recent OWNER TO {owner}",
    )
    before = content(odds)
    to_plain(create_engine(url, poolclass=NullPool))
    assert content(odds) == before
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname ~ '^(odds|recent)'"
    assert rows(odds, owners) == [(owner,)]


def test_a_table_is_split_and_made_plain_one_after_the_other(odds: Engine) -> None:
    up_to(odds, "LOCK TABLE public.odds IN ACCESS EXCLUSIVE")
    run(odds, "CREATE TABLE wide PARTITION OF odds FOR VALUES FROM (MINVALUE) TO ('2026-04-01 11:00+00')")
    run(odds, "INSERT INTO odds (at) VALUES ('2026-03-01'), ('2026-03-03')")
    with odds.connect() as connection:
        with pytest.raises(SplitRefused, match="it is just being made plain"):
            maintenance.split(connection, table="odds", partition="wide")
        abort_unpartition(connection, "odds")

        def cut() -> None:
            raise Cut

        with suppress(Cut), meanwhile(odds, COPIES, cut):
            maintenance.split(connection, table="odds", partition="wide")
        connection.rollback()
        with pytest.raises(ConversionRefused, match="is being split"):
            to_plain(odds)
        (result,) = maintenance.split(connection, table="odds", partition="wide").results
        assert result.error is None
    to_plain(odds)
    assert content(odds) == content(odds, "odds_partitioned")


def test_with_asyncpg(odds: Engine, database: Database) -> None:
    before = content(odds)
    engine = create_async_engine(database.driver_url("asyncpg"), poolclass=NullPool)

    async def work() -> None:
        async with engine.connect() as connection:
            await connection.run_sync(lambda sync: unpartition(sync, "odds", batch=20))
        await engine.dispose()

    asyncio.run(work())
    assert kind(odds) == "r"
    assert content(odds) == before


def test_others_leave_it_alone_meanwhile(odds: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def proposals() -> list[str]:
        with odds.connect() as connection:
            context = MigrationContext.configure(connection)
            return [str(diff) for diff in compare_metadata(context, MetaData())]

    nothing_is_ours = proposals()
    up_to(odds, "LOCK TABLE public.odds IN ACCESS EXCLUSIVE")
    assert left_over(odds)
    assert proposals() == nothing_is_ours
    with odds.connect() as connection:
        for work in (maintenance.maintain, maintenance.repair):
            for result in work(connection).results:
                assert (result.error, result.mended) == (None, ())
    to_plain(odds)
    assert content(odds) == content(odds, "odds_partitioned")
    assert not [told for told in proposals() if "odds_partitioned" in told or "odds_2026" in told]
