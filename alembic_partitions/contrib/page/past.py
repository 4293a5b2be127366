"""What the page says of past runs and of alerts, in words. Pure: values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alembic_partitions.catalog import ALERT, Run
from alembic_partitions.words import UNKNOWN, done, duration, some, utc

_LEVELS = {"WARNING": "warning", "CRITICAL": "critical"}
_EVENTS = {"open": "open", "repeat": "still open", "recovered": "over"}
_MESSAGES = {"sent": "told", "failed": "the message could not be sent", "sending": "message on its way"}


@dataclass(frozen=True, slots=True)
class RunTold:
    """A run."""

    at: datetime
    started: str
    ago: str
    action: str
    took: str
    by: str
    changes: str
    tables: str
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlertTold:
    """A problem that people were told of."""

    at: datetime
    since: str
    ago: str
    subject: str
    level: str
    event: str
    message: str
    id: str


def runs(found: Iterable[Run], now: datetime) -> list[RunTold]:
    """Tell of past runs, in their order."""
    return [
        RunTold(
            at=run.started_at,
            started=utc(run.started_at),
            ago=_ago(run.started_at, now),
            action=run.action,
            took=duration(run.finished_at - run.started_at),
            by=run.run_by + (f" ({run.application})" if run.application else ""),
            changes=done(run),
            tables=some(sorted(run.details)),
            errors=tuple((run.error or "").splitlines()),
        )
        for run in found
        if run.action != ALERT
    ]


def alerts(found: Iterable[Run], now: datetime) -> list[AlertTold]:
    """Tell of what people were told of, in its order; what a row does not say is unknown."""
    return [
        AlertTold(
            at=run.started_at,
            since=utc(run.started_at),
            ago=_ago(run.started_at, now),
            subject=subject,
            level=_word(_LEVELS, told, "level"),
            event=_word(_EVENTS, told, "event"),
            message=_word(_MESSAGES, told, "state"),
            id=str(told.get("id") or ""),
        )
        for run in found
        if run.action == ALERT
        for subject, told in run.details.items()
        if isinstance(told, Mapping)
    ]


def _word(words: Mapping[str, str], told: Mapping[str, Any], name: str) -> str:
    value = str(told.get(name) or UNKNOWN)
    return words.get(value, value)


def _ago(moment: datetime, now: datetime) -> str:
    return f"{duration(now - moment)} ago" if moment <= now else ""
