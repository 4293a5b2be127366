"""The acceptance list of the web-analytics service, end to end on its own example (examples/web_analytics).

The service is a real process that is asked over HTTP, today, but for a night at the end of a year.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import cli
from tests.databases import Database, Roles
from tests.tables import operations, partitions, rows, run, scalar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from web_analytics import demo, feed, serving  # noqa: E402
from web_analytics.app import create_app  # noqa: E402

HERE = EXAMPLES / "web_analytics"
TOKEN = "an-analyst-with-a-secret"
TABLES = ("events", "goal_completions")
#: The last seconds of a year.
NEW_YEARS_EVE = datetime(2026, 12, 31, 23, 59, 57, tzinfo=timezone.utc)


def month(now: datetime, number: int) -> datetime:
    """Return the begin of the month so many months after that of ``now``."""
    years, months = divmod(now.year * 12 + now.month - 1 + number, 12)
    return datetime(years, months + 1, 1, tzinfo=timezone.utc)


def names(table: str, now: datetime, first: int, last: int) -> list[str]:
    """The names of a table's partitions from ``first`` to ``last`` months after now, both included."""
    return [f"{table}_{month(now, number):%Y_%m}" for number in range(first, last + 1)]


def event(at: datetime, **more: Any) -> dict[str, Any]:
    (one,) = feed.visits(at, at + timedelta(seconds=1), 1)
    return {**one, **more}


def clean(patch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith((*scratch.SETTINGS, "PARTITION_", "ENABLE_PARTITION_")):
            patch.delenv(name)
    patch.setenv("PARTITION_API_TOKEN", TOKEN)
    patch.setenv("COLUMNS", "160")


def project() -> Config:
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    clean(monkeypatch)


@pytest.fixture
def alembic(database: Database, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    return project()


@pytest.fixture
def migrated(alembic: Config, engine: Engine) -> Engine:
    command.upgrade(alembic, "head")
    return engine


@dataclass
class Running:
    """A service at work, and its database."""

    client: httpx.Client
    engine: Engine


@pytest.fixture(scope="module")
def shared(module_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One that several tests share; none of them removes anything."""
    engine = create_engine(module_database.url)
    with pytest.MonkeyPatch.context() as patch:
        clean(patch)
        patch.setenv("DATABASE_URL", module_database.url.render_as_string(hide_password=False))
        command.upgrade(project(), "head")
        log = tmp_path_factory.mktemp("shared") / "service.log"
        with serving_at(log, ENABLE_PARTITION_MAINTENANCE="false") as client:
            yield Running(client, engine)
    engine.dispose()


@pytest.fixture
def now() -> datetime:
    return datetime.now(timezone.utc)


@contextmanager
def serving_at(log: Path, **settings: str) -> Iterator[httpx.Client]:
    """Start the service; yield a client that has the token."""
    with (
        serving.service(log, **settings) as address,
        httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30, trust_env=False
        ) as client,
    ):
        yield client


def post(client: httpx.Client, *events: dict[str, Any]) -> dict[str, int]:
    """Send events, again where the service asks for it."""
    for _ in range(20):
        answer = client.post("/events", json=list(events))
        if answer.status_code != 503:
            break
        assert answer.headers["Retry-After"] == "1"
    assert answer.status_code == 201, answer.text
    told: dict[str, int] = answer.json()
    return told


def counted(client: httpx.Client, **wanted: str) -> int:
    answer = client.get("/events/count", params=wanted)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["count"])


def tell(line: str) -> str:
    """Run a command as a person would, and see that it ends well."""
    done = demo.shell(line)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def fill(engine: Engine, table: str, first: datetime, number: int) -> None:
    """Write so many rows, an hour apart, by SQL: they find the partitions that are there."""
    key, what = ("occurred_at", "event_type") if table == "events" else ("completed_at", "goal")
    run(
        engine,
        f"INSERT INTO {table} ({key}, site_id, visitor_id, {what}, properties)"
        f" SELECT '{first.isoformat()}'::timestamptz + i * interval '1 hour', 'shop.example', 'v' || i,"
        f" 'signup', jsonb_build_object('plan', 'pro', 'turn', i) FROM generate_series(0, {number - 1}) i",
    )


def grow_old(engine: Engine, table: str, now: datetime, first: int, last: int) -> None:
    """Make months as they stand after some time, a row in each."""
    with operations(engine) as op:
        op.create_partitions(table, month(now, first), month(now, last + 1))
    for number in range(first, last + 1):
        fill(engine, table, month(now, number), 1)


def held(engine: Engine, table: str) -> dict[str, int]:
    """How many rows each partition holds."""
    return dict(rows(engine, f"SELECT tableoid::regclass::text, count(*) FROM {table} GROUP BY 1"))


# -- monthly events and goal_completions -----------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
def test_previous_current_and_next_month_are_at_hand_and_six_ahead(
    migrated: Engine, now: datetime, table: str
) -> None:
    assert partitions(migrated, table) == names(table, now, -1, 6)


def test_previous_current_and_next_month_are_there_when_an_insert_comes_even_if_somebody_dropped_them(
    migrated: Engine, now: datetime, tmp_path: Path
) -> None:
    def lose() -> None:
        for table in TABLES:
            run(migrated, *(f"DROP TABLE {name}" for name in partitions(migrated, table)))

    some = [event(month(now, number) + timedelta(days=3)) for number in (-1, 0, 1)]
    lose()
    with serving_at(tmp_path / "service.log") as client:
        assert post(client, *some) == {"events": 3, "goals": 3}
        lose()  # behind its back: the first transaction that finds none is asked to come again
        for one in some:
            post(client, one)
        for table in TABLES:
            assert held(migrated, table) == dict.fromkeys(names(table, now, -1, 1), 1)


def test_an_event_makes_the_month_that_it_needs_and_one_past_retention_is_refused(
    shared: Running, now: datetime
) -> None:
    days = [month(now, number) + timedelta(hours=1) for number in range(-11, 1)]
    for day in days:
        post(shared.client, event(day, siteId="a year"))
    assert counted(shared.client, site="a year") == 12
    assert set(names("events", now, -11, 6)) <= set(partitions(shared.engine, "events"))

    for at, why in ((month(now, -13), "12 months"), (now + timedelta(days=400), "366 days")):
        answer = shared.client.post("/events", json=[event(now, siteId="a year"), event(at)])
        assert answer.status_code == 422
        assert why in answer.json()["error"]
    assert counted(shared.client, site="a year") == 12, "all of a request, or none"


def test_events_of_one_request_and_the_goals_they_complete_are_written_together(
    shared: Running, now: datetime
) -> None:
    visits = [{**visit, "siteId": "goals"} for visit in feed.visits(now - timedelta(days=60), now, 100)]
    assert post(shared.client, *visits) == {"events": 100, "goals": 20}
    since = (now - timedelta(days=30)).isoformat()
    assert counted(shared.client, site="goals", since=since) == 50
    query = "SELECT count(*) FROM goal_completions WHERE site_id = 'goals' AND goal = 'signup'"
    assert scalar(shared.engine, query) == 20


@pytest.mark.parametrize(
    "more",
    [
        r'"siteId": "a\u0000b"',
        r'"path": "/\u0007"',
        r'"goal": "\n"',
        r'"properties": {"a\\": [{"b": "\u0000"}]}',
        r'"properties": {"\\\u0000": 1}',
        r'"properties": {"half": "\ud800"}',
        '"properties": {"a": NaN}',
        '"properties": {"a": 1e400}',
        '"value": NaN',
        '"value": 1e10',
    ],
)
def test_what_the_database_cannot_hold_is_refused(shared: Running, now: datetime, more: str) -> None:
    sent = f"[{json.dumps(event(now, siteId='odd'))[:-1]}, {more}}}]"  # of a name given twice the last counts
    answer = shared.client.post("/events", content=sent, headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (422, ["error"])


def test_what_only_looks_like_it_is_stored_and_a_question_of_that_kind_is_refused(
    shared: Running, now: datetime
) -> None:
    said = {"a": r"\u0000", "b": "one line\nand another", "c": "\N{SNOWMAN}"}
    post(shared.client, event(now, siteId="even", properties=said, value=9_999_999_999.99))
    assert rows(shared.engine, "SELECT properties FROM events WHERE site_id = 'even'") == [(said,)]
    for question in ({"site": "\0"}, {"having": "plan:\0"}):
        assert shared.client.get("/events/count", params=question).status_code == 422


# -- GIN indexes on the properties -----------------------------------------------------------------------


def test_every_partition_has_the_gin_index_also_one_that_an_insert_made(
    shared: Running, now: datetime
) -> None:
    engine = shared.engine
    visits = feed.visits(month(now, 7), month(now, 8), 30)
    post(shared.client, *({**visit, "siteId": "gin"} for visit in visits))
    assert names("events", now, 7, 7)[0] in partitions(engine, "events"), "beyond the horizon"
    for table in TABLES:
        indexed = rows(
            engine,
            "SELECT x.indrelid::regclass::text FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
            " JOIN pg_am a ON a.oid = c.relam JOIN pg_inherits i ON i.inhrelid = x.indrelid"
            " WHERE a.amname = 'gin' AND x.indisvalid AND i.inhparent = CAST(:name AS regclass) ORDER BY 1",
            name=table,
        )
        assert [name for (name,) in indexed] == partitions(engine, table)

    assert counted(shared.client, site="gin", having="plan:pro") == 10
    query = """SELECT count(*) FROM events WHERE properties @> '{"plan": "pro"}'"""
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        plan = "\n".join(connection.scalars(text(f"EXPLAIN (COSTS OFF) {query}")))
    assert plan.count("Bitmap Index Scan") == len(partitions(engine, "events")), plan


# -- partition_config by SQL: retention_months, future_partitions, enabled -------------------------------

SETTINGS = "SELECT retention_months, future_partitions, enabled FROM partition_settings"


def test_the_settings_are_there_under_their_own_names_and_can_be_updated(
    migrated: Engine, alembic: Config
) -> None:
    assert rows(migrated, SETTINGS) == [(12, 6, True)] * 2
    run(migrated, "UPDATE partition_settings SET retention_months = 24, future_partitions = 9")
    run(migrated, "UPDATE partition_settings SET enabled = false WHERE table_name = 'goal_completions'")
    assert rows(
        migrated, "SELECT table_name, retention, premake, enabled FROM partition_config ORDER BY table_name"
    ) == [("events", "24 months", 9, True), ("goal_completions", "24 months", 9, False)]
    assert rows(migrated, f"{SETTINGS} ORDER BY table_name") == [(24, 9, True), (24, 9, False)]
    command.check(alembic)  # an operator's setting is no drift


def test_a_setting_counts_from_the_next_look(migrated: Engine, now: datetime) -> None:
    run(migrated, "UPDATE partition_settings SET future_partitions = 8 WHERE table_name = 'events'")
    run(migrated, "UPDATE partition_settings SET enabled = false WHERE table_name = 'goal_completions'")
    run(migrated, f"DROP TABLE {names('goal_completions', now, 6, 6)[0]}")
    tell("alembic-partitions ensure")
    assert partitions(migrated, "events") == names("events", now, -1, 8)
    assert partitions(migrated, "goal_completions") == names("goal_completions", now, -1, 5)


WRONG = {
    "retention_months = 0": "partition_config_retention_check",
    "retention_months = -12": "partition_config_retention_check",
    "retention_months = 1000000": "partition_config_retention_check",
    "retention_months = 'a year'": "invalid input syntax for type integer",
    "future_partitions = -1": "partition_config_premake_check",
    "future_partitions = 10001": "partition_config_premake_check",
    "future_partitions = NULL": "null value",
    "enabled = NULL": "null value",
    "table_name = 'visits'": "only retention_months, future_partitions and enabled can be set",
    "retention = '6 months'": "only retention_months, future_partitions and enabled can be set",
}


def test_a_wrong_setting_is_refused_by_the_database(migrated: Engine) -> None:
    before = rows(migrated, "TABLE partition_config ORDER BY table_name")
    for change, told in WRONG.items():
        with pytest.raises(DBAPIError, match=told):
            run(migrated, f"UPDATE partition_settings SET {change}")
    assert rows(migrated, "TABLE partition_config ORDER BY table_name") == before


def test_a_table_is_neither_added_nor_forgotten_by_its_settings(migrated: Engine) -> None:
    for statement in ("DELETE FROM partition_settings", "INSERT INTO partition_settings DEFAULT VALUES"):
        with pytest.raises(DBAPIError, match="is not possible") as refused:
            run(migrated, statement)
        assert "SET enabled = false" in str(refused.value)
    assert len(rows(migrated, SETTINGS)) == 2


def test_retention_that_is_not_counted_in_months_is_shown_and_left_alone(migrated: Engine) -> None:
    for kept, months in (("400 days", None), ("5 quarters", 15), ("2 years", 24), (None, None)):
        value = "NULL" if kept is None else f"'{kept}'"
        run(migrated, f"UPDATE partition_config SET retention = {value}")
        run(migrated, "UPDATE partition_settings SET future_partitions = 7")
        found = rows(migrated, "SELECT retention_months, retention FROM partition_settings")
        assert found == [(months, kept)] * 2
    run(migrated, "UPDATE partition_settings SET retention_months = 6")
    run(migrated, "UPDATE partition_settings SET retention_months = NULL WHERE table_name = 'events'")
    assert rows(migrated, "SELECT retention FROM partition_config ORDER BY table_name") == [
        (None,),
        ("6 months",),
    ]


def test_an_operator_needs_no_right_but_update_on_the_settings(migrated: Engine, roles: Roles) -> None:
    operator = roles.create("operator")
    run(migrated, f'GRANT SELECT, UPDATE ON partition_settings TO "{operator.username}"')
    engine = create_engine(operator, poolclass=NullPool)
    run(engine, "UPDATE partition_settings SET retention_months = 18")
    assert rows(migrated, "SELECT DISTINCT retention FROM partition_config") == [("18 months",)]
    for statement in (
        "UPDATE partition_config SET premake = 0",
        """
        CREATE TEMP VIEW v AS SELECT * FROM partition_settings;
        CREATE TRIGGER t INSTEAD OF UPDATE ON v FOR EACH ROW EXECUTE FUNCTION partition_settings_update()
        """,
    ):
        with pytest.raises(DBAPIError, match="permission denied"):
            run(engine, statement)


def test_with_a_role_for_partitions_the_service_needs_insert_and_select_alone(
    migrated: Engine, roles: Roles, now: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = roles.create("writer")
    run(migrated, f'GRANT INSERT, SELECT ON events, goal_completions TO "{writer.username}"')
    monkeypatch.setenv("PARTITION_DATABASE_URL", os.environ["DATABASE_URL"])
    monkeypatch.setenv("DATABASE_URL", writer.render_as_string(hide_password=False))
    with serving_at(tmp_path / "service.log") as client:
        post(client, event(month(now, 7)))
        assert status_of(client) == "HEALTHY"
    for table in TABLES:
        assert held(migrated, table) == {names(table, now, 7, 7)[0]: 1}


# -- inserts over a month boundary -----------------------------------------------------------------------


def test_concurrent_inserts_over_a_month_boundary_from_two_processes_lose_nothing(
    alembic: Config, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NEW_YEARS_EVE.isoformat())
    command.upgrade(alembic, "head")
    run(engine, "UPDATE partition_settings SET future_partitions = 0")
    for table in TABLES:
        run(engine, *(f"DROP TABLE {name}" for name in names(table, NEW_YEARS_EVE, 1, 6)))

    requests = [
        feed.visits(NEW_YEARS_EVE + timedelta(milliseconds=turn), NEW_YEARS_EVE + timedelta(seconds=6), 20)
        for turn in range(24)
    ]
    with (
        serving_at(tmp_path / "one.log") as one,
        serving_at(tmp_path / "two.log") as two,
        ThreadPoolExecutor(8) as threads,
    ):
        told = list(threads.map(lambda at: post((one, two)[at % 2], *requests[at]), range(len(requests))))
    assert told == [{"events": 20, "goals": 4}] * len(requests)
    december, january = names("events", NEW_YEARS_EVE, 0, 1)
    assert held(engine, "events") == {december: 240, january: 240}
    assert set(held(engine, "goal_completions")) == set(names("goal_completions", NEW_YEARS_EVE, 0, 1))
    assert rows(
        engine,
        "SELECT DISTINCT tableoid::regclass::text, to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY_MM')"
        " FROM events ORDER BY 1",
    ) == [(december, "2026_12"), (january, "2027_01")]


# -- partition_metadata, and functions for people in psql ------------------------------------------------


def test_partition_metadata_tells_rows_size_and_when_each_was_analyzed_and_vacuumed(
    migrated: Engine, now: datetime
) -> None:
    fill(migrated, "events", month(now, -1), 40)
    previous, current = names("events", now, -1, 0)
    query = (
        "SELECT rows_estimate, bytes, last_analyze, last_vacuum FROM partition_metadata"
        f" WHERE partition_name = '{previous}'"
    )
    ((estimated, size, analyzed, vacuumed),) = rows(migrated, query)
    assert (estimated, analyzed, vacuumed) == (None, None, None)
    assert size == scalar(migrated, f"SELECT pg_total_relation_size('{previous}')") > 0

    run(migrated, "SELECT * FROM analyze_partitions('events')", f"VACUUM {previous}")
    ((estimated, _, analyzed, vacuumed),) = rows(migrated, query)
    assert estimated == 40
    assert now < analyzed < vacuumed
    listed = rows(migrated, "SELECT partition_name FROM partition_metadata WHERE table_name = 'events'")
    assert [name for (name,) in listed] == partitions(migrated, "events")
    assert current in partitions(migrated, "events")


def test_people_in_psql_list_extend_rehearse_and_remove(migrated: Engine, now: datetime) -> None:
    grow_old(migrated, "events", now, -15, -13)
    assert rows(
        migrated,
        "SELECT table_name, status, pending_retention FROM partition_health_summary() ORDER BY table_name",
    ) == [("events", "CLEANUP_NEEDED", 3), ("goal_completions", "HEALTHY", 0)]

    run(migrated, "SELECT * FROM create_future_partitions('events', 9)")
    run(migrated, "SELECT * FROM drop_old_partitions('events', '12 months', true)")
    run(migrated, "SELECT * FROM run_partition_maintenance('events', true)")
    listed = rows(migrated, "SELECT partition_name, state FROM list_partitions('events')")
    assert [name for name, _ in listed] == [
        *names("events", now, -15, -13),
        *names("events", now, -1, 9),
    ], "a rehearsal removes nothing"
    assert [state for _, state in listed] == ["expired"] * 3 + ["past", "today"] + ["ahead"] * 9

    run(migrated, "SELECT * FROM drop_old_partitions('events', '12 months', false)")
    assert partitions(migrated, "events") == names("events", now, -1, 9)
    assert {status for (status,) in rows(migrated, "SELECT status FROM partition_health_summary()")} == {
        "HEALTHY"
    }


# -- roll-back that keeps data ---------------------------------------------------------------------------


def test_a_roll_back_keeps_every_row_without_our_functions_and_without_partitions(
    migrated: Engine, alembic: Config, now: datetime, tmp_path: Path
) -> None:
    for table in TABLES:
        fill(migrated, table, month(now, -1), 300)
        fill(migrated, table, month(now, 1), 60)
    digest = "SELECT count(*), sum(hashtext({0}::text)) FROM {0}"
    kinds = f"SELECT DISTINCT relkind FROM pg_class WHERE relname IN {TABLES}"
    before = [rows(migrated, digest.format(table)) for table in TABLES]

    tell("alembic -c web_analytics/alembic.ini downgrade 0002")
    assert [rows(migrated, digest.format(table)) for table in TABLES] == before
    assert partitions(migrated, "events") == names("events", now, -1, 6)
    ours = rows(
        migrated,
        "SELECT relname FROM pg_class WHERE relname IN ('partition_metadata', 'partition_settings')"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ 'partition'"
        " AND pronamespace = 'public'::regnamespace",
    )
    assert ours == []
    assert rows(migrated, "SELECT table_name FROM partition_config ORDER BY 1") == [(t,) for t in TABLES]

    tell("alembic -c web_analytics/alembic.ini -n way_back upgrade head")
    assert [rows(migrated, digest.format(table)) for table in TABLES] == before
    assert rows(migrated, kinds) == [("r",)]
    with serving_at(tmp_path / "service.log") as client:
        post(client, event(now), event(month(now, -30)))
        assert counted(client) == 362

    alembic.set_main_option("version_locations", f"{HERE}/migrations/versions\n{HERE}/migrations/way_back")
    alembic.set_main_option("path_separator", "newline")
    command.downgrade(alembic, "0004")
    assert sum(held(migrated, "events").values()) == 362
    assert rows(migrated, kinds) == [("p",)]


def test_the_models_are_the_end_state_of_the_migrations_which_go_back_and_apply_again(
    migrated: Engine, alembic: Config
) -> None:
    command.check(alembic)
    command.downgrade(alembic, "base")
    assert scalar(migrated, "SELECT to_regclass('events')") is None
    command.upgrade(alembic, "head")
    command.check(alembic)


# -- the HTTP API with bearer token ----------------------------------------------------------------------

API = "/api/v1/partitions"
LOOKS = ("health", "list", "status", "history")
DEEDS: dict[str, dict[str, Any]] = {
    "maintenance": {},
    "create": {"table": "events", "monthsAhead": 9},
    "analyze": {"table": "events"},
    "vacuum": {"table": "events"},
    "cleanup": {"table": "events", "retentionMonths": 6},
}


def done(client: httpx.Client, deed: str, **body: Any) -> dict[str, Any]:
    """Have something done, and return how its job ended."""
    answer = client.post(f"{API}/{deed}", json={**body, "dryRun": False})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    for _ in range(1200):
        told: dict[str, Any] = client.get(answer.headers["Location"]).json()
        if told["status"] != "running":
            break
        time.sleep(0.05)
    assert (told["jobId"], told["status"], told["error"]) == (job["jobId"], "done", None), told
    return told


def status_of(client: httpx.Client) -> str:
    answer = client.get(f"{API}/health")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["status"])


def test_nobody_looks_or_does_anything_without_the_token_and_events_need_none(
    shared: Running, now: datetime
) -> None:
    before = partitions(shared.engine, "events")
    for told in ("", "Bearer", "Bearer an-analyst-with-another", f"Basic {TOKEN}"):
        headers = {"Authorization": told} if told else {}
        with httpx.Client(base_url=shared.client.base_url, headers=headers, trust_env=False) as stranger:
            answers = [stranger.get(f"{API}/{name}") for name in LOOKS]
            answers += [
                stranger.post(f"{API}/{name}", json={**body, "dryRun": False}) for name, body in DEEDS.items()
            ]
            assert {answer.status_code for answer in answers} == {401}
            assert {answer.json()["code"] for answer in answers} == {"unauthorized"}
            post(stranger, event(now, siteId="stranger"))
            assert stranger.get("/healthz").json() == {"ok": True}
    assert partitions(shared.engine, "events") == before


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PARTITION_API_TOKEN", "", "a secret of 16 characters or more"),
        ("PARTITION_API_TOKEN", "secret", "a secret of 16 characters or more"),
        ("ENABLE_PARTITION_MAINTENANCE", "maybe", "is true or false, not 'maybe'"),
    ],
)
def test_the_service_does_not_start_without_a_token_worth_the_name_or_by_half(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        create_app()


def test_list_and_status_tell_what_there_is(shared: Running, now: datetime) -> None:
    client, engine = shared.client, shared.engine
    done(client, "analyze", table="events")
    listed = client.get(f"{API}/list", params={"table": "events"}).json()
    assert [part["name"] for part in listed["partitions"]] == partitions(engine, "events")
    (current,) = (part for part in listed["partitions"] if "today" in part["state"])
    assert current["name"] == names("events", now, 0, 0)[0]
    assert current["from"] == month(now, 0).isoformat()
    assert current["bytes"] == scalar(engine, f"SELECT pg_total_relation_size('{current['name']}')")

    told = {table["table"]: table for table in client.get(f"{API}/status").json()["tables"]}
    assert set(told) == {"public.events", "public.goal_completions"}
    policy = told["public.events"]["policy"]
    assert (policy["interval"], policy["premake"], policy["retention"]) == ("month", 6, "12 months")
    assert told["public.events"]["partitionCount"] == len(partitions(engine, "events"))


def test_a_dry_run_is_what_everything_is_unless_told_otherwise(shared: Running, now: datetime) -> None:
    before = {table: partitions(shared.engine, table) for table in TABLES}
    for name, body in DEEDS.items():
        answer = shared.client.post(f"{API}/{name}", json=body)
        assert (answer.status_code, answer.json()["dryRun"]) == (200, True)
        sent = "".join(script["sql"] for script in answer.json()["statements"])
        if name == "create":
            assert names("events", now, 9, 9)[0] in sent
        if name in ("analyze", "vacuum"):
            assert f"{name.upper()} " in sent
    assert {table: partitions(shared.engine, table) for table in TABLES} == before


def test_create_analyze_and_vacuum_do_what_they_say(shared: Running, now: datetime) -> None:
    client, engine = shared.client, shared.engine
    post(client, event(now, siteId="deeds"))
    previous, current = names("events", now, -1, 0)
    done(client, "create", table="goal_completions", monthsAhead=9)
    assert partitions(engine, "goal_completions")[-3:] == names("goal_completions", now, 7, 9)

    query = f"SELECT last_analyze > '{now}', last_vacuum > '{now}' FROM partition_metadata"
    done(client, "analyze", table="events", partition=current)
    assert rows(engine, f"{query} WHERE partition_name = '{current}'") == [(True, None)]
    done(client, "vacuum", table="events", partition=current)
    assert rows(engine, f"{query} WHERE partition_name = '{current}'") == [(True, True)]
    assert rows(engine, f"{query} WHERE partition_name = '{previous}'") != [(True, True)]


def test_a_wrong_request_is_refused_with_its_id(shared: Running) -> None:
    wrong: list[tuple[str, dict[str, Any], int]] = [
        ("create", {"table": "events", "monthsAhead": -1}, 422),
        ("create", {"table": "events", "monthsAhead": 100_000}, 422),
        ("create", {"table": "visits", "monthsAhead": 1}, 404),
        ("cleanup", {"table": "events", "retention": "soon"}, 422),
        ("cleanup", {"table": "events", "everything": True}, 422),
        ("vacuum", {"table": "events", "partition": "events_1999_01"}, 404),
        ("maintenance", {"dryRun": "no"}, 422),
    ]
    for number, (name, body, status) in enumerate(wrong):
        told = {"X-Request-ID": f"wrong-{number}"}
        answer = shared.client.post(f"{API}/{name}", json={"dryRun": False, **body}, headers=told)
        assert answer.status_code == status, answer.text
        assert answer.json()["requestId"] == answer.headers["X-Request-ID"] == f"wrong-{number}"


# -- HEALTHY / CLEANUP_NEEDED / NO_PARTITIONS ------------------------------------------------------------


def test_the_state_goes_from_cleanup_needed_to_healthy_to_no_partitions_and_back(
    migrated: Engine, now: datetime, tmp_path: Path
) -> None:
    old = names("events", now, -15, -13)
    grow_old(migrated, "events", now, -15, -13)
    with serving_at(tmp_path / "service.log") as client:
        assert status_of(client) == "CLEANUP_NEEDED"
        answer = client.post(f"{API}/cleanup", json={"table": "events"})
        (script,) = answer.json()["statements"]
        assert re.findall(r"DETACH PARTITION public\.(\w+)", script["sql"]) == old
        assert partitions(migrated, "events") == [*old, *names("events", now, -1, 6)]

        assert done(client, "cleanup", table="events")["counts"]["detached"] == 3
        assert partitions(migrated, "events") == names("events", now, -1, 6)
        kept = [scalar(migrated, f"SELECT count(*) FROM {name}_detached") for name in old]
        assert kept == [1, 1, 1], "dropped a week later: until then restore brings them back"
        assert status_of(client) == "HEALTHY"

        for table in TABLES:
            run(migrated, *(f"DROP TABLE {name}" for name in partitions(migrated, table)))
        done(client, "analyze", table="events")  # after which it looks anew; else it would in 15 s
        assert status_of(client) == "NO_PARTITIONS"
        assert client.get("/health").status_code == 503

        done(client, "maintenance")
        assert status_of(client) == "HEALTHY"
        assert partitions(migrated, "events") == names("events", now, -1, 6)


# -- ENABLE_PARTITION_MAINTENANCE ------------------------------------------------------------------------

RUNS = "SELECT count(*) FROM partition_runs WHERE action = 'maintain'"


def test_the_service_maintains_when_it_is_told_to_and_not_otherwise(
    shared: Running, migrated: Engine, now: datetime, tmp_path: Path
) -> None:
    grow_old(migrated, "goal_completions", now, -14, -13)
    with serving_at(tmp_path / "service.log", ENABLE_PARTITION_MAINTENANCE="true"):
        for _ in range(600):
            if scalar(migrated, RUNS):
                break
            time.sleep(0.05)
    assert scalar(migrated, RUNS) == 1
    assert partitions(migrated, "goal_completions") == names("goal_completions", now, -1, 6)

    assert shared.client.get("/readyz").status_code == 200
    assert scalar(shared.engine, RUNS) == 0, "at work for longer, and told not to"


# -- the demo, and the README ----------------------------------------------------------------------------


def shape(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"[0-9a-f]{16}|\d[\d.]*", "0", " ".join(line.split()))


def test_the_demo_runs_as_the_readme_has_it_and_cleans_up(database: Database, engine: Engine) -> None:
    before = dict(os.environ)
    out = io.StringIO()
    assert demo.main(database.url.render_as_string(hide_password=False), out=out) == 0, out.getvalue()
    assert dict(os.environ) == before
    told = iter(map(shape, out.getvalue().splitlines()))
    page = (HERE / "README.md").read_text()
    block = re.findall(
        "(?:^    .*\n|^\n)+", page[page.index("    2  What") : page.index("## The run-book")], re.MULTILINE
    )
    shown = [shape(line) for line in block[0].splitlines() if line.strip() not in ("", "...")]
    assert len(shown) > 30
    missing = next((line for line in shown if line not in told), None)  # in order: `in` goes on from the last
    assert missing is None, out.getvalue()
    assert rows(engine, "SELECT datname FROM pg_database WHERE datname LIKE 'web_analytics_demo%'") == []


def test_what_the_readme_names_is_there(shared: Running) -> None:
    page = (HERE / "README.md").read_text()
    for name in re.findall(r"`(?:way_back/)?(\w+\.py)`", page):
        assert list(HERE.rglob(name)), name
    for call in re.findall(r"(\w+\('events'[^)]*\))", page):
        assert rows(shared.engine, f"SELECT count(*) FROM {call}")
    paths = shared.client.get("/openapi.json").json()["paths"]
    for method, path in re.findall(r"(GET|POST) (/[\w/]+)", page):
        assert method.lower() in paths[path]
    for words in re.findall(r"`alembic-partitions (restore|upgrade)[^`\n]*`", page):
        assert words in cli.main.commands
    assert "events" in shared.client.get("/partitions").text
