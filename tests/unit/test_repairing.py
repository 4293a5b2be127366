"""Repair, planned: the range that was asked for, what is left to the drain, what differs."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions import PartitionPolicy
from alembic_partitions.errors import RepairRangeError
from alembic_partitions.plan import (
    Asked,
    Constraint,
    Finding,
    Index,
    ManagedTable,
    Mend,
    Mending,
    Partition,
    Reason,
    Refusal,
    Relation,
    Source,
    Staged,
    carried_on,
    differences,
    drains_of,
    limits,
    plan_gaps,
    plan_stranded,
    windows_asked,
)
from alembic_partitions.plan.children import index_name
from alembic_partitions.plan.repairing import Staging
from tests.tables import NOW, policy
from tests.zones import utc

GRID = policy().grid("timestamptz")


def table(
    rules: PartitionPolicy | None = None, *parts: Partition, key_type: Any = "timestamptz"
) -> ManagedTable:
    return ManagedTable("public", "odds", rules or policy(), oid=1, key_type=key_type, partitions=parts)


def suffixes(**asked: Any) -> list[str]:
    return sorted(window.suffix for window in windows_asked(GRID, NOW, Asked(**asked)))


def test_both_dates_of_a_range_are_included() -> None:
    found = suffixes(start="2025-11-29", stop="2025-11-30")
    assert found == ["2025_11_29", "2025_11_30"]
    whole = windows_asked(GRID, NOW, Asked("2025-10-01", "2025-11-30"))
    assert len(whole) == 61
    assert max(window.end for window in whole) == utc("2025-11-30 11:00")


def test_one_date_is_one_window() -> None:
    assert suffixes(start="2025-11-30", stop="2025-11-30") == ["2025_11_30"]
    assert suffixes(start=date(2025, 11, 30), stop=date(2025, 11, 30)) == ["2025_11_30"]


def test_a_time_is_included_to_the_microsecond() -> None:
    assert suffixes(start="2025-11-30T00:00", stop="2025-12-01T00:00") == ["2025_11_30", "2025_12_01"]
    assert suffixes(start="2025-11-30", stop="2025-11-30T23:59:59.999999") == ["2025_11_30"]


def test_an_end_that_is_left_out_is_now() -> None:
    assert suffixes(start="2026-04-04") == ["2026_04_04", "2026_04_05"]
    assert suffixes(stop="2026-04-06") == ["2026_04_05", "2026_04_06"]


def test_days_reach_both_ways() -> None:
    found = suffixes(days=30)
    assert (len(found), found[0], found[-1]) == (61, "2026_03_06", "2026_05_05")
    assert suffixes(days=0) == ["2026_04_05"]


def test_nothing_asked_is_no_window() -> None:
    assert windows_asked(GRID, NOW, Asked()) == []


def test_the_nearest_to_now_come_first() -> None:
    found = [window.suffix[-5:] for window in windows_asked(GRID, NOW, Asked(days=2))]
    assert found[0] == "04_05"
    assert set(found[1:3]) == {"04_04", "04_06"}
    assert set(found[3:]) == {"04_03", "04_07"}


@given(start=st.dates(date(2000, 1, 1), date(2030, 1, 1)), days=st.integers(0, 400))
def test_a_range_covers_every_date_in_it_and_no_other(start: date, days: int) -> None:
    stop = start + timedelta(days=days)
    found = windows_asked(policy().grid("date"), NOW, Asked(start, stop))
    assert sorted(window.begin for window in found) == [start + timedelta(days=n) for n in range(days + 1)]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Asked("2025-11-30", "2025-10-01"), "2025-11-30 is after 2025-10-01. Swap them."),
        (Asked("2027-01-01"), "2027-01-01 is after now"),
        (Asked("2025-02-30", "2025-03-01"), "Write dates as 2026-04-05"),
        (Asked("yesterday"), "Write dates as 2026-04-05"),
        (Asked("1066-10-14"), "more than 10000 windows"),
        (Asked(days=-1), "Give 0 or more days"),
        (Asked(days=10**9), "no reach around now"),
        (Asked("2025-01-01", days=3), "two ranges"),
        (Asked("9999-12-30", "9999-12-31"), "range"),
    ],
    ids=str,
)
def test_a_range_that_is_none_is_refused_in_one_line(asked: Asked, told: str) -> None:
    with pytest.raises(RepairRangeError) as refused:
        windows_asked(GRID, NOW, asked)
    line = str(refused.value)
    assert told in line
    assert line.startswith("The range to repair is wrong: ")
    assert line.count("The range to repair") == 1
    assert "\n" not in line


def test_gaps_of_the_horizon_and_of_the_range_are_made_once() -> None:
    windows = windows_asked(GRID, NOW, Asked(days=3))
    plan = plan_gaps(table(), NOW, windows)
    assert len(plan.steps) == 7
    assert len({step.name for step in plan.steps}) == 7
    assert plan.steps[0].reason is Reason.CURRENT
    assert {step.reason for step in plan.steps[4:]} == {Reason.REPAIR}
    assert {step.made_by for step in plan.steps} == {"repair"}


def test_what_the_drain_makes_is_no_gap() -> None:
    windows = windows_asked(GRID, NOW, Asked(days=1))
    leave = [(windows[0].begin, windows[0].end)]
    assert len(plan_gaps(table(), NOW, windows, (), leave).steps) == 3


def test_past_windows_beyond_retention_are_made_and_told() -> None:
    rules = policy(retention="10 days")
    plan = plan_gaps(table(rules), NOW, windows_asked(GRID, NOW, Asked(days=20)))
    assert len(plan.steps) == 41
    (finding,) = [f for f in plan.findings if f.refusal is Refusal.SHORT_LIVED]
    assert finding.detail == "public.odds_2026_03_16 to odds_2026_03_25"


def test_a_disabled_table_is_left_alone() -> None:
    plan = plan_gaps(table(policy(enabled=False)), NOW, windows_asked(GRID, NOW, Asked(days=2)))
    assert plan.steps == ()
    assert [f.refusal for f in plan.findings] == [Refusal.DISABLED]


def test_retention_is_no_limit_to_what_is_moved() -> None:
    oldest, newest = limits(table(policy(retention="10 days", max_ahead="5 days")), NOW)
    assert oldest < datetime(10, 1, 1, tzinfo=NOW.tzinfo)
    assert newest == utc("2026-04-10 01:37:11")
    oldest, _ = limits(table(policy(max_behind="2 days")), NOW)
    assert oldest == utc("2026-04-03 00:37:11"), "13:37:11 in Auckland, two days before, in summer time"


REST = Partition(9, "public", "rest", None, None, is_default=True)


def test_rows_move_at_once_up_to_a_batch_and_are_gathered_beyond() -> None:
    near, far = GRID.at(utc("2026-03-20")), GRID.at(utc("2026-03-25"))
    part = Partition(5, "public", "part", near.begin, utc("2026-03-20"))
    managed, stranded = table(None, part, REST), [(near, 10), (far, 11)]
    drains = drains_of(plan_stranded(managed, stranded), Source(REST), stranded, batch=10)
    assert [(d.rows, d.how) for d in drains] == [(10, Staged.AT_ONCE), (11, Staged.GATHERED)]
    assert drains[0].step.lower == part.upper, "only what no partition covers"
    assert {d.step.reason for d in drains} == {Reason.STRANDED}


def test_a_drain_that_was_cut_off_keeps_its_name_and_bounds() -> None:
    begin, end = utc("2026-03-20"), utc("2026-03-21")
    drain = carried_on(table(), Source(REST), Staging(7, "public", "odd name", begin, end))
    assert (drain.step.name, drain.step.lower, drain.step.upper) == ("odd name", begin, end)
    assert (drain.how, drain.step.reason) == (Staged.CARRIED_ON, Reason.CUT_OFF)


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        (Source(REST, is_plain=False), Refusal.UNDRAINABLE),
        (Source(REST, hides_rows=True), Refusal.HIDDEN),
        (Source(REST, incoming=("key on other",)), Refusal.INCOMING_KEY),
    ],
)
def test_what_cannot_be_drained_says_why(source: Source, refusal: Refusal) -> None:
    assert [finding.refusal for finding in source.refusals()] == [refusal]
    assert Source(REST).refusals() == []


# -- a partition against its parent ---------------------------------------------------------------------

PARENT = Relation(1, "public", "odds", "ann", kind="p")
CHILD = Relation(2, "public", "odds_1", "ann", mark="alembic_partitions: made by ensure")


def told(parent: Relation, child: Relation) -> tuple[list[tuple[Mending, str]], list[Finding]]:
    mends, findings = differences(parent, [child])
    return [(mend.mending, mend.subject) for mend in mends], findings


def changed(relation: Relation, **fields: Any) -> Relation:
    return dataclasses.replace(relation, **fields)


def test_a_partition_like_its_parent_needs_nothing() -> None:
    assert told(PARENT, CHILD) == ([], [])


@pytest.mark.parametrize(
    ("fields", "mend"),
    [
        ({"owner": "bob"}, (Mending.OWNER, "bob")),
        ({"row_security": True}, (Mending.ROW_SECURITY, "")),
        ({"replica_identity": "f"}, (Mending.REPLICA_IDENTITY, "FULL")),
        ({"replica_identity": "n"}, (Mending.REPLICA_IDENTITY, "NOTHING")),
        ({"statistics": {"note": 7}}, (Mending.STATISTICS, "note")),
    ],
    ids=str,
)
def test_each_trait_is_compared(fields: dict[str, Any], mend: tuple[Mending, str]) -> None:
    parent = changed(PARENT, **fields)
    assert told(parent, CHILD) == ([mend], [])
    stranger = changed(CHILD, mark=None)
    mends, (finding,) = told(parent, stranger)
    assert (mends, finding.refusal) == ([], Refusal.FOREIGN_CHILD)
    assert told(parent, changed(CHILD, kind="f")) == ([], []), "a foreign table is somebody else's"


def test_a_statistics_target_that_the_parent_lacks_goes() -> None:
    mends, _ = differences(PARENT, [changed(CHILD, statistics={"note": 7})])
    assert [(m.mending, m.subject, m.goal) for m in mends] == [(Mending.STATISTICS, "note", -1)]


WANTED = Index(10, "public", "by_note", "USING btree (note)", valid=False)
LIKE_IT = Index(20, "public", "mine", "USING btree (note)")


def indexed(*indexes: Index) -> list[Mend | Finding]:
    mends, findings = differences(changed(PARENT, indexes=(WANTED,)), [changed(CHILD, indexes=indexes)])
    return [*mends, *findings]


def test_an_index_is_attached_if_there_is_one_and_else_built() -> None:
    ours = index_name(CHILD, WANTED)
    (built,) = indexed()
    assert isinstance(built, Mend)
    assert (built.mending, built.subject, built.drop_first) == (Mending.BUILD_INDEX, ours, False)
    (attached,) = indexed(LIKE_IT)
    assert isinstance(attached, Mend)
    assert (attached.mending, attached.subject) == (Mending.ATTACH_INDEX, "mine")
    for other in (
        changed_index(LIKE_IT, body="USING btree (note DESC)"),
        changed_index(LIKE_IT, unique=True),
        changed_index(LIKE_IT, attached_to=99),
        changed_index(LIKE_IT, constraint=Constraint("mine", "u")),
    ):
        (found,) = indexed(other)
        assert isinstance(found, Mend)
        assert found.mending is Mending.BUILD_INDEX
    (again,) = indexed(changed_index(LIKE_IT, name=ours, valid=False))
    assert isinstance(again, Mend)
    assert (again.mending, again.drop_first) == (Mending.BUILD_INDEX, True)


def changed_index(index: Index, **fields: Any) -> Index:
    return dataclasses.replace(index, **fields)


def test_one_index_is_not_attached_twice() -> None:
    twin = changed_index(WANTED, oid=11, name="by_note_too")
    parent = changed(PARENT, indexes=(WANTED, twin))
    mends, _ = differences(parent, [changed(CHILD, indexes=(LIKE_IT,))])
    assert [m.mending for m in mends] == [Mending.BUILD_INDEX, Mending.ATTACH_INDEX]


def test_an_exclusion_constraint_is_left_to_a_person() -> None:
    parent = changed(PARENT, indexes=(changed_index(WANTED, constraint=Constraint("apart", "x")),))
    mends, (finding,) = differences(parent, [CHILD])
    assert (mends, finding.refusal) == ([], Refusal.BY_HAND)


def test_an_index_that_is_invalid_for_no_reason_is_told() -> None:
    (finding,) = indexed(changed_index(LIKE_IT, attached_to=WANTED.oid))
    assert isinstance(finding, Finding)
    assert "ATTACH PARTITION mine once more" in finding.detail


def test_names_of_indexes_fit_whatever_the_names_are() -> None:
    child = changed(CHILD, name="ö" * 31)
    assert len(index_name(child, changed_index(WANTED, name="x" * 63)).encode()) <= 63
    assert index_name(child, WANTED) != index_name(child, changed_index(WANTED, name="other"))
