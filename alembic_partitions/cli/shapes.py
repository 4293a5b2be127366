"""What `status`, `check` and `history` print with --json: names that stay, times in ISO 8601."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

from alembic_partitions.catalog import Run
from alembic_partitions.standing import Found, Row, partition_state


def health_json(row: Row) -> dict[str, Any]:
    """Return how a table stands."""
    judged = row.health
    unlimited = judged.runway is not None and math.isinf(judged.runway)
    return {
        "database": row.database,
        "table": judged.table,
        "enabled": judged.enabled,
        "level": judged.level.name,
        "state": judged.state.value,
        "reasons": list(judged.reasons),
        "runway_days": None if unlimited or judged.runway is None else round(judged.runway, 3),
        "unlimited": unlimited,
        "covered_until": _iso(judged.horizon),
    }


def status_json(row: Row, found: Found, listed: bool) -> dict[str, Any]:
    """Return all that is known of a table."""
    view, runway = row.view, row.runway
    policy = view.table.policy
    told = {
        **health_json(row),
        "gaps": [[_iso(low), _iso(high)] for low, high in row.health.gaps],
        "partition_count": len(view.table.partitions),
        "bytes": view.bytes,
        "estimated_rows": row.view.estimated_rows,
        "stranded": view.stranded,
        "policy": policy.to_dict() if policy is not None else None,
        "cutoff": _iso(runway.cutoff) if runway is not None else None,
        "due": [part.name for part in runway.due] if runway is not None else [],
        **clock_json(found),
    }
    return {**told, "partitions": _partitions_json(row)} if listed else told


def _partitions_json(row: Row) -> list[dict[str, Any]]:
    told = []
    for part in row.ordered:
        figures = (row.view.figures or {}).get(part.oid)
        rows = (row.view.rows or {}).get(part.oid)
        item = {
            "schema": part.schema,
            "name": part.name,
            "from": _iso(part.lower),
            "to": _iso(part.upper),
            "bytes": figures.bytes if figures else None,
            "estimated_rows": figures.rows if figures else None,
            "analyzed": _iso(figures.analyzed) if figures else None,
            "state": partition_state(part, row.runway, marks=row.view.figures is not None),
        }
        if row.view.rows is not None:
            item |= {
                "rows": rows.count if rows else None,
                "oldest": _iso(rows.oldest) if rows else None,
                "newest": _iso(rows.newest) if rows else None,
            }
        told.append(item)
    return told


def clock_json(found: Found) -> dict[str, Any]:
    """Return the instant that all was judged at."""
    views = [view for _, view in found if view.now is not None]
    return {
        "now": _iso(views[0].now) if views else None,
        "rehearsed": any(view.rehearsed for view in views),
    }


def run_json(run: Run) -> dict[str, Any]:
    """Return a past run."""
    names = ("action", "run_by", "application", "created", "detached", "archived", "dropped", "moved")
    return {
        "id": run.id,
        "started_at": _iso(run.started_at),
        "finished_at": _iso(run.finished_at),
        **{name: getattr(run, name) for name in names},
        "error": run.error,
        "details": dict(run.details),
    }


def _iso(value: date | None) -> str | None:
    return None if value is None else value.isoformat()
