"""Keys that are no times: what is written for an instant keeps its order and its window."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alembic_partitions import keys
from alembic_partitions.catalog.values import bounds_of
from alembic_partitions.ddl import bound_literal
from alembic_partitions.errors import WindowRangeError
from alembic_partitions.keys import bound_text, bound_value, row_value
from alembic_partitions.periods import INTERVALS, KeyType
from alembic_partitions.plan import Coverage, Partition
from tests.zones import ZONES, grid, utc

ENCODED: list[KeyType] = list(keys.TICKS)
FIRST, LAST = (end.replace(tzinfo=timezone.utc) for end in (datetime.min, datetime.max))

# Within what every kind of key can hold: an integer of four bytes, UUIDs from 1970 on.
instants = st.datetimes(datetime(1970, 1, 1), datetime(2037, 1, 1), timezones=st.just(timezone.utc))
kinds = st.sampled_from(ENCODED)


def row(instant: datetime, key_type: KeyType, random: int = 0) -> Any:
    """What an application writes for an instant: an integer, or a UUIDv7."""
    microseconds = (instant - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)
    ticks = microseconds * keys.TICKS[key_type] // 1_000_000
    if not key_type.startswith("uuid"):
        return ticks
    return uuid.UUID(int=ticks << 80 | 7 << 76 | random >> 62 << 64 | 2 << 62 | random & (1 << 62) - 1)


def comparable(printed: str) -> int:
    """A bound as PostgreSQL compares it: UUIDs bytewise."""
    return uuid.UUID(printed).int if "-" in printed[1:] else int(printed)


def compared(value: Any) -> int:
    return value.int if isinstance(value, uuid.UUID) else int(value)


@given(kinds, instants, instants)
def test_order_is_kept(key_type: KeyType, one: datetime, other: datetime) -> None:
    low, high = sorted((one, other))
    assert comparable(bound_text(low, key_type)) <= comparable(bound_text(high, key_type))


@given(
    key_type=kinds,
    instant=instants,
    interval=st.sampled_from(INTERVALS),
    zone=st.sampled_from(ZONES),
    random=st.integers(0, (1 << 74) - 1),
)
def test_a_row_lies_in_the_window_of_its_instant(
    key_type: KeyType, instant: datetime, interval: Any, zone: str, random: int
) -> None:
    windows = grid(interval, zone, key_type=key_type)
    window: Any
    try:
        window = windows.at(instant)
    except WindowRangeError:  # a year that begins before 1970
        return
    assert window == grid(interval, zone).at(instant)
    lower, upper = bound_text(window.begin, key_type), bound_text(window.end, key_type, upper=True)
    value = row(instant, key_type, random)
    assert comparable(lower) <= compared(value) < comparable(upper)
    found = row_value(value, key_type)
    assert found is not None
    assert window.begin <= found < window.end
    # And what is written is read as what it was.
    assert bounds_of(f"FOR VALUES FROM ('{lower}') TO ('{upper}')", key_type) == (window.begin, window.end)


@given(key_type=kinds, begin=instants, lengths=st.lists(st.integers(1, 10**9), max_size=9), probe=instants)
def test_coverage_of_rows_is_what_postgresql_says(
    key_type: KeyType, begin: datetime, lengths: list[int], probe: datetime
) -> None:
    """Bounds on any second that others have made, read back, cover the rows that PostgreSQL puts there."""
    edges = [begin.replace(microsecond=0)]
    for length in lengths:
        edges.append(edges[-1] + timedelta(seconds=length))
    edges = [edge for edge in edges if edge < LAST - timedelta(days=1)]
    printed = [bound_text(edge, key_type) for edge in edges]
    parts = [
        Partition(
            number,
            "public",
            f"p{number}",
            bound_value(low, key_type, False),
            bound_value(high, key_type, True),
        )
        for number, (low, high) in enumerate(pairwise(printed))
    ]
    value = row(probe, key_type, 1 << 73)
    there = len(printed) > 1 and comparable(printed[0]) <= compared(value) < comparable(printed[-1])
    found = row_value(value, key_type)
    assert found is not None
    assert Coverage.of(parts).covers(found, found) == there


@given(st.sampled_from(["epoch_ns", "uuidv7"]), st.integers(0, 2**62), st.integers(0, 2**79))
def test_what_an_instant_cannot_hold_is_never_planned_over(key_type: Any, number: int, rest: int) -> None:
    printed = str(uuid.UUID(int=number % 2**47 << 80 | rest)) if key_type == "uuidv7" else str(number)
    lower, upper = bound_value(printed, key_type, upper=False), bound_value(printed, key_type, upper=True)
    assert lower is not None
    assert comparable(bound_text(lower, key_type)) <= comparable(printed)
    if rest not in (0x7000 << 64, 0x7000_8000 << 48):
        assert upper is not None
        assert comparable(printed) <= comparable(bound_text(upper, key_type))


@pytest.mark.parametrize(
    ("printed", "key_type", "bounds"),
    [
        ("FROM (-5) TO ('-3')", "epoch_s_int4", ("1969-12-31 23:59:55", "1969-12-31 23:59:57")),
        ("FROM (MINVALUE) TO ('1775300400000')", "epoch_ms", (None, "2026-04-04 11:00:00")),
        ("FROM ('1775300400000000001') TO (MAXVALUE)", "epoch_ns", ("2026-04-04 11:00:00", None)),
        ("FROM ('1775300400000') TO ('9223372036854775807')", "epoch_s", (LAST, None)),
        ("FROM ('-9223372036854775808') TO ('-9000000000000000000')", "epoch_s", (None, FIRST)),
        (
            "FROM ('019d5826-5380-7000-8000-000000000000') TO ('ffffffff-ffff-ffff-ffff-ffffffffffff')",
            "uuidv7",
            ("2026-04-04 11:00:00", None),
        ),
    ],
)
def test_bounds_as_postgresql_prints_them(printed: str, key_type: Any, bounds: tuple[Any, Any]) -> None:
    wanted = tuple(utc(end) if isinstance(end, str) else end for end in bounds)
    assert bounds_of(f"FOR VALUES {printed}", key_type) == wanted


def test_bounds_are_written_as_literals_that_take_the_type_of_the_key() -> None:
    begin = utc("2026-04-04 11:00:00")
    assert bound_literal(begin, "epoch_s_int4") == "'1775300400'"
    assert bound_literal(begin, "epoch_ns") == "'1775300400000000000'"
    assert bound_literal(begin, "uuidv7") == "'019d5826-5380-0000-0000-000000000000'"
    # Beside bounds that carry a version: neither kind is overlapped, and no UUIDv7 lies between the two.
    assert bound_literal(begin, "uuidv7_full") == "'019d5826-5380-7000-8000-000000000000'"
    assert bound_literal(begin, "uuidv7_full", upper=True) == "'019d5826-5380-0000-0000-000000000000'"


NOON = utc("2026-04-05 12:00:00")


@pytest.mark.parametrize(
    ("value", "key_type", "instant"),
    [
        (1775390400, "epoch_s", NOON),
        (" +1775390400 ", "epoch_s", NOON),
        (1775390400999999999, "epoch_ns", NOON + timedelta(microseconds=999999)),
        (-1, "epoch_ns", utc("1969-12-31 23:59:59.999999")),
        (1775390400000, "epoch_s", LAST),
        (-(2**63), "epoch_s", FIRST),
        (True, "epoch_s", None),
        (1775390400.5, "epoch_s", None),
        ("2026-04-05", "epoch_s", None),
        (NOON, "epoch_s", None),
        (uuid.UUID("019d5d83-9e00-7abc-8def-0123456789ab"), "uuidv7", NOON),
        ("019D5D839E007abc8def0123456789ab", "uuidv7", NOON),
        ("{019d5d83-9e00-7abc-8def-0123456789ab}", "uuidv7", NOON),
        ("01JPY4CPG0", "uuidv7", None),
        (7, "uuidv7", None),
        (uuid.UUID(int=2**128 - 1), "uuidv7", LAST),
    ],
)
def test_a_rows_value_is_the_instant_it_stands_for_or_unknown(
    value: Any, key_type: Any, instant: datetime | None
) -> None:
    assert row_value(value, key_type) == instant


def test_many_values_are_told_by_their_ends_where_these_compare() -> None:
    some = [row(NOON + timedelta(hours=hour), "uuidv7", abs(hour) << 60) for hour in (3, -2, 5)]
    assert keys.ends(some, "uuidv7") == (NOON - timedelta(hours=2), NOON + timedelta(hours=5))
    assert keys.ends([7, 5, 6], "epoch_ms") == (
        utc("1970-01-01 00:00:00.005"),
        utc("1970-01-01 00:00:00.007"),
    )
    told = [str(some[0]), str(some[1]).upper(), str(some[2])]
    assert keys.ends(told, "uuidv7") == keys.ends(some, "uuidv7")
    texts: list[tuple[list[Any], Any]] = [
        ([*some, str(some[0])], "uuidv7"),
        ([*told, f"{{{some[0]}}}"], "uuidv7"),
        (["10", "9"], "epoch_s"),
        ([1, "2"], "epoch_s"),
    ]
    for mixed, key_type in texts:
        assert keys.ends(mixed, key_type) is None


@pytest.mark.parametrize(
    ("key_type", "inside", "outside", "why"),
    [
        ("epoch_s_int4", "2038-01-18 13:37:11", "2038-01-19 01:37:11", "an integer counts seconds to 2038"),
        ("epoch_s_int4", "1901-12-14 13:37:11", "1901-12-13 21:37:11", "an integer counts seconds to 2038"),
        ("epoch_ns", "2262-04-10 13:37:11", "2262-04-11 13:37:11", "from 1677 to 2262"),
        ("epoch_ns", "1677-09-22 13:37:11", "1677-09-21 13:37:11", "from 1677 to 2262"),
        ("uuidv7", "1970-01-01 13:37:11", "1969-12-31 13:37:11", "before 1970"),
    ],
)
def test_windows_end_where_the_key_does(key_type: Any, inside: str, outside: str, why: str) -> None:
    days = grid("day", "UTC", key_type=key_type)
    window: Any = days.at(utc(inside))
    for end in (window.begin, window.end):
        assert bound_value(bound_text(end, key_type), key_type, upper=False) == end
    with pytest.raises(WindowRangeError, match=why):
        days.at(utc(outside))
