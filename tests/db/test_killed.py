"""Promise 9: kill -9 before and after every statement of a run; the next one finishes, nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine

from alembic_partitions import PartitionPolicy, maintenance
from tests.clock import Clock
from tests.databases import Database
from tests.tables import NOW, columns, declare, operations, partitions, policy, rows, run, scalar

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()"),
]

ROOT = Path(__file__).parents[2]


@dataclass
class Killer:
    process: subprocess.Popen[str]
    url: str

    def run(self, action: str, when: str, number: int, folder: str) -> tuple[Any, list[bool]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        told = [self.url, NOW.isoformat(), action, when, number, folder]
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        ended, steps = json.loads(self.process.stdout.readline())
        return ended, steps


@pytest.fixture
def killer(database: Database) -> Iterator[Killer]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    yield Killer(process, database.url.render_as_string(hide_password=False))
    process.communicate()


@pytest.fixture
def server(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


def small(**fields: Any) -> PartitionPolicy:
    return policy(**{"retention": "3 days", "premake": 0, "lookback": 0, "grace": "1 day", **fields})


def begin(server: Engine, rules: PartitionPolicy) -> None:
    """Yesterday's world: two partitions that are expired, with a foreign key, and two rows in each."""
    run(server, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "DROP SCHEMA IF EXISTS old CASCADE")
    run(server, "CREATE SCHEMA old", "CREATE TABLE meetings (id int PRIMARY KEY)")
    run(server, "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"), server_default="1")
    declare(server, "odds", rules, *columns(), key)
    with operations(server) as op:
        op.create_partitions("odds", date(2026, 3, 31), date(2026, 4, 2))
    run(
        server,
        "INSERT INTO odds (at, note) SELECT t, t::text FROM"
        " generate_series('2026-03-31 01:00+13'::timestamptz, '2026-04-01 20:00+13', '12 hours') t",
    )


def all_rows(server: Engine) -> list[tuple[Any, ...]]:
    """Every row, wherever it is: below the parent, detached, archived."""
    tables = rows(
        server,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND c.relname LIKE 'odds%' AND n.nspname IN ('public', 'old')",
    )
    found = [row for (name,) in tables for row in rows(server, f"SELECT id, at, note FROM ONLY {name}")]
    return sorted(found)


def nothing_stuck(server: Engine) -> None:
    for _ in range(200):  # whoever was killed is gone as soon as its server process notices
        others = scalar(
            server,
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()",
        )
        if others == 0:
            return
        time.sleep(0.05)
    pytest.fail("a lock is left")


def through(
    killer: Killer,
    action: str,
    folder: Path,
    prepare: Callable[[], None],
    check: Callable[[], None],
) -> None:
    """Kill the run before each of its steps and after each that changes something; ``check`` must hold."""
    prepare()
    ended, steps = killer.run(action, "never", 0, str(folder))
    assert ended == 0
    assert len(steps) > 5
    check()
    for number, changes in enumerate(steps, start=1):
        for when in ("before", "after") if changes else ("before",):
            for path in folder.iterdir():
                path.unlink()
            prepare()
            ended, _ = killer.run(action, when, number, str(folder))
            assert ended == "killed by 9"
            try:
                check()
            except BaseException as error:
                raise AssertionError(f"killed {when} step {number} of {len(steps)}") from error


def maintain(server: Engine, folder: Path) -> maintenance.TableResult:
    with server.connect() as connection:
        orders = maintenance.Orders(archive_to=str(folder))
        (found,) = maintenance.maintain(connection, orders=orders).results
    return found


def test_while_it_detaches(killer: Killer, server: Engine, tmp_path: Path) -> None:
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small())
        before[:] = all_rows(server)
        assert len(before) == 4

    def check() -> None:
        nothing_stuck(server)
        assert all_rows(server) == before
        assert maintain(server, tmp_path).error is None
        assert all_rows(server) == before
        assert partitions(server) == ["odds_2026_04_05"]
        names = {"odds_2026_03_31_detached", "odds_2026_04_01_detached"}
        found = rows(server, "SELECT relname FROM pg_class WHERE relname LIKE '%detached'")
        assert {name for (name,) in found} == names
        assert scalar(server, "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conname <> ''"
            " AND conrelid::regclass::text LIKE 'odds%'") == 0  # fmt: skip
        nothing_stuck(server)

    through(killer, "maintain", tmp_path, prepare, check)


def test_while_it_detaches_beside_a_default_partition(killer: Killer, server: Engine, tmp_path: Path) -> None:
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small())
        run(server, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
        before[:] = all_rows(server)

    def check() -> None:
        nothing_stuck(server)
        assert maintain(server, tmp_path).error is None
        assert all_rows(server) == before
        assert partitions(server) == ["odds_2026_04_05", "odds_rest"]

    through(killer, "maintain", tmp_path, prepare, check)


def test_while_it_drops(killer: Killer, server: Engine, tmp_path: Path, clock: Clock) -> None:
    def prepare() -> None:
        begin(server, small(on_expiry="drop"))
        clock.forward(days=-2)
        run(server, "UPDATE partition_config SET retention = '1 day'")
        assert len(maintain(server, tmp_path).detached) == 2
        clock.forward(days=2)

    def check() -> None:
        nothing_stuck(server)
        assert maintain(server, tmp_path).error is None
        left = rows(server, "SELECT relname FROM pg_class WHERE relname LIKE '%detached'")
        assert left == [("odds_2026_04_03_detached",)], "which has just been detached"
        assert scalar(server, "SELECT count(*) FROM meetings") == 1

    through(killer, "maintain", tmp_path, prepare, check)


def test_while_it_archives_to_a_schema(killer: Killer, server: Engine, tmp_path: Path) -> None:
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small(on_expiry="archive", archive_schema="old"))
        before[:] = all_rows(server)

    def check() -> None:
        nothing_stuck(server)
        assert maintain(server, tmp_path).error is None
        assert all_rows(server) == before
        assert scalar(server, "SELECT count(*) FROM old.odds_2026_03_31") == 2

    through(killer, "maintain", tmp_path, prepare, check)


def test_while_it_exports(killer: Killer, server: Engine, tmp_path: Path) -> None:
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small(on_expiry="archive"))
        before[:] = all_rows(server)

    def check() -> None:
        nothing_stuck(server)
        told = maintain(server, tmp_path)
        assert told.error is None
        assert all_rows(server) == before
        names = [
            f"{server.url.database}.public.odds_2026_0{day}.20260405T013711Z" for day in ("3_31", "4_01")
        ]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"{name}.{end}" for name in names for end in ("csv.gz", "json")
        ]

    through(killer, "maintain", tmp_path, prepare, check)


def test_while_it_restores(killer: Killer, server: Engine, tmp_path: Path) -> None:
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small())
        before[:] = all_rows(server)
        assert len(maintain(server, tmp_path).detached) == 2

    def check() -> None:
        nothing_stuck(server)
        with server.connect() as connection:
            for found in maintenance.restore(connection).results:
                assert found.error is None
        assert all_rows(server) == before
        assert len(partitions(server)) == 3
        assert scalar(server, "SELECT count(*) FROM odds") == 4

    through(killer, "restore", tmp_path, prepare, check)


def test_while_it_makes_partitions(killer: Killer, server: Engine, tmp_path: Path) -> None:
    def prepare() -> None:
        begin(server, small(premake=2))
        run(server, "DROP TABLE odds_2026_04_05", "DROP TABLE odds_2026_04_06")

    def check() -> None:
        nothing_stuck(server)
        with server.connect() as connection:
            (found,) = maintenance.ensure(connection).results
        assert found.error is None
        assert partitions(server)[2:] == [f"odds_2026_04_0{day}" for day in (5, 6, 7)]

    through(killer, "ensure", tmp_path, prepare, check)


def test_while_it_drains_a_default_partition(killer: Killer, server: Engine, tmp_path: Path) -> None:
    """A window of two rows, which moves at once, and one of six, which is gathered in batches of three."""
    before: list[Any] = []

    def prepare() -> None:
        begin(server, small(retention=None))
        run(server, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
        run(
            server,
            "INSERT INTO odds (at, note) SELECT t, t::text FROM"
            " generate_series('2026-03-20 01:00+13'::timestamptz, '2026-03-20 20:00+13', '12 hours') t",
            "INSERT INTO odds (at, note) SELECT t, t::text FROM"
            " generate_series('2026-03-22 01:00+13'::timestamptz, '2026-03-22 22:00+13', '4 hours') t",
        )
        before[:] = all_rows(server)

    def check() -> None:
        nothing_stuck(server)
        assert all_rows(server) == before
        with server.connect() as connection:
            (found,) = maintenance.repair(connection, batch=3).results
        assert found.error is None
        assert all_rows(server) == before
        assert scalar(server, "SELECT count(*) FROM odds") == len(before)
        assert scalar(server, "SELECT count(*) FROM ONLY odds_rest") == 0
        left = rows(server, "SELECT relname FROM pg_class WHERE relkind = 'r' AND NOT relispartition"
            " AND relname LIKE 'odds%'")  # fmt: skip
        assert left == []

    through(killer, "repair", tmp_path, prepare, check)
