"""The times of a schedule, on nights the clocks change and over whole years. No database, no clock."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from alembic_partitions.contrib.schedule import rhythm
from alembic_partitions.errors import PolicyError
from tests.zones import utc

AUCKLAND = "Pacific/Auckland"


def times(cron: str, zone: str, begin: str, end: str) -> list[datetime]:
    """Return every time from one instant up to, not including, another."""
    told, at, found = rhythm(None, cron, zone), utc(begin) - timedelta(seconds=1), []
    while (at := told.after(at)) < utc(end):
        found.append(at)
    return found


def shown(instants: list[datetime], zone: str = AUCKLAND) -> list[str]:
    return [f"{instant.astimezone(ZoneInfo(zone)):%m-%d %H:%M %Z}" for instant in instants]


@pytest.mark.parametrize(
    ("zone", "year"),
    [
        (AUCKLAND, 2026),
        # Years long past: two copies of the time zone files need not agree on what is decided late.
        *((zone, 2024) for zone in ("America/St_Johns", "Australia/Lord_Howe", "Antarctica/Troll")),
        ("America/Havana", 2024),  # one day begins at 01:00, another has two midnights
        ("Africa/Cairo", 2024),  # one day begins at 01:00
        ("America/Santiago", 2024),
        ("Pacific/Apia", 2011),  # has no 30 December
        ("America/Goose_Bay", 2010),  # at 00:01 it is the day before again
    ],
)
def test_midnight_is_once_on_every_local_day_of_a_year(zone: str, year: int) -> None:
    tz = ZoneInfo(zone)
    begin, end = (datetime(y, 1, 1, tzinfo=tz) for y in (year, year + 1))
    found = times("0 0 * * *", zone, begin.astimezone().isoformat(), end.astimezone().isoformat())
    days = [instant.astimezone(tz).date() for instant in found]
    first = {
        (begin + timedelta(hours=h)).astimezone(ZoneInfo("UTC")).astimezone(tz).date() for h in range(9000)
    }
    assert days == sorted(day for day in first if day.year == year)
    for instant, day in zip(found, days, strict=True):
        before = (instant - timedelta(seconds=1)).astimezone(tz).date()
        assert before < day, "it is the first instant of its day"


def test_the_25_hour_day_and_the_23_hour_day_begin_at_their_midnight() -> None:
    assert shown(times("0 0 * * *", AUCKLAND, "2026-04-03 13:37", "2026-04-06 13:37")) == [
        "04-05 00:00 NZDT",
        "04-06 00:00 NZST",
        "04-07 00:00 NZST",
    ]
    assert shown(times("0 0 * * *", AUCKLAND, "2026-09-25 13:37", "2026-09-28 13:37")) == [
        "09-27 00:00 NZST",
        "09-28 00:00 NZDT",
        "09-29 00:00 NZDT",
    ]


def test_a_time_that_is_shown_twice_or_never_is_once() -> None:
    assert shown(times("30 2 * * *", AUCKLAND, "2026-04-04 01:37", "2026-04-06 01:37")) == [
        "04-05 02:30 NZDT",
        "04-06 02:30 NZST",
    ]
    assert shown(times("30 2 * * *", AUCKLAND, "2026-09-26 01:37", "2026-09-28 01:37")) == [
        "09-27 03:00 NZDT",
        "09-28 02:30 NZDT",
    ]


@pytest.mark.parametrize(("day", "hours"), [("2026-04-04 11:00", 25), ("2026-09-26 12:00", 23)])
def test_every_hour_is_every_real_hour(day: str, hours: int) -> None:
    end = utc(day) + timedelta(hours=hours)
    found = times("0 * * * *", AUCKLAND, day, end.isoformat())
    assert found == [utc(day) + timedelta(hours=hour) for hour in range(hours)]
    assert shown([end]) == [f"{(end + timedelta(hours=13)):%m-%d} 00:00 NZ{'S' if hours == 25 else 'D'}T"]


def test_twelve_hours_are_twelve_hours() -> None:
    told = rhythm("12h", None, "UTC")
    assert told.after(utc("2026-04-04 11:00")) == utc("2026-04-04 23:00")


@pytest.mark.parametrize(
    ("cron", "days"),
    [
        ("0 0 * * 0", [4, 11, 18, 25]),  # Sunday, where APScheduler itself has Monday
        ("0 0 * * 7", [4, 11, 18, 25]),
        ("0 0 * * 5-7", [2, 3, 4, 9, 10, 11, 16, 17, 18, 23, 24, 25, 30, 31]),
        ("0 0 * * sat-mon", [3, 4, 5, 10, 11, 12, 17, 18, 19, 24, 25, 26, 31]),
        ("0 0 * * 1-5/2", [2, 5, 7, 9, 12, 14, 16, 19, 21, 23, 26, 28, 30]),
        ("0 0 13 * FRI", [2, 9, 13, 16, 23, 30]),  # either of them, as cron has it
        ("0 0 1,15 jan *", [1, 15]),
        ("0 0 */10 * *", [1, 11, 21, 31]),
        ("0 0 * * 0-7", list(range(1, 32))),
    ],
)
def test_days_are_told_as_cron_has_them(cron: str, days: list[int]) -> None:
    assert [at.day for at in times(cron, "UTC", "2026-01-01", "2026-02-01")] == days


@pytest.mark.parametrize(
    ("every", "cron", "zone", "problem"),
    [
        (None, None, "UTC", "field 'every': it or cron is needed"),
        ("12h", "0 0 * * *", "UTC", "field 'every': it or cron is needed, and only one"),
        ("59 s", None, "UTC", "'59 s' is not between a minute and 366 days"),
        ("99999999999999999999 d", None, "UTC", "not between a minute and 366 days"),
        ("daily", None, "UTC", "'daily' is no duration"),
        (None, "0 0 * *", "UTC", "field 'cron'.*it has 4 fields, not five: minute, hour"),
        (None, "", "UTC", "it has 0 fields"),
        (None, "60 0 * * *", "UTC", "its minute '60' cannot be read"),
        (None, "0 24 * * *", "UTC", "its hour '24' cannot be read"),
        (None, "0 0 0 * *", "UTC", "its day '0' cannot be read"),
        (None, "0 0 * 13 *", "UTC", "its month '13' cannot be read"),
        (None, "0 0 * * 8", "UTC", "its day of the week '8' is none of 0 to 7"),
        (None, "0 0 * * mon,,", "UTC", "its day of the week 'mon,,' cannot be read"),
        (None, "*/0 0 * * *", "UTC", "its minute '\\*/0' cannot be read"),
        (None, "0 0 31 2 *", "UTC", "there is no such day"),
        (None, "0 0 * * *", "Auckland", "field 'timezone': 'Auckland' is no time zone"),
    ],
)
def test_what_cannot_be_followed_is_told(
    every: str | None, cron: str | None, zone: str, problem: str
) -> None:
    with pytest.raises(PolicyError, match=problem):
        rhythm(every, cron, zone)
