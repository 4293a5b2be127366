"""``python -m deploy.scheduler``: the jobs, and nothing else. It migrates nothing.

``--check`` is its health check: exit code 1 when a job has not begun for three times its interval.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from . import logs
from .service import Service
from .settings import database_url

logger = logging.getLogger("deploy.scheduler")

MIGRATIONS = Path(__file__).parent / "migrations"
#: As sysexits.h has it: try again later.
TRY_AGAIN = 75


def is_migrated(engine: Engine) -> bool:
    """Return whether the database is where this image's migrations lead to."""
    wanted = set(ScriptDirectory(str(MIGRATIONS)).get_heads())
    with engine.connect() as connection:
        return set(MigrationContext.configure(connection).get_current_heads()) == wanted


def wait_for_schema(seconds: float, stopped: threading.Event) -> bool:
    """Wait for somebody else to migrate; return whether that was done in time."""
    # Not the keeper's engine: its first look is for when there is something to see.
    engine = create_engine(database_url(), poolclass=NullPool)
    deadline = time.monotonic() + seconds
    told = False
    while not stopped.is_set():
        reason = "the database is not at this image's revision"
        try:
            if is_migrated(engine):
                return True
        except OperationalError as error:  # the database itself may come up later than we do
            reason = str(error.orig).strip()
        if time.monotonic() >= deadline:
            logger.error("gave up after %g s: %s; the web replicas migrate, or migrate.sh", seconds, reason)
            return False
        if not told:
            logger.info("waiting until somebody has migrated: %s", reason)
            told = True
        stopped.wait(0.5)
    return False


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description="Run the service's jobs. Migrates nothing.")
    options.add_argument("--check", action="store_true", help="exit with 1 when jobs are overdue")
    wanted = options.parse_args(arguments)
    service = Service.from_environment()
    if wanted.check:
        return check(service)

    logs.set_up()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if not wait_for_schema(service.settings.schema_timeout, stopped):
        return 0 if stopped.is_set() else TRY_AGAIN
    service.start_jobs()
    logger.info("started: %s, and partitions", ", ".join(service.jobs.names))
    stopped.wait()
    service.stop()
    logger.info("stopped")
    return 0


def check(service: Service) -> int:
    """Tell whether each job has been run of late, by whomever."""
    overdue = service.jobs.overdue(service.settings.refresh_every)
    print(f"overdue: {', '.join(overdue)}" if overdue else "on time")
    return 1 if overdue else 0


if __name__ == "__main__":
    sys.exit(main())
