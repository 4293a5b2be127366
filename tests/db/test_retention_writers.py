"""Partitions go while eight writers write: rows in = rows out, and how long the longest of them waited."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine

from alembic_partitions import maintenance
from tests.apps import running
from tests.clock import Clock
from tests.databases import Database
from tests.db.test_operations import half_detach
from tests.tables import NOW, columns, declare, operations, partitions, policy, rows, run, scalar

WRITERS = 8


@dataclass
class Writers:
    """Eight connections that insert, update and delete rows of today and of days that stay."""

    url: sa.URL
    inserted: int = 0
    deleted: int = 0
    longest: float = 0.0
    errors: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Writers:
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *anything: Any) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        inserted = deleted = 0
        longest = 0.0
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            cursor = raw.cursor()
            while not self._over.is_set():
                day = 3 + (inserted + number) % 3
                began = time.perf_counter()
                try:
                    cursor.execute(
                        "INSERT INTO odds (at, note, meeting)"
                        f" VALUES ('2026-04-0{day} 12:00+13', '{number}', 1)"
                    )
                    inserted += 1
                    if inserted % 10 == 0:
                        cursor.execute(
                            "DELETE FROM odds WHERE (id, at) IN (SELECT id, at FROM odds WHERE note ="
                            f" '{number}' AND at = '2026-04-0{day} 12:00+13' LIMIT 1)"
                        )
                        deleted += cursor.rowcount
                except Exception as error:
                    self.errors.append(str(error))
                    break
                longest = max(longest, time.perf_counter() - began)
        engine.dispose()
        with self._lock:
            self.inserted += inserted
            self.deleted += deleted
            self.longest = max(self.longest, longest)


ODDS = sa.table("odds", sa.column("at", sa.DateTime(timezone=True)))
FINALIZING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FINALIZE'"
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch, as_the_server_is=True)
    clock.set(NOW)
    return clock


@pytest.fixture
def quiet(database: Database) -> Any:
    engine = create_engine(database.url, poolclass=NullPool)
    yield engine
    engine.dispose()


def fill(engine: Engine) -> None:
    """Twenty days, a foreign key, and a hundred rows in each."""
    run(engine, "CREATE TABLE meetings (id int PRIMARY KEY)", "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"))
    rules = policy(retention="3 days", on_expiry="drop", grace="1 hour", max_drops=100)
    declare(engine, "odds", rules, *columns(), key)
    with operations(engine) as op:
        op.create_partitions("odds", date(2026, 3, 13), date(2026, 4, 4))
    run(
        engine,
        "INSERT INTO odds (at, meeting) SELECT t, 1 FROM"
        " generate_series('2026-03-13 00:10+13'::timestamptz, '2026-04-01 23:50+13', '15 minutes') t",
    )


def maintain(engine: Engine) -> maintenance.TableResult:
    with engine.connect() as connection:
        (found,) = maintenance.maintain(connection).results
    return found


@pytest.mark.parametrize("default", [False, True], ids=["concurrently", "beside a DEFAULT partition"])
def test_nobody_loses_a_row_while_partitions_go(
    database: Database, quiet: Engine, clock: Clock, default: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(quiet)
    if default:
        run(quiet, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    before = scalar(quiet, "SELECT count(*) FROM odds")
    with Writers(database.url) as alone:
        time.sleep(2)
    with Writers(database.url) as beside:
        detached = [*maintain(quiet).detached, *maintain(quiet).detached]
        clock.forward(hours=2)
        found = maintain(quiet)
        detached += found.detached
        time.sleep(0.5)
    assert (alone.errors, beside.errors, found.error) == ([], [], None)
    assert len(detached) == len(found.dropped) == 20
    # Of what was there before, the twenty days went, and what they held is known.
    gone = 20 * 24 * 4 - 1
    written = alone.inserted - alone.deleted + beside.inserted - beside.deleted
    assert scalar(quiet, "SELECT count(*) FROM odds") == before - gone + written
    assert partitions(quiet)[0] == "odds_2026_04_02"
    assert rows(quiet, "SELECT 1 FROM pg_class WHERE relname LIKE '%detached'") == []
    with capsys.disabled():
        how = "beside DEFAULT" if default else "concurrently"
        print(
            f"\nretention {how}, {WRITERS} writers: the longest statement took {beside.longest * 1000:.0f} ms"
            f" ({beside.inserted:,} inserts), without {alone.longest * 1000:.0f} ms ({alone.inserted:,})"
        )


def test_a_transaction_that_finalize_waits_for_gets_the_partition_that_it_needs(
    database: Database, quiet: Engine, clock: Clock
) -> None:
    """FINALIZE keeps others from making partitions while it waits, here for the one who needs it."""
    fill(quiet)
    half_detach(quiet, "odds", "odds_2026_03_13")
    maintaining = threading.Thread(target=maintain, args=(quiet,))

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.insert(ODDS).values(at=NOW))
        maintaining.start()
        while not scalar(quiet, FINALIZING):
            time.sleep(0.001)
        connection.execute(sa.insert(ODDS).values(at=NOW + timedelta(days=20)))

    with running(database, "psycopg2", engine_options={"isolation_level": "REPEATABLE READ"}) as app:
        try:
            app.connection(write)
        finally:
            maintaining.join()
    assert partitions(quiet)[-1] == "odds_2026_04_25"
    assert scalar(quiet, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 0
