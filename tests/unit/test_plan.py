"""The plan: what is there, a policy and an odd hour in; steps and refusals with their reasons out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions import KeyOutsideLimits, PartitionPolicy, PolicyError
from alembic_partitions.errors import NotManagedError, WindowRangeError
from alembic_partitions.periods import INTERVALS, KEY_TYPES, KeyType, KeyValue, Window
from alembic_partitions.plan import (
    Coverage,
    CreatePartition,
    ManagedTable,
    Partition,
    Plan,
    Reason,
    Refusal,
    plan_horizon,
    plan_rows,
    plan_windows,
    windows_between,
)
from alembic_partitions.policy import DEFAULT_PREMAKE
from tests.zones import utc

# 13:37:11 in Auckland on the day of 25 hours: NZ midnight was 11:00Z the day before, the next is 12:00Z.
NOW = utc("2026-04-05 01:37:11")
TODAY = (utc("2026-04-04 11:00:00"), utc("2026-04-05 12:00:00"))


def day(number: int) -> tuple[datetime, datetime]:
    """Return the bounds of Auckland's day so many days from the long one, written down by hand."""
    lower = TODAY[0] + timedelta(days=number) + timedelta(hours=number > 0)
    return lower, TODAY[1] + timedelta(days=number) - timedelta(hours=number < 0)


def policy(**fields: Any) -> PartitionPolicy:
    return PartitionPolicy("at", **{"timezone": "Pacific/Auckland", "premake": 2, "lookback": 1, **fields})


def table(
    rules: PartitionPolicy | None = None,
    *partitions: Partition,
    name: str = "odds",
    key_type: KeyType = "timestamptz",
) -> ManagedTable:
    return ManagedTable("racing", name, rules or policy(), 4711, key_type, partitions=partitions)


def part(
    lower: KeyValue | None, upper: KeyValue | None, name: str = "by_hand", *, pending: bool = False
) -> Partition:
    return Partition(1, "racing", name, lower, upper, detach_pending=pending)


DEFAULT = Partition(2, "racing", "odds_default", None, None, is_default=True)


def bounds(plan: Plan) -> list[tuple[KeyValue, KeyValue]]:
    return [(step.lower, step.upper) for step in plan.steps]


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


def refusals(plan: Plan) -> list[Refusal]:
    return [finding.refusal for finding in plan.findings]


def done(plan: Plan) -> ManagedTable:
    """Return the table as it stands once the plan has been carried out."""
    made = (Partition(3, "racing", step.name, step.lower, step.upper) for step in plan.steps)
    return dataclasses.replace(plan.table, partitions=(*plan.table.partitions, *made))


# -- the horizon ---------------------------------------------------------------------------------------


def test_the_current_window_comes_first_then_the_nearest() -> None:
    plan = plan_horizon(table(), NOW)
    assert [(step.reason, step.distance) for step in plan.steps] == [
        (Reason.CURRENT, 0),
        (Reason.AHEAD, 1),
        (Reason.BEHIND, 1),
        (Reason.AHEAD, 2),
    ]
    assert bounds(plan) == [day(0), day(1), day(-1), day(2)]
    assert names(plan) == ["odds_2026_04_05", "odds_2026_04_06", "odds_2026_04_04", "odds_2026_04_07"]
    assert plan.findings == ()
    assert {step.made_by for step in plan.steps} == {"ensure"}


def test_no_premake_and_no_lookback_is_the_current_window_alone() -> None:
    assert bounds(plan_horizon(table(policy(premake=0, lookback=0)), NOW)) == [day(0)]


@pytest.mark.parametrize("interval", INTERVALS)
def test_each_interval_has_its_own_horizon(interval: str) -> None:
    plan = plan_horizon(table(policy(interval=interval, premake=None)), NOW)
    assert [s.reason for s in plan.steps].count(Reason.AHEAD) == DEFAULT_PREMAKE[interval]  # type: ignore[index]


def test_what_stands_is_not_planned_again() -> None:
    healthy = done(plan_horizon(table(), NOW))
    assert plan_horizon(healthy, NOW) == Plan(healthy)


def test_a_day_later_one_window_is_missing() -> None:
    healthy = done(plan_horizon(table(), NOW))
    assert bounds(plan_horizon(healthy, NOW + timedelta(days=1))) == [day(3)]


@pytest.mark.parametrize(
    ("retention", "behind"), [(None, 5), ("2 days", 2), ("1 day", 1), ("38 hours", 1), ("39 hours", 2)]
)
def test_lookback_ends_where_retention_would_remove_it_again(retention: str | None, behind: int) -> None:
    plan = plan_horizon(table(policy(lookback=5, retention=retention)), NOW)
    assert [step.reason for step in plan.steps].count(Reason.BEHIND) == behind


def test_a_window_that_retention_reaches_a_little_into_is_still_wanted() -> None:
    # The midnight before last was 38 hours, 37 minutes and 11 seconds ago: the clocks went back at three.
    plan = plan_horizon(table(policy(premake=0, lookback=5, retention="39 hours")), NOW)
    assert bounds(plan) == [day(0), day(-1), day(-2)]


def test_what_retention_has_taken_from_a_window_that_it_reaches_into_is_not_made_again() -> None:
    # Days, once; by months since then. Those before 4 March are expired and gone, 4 to 31 March stand.
    rest = part(utc("2026-03-03 11:00:00"), utc("2026-03-31 11:00:00"))
    rules = policy(interval="month", premake=0, retention="1 month")
    assert bounds(plan_horizon(table(rules, rest), NOW)) == [
        (utc("2026-03-31 11:00:00"), utc("2026-04-30 12:00:00"))
    ]
    # What is kept still is made: of a window that nothing stands in, all.
    assert bounds(plan_horizon(table(rules), NOW))[1] == (
        utc("2026-02-28 11:00:00"),
        utc("2026-03-31 11:00:00"),
    )


def test_a_date_key_has_whole_dates() -> None:
    plan = plan_horizon(table(key_type="date"), NOW)
    assert bounds(plan)[0] == (date(2026, 4, 5), date(2026, 4, 6))
    assert names(plan)[0] == "odds_2026_04_05"


def test_a_timestamp_key_is_on_the_clocks_of_its_column() -> None:
    plan = plan_horizon(table(policy(column_timezone="Asia/Tokyo"), key_type="timestamp"), NOW)
    assert bounds(plan)[0] == (datetime(2026, 4, 4, 20), datetime(2026, 4, 5, 21))


def test_now_may_be_in_any_zone() -> None:
    elsewhere = datetime.fromisoformat("2026-04-04T23:07:11-02:30")
    assert plan_horizon(table(), elsewhere) == plan_horizon(table(), NOW)


def test_where_the_calendar_ends_the_rest_is_made_and_the_end_reported() -> None:
    plan = plan_horizon(table(policy(premake=30, lookback=2)), utc("2037-12-20 00:37:11"))
    assert refusals(plan) == [Refusal.OUT_OF_RANGE]
    assert "2037" in plan.findings[0].detail
    assert [step.reason for step in plan.steps].count(Reason.BEHIND) == 2
    assert max(step.upper for step in plan.steps) == utc("2037-12-31 11:00:00")


def test_a_short_calendar_does_not_mean_that_inserts_fail_today() -> None:
    rules, now = policy(premake=30), utc("2037-12-20 00:37:11")
    healthy = done(plan_horizon(table(rules), now))
    assert not plan_horizon(healthy, now).current_missing


def test_beyond_the_calendar_the_current_window_is_missing() -> None:
    plan = plan_horizon(table(), utc("2038-06-20 01:37:11"))
    assert plan.steps == ()
    assert refusals(plan) == [Refusal.OUT_OF_RANGE]
    assert plan.current_missing


@pytest.mark.parametrize("key_type", KEY_TYPES)
@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati", "UTC"])
def test_periods_longer_than_the_calendar_reach_to_its_end(zone: str, key_type: KeyType) -> None:
    rules = policy(timezone=zone, retention="9999 years", max_ahead="999999 months", premake=0, lookback=0)
    wide = table(rules, key_type=key_type)
    assert len(plan_horizon(wide, NOW).steps) == 1
    far = wide.grid.key_at(utc("2031-11-11 13:37:11"))
    assert len(plan_rows(wide, [far], NOW).steps) == 1


# -- neighbours in the way -----------------------------------------------------------------------------


def test_a_partition_off_the_grid_is_filled_around_and_reported() -> None:
    utc_day = part(utc("2026-04-05 00:00:00"), utc("2026-04-06 00:00:00"), "odds_utc")
    plan = plan_horizon(table(None, utc_day), NOW)
    assert bounds(plan) == [
        (day(0)[0], utc("2026-04-05 00:00:00")),
        (utc("2026-04-06 00:00:00"), day(1)[1]),
        day(-1),
        day(2),
    ]
    assert refusals(plan) == [Refusal.MISALIGNED]
    assert str(plan.findings[0]) == (
        "racing.odds_utc [2026-04-05 00:00:00+00:00, 2026-04-06 00:00:00+00:00): an existing partition is not"
        " on the policy's grid; filled around it. It may stay; split divides one of several windows; else"
        " DETACH it, repair the range, and INSERT its rows into the table again"
    )


def test_a_piece_that_begins_off_the_grid_is_named_by_its_full_start() -> None:
    utc_day = part(utc("2026-04-05 00:00:00"), utc("2026-04-06 00:00:00"), "odds_utc")
    assert names(plan_horizon(table(None, utc_day), NOW)) == [
        "odds_2026_04_05",
        "odds_2026_04_06_000000z",
        "odds_2026_04_04",
        "odds_2026_04_07",
    ]


def test_both_sides_of_a_small_partition_inside_a_window_are_filled() -> None:
    small = part(utc("2026-04-05 01:00:00"), utc("2026-04-05 02:00:00"))
    plan = plan_horizon(table(policy(premake=0, lookback=0), small), NOW)
    assert bounds(plan) == [(TODAY[0], small.lower), (small.upper, TODAY[1])]
    assert {step.reason for step in plan.steps} == {Reason.CURRENT}


def test_the_stretch_between_two_hand_made_neighbours_is_filled_exactly() -> None:
    left = part(day(-3)[0], utc("2026-04-05 00:30:00"), "left")
    right = part(utc("2026-04-05 03:15:00.250000"), day(9)[1], "right")
    plan = plan_horizon(table(None, left, right), NOW)
    assert bounds(plan) == [(left.upper, right.lower)]
    assert names(plan) == ["odds_2026_04_05_003000z"]
    assert refusals(plan) == [Refusal.MISALIGNED] * 2


def test_neighbours_that_cover_the_horizon_leave_nothing_to_do() -> None:
    everything = part(day(-40)[0], day(40)[1], "odds_long")
    plan = plan_horizon(table(None, everything), NOW)
    assert plan.steps == ()
    assert refusals(plan) == [Refusal.MISALIGNED]


def test_smaller_partitions_that_fill_a_window_leave_nothing_to_do() -> None:
    hours = [TODAY[0] + timedelta(hours=n) for n in range(26)]
    parts = [part(low, high, f"odds_{low:%H}{n}") for n, (low, high) in enumerate(pairwise(hours))]
    plan = plan_horizon(table(policy(premake=0, lookback=0), *parts), NOW)
    assert plan.steps == ()
    (finding,) = plan.findings
    assert finding.refusal is Refusal.OTHER_GRID
    assert "25 partitions [2026-04-04 11:00:00+00:00, 2026-04-05 12:00:00+00:00)" in finding.detail


@pytest.mark.parametrize(
    ("lower", "upper", "expected"),
    [
        (None, utc("2026-04-05 00:00:00"), [(utc("2026-04-05 00:00:00"), TODAY[1]), day(1), day(2)]),
        (utc("2026-04-06 00:00:00"), None, [day(0), (day(1)[0], utc("2026-04-06 00:00:00")), day(-1)]),
        (None, None, []),
        (None, day(-20)[1], [day(0), day(1), day(-1), day(2)]),
        (day(20)[0], None, [day(0), day(1), day(-1), day(2)]),
    ],
    ids=["from MINVALUE", "to MAXVALUE", "everything", "MINVALUE to long ago", "far ahead to MAXVALUE"],
)
def test_an_unbounded_partition_is_filled_around(
    lower: datetime | None, upper: datetime | None, expected: list[tuple[datetime, datetime]]
) -> None:
    assert bounds(plan_horizon(table(None, part(lower, upper)), NOW)) == expected


def test_two_partitions_below_the_calendar_are_no_obstacle() -> None:
    # (MINVALUE) TO ('-infinity') and ('-infinity') TO ('2020-01-01'): neither has a lower bound in Python.
    below = part(None, utc("0001-01-01 00:00:00"), "below")
    old = part(None, utc("2020-01-01 00:00:00"), "old")
    for parts in ((below, old), (old, below)):
        assert bounds(plan_horizon(table(None, *parts), NOW)) == [day(0), day(1), day(-1), day(2)]
        assert Coverage.of(parts).covers(utc("1999-09-09 13:37:11"), utc("2001-01-01 00:00:00"))
        assert bounds(plan_rows(table(None, *parts), [utc("1999-09-09 13:37:11"), NOW], NOW)) == [day(0)]


def test_an_unbounded_neighbour_is_reported_with_words() -> None:
    plan = plan_horizon(table(None, part(None, utc("2026-04-05 00:00:00"))), NOW)
    assert "racing.by_hand [MINVALUE, 2026-04-05 00:00:00+00:00)" in str(plan.findings[0])


def test_a_partition_half_detached_is_reported_and_left_alone() -> None:
    plan = plan_horizon(table(None, part(*day(0), "stuck", pending=True)), NOW)
    assert bounds(plan) == [day(1), day(-1), day(2)]
    assert refusals(plan) == [Refusal.DETACH_PENDING]
    assert "racing.stuck" in plan.findings[0].detail


def test_without_the_current_window_rows_would_find_no_partition() -> None:
    assert plan_horizon(table(), NOW).current_missing
    assert not plan_horizon(table(None, part(*day(0))), NOW).current_missing


def test_a_half_detached_current_window_is_missing_until_it_is_finalized() -> None:
    assert plan_horizon(table(None, part(*day(0), "stuck", pending=True)), NOW).current_missing


def test_a_half_detached_window_elsewhere_says_nothing_of_the_current_one() -> None:
    stuck = part(*day(2), "stuck", pending=True)
    assert not plan_horizon(table(None, part(*day(0), "today"), stuck), NOW).current_missing


def test_a_default_partition_is_reported_only_where_something_is_attached_beside_it() -> None:
    plan = plan_horizon(table(None, DEFAULT), NOW)
    assert bounds(plan) == [day(0), day(1), day(-1), day(2)]
    assert refusals(plan) == [Refusal.DEFAULT]
    assert plan_horizon(done(plan), NOW) == Plan(done(plan))


def test_with_a_default_partition_no_insert_fails_for_want_of_a_window() -> None:
    assert not plan_horizon(table(None, DEFAULT), NOW).current_missing


def test_a_disabled_policy_is_left_alone() -> None:
    plan = plan_horizon(table(policy(enabled=False)), NOW)
    assert plan.steps == ()
    assert refusals(plan) == [Refusal.DISABLED]
    assert not plan.current_missing


@pytest.mark.parametrize("refusal", [Refusal.NO_TABLE, Refusal.UNFIT])
def test_a_table_that_cannot_be_worked_on_has_its_reason_and_no_step(refusal: Refusal) -> None:
    broken = dataclasses.replace(table(), problem=(refusal, "racing.odds: it is gone"))
    plan = plan_horizon(broken, NOW)
    assert plan.steps == ()
    assert str(plan.findings[0]) == f"racing.odds: it is gone: {refusal.value}"
    assert plan.current_missing


# -- names -----------------------------------------------------------------------------------------------


def test_a_taken_name_is_stepped_over() -> None:
    plan = plan_horizon(table(policy(premake=1, lookback=0)), NOW, {"odds_2026_04_05", "odds_2026_04_05_2"})
    assert names(plan) == ["odds_2026_04_05_3", "odds_2026_04_06"]
    assert [step.is_renamed for step in plan.steps] == [True, False]


def test_the_name_of_an_existing_partition_is_taken() -> None:
    misnamed = part(*day(-9), "odds_2026_04_05")
    assert names(plan_horizon(table(policy(premake=0, lookback=0), misnamed), NOW)) == ["odds_2026_04_05_2"]


def test_names_of_long_tables_stay_within_63_bytes_and_differ() -> None:
    plan = plan_horizon(table(policy(premake=30), name="ā" * 31), NOW)
    assert len(set(names(plan))) == 32
    assert all(len(name.encode()) <= 63 for name in names(plan))


# -- the windows that rows need ------------------------------------------------------------------------


def test_only_the_windows_that_rows_need_are_made_never_those_between() -> None:
    keys = [utc("2026-06-01 13:37:11"), NOW, utc("2026-06-01 13:40:00"), utc("2026-01-09 00:00:00")]
    plan = plan_rows(table(), keys, NOW)
    assert sorted(names(plan)) == ["odds_2026_01_09", "odds_2026_04_05", "odds_2026_06_02"]
    assert {(step.reason, step.made_by) for step in plan.steps} == {(Reason.ROW, "insert")}


def test_keys_that_have_a_partition_are_never_judged() -> None:
    far = utc("2099-01-01 13:37:11")
    wide = part(utc("2090-01-01 00:00:00"), None, "far_future")
    rules = policy(max_ahead="1 day", max_behind="1 day")
    assert plan_rows(table(rules, wide, part(None, utc("1999-01-01 00:00:00"))), [far], NOW).steps == ()
    with pytest.raises(KeyOutsideLimits):
        plan_rows(table(rules), [far], NOW)


@pytest.mark.parametrize(
    ("fields", "inside", "outside", "field", "limit"),
    [
        # By the clocks of Auckland: 13:37:11 of the day before, which had not yet gone back.
        ({"max_behind": "1 day"}, "2026-04-04 00:37:11", "2026-04-04 00:37:10", "max_behind", "1 day"),
        ({"retention": "1 day"}, "2026-04-04 00:37:11", "2026-04-04 00:37:10", "retention", "1 day"),
        ({"max_ahead": "1 day"}, "2026-04-06 01:37:11", "2026-04-06 01:37:12", "max_ahead", "1 day"),
        ({"max_ahead": "6 months"}, "2026-10-05 00:37:11", "2026-10-05 00:37:12", "max_ahead", "6 months"),
        ({"max_ahead": "2 hours"}, "2026-04-05 03:37:11", "2026-04-05 03:37:12", "max_ahead", "2 hours"),
        ({}, "2027-04-06 01:37:11", "2027-04-06 01:37:12", "max_ahead", "366 days"),
        (
            {"max_behind": "2 days", "retention": "1 day"},
            *("2026-04-03 00:37:11", "2026-04-03 00:37:10", "max_behind", "2 days"),
        ),
    ],
)
def test_limits_are_counted_by_the_calendar_to_the_second(
    fields: dict[str, Any], inside: str, outside: str, field: str, limit: str
) -> None:
    rules = policy(**fields)
    assert len(plan_rows(table(rules), [utc(inside)], NOW).steps) == 1
    with pytest.raises(KeyOutsideLimits) as refusal:
        plan_rows(table(rules), [NOW, utc(outside)], NOW)
    assert (refusal.value.field, refusal.value.limit) == (field, limit)
    assert refusal.value.value == utc(outside)
    assert refusal.value.table == "racing.odds"


def test_without_retention_the_past_is_without_limit() -> None:
    assert names(plan_rows(table(), [utc("1869-08-04 13:37:11")], NOW)) == ["odds_1869_08_05"]


def test_max_create_counts_windows_not_keys() -> None:
    rules = policy(max_create=3)
    keys = [NOW + timedelta(hours=6 * n) for n in range(12)]
    assert len(plan_rows(table(rules), keys[:9], NOW).steps) == 3
    with pytest.raises(KeyOutsideLimits) as refusal:
        plan_rows(table(rules), keys, NOW)
    assert (refusal.value.field, refusal.value.limit) == ("max_create", 3)
    assert "one of 4 windows" in str(refusal.value)


def test_windows_that_stand_do_not_count_towards_max_create() -> None:
    rules = policy(max_create=1)
    assert bounds(plan_rows(table(rules, part(*day(0))), [NOW, day(1)[0]], NOW)) == [day(1)]


def test_a_row_beside_a_hand_made_partition_gets_the_rest_of_its_window() -> None:
    utc_day = part(utc("2026-04-05 00:00:00"), utc("2026-04-06 00:00:00"), "odds_utc")
    plan = plan_rows(table(None, utc_day), [utc("2026-04-04 23:59:59.999999")], NOW)
    assert bounds(plan) == [(TODAY[0], utc_day.lower)]


def test_a_row_for_a_half_detached_partition_gets_the_reason() -> None:
    plan = plan_rows(table(None, part(*day(0), "stuck", pending=True)), [NOW], NOW)
    assert plan.steps == ()
    assert refusals(plan) == [Refusal.DETACH_PENDING]


def test_a_row_that_no_window_can_hold_is_refused() -> None:
    with pytest.raises(WindowRangeError):
        plan_rows(table(policy(max_ahead="20 years")), [utc("2039-07-07 13:37:11")], NOW)


def test_rows_of_a_table_without_a_policy_are_refused() -> None:
    with pytest.raises(NotManagedError):
        plan_rows(dataclasses.replace(table(), policy=None), [NOW], NOW)
    with pytest.raises(NotManagedError):
        plan_rows(dataclasses.replace(table(), problem=(Refusal.NO_TABLE, "gone")), [NOW], NOW)


# -- the windows that create_partitions asks for -------------------------------------------------------


def test_windows_between_holds_start_and_ends_before_stop() -> None:
    grid = table().grid
    assert [w.begin for w in windows_between(grid, NOW, day(2)[0])] == [day(0)[0], day(1)[0]]
    assert [w.begin for w in windows_between(grid, NOW, day(2)[0] + timedelta(microseconds=1))] == [
        day(0)[0],
        day(1)[0],
        day(2)[0],
    ]


@pytest.mark.parametrize("stop", [NOW, NOW - timedelta(days=1)])
def test_a_stretch_ends_after_it_begins(stop: datetime) -> None:
    with pytest.raises(PolicyError, match=r"'start'.* is not before") as refusal:
        list(windows_between(table().grid, NOW, stop))
    assert refusal.value.field == "start"


def test_a_stretch_of_too_many_windows_is_refused() -> None:
    grid = table().grid
    assert len(list(windows_between(grid, day(0)[0], day(9)[1], most=10))) == 10
    with pytest.raises(PolicyError, match="more than 10 windows") as refusal:
        list(windows_between(grid, day(0)[0], day(10)[1], most=10))
    assert refusal.value.field == "stop"


def test_asked_for_windows_that_stand_are_skipped() -> None:
    standing = table(None, part(*day(1)))
    windows = list(windows_between(standing.grid, day(0)[0], day(2)[1]))
    plan = plan_windows(standing, windows, made_by="somebody")
    assert bounds(plan) == [day(0), day(2)]
    assert {(step.reason, step.made_by) for step in plan.steps} == {(Reason.REQUESTED, "somebody")}


def test_asked_for_windows_of_a_disabled_table_are_refused_with_the_reason() -> None:
    disabled = table(policy(enabled=False))
    plan = plan_windows(disabled, windows_between(disabled.grid, *day(0)))
    assert plan.steps == ()
    assert refusals(plan) == [Refusal.DISABLED]


# -- coverage ------------------------------------------------------------------------------------------


def test_nothing_covers_nothing() -> None:
    assert not Coverage().covers(NOW, NOW)
    assert not Coverage.of([DEFAULT, part(*day(0), pending=True)]).covers(NOW, NOW)


def test_partitions_that_touch_are_one_run() -> None:
    coverage = Coverage.of([part(*day(1)), part(*day(-1)), part(*day(0))])
    assert (coverage.begins, coverage.ends) == ((day(-1)[0],), (day(1)[1],))
    assert coverage.covers(day(-1)[0], NOW)
    assert coverage.spans(day(-1)[0], day(1)[1])


def test_the_upper_bound_is_covered_by_spans_and_not_by_covers() -> None:
    coverage = Coverage.of([part(*day(0))])
    tick = timedelta(microseconds=1)
    assert coverage.spans(*day(0))
    assert not coverage.spans(day(0)[0], day(0)[1] + tick)
    assert coverage.covers(day(0)[0], day(0)[1] - tick)
    assert not coverage.covers(*day(0))
    assert not coverage.covers(day(0)[1], day(0)[1])
    assert not coverage.covers(day(0)[0] - tick, NOW)


def test_a_hole_is_not_covered() -> None:
    coverage = Coverage.of([part(*day(0)), part(*day(2))])
    assert coverage.covers(NOW, NOW)
    assert not coverage.covers(NOW, day(2)[0])
    assert not coverage.covers(day(1)[0], day(1)[0])
    assert not coverage.spans(day(0)[0], day(2)[1])


def test_unbounded_runs_cover_to_the_end() -> None:
    coverage = Coverage.of([part(None, day(0)[0]), part(day(1)[0], None)])
    assert coverage.covers(utc("0001-01-01 00:00:00"), day(0)[0] - timedelta(seconds=1))
    assert coverage.covers(day(1)[0], utc("9999-12-31 23:59:59"))
    assert not coverage.covers(NOW, NOW)
    assert not coverage.covers(utc("0001-01-01 00:00:00"), day(1)[0])
    assert Coverage.of([part(None, None)]).spans(utc("0001-01-01 00:00:00"), utc("9999-12-31 23:59:59"))


# -- any table, any policy -----------------------------------------------------------------------------

# Around the clock changes of several zones, to the odd second.
INSTANTS = st.integers(
    int(utc("2025-09-01 00:00:00").timestamp()), int(utc("2027-05-01 00:00:00").timestamp())
)
RULES = st.builds(
    PartitionPolicy,
    st.just("at"),
    interval=st.sampled_from(INTERVALS),
    every=st.sampled_from([1, 2, 3, 6]),
    timezone=st.sampled_from(["Pacific/Auckland", "America/St_Johns", "Australia/Lord_Howe", "UTC"]),
    day_start=st.sampled_from(["00:00", "06:00", "02:30"]),
    week_start=st.sampled_from(["monday", "sunday"]),
    premake=st.integers(0, 9),
    lookback=st.integers(0, 4),
    retention=st.sampled_from([None, "1 day", "36 hours", "2 months"]),
    column_timezone=st.just("UTC"),
)


def disjoint(edges: Sequence[KeyValue], kinds: Sequence[str]) -> Iterator[Partition]:
    """Cut the line at the edges; each piece stands, is half detached, or is missing."""
    cuts: list[KeyValue | None] = [None, *sorted(set(edges)), None]
    for number, ((lower, upper), kind) in enumerate(zip(pairwise(cuts), kinds, strict=False)):
        if kind != "missing":
            name = f"odds_{number}" if number % 2 or lower is None else f"odds_{lower:%Y_%m_%d}"
            yield part(lower, upper, name, pending=kind == "pending")


def wanted(managed: ManagedTable, now: datetime) -> Iterator[Window]:
    """Yield the windows that must stand, by stepping through the grid."""
    grid, rules = managed.grid, managed.policy
    assert rules is not None
    window = grid.at(grid.key_at(now))
    yield window
    for _ in range(rules.premake):
        window = grid.after(window)
        yield window


def never_overlapping(partitions: Sequence[Partition], steps: Sequence[CreatePartition]) -> bool:
    def overlap(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
        return (one[0] is None or other[1] is None or one[0] < other[1]) and (
            other[0] is None or one[1] is None or other[0] < one[1]
        )

    ranges: list[tuple[Any, Any]] = [(p.lower, p.upper) for p in partitions]
    for step in steps:
        if any(overlap((step.lower, step.upper), existing) for existing in ranges):
            return False
        ranges.append((step.lower, step.upper))
    return True


@given(
    rules=RULES,
    key_type=st.sampled_from(KEY_TYPES),
    now=INSTANTS,
    cuts=st.lists(st.tuples(INSTANTS, st.booleans()), max_size=12),
    kinds=st.lists(st.sampled_from(["stands", "stands", "missing", "pending"]), min_size=13, max_size=13),
    has_default=st.booleans(),
    name=st.sampled_from(["odds", "ō" * 30, "x" * 63]),
)
def test_a_plan_covers_every_wanted_window_and_overlaps_nothing(
    rules: PartitionPolicy,
    key_type: KeyType,
    now: int,
    cuts: list[tuple[int, bool]],
    kinds: list[str],
    has_default: bool,
    name: str,
) -> None:
    if rules.interval == "hour" and key_type == "date":
        rules = rules.changed(interval="day")
    if rules.interval in ("quarter", "year"):  # or the horizon reaches beyond 2037, where pytz ends
        rules = rules.changed(every=1)
    grid, instant = rules.grid(key_type), utc("1970-01-01 00:00:00") + timedelta(seconds=now)
    edges = []
    for seconds, aligned in cuts:
        key = grid.key_at(utc("1970-01-01 00:00:00") + timedelta(seconds=seconds))
        edges.append(grid.at(key).begin if aligned else key)
    existing = tuple(disjoint(edges, kinds))
    managed = table(rules, *existing, *((DEFAULT,) if has_default else ()), name=name, key_type=key_type)

    plan = plan_horizon(managed, instant, {"odds_2026_04_05", "odds_2026_09"})

    windows = list(wanted(managed, instant))
    assert all(step.lower < step.upper for step in plan.steps)
    assert never_overlapping(existing, plan.steps)
    occupied = [dataclasses.replace(p, detach_pending=False) for p in done(plan).partitions]
    assert all(Coverage.of(occupied).spans(w.begin, w.end) for w in windows)
    # Nothing is made outside what is wanted: the windows from the oldest lookback to the last premade.
    oldest = windows[0]
    for _ in range(rules.lookback):
        oldest = grid.before(oldest)
    assert all(oldest.begin <= step.lower and step.upper <= windows[-1].end for step in plan.steps)
    made = names(plan)
    assert len({*made, *(p.name for p in existing)}) == len(made) + len({p.name for p in existing})
    assert not {"odds_2026_04_05", "odds_2026_09"} & set(made)
    assert all(len(n.encode()) <= 63 for n in made)
    # Once it is done there is nothing left to do.
    assert plan_horizon(done(plan), instant).steps == ()
