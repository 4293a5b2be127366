"""How far a table reaches: runway, gaps, what retention takes next, and how bad all that is."""

from __future__ import annotations

import dataclasses
import math
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions import PartitionPolicy, health
from alembic_partitions.health import Level
from alembic_partitions.periods import INTERVALS, KEY_TYPES, Interval, KeyType, KeyValue, Window
from alembic_partitions.plan import (
    PARTITION_MARK,
    ManagedTable,
    Partition,
    Refusal,
    Runway,
    local,
    plan_horizon,
    runway_of,
)
from tests.zones import utc

# 13:37:11 in Auckland on the day of 25 hours, and on the day of 23.
NOW = utc("2026-04-05 01:37:11")
SHORT_DAY = utc("2026-09-27 00:37:11")


def table(key_type: KeyType = "timestamptz", **fields: Any) -> ManagedTable:
    rules = {"timezone": "Pacific/Auckland", "premake": 30, "lookback": 0, **fields}
    return ManagedTable("racing", "odds", PartitionPolicy("at", **rules), 4711, key_type)


def part(lower: KeyValue | None, upper: KeyValue | None, **more: Any) -> Partition:
    return Partition(1, "racing", "p", lower, upper, **{"mark": f"{PARTITION_MARK}test", **more})


DEFAULT = Partition(2, "racing", "odds_default", None, None, is_default=True)


def windows(bare: ManagedTable, now: datetime, before: int, after: int) -> list[Window]:
    """The current window with its neighbours."""
    grid = bare.grid
    found = [grid.at(grid.key_at(now))]
    for _ in range(before):
        found.insert(0, grid.before(found[0]))
    for _ in range(after):
        found.append(grid.after(found[-1]))
    return found


def having(bare: ManagedTable, *parts: Partition) -> ManagedTable:
    return dataclasses.replace(bare, partitions=parts)


def full(bare: ManagedTable, now: datetime = NOW, before: int = 3, after: int = 30) -> ManagedTable:
    return having(bare, *(part(w.begin, w.end) for w in windows(bare, now, before, after)))


def measured(managed: ManagedTable, now: datetime = NOW) -> Runway:
    runway = runway_of(managed, now)
    assert runway is not None
    return runway


def judged(managed: ManagedTable, now: datetime = NOW, **more: Any) -> health.TableHealth:
    return health.assess(plan_horizon(managed, now), now, **more)


# -- how far -------------------------------------------------------------------------------------------


def test_a_whole_horizon_of_days_ends_at_local_midnight() -> None:
    runway = measured(full(table()))
    assert runway.here == NOW
    assert runway.end == runway.wanted == utc("2026-05-05 12:00:00")
    assert runway.days == runway.wanted_days == pytest.approx(30 + 10.38 / 24, abs=0.01)
    assert runway.current == part(utc("2026-04-04 11:00:00"), utc("2026-04-05 12:00:00"))
    assert runway.reaches_tomorrow
    assert runway.gaps == ()


def test_days_are_real_ones_where_the_clocks_change() -> None:
    """From 13:37 on the eve to the midnight after the long day: 35 hours 22 minutes and 49 seconds."""
    eve = NOW - timedelta(hours=25)
    runway = measured(full(table(), eve, after=1), eve)
    assert runway.end == utc("2026-04-05 12:00:00")
    assert runway.days * 24 == pytest.approx(35 + 22 / 60 + 49 / 3600)


def test_a_date_key_ends_where_its_local_day_begins() -> None:
    runway = measured(full(table("date"), after=2))
    assert (runway.here, runway.end) == (date(2026, 4, 5), date(2026, 4, 8))
    assert runway.days * 24 == pytest.approx(58 + 22 / 60 + 49 / 3600)


def test_a_naive_key_is_on_its_own_clocks() -> None:
    runway = measured(full(table("timestamp", column_timezone="UTC"), after=2))
    assert runway.here == datetime(2026, 4, 5, 1, 37, 11)
    assert runway.end == datetime(2026, 4, 7, 12)


def test_maxvalue_never_ends() -> None:
    runway = measured(having(table(), part(utc("2026-01-01"), None)))
    assert runway.end is None
    assert runway.days == math.inf
    assert runway.reaches_tomorrow
    assert runway.gaps == ()


def test_minvalue_is_no_gap() -> None:
    runway = measured(having(table(premake=0), part(None, utc("2026-04-05 12:00:00"))))
    assert runway.gaps == ()
    assert runway.days > 0


def test_without_partitions_the_whole_horizon_is_a_gap() -> None:
    runway = measured(table(premake=1))
    assert runway.gaps == ((utc("2026-04-04 11:00:00"), utc("2026-04-06 12:00:00")),)
    assert (runway.days, runway.current, runway.reaches_tomorrow) == (0, None, False)


def test_half_detached_and_default_partitions_cover_nothing() -> None:
    managed = full(table(), after=2)
    (today,) = [p for p in managed.partitions if p.lower == utc("2026-04-04 11:00:00")]
    pending = dataclasses.replace(today, detach_pending=True)
    parts = (*(p for p in managed.partitions if p != today), pending, DEFAULT)
    runway = measured(having(managed, *parts))
    assert (runway.days, runway.current) == (0, None)
    assert (today.lower, today.upper) in runway.gaps


def test_a_table_with_a_problem_has_no_runway() -> None:
    assert runway_of(ManagedTable("racing", "odds", problem=(Refusal.UNFIT, "no")), NOW) is None
    broken = dataclasses.replace(table(), problem=(Refusal.NO_TABLE, "racing.odds"))
    assert runway_of(broken, NOW) is None


def test_the_end_of_the_calendar_is_the_end_of_the_horizon() -> None:
    late = utc("2037-12-20 01:37:11")
    runway = measured(full(table(), late, after=5), late)
    assert runway.wanted == utc("2037-12-31 11:00:00")
    assert runway_of(table(), utc("2039-01-01")) is None


def test_tomorrow_at_this_very_instant_must_have_a_partition() -> None:
    midnight = utc("2026-04-03 11:00:00")
    assert not measured(full(table(), midnight, after=0), midnight).reaches_tomorrow
    assert measured(full(table(), midnight, after=1), midnight).reaches_tomorrow


def test_a_naive_key_is_shown_as_it_is_written() -> None:
    grid = table("timestamp").grid
    jumped_over = datetime(2026, 9, 27, 2, 30)
    assert local(grid, jumped_over) == jumped_over
    written_in_utc = table("timestamp", column_timezone="UTC").grid
    assert local(written_in_utc, datetime(2026, 4, 5, 1, 37)) == datetime(2026, 4, 5, 13, 37)
    assert local(table("date").grid, date(2026, 4, 5)) == date(2026, 4, 5)


# -- what retention takes next -------------------------------------------------------------------------


def test_only_what_lies_wholly_before_the_cutoff_is_expired() -> None:
    """13:37 three days ago: the day that began at the midnight before is not over for it."""
    runway = measured(full(table(retention="3 days"), before=5))
    assert runway.cutoff == utc("2026-04-02 00:37:11")
    assert [p.upper for p in runway.expired] == [utc("2026-03-31 11:00:00"), utc("2026-04-01 11:00:00")]
    assert runway.due == runway.expired


def test_what_ends_at_the_cutoff_is_expired() -> None:
    midnight = utc("2026-04-03 11:00:00")
    runway = measured(full(table(retention="3 days"), midnight, before=5), midnight)
    assert runway.cutoff == runway.expired[-1].upper == utc("2026-03-31 11:00:00")


def test_retention_counts_calendar_months() -> None:
    runway = measured(
        full(table("date", interval="month", retention="12 months", premake=1), before=14, after=1)
    )
    assert runway.cutoff == date(2025, 4, 5)
    assert [p.upper for p in runway.expired] == [date(2025, 3, 1), date(2025, 4, 1)]


def test_what_was_made_by_hand_is_expired_but_not_due() -> None:
    managed = full(table(retention="3 days"), before=5)
    by_hand = having(managed, dataclasses.replace(managed.partitions[0], mark=None), *managed.partitions[1:])
    runway = measured(by_hand)
    assert len(runway.expired) == 2
    assert runway.due == runway.expired[1:]


def test_the_last_partition_is_never_due() -> None:
    old = [part(utc("2026-01-01"), utc("2026-01-02")), part(utc("2026-01-02"), utc("2026-01-03"))]
    runway = measured(having(table(retention="3 days"), *old))
    assert runway.expired == tuple(old)
    assert runway.due == (old[0],)


def test_of_a_disabled_table_nothing_is_due() -> None:
    runway = measured(full(table(retention="3 days", enabled=False), before=5))
    assert len(runway.expired) == 2
    assert runway.due == ()


def test_without_retention_nothing_is_expired() -> None:
    runway = measured(full(table()))
    assert (runway.cutoff, runway.expired, runway.due) == (None, (), ())


# -- by property ---------------------------------------------------------------------------------------

_CLOCK_CHANGES = [utc("2026-04-04 14:00:00"), utc("2026-09-26 14:00:00"), NOW, SHORT_DAY]


@given(
    interval=st.sampled_from(INTERVALS),
    key_type=st.sampled_from(KEY_TYPES),
    change=st.sampled_from(_CLOCK_CHANGES),
    off=st.integers(-40 * 3600, 40 * 3600),
    there=st.lists(st.booleans(), min_size=12, max_size=12),
    premake=st.integers(0, 7),
    kept=st.sampled_from([None, 1, 2, 3]),
)
def test_it_agrees_with_a_walk_over_the_windows(
    interval: Interval,
    key_type: KeyType,
    change: datetime,
    off: int,
    there: list[bool],
    premake: int,
    kept: int | None,
) -> None:
    if key_type == "date" and interval == "hour":
        interval = "day"
    fields: dict[str, Any] = {"column_timezone": "UTC"} if key_type == "timestamp" else {}
    retention = f"{kept} {interval}s" if kept else None
    bare = table(key_type, interval=interval, premake=premake, retention=retention, **fields)
    now = change + timedelta(seconds=off)
    around = windows(bare, now, 4, 7)
    made = [w for w, stands in zip(around, there, strict=True) if stands]
    runway = measured(having(bare, *(part(w.begin, w.end) for w in made)), now)

    assert runway.window == around[4]
    assert runway.wanted == around[4 + premake].end
    end: KeyValue = bare.grid.key_at(now)
    for window in around[4:]:
        if window not in made:
            break
        end = window.end
    assert runway.end == end
    assert (runway.days == 0) is (around[4] not in made) is (runway.current is None)

    first = min([around[4].begin, *(w.begin for w in made)])
    last = max([runway.wanted, *(w.end for w in made)])
    for window in around:
        asked = first <= window.begin and window.end <= last
        inside = [low <= window.begin and window.end <= high for low, high in runway.gaps]
        apart = [window.end <= low or high <= window.begin for low, high in runway.gaps]
        assert any(inside) is (asked and window not in made)
        assert all(a or i for a, i in zip(apart, inside, strict=True))

    past = [w.end for w in made if runway.cutoff is not None and w.end <= runway.cutoff]
    assert [p.upper for p in runway.expired] == past
    assert [p.upper for p in runway.due] == (past if len(past) < len(made) else past[:-1])
    assert (runway.cutoff is None) is (kept is None)


# -- how bad -------------------------------------------------------------------------------------------


def test_a_whole_horizon_is_ok() -> None:
    found = judged(full(table()))
    assert (found.level, found.reasons, found.enabled) == (Level.OK, (), True)
    assert found.horizon == utc("2026-05-05 12:00:00")


@pytest.mark.parametrize(
    ("after", "level"),
    [(6, Level.WARNING), (7, Level.OK), (1, Level.WARNING), (0, Level.CRITICAL)],
)
def test_days_that_are_left(after: int, level: Level) -> None:
    """At 13:37 the day itself has ten hours left: six more are under seven days, and none lacks tomorrow."""
    assert judged(full(table(), after=after)).level is level


def test_a_missing_today_is_critical_whatever_comes_after() -> None:
    managed = full(table())
    gap = having(managed, *(p for p in managed.partitions if p.lower != utc("2026-04-04 11:00:00")))
    found = judged(gap)
    assert found.level is Level.CRITICAL
    assert found.runway == 0
    assert found.reasons == ("no partition for rows that are written now",)


def test_a_missing_tomorrow_is_critical_and_says_from_when_on() -> None:
    found = judged(full(table(), after=0))
    assert found.reasons == ("no partition for rows from 2026-04-06 00:00 Pacific/Auckland on",)


@pytest.mark.parametrize("instant", ["2026-04-04 11:30:00", "2026-04-04 11:59:59", "2026-04-05 11:59:00"])
def test_tomorrow_is_the_next_local_day_at_any_hour_of_the_day_of_25(instant: str) -> None:
    assert judged(full(table(), after=0), utc(instant)).level is Level.CRITICAL


def test_a_disabled_table_that_is_gone_is_left_alone() -> None:
    gone = dataclasses.replace(table(enabled=False), problem=(Refusal.NO_TABLE, "odds"), partitions=())
    assert judged(gone).level is Level.OK


def test_a_gap_earlier_today_is_critical_too() -> None:
    """Rows of this morning may still be on their way."""
    managed = full(table())
    today = next(p for p in managed.partitions if p.lower == utc("2026-04-04 11:00:00"))
    afternoon = dataclasses.replace(today, lower=NOW - timedelta(hours=1))
    found = judged(having(managed, *(afternoon if p == today else p for p in managed.partitions)))
    assert found.level is Level.CRITICAL
    assert found.reasons == ("no partition for some rows of the current window",)


def test_a_gap_later_today_is_critical_too() -> None:
    managed = full(table(interval="hour", premake=48), after=48)
    hole = having(managed, *(p for p in managed.partitions if p.lower != utc("2026-04-05 09:00:00")))
    assert judged(hole).level is Level.CRITICAL


def test_how_many_days_are_a_warning_can_be_said() -> None:
    assert judged(full(table(), after=10), warn_days=14).level is Level.WARNING
    assert judged(full(table(), after=3), warn_days=2).level is Level.OK


@pytest.mark.parametrize(
    ("after", "level"), [(0, Level.CRITICAL), (3, Level.WARNING), (4, Level.OK), (8, Level.OK)]
)
def test_a_short_horizon_is_measured_by_itself(after: int, level: Level) -> None:
    """Eight days ahead are asked for, so four are enough, though they are under seven."""
    assert judged(full(table(premake=8), after=after)).level is level


@pytest.mark.parametrize(("after", "level"), [(0, Level.CRITICAL), (1, Level.WARNING), (2, Level.OK)])
def test_a_horizon_under_a_day_must_hold_the_next_window(after: int, level: Level) -> None:
    """Three hours ahead is all that is asked for: half of it is a warning."""
    assert judged(full(table(interval="hour", premake=3), after=after)).level is level


def test_without_premake_only_the_current_window_must_stand() -> None:
    managed = table(premake=0)
    for hour in range(25):
        now = utc("2026-04-04 11:00:01") + timedelta(hours=hour)
        assert judged(full(managed, now, after=0), now).level is Level.OK, now
    assert judged(managed).level is Level.CRITICAL


def test_with_a_default_partition_inserts_do_not_fail() -> None:
    found = judged(having(table(), DEFAULT), stranded=True)
    assert found.level is Level.WARNING
    assert found.reasons == (
        "no partition for rows that are written now: they strand in the DEFAULT partition",
        "the DEFAULT partition holds rows: see repair --dry-run",
    )
    assert found.stranded is True
    well = full(table())
    assert judged(having(well, *well.partitions, DEFAULT)).level is Level.OK


def test_a_pending_detach_is_a_warning_where_it_is_not_needed_now() -> None:
    managed = full(table())
    old = dataclasses.replace(managed.partitions[0], detach_pending=True)
    found = judged(having(managed, old, *managed.partitions[1:]))
    assert found.level is Level.WARNING
    assert "racing.p" in found.reasons[0]


def test_a_failed_run_is_a_warning() -> None:
    found = judged(full(table()), failure="the last maintain failed: no")
    assert (found.level, found.reasons) == (Level.WARNING, ("the last maintain failed: no",))


def test_a_disabled_table_is_ok_whatever_it_lacks() -> None:
    found = judged(table(enabled=False), stranded=True, failure="no")
    assert (found.level, found.reasons, found.enabled) == (Level.OK, (), False)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ((Refusal.NO_TABLE, "racing.odds"), "the table does not exist"),
        ((Refusal.UNFIT, "racing.odds: why"), "why: the table does not fit its policy"),
    ],
)
def test_a_table_with_a_problem_is_critical(problem: tuple[Refusal, str], told: str) -> None:
    found = judged(dataclasses.replace(table(), problem=problem))
    assert (found.level, found.reasons, found.current_missing) == (Level.CRITICAL, (told,), True)


def test_beyond_the_calendar_is_critical() -> None:
    late = utc("2039-01-01")
    assert judged(table(), late).level is Level.CRITICAL


def test_where_the_calendar_ends_within_the_horizon_is_a_warning() -> None:
    late = utc("2037-12-20 01:37:11")
    found = judged(full(table(), late, after=11), late)
    assert found.level is Level.WARNING
    assert Refusal.OUT_OF_RANGE.value in found.reasons[0]


def test_something_wrong_is_worse_than_something_unknown() -> None:
    assert health.worst([]) is Level.UNKNOWN
    assert health.worst([Level.OK, Level.UNKNOWN]) is Level.UNKNOWN
    assert health.worst([Level.UNKNOWN, Level.WARNING, Level.OK]) is Level.WARNING
    assert health.worst([Level.CRITICAL, Level.UNKNOWN]) is Level.CRITICAL


def healthy(*tables: health.TableHealth) -> health.Health:
    return health.Health(not any(found.current_missing for found in tables), tables)


def test_the_health_of_plans_alone_measures_no_runway() -> None:
    found = healthy(health.assess(plan_horizon(full(table()), NOW), None))
    assert found.ok
    assert found.tables[0].runway is None
    assert found.level is Level.OK
    assert healthy().level is Level.UNKNOWN
    missing = healthy(judged(table()))
    assert not missing.ok
    assert missing.level is Level.CRITICAL
