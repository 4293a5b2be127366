"""When partitions are to be maintained: every so often, or at times of the local day.

APScheduler reads the five fields and finds the next time that fits them, on a calendar without clock changes;
what instant that is on the clocks of a zone is told as for the windows of a policy. Left to itself release 3
fires "30 2" twice on the night that has two of them, and leaves out the midnight after clocks went forward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TypeAlias

import pytz

from alembic_partitions.errors import PolicyError
from alembic_partitions.keeper import seconds
from alembic_partitions.periods import first_instant, wall_clock, zone

from .beating import CronTrigger

_SHORTEST, _LONGEST = timedelta(minutes=1), timedelta(days=366)
_FIELDS = ("minute", "hour", "day", "month", "day of the week")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SOME_DAYS = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>[1-9]\d*))?")
# No clocks are set back by more.
_SET_BACK = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Every:
    """A real length of time after the last run, whatever the clocks do."""

    text: str
    period: timedelta

    def after(self, run: datetime) -> datetime:
        """Return when the run after one that began then is due."""
        return run.astimezone(timezone.utc) + self.period

    @property
    def patience(self) -> timedelta:
        """How long, at most, to wait after a run that failed."""
        return self.period

    def shown(self, instant: datetime) -> str:
        """Return an instant as a person reads it."""
        return f"{instant.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"

    def __str__(self) -> str:
        return f"every {self.text}"


@dataclass(frozen=True, slots=True)
class Cron:
    """Times of the local day.

    One that the clocks jump over is at the jump, one that they show twice is at the first; where every hour
    is meant, at both.
    """

    text: str
    timezone: str
    triggers: tuple[CronTrigger, ...]
    hourly: bool

    def after(self, run: datetime) -> datetime:
        """Return when the run after one that began then is due.

        :return: UTC.
        """
        wall = wall_clock(run, zone(self.timezone)) - _SET_BACK
        best = None
        while True:
            found = self._next(wall)
            assert found is not None  # it was found to fire now and then
            wall = found + timedelta(seconds=1)
            instants = self._instants(found)
            later = [instant for instant in instants if instant > run]
            best = min(filter(None, [best, *later]), default=None)
            if best is not None and instants[0] >= best:
                return best

    @property
    def patience(self) -> timedelta:
        """How long, at most, to wait after a run that failed; the next time is not waited for, either."""
        return timedelta(hours=6)

    def shown(self, instant: datetime) -> str:
        """Return an instant as a person reads it."""
        return f"{instant.astimezone(zone(self.timezone)):%Y-%m-%d %H:%M %Z}"

    def _next(self, wall: datetime) -> datetime | None:
        """Return the first time that fits, naive, from ``wall`` on."""
        start = wall.replace(tzinfo=timezone.utc)
        found = [trigger.get_next_fire_time(None, start) for trigger in self.triggers]
        return min((time.replace(tzinfo=None) for time in found if time is not None), default=None)

    def _instants(self, wall: datetime) -> list[datetime]:
        """Return when the clocks show that time, the first instant first."""
        first = first_instant(wall, self.timezone)
        if not self.hourly:
            return [first]
        tz = zone(self.timezone)
        shown = {tz.localize(wall, is_dst=dst).astimezone(pytz.utc) for dst in (True, False)}
        return sorted({first, *(instant for instant in shown if wall_clock(instant, tz) == wall)})

    def __str__(self) -> str:
        return f'"{self.text}" in {self.timezone}'


Rhythm: TypeAlias = "Every | Cron"


def rhythm(every: str | None, cron: str | None, timezone: str) -> Rhythm:
    """Read when runs are wanted.

    :raises PolicyError: neither or both are told, or what is told cannot be read.
    """
    if (every is None) == (cron is None):
        raise PolicyError(
            field="every",
            problem="it or cron is needed, and only one of them",
            remedy='Give every="12h", or cron="0 0 * * *" with timezone="Pacific/Auckland".',
        )
    return _every(every) if every is not None else _cron(cron or "", timezone)


def _every(text: str) -> Every:
    period = timedelta(seconds=min(seconds("every", text), 2 * _LONGEST.total_seconds()))
    if not _SHORTEST <= period <= _LONGEST:
        raise PolicyError(
            field="every",
            problem=f"{text!r} is not between a minute and {_LONGEST.days} days",
            remedy='Give one such as "12h"; inserts make what they need in between.',
        )
    return Every(text, period)


def _cron(text: str, timezone: str) -> Cron:
    if timezone not in pytz.all_timezones_set:
        raise PolicyError(
            field="timezone",
            problem=f"{timezone!r} is no time zone",
            remedy='Give the name that IANA has for it, such as "Pacific/Auckland".',
        )
    fields = text.lower().split()
    if len(fields) != len(_FIELDS):
        raise _wrong(text, f"it has {len(fields)} fields, not five: {', '.join(_FIELDS)}")
    minute, hour, day, month, weekday = fields
    weekday = _days(text, weekday)
    # As cron has it: where both are told, a day that fits either.
    either = not (day.startswith("*") or weekday.startswith("*"))
    days = [(day, "*"), ("*", weekday)] if either else [(day, weekday)]
    triggers = tuple(_trigger(text, (minute, hour, d, month, w)) for d, w in days)
    made = Cron(" ".join(text.split()), timezone, triggers, hourly=hour.startswith("*"))
    if made._next(datetime.min) is None:  # noqa: SLF001
        raise _wrong(text, "there is no such day")
    return made


def _trigger(text: str, fields: tuple[str, ...]) -> CronTrigger:
    names = ("minute", "hour", "day", "month", "day_of_week")
    for name, told, field in zip(names, _FIELDS, fields, strict=True):
        try:
            CronTrigger(**{name: field}, timezone=timezone.utc)
        except (ValueError, TypeError):
            raise _wrong(text, f"its {told} {field!r} cannot be read") from None
    return CronTrigger(**dict(zip(names, fields, strict=True)), timezone=timezone.utc)


def _days(text: str, field: str) -> str:
    """Return days of the week by their names: APScheduler counts them from Monday, cron from Sunday."""
    chosen: set[int] = set()
    for part in field.split(","):
        match = _SOME_DAYS.fullmatch(part)
        if match is None:
            raise _wrong(text, f"its {_FIELDS[4]} {field!r} cannot be read")
        if match["first"] is None:
            days = list(range(7))
        else:
            first = _day(text, match["first"])
            last = _day(text, match["last"]) if match["last"] else 6 if match["step"] else first
            last += 7 if last < first else 0  # "sat-mon"
            days = list(range(first, last + 1))
        chosen |= {day % 7 for day in days[:: int(match["step"] or 1)]}
    if len(chosen) == len(_DAYS):
        return "*"
    return ",".join(_DAYS[day] for day in sorted(chosen))


def _day(text: str, name: str) -> int:
    if name in _DAYS:
        return _DAYS.index(name)
    if name.isdecimal() and int(name) <= 7:
        return int(name)
    raise _wrong(text, f"its {_FIELDS[4]} {name!r} is none of 0 to 7, sun to sat")


def _wrong(text: str, problem: str) -> PolicyError:
    return PolicyError(
        field="cron",
        problem=f"{text!r} cannot be followed: {problem}",
        remedy='Give five fields such as "0 0 * * *", every midnight.',
    )
