"""Convert: the transaction that keeps others out is as long for a large table as for a small one.

Eight writers and four readers are at work on the table all the while; their longest statements are told
beside what they take without a conversion. BENCH_CONVERT_ROWS="10000,1000000,10000000" for the full sizes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, text

from alembic_partitions import PartitionPolicy
from alembic_partitions.conversion import convert, unpartition
from tests.bench.record import QUICK, RECORD
from tests.databases import Databases
from tests.tables import run, scalar

DEFAULT_SIZES = "10000" if QUICK else "10000,1000000"
# The first run compiles what it imports, and keeps the writers' threads waiting meanwhile.
WARM_UP = 1_000
SIZES = [int(size) for size in (os.environ.get("BENCH_CONVERT_ROWS") or DEFAULT_SIZES).split(",")]
WRITERS, READERS = 8, 4

TABLE = """
CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL, note text);
CREATE INDEX events_at ON events (at)
"""
ROWS = (
    "INSERT INTO events (at, note) SELECT now() - i * interval '1 s', 'n' || i FROM generate_series(1, {}) i"
)
WRITE = "INSERT INTO events (at, note) VALUES (now(), 'w')"
READ = "SELECT count(*) FROM events WHERE at > now() - interval '1 min'"


@dataclass
class Crowd:
    """Writers and readers, and the longest statement of each kind in milliseconds."""

    engine: Engine
    longest: dict[str, float] = field(default_factory=lambda: {"write": 0.0, "read": 0.0})
    written: int = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stop = threading.Event()

        def work(kind: str, statement: str) -> None:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                while not stop.is_set():
                    begun = time.perf_counter()
                    connection.execute(text(statement))
                    took = (time.perf_counter() - begun) * 1000
                    self.longest[kind] = max(self.longest[kind], took)
                    self.written += kind == "write"
                    time.sleep(0.02)

        told = [("write", WRITE)] * WRITERS + [("read", READ)] * READERS
        threads = [threading.Thread(target=work, args=kind) for kind in told]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@dataclass
class Watch:
    """How long the last transaction has held its lock, in milliseconds."""

    locked: float = 0.0
    _since: float = 0.0

    def sent(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("LOCK TABLE"):
            self._since = time.perf_counter()

    def committed(self, connection: Any) -> None:
        if self._since:
            self.locked, self._since = (time.perf_counter() - self._since) * 1000, 0.0


def test_convert_beside_writers(databases: Databases) -> None:
    columns = (
        "rows",
        "whole run",
        "swap holds its lock",
        "longest write",
        "write alone",
        "longest read",
        "read alone",
    )
    lines = []
    for size in (WARM_UP, *SIZES):
        database = databases.clone()
        engine = create_engine(database.url, poolclass=NullPool)
        run(engine, *TABLE.split(";"), ROWS.format(size), "ANALYZE events")
        alone, beside, watch = Crowd(engine), Crowd(engine), Watch()
        with alone.at_work():
            time.sleep(3)
        ours = create_engine(database.url, poolclass=NullPool)
        event.listen(ours, "after_cursor_execute", watch.sent)
        event.listen(ours, "commit", watch.committed)
        begun = time.perf_counter()
        with beside.at_work(), ours.connect() as connection:
            time.sleep(1)
            begun = time.perf_counter()
            convert(connection, "events", PartitionPolicy("at", retention="90 days"))
            whole, swap = time.perf_counter() - begun, watch.locked
            time.sleep(1)
        assert scalar(engine, "SELECT count(*) FROM events") == size + alone.written + beside.written
        with ours.connect() as connection:
            unpartition(connection, "events")
        told = [f"{crowd.longest[kind]:.0f} ms" for kind in ("write", "read") for crowd in (beside, alone)]
        if size == WARM_UP:
            databases.drop(database.name)
            continue
        lines.append((f"{size:,}", f"{whole:.1f} s", f"{swap:.0f} ms", *told, f"{watch.locked:.0f} ms"))
        databases.drop(database.name)
    header = (*columns, "way back holds it")
    figures = [dict(zip(header, line, strict=True)) for line in lines]
    RECORD.table("A table converted beside writers and readers", databases.describe(), header, lines, figures)
