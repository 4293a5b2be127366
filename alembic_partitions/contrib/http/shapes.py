"""What was looked at, as bodies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from itertools import islice
from typing import Any, cast

from alembic_partitions.catalog import Run
from alembic_partitions.contrib.metrics import soonest
from alembic_partitions.health import Health, Level, TableHealth
from alembic_partitions.plan import Partition
from alembic_partitions.standing import Row, partition_state

from .models import (
    HealthAnswer,
    HealthInBrief,
    JobRecord,
    LevelName,
    PartitionShown,
    PolicyShown,
    RunShown,
    Stretch,
    TableInBrief,
    TableState,
    TableStatus,
)

#: Takes secrets out of a text.
Hide = Callable[[str], str]

# As much of an error as a list of jobs shows to everybody.
_SNIPPET = 200


def health(found: Health, request_id: str, hide: Hide) -> HealthAnswer:
    """Return how all tables stand."""
    return HealthAnswer(
        status=found.state,
        ok=found.ok,
        level=_level(found.level),
        checked_at=found.now,
        tables=[TableState(**_state(table, hide)) for table in found.tables],
        last_run=None if found.last_run is None else run(found.last_run, hide),
        no_partition_errors=None if found.no_partition_errors is None else dict(found.no_partition_errors),
        error=_hidden(found.error, hide),
        request_id=request_id,
    )


def in_brief(found: Health, gauges: Mapping[str, str]) -> HealthInBrief:
    """Return what everybody may see: no error, for it may tell of hosts and roles."""
    own = {name: _rounded(soonest(table, found.tables)) for table, name in gauges.items()}
    return HealthInBrief(
        **{
            **own,
            "status": found.status,  # type: ignore[arg-type]
            "state": found.state,
            "checked_at": found.now,
            "tables": [
                TableInBrief(table=table.table, state=table.state, horizon_days=_days(table))
                for table in found.tables
            ],
        }
    )


def status(row: Row, hide: Hide) -> TableStatus:
    """Return all that is known of a table."""
    policy = row.view.table.policy
    return TableStatus(
        **_state(row.health, hide),
        bytes=row.view.bytes,
        estimated_rows=row.view.estimated_rows,
        policy=None if policy is None else PolicyShown(**policy.to_dict()),
        cutoff=_iso(row.runway.cutoff) if row.runway is not None else None,
    )


def partitions(rows: Iterable[Row], offset: int, limit: int) -> list[PartitionShown]:
    """Return some of the partitions of tables, the oldest of each first."""
    every = ((row, part) for row in rows for part in row.ordered)
    return [_partition(row, part) for row, part in islice(every, offset, offset + limit)]


def _partition(row: Row, part: Partition) -> PartitionShown:
    figures = (row.view.figures or {}).get(part.oid)
    return PartitionShown(
        table=row.health.table,
        schema_=part.schema,
        name=part.name,
        from_=_iso(part.lower),
        to=_iso(part.upper),
        bytes=figures.bytes if figures else None,
        estimated_rows=figures.rows if figures else None,
        analyzed=figures.analyzed if figures else None,
        state=partition_state(part, row.runway, marks=row.view.figures is not None),
    )


def run(past: Run, hide: Hide) -> RunShown:
    """Return a past run."""
    names = ("id", "started_at", "finished_at", "action", "run_by", "application")
    counts = ("created", "detached", "archived", "dropped", "moved")
    values: dict[str, Any] = {name: getattr(past, name) for name in (*names, *counts)}
    return RunShown(**values, error=_hidden(past.error, hide), details=dict(past.details))


def job_record(past: Run, hide: Hide) -> JobRecord:
    """Return the last run of its kind, as everybody may see it."""
    return JobRecord(
        job_name=past.action,
        last_run_at=past.started_at,
        duration_ms=round((past.finished_at - past.started_at).total_seconds() * 1000),
        status="failed" if past.error else "ok",
        error_snippet=snippet(past.error, hide),
    )


def snippet(error: str | None, hide: Hide) -> str | None:
    """Return the first line of an error, cut short."""
    lines = hide(error).splitlines() if error else []
    return lines[0][:_SNIPPET] if lines else None


def _state(judged: TableHealth, hide: Hide) -> dict[str, Any]:
    return {
        "table": judged.table,
        "enabled": judged.enabled,
        "level": _level(judged.level),
        "state": judged.state,
        "reasons": [hide(reason) for reason in judged.reasons],
        "runway_days": _days(judged),
        "unlimited": judged.runway is not None and math.isinf(judged.runway),
        "covered_until": _iso(judged.horizon),
        "current_missing": judged.current_missing,
        "missing": list(judged.missing),
        "gaps": [Stretch(from_=low.isoformat(), to=high.isoformat()) for low, high in judged.gaps],
        "stranded": judged.stranded,
        "partition_count": judged.partitions,
        "due": list(judged.due),
        "misaligned": list(judged.misaligned),
        "failure": _hidden(judged.failure, hide),
    }


def _level(level: Level) -> LevelName:
    return cast("LevelName", level.name)


def _days(judged: TableHealth) -> float | None:
    return _rounded(judged.runway)


def _rounded(days: float | None) -> float | None:
    return None if days is None or math.isinf(days) else round(days, 3)


def _hidden(text: str | None, hide: Hide) -> str | None:
    return None if text is None else hide(text)


def _iso(value: date | None) -> str | None:
    return None if value is None else value.isoformat()
