"""What pg_partman has noted down of a table, in our words. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from alembic_partitions.periods import Interval

from .adoption import Size

_PART = re.compile(r"(\d+)\s*(year|mon(?:th)?|week|day|hour)s?|(\d\d):00:00|(\w+?)ly")
_UNITS: dict[str, Interval] = {"year": "year", "mon": "month", "month": "month", "week": "week"}
_UNITS |= {"day": "day", "hour": "hour", "dai": "day", "quarter": "quarter"}
_EPOCHS = {"seconds": "s", "milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


@dataclass(frozen=True, slots=True)
class PartmanSet:
    """A row of part_config, as versions 4 and 5 have it."""

    #: Where part_config is, and the table as it stands there.
    schema: str
    parent: str
    interval: str
    premake: int | None = None
    retention: str | None = None
    keeps_tables: bool = True
    epoch: str | None = None
    #: run_maintenance() makes and drops its partitions.
    maintained: bool = False

    @property
    def size(self) -> Size | None:
        """The length of a partition; ``None`` if we have none like it."""
        found = _period(self.interval)
        if found is None:
            return None
        count, unit = found
        if unit == "day" and count % 7 == 0:
            return "week", count // 7
        if unit == "month" and count == 3:
            return "quarter", 1
        if unit == "month" and count % 12 == 0:
            return "year", count // 12
        return None if unit == "hour" and 24 % count else (unit, count)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a policy that it tells."""
        told: dict[str, Any] = {} if self.premake is None else {"premake": self.premake}
        period = None if self.retention is None else _period(self.retention)
        if period is not None:
            count, unit = period
            told["retention"] = f"{count} {unit}{'s' * (count != 1)}"
            told |= {} if self.keeps_tables else {"on_expiry": "drop"}
        if self.epoch in _EPOCHS:
            told["epoch"] = _EPOCHS[self.epoch]
        return told

    @property
    def untold(self) -> str | None:
        """Its retention, where we have none like it."""
        return self.retention if self.retention is not None and "retention" not in self.fields else None


def _period(text: str) -> tuple[int, Interval] | None:
    """Read an interval of one unit; "1 year 2 mons" has two, which months can count."""
    found = list(_PART.finditer(text.lower()))
    if not found or _PART.sub("", text.lower()).strip():
        return None
    counts: dict[Interval, int] = {}
    for number, unit, hours, word in (match.groups() for match in found):
        name = _UNITS.get(unit or word or "hour")
        if name is None:
            return None
        counts[name] = counts.get(name, 0) + int(number or hours or 1)
    if len(counts) > 1 and counts.keys() <= {"year", "month"}:
        counts = {"month": 12 * counts["year"] + counts["month"]}
    if len(counts) != 1:
        return None
    (unit, count), *_ = counts.items()
    return (count, unit) if 1 <= count <= 999_999 else None
