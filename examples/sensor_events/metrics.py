"""What Prometheus is told: inserts that found no partition, and the days until there are such inserts.

As text, to stdout or to a file for node_exporter's textfile collector. The days, and all else about the
table, are the package's; the count is ours, since nothing here calls ``keep(engine)``, whose keeper would.
It goes on from what the file holds: counted from 0 by each process, it would be the same after each run that
fails, and nobody would see it grow. So a file is for one recorder at a time.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, generate_latest, write_to_textfile
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from alembic_partitions.contrib.metrics import PartitionCollector
from alembic_partitions.drivers import sqlstate_of, told_of_row

TABLE = "events"
ERRORS = "events_no_partition_errors"
#: How long it takes until the runway is measured again.
EVERY = "1 min"


class Metrics:
    """The metrics of one process.

    :param textfile: where to write them, and to count on from; without one they go to stdout.
    """

    def __init__(self, engine: Engine, textfile: Path | None = None) -> None:
        self._textfile = textfile
        self._registry = CollectorRegistry()
        self._errors = Counter(
            ERRORS,
            "Inserts into events that found no partition.",
            registry=self._registry,
        )
        self._errors.inc(_counted(textfile))
        gauges = {TABLE: "events_partition_runway_days"}
        self._registry.register(PartitionCollector(engine, max_age=EVERY, gauges=gauges))
        event.listen(engine, "handle_error", self._count)

    def _count(self, context: ExceptionContext) -> None:
        if is_no_partition(context.original_exception):
            self._errors.inc()

    def write(self) -> None:
        """Write all, to a file as a whole, so that nobody reads half of it."""
        if self._textfile is None:
            print(generate_latest(self._registry).decode(), end="")
        else:
            write_to_textfile(str(self._textfile), self._registry)


def _counted(textfile: Path | None) -> float:
    """Return the errors that a file has; 0 if there is no such file, or no sense in it."""
    if textfile is not None:
        with suppress(FileNotFoundError, ValueError):
            for family in text_string_to_metric_families(textfile.read_text()):
                for sample in family.samples:
                    if sample.name == f"{ERRORS}_total":
                        return sample.value
    return 0


def is_no_partition(error: BaseException | None) -> bool:
    """Tell whether a driver's error is PostgreSQL's "no partition of relation", in any language.

    Its SQLSTATE is a CHECK's, 23514. It names the partitioned table and no constraint; a row sent straight
    to a partition that is not its own names no constraint either, but that partition.
    """
    if error is None or sqlstate_of(error) != "23514":
        return False
    told = told_of_row(error)
    return told["table_name"] == TABLE and not told["constraint_name"]
