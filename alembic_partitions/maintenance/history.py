"""Runs, written down in partition_runs."""

from __future__ import annotations

import logging

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason

from .reports import Report

logger = logging.getLogger("alembic_partitions")


def record(connection: Connection, snapshot: catalog.Snapshot, action: str, report: Report) -> None:
    """Write the run down. A DDL role that may not is no reason to fail: the partitions stand."""
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
                    "details": {result.table: result.changes for result in report.results if result.changes},
                    "error": report.failure,
                },
            )
    except DBAPIError as error:
        logger.warning("the run could not be written to partition_runs: %s", reason(error))
