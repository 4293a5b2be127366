"""Names of partitions: readable where they fit, hashed where they do not, and never two alike."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions.naming import MAX_IDENTIFIER_BYTES, fits, partition_name
from alembic_partitions.periods import INTERVALS, Interval
from tests.zones import grid, utc

DAY = "2026_11_22"


def test_a_name_that_fits_is_table_and_suffix() -> None:
    assert partition_name("odds_history", DAY) == "odds_history_2026_11_22"
    assert partition_name('Odd "History', "2026_q4") == 'Odd "History_2026_q4'


def test_63_bytes_fit_and_64_do_not() -> None:
    assert fits("x" * 63)
    assert not fits("x" * 64)
    longest = "x" * (63 - len(f"_{DAY}"))
    assert partition_name(longest, DAY) == f"{longest}_{DAY}"
    assert partition_name(longest + "x", DAY) != f"{longest}x_{DAY}"


def test_bytes_are_counted_not_characters() -> None:
    assert len("ā" * 32) < MAX_IDENTIFIER_BYTES < len(("ā" * 32).encode())
    assert fits("ā" * 31)
    assert not fits("ā" * 32)
    name = partition_name("ā" * 31, DAY)
    assert len(name.encode()) <= 63
    assert name.endswith(f"_{DAY}")


@pytest.mark.parametrize("letter", ["ā", "賽", "🐎"])
@pytest.mark.parametrize("lead", range(4))
def test_a_cut_never_splits_a_character(letter: str, lead: int) -> None:
    table = ("x" * lead + letter * 31).encode()[:63].decode(errors="ignore")
    name = partition_name(table, DAY)
    head, digest, ending = name[: -len(f"_12345678_{DAY}")], name[-len(f"12345678_{DAY}") :][:8], name[-10:]
    assert table.startswith(head)
    assert int(digest, 16) >= 0
    assert ending == DAY
    assert 63 - len(letter.encode()) < len(name.encode()) <= 63


def test_long_names_with_a_common_beginning_differ() -> None:
    one, other = "a" * 60 + "_1", "a" * 60 + "_2"
    assert partition_name(one, DAY)[:40] == partition_name(other, DAY)[:40]
    assert partition_name(one, DAY) != partition_name(other, DAY)


def test_the_name_of_a_long_table_never_changes() -> None:
    # Written down: another process, another release and another Python must find the same one.
    assert partition_name("a" * 63, DAY) == "a" * 43 + "_edc00566_2026_11_22"


def test_a_taken_name_is_stepped_over() -> None:
    first = f"bets_{DAY}"
    assert partition_name("bets", DAY, {first}) == f"{first}_2"
    assert partition_name("bets", DAY, {first, f"{first}_2", f"{first}_3"}) == f"{first}_4"
    assert partition_name("bets", DAY, {f"{first}_2"}) == first


def test_a_taken_name_of_a_long_table_is_stepped_over_too() -> None:
    table, taken = "賽" * 21, set[str]()
    for _ in range(12):
        name = partition_name(table, DAY, taken)
        assert fits(name)
        assert name not in taken
        taken.add(name)


TABLES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63),
    # Long names that have their beginning in common, which is what a cut could mix up.
    st.text("ab_2026ā", max_size=8).map(lambda end: "tote_dividends_by_meeting_and_pool_type_" * 2 + end),
    st.integers(1, 70).map(lambda length: "x" * length),
)


@st.composite
def suffixes(draw: st.DrawFn, intervals: tuple[Interval, ...] = INTERVALS) -> str:
    instant = draw(st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)))
    return grid(draw(st.sampled_from(intervals))).at(utc(instant.isoformat())).suffix


@given(TABLES, suffixes(), st.sets(st.integers(2, 6)))
def test_every_name_fits_ends_as_its_window_and_is_free(table: str, suffix: str, turns: set[int]) -> None:
    first = partition_name(table, suffix)
    taken = {first} | {partition_name(table, f"{suffix}_{turn}") for turn in turns}
    name = partition_name(table, suffix, taken)
    assert fits(name)
    assert first.endswith(f"_{suffix}")
    assert name not in taken
    assert name.encode().decode() == name


@given(TABLES, TABLES, st.data())
def test_two_tables_or_two_windows_never_share_a_name(one: str, other: str, data: st.DataObject) -> None:
    interval = data.draw(st.sampled_from(INTERVALS))
    first, second = data.draw(suffixes((interval,))), data.draw(suffixes((interval,)))
    for table, suffix in ((one, second), (other, first), (other, second)):
        same = (table, suffix) == (one, first)
        assert (partition_name(table, suffix) == partition_name(one, first)) is same
