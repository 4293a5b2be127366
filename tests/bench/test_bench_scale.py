"""How far it goes: partitions a table, tables a database, processes an application. It has no budget.

SCALE_PARTITIONS=10000 SCALE_TABLES=1000 SCALE_PROCESSES=500 are the README's sizes; the defaults are done in
two minutes. The server has PostgreSQL's own settings where they matter: 100 connections, 64 locks each.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import TypeVar

import pytest
from sqlalchemy import URL, Engine, create_engine, text

from alembic_partitions import PartitionPolicy, coverage, health, keep, keeper, maintenance, standing
from alembic_partitions.knowledge import Knowledge
from alembic_partitions.periods import Grid, Window
from alembic_partitions.plan import Coverage, ManagedTable, Partition, plan_horizon, plan_retention, runway_of
from tests.bench import crowd, old_table, server_load
from tests.bench.grown import READY, copies, grow, tidy
from tests.bench.measure import setting
from tests.bench.record import RECORD
from tests.databases import Databases
from tests.postgres import Server, binary_version, locate

T = TypeVar("T")

PARTITIONS = setting("SCALE_PARTITIONS", 1_000, quick=60)
TABLES = setting("SCALE_TABLES", 50, quick=5)
PROCESSES = setting("SCALE_PROCESSES", 100, quick=12)

STOCK = {"max_connections": "100", "max_locks_per_transaction": "64", "max_prepared_transactions": "0"}
NOW = datetime(2026, 4, 5, 1, 37, 11, tzinfo=timezone.utc)


def tell(title: str, figures: Mapping[str, Mapping[str, float | str]]) -> None:
    """Print figures, a column for each size, and keep them."""
    lines = list(dict.fromkeys(line for column in figures.values() for line in column))
    RECORD.table(
        title,
        binary_version(locate()),
        ("", *figures),
        [(line, *(_shown(column.get(line, "")) for column in figures.values())) for line in lines],
        [{"line": line, **{n: c[line] for n, c in figures.items() if line in c}} for line in lines],
    )


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


@pytest.fixture(scope="module")
def stock_server() -> Iterator[Server]:
    server = Server(settings=STOCK)
    yield server
    server.close()


# -- one table, many partitions --------------------------------------------------------------------------


def test_one_table(stock_server: Server) -> None:
    sizes = sorted({READY, min(1_000, max(PARTITIONS // 10, READY)), PARTITIONS})
    tell(
        "One table of 5 columns and 2 indexes, by partitions (milliseconds where nothing else is said)",
        {f"{size:,}": old_table.measure(stock_server, locate(), size) for size in sizes},
    )


# -- our own work, without a server ----------------------------------------------------------------------


def _table(partitions: int, number: int = 1) -> ManagedTable:
    """Return a table whose newest month is the horizon, and whose older half has expired."""
    days = max(partitions // 2, 1)
    policy = PartitionPolicy("at", timezone="Pacific/Auckland", premake=28, retention=f"{days} days")
    grid = policy.grid("timestamptz")
    found = [
        Partition(
            oid, "public", f"events_{w.suffix}", w.begin, w.end, mark="alembic_partitions: made by ensure"
        )
        for oid, w in enumerate(_windows(grid, partitions))
    ]
    return ManagedTable("public", f"events_{number}", policy, number, "timestamptz", partitions=tuple(found))


def _windows(grid: Grid, count: int) -> list[Window]:
    window = grid.at(grid.key_at(NOW + timedelta(days=28)))
    found = [window]
    while len(found) < count:
        found.append(grid.before(found[-1]))
    return found[::-1]


def test_our_own_work() -> None:
    sizes = (PARTITIONS // 10, PARTITIONS)
    figures = {f"{size:,} partitions": _own_work(_table(size)) for size in sizes}
    few, many = figures.values()
    times = {line: many[line] / max(few[line], 0.001) for line in few}
    tell(
        "Our own work for one table, no server: milliseconds, and kB",
        {**figures, "ratio (10: linear)": times},
    )
    bare = ManagedTable("public", "events", PartitionPolicy("at", premake=28), 1, "timestamptz")
    took = _best(lambda: [plan_horizon(bare, NOW) for _ in range(100)]) / 100
    tell(
        "A look at 1,000 tables: planning their horizons, whatever their history",
        {"ms": {"all": took * 1000}},
    )


def _own_work(table: ManagedTable) -> dict[str, float]:
    plan, runway = plan_horizon(table, NOW), runway_of(table, NOW)
    assert runway is not None
    assert not plan.steps
    work: dict[str, Callable[[], object]] = {
        "plan_horizon": lambda: plan_horizon(table, NOW),
        "Coverage.of": lambda: Coverage.of(table.partitions),
        "plan_retention": lambda: plan_retention(table, (), NOW),
        "runway_of": lambda: runway_of(table, NOW),
        "health.assess": lambda: health.assess(plan, NOW, runway=runway),
        "coverage line": lambda: coverage.coverage(table, runway, 80),
        "states of all partitions": lambda: [standing.partition_state(p, runway) for p in table.partitions],
        "Knowledge.learn": lambda: Knowledge().learn([table]),
    }
    found = {name: _best(run) for name, run in work.items()}
    tracemalloc.start()
    kept = _table(len(table.partitions))
    found["memory of the table, kB"] = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    assert kept.partitions
    return found


def _best(work: Callable[[], object], times: int = 3) -> float:
    took = []
    for _ in range(times):
        gc.collect()
        took.append(old_table.milliseconds(work))
    return min(took)


# -- many tables -----------------------------------------------------------------------------------------


def test_many_tables(stock_server: Server) -> None:
    databases = Databases(stock_server.url)
    databases.make_template()
    figures: dict[str, dict[str, float | str]] = {}
    for tables in sorted({max(TABLES // 10, 2), TABLES}):
        url = databases.clone().url
        _fill(url, tables)
        figures[f"{tables:,} tables x {READY}"] = _looks(stock_server, url)
    databases.drop_all()
    databases.close()
    tell("One process, many tables (milliseconds)", figures)


def _fill(url: URL, tables: int) -> None:
    engine = create_engine(url)
    grow(engine, "events", READY)
    copies(engine, "events", tables - 1)
    tidy(engine)
    engine.dispose()


def _looks(server: Server, url: URL) -> dict[str, float | str]:
    """Measure what a process does at its start and at each refresh: on the clock, and at either end."""
    engine = create_engine(url)
    found: dict[str, float | str] = {}
    with engine.connect() as connection:
        maintenance.ensure(connection)
        found["ensure(), nothing to do"] = _best(lambda: maintenance.ensure(connection))
        found["check"] = _best(lambda: standing.survey(connection), 1)
    engine.dispose()
    kept = create_engine(url)
    keep(kept, refresh="1 ms", wait="60 s")
    for name, times in (("first look", 1), ("later look", 5)):
        time.sleep(0.5)
        with server_load.watching(server.pid) as load, old_table.listening() as sent:
            ours = time.process_time()
            took = [_checkout(kept) for _ in range(times)]
            found[f"{name} of a keeper"] = statistics.median(took)
            found[f"{name}: our CPU"] = (time.process_time() - ours) * 1000 / times
            time.sleep(0.2)
        found[f"{name}: server CPU"] = (load.samples[-1][2] - load.samples[0][2]) * 1000 / times
        found[f"{name}: statements"] = sent.statements / times
        found[f"{name}: rows read"] = sent.rows / times
    kept.dispose()
    return found


def _checkout(kept: Engine) -> float:
    time.sleep(0.002)  # beyond refresh
    return old_table.milliseconds(lambda: kept.connect().close())


# -- many processes --------------------------------------------------------------------------------------


@pytest.fixture
def big_server() -> Iterator[Server]:
    if not server_load.is_possible():
        pytest.skip("needs Linux: /proc tells what the server is put to")
    server = Server(settings={**STOCK, "max_connections": str(2 * PROCESSES + 20)})
    yield server
    server.close()


CROWD_TABLES = min(TABLES, 20)


def test_many_processes(big_server: Server) -> None:
    databases = Databases(big_server.url)
    databases.make_template()
    url = databases.clone().url
    _fill(url, CROWD_TABLES)
    now = datetime.now(timezone.utc)
    order = crowd.Order(
        url=url.render_as_string(),
        processes=PROCESSES,
        table="events",
        now=now.isoformat(),
        midnight=(now + timedelta(days=READY)).isoformat(),
    )
    figures = _phases(big_server, order)
    tell(
        f"{PROCESSES} processes at once on the server's own machine, {CROWD_TABLES} tables x {READY}",
        figures,
    )
    with create_engine(url).connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM events")) == 2 * PROCESSES
    databases.drop_all()
    databases.close()


def _phases(server: Server, order: crowd.Order) -> dict[str, dict[str, float | str]]:
    with server_load.watching(server.pid) as load:
        met = crowd.run(order)
    errors = [error for one in met for error in one.errors]
    assert not errors, errors[0]
    found: dict[str, dict[str, float | str]] = {}
    for name in met[0].phases:
        begin, end = min(one.phases[name][0] for one in met), max(one.phases[name][1] for one in met)
        took = [seconds for one in met for seconds in one.took[name]]
        cpu = load.work(begin, end)
        found[name] = {
            "all done after, s": end - begin,
            "one process: median, s": statistics.median(took),
            "one process: longest, s": max(took),
            "connections at once, at most": load.most_sessions(begin, end),
            "statements": sum(one.statements.get(name, 0) for one in met),
            "server CPU, s": cpu,
            "server CPU a process, ms": cpu / PROCESSES * 1000,
        }
    last = found[list(found)[-1]]
    last["partitions made"] = sum(one.created for one in met)
    last["told to run again (PartitionPending)"] = sum(one.pending for one in met)
    last["errors"] = len(errors)
    return found


def test_looks_in_step() -> None:
    """By arithmetic: started all at once, how many look in the busiest second of each refresh after that?"""
    refresh, rounds = 300.0, 12
    spread: dict[str, dict[str, float | str]] = {}
    for name, earliest in (("without a spread", 1.0), ("as it is", keeper._EARLIEST)):
        seconds: dict[int, Counter[int]] = {}
        for _ in range(PROCESSES):
            at = random.random()  # the deploy
            for number in range(1, rounds + 1):
                at += refresh * random.uniform(earliest, 1)
                seconds.setdefault(number, Counter())[int(at)] += 1
        spread[name] = {
            f"look {number}": max(counts.values())
            for number, counts in seconds.items()
            if number in (1, 2, 4, 12)
        }
    tell(f"Looks in the busiest second: {PROCESSES} processes, started in one, refresh 5 min", spread)
