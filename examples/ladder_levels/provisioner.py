"""The partitions: on start-up and every 12 hours, as the partition role, by one process of however many."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from alembic_partitions.events import AsyncKeeper
from alembic_partitions.health import TableHealth
from alembic_partitions.maintenance import Report

from .logs import fields
from .models import LadderLevel

log = logging.getLogger("ladder_levels.provisioner")

EVERY = "12h"
TABLE = LadderLevel.__table__.fullname
#: What /health and /metrics call the days until an insert finds no partition.
GAUGES = {TABLE: "ladder_levels_partition_horizon_days"}


async def start(keeper: AsyncKeeper) -> None:
    """Provision now and every 12 hours, for as long as the process lives."""

    def told(report: Report | None, error: Exception | None) -> None:
        if error is not None:
            log.error("partition provisioning failed", extra=fields(error=str(error)))
        elif report is None:
            log.info("partition provisioning is done by another process")
        elif report.failure is not None:
            log.error("partition provisioning failed", extra=fields(error=report.failure))
        else:
            log.info("partition provisioning acquired lock", extra=fields(created=report.created))
            say_horizon(keeper)

    await keeper.start(every=EVERY, on_run=told)
    log.info("partition provisioner started", extra=fields(every=EVERY))


def say_horizon(keeper: AsyncKeeper) -> None:
    """Log the last day whose rows find their partition."""
    for table in keeper.sync_keeper.health().tables:
        day = last_day(table)
        if day is not None:
            log.info("coverage horizon: %s", day, extra=fields(days=table.runway))


def last_day(table: TableHealth) -> str | None:
    """Return the last day that is covered as a whole, if there is one."""
    end = table.horizon
    return f"{end - timedelta(microseconds=1):%F}" if isinstance(end, datetime) else None
