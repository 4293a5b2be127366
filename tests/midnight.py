"""A crowd of processes that insert at one simulated midnight: `python -m tests.midnight '<order as JSON>'`.

The parent imports everything and forks the crowd before there is any engine, so that thirty-two applications
cost little more than one; what each of them met is printed as JSON. The keys of the rows carry the simulated
time, `ALEMBIC_PARTITIONS_NOW` the instant that limits are judged by.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import sqlalchemy as sa
from sqlalchemy import Connection, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from alembic_partitions import PartitionPending, executor
from alembic_partitions.drivers import sqlstate
from tests.apps import App
from tests.databases import Database

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

PROCESSES = 32
CHECKOUT = Path(__file__).resolve().parents[1]
PATIENCE = 120  # seconds; only a crowd that hangs gets there

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

METADATA = sa.MetaData()
RACES = sa.Table("races", METADATA, sa.Column("id", sa.Integer, primary_key=True))
TICKS = sa.Table(
    "ticks",
    METADATA,
    sa.Column("at", sa.DateTime(timezone=True)),
    sa.Column("note", sa.Text),
    sa.Column("race_id", sa.Integer),
)


@dataclass
class Order:
    """What the crowd is to do."""

    url: str
    driver: str
    midnights: list[str]
    races_first: bool = False
    """Each transaction writes the table first that `ticks` refers to."""


@dataclass
class Met:
    """What one process met."""

    number: int
    committed: int = 0
    created: int = 0
    pending: int = 0
    """How often it was told to run its transaction again."""
    error: str | None = None


def run(database: Database, driver: str, midnights: Sequence[datetime], races_first: bool) -> list[Met]:
    """Run a crowd in a process of its own: one without threads, which may fork."""
    url = database.url.render_as_string(hide_password=False)
    order = Order(url, driver, [midnight.isoformat() for midnight in midnights], races_first)
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(order))],
        cwd=CHECKOUT,
        env={**os.environ, "ALEMBIC_PARTITIONS_NOW": (midnights[0] - timedelta(seconds=1)).isoformat()},
        check=False,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return [Met(**met) for met in json.loads(done.stdout)]


def main(order: Order) -> list[Met]:
    registry.load(f"postgresql.{order.driver}").import_dbapi()  # before the fork, once for all
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(PROCESSES, timeout=PATIENCE), context.Queue()
    crowd = [
        context.Process(target=_live, args=(order, number, barrier, told), daemon=True)
        for number in range(PROCESSES)
    ]
    for process in crowd:
        process.start()
    met: list[Met] = [told.get(timeout=PATIENCE) for _ in crowd]
    for process in crowd:
        process.join(PATIENCE)
    return sorted(met, key=lambda one: one.number)


def _live(order: Order, number: int, barrier: Barrier, told: multiprocessing.Queue[Met]) -> None:
    met = Met(number)
    make = executor.create_partition

    def counted(*args: Any, **kw: Any) -> bool:
        made = make(*args, **kw)
        met.created += made
        return made

    try:
        with patch.object(executor, "create_partition", counted):
            app = App(
                Database(make_url(order.url), 0),
                order.driver,
                engine_options={"isolation_level": ISOLATION_LEVELS[number % 3]},
                on_error="raise",
            )
            for midnight in map(datetime.fromisoformat, order.midnights):
                through = _with_races if order.races_first else _through_midnight
                through(app, met, midnight, barrier)
            app.close()
    except BaseException:
        barrier.abort()
        met.error = traceback.format_exc()
    told.put(met)


def _through_midnight(app: App, met: Met, midnight: datetime, barrier: Barrier) -> None:
    """Every other process has a transaction open at midnight, its statements prepared and its locks taken."""
    just_before, just_after = midnight - timedelta(milliseconds=1), timedelta(microseconds=met.number)

    def evening(connection: Connection) -> None:
        for second in range(6, 0, -1):  # often enough for psycopg 3 to prepare it
            _write(connection, met, midnight - timedelta(seconds=second))

    def night(connection: Connection) -> None:
        _write(connection, met, midnight + just_after)
        _write(connection, met, *(midnight + timedelta(minutes=30 * step) for step in range(9)))
        _write(connection, met, just_before)

    def all_in_one(connection: Connection) -> None:
        evening(connection)
        barrier.wait()
        night(connection)

    if met.number % 2:
        app.connection(all_in_one)
    else:
        app.connection(evening)
        barrier.wait()
        app.connection(night)


def _with_races(app: App, met: Met, midnight: datetime, barrier: Barrier) -> None:
    """At midnight every transaction has written a race: nobody can attach a partition that refers to it."""
    first = True

    def race_and_tick(connection: Connection) -> None:
        nonlocal first
        connection.execute(RACES.insert(), {"id": met.number})
        if first:
            first = False
            barrier.wait()
        row = {"at": midnight + timedelta(seconds=met.number), "note": "tick", "race_id": met.number}
        connection.execute(TICKS.insert(), row)

    # As the README recommends.
    retrying = Retrying(
        retry=retry_if_exception(_passes_when_run_again),
        stop=stop_after_attempt(20),
        wait=wait_random(0.01, 0.2),
        reraise=True,
    )
    retrying(app.connection, race_and_tick)
    met.pending += int(retrying.statistics["attempt_number"]) - 1
    met.committed += 1


def _passes_when_run_again(error: BaseException) -> bool:
    """PostgreSQL asks for the same, above READ COMMITTED, whether or not a table has partitions."""
    serialization = isinstance(error, DBAPIError) and sqlstate(error) == "40001"
    return isinstance(error, PartitionPending) or serialization


def _write(connection: Connection, met: Met, *instants: datetime) -> None:
    connection.execute(TICKS.insert(), [{"at": at, "note": str(met.number)} for at in instants])
    met.committed += len(instants)


if __name__ == "__main__":
    json.dump([dataclasses.asdict(met) for met in main(Order(**json.loads(sys.argv[1])))], sys.stdout)
