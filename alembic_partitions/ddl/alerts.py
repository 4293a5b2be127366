"""Rows of partition_runs about problems that people are told of."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Update

from .tables import runs_table


def open_alert(config_schema: str, action: str, at: datetime, details: Mapping[str, Any]) -> Insert:
    """Write down that somebody is about to tell of a problem; returns the row's id."""
    runs = runs_table(config_schema)
    return (
        runs.insert()
        .values(action=action, started_at=at, finished_at=at, details=dict(details))
        .returning(runs.c.id)
    )


def change_alert(
    config_schema: str, row: int, details: Mapping[str, Any], *, was: datetime, at: datetime
) -> Update:
    """Write down what becomes of it.

    :param was: when its last message was claimed; if another has claimed one since, nothing is changed.
    """
    runs = runs_table(config_schema)
    return (
        runs.update()
        .where(runs.c.id == row, runs.c.finished_at == was)
        .values(finished_at=at, details=dict(details))
    )
