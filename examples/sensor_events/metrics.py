"""What Prometheus is told: inserts that found no partition, and the days until there are such inserts.

As text, to stdout or to a file for node_exporter's textfile collector.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, write_to_textfile
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from alembic_partitions import PartitionError, health, maintenance
from alembic_partitions.drivers import sqlstate_of, told_of_row

TABLE = "events"
#: Seconds after which the runway is measured again.
EVERY = 60


class Metrics:
    """The two metrics of one process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._due = 0.0
        self._registry = CollectorRegistry()
        self._errors = Counter(
            "events_no_partition_errors",
            "Inserts into events that found no partition.",
            registry=self._registry,
        )
        self._runway = Gauge(
            "events_partition_runway_days",
            "Days until an insert into events finds no partition; NaN: unknown.",
            registry=self._registry,
        )
        event.listen(engine, "handle_error", self._count)

    def _count(self, context: ExceptionContext) -> None:
        if is_no_partition(context.original_exception):
            self._errors.inc()

    def _measure(self) -> None:
        """Measure the runway, as `alembic-partitions check` does."""
        self._due = time.monotonic() + EVERY
        days = None
        try:
            with self._engine.connect() as connection:
                view = maintenance.look(connection, tables=[TABLE])
            for found in view.tables:
                days = health.assess(found.plan, view.now).runway
        except (SQLAlchemyError, PartitionError) as error:
            print(f"the runway cannot be measured: {str(error).splitlines()[0]}", file=sys.stderr)
        self._runway.set(math.nan if days is None else days)

    def write(self, textfile: Path | None) -> None:
        """Write both, to a file as a whole, so that nobody reads half of it."""
        if time.monotonic() >= self._due:
            self._measure()
        if textfile is None:
            print(generate_latest(self._registry).decode(), end="")
        else:
            write_to_textfile(str(textfile), self._registry)


def is_no_partition(error: BaseException | None) -> bool:
    """Tell whether a driver's error is PostgreSQL's "no partition of relation", in any language.

    Its SQLSTATE is a CHECK's, 23514. It names the partitioned table and no constraint; a row sent straight
    to a partition that is not its own names no constraint either, but that partition.
    """
    if error is None or sqlstate_of(error) != "23514":
        return False
    told = told_of_row(error)
    return told["table_name"] == TABLE and not told["constraint_name"]
