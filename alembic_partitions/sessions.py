"""Second connections: opened the way the application opens its own, and closed after use.

Neither the hooks nor the upgrade lock may borrow from the application's pool (a pool of one would wait for
itself), yet both must reach the same database with the same credentials, ``connect_args``, ``creator`` and
listeners. One code path serves sync and async engines: with an async driver every call here runs inside
SQLAlchemy's greenlet.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only


def side_engine(engine: Engine, url: str | URL | None = None) -> Engine:
    """Return an engine without a pool, on the same driver.

    Without ``url`` it connects exactly as ``engine`` does, its pool's listeners included. With ``url`` it
    connects there (as a role of its own), through the driver of ``engine`` whatever driver the URL names:
    a synchronous driver inside an event loop would stall the loop.
    """
    if url is None:
        # The creator holds connect_args, a user's creator= and do_connect listeners alike; the dispatch
        # holds "connect" and "checkout" listeners, which may SET ROLE.
        creator = engine.pool._creator  # noqa: SLF001
        pool = NullPool(creator, dialect=engine.dialect, _dispatch=engine.pool.dispatch)
        return Engine(pool, engine.dialect, engine.url, hide_parameters=engine.hide_parameters)
    target = make_url(url).set(drivername=f"postgresql+{engine.dialect.driver}")
    if not engine.dialect.is_async:
        return create_engine(target, poolclass=NullPool)
    from sqlalchemy.ext.asyncio import create_async_engine  # not everybody has greenlet installed

    return create_async_engine(target, poolclass=NullPool).sync_engine


@contextmanager
def side_connection(engine: Engine, url: str | URL | None = None) -> Iterator[Connection]:
    """Open a connection of :func:`side_engine` for the length of a ``with`` block.

    At READ COMMITTED, whatever the application's own level: in AUTOCOMMIT a transaction of ours would be
    none, and above READ COMMITTED it would not see what a competitor has just committed.
    """
    with side_engine(engine, url).connect() as connection:
        yield connection.execution_options(isolation_level="READ COMMITTED")


def pause(connection: Connection, seconds: float) -> None:
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

    @contextmanager
    def __call__(self, wait: bool = True) -> Iterator[bool]:
        """Yield whether it is our turn; with ``wait`` it always is, in the end."""
        if os.getpid() != self._pid:  # after fork the lock may be held by a thread that is not here
            self._renew()
        if self._is_async:
            lock = self._loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())
            if lock.locked() and not wait:
                yield False
                return
            await_only(lock.acquire())
            try:
                yield True
            finally:
                lock.release()
        elif not self._lock.acquire(blocking=wait):
            yield False
        else:
            try:
                yield True
            finally:
                self._lock.release()
