"""Unpartition: rows of many partitions come back into one plain table, and nobody loses anything meanwhile."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine

from alembic_partitions import maintenance
from alembic_partitions.conversion import plan_unpartition, unpartition
from alembic_partitions.executor import converting
from alembic_partitions.maintenance import TableResult, ensuring
from tests.databases import Database, Roles
from tests.db.test_convert import RICH, content, meanwhile, schema_of, to_partitioned
from tests.ledger import LEVELS, Writer, at_work, differences, keep_ledger
from tests.tables import NOW, declare, partitions, policy, rows, run, scalar

FIRST_OF = "odds_2026_04_05"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maintenance, ensuring):
        monkeypatch.setattr(module, "clock", lambda database_now: NOW)
    monkeypatch.setattr(converting, "PATIENCE", 3.0)


@pytest.fixture
def odds(engine: Engine) -> Engine:
    """Three windows, with rows in each."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, rules=policy(premake=1))
    fill(engine, 60)
    return engine


def fill(engine: Engine, count: int) -> None:
    run(
        engine,
        "INSERT INTO odds (at, note) SELECT timestamptz '2026-04-05 13:37:11+00' - i * interval '49 hours' /"
        f" {count}, 'n' || i FROM generate_series(0, {count - 1}) i",
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
ATTACH = "ALTER TABLE odds ATTACH PARTITION {} FOR VALUES FROM ('2026-05-01') TO ('2026-05-02')"
MEANWHILE: dict[str, tuple[str, ...]] = {
    "one is made and filled": (
        "CREATE TABLE late PARTITION OF odds FOR VALUES FROM ('2026-05-01') TO ('2026-05-02')",
        "INSERT INTO odds (at, note) VALUES ('2026-05-01 12:00', 'late')",
    ),
    "one comes with rows": (
        "CREATE TABLE late (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)",
        "INSERT INTO late (id, at, note) SELECT 900 + i, '2026-05-01 12:00', 'late' FROM generate_series(1, 9) i",
        ATTACH.format("late"),
        "UPDATE odds SET note = 'changed' WHERE id = 903",
    ),
    "one goes": (f"ALTER TABLE odds DETACH PARTITION {FIRST_OF}",),
    "one is dropped": (f"DROP TABLE {FIRST_OF}",),
    "one goes and comes back changed": (
        f"ALTER TABLE odds DETACH PARTITION {FIRST_OF}",
        f"UPDATE {FIRST_OF} SET note = 'elsewhere'",
        f"DELETE FROM {FIRST_OF} WHERE id % 5 = 0",
        f"ALTER TABLE odds ATTACH PARTITION {FIRST_OF}"
        " FOR VALUES FROM ('2026-04-04 11:00+00') TO ('2026-04-05 12:00+00')",
    ),
    "another takes its place": (
        f"CREATE TABLE other AS SELECT * FROM {FIRST_OF} WHERE id % 2 = 0",
        "UPDATE other SET note = 'another'",
        "ALTER TABLE other ALTER id SET NOT NULL, ALTER at SET NOT NULL",
        f"DROP TABLE {FIRST_OF}",
        "ALTER TABLE odds ATTACH PARTITION other"
        " FOR VALUES FROM ('2026-04-04 11:00+00') TO ('2026-04-05 12:00+00')",
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
SWAPS = "LOCK TABLE public.odds IN SHARE UPDATE"


@pytest.mark.parametrize("when", ["while it is copied", "after it was compared", "before the swap"])
@pytest.mark.parametrize("what", MEANWHILE)
def test_partitions_come_and_go_meanwhile(odds: Engine, what: str, when: str) -> None:
    marks = {
        "while it is copied": (COPIES, 5),
        "after it was compared": ("UPDATE public.odds_plain_state SET verified", 1),
        "before the swap": (SWAPS, 1),
    }
    begins, number = marks[when]
    with meanwhile(odds, begins, lambda: run(other, *MEANWHILE[what]), number):
        other = create_engine(odds.url, poolclass=NullPool)
        to_plain(odds, batch=7)
    assert content(odds) == content(odds, "odds_partitioned")
    assert kind(odds) == "r"
    assert left_over(odds) == []
