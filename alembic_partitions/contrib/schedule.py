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
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol, TypeAlias

from apscheduler.executors.debug import DebugExecutor  # type: ignore[import-untyped]
from apscheduler.schedulers.asyncio import AsyncIOScheduler  # type: ignore[import-untyped]
from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]
from apscheduler.triggers.base import BaseTrigger  # type: ignore[import-untyped]
from sqlalchemy.util import await_only, greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.errors import PolicyError, RunUnderWay
from alembic_partitions.keeper import Keeper
from alembic_partitions.locks import one_run, one_schedule
from alembic_partitions.maintenance import Report, Standing
from alembic_partitions.sessions import side_connection
from alembic_partitions.talk import explain

from .rhythm import Rhythm, rhythm
from .source import Source

logger = logging.getLogger("alembic_partitions")

#: Told how a run went: its report, or what it failed over. For an AsyncKeeper it may be a coroutine function.
OnRun: TypeAlias = "Callable[[Report | None, Exception | None], object]"

# Seconds, at most, between two beats.
BEAT = 15.0
# How far, in seconds, the host's clock may go from the monotonic one in a beat before it has been set, or the
# machine has slept.
_STEP = 2.0
# Seconds between two looks at the database, at most: the rhythm is by its clock.
_LONGEST_WAIT = 3600.0
# Seconds until the next look while there is nothing to maintain; while another process is at it; while
# somebody splits or mends.
_UNREADY, _OTHERS, _BUSY = 60.0, 30.0, 60.0
# After a look or a run that failed as a whole, as over a dead database: seconds, doubling.
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 5.0, 300.0
# After a run that failed over a table; doubling, and no longer than the rhythm has patience.
_RETRY = timedelta(minutes=5)
# Seconds until a child of a fork begins: most are gone by then, or are another program.
_AFTER_FORK = 1.0
# Seconds between two checks of alerts.
_ALERTS = 300.0

_NAME = "alembic_partitions"


class Watching(Protocol):
    """What tells people: :class:`alembic_partitions.contrib.alerts.Alerts`."""

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
    made = Schedule(keeper, rhythm(every, cron, timezone), alerts, on_run, ensure_first, orders)
    made.start()
    return made


class _Duty:
    """Work that comes back, at most once at a time; ``work`` returns the seconds until it is due again."""

    def __init__(self, what: str, work: Callable[[], float]) -> None:
        self.what = what
        self._work = work
        self.due_at = 0.0  # on the monotonic clock
        self.busy = False
        self.doing: threading.Thread | asyncio.Future[None] | None = None
        self._back_off = _FIRST_BACK_OFF

    def run(self) -> None:
        """Do it. Nothing that goes wrong here ends the schedule."""
        wait = self._back_off
        try:
            wait = self._work()
            self._back_off = _FIRST_BACK_OFF
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            logger.warning("%s: %s; next try in %g s", self.what, explain(error), wait)
            self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF)
        finally:
            self.due_at = time.monotonic() + wait
            self.busy = False


@dataclass(slots=True)
class _Memory:
    """What this process did itself, where partition_runs cannot be written or read."""

    good: datetime | None = None
    failures: int = 0
    failed: datetime | None = None


class Schedule:
    """What :meth:`Keeper.start` has begun."""

    def __init__(
        self,
        keeper: Keeper,
        rhythm: Rhythm,
        alerts: Watching | None = None,
        on_run: OnRun | None = None,
        ensure_first: bool = False,
        orders: Mapping[str, Any] | None = None,
    ) -> None:
        self.rhythm = rhythm
        #: When the next run is due, as of the last look.
        self.next_run: datetime | None = None
        self._keeper = keeper
        self._engine = keeper.ddl_engine
        self._is_async = self._engine.dialect.is_async
        self._alerts = alerts
        self._on_run = on_run
        self._ensure_first = ensure_first
        self._orders = dict(orders or {})
        self._source = Source(keeper)
        self._memory = _Memory()
        self._told: str | None = None
        self._scheduler: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renew()

    def _renew(self) -> None:
        self._scheduler = None
        self._runs = _Duty("partition run", self._run_if_due)
        self._checks = _Duty("partition alerts", self._check_alerts)
        self._duties = [self._runs, *([self._checks] if self._alerts is not None else [])]
        self._seen = time.time(), time.monotonic()

    # -- its life --------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it has been started and not stopped."""
        return self._scheduler is not None

    def start(self) -> None:
        """Begin to beat: in a thread, or on the running event loop for an async engine."""
        self._loop = asyncio.get_running_loop() if self._is_async else None
        kind = _AsyncBeats if self._is_async else _Beats
        quiet = {
            "executors": {_NAME: DebugExecutor()},
            "logger": _quiet("scheduler"),
            "timezone": timezone.utc,
        }
        _quiet(f"executors.{_NAME}")
        self._scheduler = kind(**quiet, **({"event_loop": self._loop} if self._is_async else {}))
        self._scheduler.add_job(
            self.beat, _Soonest(self), executor=_NAME, misfire_grace_time=None, coalesce=True, max_instances=1
        )
        self._scheduler.start()
        _running.add(self)
        logger.info("partition schedule started: %s", self.rhythm)

    def stop(self, timeout: float) -> None:
        """End it. A run that is under way may end within so many seconds; then it is left to itself."""
        if not self._shut():
            return
        give_up_at = time.monotonic() + timeout
        for duty in self._duties:
            thread = duty.doing
            if isinstance(thread, threading.Thread) and thread is not threading.current_thread():
                thread.join(max(give_up_at - time.monotonic(), 0))
                if thread.is_alive():
                    logger.warning("partition schedule stopped; its %s goes on", duty.what)
        logger.info("partition schedule stopped")

    async def astop(self, timeout: float) -> None:
        """End it, on its event loop. A run that is under way is cut off after so many seconds."""
        if not self._shut():
            return
        await asyncio.sleep(0)  # the scheduler ends on the loop's next turn
        doing = {duty.doing for duty in self._duties if isinstance(duty.doing, asyncio.Future)}
        doing -= {asyncio.current_task()}
        if doing:
            _, late = await asyncio.wait(doing, timeout=timeout)
            for task in late:
                task.cancel()
            if late:
                logger.warning("partition schedule stopped; what was under way was cut off")
                await asyncio.wait(late)
        logger.info("partition schedule stopped")

    def _shut(self) -> bool:
        _running.discard(self)
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is None:
            return False
        scheduler.shutdown(wait=False)
        return True

    def after_fork(self) -> None:
        """Go on in a child, with nothing of its parent's; an event loop is not there any more."""
        self._renew()
        if self._is_async:
            _running.discard(self)
            return
        for duty in self._duties:
            duty.due_at = time.monotonic() + _AFTER_FORK
        self.start()

    # -- a beat ----------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Begin what is due. Never waits."""
        wall, monotonic = time.time(), time.monotonic()
        was_wall, was_monotonic = self._seen
        self._seen = wall, monotonic
        jumped = abs((wall - was_wall) - (monotonic - was_monotonic)) > _STEP
        for duty in self._duties:
            if not duty.busy and (jumped or monotonic >= duty.due_at):
                duty.busy = True
                self._begin(duty)

    def seconds_to_beat(self) -> float:
        """Return how long the next beat may wait."""
        due = min((duty.due_at for duty in self._duties if not duty.busy), default=float("inf"))
        return min(max(due - time.monotonic(), 0.01), BEAT)

    def _begin(self, duty: _Duty) -> None:
        if self._loop is not None:
            duty.doing = self._loop.create_task(greenlet_spawn(duty.run))
        else:
            # A daemon: it does not keep a process alive that is done.
            duty.doing = threading.Thread(target=duty.run, name=f"{_NAME} {duty.what}", daemon=True)
            duty.doing.start()

    # -- what is due -----------------------------------------------------------------------------------

    def _run_if_due(self) -> float:
        if self._ensure_first:
            self._keeper.ensure()
            self._ensure_first = False
        home, standing = self._look()
        wait = self._wait(home, standing)
        if wait is not None or home is None:
            return wait or _UNREADY
        with suppress(RunUnderWay), one_schedule(self._engine, home):
            wait = self._wait(*self._look())  # another process may have done it meanwhile
            return self._run(home) if wait is None else wait
        return _OTHERS

    def _look(self) -> tuple[str | None, Standing | None]:
        with side_connection(self._engine) as side:
            with side.begin():
                home = maintenance.config_schema(side, self._keeper.schema)
            return home, maintenance.standing(side, home, "maintain") if home is not None else None

    def _wait(self, home: str | None, standing: Standing | None) -> float | None:
        """Return the seconds until the next look; ``None`` if a run is due."""
        if standing is None:
            return self._unready("there is no partition_config yet")
        if standing.in_recovery:
            return self._unready("this server is a standby")
        if not standing.known:
            self._tell("partition_runs cannot be read: each process keeps its own time")
        self.next_run = self._due(standing)
        if self.next_run <= standing.now:
            return None
        self._tell(f"next partition run: {self.rhythm.shown(self.next_run)}")
        return min((self.next_run - standing.now).total_seconds(), _LONGEST_WAIT)

    def _due(self, standing: Standing) -> datetime:
        memory = self._memory
        # What lies in the future was told by a clock that has been put right.
        past = [at for at in (standing.good, memory.good) if at is not None and at <= standing.now]
        good = max(past, default=None)
        past = [at for at in (standing.failed, memory.failed) if at is not None and at <= standing.now]
        failed = max(past, default=None)
        planned = self.rhythm.after(good) if good is not None else standing.now
        if failed is None or (good is not None and failed < good):
            return planned
        failures = max(standing.failures, memory.failures, 1)
        back_off = min(_RETRY * 2 ** min(failures - 1, 20), self.rhythm.patience)
        retry: datetime = min(failed + back_off, self.rhythm.after(failed))
        return max(planned, retry)

    def _unready(self, why: str) -> float:
        self._tell(f"nothing is maintained yet: {why}")
        return _UNREADY

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            logger.info(line)

    # -- a run -----------------------------------------------------------------------------------------

    def _run(self, home: str) -> float:
        try:
            with one_run(self._engine, home, patience=0.0):
                pass
        except RunUnderWay as error:
            # It may take hours, as a split does. The horizon does not wait for it.
            self._tell(f"the partition run waits: {error.data['holder']} is at work")
            self._keeper.ensure()
            return _BUSY
        began = time.monotonic()
        _, standing = self._look()
        try:
            report = self._keeper.maintain(**self._orders)
        except RunUnderWay:
            return _BUSY
        except Exception as error:
            self._done(None, error)
            raise
        if standing is not None:
            self._remember(standing.now, report)
        took = time.monotonic() - began
        if report.failure is None:
            logger.info("partition run done in %.1f s: %s", took, _told_of(report))
        else:
            logger.warning("partition run failed after %.1f s: %s", took, report.failure.replace("\n", "; "))
        self._done(report, None)
        return 0.0

    def _remember(self, began: datetime, report: Report) -> None:
        if report.failure is None:
            self._memory = _Memory(good=began)
        else:
            self._memory.failures += 1
            self._memory.failed = began

    def _done(self, report: Report | None, error: Exception | None) -> None:
        self._source.forget()
        self._checks.due_at = 0.0
        if self._on_run is None:
            return
        try:
            answer = self._on_run(report, error)
            if self._is_async and inspect.isawaitable(answer):
                await_only(answer)
        except Exception:
            logger.exception("on_run of the partition schedule")

    def _check_alerts(self) -> float:
        assert self._alerts is not None
        try:
            self._alerts.check(self._source)
        except Exception as error:  # noqa: BLE001
            # Only its kind: its text may hold the address of a notifier, which is a secret.
            logger.warning("partition alerts: %s", type(error).__name__)
        return _ALERTS


def _told_of(report: Report) -> str:
    counts = {what: report.count(what) for what in ("created", "detached", "archived", "dropped")}
    counts["analyzed"] = report.count("tended")
    tables = len(report.results)
    return ", ".join(
        [f"{tables} table{'s' * (tables != 1)}", *(f"{n} {what}" for what, n in counts.items() if n)]
    )


# -- on APScheduler ------------------------------------------------------------------------------------


class _Soonest(BaseTrigger):  # type: ignore[misc]
    """When the next duty is due, or a beat later."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        wait = self._schedule.seconds_to_beat()
        return now + timedelta(seconds=wait)


class _Steady:
    """A scheduler whose host's clock may be set back: left to itself it would sleep for as long."""

    def _process_jobs(self) -> float:
        scheduler: Any = self
        now = datetime.now(timezone.utc)
        for job in scheduler.get_jobs():
            if job.next_run_time > now + timedelta(seconds=BEAT):
                job.modify(next_run_time=now)
        wait: float | None = super()._process_jobs()  # type: ignore[misc]
        return BEAT if wait is None else min(wait, BEAT)


class _Beats(_Steady, BackgroundScheduler):  # type: ignore[misc]
    pass


class _AsyncBeats(_Steady, AsyncIOScheduler):  # type: ignore[misc]
    pass


def _quiet(what: str) -> logging.Logger:
    """Return a log of APScheduler's for our scheduler alone: at INFO it tells of every beat."""
    log = logging.getLogger(f"apscheduler.{what}" if _NAME in what else f"apscheduler.{what}.{_NAME}")
    log.setLevel(logging.WARNING)
    return log


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
