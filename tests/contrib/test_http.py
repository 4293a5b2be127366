"""The router in somebody's application: who may ask, what is answered, what goes wrong."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import Engine, create_engine

from alembic_partitions import keep, maintenance
from alembic_partitions.contrib.http import JobRecord, create_app, router
from alembic_partitions.errors import SettingError
from tests.contrib.web import API, TOKEN, Web, engine_for, mounted, web
from tests.databases import Database
from tests.tables import declare, partitions, policy, rows, run

OPEN = ("/healthz", "/readyz", "/health", "/metrics", "/ops/jobs", "/partitions")
LOOKS = ("health", "list", "status", "history")
ORDERS: dict[str, dict[str, Any]] = {
    "maintenance": {"table": "odds"},
    "create": {"table": "odds", "count": 5},
    "analyze": {"table": "odds"},
    "vacuum": {"table": "odds"},
    "cleanup": {"table": "odds"},
}


@pytest.fixture(scope="module")
def shared(module_database: Database) -> Iterator[Engine]:
    """A database with one table, which no test changes."""
    engine = create_engine(module_database.url)
    declare(engine, "odds", policy())
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def site(shared: Engine) -> Iterator[Web]:
    with mounted(shared, gauges={"public.odds": "odds_days"}) as client:
        yield client


@pytest.fixture
def away(module_database: Database) -> Iterator[Web]:
    """The same, with a database that is away."""
    with mounted(create_engine(module_database.url.set(port=1, password="hunter2"))) as client:
        yield client


# -- who may ask ---------------------------------------------------------------------------------------


def test_monitoring_needs_no_token(site: Web) -> None:
    for path in OPEN:
        assert site.get(path).status_code == 200, path
        assert site.ask("HEAD", path).status_code == 200, path
    assert site.get("/healthz").json() == {"ok": True}
    assert site.get("/readyz").json() == {"ok": True, "checks": {"database": "ok"}}
    health = site.get("/health").json()
    assert (health["status"], health["state"]) == ("ok", "HEALTHY")
    assert 2 < health["odds_days"] < 3
    assert "alembic_partitions_up 1.0" in site.get("/metrics").text
    assert "\nodds_days 2." in site.get("/metrics").text


@pytest.mark.parametrize(
    "given", [None, "", "x" * 16, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "токен-токен-токен"]
)
def test_a_missing_or_wrong_token_is_401_and_says_whose(site: Web, given: str | None) -> None:
    asked = [("GET", f"{API}/{name}") for name in (*LOOKS, "jobs/1")]
    for method, path in [*asked, *(("POST", f"{API}/{name}") for name in ORDERS)]:
        # Nothing of the body is read before.
        found = site.ask(method, path, token=given, content=b"{no JSON")
        assert found.status_code == 401
        assert found.headers["WWW-Authenticate"].startswith("Bearer ")
        assert found.json()["code"] == "unauthorized"
        assert found.json()["requestId"] == found.headers["X-Request-ID"]
    assert site.ask("GET", f"{API}/health", basic=TOKEN).status_code == 401, "that is for the page"


def test_the_scheme_is_read_in_any_case(site: Web) -> None:
    assert site.ask("GET", f"{API}/list", headers={"Authorization": f"bearer  {TOKEN}"}).status_code == 200
    for scheme in ("Token", "Basic", "Bearer:"):
        told = {"Authorization": f"{scheme} {TOKEN}"}
        assert site.ask("GET", f"{API}/list", headers=told).status_code == 401


def test_a_token_that_is_not_ascii(shared: Engine) -> None:
    with mounted(shared, token="ключ-ключ-ключ-ключ") as client:
        assert client.get(f"{API}/list", token="ключ-ключ-ключ-ключ").status_code == 200
        assert client.get(f"{API}/list").status_code == 401
    with mounted(shared, token="ключ-ключ-ключ-ключ", open_probes=False) as client:
        assert client.get("/partitions", basic="ключ-ключ-ключ-ключ").status_code == 200


def test_one_setting_closes_monitoring(shared: Engine) -> None:
    with mounted(shared, open_probes=False) as client:
        for path in OPEN:
            assert client.get(path).status_code == 401, path
            assert client.get(path, token=TOKEN).status_code == 200, path
        asked = client.get("/partitions").headers["WWW-Authenticate"]
        assert asked.startswith("Basic "), "so that a browser asks for it"
        assert client.get("/partitions", basic=TOKEN).status_code == 200
        for name in ("jürgen", ""):
            told = {"Authorization": b"Basic " + base64.b64encode(f"{name}:{TOKEN}".encode())}
            assert client.get("/partitions", headers=told).status_code == 200
        assert client.get("/partitions", basic="wrong" * 5).status_code == 401
        broken = {"Authorization": "Basic nonsense!"}
        assert client.get("/partitions", headers=broken).status_code == 401
        assert client.get("/metrics", basic=TOKEN).status_code == 401, "a browser is for the page"


@pytest.mark.parametrize("token", [None, "", "short", " " * 20, "0123456789 abcdef\n"])
def test_it_refuses_to_start_without_a_good_token(shared: Engine, token: str | None) -> None:
    with pytest.raises(SettingError, match="16 characters or more") as caught:
        create_app(shared, token=token)
    assert token is None or len(token) < 3 or token not in str(caught.value)


def test_the_token_and_the_password_are_nowhere_to_be_read(
    away: Web, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = [away.get(path).text for path in (*OPEN, f"{API}/health", "/openapi.json")]
    told += [away.get(f"{API}/list", token=TOKEN + "!").text, repr(vars(away.app))]
    told += [away.post("create", {"table": TOKEN, "count": 1}).text, caplog.text]
    for secret in (TOKEN, "hunter2"):
        assert not [text for text in told if secret in text]


# -- request ids ---------------------------------------------------------------------------------------


def test_a_request_id_is_taken_over_and_is_in_every_response_error_and_log_line(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", policy())
    with mounted(engine) as site:
        _every_line_has_it(site, caplog)


def _every_line_has_it(site: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alembic_partitions")
    for path in (*OPEN, f"{API}/list", f"{API}/nowhere"):
        found = site.get(path, headers={"X-Request-ID": "order-66/a.b"})
        assert found.headers.get("X-Request-ID") == ("order-66/a.b" if "nowhere" not in path else None), path
    failed = site.post("create", {"table": "nobody", "count": 1}, headers={"X-Request-ID": "order-67"})
    assert failed.json()["requestId"] == failed.headers["X-Request-ID"] == "order-67"
    accepted = site.post(
        "create", {"table": "odds", "count": 5, "dryRun": False}, headers={"X-Request-ID": "order-68"}
    )
    assert site.finished(accepted)["startedBy"] == "order-68"
    lines = [record for record in caplog.records if record.name == "alembic_partitions"]
    assert len(lines) >= 5, "began, three partitions, done"
    assert {getattr(line, "request_id", None) for line in lines} == {"order-68"}
    assert all(line.getMessage().endswith("[request order-68]") for line in lines)


@pytest.mark.parametrize("odd", ["", "a" * 129, "a b", "x\x7f", "<script>", '"', "ü"])
def test_an_odd_request_id_is_not_taken_over(site: Web, odd: str) -> None:
    found = site.get("/healthz", headers={"X-Request-ID": odd.encode()})
    assert found.headers["X-Request-ID"] != odd
    assert len(found.headers["X-Request-ID"]) == 16


def test_nothing_is_kept_by_a_cache_or_let_in_from_elsewhere(site: Web) -> None:
    for found in (*map(site.get, OPEN), site.get(f"{API}/list"), site.get(f"{API}/list", token="")):
        assert found.headers["Cache-Control"] == "no-store"
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in found.headers
    found = site.get("/partitions")
    assert "default-src 'none'" in found.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in found.headers["Content-Security-Policy"]
    assert found.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "public.odds" in found.text.replace("<wbr>", "")


# -- in somebody's application -------------------------------------------------------------------------


def test_the_users_own_routes_stay_as_they_are(shared: Engine) -> None:
    app = FastAPI()

    @app.get("/own/{number}")
    async def own(number: int) -> int:
        raise HTTPException(409, "mine")

    app.include_router(router(shared, token=TOKEN), prefix="/ops")
    with web(app) as client:
        assert client.get("/own/1").json() == {"detail": "mine"}
        assert "detail" in client.get("/own/x").json()
        assert client.get("/own/1").headers.keys().isdisjoint({"x-request-id", "cache-control"})
        assert client.get("/ops/nowhere").json() == {"detail": "Not Found"}
        ours = client.get("/ops/api/v1/partitions/list?limit=0", token=TOKEN)
        assert (ours.status_code, ours.json()["code"]) == (422, "invalid")
        assert client.get("/ops/healthz").status_code == 200


def test_a_job_is_found_where_the_router_is_mounted(engine: Engine) -> None:
    declare(engine, "odds", policy())
    app, below = FastAPI(), FastAPI()
    below.include_router(router(engine, token=TOKEN), prefix="/ops")
    app.mount("/site", below)
    with web(app) as client:
        found = client.ask(
            "POST",
            "/site/ops/api/v1/partitions/analyze",
            token=TOKEN,
            json={"table": "odds", "dryRun": False},
        )
        assert found.headers["Location"].startswith("/site/ops/api/v1/partitions/jobs/")
        while client.get(found.headers["Location"], token=TOKEN).json()["status"] == "running":
            pass


def test_another_method_is_405_in_our_words(site: Web) -> None:
    found = site.ask("PUT", f"{API}/list", token=TOKEN, headers={"X-Request-ID": "r-1"})
    assert (found.status_code, found.headers["Allow"]) == (405, "GET")
    assert found.json() == {
        "error": "There is no such method here.",
        "code": "method_not_allowed",
        "requestId": "r-1",
    }


def test_an_application_of_its_own_answers_everything_in_our_words(
    shared: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with web(create_app(shared, token=TOKEN)) as client:
        found = client.get("/nowhere", headers={"X-Request-ID": "r-2"})
        assert (found.status_code, found.headers["X-Request-ID"]) == (404, "r-2")
        assert found.json() == {"error": "Not Found", "code": "not_found", "requestId": "r-2"}
        assert client.get("/healthz", headers={"X-Request-ID": "r-3"}).headers["X-Request-ID"] == "r-3"
        for path, status in (("/openapi.json", 200), ("/healthz/", 307)):
            found = client.get(path, headers={"X-Request-ID": "r-4"})
            assert (found.status_code, found.headers.get_list("X-Request-ID")) == (status, ["r-4"])
        assert client.get("/docs").status_code == 404
        caplog.set_level(logging.INFO, "alembic_partitions")
        client.get("/forged%0Aline")
        assert "GET /forged%0Aline: 404 in " in caplog.text


def test_what_nobody_expected_is_500_without_details_and_logged_without_secrets(
    site: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **options: object) -> maintenance.View:
        raise RuntimeError(f"bug at postgresql://me:hunter2@there/ with {TOKEN}")

    monkeypatch.setattr(maintenance, "past_runs", broken)
    found = site.get(f"{API}/history", headers={"X-Request-ID": "r-4"})
    assert found.status_code == 500
    assert found.json() == {
        "error": "This failed; the log says why, under this request id.",
        "code": "internal",
        "requestId": "r-4",
    }
    assert "Traceback" in caplog.text
    assert "RuntimeError: bug at postgresql://me:***@there/ with ***" in caplog.text
    assert "[request r-4]" in caplog.text


def test_the_openapi_says_what_needs_the_token_and_keeps_its_names(shared: Engine) -> None:
    with web(create_app(shared, token=TOKEN)) as client:
        told = client.get("/openapi.json").json()
    with web(create_app(shared, token=TOKEN, open_probes=False)) as client:
        closed = client.get("/openapi.json").json()
    operations = {o["operationId"]: o for path in told["paths"].values() for o in path.values()}
    assert {name for name, operation in operations.items() if operation.get("security")} == {
        "getPartitionHealth",
        "listPartitions",
        "getPartitionStatus",
        "getPartitionHistory",
        "getPartitionJob",
        "maintainPartitions",
        "createPartitions",
        "analyzePartitions",
        "vacuumPartitions",
        "cleanUpPartitions",
    }
    assert operations.keys() == {o["operationId"] for path in closed["paths"].values() for o in path.values()}
    assert all(operation["security"] for path in closed["paths"].values() for operation in path.values())
    assert told["components"]["securitySchemes"]["bearerToken"]["scheme"] == "bearer"


# -- what there is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_what_there_is_is_told_on_any_engine(engine: Engine, database: Database, driver: str) -> None:
    declare(engine, "odds", policy(retention="90 days"))
    declare(engine, "results", policy())
    with mounted(engine_for(database, driver), gauges={"odds": "odds_days"}) as client:
        health = client.get(f"{API}/health").json()
        assert (health["status"], health["ok"], health["level"]) == ("HEALTHY", True, "OK")
        assert [table["table"] for table in health["tables"]] == ["public.odds", "public.results"]
        assert health["lastRun"] is None
        assert health["noPartitionErrors"] is None

        listed = client.get(f"{API}/list?limit=3&offset=2").json()
        assert (listed["total"], listed["limit"], listed["offset"]) == (8, 3, 2)
        assert [part["name"] for part in listed["partitions"]][:2] == partitions(engine)[2:4]
        assert client.get(f"{API}/list?table=results").json()["total"] == 4

        (status,) = client.get(f"{API}/status?table=public.odds").json()["tables"]
        assert status["policy"]["retention"] == "90 days"
        assert status["policy"]["onExpiry"] == "detach"
        assert status["partitionCount"] == 4
        assert status["bytes"] > 0

        job = client.done("maintenance", {"table": "odds", "retentionDays": 30})
        assert (job["status"], job["error"]) == ("done", None)
        (run,) = client.get(f"{API}/history?table=odds").json()["runs"]
        assert (run["action"], run["error"]) == ("maintain", None)
        assert client.get(f"{API}/history?failed=true").json()["runs"] == []
        assert client.get(f"{API}/health").json()["lastRun"]["id"] == run["id"]
        (listed_job,) = client.get("/ops/jobs").json()
        assert listed_job.keys() == {"job_name", "last_run_at", "duration_ms", "status", "error_snippet"}
        assert (listed_job["job_name"], listed_job["status"]) == ("maintain", "ok")
        assert client.get("/readyz").json()["ok"] is True
        assert "alembic_partitions_up 1.0" in client.get("/metrics").text
        assert "\nodds_days 2." in client.get("/metrics").text
        assert client.get("/partitions").status_code == 200


def test_a_table_without_partitions_fails_health_but_not_readiness(engine: Engine) -> None:
    declare(engine, "odds", policy())
    with engine.begin() as connection:
        for name in partitions(engine):
            connection.exec_driver_sql(f"DROP TABLE {name}")
    with mounted(keep(engine)) as client:
        found = client.get("/health")
        assert (found.status_code, found.json()["status"]) == (503, "failing")
        assert found.json()["state"] == "NO_PARTITIONS"
        told = client.get(f"{API}/health")
        assert (told.status_code, told.json()["status"], told.json()["ok"]) == (200, "NO_PARTITIONS", False)
        assert told.json()["noPartitionErrors"] == {}
        assert client.get("/readyz").status_code == 200


def test_metrics_of_the_application_are_shown_too(shared: Engine) -> None:
    registry = CollectorRegistry()
    Counter("bets", "Bets taken.", registry=registry).inc(3)
    with mounted(shared, registry=registry) as client:
        assert "\nbets_total 3.0" in client.get("/metrics").text


def test_jobs_of_the_application_are_listed_too(shared: Engine) -> None:
    def own() -> list[JobRecord]:
        at = datetime(2026, 4, 5, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
        error = f"cannot log in as {TOKEN} at postgresql://me:hunter2@there/\nSELECT secret" + "x" * 300
        return [
            JobRecord(job_name="odds", last_run_at=at, duration_ms=5, status="failed", error_snippet=error)
        ]

    with mounted(shared, jobs=own) as client:
        (job,) = client.get("/ops/jobs").json()
        assert job["error_snippet"] == "cannot log in as *** at postgresql://me:***@there/"
        assert job["last_run_at"] == "2026-04-05T03:30:00Z"

    def broken() -> list[JobRecord]:
        raise RuntimeError

    with mounted(shared, jobs=broken) as client:
        assert client.get("/ops/jobs").json() == []


# -- what is asked for wrongly -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "body", "said"),
    [
        ("maintenance", {"dryrun": False}, "dryrun: there is no such field"),
        ("maintenance", {"dry_run": False}, "dry_run: there is no such field"),
        ("maintenance", {"dryRun": "false"}, "dryRun: Input should be a valid boolean"),
        ("maintenance", {"dryRun": 0}, "dryRun: Input should be a valid boolean"),
        ("maintenance", {"retentionDays": 0}, "retentionDays: "),
        ("maintenance", {"table": ""}, "table: "),
        ("maintenance", {"table": "a\0b"}, "table: "),
        ("create", {"table": "odds", "monthsAhead": -1}, "monthsAhead: "),
        ("create", {"table": "odds", "monthsAhead": 121}, "monthsAhead: "),
        ("create", {"table": "odds", "monthsAhead": 10**30}, "monthsAhead: "),
        ("create", {"table": "odds", "monthsAhead": 1.5}, "monthsAhead: "),
        ("create", {"table": "odds", "monthsAhead": "3"}, "monthsAhead: "),
        ("create", {"table": "odds"}, "say how far ahead"),
        ("create", {"table": "odds", "monthsAhead": 1, "count": 1}, "say how far ahead"),
        ("create", {"monthsAhead": 1}, "table: it is missing"),
        ("create", {"table": "odds", "monthsAhead": 120}, "more than 400 windows at once"),
        ("cleanup", {"table": "odds", "retention": "soon"}, "retention: "),
        ("cleanup", {"table": "odds", "retention": "3 hours"}, "shorter than one window"),
        ("cleanup", {"table": "odds", "retentionDays": 9, "retentionMonths": 1}, "one of them"),
    ],
)
def test_a_wrong_body_is_422_and_says_what_is_wrong(
    site: Web, shared: Engine, what: str, body: dict[str, Any], said: str
) -> None:
    before = partitions(shared)
    for more in ({}, {"dryRun": False}):
        found = site.post(what, {**more, **body}, headers={"X-Request-ID": "r-5"})
        assert found.status_code == 422, found.text
        assert said in found.json()["error"]
        assert found.json()["requestId"] == "r-5"
    assert partitions(shared) == before
    assert rows(shared, "SELECT * FROM partition_runs") == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"1", b"\xff\xfe", b"[" * 100_000, b'{"table": "\\ud800"}']
)
def test_a_body_that_is_no_json_object_is_422(site: Web, content: bytes) -> None:
    told = {"Content-Type": "application/json"}
    found = site.ask("POST", f"{API}/create", token=TOKEN, content=content, headers=told)
    assert (found.status_code, found.json()["code"]) == (422, "invalid")


def test_a_wrong_query_is_422(site: Web) -> None:
    for query in ("limit=0", "limit=1001", "offset=-1", "limit=x", "table=%00"):
        assert site.get(f"{API}/list?{query}").json()["code"] == "invalid", query
    assert site.get(f"{API}/history?limit=501").status_code == 422


def test_a_table_that_is_not_managed_is_404(site: Web) -> None:
    for what, body in ORDERS.items():
        for dry_run in (True, False):
            found = site.post(what, {**body, "table": "nobody", "dryRun": dry_run})
            assert (found.status_code, found.json()["code"]) == (404, "not_managed"), what
            assert "nobody" in found.json()["error"]
    for what in ("list", "status", "history"):
        assert site.get(f"{API}/{what}?table=nobody").status_code == 404


def test_a_partition_that_is_not_there_is_404(site: Web) -> None:
    for what in ("analyze", "vacuum"):
        found = site.post(what, {"table": "odds", "partition": "odds_1999"})
        assert (found.status_code, found.json()["code"]) == (404, "no_partition")
    found = site.get(f"{API}/jobs/none")
    assert (found.status_code, found.json()["code"]) == (404, "no_job")


def test_one_retention_for_many_tables_is_refused(engine: Engine) -> None:
    declare(engine, "odds", policy())
    declare(engine, "results", policy())
    with mounted(engine) as client:
        found = client.post("maintenance", {"retentionDays": 30})
    assert (found.status_code, found.json()["code"]) == (422, "policy")
    assert "2 tables at once" in found.json()["error"]


def test_a_name_of_two_tables_with_one_order_for_both_is_422(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA other")
    declare(engine, "odds", policy())
    declare(engine, "odds", policy(), schema="other")
    with mounted(engine) as client:
        for what in ("maintenance", "cleanup"):
            for dry_run in (True, False):
                order = {"table": "odds", "retentionDays": 30, "dryRun": dry_run}
                found = client.post(what, order)
                assert (found.status_code, found.json()["code"]) == (422, "policy")
                assert "Say schema.name" in found.json()["error"]
            assert client.post(what, {"table": "other.odds", "retentionDays": 30}).status_code == 200


# -- a database that is away ---------------------------------------------------------------------------


def test_a_database_that_is_away_is_503_and_the_process_lives(away: Web) -> None:
    assert away.get("/healthz").json() == {"ok": True}
    ready = away.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"ok": False, "checks": {"database": "failed"}})
    health = away.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "failing")
    assert "alembic_partitions_up 0.0" in away.get("/metrics").text
    page = away.get("/partitions")
    assert (page.status_code, page.headers["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert page.headers["X-Request-ID"] in page.text
    for found in (
        *(away.get(f"{API}/{what}") for what in LOOKS),
        *(away.post(what, {**body, "dryRun": dry}) for what, body in ORDERS.items() for dry in (True, False)),
        away.get("/ops/jobs"),
    ):
        assert found.status_code == 503
        assert json.loads(found.text) == {
            "error": "The database cannot be reached, or refuses to answer.",
            "code": "database_unavailable",
            "requestId": found.headers["X-Request-ID"],
        }


def test_an_asynchronous_driver_says_the_same(module_database: Database) -> None:
    gone = Database(module_database.url.set(port=1), module_database.server_version)
    with mounted(engine_for(gone, "asyncpg")) as client:
        assert client.get(f"{API}/list").json()["code"] == "database_unavailable"
        assert client.get("/readyz").status_code == 503
        assert client.post("analyze", {"table": "odds", "dryRun": False}).status_code == 503
        assert "alembic_partitions_up 0.0" in client.get("/metrics").text
