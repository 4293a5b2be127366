"""What the page says: HTML from plain values, read with the standard library."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine

from alembic_partitions import PartitionPolicy
from alembic_partitions.contrib.page import CSP, render
from alembic_partitions.contrib.page.drawing import Drawing, draw
from alembic_partitions.contrib.source import Source
from alembic_partitions.maintenance import TableView, View
from alembic_partitions.periods import KeyType
from alembic_partitions.plan import (
    ManagedTable,
    Partition,
    Refusal,
    plan_horizon,
    runway_of,
)
from tests.contrib.html_read import Element, read
from tests.contrib.operators_view import ALERTED, HOSTILE, a_bad_day, run_of, seen, view, with_default
from tests.tables import declare, policy
from tests.unit.test_screens import NOW, table, without

BAD_DAY = read(render(a_bad_day()))


def shown(*tables: ManagedTable, **more: object) -> Element:
    """The page of some tables."""
    return read(render(view(*map(seen, tables), **more)))


def row_of(page: Element, name: str) -> Element:
    (found,) = [body for body in page.all("tbody") if body.all("th", "name") and name in _name(body)]
    return found


def _name(body: Element) -> str:
    return "".join(part for part in body.one("th", "name").inside if isinstance(part, str)).strip()


def drawn(managed: ManagedTable, now: datetime = NOW) -> Drawing:
    runway = runway_of(managed, now)
    assert runway is not None
    return draw(managed, runway, now)


def kinds(drawing: Drawing) -> list[str]:
    return [shape.kind for shape in drawing.shapes]


# -- the document --------------------------------------------------------------------------------------


def test_it_asks_nobody_for_anything() -> None:
    for element in BAD_DAY:
        assert element.tag not in {"script", "iframe", "object", "img", "base", "form"}
        for name, value in element.attrs.items():
            assert not name.startswith("on"), "no script"
            assert name != "style", "the policy's hash is for the element alone"
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("data:image/svg+xml,")
    style = BAD_DAY.one("style").inside[0]
    assert isinstance(style, str)
    assert "@import" not in style
    assert {part.split(")")[0] for part in style.split("url(")[1:]} <= {
        "#hatch-due",
        "#hatch-gap",
        "#hatch-pending",
    }


def test_its_policy_holds_its_own_style_alone() -> None:
    style = BAD_DAY.one("style").inside[0]
    assert isinstance(style, str)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert CSP.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert "unsafe" not in CSP


def test_ids_are_there_once() -> None:
    ids = [element.attrs["id"] for element in BAD_DAY if "id" in element.attrs]
    assert len(ids) == len(set(ids))
    labels = {element.attrs["aria-labelledby"] for element in BAD_DAY if "aria-labelledby" in element.attrs}
    assert labels <= set(ids)


def test_the_same_view_gives_the_same_page() -> None:
    assert render(a_bad_day(), request_id="r") == render(a_bad_day(), request_id="r")


def test_request_and_reload() -> None:
    page = read(render(a_bad_day(), request_id="6f1c<b>", refresh_seconds=30))
    assert "request 6f1c<b>" in page.one("footer").text
    (refresh,) = [meta for meta in page.all("meta") if meta.attrs.get("http-equiv") == "refresh"]
    assert refresh.attrs["content"] == "30"
    assert not [meta for meta in BAD_DAY.all("meta") if meta.attrs.get("http-equiv") == "refresh"]


# -- the head ------------------------------------------------------------------------------------------


def test_the_head_says_how_bad_it_is_and_when_that_was() -> None:
    head = BAD_DAY.one("header")
    assert head.one("span", "badge").text == "✕ Critical"
    assert BAD_DAY.one("head").all("title")[0].text == "Critical · Partitions"
    assert head.one("p", "headline").text.endswith("find no partition in stream_ingest.ladder_levels.")
    assert head.one("ul", "counts").text == (
        "8 tables 1 critical 2 degraded 1 cleanup needed 3 healthy 1 disabled"
    )
    assert head.one("time").text == "2026-04-05 01:37:11 UTC"


@pytest.mark.parametrize(
    ("tables", "badge", "words"),
    [
        ((table(),), "✓ Healthy", "Inserts are safe. racing.odds runs out first, in 30 days."),
        (
            (table(stop="2026-04-10"),),
            "! Degraded",
            "Inserts are safe. racing.odds runs out first, in 4 days",
        ),
        ((table(enabled=False),), "✓ Healthy", "Nothing is enabled"),
        (
            (dataclasses.replace(table(), partitions=()),),
            "✕ No partitions",
            "find no partition in racing.odds",
        ),
        ((with_default(table(stop="2026-04-05")),), "! Degraded", "Rows of racing.odds go to its DEFAULT"),
    ],
)
def test_the_headline(tables: tuple[ManagedTable, ...], badge: str, words: str) -> None:
    head = shown(*tables).one("header")
    if tables[0].policy is not None and tables[0].policy.enabled:
        assert head.one("span", "badge").text == badge
    assert words in head.one("p", "headline").text


def test_what_an_operator_should_know_of_the_look_itself() -> None:
    page = shown(
        table(),
        rehearsed=True,
        in_recovery=True,
        failure="the last maintain failed: <disk> full",
        unknown=("past runs: permission denied",),
        runs=None,
    )
    notices = [notice.text for notice in page.all("p", "notice")]
    assert [notice.split(":")[0] for notice in notices] == [
        "Rehearsal",
        "Standby",
        "Failed",
        "Could not be read",
    ]
    assert "<disk> full" in notices[2]
    assert "Unknown: past runs could not be read." in page.one("main").text
    assert not BAD_DAY.all("p", "notice")


@pytest.mark.parametrize("nothing", [View(), View(now=NOW, runs=())])
def test_where_nothing_is_managed_it_says_what_to_do(nothing: View) -> None:
    page = read(render(nothing))
    assert page.one("span", "badge").text == "– Nothing managed"
    assert {code.text.split("(")[0] for code in page.all("code")} == {
        "op.create_partitioned_table",
        "alembic-partitions upgrade head",
        "alembic-partitions adopt",
        "alembic-partitions convert",
    }
    assert not page.all("table")


# -- tables --------------------------------------------------------------------------------------------


def test_a_row_a_table_the_worst_first() -> None:
    rows = [body for body in BAD_DAY.all("tbody") if body.all("th", "name")]
    assert [(_name(row), row.one("span", "badge").text) for row in rows] == [
        ("stream_ingest.ladder_levels", "✕ Critical"),
        ("racing.money_flow_history", "! Degraded"),
        ("racing.results", "! Degraded"),
        ("iot.sensor_events", "↻ Cleanup needed"),
        ("racing.odds_history", "✓ Healthy"),
        ("web.events", "✓ Healthy"),
        ("web.page_views", "✓ Healthy"),
        ("racing.race_meetings", "– Disabled"),
    ]


def test_a_row_says_how_long_and_how_much() -> None:
    row = row_of(BAD_DAY, "racing.odds_history")
    assert row.one("th", "name").text.endswith("day, Pacific/Auckland 90 days, then detach")
    assert row.one("td", "runway").text == "30 days until 2026-05-06 asked for: 30 days"
    assert row.one("td", "holds").text == "121 partitions 5.3 GB about 41,324,000 rows 30 not analyzed"
    assert not row.all("ul", "reasons")
    hours = row_of(BAD_DAY, "web.page_views")
    assert hours.one("td", "runway").text == "2 days until 2026-04-07 14:00 asked for: 2 days"
    assert row_of(BAD_DAY, "ladder_levels").one("td", "runway").text == "none left asked for: 31 days"


def test_reasons_and_remarks_are_seen_without_opening_anything() -> None:
    stranded = row_of(BAD_DAY, "racing.results")
    assert stranded.one("ul", "reasons").text == (
        "no partition for rows from 2026-04-12 00:00 Pacific/Auckland on; the policy asks for 30 days"
        " the DEFAULT partition holds rows: see repair --dry-run"
    )
    gap = row_of(BAD_DAY, "racing.money_flow_history").all("ul", "facts")[0]
    assert gap.text == "no partition 2026-03-30 to 2026-04-01"
    due = row_of(BAD_DAY, "iot.sensor_events").all("ul", "facts")[0]
    assert due.text == "retention takes 16 next: 2025-12-20 to 2026-01-05"


def test_the_drawing_says_in_words_what_it_shows() -> None:
    label = row_of(BAD_DAY, "racing.results").one("svg", "coverage").attrs["aria-label"]
    assert label == (
        "Coverage of racing.results; partitions 2026-03-01 to 2026-04-12;"
        " the policy asks for them until 2026-05-06; times are those of Pacific/Auckland;"
        " no partition for rows from 2026-04-12 00:00 Pacific/Auckland on; the policy asks for 30 days;"
        " the DEFAULT partition holds rows: see repair --dry-run"
    )


def test_what_is_unknown_is_said_to_be() -> None:
    managed = table()
    bare = TableView(managed, plan_horizon(managed, NOW))
    page = read(render(view(bare)))
    assert page.one("td", "holds").text == "41 partitions unknown unknown rows"
    assert {cell.text for cell in page.one("table", "partitions").all("td", "number")} == {"unknown"}
    assert "by hand" not in page.one("table", "partitions").text, "marks were not read"


def test_a_table_that_cannot_be_worked_on_is_told_and_not_drawn() -> None:
    gone = ManagedTable("racing", "odds", policy(), problem=(Refusal.NO_TABLE, "racing.odds"))
    lost = ManagedTable("racing", "lost", problem=(Refusal.UNFIT, "racing.lost: no such zone"))
    page = read(render(view(*(TableView(managed, plan_horizon(managed, NOW)) for managed in (gone, lost)))))
    for name in ("racing.odds", "racing.lost"):
        row = row_of(page, name)
        assert row.one("span", "badge").text == "✕ Critical"
        assert row.one("td", "runway").text == "none left"
        assert not row.all("svg", "coverage")
        assert not row.all("details")
    assert "the table does not exist" in row_of(page, "racing.odds").one("ul", "reasons").text


def test_names_and_errors_of_others_are_text() -> None:
    hostile = dataclasses.replace(table(HOSTILE), partitions=table(HOSTILE).partitions[:3])
    odd = table('racing."quoted" & <b>bold</b> \u202egnitset\n%s {{ 7 * 7 }}')
    run = run_of(
        1,
        '<img src="x">',
        "<b>t</b>",
        ago=timedelta(minutes=1),
        error="racing.x: <script>alert(2)</script>\nsecond line",
        run_by="</table><script>",
    )
    html = render(view(seen(hostile, failure="<script>"), seen(odd), runs=(run,)))
    page = read(html)
    assert not page.all("script")
    assert not page.all("b") or all(b.text != "bold" for b in page.all("b"))
    assert _name(row_of(page, HOSTILE)) == HOSTILE
    assert "{{ 7 * 7 }}" in row_of(page, "quoted").one("th", "name").text
    assert "\u202e" not in html, "nothing turns the text around"
    assert [error.text for error in page.all("span", "error")] == [
        "failed: racing.x: <script>alert(2)</script>",
        "failed: second line",
    ]


# -- partitions ----------------------------------------------------------------------------------------


def test_partitions_are_listed_on_the_clocks_of_the_policy() -> None:
    listed = row_of(BAD_DAY, "web.page_views").one("table", "partitions").all("tr")
    repeated = [row.text for row in listed if "2026-04-05 02:00+1200" in row.text]
    assert len(repeated) == 2, "it ends one partition and begins another"
    states = {row.all("td")[-1].text for row in listed[1:]}
    assert states == {"past", "today", "ahead"}


def test_of_thousands_the_nearest_are_listed_and_the_page_stays_small() -> None:
    hours = table("web.views", "2025-03-01", "2026-04-07T14:00", interval="hour", premake=48)
    assert len(hours.partitions) > 9_000
    html = render(view(seen(hours)))
    row = row_of(read(html), "web.views")
    listed = row.one("table", "partitions").all("tr")[1:]
    assert len(listed) == 150
    assert [line for line in listed if line.all("td")[-1].text == "today"]
    assert listed[-1].text.endswith("ahead")
    left = len(hours.partitions) - 150
    assert f"{left:,} more are not listed here" in row.text
    assert len(html) < 150_000


def test_many_tables_share_the_room() -> None:
    many = [table(f"racing.t{number:03}") for number in range(100)]
    page = shown(*many)
    assert len(page.all("table", "partitions")) == 100
    lines = sum(len(listed.all("tr")) - 1 for listed in page.all("table", "partitions"))
    assert lines <= 2_000


# -- the drawing ---------------------------------------------------------------------------------------


def test_today_is_in_the_same_column_for_all() -> None:
    for svg in BAD_DAY.all("svg", "coverage"):
        now = svg.one("svg", "now").attrs["x"]
        assert 59 <= float(now.rstrip("%")) <= 61


def test_everything_lies_within_the_drawing() -> None:
    for rect in [
        rect for svg in BAD_DAY.all("svg", "coverage") for rect in svg.all("rect") if "x" in rect.attrs
    ]:
        left, width = (float(rect.attrs[name].rstrip("%")) for name in ("x", "width"))
        assert left >= 0
        assert width > 0
        assert left + width <= 100.01


def test_partitions_that_are_wide_enough_are_shapes_of_their_own() -> None:
    drawing = drawn(table())
    assert kinds(drawing) == ["past"] * 10 + ["today"] + ["ahead"] * 30
    assert drawing.shapes[0].title == "odds_2026_03_26: 2026-03-26 to 2026-03-27"
    assert drawing.shapes[0].left == 0
    assert drawing.shapes[-1].right == pytest.approx(100)


def test_thousands_become_a_few_shapes() -> None:
    drawing = drawn(table("web.views", "2025-03-01", "2026-04-07T14:00", interval="hour", premake=48))
    assert kinds(drawing) == ["past", "today", "ahead"]
    assert drawing.shapes[0].title.startswith("9,6")
    gap = without(table(start="2015-04-05"), "2017_03_30")
    assert kinds(drawn(gap))[:3] == ["past", "past", "today"]
    (shape,) = [shape for shape in drawn(gap).shapes if shape.kind == "gap"]
    assert shape.width >= 0.8, "a day in eleven years is seen"
    assert shape.title == "no partition: 2017-03-30 to 2017-03-31"


def test_each_thing_has_a_kind_of_its_own() -> None:
    assert kinds(drawn(table(retention="7 days")))[:4] == ["due", "due", "due", "past"]
    first, *others = table().partitions
    pending = dataclasses.replace(
        table(), partitions=(dataclasses.replace(first, detach_pending=True), *others)
    )
    assert kinds(drawn(pending))[0] == "pending"
    assert "gap" not in kinds(drawn(pending)), "it stands there still"
    assert first.upper is not None
    assert others[0].upper is not None
    twice = dataclasses.replace(first, upper=others[0].upper)
    odd = dataclasses.replace(table(), partitions=(twice, *others[1:]))
    assert kinds(drawn(odd))[0] == "past odd"
    assert "1 not on the policy's grid: odds_2026_03_26" in row_of(shown(odd), "odds").text
    short = drawn(table(stop="2026-04-21"))
    assert kinds(short)[-1] == "gap"
    assert short.wanted == pytest.approx(100)


def test_a_default_partition_has_a_lane() -> None:
    managed = with_default(table())
    for stranded, style in ((True, "stranded"), (False, "empty"), (None, "unknown")):
        page = read(render(view(seen(managed, stranded=stranded))))
        assert page.one("svg", "coverage").one("rect", "default").classes == {"default", style}
    assert not shown(table()).one("svg", "coverage").all("rect", "default")


def test_dates_stand_below() -> None:
    months = drawn(
        table("web.events", "2024-04-01", "2026-10-15", interval="month", premake=6, timezone="UTC")
    )
    assert months.first is not None
    assert (months.first.text, months.last.text) == ("1 Apr 2024", "1 Nov 2026")
    assert (months.now.text, months.clock) == ("now 5 Apr", "01:37")
    assert [tick.text for tick in months.ticks] == ["Jul 2025"]
    days = drawn(table(start="2026-01-05"))
    assert [tick.text for tick in days.ticks] == ["Mar 2026"]
    hours = drawn(table(start="2026-04-05", stop="2026-04-07T14:00", interval="hour", premake=48))
    assert hours.first is not None
    assert hours.first.text == "5 Apr 00:00"
    assert hours.ticks


BOUNDLESS = (
    Partition(1, "racing", "first", None, datetime(2026, 4, 5, tzinfo=timezone.utc)),
    Partition(2, "racing", "last", datetime(2026, 4, 5, tzinfo=timezone.utc), None),
)


def test_what_has_no_end_reaches_to_the_edge() -> None:
    drawing = drawn(dataclasses.replace(table(), partitions=BOUNDLESS))
    assert (drawing.without_begin, drawing.without_end) == (True, True)
    assert (drawing.shapes[0].left, round(drawing.shapes[-1].right, 6)) == (0, 100)
    page = shown(dataclasses.replace(table(), partitions=BOUNDLESS))
    assert page.one("td", "runway").text.startswith("never runs out asked for")
    assert "Inserts are safe, without end." in page.one("header").text


@pytest.mark.parametrize("key_type", ["timestamptz", "timestamp", "date", "epoch_ms", "uuidv7"])
@pytest.mark.parametrize("zone", ["America/St_Johns", "Pacific/Apia"])
def test_any_key_and_the_ends_of_the_calendar(key_type: KeyType, zone: str) -> None:
    rules = PartitionPolicy(
        "at", interval="month", timezone=zone, epoch="ms" if key_type == "epoch_ms" else None
    )
    managed = ManagedTable("racing", "odds", rules, 4711, key_type)
    utc = None if key_type in ("timestamp", "date") else timezone.utc
    far = [datetime(1, 1, 1), datetime(2, 1, 1), datetime(9998, 1, 1), datetime.max]
    keys = [at.date() if key_type == "date" else at.replace(tzinfo=utc) for at in far]
    steps = plan_horizon(managed, NOW).steps
    parts = [
        *(Partition(n, "racing", step.name, step.lower, step.upper) for n, step in enumerate(steps, 1)),
        Partition(100, "racing", "dawn", keys[0], keys[1]),
        Partition(101, "racing", "dusk", keys[2], keys[3]),
    ]
    near = shown(dataclasses.replace(managed, partitions=tuple(parts[:-2])))
    assert near.one("svg", "coverage").all("rect", "ahead")
    page = shown(dataclasses.replace(managed, partitions=tuple(parts)))
    assert page.one("svg", "coverage").all("rect", "gap")


# -- runs and alerts -----------------------------------------------------------------------------------


def test_runs_say_when_what_and_what_failed() -> None:
    runs, alerts = BAD_DAY.all("table", "runs")
    lines = [row.text for row in runs.all("tr")[1:]]
    assert lines[0] == (
        "2026-04-05 01:00:11 37 min ago maintain 3 created, 2 detached iot.sensor_events, racing.odds_history"
        " failed: racing.money_flow_history: canceling statement due to lock timeout"
        " failed: stream_ingest.ladder_levels: must be owner of table ladder_levels"
        " 4.2 s partition_owner (worker-2)"
    )
    assert len(lines) == 4
    (alert,) = alerts.all("tr")[1:]
    assert alert.text == (
        "2026-04-05 01:01:11 36 min ago stream_ingest.ladder_levels still open told critical 7c2f90ab"
    )


def test_alerts_of_others_and_what_they_do_not_say() -> None:
    runs = (
        run_of(3, "alert", ago=timedelta(0), details={"x": {"level": "<PANIC>"}}),
        run_of(2, "alert", ago=timedelta(0), details={"y": "free text"}),
        run_of(
            1,
            "alert",
            ago=timedelta(0),
            details={
                "z": {**ALERTED["stream_ingest.ladder_levels"], "event": "recovered", "state": "failed"}
            },
        ),
    )
    page = read(render(view(seen(table())), runs=runs))
    (alerts,) = page.all("table", "runs")
    assert [" ".join(row.text.split()[4:]) for row in alerts.all("tr")[1:]] == [
        "ago x unknown unknown <PANIC>",
        "ago z over the message could not be sent critical 7c2f90ab",
    ]
    assert "No run has changed anything yet." in page.text


def test_runs_may_be_given() -> None:
    given = (run_of(2, "maintain", ago=timedelta(hours=1)), run_of(1, "ensure", ago=timedelta(days=-1)))
    page = read(render(a_bad_day(), runs=given))
    (runs,) = page.all("table", "runs")
    first, second = (row.text for row in runs.all("tr")[1:])
    assert "1 hour ago maintain nothing to do" in first
    assert "ago" not in second, "the clock of a rehearsal stands before it"


# -- from a database -----------------------------------------------------------------------------------


def test_of_a_real_database(engine: Engine) -> None:
    declare(engine, "odds", policy())
    declare(engine, 'Mixed "case" %s <i>', policy(interval="month"))
    page = read(render(Source(engine).view()))
    assert sorted(_name(body) for body in page.all("tbody") if body.all("th", "name")) == [
        'public.Mixed "case" %s <i>',
        "public.odds",
    ]
    assert len(row_of(page, "odds").one("table", "partitions").all("tr")) == 5
