"""Kill -9 at any moment of a split, beside writers: the next run goes on, and every row is there once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import NullPool, create_engine

from alembic_partitions import maintenance
from alembic_partitions.errors import SplitRefused
from tests.databases import Database
from tests.db.test_split import left_over, wide
from tests.ledger import LEVELS, Writer, differences, keep_ledger
from tests.tables import run, scalar

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()"),
]

KILLS = int(os.environ.get("SPLIT_KILLS", "50"))


def split(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        try:
            report = maintenance.split(connection, table="odds", batch=200, pause=0.01, lock_timeout=0.1)
        except SplitRefused:  # the one before was killed when nothing was left to do
            os._exit(0)
    os._exit(0 if report.failure is None else 1)


def write(url: str, number: int) -> None:
    engine = create_engine(url, poolclass=NullPool)
    Writer(engine, LEVELS[number % 3], number, "2026-04-04 12:00+00", rest=0.005).work()
    os._exit(1)  # only trouble ends it


@contextmanager
def at_work(url: str) -> Iterator[None]:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write, args=(url, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        yield
        assert all(writer.is_alive() for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()


def test_killed_at_random_moments_beside_writers(database: Database) -> None:
    engine = create_engine(database.url, poolclass=NullPool)
    url = database.url.render_as_string(hide_password=False)
    fork = multiprocessing.get_context("fork")
    dice, kills, ended = random.Random(7), 0, 0
    while kills < KILLS:
        run(engine, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        wide(engine, per_day=1000)
        keep_ledger(engine)
        with at_work(url):
            while True:
                process = fork.Process(target=split, args=(url,))
                process.start()
                process.join(dice.choice([0.05, 0.2, 0.5, 1.0, 2.0]) * dice.random())
                if process.is_alive():
                    os.kill(process.pid or 0, signal.SIGKILL)
                    kills += 1
                process.join()
                if process.exitcode == 0:
                    break
            time.sleep(0.1)
        ended += 1
        settle(database)
        assert differences(engine) == []
        assert left_over(engine) == []
    assert ended
    engine.dispose()


def settle(database: Database) -> None:
    """Wait until the server has noticed that its clients are gone."""
    engine = create_engine(database.url, poolclass=NullPool)
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(200):
        if scalar(engine, others) == 0:
            return
        time.sleep(0.05)
    pytest.fail("somebody is left")
