"""The migration lock and the run lock: advisory locks that an idle transaction holds on its own connection.

A transaction's lock, not a session's: through a pooler in transaction mode a session's lock would be left
with whoever comes next, and exclude nobody. And it lasts exactly as long as the transaction answers. Idle at
READ COMMITTED that transaction has no snapshot, so CREATE INDEX CONCURRENTLY does not wait for it; whoever
wants the lock polls, and holds nothing in between.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import BigInteger, Connection, Engine, cast, column, func, literal, select, table

from . import sessions
from .errors import RunUnderWay, UpgradeLockLost

_LOCKS = table(
    "pg_locks",
    *map(column, ("locktype", "database", "classid", "objid", "objsubid", "pid", "granted")),
)
_SESSIONS = table(
    "pg_stat_activity",
    *map(column, ("pid", "usename", "application_name", "xact_start", "backend_start")),
)
_DATABASES = table("pg_database", *map(column, ("oid", "datname")))


def upgrade_lock_key(
    database: str, version_table: str = "alembic_version", version_table_schema: str | None = None
) -> int:
    """Return the key of the advisory lock that a migration holds, for scripts that want to see or take it.

    It is the first 8 bytes, signed, of the SHA-256 of four lines: ``alembic_partitions upgrade``, the
    database, the schema (empty for ``None``), the version table.

    :param database: name of the database, as ``current_database()`` has it.
    :param version_table: Alembic's ``version_table``.
    :param version_table_schema: Alembic's ``version_table_schema``.
    """
    return _key("alembic_partitions upgrade", database, version_table_schema or "", version_table)


def _key(*lines: str) -> int:
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big", signed=True)


def answer(connection: Connection) -> None:
    """Have PostgreSQL answer within the transaction, and keep no snapshot of it.

    A savepoint needs none. A SELECT does, and asyncpg would keep its portal, and with it the snapshot, open
    until the next statement.
    """
    with connection.begin_nested():
        pass


class HeldLock:
    """A lock that lasts as long as its transaction, on a connection opened as ``engine`` opens its own."""

    def __init__(self, engine: Engine, key_in: Callable[[str], int]) -> None:
        self.exclusive = False
        self._session = sessions.side_engine(engine).connect()
        try:
            sessions.set_level(self._session, "READ COMMITTED")
            self.database = str(self._session.scalar(select(func.current_database())))
        except BaseException:
            self._session.close()
            raise
        self._key = key_in(self.database)
        self._settings = _settings(self._session)

    def take(self, shared: bool = False) -> bool:
        """Take the lock if it is free; return whether it is ours."""
        function = func.pg_try_advisory_xact_lock_shared if shared else func.pg_try_advisory_xact_lock
        taken = bool(self._session.scalar(select(function(literal(self._key, BigInteger)), *self._settings)))
        if taken:
            answer(self._session)
        else:
            self.give_back()
        self.exclusive = taken and not shared
        return taken

    def check(self) -> None:
        """Make sure that the lock is still ours.

        :raises UpgradeLockLost: it is not, or nobody can tell.
        """
        try:
            answer(self._session)
        except Exception as error:
            raise UpgradeLockLost(database=self.database) from error

    def pause(self, seconds: float) -> None:
        """Wait without stalling an event loop."""
        sessions.pause(self._session, seconds)

    def give_back(self) -> None:
        """Let go of the lock, and keep the connection."""
        self.exclusive = False
        self._session.rollback()

    def let_go(self) -> None:
        """Let go of the lock and the connection. Never fails: a session that has died holds nothing."""
        with suppress(Exception):
            try:
                self.give_back()  # answered when the lock is gone; close() does not wait
            except Exception:
                self._session.invalidate()
                raise
            finally:
                self._session.close()

    def holders(self) -> str:
        """Say who holds the lock, as far as this role may see."""
        key = self._key % 2**64
        since = func.coalesce(_SESSIONS.c.xact_start, _SESSIONS.c.backend_start)
        rows = self._session.execute(
            select(_LOCKS.c.pid, _SESSIONS.c.application_name, _SESSIONS.c.usename, since.label("since"))
            .join_from(_LOCKS, _DATABASES, _DATABASES.c.oid == _LOCKS.c.database)
            .outerjoin(_SESSIONS, _SESSIONS.c.pid == _LOCKS.c.pid)
            .where(_LOCKS.c.locktype == "advisory", _LOCKS.c.objsubid == 1, _LOCKS.c.granted)
            .where(_DATABASES.c.datname == self.database)
            .where(cast(_LOCKS.c.classid, BigInteger) == literal(key >> 32, BigInteger))
            .where(cast(_LOCKS.c.objid, BigInteger) == literal(key & 0xFFFFFFFF, BigInteger))
            .order_by(since, _LOCKS.c.pid)
        ).all()
        self._session.rollback()
        told = [
            f"process {row.pid} ({row.application_name or row.usename}), since {row.since or 'unknown'}"
            for row in rows[:3]
        ]
        return "; ".join(told) or "let go of just now"


class UpgradeLock(HeldLock):
    """The lock of one version table."""

    def __init__(self, engine: Engine, version_table: str, version_table_schema: str | None) -> None:
        super().__init__(engine, lambda name: upgrade_lock_key(name, version_table, version_table_schema))


@contextmanager
def one_run(engine: Engine, config_schema: str, patience: float = 60.0) -> Iterator[HeldLock]:
    """Let one run at a time remove, move or mend partitions of what one partition_config manages.

    :param patience: seconds to wait for another run to end.
    :raises RunUnderWay: it did not.
    """
    with _one(engine, ("alembic_partitions run", config_schema), patience) as lock:
        yield lock


@contextmanager
def one_job(engine: Engine, config_schema: str, patience: float = 0.0) -> Iterator[HeldLock]:
    """Let one process at a time do, as a whole, what somebody asks for over the network.

    :param patience: seconds to wait for another job to end.
    :raises RunUnderWay: it did not.
    """
    with _one(engine, ("alembic_partitions job", config_schema), patience) as lock:
        yield lock


@contextmanager
def one_schedule(engine: Engine, config_schema: str) -> Iterator[HeldLock]:
    """Let one process at a time find that a run is due, and do it.

    :raises RunUnderWay: another one is at it.
    """
    with _one(engine, ("alembic_partitions schedule", config_schema), 0.0) as lock:
        yield lock


@contextmanager
def one_conversion(engine: Engine, table: str, patience: float = 2.0) -> Iterator[HeldLock]:
    """Let one process at a time convert a table, which may take hours that no other run is to wait for.

    :param patience: seconds to wait for another one to end.
    :raises RunUnderWay: it did not.
    """
    with _one(engine, ("alembic_partitions conversion", table), patience) as lock:
        yield lock


@contextmanager
def _one(engine: Engine, what: tuple[str, str], patience: float) -> Iterator[HeldLock]:
    lock = HeldLock(engine, lambda database: _key(what[0], database, what[1]))
    try:
        deadline, wait = time.monotonic() + patience, 0.05
        while not lock.take():
            if time.monotonic() + wait > deadline:
                raise RunUnderWay(database=lock.database, seconds=patience, holder=lock.holders())
            lock.pause(wait)
            wait = min(wait * 1.5, 1.0)
        yield lock
    finally:
        lock.let_go()


def _settings(connection: Connection) -> list[Any]:
    """Return what switches the time-outs of a transaction off, and tells an operator what it is for."""
    values = {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "application_name": f"alembic-partitions lock {socket.gethostname()}"[:63],
    }
    if (connection.dialect.server_version_info or ()) >= (17,):
        values["transaction_timeout"] = "0"
    return [func.set_config(name, value, True) for name, value in values.items()]
