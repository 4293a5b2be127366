"""Maintenance at its times, once across any number of processes, however long the machine sleeps.

APScheduler beats every few seconds, and a beat costs nothing. Whether a run is due is told by
partition_runs and the clock of the database: it is not if one has begun since, in whatever process. So a time
that nobody was there for is made up once, a run that failed is tried again by whoever comes first, and no
process need be sure of its own clock: one that was set, or stood still while the machine slept, is a reason
to look.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy.util import greenlet_spawn

from alembic_partitions.contrib.source import Source
from alembic_partitions.errors import PolicyError
from alembic_partitions.keeper import Keeper

from .beating import Heart
from .duties import Attempt, Duty
from .rhythm import Rhythm, rhythm
from .runs import OnRun, Runs

logger = logging.getLogger("alembic_partitions")

# How far, in seconds, the host's clock may go from the monotonic one in a beat before it has been set, or the
# machine has slept.
_STEP = 2.0
# Seconds until a child of a fork begins: most are gone by then, or are another program.
_AFTER_FORK = 1.0
# Seconds between two checks of alerts; and until the first, if the first run takes longer: it is about to
# make what is lacking.
_ALERTS, _FIRST_CHECK = 300.0, 60.0
# Seconds that a look may take before another one is made, and a check of alerts, which has limits of its own.
_LOOK_WITHIN, _CHECK_WITHIN = 30.0, 900.0
# Seconds that the end waits for what is no run: a look, or a check.
_LOOK_ENDS = 3.0


class Watching(Protocol):
    """What tells people: :class:`alembic_partitions.contrib.alerts.Alerts`.

    It may have a method ``held_back(source)``, too: in how many seconds to check again, 0 for the usual time.
    """

    def check(self, source: Source) -> object:
        """Tell of what is new; sync, or inside SQLAlchemy's greenlet."""


def start(
    keeper: Keeper,
    *,
    every: str | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
    alerts: Watching | None = None,
    on_run: OnRun | None = None,
    ensure_first: bool = False,
    **orders: Any,
) -> Schedule:
    """Maintain the tables of a keeper again and again: at once if a run is overdue, or there was none yet.

    :param every: how long after the begin of the last run the next is due, ``"12h"``: real hours.
    :param cron: five fields, in local time of ``timezone``.
    :param alerts: checked after each run, and every five minutes.
    :param on_run: told of each run of this process.
    :param ensure_first: bring tables to their horizon at the start, if no run is due.
    :param orders: as :meth:`Keeper.maintain` takes them.
    :raises PolicyError: what is told cannot be followed, or this keeper has a schedule already.
    :raises RuntimeError: its engine is async, and no event loop runs.
    """
    if keeper.running:
        raise PolicyError(
            field="start", problem="this keeper has a schedule already", remedy="Call stop() first."
        )
    inspect.signature(keeper.maintain).bind(**orders)
    made = Schedule(
        keeper,
        rhythm(every, cron, timezone),
        orders,
        alerts=alerts,
        on_run=on_run,
        ensure_first=ensure_first,
    )
    made.start()
    return made


class Schedule:
    """What :meth:`Keeper.start` has begun."""

    def __init__(
        self,
        keeper: Keeper,
        rhythm: Rhythm,
        orders: Mapping[str, Any],
        *,
        alerts: Watching | None = None,
        on_run: OnRun | None = None,
        ensure_first: bool = False,
    ) -> None:
        self.rhythm = rhythm
        self._runs = Runs(
            keeper, rhythm, orders, ensure_first=ensure_first, on_run=on_run, after=self._after_run
        )
        self._alerts = alerts
        self._source = Source(keeper)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renew()

    def _renew(self) -> None:
        self._heart: Heart | None = None
        self._work = Duty("partition run", self._run_if_due, _LOOK_WITHIN)
        self._checks = Duty("partition alerts", self._check_alerts, _CHECK_WITHIN)
        self._checks.due_at = time.monotonic() + _FIRST_CHECK
        self._has_looked = False
        self._duties = [self._work, *([self._checks] if self._alerts is not None else [])]
        self._seen = time.time(), time.monotonic()

    @property
    def next_run(self) -> datetime | None:
        """When the next run is due, as of the last look."""
        return self._runs.next_run

    # -- its life --------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._heart is not None

    def start(self) -> None:
        """Begin to beat: in a thread, or on the running event loop for an async engine."""
        self._loop = asyncio.get_running_loop() if self._source.is_async else None
        logger.info("partition schedule started: %s", self.rhythm)
        self._heart = Heart(self.beat, self.seconds_to_beat, self._loop)
        _running.add(self)

    def stop(self, timeout: float) -> None:
        """End it. A run that is under way may end within so many seconds; then it is left to itself."""
        if not self._shut():
            return
        until = _until(timeout)
        for duty, attempt in self._at_it():
            thread = attempt.doing
            if isinstance(thread, threading.Thread) and thread is not threading.current_thread():
                thread.join(until(attempt))
                if thread.is_alive():
                    logger.warning("partition schedule stopped; its %s goes on", duty.what)
        logger.info("partition schedule stopped")

    async def astop(self, timeout: float) -> None:
        """End it, on its event loop. A run that is under way is cut off after so many seconds."""
        if not self._shut():
            return
        await asyncio.sleep(0)  # the scheduler ends on the loop's next turn
        until = _until(timeout)
        for duty, attempt in self._at_it():
            task = attempt.doing
            if isinstance(task, asyncio.Future) and task is not asyncio.current_task():
                _, late = await asyncio.wait({task}, timeout=until(attempt))
                if late:
                    task.cancel()
                    logger.warning("partition schedule stopped; its %s was cut off", duty.what)
                    await asyncio.wait(late, timeout=_LOOK_ENDS)
        logger.info("partition schedule stopped")

    def _at_it(self) -> list[tuple[Duty, Attempt]]:
        """Return who is at something, and let nobody begin another run."""
        ended = [(duty, duty.end()) for duty in self._duties]
        return [(duty, attempt) for duty, attempt in ended if attempt is not None]

    def _shut(self) -> bool:
        _running.discard(self)
        heart, self._heart = self._heart, None
        if heart is None:
            return False
        heart.stop()
        return True

    def after_fork(self) -> None:
        """Go on in a child, with nothing of its parent's; an event loop is not there any more."""
        self._renew()
        if self._source.is_async:
            _running.discard(self)
            return
        self._work.due_at = time.monotonic() + _AFTER_FORK
        self.start()

    # -- a beat ----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Begin what is due. Never waits."""
        wall, monotonic = time.time(), time.monotonic()
        was_wall, was_monotonic = self._seen
        self._seen = wall, monotonic
        jumped = abs((wall - was_wall) - (monotonic - was_monotonic)) > _STEP
        for duty in self._duties:
            if duty.give_up_what_hangs() and not self._has_looked:
                self._check_soon()
            if not duty.busy and (jumped or monotonic >= duty.due_at):
                duty.begin(self._begin)

    def seconds_to_beat(self) -> float:
        """Return when the next beat is wanted at the latest."""
        due = min((duty.due_at for duty in self._duties if not duty.busy), default=math.inf)
        return due - time.monotonic()

    def _begin(self, attempt: Attempt) -> None:
        if self._loop is not None:
            attempt.doing = self._loop.create_task(greenlet_spawn(attempt.run))
        else:
            # A daemon: it does not keep a process alive that is done.
            thread = threading.Thread(target=attempt.run, name="alembic_partitions schedule", daemon=True)
            attempt.doing = thread
            thread.start()

    # -- what it does ----------------------------------------------------------------------------------

    def _run_if_due(self, attempt: Attempt) -> float:
        try:
            return self._runs.run_if_due(attempt.at_work)
        finally:
            if not self._has_looked:
                self._check_soon()

    def _after_run(self) -> None:
        self._source.forget()
        self._check_soon()

    def _check_soon(self) -> None:
        self._has_looked = True
        self._checks.due_at = 0.0

    def _check_alerts(self, attempt: Attempt) -> float:
        assert self._alerts is not None
        try:
            self._alerts.check(self._source)
        except Exception as error:  # noqa: BLE001
            # Only its kind: its text may hold the address of a notifier, which is a secret.
            logger.warning("partition alerts: %s", type(error).__name__)
            return _ALERTS
        held_back = getattr(self._alerts, "held_back", None)
        return min(_ALERTS, held_back(self._source) or _ALERTS) if held_back is not None else _ALERTS


def _until(timeout: float) -> Callable[[Attempt], float]:
    """Return how to tell how many seconds are left to wait for an attempt: long only for a run."""
    began = time.monotonic()

    def left(attempt: Attempt) -> float:
        most = timeout if attempt.is_at_work else min(timeout, _LOOK_ENDS)
        return max(began + most - time.monotonic(), 0)

    return left


_running: set[Schedule] = set()


def _after_fork() -> None:
    for schedule in list(_running):
        schedule.after_fork()


def _at_exit() -> None:
    for schedule in list(_running):
        with suppress(Exception):  # an event loop that is closed
            schedule._shut()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
