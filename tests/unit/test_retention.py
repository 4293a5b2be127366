"""What retention lets go: never too early, never what is not ours, never the last, never more than asked."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions import PartitionPolicy
from alembic_partitions.maintenance.retaining import detaches_safely
from alembic_partitions.periods import Grid, KeyType, KeyValue, Period, Window, wall_clock, zone
from alembic_partitions.plan import (
    PARTITION_MARK,
    RESTORED_MARK,
    ChangeFate,
    Detached,
    DetachPartition,
    DropDetached,
    Export,
    ExportDetached,
    Finding,
    How,
    KeepPartition,
    ManagedTable,
    MoveDetached,
    Partition,
    Reason,
    Refusal,
    Retention,
    Traits,
    plan_restore,
    plan_retention,
)
from tests.zones import utc

# 13:37:11 in Auckland, on the day of 25 hours.
NOW = utc("2026-04-05 01:37:11")
OURS = f"{PARTITION_MARK}ensure"


def table(days: int = 10, ahead: int = 2, key_type: KeyType = "timestamptz", **fields: Any) -> ManagedTable:
    """A table with one partition a window, ``days`` back from today and ``ahead`` of it."""
    policy = PartitionPolicy("at", **{"timezone": "Pacific/Auckland", "retention": "3 days", **fields})
    found = ManagedTable("public", "odds", policy, oid=1, key_type=key_type)
    grid = found.grid
    window = grid.at(grid.key_at(NOW))
    for _ in range(days):
        window = grid.before(window)
    parts = []
    for number in range(days + ahead + 1):
        parts.append(
            Partition(100 + number, "public", f"odds_{window.suffix}", window.begin, window.end, mark=OURS)
        )
        window = grid.after(window)
    return dataclasses.replace(found, partitions=tuple(parts))


def with_partition(found: ManagedTable, index: int, **changes: Any) -> ManagedTable:
    parts = list(found.partitions)
    parts[index] = dataclasses.replace(parts[index], **changes)
    return dataclasses.replace(found, partitions=tuple(parts))


def detached(name: str = "odds_2026_03_01", days_ago: float = 8, **changes: Any) -> Detached:
    lower = utc("2026-02-28 11:00:00")
    old = Detached(
        7, "public", f"{name}_detached", name, "public", "FOR VALUES FROM ... TO ...", lower,
        lower + timedelta(days=1), at=NOW - timedelta(days=days_ago),
    )  # fmt: skip
    return dataclasses.replace(old, **changes)


def going(planned: Retention) -> list[str]:
    return [step.partition.name for step in planned.steps if isinstance(step, DetachPartition)]


def refusals(planned: Retention) -> list[Refusal]:
    return [finding.refusal for finding in planned.findings]


def test_what_citus_has_distributed_is_detached_plainly() -> None:
    found = table()
    there = dataclasses.replace(found, traits=Traits(distributed=True))
    assert {step.how for step in plan_retention(found, (), NOW).steps} == {How.CONCURRENTLY}  # type: ignore[union-attr]
    assert {step.how for step in plan_retention(there, (), NOW).steps} == {How.PLAIN}  # type: ignore[union-attr]


def test_nothing_goes_unless_asked_for() -> None:
    planned = plan_retention(table(retention=None), [], NOW)
    assert (planned.steps, planned.findings) == ((), ())


def test_only_what_is_wholly_older_goes_the_oldest_first() -> None:
    # Three days before 13:37 on 5 April is 13:37 on 2 April: the partition of 2 April stays.
    planned = plan_retention(table(), [], NOW)
    assert going(planned) == [f"odds_2026_03_{day}" for day in range(26, 32)] + ["odds_2026_04_01"]
    assert {s.reason for s in planned.steps if isinstance(s, DetachPartition)} == {Reason.EXPIRED}


def test_twelve_months_are_calendar_months() -> None:
    found = table(days=15, interval="month", retention="12 months")
    # 5 April 2025, 13:37: all of March 2025 is older, April is not.
    assert going(plan_retention(found, [], NOW))[-1] == "odds_2025_03"


def test_a_date_key_goes_by_the_date_of_the_zone() -> None:
    found = table(key_type="date")
    assert found.partitions[0].lower == date(2026, 3, 26)
    assert going(plan_retention(found, [], NOW))[-1] == "odds_2026_04_01"


@given(
    st.sampled_from(["Pacific/Auckland", "America/St_Johns", "Europe/Berlin", "UTC", "Africa/Casablanca"]),
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)),
    st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]),
    st.integers(1, 60),
    st.sampled_from(["timestamptz", "timestamp", "date"]),
)
def test_no_row_inside_its_retention_ever_goes(
    timezone: str, moment: datetime, interval: Any, count: int, key_type: KeyType
) -> None:
    if interval == "hour" and key_type != "timestamptz":
        return
    now = utc(str(moment))
    retention = f"{count} {interval}s"
    policy = PartitionPolicy(
        "at", interval=interval, timezone=timezone, retention=retention, max_drops=10_000
    )
    found = ManagedTable("public", "odds", policy, oid=1, key_type=key_type)
    window, parts = found.grid.at(found.grid.key_at(now)), []
    for number in range(count + 4):
        parts.append(Partition(number, "public", window.suffix, window.begin, window.end, mark=OURS))
        window = found.grid.before(window)
    found = dataclasses.replace(found, partitions=tuple(parts))
    oldest_kept: KeyValue = found.grid.key_at(Period.parse(retention).before(now, timezone))
    gone = {s.partition.oid for s in plan_retention(found, [], now).steps if isinstance(s, DetachPartition)}
    for part in parts:
        assert part.upper is not None
        assert (part.oid in gone) is (part.upper <= oldest_kept)
    assert 0 not in gone, "the current window"
    if key_type == "timestamptz" and interval != "hour":
        # Said once more by the wall clock alone: the same time of day, so many days or months ago.
        wall = wall_clock(now, zone(timezone))
        for part in parts:
            if part.oid in gone and isinstance(part.upper, datetime):
                assert wall_clock(part.upper, zone(timezone)) < wall


def test_what_lacks_our_mark_stays_and_is_told() -> None:
    found = with_partition(with_partition(table(), 0, mark=None), 1, mark="somebody's own")
    planned = plan_retention(found, [], NOW)
    assert going(planned)[0] == "odds_2026_03_28"
    assert refusals(planned) == [Refusal.NOT_OURS]
    assert "odds_2026_03_26 and 1 more" in planned.findings[0].detail


def test_the_last_partition_stays() -> None:
    found = table()
    found = dataclasses.replace(found, partitions=found.partitions[:3])
    planned = plan_retention(found, [], NOW)
    assert going(planned) == ["odds_2026_03_26", "odds_2026_03_27"]
    assert refusals(planned) == [Refusal.LAST]


def test_a_default_partition_stays_and_is_no_last_one() -> None:
    default = Partition(99, "public", "odds_default", None, None, is_default=True, mark=OURS)
    found = table()
    found = dataclasses.replace(found, partitions=(default, *found.partitions[:1]))
    planned = plan_retention(found, [], NOW)
    assert planned.steps == ()
    assert refusals(planned) == [Refusal.LAST]


def test_partitions_that_reach_to_either_end_of_the_calendar_stay_unless_past() -> None:
    found = table()
    found = with_partition(found, 0, lower=None)
    found = with_partition(found, len(found.partitions) - 1, upper=None)
    assert going(plan_retention(found, [], NOW))[-1] == "odds_2026_04_01"


def test_no_more_than_max_drops_in_a_run_and_the_rest_is_told() -> None:
    planned = plan_retention(table(max_drops=2), [], NOW)
    assert going(planned) == ["odds_2026_03_26", "odds_2026_03_27"]
    assert refusals(planned) == [Refusal.MORE_WAIT]
    assert "5 expired" in planned.findings[0].detail


def test_what_another_grid_has_made_waits_two_days_more() -> None:
    # Made in UTC days: they end at noon of Auckland.
    days = [utc("2026-03-26 00:00:00") + timedelta(days=n) for n in range(12)]
    parts = tuple(
        Partition(n, "public", f"odds_{day:%Y_%m_%d}", day, day + timedelta(days=1), mark=OURS)
        for n, day in enumerate(days)
    )
    planned = plan_retention(dataclasses.replace(table(), partitions=parts), [], NOW)
    # The line is at 00:37 of 2 April, UTC.
    assert going(planned)[-1] == "odds_2026_03_30"


def test_a_doubt_removes_nothing_and_is_told_only_where_something_would_go() -> None:
    doubt = Finding(Refusal.CLOCK, "public.odds")
    planned = plan_retention(table(), [detached()], NOW, doubt=doubt)
    assert (planned.steps, planned.findings[0]) == ((), doubt)
    assert plan_retention(table(retention="1 year"), [], NOW, doubt=doubt).findings == ()


def test_a_disabled_table_is_left_alone() -> None:
    found = table(enabled=False, on_expiry="drop")
    assert plan_retention(found, [detached()], NOW) == Retention(found)


def test_beside_a_default_partition_the_detach_is_a_plain_one() -> None:
    found = table()
    assert {s.how for s in plan_retention(found, [], NOW).steps if isinstance(s, DetachPartition)} == {
        How.CONCURRENTLY
    }
    default = Partition(99, "public", "odds_default", None, None, is_default=True)
    found = dataclasses.replace(found, partitions=(*found.partitions, default))
    assert {s.how for s in plan_retention(found, [], NOW).steps if isinstance(s, DetachPartition)} == {
        How.PLAIN
    }


def test_a_pending_detach_is_finished_and_undone_where_it_is_not_expired() -> None:
    found = with_partition(with_partition(table(), 0, detach_pending=True), 9, detach_pending=True)
    steps = [s for s in plan_retention(found, [], NOW).steps if isinstance(s, DetachPartition)]
    assert [(s.how, s.reattach) for s in steps[:2]] == [(How.FINALIZE, True), (How.FINALIZE, False)]
    assert steps[0].name == steps[0].partition.name


def test_a_pending_detach_of_somebody_elses_is_in_the_way_of_the_others() -> None:
    found = with_partition(table(), 9, detach_pending=True, mark=None)
    planned = plan_retention(found, [], NOW)
    assert planned.steps == ()
    assert refusals(planned) == [Refusal.DETACH_PENDING]


def test_a_table_that_a_killed_run_left_detached_is_put_away() -> None:
    half = detached(at=None, name="odds_2026_03_01")
    (step,) = plan_retention(table(days=0), [half], NOW).steps
    assert isinstance(step, DetachPartition)
    assert (step.how, step.reason, step.reattach) == (How.DONE, Reason.CUT_OFF, False)


@pytest.mark.parametrize(
    ("version", "safe"),
    [((15, 4), False), ((15, 9), True), ((16, 2), False), ((16, 5), True), ((17, 0), True), ((18, 6), True)],
)
def test_releases_on_which_a_concurrent_detach_harms_others(version: tuple[int, ...], safe: bool) -> None:
    assert detaches_safely(version) is safe
    (step, *_) = plan_retention(table(), [], NOW, concurrently=safe).steps
    assert isinstance(step, DetachPartition)
    assert step.how is (How.CONCURRENTLY if safe else How.PLAIN)


# Grace.


def test_what_is_detached_is_dropped_after_its_grace_and_only_if_asked_for() -> None:
    found = table(days=0)
    assert plan_retention(found, [detached()], NOW).steps == ()
    found = table(days=0, on_expiry="drop")
    assert plan_retention(found, [detached(days_ago=6.9, fate="drop")], NOW).steps == ()
    (step,) = plan_retention(found, [detached(days_ago=7.1, fate="drop")], NOW).steps
    assert isinstance(step, DropDetached)


def test_what_was_detached_in_the_future_is_not_dropped() -> None:
    assert (
        plan_retention(table(days=0, on_expiry="drop"), [detached(days_ago=-400, fate="drop")], NOW).steps
        == ()
    )


@pytest.mark.parametrize("on_expiry", ["detach", "drop"])
def test_a_longer_retention_keeps_what_has_been_detached_and_it_is_told(on_expiry: str) -> None:
    planned = plan_retention(
        table(days=0, on_expiry=on_expiry, retention="1 year"), [detached(fate="drop")], NOW
    )
    assert planned.steps == ()
    assert refusals(planned) == [Refusal.EXTENDED]


def test_another_on_expiry_begins_the_grace_anew() -> None:
    (step,) = plan_retention(table(days=0, on_expiry="drop"), [detached(days_ago=400)], NOW).steps
    assert isinstance(step, ChangeFate)


def test_what_lies_in_an_archive_schema_is_never_dropped() -> None:
    archived = detached(days_ago=400, schema="old", fate="drop")
    assert plan_retention(table(days=0, on_expiry="drop"), [archived], NOW).steps == ()


def test_what_somebody_has_renamed_is_theirs() -> None:
    theirs = detached(days_ago=400, fate="drop", renamed=True)
    assert plan_retention(table(days=0, on_expiry="drop"), [theirs], NOW).steps == ()


def test_a_mark_that_a_killed_run_has_left_is_taken_back() -> None:
    found = with_partition(table(), 9, mark="alembic_partitions: detaching {}")
    step = plan_retention(found, [], NOW).steps[0]
    assert isinstance(step, KeepPartition)


def test_what_is_half_way_and_not_expired_is_put_back_whatever_the_doubt() -> None:
    doubt = Finding(Refusal.CLOCK, "public.odds")
    found = with_partition(table(), 9, detach_pending=True)
    (step,) = plan_retention(found, [], NOW, doubt=doubt).steps
    assert isinstance(step, DetachPartition)
    assert step.reattach


def test_a_detach_of_somebody_elses_that_is_under_way_is_left_to_them() -> None:
    found = with_partition(table(), 9, detach_pending=True)
    planned = plan_retention(found, [], NOW, in_progress=True)
    assert not any(isinstance(s, DetachPartition) and s.how is How.FINALIZE for s in planned.steps)
    assert Refusal.IN_PROGRESS in refusals(planned)


def test_no_more_than_max_drops_are_dropped() -> None:
    many = [detached(oid=number, fate="drop") for number in range(5)]
    planned = plan_retention(table(days=0, on_expiry="drop", max_drops=3), many, NOW)
    assert len(planned.steps) == 3
    assert refusals(planned) == [Refusal.MORE_WAIT]


def test_what_was_restored_has_another_grace() -> None:
    lately, long_ago = (f"{RESTORED_MARK}{NOW - timedelta(days=d):%Y-%m-%d %H:%M:%S.%f}Z" for d in (6, 8))
    found = with_partition(with_partition(table(), 0, mark=lately), 1, mark=long_ago)
    assert going(plan_retention(found, [], NOW))[0] == "odds_2026_03_27"


# Archive.


def test_the_archive_schema_takes_what_goes_under_its_own_name() -> None:
    found = table(on_expiry="archive", archive_schema="old")
    step = plan_retention(found, [], NOW, taken={("old", "odds_2026_03_27")}).steps
    assert [(s.archive_schema, s.name) for s in step[:2] if isinstance(s, DetachPartition)] == [
        ("old", "odds_2026_03_26"),
        ("old", "odds_2026_03_27_archived"),
    ]


def test_what_was_detached_before_is_archived_too_and_never_dropped_from_there() -> None:
    found = table(days=0, on_expiry="archive", archive_schema="old")
    (step,) = plan_retention(found, [detached(fate="archive")], NOW).steps
    assert isinstance(step, MoveDetached)
    assert step.name == "odds_2026_03_01"
    assert plan_retention(found, [detached(schema="old", days_ago=4000)], NOW).steps == ()


def test_without_a_schema_it_is_exported_and_dropped_only_after_that_and_its_grace() -> None:
    found = table(days=0, on_expiry="archive")
    (step,) = plan_retention(found, [detached(days_ago=4000, fate="archive")], NOW).steps
    assert isinstance(step, ExportDetached)
    export = Export("/archive/odds.csv.gz", 3, "abc")
    assert plan_retention(found, [detached(days_ago=6, export=export, fate="archive")], NOW).steps == ()
    (step,) = plan_retention(found, [detached(days_ago=8, export=export, fate="archive")], NOW).steps
    assert isinstance(step, DropDetached)


def test_keys_that_refer_to_the_table_are_told_with_the_remedy() -> None:
    planned = plan_retention(table(), [], NOW, referring=["public.bets (bets_odds_fkey)"])
    assert refusals(planned) == [Refusal.REFERRED_TO]
    assert plan_retention(table(days=0), [], NOW, referring=["public.bets (k)"]).findings == ()


# Names.


def test_a_detached_name_that_is_taken_is_stepped_over() -> None:
    planned = plan_retention(table(), [], NOW, taken={("public", "odds_2026_03_26_detached")})
    step = planned.steps[0]
    assert isinstance(step, DetachPartition)
    assert step.name == "odds_2026_03_26_detached_2"


# Restore.


def test_all_come_back_or_those_that_are_named() -> None:
    found = table(days=0)
    others = [detached(), detached("odds_2026_03_02", oid=8, lower=utc("2026-03-01 11:00:00"))]
    assert len(plan_restore(found, others).steps) == 2
    for name in ("odds_2026_03_02", "odds_2026_03_02_detached", "public.odds_2026_03_02_detached"):
        (step,) = plan_restore(found, others, [name]).steps
        assert step.name == "odds_2026_03_02"  # type: ignore[union-attr]


def test_a_place_that_is_taken_is_told() -> None:
    lower = utc("2026-04-03 11:00:00")
    old = detached(lower=lower, upper=lower + timedelta(days=1))
    planned = plan_restore(table(), [old])
    assert planned.steps == ()
    assert refusals(planned) == [Refusal.OCCUPIED]
    assert "odds_2026_04_04" in planned.findings[0].detail


# A retention that can never be meant.


@pytest.mark.parametrize(
    ("interval", "every", "retention"),
    [("day", 1, "1 hour"), ("day", 2, "1 day"), ("month", 1, "27 days"), ("year", 1, "11 months")],
)
def test_a_retention_shorter_than_a_window_removes_nothing(interval: Any, every: int, retention: str) -> None:
    found = table(days=3, interval=interval, every=every, retention=retention)
    planned = plan_retention(found, [detached()], NOW)
    assert planned.steps == ()
    assert refusals(planned) == [Refusal.TOO_SHORT]
    assert retention in planned.findings[0].detail


@pytest.mark.parametrize(
    ("interval", "retention"),
    [("day", "1 day"), ("day", "24 hours"), ("week", "7 days"), ("month", "30 days"), ("year", "4 quarters")],
)
def test_a_retention_of_one_window_will_do(interval: Any, retention: str) -> None:
    planned = plan_retention(table(days=3, interval=interval, retention=retention), [], NOW)
    assert Refusal.TOO_SHORT not in refusals(planned)
    assert going(planned)


def test_what_expired_long_ago_needs_no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is past by any grid. On ten thousand partitions the grid costs seconds."""
    found, asked, at = table(days=200, max_drops=400), list[KeyValue](), Grid.at

    def counted(grid: Grid, value: KeyValue) -> Window:
        asked.append(value)
        return at(grid, value)

    monkeypatch.setattr(Grid, "at", counted)
    assert len(going(plan_retention(found, [], NOW))) == 197
    assert len(asked) < 10
