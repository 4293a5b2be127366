"""Calls that may never end: each is waited for so long, then given up, and another one begins."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable

from sqlalchemy.util import await_only, greenlet_spawn

#: Seconds after which a call is given up. It may go on: a thread cannot be ended.
PATIENCE = 30.0
# So many may hang, each begun as soon as the one before is given up; then ever more rarely: a connection that
# is dead for days leaves a few dozen of them, and is asked again within the hour.
_FEW, _RAREST = 3, 3600.0


def next_after(hanging: int) -> float:
    """Return how many seconds after the last call another may begin, where so many have not ended."""
    return min(PATIENCE * 2.0 ** min(max(0, hanging - _FEW), 20), _RAREST)


class Call:
    """Work under way: in a thread that keeps no process alive, or as a task of an event loop.

    :param is_async: whether this is within SQLAlchemy's greenlet, as ``work`` is to be.
    :param patience: seconds until it is given up, in place of :data:`PATIENCE`.
    """

    def __init__(self, work: Callable[[], None], is_async: bool, patience: float | None = None) -> None:
        self.began = time.monotonic()
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        if is_async:
            self._task = asyncio.get_running_loop().create_task(greenlet_spawn(work))
            return
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(work)
            finally:
                self._ended.set()

        threading.Thread(target=run, name="alembic_partitions", daemon=True).start()

    @property
    def is_under_way(self) -> bool:
        """Whether it has not ended. One of another event loop is none of ours."""
        if self._task is None:
            return not self._ended.is_set()
        return not self._task.done() and self._task.get_loop() is asyncio.get_running_loop()

    @property
    def left(self) -> float:
        """Seconds until it is given up; none or fewer where it is."""
        return self.began + (PATIENCE if self._patience is None else self._patience) - time.monotonic()

    def wait(self) -> bool:
        """Wait until it ends; return whether it did before it was to be given up.

        A task is cancelled then, which ends what it waits for.
        """
        if self._task is None:
            return self._ended.wait(max(self.left, 0))
        await_only(asyncio.wait({self._task}, timeout=max(self.left, 0)))
        if not self._task.done():
            self.cancel()
            return False
        return True

    def cancel(self) -> None:
        """End what a task waits for; a thread goes on."""
        if self._task is not None:
            self._task.cancel()
