"""Runs, written down in partition_runs."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, cast, func, not_, or_, select
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason
from alembic_partitions.errors import SettingError
from alembic_partitions.periods import Period

from .reports import Report

logger = logging.getLogger("alembic_partitions")


#: How long runs are remembered, unless ALEMBIC_PARTITIONS_HISTORY says otherwise.
HISTORY_RETENTION = "1 year"
HISTORY_VARIABLE = "ALEMBIC_PARTITIONS_HISTORY"


#: What a run failed over that somebody has stopped.
STOPPED = "stopped before its end; the next run does what is left"
#: In what a run did to a table: it was told to see to this one alone, so it was no run over all there is.
ALONE = "alone"


def record(
    connection: Connection, snapshot: catalog.Snapshot, action: str, report: Report, *, alone: bool = False
) -> None:
    """Write the run down. A DDL role that may not is no reason to fail: the partitions stand.

    :param alone: whether it saw to some tables alone; a schedule does not take that for a run of its own.
    """
    details = {
        r.table: r.changes | ({ALONE: True} if alone else {}) for r in report.results if r.changes or alone
    }
    try:
        with connection.begin():
            connection.execute(
                # Inline: RETURNING id would need SELECT as well.
                ddl.runs_table(snapshot.config_schema).insert().inline(),
                {
                    "started_at": snapshot.now,
                    "action": action,
                    **{what: report.count(what) for what in ("created", "detached", "dropped", "archived")},
                    "moved": sum(result.moved for result in report.results),
                    "details": details,
                    "error": report.failure,
                },
            )
    except DBAPIError as error:
        logger.warning("the run could not be written to partition_runs: %s", reason(error))


@contextmanager
def written_down_if_stopped(
    connection: Connection,
    snapshot: catalog.Snapshot,
    action: str,
    report: Callable[[], Report],
    *,
    alone: bool = False,
) -> Iterator[None]:
    """Write down what a run has done when somebody stops it: Ctrl-C, or the end of its process."""
    try:
        yield
    except (Exception, asyncio.CancelledError):  # after the latter nothing can be awaited
        raise
    except BaseException:
        record(connection, snapshot, action, dataclasses.replace(report(), error=STOPPED), alone=alone)
        raise


@dataclass(frozen=True, slots=True)
class Standing:
    """What has become of the runs of one kind, by the clock of the database."""

    now: datetime
    in_recovery: bool = False
    #: When the last one began that did not fail.
    good: datetime | None = None
    #: Those that failed since, and when the last of them ended.
    failures: int = 0
    failed: datetime | None = None
    #: Whether this role may read them.
    known: bool = True


def standing(connection: Connection, config_schema: str, action: str) -> Standing:
    """Return what has become of the runs of one kind, over all tables."""
    runs = ddl.runs_table(config_schema)
    some = func.coalesce(func.jsonb_path_exists(runs.c.details, cast(f"$.*.{ALONE}", JSONPATH)), False)
    # One that began in the future was written down under a clock that was wrong.
    past = and_(runs.c.action == action, runs.c.started_at <= func.now(), not_(some))
    good = select(func.max(runs.c.started_at)).where(past, runs.c.error.is_(None)).scalar_subquery()
    since = or_(good.is_(None), runs.c.started_at > good)
    failed = and_(past, runs.c.error.is_not(None), since)
    counted = select(func.count(), func.max(runs.c.finished_at)).where(failed)
    present = select(func.clock_timestamp(), func.pg_is_in_recovery())
    with connection.begin():
        now, in_recovery = connection.execute(present).one()
    try:
        with connection.begin():
            last = connection.execute(select(good)).scalar_one()
            failures, ended = connection.execute(counted).one()
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return Standing(now, in_recovery, known=False)
    return Standing(now, in_recovery, last, failures, ended)


def last_run(connection: Connection, snapshot: catalog.Snapshot, before: datetime) -> datetime | None:
    """Return when the last run before an instant began; ``None`` where there is none, or none to be seen."""
    runs = ddl.runs_table(snapshot.config_schema)
    try:
        with connection.begin():
            latest = select(func.max(runs.c.started_at)).where(
                runs.c.started_at < before, runs.c.action != catalog.ALERT
            )
            found: datetime | None = connection.execute(latest).scalar_one()
            return found
    except DBAPIError:
        return None


def history_retention() -> Period:
    """Return how long runs are remembered.

    :raises SettingError: ALEMBIC_PARTITIONS_HISTORY is no period.
    """
    told = os.environ.get(HISTORY_VARIABLE) or HISTORY_RETENTION
    try:
        return Period.parse(told)
    except ValueError:
        raise SettingError(
            name=HISTORY_VARIABLE, value=told, expected='a period such as "90 days" or "1 year"'
        ) from None


def prune(connection: Connection, snapshot: catalog.Snapshot, kept: Period) -> None:
    """Forget the runs that began longer ago. A role that may not delete forgets nothing."""
    runs = ddl.runs_table(snapshot.config_schema)
    try:
        with connection.begin():
            connection.execute(runs.delete().where(runs.c.started_at < kept.before(snapshot.now, "UTC")))
    except DBAPIError as error:
        logger.info("old runs could not be deleted from partition_runs: %s", reason(error))
