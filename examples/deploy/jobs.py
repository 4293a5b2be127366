"""The service's own jobs: each slot of time is run once, by whichever process writes its row first.

A slot is told by the database's clock, so it does not matter whose clock is wrong, nor how many processes
try. Who is killed in the middle leaves a row that says `running`; the next slot is run all the same.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

logger = logging.getLogger(__name__)

CLAIM = text("""
INSERT INTO job_runs (job_name, slot, run_by)
VALUES (:job, to_timestamp(floor(extract(epoch FROM now()) / :every) * :every), :me)
ON CONFLICT (job_name, slot) DO NOTHING
RETURNING id
""")

FINISH = text("""
UPDATE job_runs SET finished_at = clock_timestamp(), status = :status, error = :error WHERE id = :id
""")

FORGET = text("DELETE FROM job_runs WHERE started_at < now() - interval '7 days'")

RECENT = text("""
SELECT DISTINCT job_name FROM job_runs WHERE started_at > now() - make_interval(secs => :seconds)
""")

LATEST = text("""
SELECT DISTINCT ON (job_name) job_name, started_at, status, error,
       CAST(1000 * extract(epoch FROM finished_at - started_at) AS float) AS duration_ms
FROM job_runs ORDER BY job_name, slot DESC
""")


@dataclass(frozen=True)
class Ran:
    """The last run of a job."""

    job_name: str
    last_run_at: datetime
    duration_ms: float | None
    status: str
    error: str | None


class Jobs:
    """Runs jobs by name, and tells how the last run of each went."""

    def __init__(self, engine: Engine, jobs: Mapping[str, Callable[[], object]]) -> None:
        self._engine = engine
        self.names = tuple(jobs)
        self._jobs = jobs

    def run(self, name: str, every: float) -> bool:
        """Run a job, unless another process has this slot of ``every`` seconds; return whether it was us."""
        with self._engine.begin() as connection:
            claimed = connection.scalar(CLAIM, {"job": name, "every": every, "me": _me()})
        if claimed is None:
            return False
        began, status, error = time.perf_counter(), "ok", None
        try:
            self._jobs[name]()
        except Exception as failure:  # noqa: BLE001  # whatever a job raises is what its row says
            status, error = "failed", f"{type(failure).__name__}: {failure}"
            logger.warning("%s failed: %s", name, error)
        with self._engine.begin() as connection:
            connection.execute(FINISH, {"id": claimed, "status": status, "error": error})
            connection.execute(FORGET)
        logger.info("%s: %s, %.0f ms", name, status, 1000 * (time.perf_counter() - began))
        return True

    def overdue(self, every: float) -> list[str]:
        """Return the jobs that nobody has begun for three times their interval."""
        with self._engine.connect() as connection:
            recent = set(connection.scalars(RECENT, {"seconds": 3 * every}))
        return [name for name in self.names if name not in recent]

    def latest(self) -> list[Ran]:
        """Return the last run of each job."""
        with self._engine.connect() as connection:
            return [
                Ran(row.job_name, row.started_at, row.duration_ms, row.status, row.error)
                for row in connection.execute(LATEST)
            ]


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
