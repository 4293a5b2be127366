"""``run``: a process that does nothing but keep partitions, for those who have no scheduler of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from socket import gaierror
from typing import Any

import click
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from alembic_partitions.events import AsyncKeeper
from alembic_partitions.keeper import Keeper
from alembic_partitions.talk import explain, shown_log

from .connecting import engine_at, visit
from .door import EXIT_OK, Call, alembic_options, main
from .options import run_options

logger = logging.getLogger("alembic_partitions")

ALERTS_VARIABLE = "ALEMBIC_PARTITIONS_ALERTS"

# Seconds between two tries to find the database by way of env.py, doubling.
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 60.0
# Seconds between two looks whether we are to end while env.py runs; and until it is told that it takes long.
_GLANCE, _NO_ANSWER = 0.1, 30.0
# A run that is under way at the end may take as long as it takes; a second signal ends it.
_AS_LONG_AS_IT_TAKES = "365 d"


@main.command()
@click.option("--every", help='How long after a run the next is due, as "12h" (default).')
@click.option("--cron", help='When to run instead, five fields, as "0 0 * * *".')
@click.option("--timezone", default="UTC", help="The zone on whose clocks --cron is (default: UTC).")
@click.option(
    "--alert",
    "alerts",
    multiple=True,
    metavar="URL",
    help="Whom to tell of failures and of a short runway, as Apprise writes it; may be repeated "
    f"(env: {ALERTS_VARIABLE}).",
)
@click.option(
    "--ensure-on-start/--no-ensure-on-start",
    default=True,
    help="Bring tables to their horizon at the start, even if no run is due.",
)
@run_options
@click.option(
    "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
)
@click.option("--schema", help="Where partition_config is, if there are several.")
@alembic_options
@click.pass_obj
def run(
    call: Call,
    every: str | None,
    cron: str | None,
    timezone: str,
    alerts: tuple[str, ...],
    ensure_on_start: bool,
    retention_days: int | None,
    archive_to: str | None,
    analyze: bool,
    vacuum: tuple[str, ...],
    url: str | None,
    schema: str | None,
) -> int:
    """Maintain partitions again and again, until SIGTERM or Ctrl-C. It never migrates.

    At once if a run is overdue, then every 12 hours, or as --every or --cron say. Start it as often as you
    like, beside applications that do the same: each run happens once. A database that is away is tried again;
    a run that fails is logged, and tried again.
    """
    from alembic_partitions.contrib.schedule import rhythm

    if every is None and cron is None:
        every = "12h"
    rhythm(every, cron, timezone)  # a mistake is told before anybody is asked anything
    told = {
        "every": every,
        "cron": cron,
        "timezone": timezone,
        "alerts": _alerts([*alerts, *os.environ.get(ALERTS_VARIABLE, "").split()]),
        "ensure_first": ensure_on_start,
        "retention": None if retention_days is None else f"{retention_days} days",
        "archive_to": archive_to,
        "analyze": analyze,
        "vacuum": vacuum,
    }
    with shown_log(), _told_to_end() as end:
        engines = [engine_at(call, url)] if url is not None else _engines_of_env(call, end)
        keepers = [Keeper(engine, schema=schema) for engine in engines]
        asyncio.run(_keep(keepers, end, told))
    return EXIT_OK


async def _keep(keepers: list[Keeper], end: threading.Event, told: dict[str, Any]) -> None:
    """Let keepers do their work, those of an async engine on this loop, until it is time to end."""
    from alembic_partitions.contrib import schedule

    for keeper in keepers:
        keeper.schedule = schedule.start(keeper, **told)
    await asyncio.to_thread(end.wait)
    for keeper in keepers:
        if keeper.ddl_engine.dialect.is_async:
            await AsyncKeeper(keeper).stop(_AS_LONG_AS_IT_TAKES)
        else:
            keeper.stop(_AS_LONG_AS_IT_TAKES)


def _engines_of_env(call: Call, end: threading.Event) -> list[Engine]:
    """Return what env.py connects with, once the database is there."""
    pause = _FIRST_WAIT
    while not end.is_set():
        try:
            try:
                return _visited(call, end)
            finally:
                logger.disabled = False  # fileConfig() in env.py silences who is not named in alembic.ini
        except (DBAPIError, ConnectionError, TimeoutError, gaierror) as error:
            logger.warning("the database is away: %s; next try in %g s", explain(error, call.urls), pause)
        end.wait(pause)
        pause = min(pause * 2, _LONGEST_WAIT)
    return []


def _visited(call: Call, end: threading.Event) -> list[Engine]:
    """Return what env.py connects with, or nothing if we are to end while it waits for an answer."""
    found: Future[list[Engine]] = Future()

    def work() -> None:
        try:
            found.set_result([engine for _, engine in visit(call, None, (), lambda side, _: side.engine)])
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            found.set_exception(error)

    # In a thread: a driver that waits in C hears no signal. A daemon: it does not keep us alive.
    threading.Thread(target=work, name="alembic_partitions env.py", daemon=True).start()
    asked, told = time.monotonic(), False
    while not found.done() and not end.is_set():
        wait([found], _GLANCE)
        if not told and time.monotonic() > asked + _NO_ANSWER:
            told, logger.disabled = True, False  # fileConfig(), as above
            logger.warning("no answer from env.py for %g s: does the database answer it?", _NO_ANSWER)
    return found.result() if found.done() else []


def _alerts(urls: list[str]) -> Any:
    if not urls:
        return None
    from alembic_partitions.contrib.alerts import Alerts

    return Alerts(*urls)


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Yield what is set by the first SIGTERM or Ctrl-C; a second one does as usual."""
    end = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        end.set()
        restore()

    for number in usual:
        signal.signal(number, note)
    try:
        yield end
    finally:
        restore()
