"""On whose clocks edges are begins of windows: told by what the clocks of each zone show at them. Pure.

There are 597 zones, so each is first looked at by a few edges; those that do best are proposed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

import pytz

from alembic_partitions.periods import WEEKDAYS, Interval, KeyType, KeyValue, wall_clock, zone

# Of zones that fit alike the first is proposed: these are what people mean, more often than their neighbours.
WELL_KNOWN = (
    *("UTC", "Europe/London", "Europe/Berlin", "Europe/Paris", "Europe/Helsinki", "Europe/Istanbul"),
    *("Europe/Moscow", "America/New_York", "America/Chicago", "America/Denver", "America/Los_Angeles"),
    *("America/Halifax", "America/Sao_Paulo", "America/Mexico_City", "America/Bogota", "Asia/Dubai"),
    *("Asia/Kolkata", "Asia/Dhaka", "Asia/Jakarta", "Asia/Shanghai", "Asia/Singapore", "Asia/Tokyo"),
    *("Australia/Sydney", "Australia/Adelaide", "Australia/Brisbane", "Pacific/Auckland"),
)
#: So many of the newest partitions or edges decide.
RECENT = 12
_SAMPLE = 40
_BEST = 4
MIDNIGHT, _EPOCH = time(0), date(1970, 1, 1)
_MONTHS: Mapping[Interval, int] = {"month": 1, "quarter": 3, "year": 12}


def candidates(
    key_type: KeyType, sample: Sequence[KeyValue], zones: Sequence[str], fields: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield fields of the policies that do best by a few edges: those that begin at midnight come first."""
    interval, every = fields.get("interval", "day"), fields.get("every", 1)
    if key_type == "date":
        yield _fields(sample, interval, every, timezone=zones[0])
        return
    if key_type == "timestamp":
        # On the clocks that they were written by; or in UTC, by the clocks of another zone.
        yield _fields(sample, interval, every, timezone=zones[0] if len(zones) == 1 else "UTC")
    naive: dict[str, Any] = {"column_timezone": "UTC"} if key_type == "timestamp" else {}
    ranked = dict[tuple[datetime, ...], tuple[str, tuple[int, ...]]]()
    for name in zones:
        walls = tuple(wall_clock(instant(edge), zone(name)) for edge in sample)
        if walls not in ranked:  # else its clocks are another's, as far as these edges can tell
            scores = *_scores(walls, interval, every), *_scores(walls[:RECENT], interval, every)
            ranked[walls] = name, scores
    for score in range(4):
        best = sorted(ranked.items(), key=lambda item: -item[1][1][score])[:_BEST]
        for walls, (name, _) in best:
            begin = None if score % 2 else MIDNIGHT
            shown = walls if score < 2 else walls[:RECENT]
            yield _fields(shown, interval, every, begin, timezone=name, **naive)


def _scores(walls: Sequence[datetime], interval: Interval, every: int) -> tuple[int, int]:
    """Return how many of these windows begin at midnight, and at the time of day that most begin at."""
    phases = Counter(_phase(wall, interval, every) for wall in walls)
    del phases[None]
    return phases[MIDNIGHT], max(phases.values(), default=0)


def _fields(
    walls: Sequence[KeyValue], interval: Interval, every: int, day_start: time | None = None, **fields: str
) -> tuple[tuple[str, str], ...]:
    """Return the fields of a policy whose windows begin when the clocks show these times."""
    if day_start is None:
        phases = Counter(_phase(wall, interval, every) for wall in walls)
        del phases[None]
        day_start = phases.most_common(1)[0][0] if phases else MIDNIGHT
        assert day_start is not None
    found = {**fields, "day_start": f"{day_start:%H:%M}"}
    if interval == "week":
        since = timedelta(hours=day_start.hour, minutes=day_start.minute)
        weekdays = Counter((wall - since if isinstance(wall, datetime) else wall).weekday() for wall in walls)
        found["week_start"] = WEEKDAYS[weekdays.most_common(1)[0][0]]
    return tuple(found.items())


def _phase(wall: KeyValue, interval: Interval, every: int) -> time | None:
    """Return the begin of a day at which a window can begin at ``wall``, ``None`` if there is none."""
    if interval != "hour" and not _is_counted(wall, interval, every):
        return None
    if not isinstance(wall, datetime):
        return MIDNIGHT
    if wall.second or wall.microsecond:
        return None
    return time(wall.hour % every, wall.minute) if interval == "hour" else wall.time()


def _is_counted(day: date, interval: Interval, every: int) -> bool:
    """Tell whether a window begins on that day, counted from 1970."""
    if interval in _MONTHS:
        months = (day.year - 1970) * 12 + day.month - 1
        return day.day == 1 and months % (_MONTHS[interval] * every) == 0
    days = day.toordinal() - _EPOCH.toordinal()
    if interval == "week":
        days += (_EPOCH.weekday() - day.weekday()) % 7
        return days % (7 * every) == 0
    return days % every == 0


def sample_of(edges: Sequence[KeyValue]) -> list[KeyValue]:
    """Return the newest edges, then some of all seasons before."""
    older = edges[:-RECENT]
    step = max(len(older) // (_SAMPLE - RECENT), 1)
    return [*edges[-RECENT:], *older[::step]]


def instant(edge: KeyValue) -> datetime:
    assert isinstance(edge, datetime)
    return edge if edge.tzinfo is not None else edge.replace(tzinfo=pytz.utc)


def zones_to_try(first: Sequence[str], fields: Mapping[str, Any]) -> list[str]:
    if "timezone" in fields:
        return [fields["timezone"]]
    known = [name for name in first if name in pytz.all_timezones_set]
    return list(dict.fromkeys([*known, *WELL_KNOWN, *pytz.common_timezones, *pytz.all_timezones]))
