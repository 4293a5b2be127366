"""Writers beside long work, who write what they did into a ledger, too: both must be the same at the end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions.drivers import sqlstate
from tests.tables import rows, run

LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
# Lost against another writer: a serialization failure, a deadlock, a duplicate.
LOST = {"40001", "40P01", "23505"}


def keep_ledger(engine: Engine, table: str = "odds") -> None:
    """Copy a table of ours (id, at, note) into a plain one of its own."""
    run(
        engine,
        f"CREATE TABLE ledger AS SELECT id, at, note FROM {table}",
        "ALTER TABLE ledger ADD PRIMARY KEY (id, at)",
        "CREATE SEQUENCE new_ids START 1000000",
    )


def differences(engine: Engine, table: str = "odds") -> list[tuple[Any, ...]]:
    """Return the rows that are lost, and those that are there twice or should not be."""
    return rows(
        engine,
        f"(SELECT 'lost', id, at, note FROM (SELECT id, at, note FROM ledger EXCEPT ALL"
        f" SELECT id, at, note FROM {table}) l) UNION ALL"
        f" (SELECT 'too many', id, at, note FROM (SELECT id, at, note FROM {table} EXCEPT ALL"
        " SELECT id, at, note FROM ledger) m)",
    )


@dataclass
class Writer:
    """One who writes, over and over; ``changes`` is how many transactions were committed."""

    engine: Engine
    level: str
    seed: int
    spare: str
    table: str = "odds"
    changes: int = 0
    longest: float = 0.0
    #: Seconds between two transactions.
    rest: float = 0.0
    trouble: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    only: tuple[str, ...] = ("insert", "update", "delete", "upsert", "move", "rename", "undo", "many")

    def work(self) -> None:
        dice = random.Random(self.seed)
        with self.engine.connect().execution_options(isolation_level=self.level) as connection:
            while not self.stop.is_set():
                begun = time.perf_counter()
                try:
                    getattr(self, f"_{dice.choice(self.only)}")(connection, dice)
                    connection.commit()
                    self.changes += 1
                except DBAPIError as error:
                    connection.rollback()
                    if sqlstate(error) not in LOST:
                        self.trouble.append(str(error))
                        return
                self.longest = max(self.longest, time.perf_counter() - begun)
                time.sleep(self.rest)

    def _both(self, connection: Connection, statement: str, **values: Any) -> None:
        for table in (self.table, "ledger"):
            connection.execute(text(statement.format(table=table)), values)

    def _some(self, connection: Connection, dice: random.Random, count: int = 1) -> list[Any]:
        """Rows of the ledger, locked in its order so that writers seldom deadlock."""
        return list(
            connection.execute(
                text(
                    "SELECT id, at FROM ledger WHERE id >= :low ORDER BY id LIMIT :count"
                    " FOR UPDATE SKIP LOCKED"
                ),
                {
                    "low": dice.choice([dice.randrange(1, 3000), 1_000_000 + dice.randrange(500)]),
                    "count": count,
                },
            )
        )

    def _insert(self, connection: Connection, dice: random.Random) -> None:
        number = connection.scalar(text("SELECT nextval('new_ids')"))
        self._both(
            connection,
            "INSERT INTO {table} (id, at, note)"
            " VALUES (:id, CAST(:until AS timestamptz) - :hours * interval '1 h', 'new')",
            id=number,
            until=self.spare,
            hours=dice.randrange(1, 110),
        )

    def _many(self, connection: Connection, dice: random.Random) -> None:
        for _ in range(dice.randrange(2, 6)):
            self._insert(connection, dice)
            self._update(connection, dice)

    def _update(self, connection: Connection, dice: random.Random) -> None:
        for row in self._some(connection, dice, dice.randrange(1, 4)):
            self._both(
                connection,
                "UPDATE {table} SET note = :note WHERE id = :id AND at = :at",
                note=f"u{dice.random()}",
                id=row.id,
                at=row.at,
            )

    def _delete(self, connection: Connection, dice: random.Random) -> None:
        for row in self._some(connection, dice):
            self._both(connection, "DELETE FROM {table} WHERE id = :id AND at = :at", id=row.id, at=row.at)

    def _upsert(self, connection: Connection, dice: random.Random) -> None:
        for row in self._some(connection, dice):
            self._both(
                connection,
                "INSERT INTO {table} (id, at, note) VALUES (:id, :at, 'x')"
                " ON CONFLICT (id, at) DO UPDATE SET note = :note",
                note=f"s{dice.random()}",
                id=row.id,
                at=row.at,
            )

    def _move(self, connection: Connection, dice: random.Random) -> None:
        for row in self._some(connection, dice):
            self._both(
                connection,
                "UPDATE {table} SET at = CAST(:until AS timestamptz) - :hours * interval '1 h'"
                " WHERE id = :id AND at = :at",
                until=self.spare,
                hours=dice.randrange(-20, 110),
                id=row.id,
                at=row.at,
            )

    def _rename(self, connection: Connection, dice: random.Random) -> None:
        for row in self._some(connection, dice):
            number = connection.scalar(text("SELECT nextval('new_ids')"))
            self._both(
                connection,
                "UPDATE {table} SET id = :new WHERE id = :id AND at = :at",
                new=number,
                id=row.id,
                at=row.at,
            )

    def _undo(self, connection: Connection, dice: random.Random) -> None:
        """Change, go back to a savepoint, and change otherwise."""
        for row in self._some(connection, dice):
            nested = connection.begin_nested()
            self._both(connection, "DELETE FROM {table} WHERE id = :id AND at = :at", id=row.id, at=row.at)
            nested.rollback()
        self._insert(connection, dice)


@contextmanager
def at_work(writers: list[Writer]) -> Iterator[None]:
    threads = [threading.Thread(target=writer.work) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for writer in writers:
            writer.stop.set()
        for thread in threads:
            thread.join()
    troubles = [trouble for writer in writers for trouble in writer.trouble]
    assert troubles == [], troubles
