"""What the tests know of local time by themselves.

pytz's own lists of transitions, and the standard library's `zoneinfo`, which reads the same time zone files
with other code. Neither passes through the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone
from functools import cache
from zoneinfo import ZoneInfo

import pytz

from alembic_partitions.periods import Grid, Interval, KeyType

FIRST_YEAR, LAST_YEAR = 1990, 2037
ZONES = tuple(pytz.all_timezones)

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)

# The date itself stepped back here, so often: at 00:01 the clocks went back to 23:01 (Casey's in 2010: at
# 02:00, to 23:00).
STEPS_BACK_ACROSS_MIDNIGHT = {
    "America/Goose_Bay": 21,
    "America/Moncton": 14,
    "America/St_Johns": 21,
    "Antarctica/Casey": 1,
    "Canada/Newfoundland": 21,
}


@dataclass(frozen=True)
class Transition:
    """The instant at which the clocks of a zone go from one offset to another."""

    instant: datetime
    before: timedelta
    after: timedelta


@cache
def local(zone: str) -> ZoneInfo:
    """Return the standard library's reading of pytz's file for a zone."""
    with pytz.open_resource(zone) as file:  # type: ignore[attr-defined]  # public, but not in the stubs
        return ZoneInfo.from_file(file, key=zone)


@cache
def transitions(zone: str) -> tuple[Transition, ...]:
    """Return a zone's transitions from 1990 to 2037."""
    tables = vars(type(pytz.timezone(zone)))
    instants: list[datetime] = tables.get("_utc_transition_times", [])
    offsets: list[timedelta] = [info[0] for info in tables.get("_transition_info", [])]
    return tuple(
        Transition(instant.replace(tzinfo=timezone.utc), before, after)
        for instant, before, after in zip(instants[1:], offsets, offsets[1:], strict=False)
        if FIRST_YEAR <= instant.year <= LAST_YEAR
    )


def utc(text: str) -> datetime:
    """Read an instant written in UTC: "2026-04-04 13:37:11"."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def grid(
    interval: Interval = "day",
    timezone: str = "Pacific/Auckland",
    *,
    every: int = 1,
    day_start: str = "00:00",
    week_start: int = 0,
    key_type: KeyType = "timestamptz",
    column_timezone: str | None = None,
) -> Grid:
    return Grid(
        interval=interval,
        every=every,
        timezone=timezone,
        day_start=time.fromisoformat(day_start),
        week_start=week_start,
        key_type=key_type,
        column_timezone=column_timezone or timezone,
    )
