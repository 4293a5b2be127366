"""Work outside the request: one job at a time, in this process and in all others, with its progress."""

from __future__ import annotations

import asyncio
import secrets as random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TypeAlias

from sqlalchemy import Connection

from alembic_partitions import maintenance
from alembic_partitions.contrib.calls import next_after
from alembic_partitions.errors import RunUnderWay, UpgradeLockLost
from alembic_partitions.locks import HeldLock, one_job, one_run
from alembic_partitions.maintenance import Report
from alembic_partitions.talk import explain
from alembic_partitions.words import printable

from .faults import busy
from .looks import PATIENCE, Looks
from .models import JobAnswer, JobCounts, JobRecord
from .tracing import Secrets, logger, request_id
from .waiting import seen

#: Told of each step that is done.
Tell: TypeAlias = Callable[[str], None]

# How many jobs are remembered, and lines of each.
_MOST_JOBS, _MOST_LINES, _LONGEST_LINE = 50, 200, 500
# Seconds that the end of the process waits for a job to come to the end of its step.
_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asks for.

    :param plan: returns what would be sent, by table; raises what is refused.
    :param work: does it, and tells of each step that is done.
    """

    name: str
    table: str | None
    plan: Callable[[Connection], Sequence[tuple[str, str]]]
    work: Callable[[Connection, Tell], Report]


@dataclass(eq=False, slots=True)
class Job:
    """An order that is being done, or was."""

    order: Order
    started_by: str
    id: str = field(default_factory=lambda: random.token_hex(8))
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    finished_at: datetime | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    report: Report = field(default_factory=Report)
    error: str | None = None

    def answer(self, number: str) -> JobAnswer:
        """Return how it stands."""
        counts = {name: self.report.count(name) for name in JobCounts.model_fields}
        return JobAnswer(
            job_id=self.id,
            name=self.order.name,
            table=self.order.table,
            status="running" if self.finished_at is None else "failed" if self.error else "done",
            started_at=self.started_at,
            finished_at=self.finished_at,
            progress=list(self.lines),
            counts=JobCounts(**counts),
            error=self.error,
            started_by=self.started_by,
            request_id=number,
        )

    def record(self) -> JobRecord:
        """Return it as a job that is under way."""
        so_far = datetime.now(timezone.utc) - self.started_at
        return JobRecord(
            job_name=self.order.name,
            last_run_at=self.started_at,
            duration_ms=round(so_far.total_seconds() * 1000),
            status="running",
        )


class _Stopped(BaseException):
    """A job must not go on. Nothing catches it on its way out of a run; between two steps nothing is open."""


_ENDED = "the process was stopped before the end; what is left is done by the next run"
_LOST = (
    "the connection that kept other runs away was lost, so this one ended between two steps;"
    " what is left is done by the next run"
)


class _Door:
    """What a job waits at until it is let in, and whoever asked for it with it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._settled = False
        self.opened: asyncio.Future[None] = self._loop.create_future()

    def enter(self) -> None:
        """Let the job in.

        :raises _Stopped: nobody waits any more, so it must not begin.
        """
        if not self._settle():
            raise _Stopped(_ENDED)
        self._loop.call_soon_threadsafe(self.opened.set_result, None)

    def close(self) -> bool:
        """Turn the job away; return whether it has not been let in yet."""
        return self._settle()

    def _settle(self) -> bool:
        with self._lock:
            first, self._settled = not self._settled, True
            return first


class Jobs:
    """The jobs of this process: one that runs, and the last ones that did."""

    def __init__(self, looks: Looks, secrets: Secrets) -> None:
        self._looks = looks
        self._secrets = secrets
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._running: Job | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        # Those that nobody waits for any more, and that were never let in.
        self._hanging: list[tuple[float, asyncio.Task[None]]] = []

    def get(self, number: str) -> Job | None:
        """Return a job by its id."""
        return self._jobs.get(number)

    @property
    def running(self) -> Job | None:
        """The job that is under way."""
        job = self._running
        return job if job is not None and job.id in self._jobs else None

    async def begin(self, order: Order) -> Job:
        """Begin to do what is asked for, and return as soon as it is certain that it is being done.

        :raises Fault: another run is under way, here or in another process.
        :raises PartitionError: it is refused.
        """
        job, door = Job(order, request_id()), _Door()
        with self._lock:
            if self._running is not None and not self._given_up():
                known = self.running.id if self.running else None
                raise busy("A job is under way here; nothing was done. Wait for it to end.", known)
            self._running = job
        self._task = task = asyncio.create_task(self._run(job, door))
        task.add_done_callback(seen)
        try:
            await asyncio.wait({task, door.opened}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turned_away = door.close()
            if turned_away and not task.done():
                self._hanging.append((time.monotonic(), task))
        if task.done():
            task.result()  # raises what it was refused for; a job that was let in raises nothing
        if turned_away:
            raise asyncio.TimeoutError
        return job

    async def stop(self) -> None:
        """Have a job that runs come to the end of its step; what is left is done by a later one."""
        self._stopping, task, job = True, self._task, self._running
        if task is None or task.done() or job is None:
            return
        logger.info("waiting for job %s (%s) to end its step", job.id, job.order.name)
        await asyncio.wait({task}, timeout=_GRACE)
        if not task.done():  # its connection is closed: the server rolls the step back
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE)

    def start(self) -> None:
        """Take jobs (again)."""
        self._stopping = False

    def _given_up(self) -> bool:
        """Tell whether what is under way was turned away, and hangs for so long that another may begin."""
        self._hanging = [(at, task) for at, task in self._hanging if not task.done()]
        if not self._hanging or self._hanging[-1][1] is not self._task:
            return False
        return time.monotonic() - self._hanging[-1][0] >= next_after(len(self._hanging))

    async def _run(self, job: Job, door: _Door) -> None:
        try:
            await self._looks.run(lambda side: self._do(side, job, door))
        except _Stopped as stopped:
            job.error = str(stopped)
        except asyncio.CancelledError:
            job.error = _ENDED
        except Exception as error:  # whoever looks at the job is told
            if door.close():  # not let in: told to whoever asked for it
                raise
            job.error = printable(self._secrets.hide(explain(error)))
        finally:
            job.finished_at = datetime.now(timezone.utc)
            self._looks.source.forget()
            with self._lock:
                if self._running is job:
                    self._running = None
            if job.id in self._jobs:
                ended = f"failed: {job.error}" if job.error else "done"
                logger.log(30 if job.error else 20, "job %s (%s) %s", job.id, job.order.name, ended)

    def _do(self, side: Connection, job: Job, door: _Door) -> None:
        order = job.order
        order.plan(side)  # what is refused is refused before anything is changed
        with side.begin():
            home = maintenance.config_schema(side, self._looks.source.schema) or ""
        try:
            with one_run(side.engine, home, patience=0):
                pass
            with one_job(side.engine, home) as lock:
                self._remember(job)
                try:
                    door.enter()
                except _Stopped:
                    del self._jobs[job.id]
                    raise
                logger.info("job %s (%s) began", job.id, order.name)
                job.report = order.work(side, self._teller(job, lock))
                job.error = self._failure(job.report)
        except RunUnderWay as error:
            if job.id in self._jobs:
                raise
            raise busy(f"Another run is under way: {error.holder}. Nothing was done here.") from error

    def _remember(self, job: Job) -> None:
        self._jobs[job.id] = job
        while len(self._jobs) > _MOST_JOBS:
            del self._jobs[next(iter(self._jobs))]

    def _teller(self, job: Job, lock: HeldLock) -> Tell:
        def tell(line: str) -> None:
            # Of a table's name: a line break in it would begin another line of the log.
            line = printable(self._secrets.hide(line))[:_LONGEST_LINE]
            job.lines.append(line)
            logger.info("job %s (%s): %s", job.id, job.order.name, line)
            if self._stopping:
                raise _Stopped(_ENDED)
            try:
                lock.check()
            except UpgradeLockLost as error:
                raise _Stopped(_LOST) from error

        return tell

    def _failure(self, report: Report) -> str | None:
        if report.in_recovery:
            return "this server is a standby: nothing can be made on it"
        told = "; ".join(report.failure.splitlines()) if report.failure else None
        return None if told is None else printable(self._secrets.hide(told))
