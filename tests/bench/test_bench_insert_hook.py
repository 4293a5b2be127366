"""Budget: 20,000 rows whose keys are covered cost at most 1.02 times the same without the hook.

Whole runs vary by ten per cent here, so the time spent inside the hook is measured by itself as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from alembic_partitions import PartitionPolicy, events
from tests.apps import App, declare, running
from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.databases import ALL_DRIVERS, Database, Databases

ROWS = setting("BENCH_ROWS", 20_000)
ROUNDS = setting("BENCH_ROUNDS", 7)
BUDGET = 1.02

HOOKS = ("_checkout", "_checkin", "_begin", "_before_cursor_execute", "before_flush")


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


class Inside:
    """Counts the time spent in the hooks, and switches them off: one listens to every session there is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.on = True
        for name in HOOKS:
            patch.setattr(events._Hooks, name, self._timed(getattr(events._Hooks, name)))

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            if not self.on:  # what is to be sent, as the hook that may change it returns it
                return args[3:5] if hook.__name__ == "_before_cursor_execute" else None
            begun = time.perf_counter()
            result = hook(*args)
            self.seconds += time.perf_counter() - begun
            return result

        return timed


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


WAYS: dict[str, Callable[[Connection, list[dict[str, Any]]], None]] = {
    "ORM flush": flush,
    "ORM flush, row by row": flush_one_by_one,
    "ORM bulk": bulk,
    "Core executemany": executemany,
}


def both_sides(
    apps: dict[str, App], inside: Inside, way: Callable[[Connection, list[dict[str, Any]]], None]
) -> dict[str, Callable[[Side], None]]:
    noon = datetime.now(timezone.utc).replace(hour=12, minute=0)
    data = [{"at": noon + timedelta(seconds=n), "note": "note"} for n in range(ROWS)]

    def side(name: str) -> Callable[[Side], None]:
        def run(into: Side) -> None:
            inside.on = name == "with"
            with into.measured():
                apps[name].connection(lambda connection: way(connection, data))
            inside.on = False
            apps["without"].connection(lambda connection: connection.execute(sa.text("TRUNCATE readings")))

        return run

    return {name: side(name) for name in apps}


def test_rows_inside_coverage(
    database: Database, databases: Databases, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "readings", PartitionPolicy("at", timezone="Pacific/Auckland"))
    inside, rows = Inside(monkeypatch), list[Row]()
    for driver in ALL_DRIVERS:
        with (
            running(database, driver, kept=False) as plain,
            running(database, driver, on_error="raise") as kept,
        ):
            apps = {"without": plain, "with": kept}
            for app in apps.values():  # connect, and learn what is covered
                app.connection(lambda connection: connection.execute(sa.text("SELECT 1")))
            for title, way in WAYS.items():
                inside.seconds = 0.0
                found = in_turns(both_sides(apps, inside, way), ROUNDS, warm_up=1)
                each = inside.seconds / (ROUNDS + 1)  # the round that warms up counts here
                notes = (f"{each * 1000:.2f} ms", f"{each / found['without'].median:.2%}")
                rows.append(Row(f"{driver}: {title}", found["without"], found["with"], BUDGET, notes))
    names = ("in the hook", "its share")
    show(f"Insert hook, {ROWS:,} rows inside coverage, {ROUNDS} rounds", databases.describe(), rows, names)
