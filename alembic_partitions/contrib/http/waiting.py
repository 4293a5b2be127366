"""Waiting for what may hang: one call at a time, each wait bounded, no thread that keeps a process alive."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from alembic_partitions.contrib.calls import next_after

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Call ``work`` in a thread of its own. The process may end while it runs; ``to_thread`` would wait."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def deliver(settle: Callable[[Any], None], value: object) -> None:
        if not result.done():
            settle(value)

    def run() -> None:
        settle: Callable[[Any], None]
        value: object
        try:
            settle, value = result.set_result, context.run(work)
        except BaseException as error:  # noqa: BLE001  # raised where the result is awaited
            settle, value = result.set_exception, error
        with suppress(RuntimeError):  # the loop has ended: nobody waits
            loop.call_soon_threadsafe(deliver, settle, value)

    threading.Thread(target=run, name="alembic_partitions", daemon=True).start()
    return await result


class Single(Generic[T]):
    """A call that is made once at a time: who asks meanwhile waits for the same answer.

    One that does not end is given up in the end, and another one begins.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._going: list[tuple[float, asyncio.Task[T]]] = []

    async def __call__(self, patience: float) -> T:
        """Return the answer.

        :param patience: seconds to wait; the call goes on after that, and whoever asks next waits for it.
        :raises asyncio.TimeoutError: there is none by then.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        self._going = [(at, t) for at, t in self._going if not t.done() and t.get_loop() is loop]
        if not self._going or now - self._going[-1][0] >= next_after(len(self._going)):
            begun = loop.create_task(self._awaited())
            begun.add_done_callback(seen)
            self._going.append((now, begun))
        _, task = self._going[-1]
        return await asyncio.wait_for(asyncio.shield(task), patience)

    async def _awaited(self) -> T:
        return await self._call()


def seen(task: asyncio.Task[Any]) -> None:
    """Let nobody be told of an error that nobody waited for."""
    if not task.cancelled():
        task.exception()
