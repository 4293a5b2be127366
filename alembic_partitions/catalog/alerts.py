"""What people were told of: rows of partition_runs whose action is ``alert``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, not_, or_, select, text

from .figures import ALERT, _details, _runs_in

_IS_OVER = text("""'$.* ? (@.event == "recovered" && @.state == "sent")'::jsonpath""")


@dataclass(frozen=True, slots=True)
class Alert:
    """A row about one problem, from its beginning until people were told of its end."""

    id: int
    started_at: datetime
    #: When its last message was claimed.
    finished_at: datetime
    details: Mapping[str, Any]


def turn_to_alert(connection: Connection, config_schema: str) -> datetime | None:
    """Take the lock that lasts until the transaction ends; return the time, or ``None`` if another has it."""
    key = func.hashtextextended(f"alembic_partitions alert {config_schema}", 0)
    # Nobody who holds partition_runs is waited for.
    limit = func.set_config("lock_timeout", "100ms", True)
    taken, now, _ = connection.execute(
        select(func.pg_try_advisory_xact_lock(key), func.clock_timestamp(), limit)
    ).one()
    return now if taken else None


def known_alerts(connection: Connection, config_schema: str, recent: timedelta) -> list[Alert]:
    """Return the problems that people do not know to be over, and those that were until of late.

    :param recent: how long ago "of late" is.
    """
    runs = _runs_in(config_schema)
    query = (
        select(runs.c.id, runs.c.started_at, runs.c.finished_at, runs.c.details)
        .where(runs.c.action == ALERT)
        .where(
            or_(
                not_(func.jsonb_path_exists(runs.c.details, _IS_OVER)),
                runs.c.finished_at > func.clock_timestamp() - recent,
            )
        )
        .order_by(runs.c.id)
    )
    return [
        Alert(row.id, row.started_at, row.finished_at, _details(row.details))
        for row in connection.execute(query)
    ]
