"""Asking a database that may never answer: it is given up after a while."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from typing import TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

#: Seconds that one call may take.
ANSWER_WITHIN = 30.0
# While calls hang no other one is begun for ever longer, doubling, and for so many seconds at most.
_LONGEST_REST = 3600.0

T = TypeVar("T")


class Patience:
    """Calls what asks a database. What is given up is cancelled on an event loop, else left in its thread."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget what hung in the process that this one was forked from."""
        self._hanging: list[Future[object]] = []
        self._not_before = 0.0

    def __call__(self, work: Callable[[], T], in_loop: bool) -> T:
        """Return what ``work`` returns, or raise what it raises.

        :param in_loop: whether we are in SQLAlchemy's greenlet.
        :raises TimeoutError: there is no answer.
        """
        if in_loop:
            return await_only(_answer(work))
        self._hanging = [one for one in self._hanging if not one.done()]
        if self._hanging and time.monotonic() < self._not_before:
            raise TimeoutError("no answer to earlier looks, which still wait for it")
        future: Future[T] = Future()
        target, arguments = copy_context().run, (_work, future, work)
        # A daemon: it does not keep a process alive that is done.
        threading.Thread(target=target, args=arguments, name="alembic_partitions look", daemon=True).start()
        wait([future], ANSWER_WITHIN)
        if not future.done():
            self._hanging.append(future)  # type: ignore[arg-type]
            rest = min(ANSWER_WITHIN / 4 * 2 ** len(self._hanging), _LONGEST_REST)
            self._not_before = time.monotonic() + rest
            raise _no_answer()
        return future.result()


def _work(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  # raised where it is waited for
        future.set_exception(error)


async def _answer(work: Callable[[], T]) -> T:
    task = asyncio.ensure_future(greenlet_spawn(work))
    try:
        await asyncio.wait({task}, timeout=ANSWER_WITHIN)
        if not task.done():
            raise _no_answer()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_seen)


def _seen(task: asyncio.Future[T]) -> None:
    """Take note of what it raised, so that asyncio does not complain that nobody has."""
    if not task.cancelled():
        task.exception()


def _no_answer() -> TimeoutError:
    return TimeoutError(f"no answer within {ANSWER_WITHIN:g} s")
