"""Budget: 20,000 rows whose keys are covered cost at most 1.02 times the same without the hook.

Whole runs vary by ten per cent on shared machines, so the best of many is taken; beside it the median of the
pairs, one run after the other: it stays the same from one bench to the next, where the best moves by six per
cent. The time spent inside the hook is measured by itself as well, in rounds of their own, as a share of the
best run without it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import PartitionPolicy
from tests.apps import App, declare, running
from tests.bench.hooks import Hooks
from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.bench.record import RECORD
from tests.databases import ALL_DRIVERS, Database, Databases

ROWS = setting("BENCH_ROWS", 20_000, quick=300)
ROUNDS = setting("BENCH_INSERT_ROUNDS", 16, quick=2)
SLOW_ROUNDS = setting("BENCH_SLOW_ROUNDS", 4, quick=1)
INSIDE_ROUNDS = setting("BENCH_INSIDE_ROUNDS", 8, quick=1)
BUDGET, SHARE = 1.02, 0.02

Insert = Callable[[Connection, list[dict[str, Any]]], None]


class Reading(DeclarativeBase):
    pass


class Batched(Reading):
    """SQLAlchemy flushes it in batches: it knows by which column to sort what comes back."""

    __tablename__ = "readings"
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str]


class OneByOne(Reading):
    """Without `autoincrement=True` a composite key is flushed row by row: 20,000 calls of the hook."""

    __tablename__ = "readings"
    __table_args__ = {"schema": "public"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note: Mapped[str]


def flush(connection: Connection, data: list[dict[str, Any]], model: type[Reading] = Batched) -> None:
    with Session(connection) as session:
        session.add_all([model(**row) for row in data])
        session.flush()


def flush_one_by_one(connection: Connection, data: list[dict[str, Any]]) -> None:
    flush(connection, data, OneByOne)


def bulk(connection: Connection, data: list[dict[str, Any]]) -> None:
    with Session(connection) as session:
        session.execute(sa.insert(Batched), data)


def executemany(connection: Connection, data: list[dict[str, Any]]) -> None:
    connection.execute(Batched.__table__.insert(), data)  # type: ignore[attr-defined]


WAYS: dict[str, Insert] = {
    "ORM flush": flush,
    "ORM flush, row by row": flush_one_by_one,
    "ORM bulk": bulk,
    "Core executemany": executemany,
}
WITHOUT, WITH, TIMED = "without", "with", "timed"


def readings(rows: int) -> list[dict[str, Any]]:
    noon = datetime.now(timezone.utc).replace(hour=12, minute=0)
    return [{"at": noon + timedelta(milliseconds=n), "note": "note"} for n in range(rows)]


class Both:
    """Applications on one database: one with `keep()`, one without, and one whose hook's time is measured."""

    def __init__(self, stack: ExitStack, database: Database, driver: str) -> None:
        self._hooks = {WITHOUT: Hooks(), WITH: Hooks(), TIMED: Hooks(timed=True)}
        self._apps: dict[str, App] = {}
        for name, hooks in self._hooks.items():
            with hooks.installing():
                kept = {"kept": False} if name == WITHOUT else {"on_error": "raise"}
                self._apps[name] = stack.enter_context(running(database, driver, **kept))
        for app in self._apps.values():  # connect, and learn what is covered
            app.connection(lambda connection: connection.execute(sa.text("SELECT 1")))

    def insert(self, way: Insert, data: list[dict[str, Any]], name: str, into: Side) -> None:
        app = self._apps[name]
        with self._hooks[name].at_work(), into.measured():
            app.connection(lambda connection: way(connection, data))
        assert app.connection(emptied) == len(data)

    def turns(self, way: Insert, data: list[dict[str, Any]], rounds: int) -> tuple[Side, Side]:
        """Return what it takes without the hook and with it."""

        def side(name: str) -> Callable[[Side], None]:
            return lambda into: self.insert(way, data, name, into)

        found = in_turns({WITHOUT: side(WITHOUT), WITH: side(WITH)}, rounds)
        return found[WITHOUT], found[WITH]

    def inside(self, way: Insert, data: list[dict[str, Any]], rounds: int) -> float:
        """Return the seconds spent in the hook: the best of some rounds."""
        seconds, hooks = [], self._hooks[TIMED]
        for _ in range(rounds):
            self.insert(way, data, TIMED, Side())
            assert hooks.calls > 0
            seconds.append(hooks.seconds)
        return min(seconds)


def emptied(connection: Connection) -> int:
    """Count the rows, and throw them away."""
    count = connection.scalar(sa.text("SELECT count(*) FROM readings"))
    connection.execute(sa.text("TRUNCATE readings"))
    return int(count or 0)


@pytest.fixture(scope="module")
def worst() -> dict[str, list[tuple[Row, float]]]:
    """What each way took on each driver so far."""
    return {way: [] for way in WAYS}


@pytest.mark.parametrize("driver", ALL_DRIVERS)
def test_rows_inside_coverage(
    driver: str,
    database: Database,
    databases: Databases,
    engine: Engine,
    worst: dict[str, list[tuple[Row, float]]],
) -> None:
    declare(engine, "readings", PartitionPolicy("at", timezone="Pacific/Auckland"))
    data, rows = readings(ROWS), list[Row]()
    with ExitStack() as stack:
        both = Both(stack, database, driver)
        for title, way in WAYS.items():
            rounds = SLOW_ROUNDS if way is flush_one_by_one else ROUNDS
            without, kept = both.turns(way, data, rounds)
            inside = both.inside(way, data, INSIDE_ROUNDS if rounds == ROUNDS else 1)
            share = inside / without.best
            notes = (f"{inside * 1000:.2f} ms", f"{share:.2%}")
            row = Row(f"{driver}: {title}", without, kept, BUDGET, notes)
            rows.append(row)
            worst[title].append((row, share))
    names = ("in the hook", "its share")
    show(f"Insert hook, {ROWS:,} rows inside coverage: {driver}", databases.describe(), rows, names)
    if driver == ALL_DRIVERS[-1]:
        for title, found in worst.items():
            judge(title, found)


def judge(title: str, found: list[tuple[Row, float]]) -> None:
    """Tell the worst of the drivers."""
    row, _ = max(found, key=lambda pair: pair[0].best)
    what = f"insert hook, {ROWS:,} rows, {title}"
    row.judged(f"{what}: whole run, the best of many (worst driver: {row.what.split(':')[0]})", by_best=True)
    row, _ = max(found, key=lambda pair: pair[0].median)
    row.judged(f"the same: the median of the pairs (worst driver: {row.what.split(':')[0]})")
    row, share = max(found, key=lambda pair: pair[1])
    driver = row.what.split(":")[0]
    RECORD.judge(f"the same: share spent in the hook (worst driver: {driver})", share, SHARE, "%")
