"""All that is APScheduler's: its reading of cron, and a heart on its schedulers that no clock stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from alembic_partitions.errors import ExtraMissing

try:
    from apscheduler.executors.debug import DebugExecutor  # type: ignore[import-untyped]
    from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]
    from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]
    from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]
    from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]
except ImportError:  # release 4 has them elsewhere
    raise ExtraMissing(what="A schedule", package="APScheduler 3", extra="schedule") from None

__all__ = ["BEAT", "CronTrigger", "Heart"]

#: Seconds between two beats, at most.
BEAT = 15.0
_SHORTEST = 0.01

_NAME = "alembic_partitions"


class Heart:
    """Calls ``beat`` again and again: in a daemon thread, or on an event loop.

    :param beat: never waits.
    :param wanted_in: returns in how many seconds the next beat is wanted.
    """

    def __init__(
        self,
        beat: Callable[[], None],
        wanted_in: Callable[[], float],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = loop
        kind = _Background if loop is None else _OnLoop
        options = {} if loop is None else {"event_loop": loop}
        # At INFO it would tell of every beat.
        for name in ("scheduler", "executors"):
            logging.getLogger(f"apscheduler.{name}.{_NAME}").setLevel(logging.WARNING)
        self._scheduler = kind(
            # Beats are too short for a pool of threads, which keeps a process alive that is done.
            executors={_NAME: DebugExecutor()},
            logger=logging.getLogger(f"apscheduler.scheduler.{_NAME}"),
            timezone=timezone.utc,
            **options,
        )
        self._scheduler.add_job(
            beat,
            _Wanted(wanted_in),
            executor=_NAME,
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
        )
        self._scheduler.start()

    def stop(self) -> None:
        """Beat no more; on an event loop from its next turn on."""
        if self._loop is not None and self._loop.is_closed():
            return
        self._scheduler.shutdown(wait=False)


class _Wanted(BaseTrigger):  # type: ignore[misc]
    def __init__(self, wanted_in: Callable[[], float]) -> None:
        self._wanted_in = wanted_in

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now + timedelta(seconds=min(max(self._wanted_in(), _SHORTEST), BEAT))


class _Steady:
    """A scheduler whose host's clock may be set back: left to itself it would sleep for as long."""

    def _process_jobs(self) -> float:
        scheduler: Any = self
        latest = datetime.now(timezone.utc) + timedelta(seconds=BEAT)
        for job in scheduler.get_jobs():
            if job.next_run_time > latest:
                job.modify(next_run_time=latest)
        wait: float | None = super()._process_jobs()  # type: ignore[misc]
        return BEAT if wait is None else min(wait, BEAT)


class _Background(_Steady, BackgroundScheduler):  # type: ignore[misc]
    pass


class _OnLoop(_Steady, AsyncIOScheduler):  # type: ignore[misc]
    pass
