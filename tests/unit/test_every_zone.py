"""Promise 1, exhaustively: every IANA zone, every transition from 1990 to 2037, every interval."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import cache
from itertools import pairwise

import pytest

from alembic_partitions.periods import Grid, Interval, Window
from tests.zones import (
    FIRST_YEAR,
    HOUR,
    LAST_YEAR,
    SECOND,
    STEPS_BACK_ACROSS_MIDNIGHT,
    ZONES,
    Transition,
    grid,
    local,
    transitions,
    utc,
)

pytestmark = pytest.mark.long

PROBES = (
    *(-24 * HOUR, -12 * HOUR, -2 * HOUR, -HOUR, -HOUR / 2, -SECOND, 0 * HOUR),
    *(SECOND, HOUR / 2, HOUR, 2 * HOUR, 12 * HOUR, 24 * HOUR),
)
NEAR = tuple(probe for probe in PROBES if abs(probe) <= 2 * HOUR)

# Where the clocks go back to the middle of an hour that is over, the repeated part of that hour belongs to
# the window that it interrupts: 03:45 -> 02:45 in the Chathams, 02:30 -> 01:30 in Bishkek, and St John's and
# its like from 00:01. These are all, by how often it happened.
STEPS_BACK_INTO_AN_EARLIER_HOUR = {
    "America/Goose_Bay": 21,
    "America/Moncton": 14,
    "America/St_Johns": 21,
    "Asia/Bishkek": 8,
    "Canada/Newfoundland": 21,
    "NZ-CHAT": 48,
    "Pacific/Chatham": 48,
}

# Half of the world's files would make one test as long as all others: the Americas are cut in two.
REGIONS = sorted({zone.partition("/")[0] if "/" in zone else "(no region)" for zone in ZONES} - {"America"})
SHARES = [*REGIONS, "America A-L", "America M-Z"]


def zones_of(share: str) -> list[str]:
    def belongs(zone: str) -> bool:
        region, slash, city = zone.partition("/")
        if share.startswith("America "):
            return region == "America" and (city < "M") == share.endswith("A-L")
        return region == share if slash else share == "(no region)"

    return [zone for zone in ZONES if belongs(zone)]


@cache
def first_with_its_clocks() -> frozenset[str]:
    """One zone of each set whose clocks agree from 1990 to 2037: the others are its aliases."""
    first: dict[object, str] = {}
    for zone in ZONES:
        start = utc(f"{FIRST_YEAR}-01-01").astimezone(local(zone)).utcoffset()
        first.setdefault((start, transitions(zone)), zone)
    return frozenset(first.values())


@cache
def first_with_its_transitions() -> dict[str, list[Transition]]:
    """Each transition with the first zone that makes it: hours look a day around them, and no farther."""
    first: dict[Transition, str] = {}
    for zone in ZONES:
        for transition in transitions(zone):
            first.setdefault(transition, zone)
    mine: dict[str, list[Transition]] = {}
    for transition, zone in first.items():
        mine.setdefault(zone, []).append(transition)
    return mine


def chain(windows: Grid, start: datetime, stop: datetime) -> list[Window]:
    """Walk the windows that hold `start`..`stop`, and check that each begins where the last one ended."""
    found = [windows.at(start)]
    while found[-1].end <= stop:
        found.append(windows.after(found[-1]))
        assert found[-1].begin == found[-2].end, "a gap or an overlap"
    assert all(window.begin < window.end for window in found), "an empty window"
    assert windows.before(found[-1]) == found[-2] if len(found) > 1 else True
    return found


def holder(found: list[Window], instant: datetime) -> Window:
    [window] = [window for window in found if window.begin <= instant < window.end]
    return window


def stray_days(zone: str) -> int:
    """Count the transitions around which some instant lies outside the window of its local date."""
    windows, clock = grid("day", zone), local(zone)
    strays = 0
    for transition in transitions(zone):
        instants = [transition.instant + probe for probe in PROBES]
        found = chain(windows, instants[0], instants[-1])
        assert all(windows.at(transition.instant + step) in found for step in (-SECOND, 0 * SECOND, SECOND))
        strays += any(
            holder(found, instant).suffix != f"{instant.astimezone(clock).date():%Y_%m_%d}"
            for instant in instants
        )
    return strays


@pytest.mark.parametrize("share", SHARES)
def test_days_tile_and_hold_their_local_date(share: str) -> None:
    strays = {zone: count for zone in zones_of(share) if (count := stray_days(zone))}
    known = {zone: count for zone, count in STEPS_BACK_ACROSS_MIDNIGHT.items() if zone in zones_of(share)}
    assert strays == known


def test_the_exceptions_are_these_78_transitions_and_the_first_midnight_rules() -> None:
    assert sum(STEPS_BACK_ACROSS_MIDNIGHT.values()) == 78
    for zone, expected in STEPS_BACK_ACROSS_MIDNIGHT.items():
        windows, clock, count = grid("day", zone), local(zone), 0
        for transition in transitions(zone):
            last, first = (
                (transition.instant + step).astimezone(clock).date() for step in (-SECOND, 0 * SECOND)
            )
            if first < last:  # the date stepped back; the window does not
                count += 1
                at = windows.at(transition.instant)
                assert at.suffix == f"{last:%Y_%m_%d}"
                assert {windows.at(transition.instant + step) for step in (-SECOND, SECOND)} == {at}
        assert count == expected, zone


def test_no_zone_is_left_out() -> None:
    assert sorted(zone for share in SHARES for zone in zones_of(share)) == sorted(ZONES)
    assert sum(len(transitions(zone)) for zone in ZONES) > 20_000


def test_the_clock_that_judges_knows_the_same_transitions() -> None:
    # Two readers of one file: if they disagreed, the sweep would prove nothing.
    for zone in ZONES:
        for transition in transitions(zone):
            before = (transition.instant - SECOND).astimezone(local(zone)).utcoffset()
            assert (before, transition.instant.astimezone(local(zone)).utcoffset()) == (
                transition.before,
                transition.after,
            )


# -- hours ---------------------------------------------------------------------------------------------


def stray_hours(zone: str, chosen: tuple[Transition, ...] | list[Transition]) -> int:
    """Count the transitions around which some instant lies outside the window of its local hour."""
    windows, clock = grid("hour", zone), local(zone)
    strays = 0
    for transition in chosen:
        instants = [transition.instant + probe for probe in NEAR]
        found = chain(windows, instants[0], instants[-1])
        assert len({window.suffix for window in found}) == len(found)
        assert all(windows.at(transition.instant + step) in found for step in (-SECOND, 0 * SECOND, SECOND))
        begins = [window.begin for window in found if isinstance(window.begin, datetime)]
        # An hour begins on the hour, or where the clocks jump over that.
        assert all(
            begin == transition.instant or begin.astimezone(clock).minute == 0 == begin.second
            for begin in begins
        )
        strays += any(
            _hour(instant, clock_of=zone) != _hour(_begin(holder(found, instant)), clock_of=zone)
            for instant in instants
        )
    return strays


def _hour(instant: datetime, *, clock_of: str) -> tuple[date, int]:
    wall = instant.astimezone(local(clock_of))
    return wall.date(), wall.hour


def _begin(window: Window) -> datetime:
    assert isinstance(window.begin, datetime)
    return window.begin


@pytest.mark.parametrize("share", SHARES)
def test_hours_tile_and_hold_their_local_hour(share: str) -> None:
    for zone in zones_of(share):
        chosen = transitions(zone) if zone in STEPS_BACK_INTO_AN_EARLIER_HOUR else None
        chosen = chosen or tuple(first_with_its_transitions().get(zone, ()))
        assert stray_hours(zone, chosen) == STEPS_BACK_INTO_AN_EARLIER_HOUR.get(zone, 0), zone


def test_transitions_are_far_enough_apart_to_look_at_each_by_itself() -> None:
    for zone in ZONES:
        instants = [transition.instant for transition in transitions(zone)]
        assert all(later - one > timedelta(days=6) for one, later in pairwise(instants))


# -- weeks, months, quarters, years --------------------------------------------------------------------


def expected_suffix(interval: Interval, day: date) -> str:
    if interval == "week":
        return f"{day - timedelta(days=day.weekday()):%Y_%m_%d}"
    if interval == "quarter":
        return f"{day.year}_q{1 + (day.month - 1) // 3}"
    return f"{day:%Y_%m}" if interval == "month" else f"{day:%Y}"


def stray_spans(zone: str, interval: Interval) -> int:
    """Count the transitions around which some instant lies outside the window of its local date."""
    windows, clock = grid(interval, zone), local(zone)
    strays = 0
    for transition in transitions(zone):
        instants = [transition.instant + probe for probe in PROBES]
        found = chain(windows, instants[0], instants[-1])
        assert windows.at(transition.instant) in found
        strays += any(
            holder(found, instant).suffix != expected_suffix(interval, instant.astimezone(clock).date())
            for instant in instants
        )
    return strays


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("interval", ["week", "month", "quarter", "year"])
def test_longer_windows_tile_and_hold_their_local_date(interval: Interval, share: str) -> None:
    for zone in zones_of(share):
        if zone in first_with_its_clocks():
            # November 2009 began on a night on which the date stepped back.
            known = 1 if interval == "month" and zone in ("America/Goose_Bay", "America/St_Johns") else 0
            assert stray_spans(zone, interval) == known, zone


def test_zones_whose_clocks_agree_have_the_same_windows() -> None:
    # So that one zone may stand for its aliases above.
    shown = utc("2026-04-04 13:37:11")
    twins = {"NZ": "Pacific/Auckland", "Europe/Belfast": "Europe/London", "US/Eastern": "America/New_York"}
    for alias, name in twins.items():
        assert transitions(alias) == transitions(name)
        assert chain(grid("week", alias), shown, shown + 60 * 24 * HOUR) == chain(
            grid("week", name), shown, shown + 60 * 24 * HOUR
        )


# -- zones whose clocks never change -------------------------------------------------------------------


def test_windows_tile_where_clocks_never_change() -> None:
    steady = [zone for zone in ZONES if not transitions(zone) and zone in first_with_its_clocks()]
    assert "UTC" in ZONES
    assert not transitions("UTC")
    for zone in steady:
        clock = local(zone)
        for year in range(FIRST_YEAR, LAST_YEAR + 1, 4):
            instant = utc(f"{year}-03-01 13:37:11")
            found = chain(grid("day", zone), instant - 24 * HOUR, instant + 24 * HOUR)
            assert all(
                holder(found, instant + probe).suffix
                == f"{(instant + probe).astimezone(clock).date():%Y_%m_%d}"
                for probe in PROBES
            )
