"""Promise 2 under load: thirty-two applications, a fortnight of midnights around each of the clock changes.

TORTURE_WRITERS=6 TORTURE_MIDNIGHTS=3 TORTURE_TRANSACTIONS=2 runs in seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from threading import BrokenBarrierError
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine, NullPool, create_engine

from alembic_partitions import maintenance, nz_racing_day
from alembic_partitions.maintenance import NOW_VARIABLE
from tests.clock import Clock
from tests.postgres import Server
from tests.tables import declare, rows, run, scalar
from tests.torture import crowd
from tests.torture.crowd import TABLES, Order
from tests.torture.telling import draws, setting, tell

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")

WRITERS = setting("TORTURE_WRITERS", 32)
MIDNIGHTS = setting("TORTURE_MIDNIGHTS", 14)
TRANSACTIONS = setting("TORTURE_TRANSACTIONS", 6)
PATIENCE = 240  # seconds; only a crowd that hangs gets there

AUCKLAND = ZoneInfo("Pacific/Auckland")
CHANGES = {"clocks go back": date(2026, 4, 5), "clocks go forward": date(2026, 9, 27)}
RETENTION = 3

# Where PostgreSQL itself says that a row belongs, against where it is; what was detached counts as well.
ASTRAY = """
SELECT count(*) FROM found WHERE place !~ ('^' || name || '_' ||
    to_char((at AT TIME ZONE 'Pacific/Auckland')::date, 'YYYY_MM_DD') || '(_detached)?$')
"""
# Of the table whose partitions are dropped, only rows whose day has expired may be gone.
LOST = f"""
SELECT count(*) FROM ledger l WHERE NOT EXISTS (SELECT FROM found f
    WHERE (f.name, f.note, f.at) = (l.name, l.note, l.at))
    AND NOT (name = 'pulses' AND ((at AT TIME ZONE 'Pacific/Auckland')::date + 1 + {RETENTION} + 1)::timestamp
             AT TIME ZONE 'Pacific/Auckland' <= CAST(:now AS timestamptz))
"""
TOO_MANY = """
SELECT count(*) FROM (SELECT name, note, at FROM found EXCEPT ALL SELECT name, note, at FROM ledger) m
"""
WINDOWS = """
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)',
    day AT TIME ZONE 'Pacific/Auckland', (day + interval '1 day') AT TIME ZONE 'Pacific/Auckland')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
    CAST(to_date(right(c.relname, 10), 'YYYY_MM_DD') AS timestamp) day
WHERE i.inhparent = CAST(:table AS regclass) ORDER BY 1
"""
EXPECTED = f"""
SELECT :table || to_char(day, '"_"YYYY_MM_DD') FROM
    generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), interval '1 day') day
WHERE (day + interval '1 day') AT TIME ZONE 'Pacific/Auckland' >
    (CAST(:now AS timestamptz) AT TIME ZONE 'Pacific/Auckland' - interval '{RETENTION} days')
    AT TIME ZONE 'Pacific/Auckland' ORDER BY 1
"""


@pytest.mark.parametrize("change", CHANGES)
def test_a_fortnight_of_midnights(
    change: str, private_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    first = CHANGES[change] - timedelta(days=MIDNIGHTS // 2 - 1)
    midnights = [_midnight(first + timedelta(days=number)) for number in range(MIDNIGHTS)]
    engine = create_engine(private_server.url, poolclass=NullPool)
    monkeypatch.setenv(NOW_VARIABLE, (midnights[0] - timedelta(hours=7)).isoformat())
    for table, fate in zip(TABLES, ("detach", "drop"), strict=True):
        rules = nz_racing_day(
            "at",
            premake=0,
            lookback=0,
            retention=f"{RETENTION} days",
            on_expiry=fate,
            grace="1 day",
            max_behind="2 days",
        )
        declare(engine, table, rules)
    order = Order(private_server.url.render_as_string(hide_password=False), midnights, TRANSACTIONS, tmp_path)
    monkeypatch.delenv(NOW_VARIABLE)

    prepared, made = through(order, engine)

    met = crowd.told(order)
    assert not [one.error for one in met if one.error], "\n".join(one.error or "" for one in met)
    writers = [one for one in met if one.who != "maintain"]
    assert len(met) == WRITERS + 1
    log = private_server.log.read_text(errors="replace")
    assert "deadlock detected" not in log
    assert "no partition of relation" not in log
    pending = [told for one in met for told in one.pending]
    assert pending == [], "no foreign key, nothing to wait for"

    ends = midnights[-1] + timedelta(hours=12)
    clean_up(engine, ends)
    wrong = astray(engine, tmp_path, ends)
    assert wrong == {"astray": 0, "lost": 0, "too many": 0}
    for table in TABLES:
        days = {"first": first - timedelta(days=1), "last": midnights[-1].date()}
        expected = rows(engine, EXPECTED, table=table, now=ends, **days)
        assert rows(engine, WINDOWS, table=table) == [(name, True) for (name,) in expected]
    # One window a day and table, and the first day's that the declaration made; nobody made one twice.
    assert sum(one.created for one in met) == len(TABLES) * MIDNIGHTS
    assert prepared > 0 or MIDNIGHTS < 14, "nobody looked ahead"
    unprepared = MIDNIGHTS - prepared
    assert made["insert"] > 0 or unprepared == 0
    engine.dispose()
    told = next(one for one in met if one.who == "maintain")
    tell(
        f"midnight under load, {change}",
        {
            "writers at once": len(writers),
            "midnights": MIDNIGHTS,
            "of them met prepared": prepared,
            "rows written": sum(one.rows for one in writers),
            "transactions": sum(one.transactions for one in writers),
            "of them open across a midnight": sum(one.open_at_midnight for one in writers),
            "windows made at unprepared midnights by inserts": made["insert"],
            "by those who looked first": made["ensure"],
            "runs of maintain beside": told.runs,
            "partitions detached, dropped": f"{told.detached}, {len(told.dropped)}",
            "left to the next run, a lock was not to be had": told.waited,
            "looks that left something to the next": sum(len(one.warnings) for one in writers),
            "told to run again (PartitionPending)": 0,
            "failed inserts": 0,
            "rows lost, twice, astray": "0, 0, 0",
            "errors in the server's log": str(dict(_errors(log)) or "none"),
            "seconds": round(time.monotonic() - begun),
        },
    )


def through(order: Order, engine: Engine) -> tuple[int, Counter[str]]:
    """Let the crowd live; return how many midnights were prepared, and who made the windows of the others."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(WRITERS + 1, timeout=PATIENCE)
    now, over = fork.Value("d", (order.midnights[0] - timedelta(hours=6)).timestamp()), fork.Event()
    processes = [
        fork.Process(target=crowd.write, args=(order, number, barrier), daemon=True)
        for number in range(WRITERS)
    ]
    keeper = fork.Process(target=crowd.maintain, args=(order, now, over), daemon=True)
    dice, found, made = draws(f"prepared {order.midnights[0]}"), 0, Counter[str]()
    # Some midnights of each kind, in any order.
    plan = [number % 3 == 0 for number in range(MIDNIGHTS)]
    dice.shuffle(plan)
    for process in (*processes, keeper):
        process.start()
    try:
        for midnight, is_prepared in zip(order.midnights, plan, strict=True):
            run(engine, f"UPDATE partition_config SET premake = {int(is_prepared)}")
            barrier.wait()  # all are there, many in an open transaction
            stands = _stands(engine, midnight)
            if is_prepared:
                found += stands == len(TABLES)
            else:
                assert stands == 0
            # From here on nobody may prepare the next: the crowd is told of the new day before it goes on.
            run(engine, "UPDATE partition_config SET premake = 0")
            now.value = midnight.timestamp() + 1
            barrier.wait()
            if not is_prepared:
                made += _makers(engine, midnight)
            now.value = (midnight + dice.random() * timedelta(hours=22)).timestamp()
        for process in processes:
            process.join(PATIENCE)
    except BrokenBarrierError:  # somebody failed, and tells why
        pass
    finally:
        over.set()
        keeper.join(PATIENCE)
        for process in (*processes, keeper):
            if process.is_alive():
                process.kill()
    return found, made


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=AUCKLAND)


def _partition(table: str, midnight: datetime) -> str:
    return f"{table}_{midnight.astimezone(AUCKLAND):%Y_%m_%d}"


def _stands(engine: Engine, midnight: datetime) -> int:
    names = [_partition(table, midnight) for table in TABLES]
    return int(scalar(engine, "SELECT count(*) FROM pg_class WHERE relname = ANY(:names)", names=names))


def _makers(engine: Engine, midnight: datetime) -> Counter[str]:
    """Wait until the windows are there, and tell whose they are."""
    found: Counter[str] = Counter()
    for table in TABLES:
        name = _partition(table, midnight)
        for _ in range(PATIENCE * 100):
            mark = scalar(engine, "SELECT obj_description(to_regclass(:name), 'pg_class')", name=name)
            if mark is not None:
                found[str(mark).split()[-1]] += 1
                break
            time.sleep(0.01)
    return found


def clean_up(engine: Engine, now: datetime) -> None:
    """Run maintain once more with nobody beside: all that has expired goes, for good where it is dropped."""
    with pytest.MonkeyPatch.context() as patched, engine.connect() as connection:
        Clock(patched, as_the_server_is=True).set(now)
        report = maintenance.maintain(connection, orders=maintenance.Orders(trust_clock=True))
    assert report.failure is None
    assert [result.error for result in report.results] == [None, None]


def astray(engine: Engine, folder: Path, now: datetime) -> dict[str, int]:
    """Hold what is in the tables against what the writers were told was committed."""
    run(
        engine,
        "CREATE TABLE ledger (name text, note text, at timestamptz)",
        "CREATE TABLE found (name text, note text, at timestamptz, place text)",
    )
    with engine.begin() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        for path in folder.glob("writer-*[0-9]"):
            with path.open() as lines:
                raw.cursor().copy_from(lines, "ledger")
    for table in TABLES:
        detached = rows(
            engine,
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND NOT relispartition AND starts_with(relname,"
            " :name)",
            name=f"{table}_",
        )
        for source in (table, *(name for (name,) in detached)):
            place = f"INSERT INTO found SELECT '{table}', note, at, tableoid::regclass FROM {source}"
            run(engine, place)
    # By hash or by merge, not row by row.
    run(engine, "ANALYZE ledger", "ANALYZE found")
    return {
        "astray": scalar(engine, ASTRAY),
        "lost": scalar(engine, LOST, now=now),
        "too many": scalar(engine, TOO_MANY),
    }


def _errors(log: str) -> Counter[str]:
    """Count what the server complained of: time-outs of locks that are tried again are no failures."""
    return Counter(re.sub(r'"[^"]*"', "...", told) for told in re.findall(r"ERROR:  (.*)", log))
