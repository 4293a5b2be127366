"""What an operator of seven tables sees on a bad day, as plain values: no database is asked."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

from alembic_partitions.catalog import Figures, Run
from alembic_partitions.maintenance import TableView, View
from alembic_partitions.plan import ManagedTable, Partition, plan_horizon
from tests.unit.test_screens import NOW, table, without

# As contrib.alerts keeps what people were told of.
ALERTED = {
    "stream_ingest.ladder_levels": {
        "problem": "table stream_ingest.ladder_levels",
        "id": "7c2f90ab",
        "level": "CRITICAL",
        "event": "repeat",
        "state": "sent",
        "told": "2026-04-05T01:21:11+00:00",
    }
}
HOSTILE = "racing.<script>alert(1)</script>"


def seen(managed: ManagedTable, **more: Any) -> TableView:
    """A table as a look finds it: what lies ahead is empty and was never analyzed."""
    here = managed.grid.key_at(NOW)
    figures = {}
    for part in managed.partitions:
        if part.lower is not None and part.lower <= here:
            size, rows = 48_000_000 + 1_300_000 * (part.oid * 7 % 23), 410_000 + 9_000 * (part.oid % 11)
            figures[part.oid] = Figures(size, rows, NOW, part.mark)
        else:
            figures[part.oid] = Figures(40_960, None, None, part.mark)
    return TableView(managed, plan_horizon(managed, NOW), **{"figures": figures, "stranded": False, **more})


def with_default(managed: ManagedTable) -> ManagedTable:
    default = Partition(9_999, managed.schema, f"{managed.name}_default", None, None, is_default=True)
    return dataclasses.replace(managed, partitions=(*managed.partitions, default))


def view(*tables: TableView, **more: Any) -> View:
    return View(**{"now": NOW, "tables": tables, "runs": (), **more})


def run_of(number: int, action: str, *tables: str, ago: timedelta, took: float = 1.4, **more: Any) -> Run:
    started = NOW - ago
    return Run(
        **{
            "id": number,
            "started_at": started,
            "finished_at": started + timedelta(seconds=took),
            "action": action,
            "run_by": "partition_owner",
            "application": "worker-2",
            **dict.fromkeys(("created", "detached", "dropped", "archived", "moved"), 0),
            "error": None,
            "details": {name: {} for name in tables},
            **more,
        }
    )


def a_bad_day() -> View:
    """Healthy days, months, a gap, none left, stranded rows, hours, retention due; and one left alone."""
    odds = table("racing.odds_history", "2026-01-05", "2026-05-06", retention="90 days")
    gap = without(table("racing.money_flow_history", "2026-02-01", "2026-05-06"), "03_30", "03_31")
    late = table("stream_ingest.ladder_levels", "2026-01-20", "2026-04-05", timezone="UTC")
    stranded = with_default(table("racing.results", "2026-03-01", "2026-04-12", retention="12 months"))
    months = table("web.events", "2024-04-01", "2026-10-15", interval="month", premake=6, timezone="UTC")
    due = table("iot.sensor_events", "2025-12-20", "2026-05-06", retention="90 days", on_expiry="drop")
    hours = table("web.page_views", "2026-04-03", "2026-04-07T14:00", interval="hour", premake=48)
    idle = table("racing.race_meetings", "2026-03-20", "2026-04-20", enabled=False)
    failure = "the last maintain failed: canceling statement due to lock timeout"
    return view(
        seen(odds),
        seen(gap, failure=failure),
        seen(late),
        seen(stranded, stranded=True),
        seen(months),
        seen(due),
        seen(hours),
        seen(idle),
        runs=(
            run_of(
                47,
                "maintain",
                "iot.sensor_events",
                "racing.odds_history",
                ago=timedelta(minutes=37),
                took=4.2,
                created=3,
                detached=2,
                error="racing.money_flow_history: canceling statement due to lock timeout\n"
                "stream_ingest.ladder_levels: must be owner of table ladder_levels",
            ),
            run_of(46, "alert", ago=timedelta(minutes=36), took=1200, details=ALERTED),
            run_of(45, "ensure", "web.page_views", ago=timedelta(hours=12), took=0.8, created=48),
            run_of(44, "repair", "racing.results", ago=timedelta(days=2), took=71, created=1, moved=182_044),
            run_of(43, "maintain", "iot.sensor_events", ago=timedelta(days=3), took=2.2, dropped=1),
        ),
    )
