"""What `status`, `check` and `history` draw, line by line, on wide and narrow paper, in UTF-8 and ASCII."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from textwrap import dedent
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from alembic_partitions import PartitionPolicy, coverage, health, words
from alembic_partitions.catalog import Figures, Rows, Run
from alembic_partitions.cli import listings, screens
from alembic_partitions.cli.screens import Paper
from alembic_partitions.coverage import ASCII, Cell
from alembic_partitions.maintenance import TableView
from alembic_partitions.plan import (
    PARTITION_MARK,
    ManagedTable,
    Partition,
    Refusal,
    plan_horizon,
    plan_windows,
    runway_of,
    windows_between,
)
from alembic_partitions.standing import Row, partition_state
from tests.zones import utc

# 13:37:11 in Auckland on the day of 25 hours.
NOW = utc("2026-04-05 01:37:11")


def table(
    name: str = "racing.odds", start: str = "2026-03-26", stop: str = "2026-05-06", **fields: Any
) -> ManagedTable:
    """A table with all windows from one local day up to another."""
    schema, _, relation = name.partition(".")
    rules = {"timezone": "Pacific/Auckland", "premake": 30, **fields}
    bare = ManagedTable(schema, relation, PartitionPolicy("at", **rules), 4711, "timestamptz")
    grid = bare.grid
    between = list(windows_between(grid, grid.key_of(start), grid.key_of(stop)))
    enabled = PartitionPolicy("at", **{**rules, "enabled": True})
    made = plan_windows(dataclasses.replace(bare, policy=enabled), between).steps
    parts = (
        Partition(number, schema, step.name, step.lower, step.upper, mark=f"{PARTITION_MARK}test")
        for number, step in enumerate(made, 1)
    )
    return dataclasses.replace(bare, partitions=tuple(parts))


def without(managed: ManagedTable, *names: str) -> ManagedTable:
    """Take partitions away, by the ends of their names."""
    kept = tuple(p for p in managed.partitions if not p.name.endswith(names))
    assert len(kept) == len(managed.partitions) - len(names)
    return dataclasses.replace(managed, partitions=kept)


def row(managed: ManagedTable, bytes_each: int | None = 40_960, database: str = "db", **more: Any) -> Row:
    plan = plan_horizon(managed, NOW)
    figures = {p.oid: Figures(bytes_each, 1000, None, p.mark) for p in managed.partitions}
    view = TableView(managed, plan, figures, **more)
    return Row(database, view, health.assess(plan, NOW, stranded=view.stranded), runway_of(managed, NOW))


def drawn(rows: Sequence[Row], width: int, unicode: bool = True) -> str:
    return "\n".join(line.plain.rstrip() for line in screens.status(rows, Paper(width, unicode))) + "\n"


def line(managed: ManagedTable, width: int = 20) -> str:
    runway = runway_of(managed, NOW)
    assert runway is not None
    return "".join(ASCII[cell] for cell in coverage.coverage(managed, runway, width))


def three() -> list[Row]:
    half = without(table("racing.money_flow_history", retention="12 months", on_expiry="drop"), "03_30")
    short = table("racing.results", stop="2026-04-08")
    return [row(half), row(table(retention="7 days")), row(short, stranded=False)]


# -- golden lines --------------------------------------------------------------------------------------


def test_three_tables_on_80_columns() -> None:
    assert drawn(three(), 80) == dedent(
        """\
        TABLE                      past         today   ahead    RUNWAY  PARTS      SIZE
        racing.money_flow_history  ━━━━━━!!━━━━━━━◆══════════   30 days     40    1.6 MB
          day, Pacific/Auckland · 2026-03-26 to 2026-05-06
          gap 2026-03-30 to 2026-03-31 · 12 months, then drop
        racing.odds                ×××××━━━━━━━━━━◆══════════   30 days     41    1.6 MB
          day, Pacific/Auckland · 2026-03-26 to 2026-05-06 · 7 days, then detach: 3 due
        racing.results             ━━━━━━━━━━━━━━━◆!!!!!!!!!!    2 days     13    520 kB
          day, Pacific/Auckland · 2026-03-26 to 2026-04-08 · keeps everything
          WARNING: no partition for rows from 2026-04-08 00:00 Pacific/Auckland on;
          the policy asks for 30 days

        3 tables · 1 warning · 2 ok
        ━ past  × next to go  ◆ today  ═ ahead  ! no partition  ? half detached
        """
    )


def test_three_tables_on_120_columns() -> None:
    assert drawn(three(), 120) == dedent(
        """\
        TABLE                      past                                 today                   ahead    RUNWAY  PARTS      SIZE
        racing.money_flow_history  ━━━━━━━━━━━━━━━!!!!!━━━━━━━━━━━━━━━━━━━◆══════════════════════════   30 days     40    1.6 MB
          day, Pacific/Auckland · 2026-03-26 to 2026-05-06 · gap 2026-03-30 to 2026-03-31 · 12 months, then drop
        racing.odds                ××××××××××××━━━━━━━━━━━━━━━━━━━━━━━━━━━◆══════════════════════════   30 days     41    1.6 MB
          day, Pacific/Auckland · 2026-03-26 to 2026-05-06 · 7 days, then detach: 3 due
        racing.results             ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━◆═!!!!!!!!!!!!!!!!!!!!!!!!!    2 days     13    520 kB
          day, Pacific/Auckland · 2026-03-26 to 2026-04-08 · keeps everything
          WARNING: no partition for rows from 2026-04-08 00:00 Pacific/Auckland on; the policy asks for 30 days

        3 tables · 1 warning · 2 ok
        ━ past  × next to go  ◆ today  ═ ahead  ! no partition  ? half detached
        """  # noqa: E501
    )


def test_three_tables_in_ascii() -> None:
    assert drawn(three(), 80, unicode=False) == dedent(
        """\
        TABLE                      past         today   ahead    RUNWAY  PARTS      SIZE
        racing.money_flow_history  ------!!-------#==========   30 days     40    1.6 MB
          day, Pacific/Auckland; 2026-03-26 to 2026-05-06; gap 2026-03-30 to 2026-03-31
          12 months, then drop
        racing.odds                xxxxx----------#==========   30 days     41    1.6 MB
          day, Pacific/Auckland; 2026-03-26 to 2026-05-06; 7 days, then detach: 3 due
        racing.results             ---------------#!!!!!!!!!!    2 days     13    520 kB
          day, Pacific/Auckland; 2026-03-26 to 2026-04-08; keeps everything
          WARNING: no partition for rows from 2026-04-08 00:00 Pacific/Auckland on;
          the policy asks for 30 days

        3 tables; 1 warning; 2 ok
        - past  x next to go  # today  = ahead  ! no partition  ? half detached
        """
    )


# -- the line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [10, 20, 33, 61])
def test_today_is_in_the_same_column_for_all(width: int) -> None:
    tables = [
        table(),
        table(start="2026-04-05"),
        table(interval="month", premake=1, start="2020-01-01", stop="2026-05-06"),
        table(interval="year", premake=0, start="2026-01-01", stop="2026-05-06"),
    ]
    lines = [line(managed, width) for managed in tables]
    assert {text.index("#") for text in lines} == {int(width * 0.6)}
    assert {len(text) for text in lines} == {width}


def test_past_and_ahead_have_scales_of_their_own() -> None:
    assert line(table()) == "------------#======="
    assert line(table(start="2026-04-04")) == "------------#======="


def test_nothing_before_the_first_partition_and_nothing_ahead() -> None:
    assert line(table(start="2026-04-05")) == "            #======="
    assert line(table(premake=0, stop="2026-04-06")) == "------------#       "


@pytest.mark.parametrize("day", [f"03_{number}" for number in range(27, 32)])
def test_a_gap_of_one_day_in_a_year_is_seen(day: str) -> None:
    managed = without(table(start="2025-04-05"), day)
    assert line(managed).count("!") == 1
    assert line(managed, 60).count("!") in {1, 2}


def test_a_gap_wins_over_whatever_else_its_cell_holds() -> None:
    managed = table(start="2025-04-05", retention="330 days")
    assert line(managed)[:3] == "xx-"
    assert line(without(managed, "2025_04_20"))[:3] == "!x-"


def test_a_missing_today_and_a_missing_horizon() -> None:
    assert line(without(table(), "2026_04_05")) == "------------!======="
    assert line(table(stop="2026-04-21")) == "------------#===!!!!"
    assert line(table(stop="2026-03-30")) == "----!!!!!!!!!!!!!!!!"
    bare = dataclasses.replace(table(), partitions=())
    assert line(bare) == "            !!!!!!!!"


def test_half_detached_is_another_sign() -> None:
    managed = table()
    first, *others = managed.partitions
    pending = dataclasses.replace(first, detach_pending=True)
    assert line(dataclasses.replace(managed, partitions=(pending, *others)))[:3] == "??-"
    ahead = dataclasses.replace(others[-2], detach_pending=True)
    assert (
        line(dataclasses.replace(managed, partitions=(first, *others[:-2], ahead, others[-1])))[-2:] == "=?"
    )


def test_minvalue_and_maxvalue() -> None:
    managed = table()
    early = Partition(98, "racing", "early", None, managed.partitions[0].lower)
    late = Partition(99, "racing", "late", managed.partitions[-1].upper, None)
    open_ended = dataclasses.replace(managed, partitions=(early, *managed.partitions, late))
    assert line(open_ended) == "<-----------#======>"
    alone = dataclasses.replace(managed, partitions=(Partition(1, "racing", "p", None, None),))
    assert line(alone) == "<-----------#======>"


def test_a_default_partition_covers_nothing() -> None:
    managed = table(stop="2026-04-21")
    default = Partition(99, "racing", "d", None, None, is_default=True)
    with_default = dataclasses.replace(managed, partitions=(*managed.partitions, default))
    assert line(with_default) == line(managed)


def test_no_two_signs_are_alike() -> None:
    for glyphs in (coverage.UNICODE, coverage.ASCII):
        assert set(glyphs) == set(Cell)
        assert len(set(glyphs.values())) == len(glyphs)
    assert "".join(coverage.ASCII.values()).isascii()


# -- odd names -----------------------------------------------------------------------------------------

ODD = [
    "racing.[red]odds[/red]",
    "racing.レース結果",
    'racing."q" %s',
    f"racing.{'n' * 63}",
    "racing.a\x1b[31m\nb",
]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("unicode", [True, False])
def test_odd_names_shift_nothing_and_command_nothing(width: int, unicode: bool) -> None:
    rows = [row(table(f"racing.{name}")) for name in ODD]
    lines = list(screens.status(rows, Paper(width, unicode)))
    glyph = (coverage.UNICODE if unicode else coverage.ASCII)[Cell.TODAY]
    told = [text.plain for text in lines[1:-1] if glyph in text.plain]
    assert len(told) == len(ODD)
    assert len({cell_len(text[: text.index(glyph)]) for text in told}) == 1
    text = "\n".join(line.plain for line in lines)
    assert "[red]odds[/red]" in text
    assert "n" * 63 in text
    assert "\x1b" not in text
    assert r"racing.a\x1b[31m\nb" in text
    assert unicode or text.isascii()


def test_forty_tables_fit() -> None:
    rows = [row(table(f"racing.table_{number:02}")) for number in range(40)]
    for width in (80, 120):
        lines = list(screens.status(rows, Paper(width)))
        assert max(cell_len(text.plain) for text in lines) <= width
        assert [text.plain for text in lines][-2] == "40 tables · 40 ok"


def test_of_many_tables_the_bad_ones_are_named_once_more_at_the_end() -> None:
    rows = [row(table(f"racing.t{number}")) for number in range(7)]
    rows += [row(without(table(f"racing.bad{number}"), "2026_04_05")) for number in range(6)]
    text = drawn(rows, 80)
    assert "CRITICAL: racing.bad0, racing.bad1, racing.bad2, racing.bad3, racing.bad4 and 1 more\n" in text


def test_several_databases_each_have_a_heading() -> None:
    text = drawn([row(table()), row(table(), database="other")], 80)
    assert text.count("database db\n") == text.count("database other\n") == 1
    assert "database" not in drawn([row(table())], 80)


def test_a_table_that_is_gone_and_one_that_is_disabled() -> None:
    gone = dataclasses.replace(table(), problem=(Refusal.NO_TABLE, "racing.odds"), partitions=())
    text = drawn([row(gone), row(table("racing.off", enabled=False, stop="2026-04-01"))], 80)
    assert "CRITICAL: the table does not exist" in text
    assert "disabled" in text
    assert "1 critical · 1 ok" in text


def test_a_default_partition_is_told() -> None:
    default = Partition(99, "racing", "d", None, None, is_default=True)
    managed = table()
    with_default = dataclasses.replace(managed, partitions=(*managed.partitions, default))
    for stranded, told in ((True, "holds rows"), (False, "is empty"), (None, "may hold rows")):
        assert f"its DEFAULT partition {told}" in drawn([row(with_default, stranded=stranded)], 120)


def test_what_is_unknown_is_said_to_be() -> None:
    assert "unknown" in drawn([row(table(), bytes_each=None)], 80)


# -- check ---------------------------------------------------------------------------------------------


def test_check_is_a_line_a_table_the_worst_first() -> None:
    rows = [
        *three(),
        row(without(table("racing.today"), "2026_04_05")),
        row(table("racing.soon", stop="2026-04-06")),
    ]
    lines = [text.plain for text in screens.check(rows, Paper(80))]
    monday = "2026-04-06 00:00 Pacific/Auckland on"
    wednesday = "2026-04-08 00:00 Pacific/Auckland on; the policy asks for 30 days"
    assert lines == [
        "CRITICAL  racing.today               none left  no partition for rows that are written now",
        "CRITICAL  racing.soon                10 hours left  no partition for rows from " + monday,
        "WARNING   racing.results             2 days left  no partition for rows from " + wednesday,
        "OK        racing.money_flow_history  30 days left",
        "OK        racing.odds                30 days left",
    ]
    verdict = screens.verdict(rows, health.Level.CRITICAL, ["the last maintain failed: no"], Paper(80))
    assert verdict.plain == (
        "CRITICAL: 2 critical, 1 warning, 2 ok; racing.today lacks a partition now;"
        " the last maintain failed: no"
    )


def test_the_verdict_on_nothing() -> None:
    verdict = screens.verdict([], health.Level.UNKNOWN, [], Paper(80))
    assert verdict.plain == "UNKNOWN: no table is managed here"


# -- lists ---------------------------------------------------------------------------------------------


def listed(what: Any, width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as text:
        console.print(what)
    return [one.rstrip() for one in text.get().splitlines()]


def test_partitions_are_listed_on_local_clocks_with_their_state() -> None:
    managed = table(start="2026-04-01", stop="2026-04-07", retention="3 days")
    by_hand = dataclasses.replace(managed.partitions[1], mark=None)
    default = Partition(99, "racing", "odds_default", None, None, is_default=True, mark=PARTITION_MARK)
    parts = (managed.partitions[0], by_hand, *managed.partitions[2:], default)
    found = listed(listings.partitions(row(dataclasses.replace(managed, partitions=parts)), Paper(100)))
    assert found == [
        "PARTITION        FROM        TO             SIZE  EST. ROWS  STATE",
        "odds_2026_04_01  2026-04-01  2026-04-02  40.0 kB      1,000  expired",
        "odds_2026_04_02  2026-04-02  2026-04-03  40.0 kB      1,000  past, by hand",
        "odds_2026_04_03  2026-04-03  2026-04-04  40.0 kB      1,000  past",
        "odds_2026_04_04  2026-04-04  2026-04-05  40.0 kB      1,000  past",
        "odds_2026_04_05  2026-04-05  2026-04-06  40.0 kB      1,000  today",
        "odds_2026_04_06  2026-04-06  2026-04-07  40.0 kB      1,000  ahead",
        "odds_default                             40.0 kB      1,000  default",
    ]


def test_counted_rows_come_with_their_oldest_and_newest_key() -> None:
    managed = table(start="2026-04-05", stop="2026-04-06")
    counted = {1: Rows(7, NOW - timedelta(hours=1), NOW)}
    found = listed(listings.partitions(row(managed, rows=counted), Paper(120)), 120)
    assert found[1].split("  ")[-4:] == [" 7", "2026-04-05 12:37:11", "2026-04-05 13:37:11", "today"]


def test_the_repeated_hour_is_told_apart() -> None:
    managed = table(interval="hour", premake=1, start="2026-04-05 02:00", stop="2026-04-05 04:00")
    told = [words.when(managed.grid, p.lower) for p in managed.partitions if p.lower is not None]
    assert told == ["2026-04-05 02:00", "2026-04-05 02:00+1200", "2026-04-05 03:00"]


def test_states() -> None:
    managed = table(retention="3 days", start="2026-03-01")
    runway = runway_of(managed, NOW)
    first = managed.partitions[0]
    assert partition_state(first, runway) == ["expired"]
    assert partition_state(managed.partitions[-1], runway) == ["ahead"]
    assert runway is not None
    assert partition_state(first, dataclasses.replace(runway, expired=())) == ["expired"]  # not searched
    assert partition_state(dataclasses.replace(first, detach_pending=True), runway) == ["pending"]
    assert partition_state(dataclasses.replace(first, mark=None), None) == ["by hand"]
    assert partition_state(dataclasses.replace(first, mark=None), None, marks=False) == []


def test_history_is_listed_with_errors_in_full() -> None:
    begun, earlier = NOW - timedelta(hours=5), NOW - timedelta(days=2)
    finished = begun + timedelta(seconds=75)
    runs = [
        Run(2, begun, finished, "maintain", "app", "cron", 1, 2, 0, 0, 1234, "racing.odds: no", {}),
        Run(1, earlier, earlier, "ensure", "app", "", 31, 0, 0, 0, 0, None, {}),
    ]
    assert listed(listings.history(runs, NOW, Paper(100))) == [
        "STARTED (UTC)            AGO  RUN        TOOK  BY          WHAT",
        "2026-04-04 20:37:11  5 hours  maintain  1 min  app (cron)  1 created, 2 detached, 1,234 rows moved",
        "                                                           racing.odds: no",
        "2026-04-03 01:37:11   2 days  ensure    0.0 s  app         31 created",
    ]


# -- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 kB"),
        (150 * 1024, "150 kB"),
        (3 << 40, "3.0 TB"),
    ],
)
def test_sizes(count: int | None, told: str) -> None:
    assert words.size(count) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.34, "0.3 s"),
        (42, "42 s"),
        (90, "1 min"),
        (3600, "1 hour"),
        (7300, "2 hours"),
        (86400, "1 day"),
        (1e7, "115 days"),
    ],
)
def test_lengths_of_time(seconds: float, told: str) -> None:
    assert words.duration(timedelta(seconds=seconds)) == told


def test_policies_in_words() -> None:
    assert words.policy_words(PartitionPolicy("at", timezone="Pacific/Auckland")) == "day, Pacific/Auckland"
    odd = PartitionPolicy("at", interval="week", every=2, week_start="sunday", day_start="06:00")
    assert words.policy_words(odd) == "2 weeks, UTC, from 06:00, from sunday"


def test_stretches_without_end() -> None:
    grid = table().grid
    low: datetime = utc("2026-04-04 11:00:00")
    assert words.stretch(grid, None, None) == "all there is"
    assert words.stretch(grid, low, None) == "from 2026-04-05 on"
    assert words.stretch(grid, None, low) == "up to 2026-04-05"
