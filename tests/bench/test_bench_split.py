"""A large partition split beside 8 writers and 4 readers: how long anybody waits, how fast it goes, and
whether every row is there at the end.

BENCH_SPLIT_ROWS=10000000 for the size that the README tells of.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine

from alembic_partitions import PartitionPolicy, maintenance
from tests.bench.measure import setting
from tests.bench.record import QUICK, RECORD
from tests.databases import Database, Databases
from tests.db.test_split import wide
from tests.tables import columns, rows, run, scalar

ROWS = setting("BENCH_SPLIT_ROWS", 300_000, quick=20_000)
DAYS = setting("BENCH_SPLIT_DAYS", 40, quick=4)
WRITERS, READERS = setting("BENCH_SPLIT_WRITERS", 8, quick=2), setting("BENCH_SPLIT_READERS", 4, quick=2)
#: Transactions a second of each writer: a load, not a flood. 0 is as fast as it can.
PACE = setting("BENCH_SPLIT_PACE", 50, quick=50)

FORK = multiprocessing.get_context("fork")


def write(dsn: str, number: int, begun: Event, stop: Event, pipe: Pipe) -> None:
    """Insert, update, move and delete rows of an own share, and write down what is there afterwards."""
    dice, longest, count = random.Random(number), 0.0, 0
    connection = psycopg2.connect(dsn)
    cursor = connection.cursor()
    mine: dict[int, tuple[float, str]] = {}
    begun.wait()
    while not stop.is_set():
        started = time.perf_counter()
        what, key = dice.random(), dice.choice(list(mine)) if mine else None
        if what < 0.5 or key is None:
            key, hours = 10**9 * (number + 1) + count, dice.random() * 24 * DAYS
            cursor.execute(
                "INSERT INTO odds (id, at, note) VALUES (%s, b() - %s * interval '1 h', 'new')", (key, hours)
            )
            mine[key] = hours, "new"
        elif what < 0.7:
            cursor.execute("UPDATE odds SET note = %s WHERE id = %s", (f"u{count}", key))
            mine[key] = mine[key][0], f"u{count}"
        elif what < 0.85:
            hours = dice.random() * 24 * DAYS
            cursor.execute("UPDATE odds SET at = b() - %s * interval '1 h' WHERE id = %s", (hours, key))
            mine[key] = hours, mine[key][1]
        else:
            cursor.execute("DELETE FROM odds WHERE id = %s", (key,))
            del mine[key]
        connection.commit()
        longest, count = max(longest, time.perf_counter() - started), count + 1
        if PACE:
            time.sleep(max(0.0, 1 / PACE - (time.perf_counter() - started)))
    cursor.execute(
        "SELECT id, note FROM odds WHERE id BETWEEN %s AND %s",
        (10**9 * (number + 1), 10**9 * (number + 2) - 1),
    )
    found = dict(cursor.fetchall())
    wrong = len(set(found.items()) ^ {(key, note) for key, (_, note) in mine.items()})
    pipe.send((longest, count, wrong))


def read(dsn: str, number: int, begun: Event, stop: Event, pipe: Pipe) -> None:
    """Count the rows of some hours that nobody writes to, at READ COMMITTED and at REPEATABLE READ."""
    dice, longest, count, wrong = random.Random(number), 0.0, 0, 0
    connection = psycopg2.connect(dsn)
    if number % 2:
        connection.set_session(isolation_level="REPEATABLE READ")
    cursor = connection.cursor()
    begun.wait()
    while not stop.is_set():
        started = time.perf_counter()
        low = dice.randrange(1, ROWS - 2000)
        cursor.execute("SELECT count(*) FROM odds WHERE id BETWEEN %s AND %s", (low, low + 999))
        row = cursor.fetchone()
        wrong += row is None or row[0] != 1000
        connection.commit()
        longest, count = max(longest, time.perf_counter() - started), count + 1
        time.sleep(0.02)
    pipe.send((longest, count, wrong))


@contextmanager
def at_work(database: Database, turn: int) -> Iterator[list[tuple[str, Any]]]:
    dsn = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    begun, stop = FORK.Event(), FORK.Event()
    results: list[tuple[str, Any]] = []
    crowd = []
    for what, count in ((write, WRITERS), (read, READERS)):
        for number in range(count):
            ours, theirs = FORK.Pipe()
            process = FORK.Process(target=what, args=(dsn, number + 20 * turn, begun, stop, theirs))
            process.start()
            crowd.append((what.__name__, process, ours))
    begun.set()
    try:
        yield results
    finally:
        stop.set()
        for what_name, process, ours in crowd:
            results.append((what_name, ours.recv()))
            process.join()


def fill(engine: Engine) -> None:
    rules = PartitionPolicy("at", timezone="Pacific/Auckland", premake=1, lookback=0)
    items = (*columns(), sa.Index("odds_at", "at"), sa.Index("odds_note", "note"))
    wide(engine, "odds", *items, days=0, rules=rules)
    first = scalar(
        engine,
        "SELECT min(pg_get_expr(c.relpartbound, 0)) FROM pg_class c JOIN pg_inherits i"
        " ON i.inhrelid = c.oid WHERE i.inhparent = 'odds'::regclass AND c.relname <> 'odds_old'",
    )
    until = first.split("'")[1]
    run(
        engine,
        "CREATE FUNCTION b() RETURNS timestamptz IMMUTABLE LANGUAGE sql"
        f" AS $$ SELECT '{until}'::timestamptz $$",
        f"INSERT INTO odds (at, note) SELECT b() - interval '1 min' - i * interval '{DAYS} days' / {ROWS + 1}"
        f", md5(i::text) FROM generate_series(0, {ROWS - 1}) i",
        "VACUUM ANALYZE odds_old",
    )


@pytest.mark.parametrize("fillers", [0], ids=["one table"])
def test_a_split_beside_writers_and_readers(database: Database, databases: Databases, fillers: int) -> None:
    engine = create_engine(database.url)
    fill(engine)
    run(engine, "CREATE TABLE plain (LIKE odds_old INCLUDING ALL)")
    started = time.perf_counter()
    run(engine, "INSERT INTO plain SELECT * FROM ONLY odds_old")
    plain = time.perf_counter() - started
    run(engine, "DROP TABLE plain")
    with at_work(database, 0) as quiet:
        time.sleep(1 if QUICK else 5)
    phases: dict[str, float] = {}

    def progress(table: str, unit: str, done: int, total: int) -> None:
        phases[unit] = time.perf_counter() - started

    with at_work(database, 1) as busy:
        time.sleep(0.5)
        started = time.perf_counter()
        with engine.connect() as connection:
            (result,) = maintenance.split(connection, table="odds", progress=progress).results
        took = time.perf_counter() - started
        time.sleep(0.5)
    assert result.error is None, result.error
    lines: list[tuple[str, ...]] = []
    for what in ("write", "read"):
        sides = [[told for name, told in side if name == what] for side in (quiet, busy)]
        lines += [
            (f"longest {what}", *(f"{max(t[0] for t in side) * 1000:.0f} ms" for side in sides)),
            (f"{what}s", *(f"{sum(t[1] for t in side):,}" for side in sides)),
            (f"wrong after or in a {what}", *(str(sum(t[2] for t in side)) for side in sides)),
        ]
    copied = phases.get("blocks copied", took)
    lines += [
        ("one plain INSERT ... SELECT", f"{plain:.1f} s", ""),
        ("copied", "", f"{copied:.1f} s, {copied / plain:.2f} x"),
        ("all in all", "", f"{took:.1f} s, {took / plain:.2f} x"),
        ("proof", "", result.proof or ""),
    ]
    crowd = f"{WRITERS} writers and {READERS} readers"
    RECORD.table(
        f"{ROWS:,} rows split into {len(result.created)} windows beside {crowd}",
        databases.describe(),
        ("", "before", "meanwhile"),
        lines,
        [dict(zip(("what", "before", "meanwhile"), line, strict=True)) for line in lines],
    )
    assert sum(told[2] for side in (quiet, busy) for _, told in side) == 0
    untouched = rows(engine, f"SELECT count(*), count(DISTINCT id) FROM odds WHERE id <= {ROWS}")
    assert untouched == [(ROWS, ROWS)]
    engine.dispose()
