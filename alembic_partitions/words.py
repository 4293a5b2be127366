"""Sizes, times, policies and runs in words, as an operator reads them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, time, timedelta

from .catalog import ALERT, Run
from .health import TableHealth
from .periods import Grid, KeyValue, first_instant, zone
from .plan import Runway, instant_of, local
from .policy import PartitionPolicy

#: What could not be told, or read.
UNKNOWN = "unknown"

_SAID = {"tended": "analyzed"}
_OF_ALERT = ("level", "event", "state", "id")
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def printable(text: str, unicode: bool = True) -> str:
    """Return text that no terminal takes for a command or a new line; in ASCII unless ``unicode``."""
    kept = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return kept if unicode else kept.encode("ascii", "backslashreplace").decode()


def policy_words(policy: PartitionPolicy) -> str:
    """Say how a table is cut: "day, Pacific/Auckland"."""
    words = [policy.interval if policy.every == 1 else f"{policy.every} {policy.interval}s", policy.timezone]
    words += [f"from {policy.day_start}"] if policy.day_start != "00:00" else []
    if policy.interval == "week" and policy.week_start != "monday":
        words.append(f"from {policy.week_start}")
    return ", ".join(words)


def retention_words(policy: PartitionPolicy, runway: Runway | None) -> str:
    """Say what retention does, and how many partitions go next."""
    if policy.retention is None:
        return "keeps everything"
    due = len(runway.due) if runway is not None else 0
    return f"{policy.retention}, then {policy.on_expiry}" + (f": {due} due" if due else "")


def runway_words(health: TableHealth) -> str:
    """Say how long until inserts find no partition."""
    if health.runway is None:
        return UNKNOWN
    if math.isinf(health.runway):
        return "no end"
    return "none" if health.runway == 0 else duration(timedelta(days=health.runway))


def duration(length: timedelta) -> str:
    """Say how long in the largest unit that is not a fraction."""
    seconds = max(length.total_seconds(), 0.0)
    for unit, size in (("day", 86400), ("hour", 3600), ("min", 60)):
        count = int(seconds // size)
        if count:
            return f"{count} {unit}{'s' if count > 1 and unit != 'min' else ''}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def size(count: int | None) -> str:
    """Say how large, as psql does."""
    if count is None:
        return UNKNOWN
    number, unit = float(count), 0
    while number >= 1024 and unit < len(_SIZES) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {_SIZES[unit]}" if number >= 100 or not unit else f"{number:.1f} {_SIZES[unit]}"


def utc(instant: datetime) -> str:
    """Say when, in UTC, to the second."""
    return f"{instant.astimezone(zone('UTC')):%Y-%m-%d %H:%M:%S}"


def when(grid: Grid, value: KeyValue) -> str:
    """Say which key, on the clocks of the policy's zone; its offset where the clocks show that time twice."""
    shown = local(grid, value)
    if not isinstance(shown, datetime):
        return shown.isoformat()
    text = shown.date().isoformat()
    if shown.time() != time.min:
        text += f" {shown.time().isoformat('seconds' if shown.second else 'minutes')}"
    with suppress(OverflowError):  # where the calendar ends no clocks change
        zoned = isinstance(value, datetime) and value.tzinfo is not None
        if zoned and first_instant(shown, grid.timezone) != value:
            text += f"{instant_of(grid, value).astimezone(zone(grid.timezone)):%z}"
    return text


def stretch(grid: Grid, lower: KeyValue | None, upper: KeyValue | None) -> str:
    """Say from where to where, on the clocks of the policy's zone; ``None`` is without end."""
    if lower is None and upper is None:
        return "all there is"
    begin = "" if lower is None else when(grid, lower)
    end = "" if upper is None else when(grid, upper)
    return f"up to {end}" if not begin else f"{begin} to {end}" if end else f"from {begin} on"


def done(run: Run) -> str:
    """Say what a run did, without what it did not."""
    if run.action == ALERT:
        return "; ".join(
            f"{name}, " + ", ".join(str(known[what]) for what in _OF_ALERT if what in known)
            for name, known in run.details.items()
        )
    counts = {name: getattr(run, name) for name in ("created", "detached", "archived", "dropped")}
    # What has no column of its own is a list in the details of each table.
    for name in ("restored", "mended", "tended"):
        counts[name] = sum(len(changes.get(name, ())) for changes in run.details.values())
    told = [f"{count:,} {_SAID.get(name, name)}" for name, count in counts.items() if count]
    return ", ".join([*told, *([f"{run.moved:,} rows moved"] if run.moved else [])])


def some(names: Sequence[str], few: int = 5) -> str:
    """Name the first few, and say how many more there are."""
    more = len(names) - few
    return ", ".join(names[:few]) + (f" and {more:,} more" if more > 0 else "")
