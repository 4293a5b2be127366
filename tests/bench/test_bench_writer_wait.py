"""Budget: partitions made beside an open transaction of 5 s let no writer wait 50 ms longer than without.

The open transaction has written what the writer writes. With a foreign key ATTACH needs a lock on the table
referred to, which that transaction holds and which later writers of it queue behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from rich.table import Table
from sqlalchemy import Connection, Engine, create_engine, text

from alembic_partitions import PartitionPolicy, maintenance
from tests.apps import declare
from tests.bench.measure import CONSOLE, machine, setting
from tests.databases import Database, Databases

ROUNDS = setting("BENCH_ROUNDS", 3)
OPEN = setting("BENCH_OPEN_SECONDS", 5)
BUDGET = 50  # ms more than without
DAYS = 30

# The migration makes today's partition; the run that is watched makes the others.
TODAY = PartitionPolicy("at", premake=0, lookback=0)


class Writer:
    """Writes a site and an event in one small transaction after another, and keeps the longest time."""

    def __init__(self, engine: Engine, refer: bool) -> None:
        self.longest = 0.0
        self.count = 0
        self._engine = engine
        self._refer = refer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _write(self) -> None:
        with self._engine.connect() as connection:
            while not self._stop.is_set():
                begun = time.perf_counter()
                write(connection, self._refer)
                connection.commit()
                self.longest = max(self.longest, time.perf_counter() - begun)
                self.count += 1
                time.sleep(0.001)


def write(connection: Connection, refer: bool) -> None:
    site = None
    if refer:
        site = connection.scalar(text("INSERT INTO sites DEFAULT VALUES RETURNING id"))
    connection.execute(text("INSERT INTO events (at, site_id) VALUES (now(), :site)"), {"site": site})


def one_round(engine: Engine, refer: bool, make: bool) -> tuple[Writer, int]:
    """Open a transaction that has written, start the writer, make partitions or do not; then close it."""
    with engine.connect() as admin:
        admin.execute(text("UPDATE partition_config SET premake = :days"), {"days": DAYS if make else 0})
        admin.commit()
    writer, made = Writer(engine, refer), 0
    closed = threading.Event()

    def hold() -> None:
        with engine.connect() as connection:
            write(connection, refer)
            opened.set()
            closed.wait(OPEN)
            connection.rollback()

    opened = threading.Event()
    holder = threading.Thread(target=hold)
    holder.start()
    opened.wait()
    with writer.at_work():
        end = time.monotonic() + OPEN + 1
        if make:
            with engine.connect() as connection:
                made = maintenance.ensure(connection, give_up_at=end).created
        time.sleep(max(0.0, end - time.monotonic()))
    holder.join()
    drop_made(engine)
    return writer, made


def drop_made(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("""
            DO $$ DECLARE part regclass; BEGIN
              FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass
                          ORDER BY inhrelid OFFSET 1  -- the first is the migration's: today
              LOOP EXECUTE format('DROP TABLE %s', part); END LOOP;
            END $$""")
        )


@pytest.mark.parametrize("refer", [False, True], ids=["no foreign key", "foreign key"])
def test_the_longest_wait_of_a_writer(database: Database, databases: Databases, refer: bool) -> None:
    engine = create_engine(database.url, pool_size=5)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE sites (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY)"))
    key = [sa.ForeignKey("sites.id")] if refer else []
    declare(engine, "events", TODAY, sa.Column("site_id", sa.Integer, *key))
    table = Table(
        title=f"A writer's longest wait beside a transaction open for {OPEN} s,"
        f" {'with a' if refer else 'without'} foreign key\n{machine()}, PostgreSQL {databases.describe()}",
        title_justify="left",
    )
    for name in ("round", "without", "writes", "with", "writes", "partitions made", "more", "budget"):
        table.add_column(name, justify="right")
    for number in range(ROUNDS):
        without, _ = one_round(engine, refer, make=False)
        with_us, made = one_round(engine, refer, make=True)
        more = (with_us.longest - without.longest) * 1000
        table.add_row(
            str(number + 1),
            f"{without.longest * 1000:.1f} ms",
            f"{without.count:,}",
            f"{with_us.longest * 1000:.1f} ms",
            f"{with_us.count:,}",
            str(made),
            f"{more:+.1f} ms",
            f"{BUDGET} ms " + ("" if more <= BUDGET else "MISSED"),
        )
    CONSOLE.print()
    CONSOLE.print(table)
    engine.dispose()
