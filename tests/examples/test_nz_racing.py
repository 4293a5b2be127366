"""The acceptance list of the racing back end, end to end on its own example (examples/nz_racing)."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, func, select, text

from alembic_partitions import keep
from tests.databases import Database

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from nz_racing import demo, explain, feed, ingest  # noqa: E402
from nz_racing.models import Base, Entrant, OddsHistory, Race, RaceResultHistory  # noqa: E402

LONG_DAY = date(2026, 4, 5)
pytestmark = pytest.mark.long

HISTORIES = ("money_flow_history", "odds_history", "race_result_history")


def project(database: Database, patch: pytest.MonkeyPatch) -> Config:
    """The example's Alembic environment on a test's database, on the demo's morning."""
    patch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    patch.setenv("ALEMBIC_PARTITIONS_NOW", demo.TODAY.isoformat())
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(EXAMPLES / "nz_racing" / "migrations"))
    return config


@pytest.fixture
def alembic(database: Database, monkeypatch: pytest.MonkeyPatch) -> Config:
    return project(database, monkeypatch)


@pytest.fixture
def head(alembic: Config, engine: Engine) -> Engine:
    """The tables after the last migration, and an application that keeps their partitions."""
    command.upgrade(alembic, "head")
    keep(engine, on_error="raise")
    return engine


@pytest.fixture(scope="module")
def raced(module_database: Database) -> Iterator[Connection]:
    """Two racing days, the one of 25 hours the second of them; for tests that only read."""
    engine = create_engine(module_database.url)
    with pytest.MonkeyPatch.context() as patch:
        command.upgrade(project(module_database, patch), "head")
        keep(engine, on_error="raise")
        assert ingest.ingest(engine, feed.days_from(LONG_DAY - timedelta(days=1), 2)).failed == 0
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
            yield connection
    engine.dispose()


# -- migrations ------------------------------------------------------------------------------------------


def catalog(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Everything a migration of the example can make, by name: nothing about it depends on an OID."""
    queries = {
        "columns": """
            SELECT c.relname, c.relkind, attname, format_type(atttypid, atttypmod), attnotnull,
                   pg_get_expr(adbin, adrelid)
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
            WHERE c.relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped
                  AND c.relkind IN ('r', 'p')""",
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
        "bounds": """
            SELECT inhparent::regclass::text, relname, pg_get_expr(relpartbound, pg_class.oid),
                   obj_description(pg_class.oid, 'pg_class') IS NULL
            FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid""",
    }
    with engine.connect() as connection:
        connection.execute(text("SET TimeZone = 'UTC'"))
        return {
            name: sorted(map(tuple, connection.execute(text(sql))), key=repr) for name, sql in queries.items()
        }


def racing_tables(found: dict[str, list[tuple[Any, ...]]]) -> set[str]:
    ours = {"alembic_version", "partition_config", "partition_runs"}
    return {name for name, *_ in found["columns"]} - ours


def test_up_down_to_base_and_up_again_gives_the_same_catalog(alembic: Config, engine: Engine) -> None:
    command.upgrade(alembic, "head")
    before = catalog(engine)
    assert len(before["bounds"]) > 60

    command.downgrade(alembic, "base")
    assert racing_tables(catalog(engine)) == set()

    command.upgrade(alembic, "head")
    assert catalog(engine) == before


def test_every_migration_is_rolled_back_in_full_and_applies_again(alembic: Config, engine: Engine) -> None:
    revisions = [s.revision for s in ScriptDirectory.from_config(alembic).walk_revisions()][::-1]
    command.upgrade(alembic, revisions[0])
    for below, revision in itertools.pairwise(revisions):
        before = catalog(engine)
        command.upgrade(alembic, revision)
        after = catalog(engine)
        command.downgrade(alembic, below)
        found = catalog(engine)
        if below == "0001":  # partition_config and partition_runs came with the first history, to stay
            found = {
                kind: [row for row in rows if "partition_" not in repr(row[:2])]
                for kind, rows in found.items()
            }
        assert found == before
        command.upgrade(alembic, revision)
        assert catalog(engine) == after


def test_models_are_the_end_state(head: Engine) -> None:
    """Plain autogenerate proposes nothing, partitions and the package's own tables aside."""
    with head.connect() as connection:
        aside = set(connection.scalars(text("SELECT relname FROM pg_class WHERE relispartition")))
        aside |= {"partition_config", "partition_runs"}
        proposals = compare_metadata(MigrationContext.configure(connection), Base.metadata)

    def table_of(proposal: Any) -> str:
        subject = proposal[1]
        return str(subject.name if proposal[0].endswith("_table") else subject.table.name)

    assert [p for p in proposals if isinstance(p, list) or table_of(p) not in aside] == []


#: What the racing feed states and the first schema has no column for.
MISSING = {
    "meetings": "country category track_condition track_surface track_direction rail_position weather status",
    "races": "race_date_nz start_time_nz status actual_start results_available win_pool distance_m",
    "entrants": "barrier weight_kg jockey driver form scratched fixed_win_odds pool_win_odds hold_percentage",
}


def test_the_missing_fields_are_added_rolled_back_and_added_again(alembic: Config, engine: Engine) -> None:
    wanted = {
        (table, field)
        for table, fields in MISSING.items()
        for field in [*fields.split(), "last_updated", "imported_at", "data_source"]
    }

    def there() -> set[tuple[str, str]]:
        with engine.connect() as connection:
            columns = connection.execute(
                text("SELECT table_name, column_name FROM information_schema.columns")
            )
            return {(table, name) for table, name in columns} & wanted

    command.upgrade(alembic, "0002")
    for _ in range(2):
        assert there() == set()
        command.upgrade(alembic, "0003")
        assert there() == wanted
        command.downgrade(alembic, "0002")


def insert_before_alignment(connection: Connection) -> None:
    for statement in (
        "INSERT INTO meetings VALUES (1, 'Ellerslie', '2026-01-17')",
        "INSERT INTO races VALUES (11, 1, 1, 'Race 1', '2026-01-16 23:40+00')",
        "INSERT INTO entrants VALUES (111, 11, 1, 'Tui', 4.20, 1.80), (112, 11, 2, 'Rata', NULL, NULL)",
    ):
        connection.execute(text(statement))


def test_the_alignment_moves_odds_to_fixed_odds_and_its_rollback_moves_them_back(
    alembic: Config, engine: Engine
) -> None:
    command.upgrade(alembic, "0002")
    with engine.begin() as connection:
        insert_before_alignment(connection)

    command.upgrade(alembic, "0003")
    with engine.begin() as connection:
        moved = connection.execute(
            text("SELECT id, fixed_win_odds, fixed_place_odds FROM entrants ORDER BY id")
        )
        assert moved.all() == [(111, Decimal("4.20"), Decimal("1.80")), (112, None, None)]
        connection.execute(text("UPDATE entrants SET fixed_win_odds = 9.5, scratched = true WHERE id = 112"))

    command.downgrade(alembic, "0002")
    with engine.begin() as connection:
        back = connection.execute(text("SELECT * FROM entrants ORDER BY id"))
        assert list(back.keys()) == ["id", "race_id", "runner_number", "name", "win_odds", "place_odds"]
        odds = [row[-2:] for row in back]
        assert odds == [(Decimal("4.20"), Decimal("1.80")), (Decimal("9.50"), None)]

    command.upgrade(alembic, "0003")
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT fixed_win_odds FROM entrants WHERE id = 112")) == Decimal("9.5")


def test_races_from_before_the_alignment_learn_their_local_date_and_time(
    alembic: Config, engine: Engine
) -> None:
    command.upgrade(alembic, "0002")
    with engine.begin() as connection:
        insert_before_alignment(connection)
    command.upgrade(alembic, "head")
    with engine.connect() as connection:
        stated = connection.execute(select(Race.race_date_nz, Race.start_time_nz, Race.data_source)).one()
    assert stated == (date(2026, 1, 17), time(12, 40), "legacy")


# -- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["America/St_Johns", "Asia/Tokyo", "UTC"])
def test_local_date_and_time_are_never_converted(raced: Connection, zone: str) -> None:
    raced.execute(text("SELECT set_config('TimeZone', :zone, false)"), {"zone": zone})
    told = {
        r.race["id"]: r.race for day in (4, 5) for m in feed.meetings_on(date(2026, 4, day)) for r in m.races
    }
    rows = raced.execute(select(Race.id, Race.race_date_nz, Race.start_time_nz, Race.start_time)).all()
    assert len(rows) == len(told) == 30
    for row in rows:
        stated = told[row.id]
        assert (row.race_date_nz, row.start_time_nz) == (stated["race_date_nz"], stated["start_time_nz"])
        assert row.start_time == stated["start_time"]
    types = raced.execute(
        text("""SELECT data_type FROM information_schema.columns
                WHERE table_name = 'races' AND column_name IN ('race_date_nz', 'start_time_nz')
                ORDER BY column_name""")
    )
    assert types.scalars().all() == ["date", "time without time zone"]


def test_two_races_share_a_local_time_in_the_repeated_hour(raced: Connection) -> None:
    twice = raced.execute(
        select(Race.start_time_nz, func.max(Race.start_time) - func.min(Race.start_time))
        .where(Race.race_date_nz == LONG_DAY)
        .group_by(Race.start_time_nz)
        .having(func.count() > 1)
        .order_by(Race.start_time_nz)
    ).all()
    assert [tuple(row) for row in twice] == [
        (time(2, 5), timedelta(hours=1)),
        (time(2, 35), timedelta(hours=1)),
    ]


def test_partitions_begin_at_new_zealand_midnight_and_the_long_day_has_25_hours(raced: Connection) -> None:
    landed = {row.partition: row for row in explain.landed(raced)}
    assert [row.hours for row in landed.values()] == [24, 24, 25, 24, 24, 25]
    assert landed["money_flow_history_2026_04_05"].hours == 25
    long_day = landed["odds_history_2026_04_05"]
    assert long_day.begins == "04 Apr 11:00Z"
    assert long_day.first_local.startswith("05 Apr 00:")
    assert long_day.last_local == "05 Apr 19:07"


@pytest.mark.parametrize("history", HISTORIES)
def test_each_row_is_in_the_partition_of_its_local_date(raced: Connection, history: str) -> None:
    key = (
        "race_date_nz"
        if history == "race_result_history"
        else "event_timestamp AT TIME ZONE 'Pacific/Auckland'"
    )
    pattern = "YYYY_MM" if history == "race_result_history" else "YYYY_MM_DD"
    rows, astray = raced.execute(
        text(f"""SELECT count(*), count(*) FILTER (
                     WHERE tableoid::regclass::text <> '{history}_' || to_char({key}, '{pattern}'))
                 FROM {history}""")
    ).one()
    assert rows > 0
    assert astray == 0


def contents(connection: Connection) -> dict[str, str]:
    """A fingerprint of every table, bookkeeping columns included."""
    return {
        name: str(
            connection.scalar(
                text(f"SELECT md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM {name} t")
            )
        )
        for name in Base.metadata.tables
    }


def test_a_bulk_upsert_is_idempotent(head: Engine) -> None:
    meeting = next(feed.meetings_on(LONG_DAY))
    fingerprints = []
    for _ in range(2):
        report = ingest.Report()
        ingest.ingest_meeting(head, meeting, report)
        assert (report.failed, len(report.milliseconds)) == (0, 5)
        with head.connect() as connection:
            fingerprints.append(contents(connection))
    assert fingerprints[0] == fingerprints[1]


def test_a_bulk_upsert_updates_what_has_changed_and_says_when(head: Engine) -> None:
    meeting = next(feed.meetings_on(LONG_DAY))
    ingest.ingest_meeting(head, meeting, ingest.Report())
    runner = meeting.races[0].entrants[0]
    runner["scratched"] = True
    ingest.ingest_meeting(head, meeting, ingest.Report())
    with head.connect() as connection:
        changed = connection.scalars(
            select(Entrant.id).where(Entrant.last_updated > Entrant.imported_at)
        ).all()
    assert changed == [runner["id"]]


def test_days_beyond_the_horizon_get_their_partitions_as_rows_arrive(head: Engine) -> None:
    spring = date(2026, 9, 27)  # 23 hours, half a year after the demo's morning
    assert ingest.ingest(head, [spring]).failed == 0
    with head.connect() as connection:
        landed = {row.partition: row.hours for row in explain.landed(connection)}
        months = set(connection.scalars(select(func.to_char(RaceResultHistory.race_date_nz, "YYYY-MM"))))
    hours = {"2026_09_26": 24, "2026_09_27": 23}
    assert landed == {f"{name}_{day}": hours[day] for name in HISTORIES[:2] for day in hours}
    assert months == {"2026-09"}


# -- plans -----------------------------------------------------------------------------------------------


def test_a_day_is_answered_from_one_partition_by_its_index(raced: Connection) -> None:
    plan = "\n".join(explain.explain(raced, explain.latest_prices(demo.RUNNER, LONG_DAY)))
    assert "Index Scan using odds_history_2026_04_05_entrant_id_event_timestamp_idx" in plan
    assert plan.count("odds_history_2026_") == plan.count("odds_history_2026_04_05")
    assert "Sort" not in plan  # event_timestamp DESC comes out of the index as it is
    assert raced.execute(explain.latest_prices(demo.RUNNER, LONG_DAY)).rowcount == 10


def test_money_flow_is_answered_from_one_partition_by_its_index(raced: Connection) -> None:
    begin, end = explain.bounds_of(LONG_DAY)
    flow = Base.metadata.tables["money_flow_history"]
    query = (
        select(flow)
        .where(
            flow.c.entrant_id == demo.RUNNER, flow.c.event_timestamp >= begin, flow.c.event_timestamp < end
        )
        .order_by(flow.c.event_timestamp.desc())
    )
    plan = "\n".join(explain.explain(raced, query))
    assert "money_flow_history_2026_04_05_entrant_id_event_timestamp_idx" in plan
    assert plan.count("money_flow_history_2026_") == plan.count("money_flow_history_2026_04_05")


def test_results_of_a_date_are_answered_from_one_partition(raced: Connection) -> None:
    plan = "\n".join(
        explain.explain(
            raced, select(RaceResultHistory.placings).where(RaceResultHistory.race_date_nz == LONG_DAY)
        )
    )
    assert "race_result_history_2026_04" in plan
    assert "Append" not in plan


def plan_by_index(connection: Connection, query: Any) -> str:
    """Two days fit on a few pages, which PostgreSQL would rather read whole: ask which index, not whether."""
    settings = ("enable_seqscan", "enable_bitmapscan", "enable_sort")
    for name in settings:
        connection.execute(text(f"SET {name} = off"))
    try:
        return "\n".join(explain.explain(connection, query))
    finally:
        for name in settings:
            connection.execute(text(f"RESET {name}"))


def test_the_field_is_answered_by_the_partial_index(raced: Connection) -> None:
    race_id = demo.RUNNER // 100
    assert "ix_entrants_running" in plan_by_index(raced, explain.field_of(race_id))
    favourites = raced.execute(explain.field_of(race_id)).all()
    assert [row.fixed_win_odds for row in favourites] == sorted(row.fixed_win_odds for row in favourites)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            select(Race.id).where(Race.race_date_nz == LONG_DAY, Race.start_time_nz > time(19)),
            "start_time_nz",
        ),
        (
            select(Race.id).where(
                Race.status == "open", Race.start_time > datetime(2026, 4, 5, tzinfo=timezone.utc)
            ),
            "ix_races_status_start_time",
        ),
        (
            select(OddsHistory.odds)
            .where(
                OddsHistory.odds_type == "fixed_win",
                OddsHistory.entrant_id == demo.RUNNER,
                OddsHistory.event_timestamp >= explain.bounds_of(LONG_DAY)[0],
            )
            .order_by(OddsHistory.event_timestamp.desc())
            .limit(1),
            "odds_type_entrant_id_event",
        ),
    ],
    ids=["races of a day", "races by status", "prices by type"],
)
def test_compound_indexes_fit_the_questions(raced: Connection, query: Any, index: str) -> None:
    assert index in plan_by_index(raced, query)


# -- log lines and times ---------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    formatter = ingest.JsonLines()
    return [json.loads(formatter.format(r)) for r in caplog.records if r.name == "nz_racing"]


def test_each_success_is_a_structured_log_line(head: Engine, caplog: pytest.LogCaptureFixture) -> None:
    meeting = next(feed.meetings_on(LONG_DAY))
    with caplog.at_level(logging.INFO, "nz_racing"):
        ingest.ingest_meeting(head, meeting, ingest.Report())
    first, second, *_ = told = lines(caplog)
    assert [line["event"] for line in told] == ["meeting_written"] + ["race_written"] * 5
    assert first["meeting_id"] == meeting.meeting["id"]
    assert second["race_id"] == meeting.races[0].race["id"]
    assert second["race_date_nz"] == "2026-04-05"
    assert second["rows"] == meeting.races[0].rows
    assert second["ms"] > 0
    assert {line["level"] for line in told} == {"info"}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"event_timestamp": datetime(2062, 4, 5, tzinfo=timezone.utc)}, "KeyOutsideLimits"),
        ({"odds": 10**9}, "DataError"),
    ],
    ids=["a day beyond max_ahead", "a price that does not fit"],
)
def test_each_failure_is_a_structured_log_line_and_stops_nothing(
    head: Engine, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any], error: str
) -> None:
    meeting = next(feed.meetings_on(LONG_DAY))
    meeting.races[2].odds[5].update(wrong)
    report = ingest.Report()
    with caplog.at_level(logging.INFO, "nz_racing"):
        ingest.ingest_meeting(head, meeting, report)
    (failed,) = (line for line in lines(caplog) if line["level"] == "error")
    assert failed["event"] == "race_failed"
    assert failed["race_id"] == meeting.races[2].race["id"]
    assert failed["error"] == error
    assert failed["message"]
    assert (report.failed, len(report.milliseconds)) == (1, 4)
    with head.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(Race)) == 4  # nothing of the third


def test_a_meeting_that_fails_is_a_structured_log_line_and_none_of_its_races_is_tried(
    head: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    meeting = next(feed.meetings_on(LONG_DAY))
    meeting.meeting["name"] = None
    report = ingest.Report()
    with caplog.at_level(logging.INFO, "nz_racing"):
        ingest.ingest_meeting(head, meeting, report)
    (failed,) = lines(caplog)
    assert (failed["event"], failed["level"]) == ("meeting_failed", "error")
    assert (failed["meeting_id"], failed["error"]) == (meeting.meeting["id"], "IntegrityError")
    assert (report.failed, report.milliseconds) == (5, [])


def test_partitions_that_cannot_be_made_are_a_structured_log_line(
    head: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with head.begin() as connection:
        connection.execute(text("ALTER TABLE odds_history RENAME TO elsewhere"))
    with caplog.at_level(logging.INFO, "nz_racing"):
        assert not ingest.make_partitions(keep(head))
    (failed,) = (line for line in lines(caplog) if line["event"] == "partitions_failed")
    assert failed["level"] == "error"
    assert failed["table"] == "public.odds_history"
    assert "the table does not exist" in failed["message"]


def test_the_ingest_prints_how_long_a_race_and_the_partitions_took(head: Engine, database: Database) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "nz_racing.ingest", "--first", "2026-04-05", "--days", "1"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])},
    )
    made, written = ran.stdout.splitlines()
    assert "partitions made in" in made
    assert "15 races" in written
    assert "a race written in" in written
    assert {json.loads(line)["event"] for line in ran.stderr.splitlines()} == {
        "partitions_ready",
        "meeting_written",
        "race_written",
    }


def test_how_long_things_took_is_printed_beside_how_long_they_may_take(
    head: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", demo.NEXT_WEEK.isoformat())
    assert ingest.make_partitions(keep(head))
    told = capsys.readouterr().out
    match = re.fullmatch(r"14 partitions made in (\d+) ms, (\d+) ms for each day \((\w+) 5000 ms\)\n", told)
    assert match is not None, told
    assert int(match[2]) == pytest.approx(int(match[1]) / 7, abs=1)
    assert match[3] == ("under" if int(match[2]) < 5000 else "OVER")
    for slowest, held in ((299.0, "under"), (300.0, "OVER")):
        report = ingest.Report(rows=9, milliseconds=[58.2, 40.0, slowest])
        assert str(report).endswith(f"a race written in 58 ms (slowest {slowest:.0f} ms, {held} 300 ms)")


# -- the demo --------------------------------------------------------------------------------------------


def test_the_demo_runs_and_cleans_up(database: Database, engine: Engine) -> None:
    before = dict(os.environ)
    out = io.StringIO()
    assert demo.main(database.url.render_as_string(hide_password=False), out=out) == 0
    told = out.getvalue()
    assert "odds_history_2026_04_05" in told
    assert "25" in told
    assert "0 failed" in told
    assert "Index Scan" in told
    assert dict(os.environ) == before
    with engine.connect() as connection:
        left = connection.scalars(
            text("SELECT datname FROM pg_database WHERE datname LIKE 'nz_racing_demo%'")
        )
        assert left.all() == []
