"""The acceptance list of the web-analytics service, end to end on its own example (examples/web_analytics).

The service is a real process that is asked over HTTP. What it does runs today, but for a night at the end of a
year.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.databases import Database, Roles
from tests.tables import partitions, rows, run, scalar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from web_analytics import feed, serving  # noqa: E402

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


@pytest.fixture(autouse=True)
def surroundings(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith((*scratch.SETTINGS, "PARTITION_", "ENABLE_PARTITION_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("PARTITION_API_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def alembic() -> Config:
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config


@pytest.fixture
def migrated(alembic: Config, engine: Engine) -> Engine:
    command.upgrade(alembic, "head")
    return engine


@pytest.fixture
def now(engine: Engine) -> datetime:
    found: datetime = scalar(engine, "SELECT now()")
    return found.astimezone(timezone.utc)


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


@pytest.fixture
def service(migrated: Engine, tmp_path: Path) -> Iterator[httpx.Client]:
    with serving_at(tmp_path / "service.log") as client:
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
    service: httpx.Client, migrated: Engine, now: datetime
) -> None:
    for number in range(-11, 1):
        post(service, event(month(now, number) + timedelta(hours=1)))
    assert counted(service) == 12
    assert sorted(held(migrated, "events")) == names("events", now, -11, 0)

    for at, why in ((month(now, -13), "12 months"), (now + timedelta(days=400), "366 days")):
        answer = service.post("/events", json=[event(now), event(at)])
        assert answer.status_code == 422
        assert why in answer.json()["error"]
    assert counted(service) == 12, "all of a request, or none"


def test_events_of_one_request_and_their_goals_are_written_together(
    service: httpx.Client, migrated: Engine, now: datetime
) -> None:
    visits = feed.visits(now - timedelta(days=60), now, 100)
    assert post(service, *visits) == {"events": 100, "goals": 20}
    assert counted(service, site="shop.example") == 50
    assert counted(service, since=(now - timedelta(days=30)).isoformat()) == 50
    assert scalar(migrated, "SELECT count(*) FROM goal_completions WHERE goal = 'signup'") == 20


# -- GIN indexes on the properties -----------------------------------------------------------------------


def test_every_partition_has_the_gin_index_also_one_that_an_insert_made(
    service: httpx.Client, migrated: Engine, now: datetime
) -> None:
    post(service, *feed.visits(month(now, -4), month(now, -3), 30))
    for table in TABLES:
        indexed = rows(
            migrated,
            "SELECT x.indrelid::regclass::text FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
            " JOIN pg_am a ON a.oid = c.relam JOIN pg_inherits i ON i.inhrelid = x.indrelid"
            " WHERE a.amname = 'gin' AND x.indisvalid AND i.inhparent = CAST(:name AS regclass) ORDER BY 1",
            name=table,
        )
        assert [name for (name,) in indexed] == partitions(migrated, table)
    assert names("events", now, -4, -4)[0] in partitions(migrated, "events")

    assert counted(service, having="plan:pro") == 10
    query = """SELECT count(*) FROM events WHERE properties @> '{"plan": "pro"}'"""
    with migrated.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        plan = "\n".join(connection.scalars(text(f"EXPLAIN (COSTS OFF) {query}")))
    assert plan.count("Bitmap Index Scan") == len(partitions(migrated, "events")), plan


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


def test_a_setting_counts_from_the_next_look(service: httpx.Client, migrated: Engine, now: datetime) -> None:
    run(migrated, "UPDATE partition_settings SET future_partitions = 8 WHERE table_name = 'events'")
    run(migrated, "UPDATE partition_settings SET enabled = false WHERE table_name = 'goal_completions'")
    run(migrated, f"DROP TABLE {names('goal_completions', now, 6, 6)[0]}")
    post(service, event(now))
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
