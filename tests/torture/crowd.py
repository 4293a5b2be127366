"""Thirty-two applications that write through one simulated midnight after the other; one maintains beside.

All are forked from the test before any of them has an engine. Each writer's clock goes its own way through
the day; at midnight they meet, half of them with a transaction open, and go on at the same moment.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random

from alembic_partitions import PartitionPending, executor, maintenance
from alembic_partitions.maintenance import NOW_VARIABLE
from tests.apps import App
from tests.clock import Clock
from tests.databases import ALL_DRIVERS, Database
from tests.ledger import LEVELS
from tests.torture.telling import draws

#: Two tables that every transaction may write, in either order.
TABLES = ("ticks", "pulses")
#: Every other application looks for itself while it runs; the others rely on what their inserts meet.
REFRESH = ("1 s", "1 h")
#: Longer than an application waits that has a core to itself.
WAIT = "10 s"


class Base(DeclarativeBase):
    pass


class Tick(Base):
    __tablename__ = "ticks"
    id = mapped_column(sa.BigInteger, primary_key=True, autoincrement=True)
    at = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note = mapped_column(sa.Text)


class Pulse(Base):
    __tablename__ = "pulses"
    id = mapped_column(sa.BigInteger, primary_key=True, autoincrement=True)
    at = mapped_column(sa.DateTime(timezone=True), primary_key=True)
    note = mapped_column(sa.Text)


MODELS: tuple[type[Base], ...] = (Tick, Pulse)
Rows = list[dict[str, Any]]


def _table(model: type[Base]) -> sa.Table:
    assert isinstance(model.__table__, sa.Table)
    return model.__table__


def _flush(session: Session, model: type[Base], rows: Rows) -> None:
    session.add_all(model(**row) for row in rows)
    session.flush()


def _bulk(session: Session, model: type[Base], rows: Rows) -> None:
    session.execute(sa.insert(model), rows)


def _bulk_returning(session: Session, model: type[Base], rows: Rows) -> None:
    assert len(session.scalars(sa.insert(model).returning(_table(model).c.id), rows).all()) == len(rows)


def _bulk_mappings(session: Session, model: type[Base], rows: Rows) -> None:
    session.bulk_insert_mappings(sa.inspect(model), rows)


def _core_one_by_one(session: Session, model: type[Base], rows: Rows) -> None:
    for row in rows:
        session.connection().execute(sa.insert(_table(model)).values(**row))


def _core_values(session: Session, model: type[Base], rows: Rows) -> None:
    session.connection().execute(sa.insert(_table(model)).values(rows))


def _executemany(session: Session, model: type[Base], rows: Rows) -> None:
    session.connection().execute(sa.insert(_table(model)), rows)


PATHS: dict[str, Callable[[Session, type[Base], Rows], None]] = {
    "ORM flush": _flush,
    "ORM bulk": _bulk,
    "ORM bulk, returning": _bulk_returning,
    "ORM mappings": _bulk_mappings,
    "Core": _core_one_by_one,
    "Core, many values": _core_values,
    "executemany": _executemany,
}


@dataclass
class Order:
    """What the crowd is to do."""

    url: str
    midnights: list[datetime]
    transactions: int
    """How many each writer commits between two midnights."""
    folder: Path
    """Where each writes down what it was told was committed."""


@dataclass
class Met:
    """What one process met."""

    who: str
    rows: int = 0
    transactions: int = 0
    open_at_midnight: int = 0
    created: int = 0
    pending: list[str] = field(default_factory=list)
    """Each time that it was told to run its transaction again: why."""
    runs: int = 0
    detached: int = 0
    dropped: list[str] = field(default_factory=list)
    waited: int = 0
    """How many runs of maintain left something to the next, since a lock was not to be had."""
    warnings: list[str] = field(default_factory=list)
    error: str | None = None


@dataclass
class Writer:
    order: Order
    number: int
    barrier: Barrier
    app: App
    met: Met
    dice: random.Random
    count: int = 0

    def live(self) -> None:
        first, last = self.order.midnights[0], self.order.midnights[-1]
        begins = first - timedelta(hours=6)
        for midnight in self.order.midnights:
            self._day(begins, midnight)
            self._midnight(midnight)
            begins = midnight
        self._day(last, last + timedelta(hours=6))

    def _day(self, begins: datetime, ends: datetime) -> None:
        """Write all through the day, up to a moment before its end."""
        spots = sorted(self.dice.random() for _ in range(self.order.transactions))
        for spot in spots:
            self._write([self._some(begins + spot * (ends - begins), ends)])

    def _midnight(self, midnight: datetime) -> None:
        """Every other time with a transaction open, its statements prepared and its locks taken."""
        just_after = timedelta(microseconds=self.number)
        # Often enough for psycopg 3 to prepare it.
        evening = [self._some(midnight - timedelta(seconds=second), midnight) for second in range(6, 0, -1)]
        evening += [("executemany", table, self._rows([evening[-1][2][0]["at"]])) for table in (0, 1)]
        night = [
            ("executemany", table, self._rows([midnight + just_after]))
            for table in self.dice.sample((0, 1), 2)
        ]
        night += [self._some(midnight + timedelta(minutes=7), midnight + timedelta(hours=1))]
        night += [("Core", 0, self._rows([midnight - timedelta(microseconds=1)]))]
        is_open = self.dice.random() < 0.5
        self.met.open_at_midnight += is_open
        if is_open:
            self._write(evening, night)
        else:
            self._write(evening)
            self._meet()
            self._write(night)

    def _meet(self) -> None:
        self.barrier.wait()
        self.barrier.wait()

    def _write(self, *parts: list[tuple[str, int, Rows]]) -> None:
        """Commit it all in one transaction, a midnight between two parts; run again as the README says."""
        met_midnight = False

        def work(session: Session) -> None:
            nonlocal met_midnight
            for number, part in enumerate(parts):
                if number and not met_midnight:
                    met_midnight = True
                    self._meet()
                for path, table, rows in part:
                    os.environ[NOW_VARIABLE] = rows[0]["at"].isoformat()
                    PATHS[path](session, MODELS[table], rows)

        os.environ[NOW_VARIABLE] = parts[0][0][2][0]["at"].isoformat()
        retrying = Retrying(
            retry=retry_if_exception_type(PartitionPending),
            stop=stop_after_attempt(20),
            wait=wait_random(0.01, 0.2),
            reraise=True,
        )
        retrying(self._try, work)
        self.met.transactions += 1
        with self._ledger.open("a") as ledger:
            for _, table, rows in (step for part in parts for step in part):
                self.met.rows += len(rows)
                ledger.writelines(
                    f"{TABLES[table]}\t{row['note']}\t{row['at'].isoformat()}\n" for row in rows
                )

    def _try(self, work: Callable[[Session], None]) -> None:
        try:
            self.app.session(work)
        except PartitionPending as pending:
            self.met.pending.append(str(pending))
            raise

    def _some(self, at: datetime, before: datetime) -> tuple[str, int, Rows]:
        """Draw a path, a table and a few rows, in order, from an instant on and before another."""
        path, table = self.dice.choice([*PATHS]), self.dice.randrange(2)
        most = min(timedelta(hours=1), before - at)
        instants = [at + self.dice.random() * most for _ in range(self.dice.choice([1, 1, 2, 5, 20]))]
        return path, table, self._rows([at, *sorted(instants)][: len(instants)])

    def _rows(self, instants: list[datetime]) -> Rows:
        made = [{"at": at, "note": f"{self.number}:{self.count + n}"} for n, at in enumerate(instants)]
        self.count += len(made)
        return made

    @property
    def _ledger(self) -> Path:
        return self.order.folder / f"writer-{self.number}"


class Notes(logging.Handler):
    """Note down what is logged, instead of printing it."""

    def __init__(self, met: Met) -> None:
        super().__init__(logging.WARNING)
        self.met = met
        logging.getLogger("alembic_partitions").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.met.warnings.append(record.getMessage())


@contextmanager
def counting(met: Met) -> Iterator[None]:
    """Count the partitions that this process makes: for a row, and to its horizon."""
    make, make_next = executor.create_partition, executor.create_next

    def counted(*args: Any, **kw: Any) -> bool:
        made = make(*args, **kw)
        met.created += made
        return made

    def next_counted(*args: Any, **kw: Any) -> Any:
        done = make_next(*args, **kw)
        met.created += sum(by_us for _, by_us in done)
        return done

    with (
        patch.object(executor, "create_partition", counted),
        patch.object(executor, "create_next", next_counted),
    ):
        yield


def write(order: Order, number: int, barrier: Barrier) -> None:
    """Be one of the applications; with the numbers all drivers and isolation levels go round."""
    met = Met(f"writer-{number}")
    Notes(met)
    try:
        with counting(met):
            os.environ[NOW_VARIABLE] = (order.midnights[0] - timedelta(hours=6)).isoformat()
            app = App(
                Database(sa.make_url(order.url), 0),
                ALL_DRIVERS[number % 3],
                engine_options={"isolation_level": LEVELS[number // 3 % 3]},
                refresh=REFRESH[number // 9 % 2],
                wait=WAIT,
            )
            dice = draws(f"midnight {order.midnights[0]} {number}")
            Writer(order, number, barrier, app, met, dice).live()
            app.close()
    except BaseException:
        barrier.abort()
        met.error = traceback.format_exc()
    _tell(order, met)


def maintain(order: Order, now: Any, over: Event) -> None:
    """Maintain, again and again, at the simulated moment that ``now`` (seconds since 1970) shows."""
    met = Met("maintain")
    Notes(met)
    engine = create_engine(order.url, poolclass=NullPool)
    dice = draws(f"maintain {order.midnights[0]}")
    try:
        with pytest.MonkeyPatch.context() as patched, counting(met):
            clock = Clock(patched, as_the_server_is=True)
            while not over.is_set():
                clock.set(datetime.fromtimestamp(now.value, timezone.utc))
                with engine.connect() as connection:
                    report = maintenance.maintain(connection, orders=maintenance.Orders(trust_clock=True))
                met.runs += 1
                for result in report.results:
                    met.detached += len(result.detached)
                    met.dropped += result.dropped
                    if result.error:
                        assert "not to be had" in result.error, result.error
                        met.waited += 1
                time.sleep(dice.random() * 0.5)
    except BaseException:
        met.error = traceback.format_exc()
    engine.dispose()
    _tell(order, met)


def _tell(order: Order, met: Met) -> None:
    (order.folder / f"{met.who}.json").write_text(json.dumps(vars(met)))


def told(order: Order) -> list[Met]:
    """Read what the processes met, as far as they got to tell it."""
    found = []
    for path in order.folder.glob("*.json"):
        with suppress(json.JSONDecodeError):
            found.append(Met(**json.loads(path.read_text())))
    return found
