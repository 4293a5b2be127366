"""Windows of local time: odd days of calendar and clocks by name, then properties over all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
import pytz
from hypothesis import given, settings
from hypothesis import strategies as st

from alembic_partitions.errors import WindowRangeError
from alembic_partitions.periods import (
    INTERVALS,
    Grid,
    Interval,
    KeyType,
    KeyValue,
    Period,
    Window,
    changes_clocks,
    exact_suffix,
    first_instant,
    iso_time,
    zone,
)
from tests.zones import HOUR, ZONES, grid, local, transitions, utc


def run(windows: Grid, first: KeyValue, count: int) -> list[Window]:
    """Return the window that holds `first` and those after it, `count` in all."""
    found = [windows.at(first)]
    while len(found) < count:
        found.append(windows.after(found[-1]))
    return found


def suffixes(windows: Grid, first: KeyValue, count: int) -> list[str]:
    return [window.suffix for window in run(windows, first, count)]


def utc_span(window: Window) -> tuple[str, str]:
    return f"{window.begin:%Y-%m-%d %H:%M}", f"{window.end:%Y-%m-%d %H:%M}"


# -- the calendar --------------------------------------------------------------------------------------


def test_a_leap_day_has_a_window_and_the_day_after_it_is_march() -> None:
    day = grid("day", "UTC")
    assert suffixes(day, utc("2028-02-28 13:37:11"), 3) == ["2028_02_28", "2028_02_29", "2028_03_01"]
    assert suffixes(day, utc("2027-02-28 13:37:11"), 2) == ["2027_02_28", "2027_03_01"]


def test_february_of_a_leap_year_is_29_days_long() -> None:
    window = grid("month", "UTC").at(utc("2028-02-29 13:37:11"))
    assert utc_span(window) == ("2028-02-01 00:00", "2028-03-01 00:00")
    assert window.suffix == "2028_02"


def test_the_year_ends_at_local_midnight() -> None:
    # 11:00Z on the last day of December is midnight of New Zealand's summer.
    for interval, before, after in [
        ("day", "2026_12_31", "2027_01_01"),
        ("month", "2026_12", "2027_01"),
        ("quarter", "2026_q4", "2027_q1"),
        ("year", "2026", "2027"),
    ]:
        windows = grid(interval)  # type: ignore[arg-type]
        assert windows.at(utc("2026-12-31 10:59:59")).suffix == before
        assert windows.at(utc("2026-12-31 11:00:00")).suffix == after


def test_week_53_is_a_week_like_any_other_and_is_named_by_its_first_day() -> None:
    window = grid("week", "UTC").at(utc("2027-01-01 13:37:11"))
    assert date(2027, 1, 1).isocalendar().week == 53
    assert window.suffix == "2026_12_28"
    assert utc_span(window) == ("2026-12-28 00:00", "2027-01-04 00:00")


def test_a_week_that_starts_on_sunday() -> None:
    window = grid("week", "UTC", week_start=6).at(utc("2026-11-21 13:37:11"))  # a Saturday
    assert utc_span(window) == ("2026-11-15 00:00", "2026-11-22 00:00")
    assert window.suffix == "2026_11_15"


@pytest.mark.parametrize("week_start", range(7))
def test_a_week_starts_on_its_weekday(week_start: int) -> None:
    windows = grid("week", week_start=week_start, key_type="date")
    for window in run(windows, date(1969, 12, 20), 5):
        assert window.begin.weekday() == week_start


@pytest.mark.parametrize(
    ("day", "suffix"),
    [("03-31", "q1"), ("04-01", "q2"), ("06-30", "q2"), ("07-01", "q3"), ("12-31", "q4")],
)
def test_quarters_are_named_by_number(day: str, suffix: str) -> None:
    assert grid("quarter", "UTC").at(utc(f"2026-{day} 13:37:11")).suffix == f"2026_{suffix}"


@pytest.mark.parametrize(
    ("interval", "every", "begin", "end"),
    [
        ("day", 2, "2026-11-21", "2026-11-23"),
        ("day", 7, "2026-11-19", "2026-11-26"),  # from 1970-01-01, a Thursday
        ("week", 2, "2026-11-16", "2026-11-30"),
        ("month", 2, "2026-11-01", "2027-01-01"),
        ("month", 5, "2026-09-01", "2027-02-01"),
        ("quarter", 2, "2026-07-01", "2027-01-01"),
        ("year", 2, "2026-01-01", "2028-01-01"),
        ("year", 10, "2020-01-01", "2030-01-01"),
    ],
)
def test_multiples_count_from_1970(interval: Interval, every: int, begin: str, end: str) -> None:
    window = grid(interval, "UTC", every=every).at(utc("2026-11-22 13:37:11"))
    assert utc_span(window) == (f"{begin} 00:00", f"{end} 00:00")
    # Counted here by hand from the epoch.
    months = {"month": 1, "quarter": 3, "year": 12}.get(interval)
    first, epoch = date.fromisoformat(begin), date(1970, 1, 1)
    if months:
        assert ((first.year - 1970) * 12 + first.month - 1) % (months * every) == 0
    elif interval == "week":
        assert (first - date(1969, 12, 29)).days % (7 * every) == 0  # the Monday of that week
    else:
        assert (first - epoch).days % every == 0


def test_windows_before_1970_tile_too() -> None:
    for interval in INTERVALS:
        windows = grid(interval, "UTC", every=2)
        found = run(windows, utc("1969-12-25 13:37:11"), 4)
        assert all(one.end == next_.begin for one, next_ in pairwise(found))
        assert windows.before(found[1]) == found[0]


def test_a_day_that_starts_at_six() -> None:
    day = grid("day", day_start="06:00")
    at_0537 = day.at(utc("2026-11-21 16:37:11"))  # 05:37:11 on the 22nd in Auckland
    assert at_0537.suffix == "2026_11_21"
    assert utc_span(at_0537) == ("2026-11-20 17:00", "2026-11-21 17:00")
    assert day.after(at_0537).suffix == "2026_11_22"
    month = grid("month", day_start="06:00").at(utc("2026-10-31 16:59:59"))
    assert month.suffix == "2026_10"
    assert utc_span(month) == ("2026-09-30 17:00", "2026-10-31 17:00")


# -- nights on which the clocks change -----------------------------------------------------------------


def test_new_zealand_night_of_25_hours() -> None:
    window = grid("day").at(utc("2026-04-05 01:37:11"))
    assert window == Window(utc("2026-04-04 11:00"), utc("2026-04-05 12:00"), "2026_04_05")


def test_new_zealand_night_of_23_hours() -> None:
    window = grid("day").at(utc("2026-09-27 01:37:11"))
    assert window == Window(utc("2026-09-26 12:00"), utc("2026-09-27 11:00"), "2026_09_27")


def test_the_days_beside_the_clock_changes_are_24_hours_long() -> None:
    for day in ("2026-04-03", "2026-04-05", "2026-09-25", "2026-09-27"):
        window = grid("day").at(utc(f"{day} 13:37:11"))
        assert isinstance(window.begin, datetime)
        assert window.end == window.begin + 24 * HOUR


def test_the_repeated_hour_in_auckland_has_a_window_of_its_own() -> None:
    assert suffixes(grid("hour"), utc("2026-04-04 12:37:11"), 4) == [
        "2026_04_05_01",
        "2026_04_05_02",
        "2026_04_05_02b",
        "2026_04_05_03",
    ]
    assert len(set(suffixes(grid("hour"), utc("2026-04-04 11:00"), 25))) == 25


def test_the_missing_hour_in_auckland_has_no_window() -> None:
    hours = run(grid("hour"), utc("2026-09-26 13:37:11"), 2)
    assert [hour.suffix for hour in hours] == ["2026_09_27_01", "2026_09_27_03"]
    assert hours[0].end == utc("2026-09-26 14:00") == hours[1].begin


def test_lord_howe_shifts_by_half_an_hour() -> None:
    back = run(grid("hour", "Australia/Lord_Howe"), utc("2026-04-04 14:37:11"), 2)
    assert [utc_span(hour) for hour in back] == [
        ("2026-04-04 14:00", "2026-04-04 15:30"),  # 01:00 to 02:00, of which the last half came twice
        ("2026-04-04 15:30", "2026-04-04 16:30"),
    ]
    assert [hour.suffix for hour in back] == ["2026_04_05_01", "2026_04_05_02"]
    forward = run(grid("hour", "Australia/Lord_Howe"), utc("2026-10-03 14:37:11"), 3)
    assert [utc_span(hour) for hour in forward[1:]] == [
        ("2026-10-03 15:30", "2026-10-03 16:00"),
        ("2026-10-03 16:00", "2026-10-03 17:00"),
    ]
    assert [hour.suffix for hour in forward] == ["2026_10_04_01", "2026_10_04_0230", "2026_10_04_03"]


def test_chatham_shifts_at_a_quarter_to() -> None:
    back = run(grid("hour", "Pacific/Chatham"), utc("2026-04-04 13:37:11"), 3)
    assert [utc_span(hour) for hour in back] == [
        ("2026-04-04 13:15", "2026-04-04 14:15"),  # 03:00 to 03:45, then 02:45 to 03:00 again
        ("2026-04-04 14:15", "2026-04-04 15:15"),
        ("2026-04-04 15:15", "2026-04-04 16:15"),
    ]
    assert [hour.suffix for hour in back] == ["2026_04_05_03", "2026_04_05_03b", "2026_04_05_04"]
    forward = run(grid("hour", "Pacific/Chatham"), utc("2026-09-26 13:37:11"), 3)
    assert [hour.suffix for hour in forward] == ["2026_09_27_02", "2026_09_27_0345", "2026_09_27_04"]


def test_multiples_of_hours_restart_each_day_and_strike_by_the_wall_clock() -> None:
    assert suffixes(grid("hour", every=6), utc("2026-04-04 11:37:11"), 5) == [
        "2026_04_05_00",
        "2026_04_05_06",
        "2026_04_05_12",
        "2026_04_05_18",
        "2026_04_06_00",
    ]
    first = grid("hour", every=6).at(utc("2026-04-04 11:37:11"))
    assert utc_span(first) == ("2026-04-04 11:00", "2026-04-04 18:00")  # seven hours that night
    assert suffixes(grid("hour", every=8, day_start="06:00"), utc("2026-11-21 17:37:11"), 4) == [
        "2026_11_22_06",
        "2026_11_22_14",
        "2026_11_22_22",
        "2026_11_23_06",
    ]


def test_hours_of_a_day_that_starts_at_half_past() -> None:
    assert suffixes(grid("hour", "UTC", day_start="00:30"), utc("2026-11-22 13:37:11"), 2) == [
        "2026_11_22_1330",
        "2026_11_22_1430",
    ]


def test_apia_skipped_a_whole_day() -> None:
    # 2011-12-30: there was no such day, so there is no instant for it and no window.
    windows = grid("day", "Pacific/Apia")
    days = run(windows, utc("2011-12-29 13:37:11"), 3)
    assert [day.suffix for day in days] == ["2011_12_29", "2011_12_31", "2012_01_01"]
    assert days[0].end == utc("2011-12-30 10:00") == days[1].begin
    assert windows.before(days[1]) == days[0]
    assert suffixes(grid("hour", "Pacific/Apia"), utc("2011-12-30 09:37:11"), 2) == [
        "2011_12_29_23",
        "2011_12_31_00",
    ]


def test_apia_skipped_the_first_day_of_a_window_of_two() -> None:
    # The pair 30th and 31st is named by its first day, although it has but the 31st to hold.
    pair = grid("day", "Pacific/Apia", every=2)
    number = (date(2011, 12, 30) - date(1970, 1, 1)).days
    holds_the_30th_first = number % 2 == 0
    assert pair.at(utc("2011-12-30 10:00")).suffix == ("2011_12_30" if holds_the_30th_first else "2011_12_31")


def test_apias_skipped_day_exists_for_naive_values_and_dates() -> None:
    # Nobody's clock showed it, but a column may hold it: no value is ever without a window.
    assert grid("day", "Pacific/Apia", key_type="date").at(date(2011, 12, 30)).suffix == "2011_12_30"
    naive = grid("day", "Pacific/Apia", key_type="timestamp")
    assert naive.at(datetime(2011, 12, 30, 13, 37, 11)).suffix == "2011_12_30"


@pytest.mark.parametrize(
    ("name", "begin", "suffix"),
    [
        ("America/Havana", "2024-03-10 05:00", "2024_03_10"),
        ("Asia/Beirut", "2024-03-30 22:00", "2024_03_31"),
        ("America/Santiago", "2024-09-08 04:00", "2024_09_08"),
    ],
)
def test_a_midnight_that_does_not_exist_begins_at_the_first_instant_after_it(
    name: str, begin: str, suffix: str
) -> None:
    windows = grid("day", name)
    window = windows.at(utc(begin))
    assert (window.begin, window.suffix) == (utc(begin), suffix)
    assert utc(begin).astimezone(local(name)).hour == 1
    assert windows.before(window).end == utc(begin)
    # The first hour of such a day is the second one.
    assert grid("hour", name).at(utc(begin)).suffix == f"{suffix}_01"


@pytest.mark.parametrize(
    ("name", "begin", "suffix"),
    [
        ("America/Havana", "2024-11-03 04:00", "2024_11_03"),
        ("Atlantic/Azores", "2023-10-29 00:00", "2023_10_29"),
    ],
)
def test_a_midnight_that_happens_twice_begins_at_its_first_occurrence(
    name: str, begin: str, suffix: str
) -> None:
    window = grid("day", name).at(utc(begin) + HOUR)
    assert (window.begin, window.suffix) == (utc(begin), suffix)
    again = utc(begin) + HOUR
    assert again.astimezone(local(name)).hour == 0 == utc(begin).astimezone(local(name)).hour
    assert suffixes(grid("hour", name), utc(begin), 3) == [f"{suffix}_00", f"{suffix}_00b", f"{suffix}_01"]


def test_a_repeated_last_hour_stays_in_its_old_day() -> None:
    # Santiago goes back at 24:00 to 23:00: the midnight is struck once, an hour later.
    assert suffixes(grid("hour", "America/Santiago"), utc("2024-04-07 02:37:11"), 3) == [
        "2024_04_06_23",
        "2024_04_06_23b",
        "2024_04_07_00",
    ]
    day = grid("day", "America/Santiago").at(utc("2024-04-07 03:37:11"))
    assert day == Window(utc("2024-04-06 03:00"), utc("2024-04-07 04:00"), "2024_04_06")


def test_in_st_johns_the_first_midnight_rules() -> None:
    # Until 2011 the clocks went from 00:01 back to 23:01 of the old date. One minute into the new day its
    # window had begun, and no window begins twice: the repeated hour of the old date lies in the new one's.
    name, repeated = "America/St_Johns", utc("2010-11-07 03:00")
    assert repeated.astimezone(local(name)).isoformat() == "2010-11-06T23:30:00-03:30"
    window = grid("day", name).at(repeated)
    assert window == Window(utc("2010-11-07 02:30"), utc("2010-11-08 03:30"), "2010_11_07")
    assert suffixes(grid("hour", name), utc("2010-11-07 02:29"), 4) == [
        "2010_11_06_23",
        "2010_11_07_00",
        "2010_11_07_00b",
        "2010_11_07_01",
    ]


def test_the_begin_of_a_day_that_is_not_midnight_can_be_missing_or_repeated_too() -> None:
    missing = grid("day", day_start="02:30").at(utc("2026-09-27 01:37:11"))
    assert (missing.begin, missing.suffix) == (utc("2026-09-26 14:00"), "2026_09_27")
    repeated = grid("day", day_start="02:30").at(utc("2026-04-05 01:37:11"))
    assert (repeated.begin, repeated.suffix) == (utc("2026-04-04 13:30"), "2026_04_05")


# -- first_instant -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wall", "expected"),
    [
        ("Pacific/Auckland", "2026-11-22 13:37:11", "2026-11-22 00:37:11"),
        ("Pacific/Auckland", "2026-09-27 02:37:11", "2026-09-26 14:00"),  # skipped: the first one after
        ("Pacific/Auckland", "2026-09-27 02:37:11.500", "2026-09-26 14:00"),
        ("Pacific/Auckland", "2026-04-05 02:37:11", "2026-04-04 13:37:11"),  # twice: the first of them
        ("Australia/Lord_Howe", "2026-10-04 02:10", "2026-10-03 15:30"),
        ("Pacific/Apia", "2011-12-30 13:37:11", "2011-12-30 10:00"),
        ("UTC", "2026-11-22 13:37:11", "2026-11-22 13:37:11"),
    ],
)
def test_first_instant(name: str, wall: str, expected: str) -> None:
    assert first_instant(datetime.fromisoformat(wall), name) == utc(expected)


@given(st.sampled_from(ZONES), st.datetimes(datetime(1990, 1, 1), datetime(2037, 12, 30)))
@settings(deadline=None, max_examples=300)
def test_nothing_before_the_first_instant_shows_that_wall_time(name: str, wall: datetime) -> None:
    instant = first_instant(wall, name)
    shown = instant.astimezone(local(name)).replace(tzinfo=None, fold=0)
    assert shown >= wall
    # Not later than the wall time unless the clocks jumped right there; and never shown in the hours before.
    if shown > wall:
        just_before = (instant - timedelta(seconds=1)).astimezone(local(name)).replace(tzinfo=None, fold=0)
        assert just_before < wall
        assert instant in {transition.instant for transition in transitions(name)}
    for minutes in range(1, 26 * 60, 7):
        earlier = instant - timedelta(minutes=minutes)
        assert earlier.astimezone(local(name)).replace(tzinfo=None, fold=0) != wall


# -- types of keys -------------------------------------------------------------------------------------


def test_windows_over_dates_are_whole_dates_whatever_the_zone() -> None:
    for windows in (
        grid("week", key_type="date"),
        grid("week", "America/New_York", key_type="date", day_start="06:00"),
    ):
        assert windows.at(date(2026, 11, 22)) == Window(date(2026, 11, 16), date(2026, 11, 23), "2026_11_16")


def test_which_date_it_is_now_follows_zone_and_day_start() -> None:
    now = utc("2026-11-21 16:37:11")  # 05:37:11 on the 22nd in Auckland
    assert grid(key_type="date").key_at(now) == date(2026, 11, 22)
    assert grid(key_type="date", day_start="06:00").key_at(now) == date(2026, 11, 21)
    assert grid("day", "UTC", key_type="date").key_at(now) == date(2026, 11, 21)


def test_windows_over_naive_values_are_wall_clock_days() -> None:
    windows = grid(key_type="timestamp")
    for day in (date(2026, 4, 5), date(2026, 9, 27), date(2026, 11, 22)):
        midnight = datetime(day.year, day.month, day.day)
        expected = Window(midnight, midnight + timedelta(days=1), f"{day:%Y_%m_%d}")
        assert windows.at(midnight + timedelta(hours=2, minutes=37, seconds=11)) == expected
    assert windows.key_at(utc("2026-11-22 00:37:11")) == datetime(2026, 11, 22, 13, 37, 11)


def test_naive_values_written_in_another_zone() -> None:
    # UTC in the column, New Zealand's day in the windows: the edges are the UTC readings of its midnights.
    windows = grid(key_type="timestamp", column_timezone="UTC")
    window = windows.at(datetime(2026, 4, 5, 1, 37, 11))
    assert window == Window(datetime(2026, 4, 4, 11), datetime(2026, 4, 5, 12), "2026_04_05")
    assert windows.key_at(utc("2026-04-05 01:37:11")) == datetime(2026, 4, 5, 1, 37, 11)
    hours = grid("hour", key_type="timestamp", column_timezone="UTC")
    assert suffixes(hours, datetime(2026, 4, 4, 13, 37, 11), 2) == ["2026_04_05_02", "2026_04_05_02b"]


def test_naive_values_written_in_a_zone_with_clock_changes() -> None:
    # The server writes New York's wall clock, the windows are UTC days.
    windows = grid("day", "UTC", key_type="timestamp", column_timezone="America/New_York")
    assert windows.at(datetime(2026, 7, 1, 13, 37, 11)).begin == datetime(2026, 6, 30, 20)
    assert windows.at(datetime(2026, 12, 1, 13, 37, 11)).begin == datetime(2026, 11, 30, 19)
    days = run(windows, datetime(2026, 3, 6, 13, 37, 11), 4)
    assert all(one.end == next_.begin for one, next_ in pairwise(days))


@pytest.mark.parametrize("day", ["1991-04-13", "1991-09-14"])
def test_hours_over_naive_values_tile_in_a_zone_that_changed_its_clocks_long_ago(day: str) -> None:
    # Shanghai changed its clocks until 1991; a policy for it is allowed, and old rows exist.
    windows = grid("hour", "Asia/Shanghai", key_type="timestamp")
    start = datetime.fromisoformat(f"{day} 20:00")
    for minutes in range(0, 8 * 60, 7):
        window = windows.at(start + timedelta(minutes=minutes))
        assert isinstance(window.begin, datetime)
        assert isinstance(window.end, datetime)
        assert window.begin <= start + timedelta(minutes=minutes) < window.end
    assert len(set(suffixes(windows, start, 8))) == 8


# -- what a person means -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "instant"),
    [
        ("2026-04-05", "2026-04-04 11:00"),
        (date(2026, 4, 5), "2026-04-04 11:00"),
        ("2026-04-05 13:37:11", "2026-04-05 01:37:11"),
        ("2026-04-05T13:37:11", "2026-04-05 01:37:11"),
        (datetime(2026, 4, 5, 2, 37, 11), "2026-04-04 13:37:11"),  # twice: the first of them
        ("2026-09-27 02:37:11", "2026-09-26 14:00"),  # never: the first instant after
        ("2026-04-05T13:37:11Z", "2026-04-05 13:37:11"),
        ("2026-04-05T13:37:11+02:00", "2026-04-05 11:37:11"),
        (utc("2026-04-05 13:37:11"), "2026-04-05 13:37:11"),
    ],
)
def test_a_moment_without_a_zone_is_on_the_local_clocks(moment: KeyValue | str, instant: str) -> None:
    assert grid().key_of(moment) == utc(instant)
    in_utc = grid(key_type="timestamp", column_timezone="UTC")
    assert in_utc.key_of(moment) == utc(instant).replace(tzinfo=None)


def test_a_moment_for_a_column_of_dates() -> None:
    windows = grid(key_type="date", day_start="06:00")
    assert windows.key_of("2026-11-22") == date(2026, 11, 22)
    assert windows.key_of("2026-11-22 05:37:11") == date(2026, 11, 21)
    assert windows.key_of("2026-11-21 16:37:11+00:00") == date(2026, 11, 21)
    assert windows.key_of("2026-11-21 17:37:11+00:00") == date(2026, 11, 22)


def test_a_moment_for_a_column_of_wall_clock_times() -> None:
    windows = grid(key_type="timestamp", day_start="06:00")
    assert windows.key_of("2026-11-22") == datetime(2026, 11, 22, 6)
    assert windows.key_of("2026-09-27 02:37:11") == datetime(2026, 9, 27, 2, 37, 11)
    assert windows.key_of("2026-11-22T00:37:11Z") == datetime(2026, 11, 22, 13, 37, 11)


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-13-01", "2026-02-29", "22.11.2026", "0001-01-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        grid().key_of(text)


# -- the end of what pytz knows ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Pacific/Auckland", "America/New_York", "Europe/Berlin"])
@pytest.mark.parametrize("interval", INTERVALS)
def test_beyond_2037_is_refused_where_clocks_change(name: str, interval: Interval) -> None:
    windows = grid(interval, name)
    windows.at(utc("2037-12-26 13:37:11"))  # the last whole week
    with pytest.raises(WindowRangeError, match=f"pytz knows no clock changes of {name} after 2037"):
        windows.at(utc("2040-07-01 13:37:11"))


@pytest.mark.parametrize("name", ["UTC", "Asia/Tokyo", "Etc/GMT+12", "Asia/Kathmandu"])
def test_beyond_2037_is_allowed_where_clocks_never_change(name: str) -> None:
    assert not changes_clocks(name)
    window = grid("day", name).at(utc("2140-07-01 01:37:11"))
    assert window.suffix == f"{utc('2140-07-01 01:37:11').astimezone(local(name)):%Y_%m_%d}"


def test_beyond_2037_dates_and_wall_clocks_need_no_rules() -> None:
    assert grid(key_type="date").at(date(2140, 7, 1)).suffix == "2140_07_01"
    assert grid(key_type="timestamp").at(datetime(2140, 7, 1, 13, 37, 11)).suffix == "2140_07_01"


def test_beyond_2037_is_refused_where_the_columns_clocks_change() -> None:
    # A UTC day read on Berlin's clocks: in July 2040 that needs a rule that pytz does not have.
    windows = grid("day", "UTC", key_type="timestamp", column_timezone="Europe/Berlin")
    with pytest.raises(WindowRangeError, match="Europe/Berlin"):
        windows.at(datetime(2040, 7, 1, 13, 37, 11))


def test_a_refusal_says_which_value_and_what_to_do() -> None:
    with pytest.raises(WindowRangeError, match='Use a fixed-offset zone such as "UTC"') as refusal:
        grid().at(utc("2040-07-01 13:37:11"))
    assert "2040" in str(refusal.value.value)
    assert isinstance(refusal.value, ValueError)


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("extreme", [datetime.min, datetime.max])
def test_the_ends_of_the_calendar_are_refused_clearly(interval: Interval, extreme: datetime) -> None:
    for name in ("UTC", "Asia/Tokyo", "Pacific/Auckland", "America/New_York"):
        for windows, value in (
            (grid(interval, name, every=24), extreme.replace(tzinfo=timezone.utc)),
            (grid("day", name, key_type="timestamp"), extreme),
            (grid("year", name, key_type="date", every=7), extreme.date()),
        ):
            try:
                window = windows.at(value)
            except WindowRangeError:
                continue
            assert window.begin <= value < window.end


# -- any policy, any value -----------------------------------------------------------------------------

# No window so long that a run of five reaches beyond 2037.
EVERY: dict[Interval, st.SearchStrategy[int]] = {
    "hour": st.sampled_from([n for n in range(1, 25) if 24 % n == 0]),
    "day": st.integers(1, 1000),
    "week": st.integers(1, 150),
    "month": st.integers(1, 36),
    "quarter": st.integers(1, 12),
    "year": st.integers(1, 3),
}
DAY_STARTS = st.one_of(
    st.just("00:00"),
    st.sampled_from(["00:01", "02:00", "02:30", "03:00", "23:00", "23:01", "23:30"]),
    st.times().map("{:%H:%M}".format),
)
NEARBY = st.timedeltas(-30 * HOUR, 30 * HOUR)


@st.composite
def grids(draw: st.DrawFn, key_types: tuple[KeyType, ...] = ("timestamptz", "timestamp", "date")) -> Grid:
    interval = draw(st.sampled_from(INTERVALS))
    key_type = draw(st.sampled_from(key_types))
    name = draw(st.sampled_from(ZONES))
    column = draw(st.one_of(st.just(name), st.sampled_from(ZONES)))
    if interval == "hour" and key_type == "date":
        key_type = "timestamptz"
    if interval == "hour" and key_type == "timestamp" and changes_clocks(column):
        column = "UTC"
    return grid(
        interval,
        name,
        every=draw(EVERY[interval]),
        day_start=draw(DAY_STARTS),
        week_start=draw(st.integers(0, 6)),
        key_type=key_type,
        column_timezone=column,
    )


def as_utc(wall: datetime) -> datetime:
    return wall.replace(tzinfo=timezone.utc)


def add(instant: datetime, step: timedelta) -> datetime:
    return instant + step


@st.composite
def instants(draw: st.DrawFn, name: str) -> datetime:
    """Any instant from 1990 to 2019, more often than not near a clock change of the zone."""
    changes = [t.instant for t in transitions(name) if t.instant.year < 2019]
    anywhere = st.datetimes(datetime(1990, 1, 3), datetime(2019, 12, 28)).map(as_utc)
    if not changes:
        return draw(anywhere)
    return draw(st.one_of(anywhere, st.builds(add, st.sampled_from(changes), NEARBY)))


@st.composite
def values(draw: st.DrawFn, windows: Grid) -> KeyValue:
    instant = draw(instants(windows.timezone))
    if windows.key_type == "timestamptz":
        return instant
    if windows.key_type == "date":
        return instant.date()
    # Any wall-clock time may stand in the column, those that its clocks skipped included.
    name = draw(st.sampled_from([windows.column_timezone, "UTC"]))
    return draw(instants(name)).astimezone(local(name)).replace(tzinfo=None, fold=0)


ANY = settings(deadline=None, max_examples=400)


@given(st.data())
@ANY
def test_a_value_lies_in_its_window_and_every_value_of_a_window_finds_it(data: st.DataObject) -> None:
    windows = data.draw(grids())
    value = data.draw(values(windows))
    window = windows.at(value)
    assert window.begin <= value < window.end
    assert windows.at(window.begin) == window
    tick = timedelta(microseconds=1) if isinstance(value, datetime) else timedelta(days=1)
    assert windows.at(window.end - tick) == window
    ticks = (window.end - window.begin) // tick  # type: ignore[operator]  # two of the same type
    assert windows.at(window.begin + data.draw(st.integers(0, ticks - 1)) * tick) == window


@given(st.data())
@ANY
def test_windows_tile_in_both_directions_and_never_share_a_name(data: st.DataObject) -> None:
    windows = data.draw(grids())
    short = windows.interval == "hour" or (windows.interval == "day" and windows.every < 30)
    found = run(windows, data.draw(values(windows)), 30 if short else 5)
    for one, following in pairwise(found):
        assert one.begin < one.end == following.begin
        assert windows.before(following) == one
    assert len({window.suffix for window in found}) == len(found)
    assert windows.before(found[0]).suffix not in {window.suffix for window in found}


@given(st.data())
@ANY
def test_equal_instants_have_equal_windows_whatever_zone_they_are_written_in(data: st.DataObject) -> None:
    windows = data.draw(grids(key_types=("timestamptz",)))
    instant = data.draw(instants(windows.timezone))
    window = windows.at(instant)
    other = data.draw(st.sampled_from(ZONES))
    offset = timezone(timedelta(minutes=data.draw(st.integers(-1439, 1439))))
    for written in (
        instant.astimezone(local(windows.timezone)),
        instant.astimezone(ZoneInfo("UTC")),
        instant.astimezone(local(other)),
        instant.astimezone(zone(other)),
        instant.astimezone(zone(windows.timezone)),
        instant.astimezone(offset),
    ):
        again = windows.at(written)
        assert again == window
        assert (repr(again), windows.key_at(written)) == (repr(window), instant)


@given(st.data())
@ANY
def test_what_a_row_written_now_carries_lies_in_a_window_of_now(data: st.DataObject) -> None:
    windows = data.draw(grids())
    instant = data.draw(instants(windows.timezone))
    key = windows.key_at(instant)
    window = windows.at(key)
    assert window.begin <= key < window.end
    if windows.key_type == "timestamptz":
        assert key == instant


@given(st.data())
@ANY
def test_bounds_of_instants_are_written_in_utc(data: st.DataObject) -> None:
    windows = data.draw(grids(key_types=("timestamptz",)))
    window = windows.at(data.draw(instants(windows.timezone)))
    for edge in (window.begin, window.end):
        assert isinstance(edge, datetime)
        assert edge.isoformat().endswith("+00:00")
        assert edge.tzinfo is pytz.utc


@given(st.data())
@ANY
def test_the_date_of_a_day_means_its_begin(data: st.DataObject) -> None:
    windows = replace(data.draw(grids()), interval="day", every=1)
    window = windows.at(data.draw(values(windows)))
    assert windows.key_of(window.suffix.replace("_", "-")) == window.begin


# -- names of windows off the grid ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "suffix"),
    [
        (date(2026, 11, 22), "2026_11_22"),
        (datetime(2026, 11, 22, 13, 37, 11), "2026_11_22_133711"),
        (datetime(2026, 11, 22, 13, 37, 11, 42), "2026_11_22_133711_000042"),
        (utc("2026-11-22 13:37:11"), "2026_11_22_133711z"),
        (utc("2026-11-22 13:37:11.500"), "2026_11_22_133711_500000z"),
    ],
)
def test_a_window_off_the_grid_is_named_by_its_full_start(value: KeyValue, suffix: str) -> None:
    assert exact_suffix(value) == suffix


def test_a_full_start_is_named_in_utc_whatever_zone_it_is_written_in() -> None:
    instant = utc("2026-11-22 13:37:11")
    assert exact_suffix(instant.astimezone(local("Pacific/Auckland"))) == exact_suffix(instant)


# -- periods -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        # From 2026-11-22 13:37:11 in Auckland, in its summer (UTC+13).
        ("1 hour", "2026-11-21 23:37:11", "2026-11-22 01:37:11"),
        ("1 day", "2026-11-21 00:37:11", "2026-11-23 00:37:11"),
        ("90 days", "2026-08-24 01:37:11", "2027-02-20 00:37:11"),
        ("2 weeks", "2026-11-08 00:37:11", "2026-12-06 00:37:11"),
        ("6 months", "2026-05-22 01:37:11", "2027-05-22 01:37:11"),
        ("2 quarters", "2026-05-22 01:37:11", "2027-05-22 01:37:11"),
        ("1 year", "2025-11-22 00:37:11", "2027-11-22 00:37:11"),
    ],
)
def test_periods_are_counted_by_calendar_and_clock(text: str, before: str, after: str) -> None:
    now, period = utc("2026-11-22 00:37:11"), Period.parse(text)
    assert period.before(now, "Pacific/Auckland") == utc(before)
    assert period.after(now, "Pacific/Auckland") == utc(after)


def test_a_month_after_the_31st_is_the_last_day_of_the_month() -> None:
    now = utc("2026-01-31 13:37:11")
    assert Period.parse("1 month").after(now, "UTC") == utc("2026-02-28 13:37:11")
    assert Period.parse("25 months").after(now, "UTC") == utc("2028-02-29 13:37:11")
    assert Period.parse("2 months").before(now, "UTC") == utc("2025-11-30 13:37:11")
    assert Period.parse("1 year").after(utc("2028-02-29 13:37:11"), "UTC") == utc("2029-02-28 13:37:11")


def test_a_day_later_keeps_the_wall_clock_across_a_clock_change() -> None:
    day = Period.parse("1 day")
    before_the_change = utc("2026-04-04 01:37:11")  # 14:37:11 in Auckland
    assert day.after(before_the_change, "Pacific/Auckland") == utc("2026-04-05 02:37:11")  # 25 hours
    assert Period.parse("24 hours").after(before_the_change, "Pacific/Auckland") == utc("2026-04-05 01:37:11")


def test_a_day_later_in_the_missing_and_in_the_repeated_hour() -> None:
    day = Period.parse("1 day")
    assert day.after(utc("2026-09-25 14:37:11"), "Pacific/Auckland") == utc("2026-09-26 14:00")
    assert day.after(utc("2026-04-03 13:37:11"), "Pacific/Auckland") == utc("2026-04-04 13:37:11")


def test_a_period_reaches_as_far_as_the_calendar_goes() -> None:
    age = Period.parse("999999 years")
    assert age.before(utc("2026-11-22 13:37:11"), "UTC") == datetime.min.replace(tzinfo=timezone.utc)
    latest = datetime.max.replace(tzinfo=timezone.utc)
    assert age.after(utc("2026-11-22 13:37:11"), "Pacific/Auckland") == latest
    hours = Period.parse("999999 hours")
    assert hours.after(utc("9999-11-22 13:37:11"), "UTC") == latest


@pytest.mark.parametrize(
    "text",
    [
        *("", "90", "days", "0 days", "-1 days", "1.5 days", "90days", "90  days", " 90 days", "90 days\n"),
        *("90 DAYS", "1 fortnight", "1 minute", "1234567 days", "٩٠ days", "90 days 1 hour", "P90D"),
    ],
)
def test_what_is_no_period(text: str) -> None:
    with pytest.raises(ValueError, match="is not a period such as"):
        Period.parse(text)


@given(
    st.builds("{} {}s".format, st.integers(1, 3000), st.sampled_from(INTERVALS[:3])),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2000, 1, 1), datetime(2020, 1, 1)),
)
@settings(deadline=None, max_examples=200)
def test_before_and_after_lie_on_their_sides(text: str, name: str, wall: datetime) -> None:
    instant, period = wall.replace(tzinfo=timezone.utc), Period.parse(text)
    assert period.before(instant, name) < instant < period.after(instant, name)


def test_periods_before_and_after_are_inverse_away_from_clock_changes() -> None:
    now = utc("2026-11-22 00:37:11")
    for unit in INTERVALS:
        period = Period(3, unit)
        assert period.after(period.before(now, "Pacific/Auckland"), "Pacific/Auckland") == now


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-04-05 01:37:11+13", "2026-04-04 12:37:11"),
        ("2026-04-05 01:37:11.80194+13", "2026-04-04 12:37:11.801940"),
        ("2026-04-05 01:37:11.5-03:30", "2026-04-05 05:07:11.500000"),
        ("2026-04-05T01:37:11Z", "2026-04-05 01:37:11"),
        ("1848-01-01 00:00:00+11:39:04", "1847-12-31 12:20:56"),
    ],
)
def test_times_are_read_as_postgresql_prints_them(text: str, value: str) -> None:
    assert iso_time(text).astimezone(pytz.utc).replace(tzinfo=None) == datetime.fromisoformat(value)


def test_a_time_without_a_zone_stays_naive() -> None:
    assert iso_time("2026-04-05 01:37:11.5") == datetime(2026, 4, 5, 1, 37, 11, 500000)


@pytest.mark.parametrize("text", ["", "tonight", "2026-04-05 25:00:00", "2026-04-05 01:37:11+13x"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|hour"):
        iso_time(text)
