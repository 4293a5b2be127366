"""What a schedule does again and again, in a thread or a task of its own, and how it is given up.

A connection that never answers holds whoever looks for good; so an attempt that takes too long is left to
itself, and another is made. A run that is under way is none of that: it may take hours.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from alembic_partitions.talk import explain

logger = logging.getLogger("alembic_partitions")

#: Says that a run is under way as long as it is entered.
AtWork: TypeAlias = "Callable[[], AbstractContextManager[None]]"

# After an attempt that failed as a whole, as over a dead database: seconds, doubling.
FIRST_BACK_OFF, _LONGEST_BACK_OFF = 5.0, 300.0
# No attempt is waited for any longer, in seconds, however many hang.
_LONGEST_PATIENCE = 3600.0


class GivenUp(Exception):
    """This attempt is to do no more: another one may be at it, or all is to end."""


class Attempt:
    """One time that a duty is done."""

    def __init__(self, duty: Duty) -> None:
        self.doing: threading.Thread | asyncio.Future[None] | None = None
        self.is_at_work = False
        #: When it began, or its last work ended, on the monotonic clock.
        self.since = time.monotonic()
        #: Whether another one may be at it; and whether all is to end.
        self.given_up = self.is_ending = False
        self._duty = duty

    def run(self) -> None:
        """Do it. Nothing that goes wrong here ends the schedule."""
        self._duty.do(self)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Work as long as it takes.

        :raises GivenUp: this attempt is to begin nothing any more.
        """
        with self._duty.lock:
            self._go_on()
            self.is_at_work = True
        try:
            yield
        finally:
            with self._duty.lock:
                self.is_at_work, self.since = False, time.monotonic()
        self._go_on()

    def _go_on(self) -> None:
        if self.given_up or self.is_ending:
            raise GivenUp


class Duty:
    """Work that comes back, at most once at a time; ``work`` returns the seconds until it is due again.

    :param patience: seconds that an attempt may take beside its work; the more hang, the longer.
    """

    def __init__(self, what: str, work: Callable[[Attempt], float], patience: float) -> None:
        self.what = what
        self.due_at = 0.0  # on the monotonic clock
        self.lock = threading.Lock()
        self.current: Attempt | None = None
        self._work = work
        self._patience = patience
        self._hanging: set[Attempt] = set()
        self._back_off = FIRST_BACK_OFF

    @property
    def busy(self) -> bool:
        """Whether somebody is at it who has not been given up."""
        return self.current is not None

    def begin(self, spawn: Callable[[Attempt], None]) -> None:
        """Let somebody do it.

        :raises RuntimeError: no thread is to be had; it is tried again.
        """
        attempt = self.current = Attempt(self)
        self.due_at = math.inf
        try:
            spawn(attempt)
        except RuntimeError:
            self.current, self.due_at = None, time.monotonic() + FIRST_BACK_OFF
            raise

    def do(self, attempt: Attempt) -> None:
        wait = self._back_off
        try:
            wait = self._work(attempt)
            self._back_off = FIRST_BACK_OFF
        except GivenUp:
            pass
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            if not attempt.given_up:
                logger.warning("%s: %s; next try in %g s", self.what, explain(error), wait)
                self._longer()
        finally:
            with self.lock:
                self._hanging.discard(attempt)
                if attempt is self.current:
                    self.current = None
                    # It may have been asked for meanwhile.
                    self.due_at = min(self.due_at, time.monotonic() + wait)

    def give_up_what_hangs(self) -> bool:
        """Leave an attempt to itself that has not ended for too long; return whether there was one."""
        with self.lock:
            attempt, now = self.current, time.monotonic()
            patience = min(self._patience * 2 ** len(self._hanging), _LONGEST_PATIENCE)
            if attempt is None or attempt.is_at_work or now < attempt.since + patience:
                return False
            attempt.given_up = True
            self._hanging.add(attempt)
            self.current = None
            wait = self._back_off
            self.due_at = min(self.due_at, now + wait)
        logger.warning("%s: no answer for %g s; next try in %g s", self.what, patience, wait)
        self._longer()
        if isinstance(attempt.doing, asyncio.Future):
            attempt.doing.cancel()
        return True

    def end(self) -> Attempt | None:
        """See to it that nothing is begun any more; return who is at it."""
        with self.lock:
            if self.current is not None:
                self.current.is_ending = True
            return self.current

    def _longer(self) -> None:
        self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF)
