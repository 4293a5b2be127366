"""Asking a database that may never answer: it is given up after a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from alembic_partitions.contrib.calls import Call

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
        self._hanging: list[Call] = []
        self._not_before = 0.0

    def __call__(self, work: Callable[[], T], in_loop: bool) -> T:
        """Return what ``work`` returns, or raise what it raises.

        :param in_loop: whether we are in SQLAlchemy's greenlet.
        :raises TimeoutError: there is no answer.
        """
        self._hanging = [call for call in self._hanging if call.is_under_way]
        if self._hanging and time.monotonic() < self._not_before:
            raise TimeoutError("no answer to earlier looks, which still wait for it")
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(work())
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                answer.set_exception(error)

        call = Call(ask, in_loop, ANSWER_WITHIN)
        try:
            answered = call.wait()
        except BaseException:  # who waits is cancelled, and with it what it waits for
            call.cancel()
            raise
        if not answered:
            if not in_loop:
                self._hanging.append(call)
                rest = min(ANSWER_WITHIN / 4 * 2 ** len(self._hanging), _LONGEST_REST)
                self._not_before = time.monotonic() + rest
            raise TimeoutError(f"no answer within {ANSWER_WITHIN:g} s")
        return answer.result()
