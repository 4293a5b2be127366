"""Bounds in, the policy whose windows they are out: of every interval, on every clock, drifted or torn."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alembic_partitions import PartitionPolicy
from alembic_partitions.errors import PolicyError, WindowRangeError
from alembic_partitions.periods import KEY_TYPES, Grid, KeyType, KeyValue, Window
from alembic_partitions.plan import Partition, PartmanSet, Proposal, guess_epoch, judge, propose
from tests.zones import ZONES, utc

BERLIN = "Europe/Berlin"


def windows(grid: Grid, start: KeyValue, count: int) -> list[Window]:
    found = [grid.at(start)]
    while len(found) < count:
        found.append(grid.after(found[-1]))
    return found


def partitions(bounds: Iterable[tuple[Any, Any] | Window], first: int = 1) -> list[Partition]:
    """Return partitions of these bounds, of names that tell nothing."""
    pairs = [(b.begin, b.end) if isinstance(b, Window) else b for b in bounds]
    return [Partition(n, "public", f"p{n}", low, high) for n, (low, high) in enumerate(pairs, first)]


def made(
    policy: PartitionPolicy, start: str | date, count: int, key_type: KeyType = "timestamptz"
) -> list[Partition]:
    value = utc(start) if isinstance(start, str) else start
    if key_type == "timestamp":
        assert isinstance(value, datetime)
        value = value.replace(tzinfo=None)
    return partitions(windows(policy.grid(key_type), value, count))


def proposed(parts: list[Partition], key_type: KeyType = "timestamptz", **how: Any) -> Proposal:
    return propose("at", key_type, parts, **how)


SIZES = [
    *(("hour", n) for n in (1, 2, 3, 4, 6, 8, 12)),
    *(("day", n) for n in (1, 2, 3, 5, 10, 30)),
    *(("week", n) for n in (1, 2, 4)),
    *(("month", n) for n in (1, 2, 4, 5, 6)),
    *(("quarter", n) for n in (1, 2)),
    *(("year", n) for n in (1, 2, 5)),
]


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from(SIZES),
    zone=st.one_of(st.sampled_from(ZONES), st.sampled_from(["UTC", BERLIN, "Pacific/Auckland"])),
    day_start=st.sampled_from(["00:00", "00:00", "06:00", "22:30"]),
    week_start=st.sampled_from(["monday", "sunday"]),
    start=st.datetimes(datetime(2015, 1, 1), datetime(2027, 1, 1)),
    count=st.integers(2, 60),
    key_type=st.sampled_from([*KEY_TYPES, "timestamptz", "timestamptz"]),
)
def test_the_windows_of_a_policy_give_back_a_policy_with_these_windows(
    size: Any, zone: str, day_start: str, week_start: str, start: datetime, count: int, key_type: KeyType
) -> None:
    if size[0] == "hour":
        # Half past each hour, a clock change leaves a window of half an hour that a few edges do not tell.
        day_start = day_start.replace(":30", ":00")
    epoch = key_type.split("_")[1] if key_type.startswith("epoch") else None
    policy = PartitionPolicy(
        "at",
        interval=size[0],
        every=size[1],
        timezone=zone,
        day_start=day_start,
        week_start=week_start,
        epoch=epoch,  # type: ignore[arg-type]
        column_timezone="UTC" if key_type == "timestamp" else None,
    )
    try:
        grid = policy.grid(key_type)
        parts = partitions(windows(grid, grid.key_of(start.isoformat() + "Z"), count))
    except (PolicyError, WindowRangeError):
        assume(False)
    last = parts[-1].upper
    assert last is not None
    assume(last.year < 2036)  # after 2037 pytz knows no clock changes, and so no windows of many zones
    found = proposed(parts, key_type, given={"epoch": epoch} if epoch else {})
    assert found.off_grid == (), f"{found.policy} for {policy}"
    assert len(found.on_grid) == count


@pytest.mark.parametrize(
    "wanted",
    [
        PartitionPolicy("at"),
        PartitionPolicy("at", timezone=BERLIN),
        PartitionPolicy("at", timezone="Pacific/Auckland", day_start="06:00"),
        PartitionPolicy("at", interval="week", timezone="America/New_York", week_start="sunday"),
        PartitionPolicy("at", interval="month", timezone="Asia/Kolkata"),
        PartitionPolicy("at", interval="quarter"),
        PartitionPolicy("at", interval="year", timezone="Australia/Sydney"),
        PartitionPolicy("at", interval="hour", every=6, timezone=BERLIN),
        PartitionPolicy("at", every=10),
    ],
    ids=repr,
)
def test_the_policy_that_people_mean_is_proposed(wanted: PartitionPolicy) -> None:
    found = proposed(made(wanted, "2024-02-11 13:37:11", 400 if wanted.interval in ("hour", "day") else 12))
    assert found.policy == wanted
    assert found.off_grid == ()


def test_zones_that_fit_alike_are_told_and_the_databases_own_comes_first() -> None:
    parts = made(PartitionPolicy("at", timezone=BERLIN), "2025-01-11 13:37:11", 300)
    found = proposed(parts)
    assert found.policy.timezone == BERLIN
    assert "Europe/Paris" in found.also
    assert "Europe/Helsinki" not in found.also
    assert proposed(parts, zones=["Europe/Vienna"]).policy.timezone == "Europe/Vienna"
    assert proposed(parts, zones=["America/New_York"]).policy.timezone == BERLIN
    assert proposed(parts, zones=["Etc/Nowhere"]).policy.timezone == BERLIN


def test_one_winter_in_utc_may_be_londons() -> None:
    parts = made(PartitionPolicy("at"), "2025-12-01 00:00:00", 30)
    found = proposed(parts)
    assert (found.policy, found.also) == (PartitionPolicy("at"), ("Europe/London",))
    assert proposed(parts, zones=["Europe/London"]).policy.timezone == "Europe/London"


def test_where_the_set_has_changed_the_newest_partitions_decide() -> None:
    weekly = made(PartitionPolicy("at", interval="week"), "2023-01-02 00:00:00", 104)
    end = weekly[-1].upper
    assert end is not None
    daily = partitions(windows(PartitionPolicy("at").grid("timestamptz"), end, 20), first=1_000)
    found = proposed(weekly + daily)
    assert found.policy == PartitionPolicy("at")
    assert len(found.on_grid) == 20
    (era,) = found.off_grid
    assert (len(era.partitions), era.policy) == (104, PartitionPolicy("at", interval="week"))
    assert found.drift is None, "it is the older ones that are beside the grid"


def drifted(extended: int) -> list[Partition]:
    """Return days made by a session in Berlin until 2026-03-28, and extended by one in UTC."""
    berlin = made(PartitionPolicy("at", timezone=BERLIN), "2025-10-20 13:37:11", 160)
    end = utc("2026-03-28 23:00:00")
    assert berlin[-1].upper == end
    pairs = [(end + timedelta(days=n), end + timedelta(days=n + 1)) for n in range(extended)]
    return [*berlin, *partitions(pairs, first=1_000)]


@pytest.mark.parametrize("extended", [2, 9, 60])
def test_a_set_that_was_made_in_one_zone_and_extended_from_another_is_diagnosed(extended: int) -> None:
    found = proposed(drifted(extended))
    assert found.policy == PartitionPolicy("at", timezone=BERLIN)
    assert len(found.on_grid) == 160
    assert found.drift is not None
    assert len(found.drift.partitions) == extended
    assert found.drift.policy == PartitionPolicy("at", day_start="23:00")
    assert found.drift.partitions[0].lower == utc("2026-03-28 23:00:00")


def test_days_that_went_over_to_utc_on_purpose_are_no_drift() -> None:
    berlin = made(PartitionPolicy("at", timezone=BERLIN), "2025-10-20 13:37:11", 60)
    end = berlin[-1].upper
    assert isinstance(end, datetime)
    seam = end + timedelta(hours=1)
    later = [(end, seam), *((seam + timedelta(days=n), seam + timedelta(days=n + 1)) for n in range(20))]
    found = proposed([*berlin, *partitions(later, first=1_000)])
    assert found.policy == PartitionPolicy("at")
    assert len(found.on_grid) == 20


def test_what_was_given_is_not_looked_for() -> None:
    parts = drifted(9)
    given = {"timezone": "UTC", "day_start": "23:00", "retention": "90 days"}
    found = proposed(parts, given=given)
    assert found.policy == PartitionPolicy("at", day_start="23:00", retention="90 days")
    assert found.also == ()
    found = proposed(parts, given={"interval": "month"})
    assert (found.policy.interval, found.on_grid) == ("month", ())
    with pytest.raises(PolicyError, match="timezone"):
        proposed(parts, given={"timezone": "Mars/Olympus"})


def test_a_naive_key_written_in_utc_may_have_the_days_of_another_zone() -> None:
    wanted = PartitionPolicy("at", timezone=BERLIN, column_timezone="UTC")
    parts = made(wanted, "2025-01-11 13:37:11", 300, "timestamp")
    assert proposed(parts, "timestamp").policy == wanted
    midnights = made(PartitionPolicy("at"), "2025-01-11 13:37:11", 300, "timestamp")
    assert proposed(midnights, "timestamp").policy == PartitionPolicy("at")
    given = {"timezone": BERLIN}
    assert proposed(midnights, "timestamp", given=given).policy == PartitionPolicy("at", timezone=BERLIN)


def test_dates_ask_for_no_zone() -> None:
    wanted = PartitionPolicy("at", interval="week", week_start="sunday", timezone="Asia/Tokyo")
    parts = made(wanted, date(2026, 1, 4), 10, "date")
    assert proposed(parts, "date", zones=["Asia/Tokyo"]).policy == wanted


@pytest.mark.parametrize(
    "parts", [[], [Partition(1, "public", "d", None, None, True)]], ids=["none", "default"]
)
def test_without_bounds_another_tools_word_counts(parts: list[Partition]) -> None:
    assert proposed(parts).policy == PartitionPolicy("at")
    assert proposed(parts, size=("month", 1)).policy == PartitionPolicy("at", interval="month")
    given = {"timezone": BERLIN}
    assert proposed(parts, given=given).policy == PartitionPolicy("at", timezone=BERLIN)


def test_open_ends_are_off_the_grid_and_decide_nothing() -> None:
    days = made(PartitionPolicy("at", timezone=BERLIN), "2026-01-01 13:37:11", 120)
    ends = (
        Partition(900, "public", "old", None, days[0].lower),
        Partition(901, "public", "late", days[-1].upper, None),
    )
    found = proposed([*days, *ends, Partition(902, "public", "rest", None, None, True)])
    assert found.policy == PartitionPolicy("at", timezone=BERLIN)
    assert [[p.name for p in era.partitions] for era in found.off_grid] == [["old"], ["late"]]


def test_bounds_that_no_policy_has_leave_a_policy_to_judge_them_by() -> None:
    start = utc("2026-01-01 03:07:41")
    odd = partitions(
        [(start + timedelta(hours=31 * n), start + timedelta(hours=31 * (n + 1))) for n in range(9)]
    )
    found = proposed(odd)
    assert found.on_grid == ()
    assert sum(len(era.partitions) for era in found.off_grid) == 9


def test_a_policy_is_judged_by_its_windows_alone() -> None:
    days = made(PartitionPolicy("at"), "2026-01-01 00:00:00", 5)
    judged = judge(PartitionPolicy("at", interval="week"), "timestamptz", days)
    assert judged.on_grid == ()
    assert [len(era.partitions) for era in judged.off_grid] == [5], "they touch each other"


@pytest.mark.parametrize(
    ("bounds", "unit"),
    [
        ([1774310400, 1774396800], "s"),
        ([1774310400000], "ms"),
        ([1774310400000000], "us"),
        ([1774310400000000000], "ns"),
        ([-86400, 1774310400], "s"),
        ([0, 1_000_000], None),
        ([], None),
    ],
)
def test_what_integers_count_shows_by_their_size(bounds: list[int], unit: str | None) -> None:
    assert guess_epoch(bounds) == unit


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1 day", ("day", 1)),
        ("7 days", ("week", 1)),
        ("10 days", ("day", 10)),
        ("1 mon", ("month", 1)),
        ("3 mons", ("quarter", 1)),
        ("1 year", ("year", 1)),
        ("1 year 6 mons", ("month", 18)),
        ("01:00:00", ("hour", 1)),
        ("06:00:00", ("hour", 6)),
        ("00:15:00", None),
        ("05:00:00", None),
        ("weekly", ("week", 1)),
        ("daily", ("day", 1)),
        ("1 mon 3 days", None),
        ("100000", None),
    ],
)
def test_pg_partmans_interval_is_one_of_ours_or_none(text: str, size: Any) -> None:
    assert PartmanSet("partman", "public.events", text).size == size


def test_pg_partmans_retention_is_ours() -> None:
    kept = PartmanSet("partman", "public.events", "1 day", 4, "30 days", keeps_tables=True)
    assert kept.fields == {"premake": 4, "retention": "30 days"}
    dropped = PartmanSet("partman", "public.events", "1 mon", 4, "1 year 1 mon", keeps_tables=False)
    assert dropped.fields == {"premake": 4, "retention": "13 months", "on_expiry": "drop"}
    odd = PartmanSet("partman", "public.events", "1 day", None, "2 weeks 3 days", epoch="milliseconds")
    assert (odd.fields, odd.untold) == ({"epoch": "ms"}, "2 weeks 3 days")
