"""Hundreds of application processes, each an engine and a keeper: `python -m tests.bench.crowd '<order>'`.

They are threads of a few processes, which is all the same to the server. They start together, then cross
a midnight together whose window nobody has made; what they met is printed as JSON. Times are those of
CLOCK_MONOTONIC, which processes of one machine share.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event

from alembic_partitions import PartitionPending, executor, keep

from .server_load import QUIET

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

CHECKOUT = Path(__file__).resolve().parents[2]
FORKS = 10
PATIENCE = 300  # seconds; only a crowd that hangs gets there


@dataclass
class Order:
    """What the crowd is to do."""

    url: str
    processes: int
    table: str
    now: str
    #: The key of the rows that find no partition.
    midnight: str


@dataclass
class Met:
    """What the threads of one process met; phases as begin and end."""

    phases: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: Seconds that each thread took, by phase.
    took: dict[str, list[float]] = field(default_factory=dict)
    statements: dict[str, int] = field(default_factory=dict)
    created: int = 0
    pending: int = 0
    errors: list[str] = field(default_factory=list)


def run(order: Order) -> list[Met]:
    """Run a crowd in a process of its own: one without threads, which may fork."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(order))],
        cwd=CHECKOUT,
        env={**os.environ, "ALEMBIC_PARTITIONS_NOW": order.now},
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return [Met(**met) for met in json.loads(done.stdout)]


def main(order: Order) -> list[Met]:
    import psycopg2  # noqa: F401  # before the fork, once for all

    context = multiprocessing.get_context("fork")
    forks = min(FORKS, order.processes)
    barrier, told = context.Barrier(forks, timeout=PATIENCE), context.Queue()
    crowd = [
        context.Process(
            target=_live, args=(order, len(range(n, order.processes, forks)), barrier, told), daemon=True
        )
        for n in range(forks)
    ]
    for process in crowd:
        process.start()
    met: list[Met] = [told.get(timeout=PATIENCE) for _ in crowd]
    for process in crowd:
        process.join(PATIENCE)
    return met


def _live(order: Order, threads: int, barrier: Barrier, told: multiprocessing.Queue[Met]) -> None:
    met = Met()

    def all_forks() -> None:
        barrier.wait()

    together = threading.Barrier(threads, action=all_forks, timeout=PATIENCE)
    try:
        _live_together(order, threads, met, together)
    finally:
        if met.errors:
            barrier.abort()  # nobody need wait for us
        told.put(met)


def _live_together(order: Order, threads: int, met: Met, together: threading.Barrier) -> None:
    with _watched(met):
        crowd = [threading.Thread(target=_one, args=(order, met, together)) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(PATIENCE)


def _one(order: Order, met: Met, together: threading.Barrier) -> None:
    engine = create_engine(order.url, pool_size=1, max_overflow=0)
    keep(engine, refresh="1 h", wait="10 s", on_error="raise")
    phases: Mapping[str, Callable[[], None]] = {
        "start": lambda: _write(engine, order.table, order.now),
        "midnight": lambda: _persist(engine, met, order.table, order.midnight),
    }
    try:
        for name, work in phases.items():
            time.sleep(2 * QUIET)
            together.wait()
            began = time.monotonic()
            _phase.name = name
            work()
            ended = time.monotonic()
            met.took.setdefault(name, []).append(ended - began)
            first, last = met.phases.get(name, (began, ended))
            met.phases[name] = min(first, began), max(last, ended)
            together.wait()
        time.sleep(QUIET)
    except BaseException:
        met.errors.append(traceback.format_exc())
        together.abort()
    engine.dispose()


def _write(engine: Engine, table: str, at: str) -> None:
    ticks = sa.table(table, sa.column("id", sa.BigInteger), sa.column("at", sa.DateTime(timezone=True)))
    row = {"id": threading.get_native_id(), "at": datetime.fromisoformat(at)}
    with engine.begin() as connection:
        connection.execute(ticks.insert(), row)


def _persist(engine: Engine, met: Met, table: str, at: str) -> None:
    for attempt in range(20):
        try:
            return _write(engine, table, at)
        except PartitionPending:
            met.pending += 1
            time.sleep(0.05 * attempt)
    return _write(engine, table, at)


_phase = threading.local()


@contextmanager
def _watched(met: Met) -> Iterator[None]:
    """Count what is sent and made."""
    make = executor.create_partition

    def counted(*args: Any, **kw: Any) -> bool:
        made = make(*args, **kw)
        met.created += made
        return made

    def sent(*args: Any) -> None:
        name = getattr(_phase, "name", "")
        met.statements[name] = met.statements.get(name, 0) + 1

    event.listen(Engine, "before_cursor_execute", sent)
    with patch.object(executor, "create_partition", counted):
        yield
    event.remove(Engine, "before_cursor_execute", sent)


if __name__ == "__main__":
    json.dump([dataclasses.asdict(met) for met in main(Order(**json.loads(sys.argv[1])))], sys.stdout)
