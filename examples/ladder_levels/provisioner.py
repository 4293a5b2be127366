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

    async def told(report: Report | None, error: Exception | None) -> None:
        if report is None or report.failure is not None:
            log.error(
                "partition provisioning failed", extra=fields(error=report.failure if report else str(error))
            )
            return
        log.info("partition provisioning acquired lock", extra=fields(created=report.created))
        for table in (await keeper.health()).tables:
            log.info("coverage horizon: %s", last_day(table), extra=fields(table=table.table))

    # In a process that starts while another has the lock, or had it within 12 hours, nothing is run; that the
    # horizon is there is made sure of all the same.
    await keeper.start(every=EVERY, ensure_first=True, on_run=told)
    log.info("partition provisioner started", extra=fields(every=EVERY))


def last_day(table: TableHealth) -> str:
    """Return the last day whose rows all find their partition."""
    end = table.horizon
    return f"{end - timedelta(microseconds=1):%Y-%m-%d}" if isinstance(end, datetime) else "none"
