"""``python -m sensor_events.recorder < events.jsonl``: write a fleet's events, a JSON line each.

Sending a file again is safe: what is there already is left as it is. So nothing is lost when a batch is
refused: the exit code is 1, and the file can come again once the table is in order.

Nothing here makes partitions, to show what happens without. One line would:
``alembic_partitions.keep(engine)``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from .metrics import Metrics
from .models import Event
from .settings import database_url

BATCH = 500
IDENTITY = ("tenant_id", "device_id", "sequence", "occurred_at")


def record(engine: Engine, events: list[dict[str, Any]]) -> int:
    """Write events in one transaction; return how many were new."""
    rows = [{**event, "occurred_at": datetime.fromisoformat(event["occurred_at"])} for event in events]
    with engine.begin() as connection:
        statement = insert(Event).values(rows).on_conflict_do_nothing(index_elements=IDENTITY)
        return connection.execute(statement).rowcount


def batches(lines: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    lines = iter(lines)
    while batch := [json.loads(line) for line in islice(lines, BATCH)]:
        yield batch


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description="Write a fleet's events from stdin, a JSON line each.")
    options.add_argument(
        "--metrics", type=Path, metavar="FILE", help="for the textfile collector, as *.prom (default: stdout)"
    )
    wanted = options.parse_args(arguments)

    engine = create_engine(database_url())
    metrics = Metrics(engine, wanted.metrics)
    recorded = refused = 0
    if wanted.metrics:  # before there is an error, so that Prometheus may count from there
        metrics.write()
    for batch in batches(sys.stdin):
        try:
            recorded += record(engine, batch)
        except DBAPIError as error:
            refused += len(batch)
            reason = f"{type(error.orig).__module__}.{type(error.orig).__name__}: {error.orig}"
            print(reason.rstrip(), file=sys.stderr)
        if wanted.metrics:
            metrics.write()
    print(f"{recorded} events recorded, {refused} refused", file=sys.stderr)
    metrics.write()
    engine.dispose()
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
