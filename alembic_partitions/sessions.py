"""Second connections: opened the way the application opens its own, and closed after use.

Neither the hooks nor the upgrade lock may borrow from the application's pool (a pool of one would wait for
itself), yet both must reach the same database with the same credentials, ``connect_args``, ``creator`` and
listeners. One code path serves sync and async engines: with an async driver every call here runs inside
SQLAlchemy's greenlet.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

from .drivers import connect_arguments, sqlstate_of

# How long a server that has refused a connection is left alone at first, in seconds; doubling.
_FIRST_WAIT = 0.1


def side_engine(engine: Engine) -> Engine:
    """Return an engine without a pool that connects as ``engine`` does, its pool's listeners included."""
    # The creator holds connect_args, a user's creator= and do_connect listeners alike; the dispatch holds
    # "connect" and "checkout" listeners, which may SET ROLE.
    creator = engine.pool._creator  # noqa: SLF001
    pool = NullPool(creator, dialect=engine.dialect, _dispatch=engine.pool.dispatch)
    return Engine(pool, engine.dialect, engine.url, hide_parameters=engine.hide_parameters)


def dedicated_engine(engine: Engine, url: str | URL, connect_timeout: float) -> Engine:
    """Return an engine for a role of its own, on the driver of ``engine`` whatever driver the URL names.

    A synchronous driver inside an event loop would stall the loop. Of the options of ``engine`` none carries
    over: what the connection needs (``sslmode``...) stands in the URL.

    :param connect_timeout: seconds after which a host that does not answer is given up, unless the URL says.
    :raises sqlalchemy.exc.ArgumentError: the URL is none.
    """
    driver = engine.dialect.driver
    target = make_url(url).set(drivername=f"postgresql+{driver}")
    arguments = connect_arguments(driver, target.query, connect_timeout)
    if not engine.dialect.is_async:
        return create_engine(target, poolclass=NullPool, connect_args=arguments)
    from sqlalchemy.ext.asyncio import create_async_engine  # not everybody has greenlet installed

    return create_async_engine(target, poolclass=NullPool, connect_args=arguments).sync_engine


@contextmanager
def side_connection(engine: Engine, give_up_at: float = 0.0) -> Iterator[Connection]:
    """Open a connection of :func:`side_engine` for the length of a ``with`` block.

    At READ COMMITTED, whatever the application's own level: in AUTOCOMMIT a transaction of ours would be
    none, and above READ COMMITTED it would not see what a competitor has just committed.

    :param give_up_at: ``time.monotonic()`` until which a server that refuses is asked again: all its
        connections may be taken for a moment.
    """
    with _connected(side_engine(engine), give_up_at) as connection:
        set_level(connection, "READ COMMITTED")
        with kept_at(connection, "READ COMMITTED"):
            yield connection


def set_level(connection: Connection, level: str) -> None:
    """Set the isolation level, for which a driver may send something.

    :raises sqlalchemy.exc.OperationalError: it could not, in place of the driver's own error, which
        SQLAlchemy lets through here; the connection is invalidated then, as after a statement.
    """
    try:
        connection.execution_options(isolation_level=level)
    except connection.dialect.loaded_dbapi.Error as error:
        connection.invalidate(error)
        told = f"(isolation level {level})"
        raise OperationalError(told, None, error, connection_invalidated=True) from error


@contextmanager
def kept_at(connection: Connection, level: str) -> Iterator[None]:
    """Have whatever connection is opened in the stead of one that has died be at the same isolation level."""
    at = connection.connection.dbapi_connection

    def again(connection: Connection) -> None:
        nonlocal at
        opened = connection.connection.dbapi_connection
        if opened is not at:
            set_level(connection, level)
            at = opened

    event.listen(connection, "begin", again)
    try:
        yield
    finally:
        event.remove(connection, "begin", again)


@contextmanager
def at_level(connection: Connection, level: str, before: str) -> Iterator[None]:
    """Be at an isolation level, and afterwards again at the one before.

    :param connection: not in a transaction.
    """
    set_level(connection, level)
    try:
        yield
    except BaseException:
        with suppress(SQLAlchemyError):  # what went wrong is what to tell
            _back(connection, before)
        raise
    _back(connection, before)


def _level(connection: Connection) -> str:
    told = connection.get_execution_options().get("isolation_level") or connection.default_isolation_level
    return told or "READ COMMITTED"


def _back(connection: Connection, level: str) -> None:
    if connection.in_transaction():  # SQLAlchemy's own; the server may know of none
        connection.rollback()
    if not connection.invalidated:  # one that is opened in its stead is at the engine's own
        set_level(connection, level)


# What will not be otherwise in a moment: the role or its password, the database.
_FOR_GOOD = ("28", "3D")


def _connected(engine: Engine, give_up_at: float) -> Connection:
    wait = _FIRST_WAIT
    while True:
        try:
            return engine.connect()
        except Exception as error:  # a driver raises its own, unwrapped, while it connects
            left = give_up_at - time.monotonic()
            if left <= 0 or (sqlstate_of(getattr(error, "orig", error)) or "")[:2] in _FOR_GOOD:
                raise
        pause(engine, min(random.uniform(wait / 2, wait), left))
        wait *= 2


@contextmanager
def autocommit(connection: Connection) -> Iterator[None]:
    """Send statements without a transaction: what PostgreSQL runs in none.

    :param connection: not in a transaction.
    """
    with at_level(connection, "AUTOCOMMIT", _level(connection)):
        yield


def in_autocommit(connection: Connection) -> bool:
    """Tell whether statements are committed one by one; the engine's own setting shows on the driver's
    connection alone."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


@contextmanager
def own_transactions(connection: Connection) -> Iterator[None]:
    """See to it that a transaction is one, and sees what others have just committed: in AUTOCOMMIT no
    time-out would hold, and above READ COMMITTED a lock is had later than the snapshot.

    :param connection: not in a transaction.
    """
    before = "AUTOCOMMIT" if in_autocommit(connection) else _level(connection)
    with at_level(connection, "READ COMMITTED", before), kept_at(connection, "READ COMMITTED"):
        yield


def pause(connection: Connection | Engine, seconds: float) -> None:
    """Sleep without stalling the event loop that an async driver's connection runs in."""
    if connection.dialect.is_async:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


class Turn:
    """One DDL connection a process at a time: a lock for threads, or one for the tasks of an event loop."""

    def __init__(self, is_async: bool) -> None:
        self._is_async = is_async
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    def taker(self) -> int:
        """Return who takes turns here: the thread, or the task of an event loop."""
        return id(asyncio.current_task()) if self._is_async else threading.get_ident()

    @contextmanager
    def __call__(self, timeout: float | None = None) -> Iterator[bool]:
        """Yield whether it is our turn.

        :param timeout: seconds to wait for it; ``None`` waits until it is, 0 does not wait.
        """
        if os.getpid() != self._pid:  # after fork the lock may be held by a thread that is not here
            self._renew()
        if self._is_async:
            lock: asyncio.Lock | threading.Lock
            lock = self._loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())
            ours = bool(await_only(_acquired(lock, timeout)))
        else:
            lock = self._lock
            ours = lock.acquire(timeout=-1 if timeout is None else max(timeout, 0))
        try:
            yield ours
        finally:
            if ours:
                lock.release()


async def _acquired(lock: asyncio.Lock, timeout: float | None) -> bool:
    if timeout == 0 and lock.locked():
        return False
    try:
        return await asyncio.wait_for(lock.acquire(), timeout or None)
    except asyncio.TimeoutError:
        return False
