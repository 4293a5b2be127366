"""Work outside the request: what a dry run says is what is done, one job at a time, nothing half done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from alembic_partitions import executor, locks, maintenance
from alembic_partitions.contrib import calls
from alembic_partitions.contrib.http import jobs, looks, probes
from alembic_partitions.maintenance import creating, ensuring
from alembic_partitions.plan import CreatePartition
from tests.apps import days_from_now
from tests.contrib.web import API, Web, engine_for, mounted
from tests.databases import Database
from tests.tables import catalog, declare, operations, partitions, policy, rows, run, scalar


@pytest.fixture(params=["psycopg2", "asyncpg"])
def site(request: pytest.FixtureRequest, engine: Engine, database: Database) -> Iterator[Web]:
    declare(engine, "odds", policy(retention="30 days", max_drops=2))
    with mounted(engine_for(database, request.param)) as client:
        yield client


def make_old(engine: Engine) -> list[str]:
    """Make partitions that are long past their retention."""
    before = set(partitions(engine))
    with operations(engine) as op:
        op.create_partitions("odds", days_from_now(-64), days_from_now(-60.5))
    return sorted(set(partitions(engine)) - before)


# -- what it does --------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_is_done_then(site: Web, engine: Engine) -> None:
    old = make_old(engine)
    orders: dict[str, dict[str, Any]] = {
        "create": {"table": "odds", "daysAhead": 4},
        "analyze": {"table": "public.odds"},
        "vacuum": {"table": "odds", "partition": partitions(engine)[-1]},
        "cleanup": {"table": "odds", "retention": "20 days"},
        "maintenance": {},
    }
    before = catalog(engine)
    told = {what: site.post(what, body).json() for what, body in orders.items()}
    assert catalog(engine) == before
    assert rows(engine, "SELECT * FROM partition_runs") == []
    scripts = {what: "".join(s["sql"] for s in answer["statements"]) for what, answer in told.items()}
    assert all(answer["dryRun"] is True for answer in told.values())

    made = site.done("create", orders["create"])
    assert made["counts"]["created"] == 2
    assert scripts["create"].count("CREATE TABLE") == 2
    assert len(made["progress"]) == 2

    analyzed = site.done("analyze", orders["analyze"])
    assert (
        analyzed["counts"]["tended"]
        == len(partitions(engine)) + 1
        == scripts["analyze"].count("ANALYZE ") + 2
    )
    vacuumed = site.done("vacuum", orders["vacuum"])
    assert vacuumed["counts"]["tended"] == scripts["vacuum"].count("VACUUM ") == 1

    cleaned = site.done("cleanup", orders["cleanup"])
    assert (cleaned["status"], cleaned["counts"]["detached"]) == ("done", 2), "no more than max_drops"
    assert scripts["cleanup"].count("DETACH PARTITION") == 2
    assert "CREATE TABLE" not in scripts["cleanup"] + scripts["vacuum"]
    assert not set(old[:2]) & set(partitions(engine))
    assert set(old[2:]) <= set(partitions(engine))

    maintained = site.done("maintenance", {})
    assert (maintained["status"], maintained["counts"]["detached"]) == ("done", 2)
    told_of = [run["action"] for run in site.get(f"{API}/history").json()["runs"]]
    assert told_of == ["maintain", "cleanup", "vacuum", "analyze", "create"]
    assert {job["job_name"] for job in site.get("/ops/jobs").json()} == set(told_of)


def test_months_and_windows_ahead(engine: Engine) -> None:
    rules = policy(interval="month", premake=1, lookback=0)
    declare(engine, "odds", rules)
    with mounted(engine) as site:
        assert site.done("create", {"table": "odds", "count": 3})["counts"]["created"] == 2
        assert site.done("create", {"table": "odds", "count": 3})["counts"]["created"] == 0
        # As someone asks for them, max_ahead does not matter.
        assert site.done("create", {"table": "odds", "monthsAhead": 24})["counts"]["created"] == 21
    assert len(partitions(engine)) == 25


def test_a_disabled_table_is_refused(engine: Engine) -> None:
    declare(engine, "odds", policy())
    run(engine, "UPDATE partition_config SET enabled = false")
    with mounted(engine) as site:
        for what, more in (("create", {"count": 1}), ("maintenance", {}), ("cleanup", {})):
            found = site.post(what, {"table": "odds", **more})
            assert (found.status_code, found.json()["code"]) == (422, "policy")
            assert "disabled" in found.json()["error"]
        assert site.done("analyze", {"table": "odds"})["status"] == "done"


@pytest.mark.parametrize("what", ["create", "maintenance", "cleanup", "analyze", "vacuum"])
def test_a_table_that_nothing_can_be_done_to_is_refused_beforehand(engine: Engine, what: str) -> None:
    for name in ("dropped", "other"):
        declare(engine, name, policy())
        run(engine, f"DROP TABLE {name}")
    run(engine, "CREATE TABLE other (id int, at timestamptz) PARTITION BY RANGE (id)")
    more = {"count": 1} if what == "create" else {}
    with mounted(engine) as site:
        for dry_run in (True, False):
            for name, said in (("dropped", "does not exist"), ("public.other", "partitioned by column 'id'")):
                found = site.post(what, {"table": name, "dryRun": dry_run, **more})
                assert (found.status_code, found.json()["code"]) == (422, "policy"), found.text
                assert said in found.json()["error"]
    assert rows(engine, "SELECT * FROM partition_runs") == []


def test_a_job_that_fails_says_why_without_sql(engine: Engine) -> None:
    declare(engine, "odds", policy())
    run(
        engine,
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no more tables, says postgres://me:hunter2@there/'; END $$",
        "CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN TAG IN ('CREATE TABLE')"
        " EXECUTE FUNCTION refuse()",
    )
    with mounted(engine) as site:
        job = site.done("create", {"table": "odds", "count": 5})
        assert job["status"] == "failed"
        assert "no more tables" in job["error"]
        assert "\n" not in job["error"]
        assert "CREATE TABLE" not in job["error"]
        assert "hunter2" not in job["error"]
        (listed,) = site.get("/ops/jobs").json()
        assert listed["status"] == "failed"
        assert "no more tables" in listed["error_snippet"]
        assert "hunter2" not in listed["error_snippet"]
        assert site.get(f"{API}/history?failed=true").json()["runs"][0]["action"] == "create"
        assert site.get("/ops/jobs").status_code == site.get("/partitions").status_code == 200
        assert "hunter2" not in site.get("/partitions").text


# -- one at a time -------------------------------------------------------------------------------------


class Gate:
    """Holds a job between two of its steps, until it is let on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.on = threading.Event()
        self._real = ensuring.make

    def __call__(self, *args: Any) -> Iterator[CreatePartition]:
        for made in self._real(*args):
            self.reached.set()
            assert self.on.wait(60)
            yield made


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(executor.creating, "AT_ONCE", 1)  # what goes in one message is one step
    monkeypatch.setattr(creating, "make", made)
    monkeypatch.setattr(ensuring, "make", made)
    yield made
    made.on.set()


CREATE = {"table": "odds", "count": 5, "dryRun": False}


def test_a_second_maintenance_while_one_runs_is_409_here_and_in_another_process(
    engine: Engine, gate: Gate
) -> None:
    declare(engine, "odds", policy())
    with mounted(engine) as site, mounted(engine) as other:
        accepted = site.post("create", CREATE, headers={"X-Request-ID": "first"})
        assert gate.reached.wait(60)
        location = accepted.headers["Location"]
        assert location == f"{API}/jobs/{accepted.json()['jobId']}"
        assert site.get(location).json()["startedBy"] == "first"
        assert other.get(location).status_code == 404, "each process knows its own"
        for what in ("maintenance", "create"):
            body = CREATE if what == "create" else {"dryRun": False}
            found = site.post(what, body, headers={"X-Request-ID": "second"})
            assert (found.status_code, found.json()["code"]) == (409, "busy")
            assert found.json()["jobId"] == accepted.json()["jobId"]
            assert found.json()["requestId"] == "second"
            elsewhere = other.post(what, body)
            assert (elsewhere.status_code, elsewhere.json()["code"]) == (409, "busy")
            assert "jobId" not in elsewhere.json()
            assert "Another run is under way: process " in elsewhere.json()["error"]
        assert site.post("maintenance", {}).status_code == 200, "a dry run is no run"
        running = {job["job_name"]: job["status"] for job in site.get("/ops/jobs").json()}
        assert running == {"create": "running"}
        gate.on.set()
        assert site.finished(accepted)["status"] == "done"
        assert other.finished(other.post("maintenance", {"dryRun": False}))["status"] == "done"


def test_a_run_of_another_program_is_409(site: Web, engine: Engine) -> None:
    with locks.one_run(engine, "public"):
        found = site.post("maintenance", {"dryRun": False})
        assert (found.status_code, found.json()["code"]) == (409, "busy")
    assert site.done("maintenance", {})["status"] == "done"


def test_no_more_jobs_are_remembered_than_fifty(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_MOST_JOBS", 2)
    declare(engine, "odds", policy())
    with mounted(engine) as site:
        first = site.post("create", CREATE)
        site.finished(first)
        for _ in range(2):
            site.done("create", CREATE)
        assert site.get(first.headers["Location"]).status_code == 404


# -- the database, or the process, ends in the middle --------------------------------------------------


def test_a_database_that_goes_away_in_the_middle_leaves_nothing_half_done(
    site: Web, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = executor.creating.create_partition, []

    def create_partition(side: Connection, step: CreatePartition, **kw: Any) -> bool:
        made.append(step.name)
        if len(made) == 2:
            run(
                engine,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        return real(side, step, **kw)

    monkeypatch.setattr(executor.creating, "AT_ONCE", 1)
    monkeypatch.setattr(executor.creating, "create_partition", create_partition)
    before = partitions(engine)
    job = site.done("create", {"table": "odds", "count": 5})
    assert job["status"] == "failed"
    assert "\n" not in job["error"]
    assert "INSERT" not in job["error"]
    assert partitions(engine) == sorted([*before, made[0]])
    leftovers = scalar(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds%' AND relkind = 'r'")
    assert leftovers == len(partitions(engine))
    # The next one goes on from there.
    monkeypatch.undo()
    assert site.done("create", {"table": "odds", "count": 5})["counts"]["created"] == 2


def test_the_end_of_the_process_waits_for_the_step_and_leaves_the_rest(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    real = executor.creating.create_partition

    def slowly(*args: Any, **options: Any) -> bool:
        time.sleep(0.02)  # or it could be over between two looks at it
        return real(*args, **options)

    monkeypatch.setattr(executor.creating, "AT_ONCE", 1)
    monkeypatch.setattr(executor.creating, "create_partition", slowly)
    for driver in ("psycopg2", "asyncpg"):
        before = len(partitions(engine))
        with mounted(engine_for(database, driver)) as site:
            accepted = site.post("create", {"table": "odds", "count": 50, "dryRun": False})
            give_up_at = time.monotonic() + 60
            while not (job := site.get(accepted.headers["Location"]).json())["progress"]:
                assert (job["status"], time.monotonic() < give_up_at) == ("running", True), job
        assert before < len(partitions(engine)) < 53
        names = scalar(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds_2%' AND relkind = 'r'")
        assert names == len(partitions(engine))


def test_a_job_that_nobody_waits_for_any_more_does_not_begin(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    monkeypatch.setattr(jobs, "PATIENCE", 0.05)
    go, real = threading.Event(), maintenance.plan_ahead

    def slow(*args: Any, **options: Any) -> Any:
        assert go.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(maintenance, "plan_ahead", slow)
    before = partitions(engine)
    with mounted(engine) as site:
        assert site.post("create", CREATE).status_code == 503
        found = site.post("create", CREATE)
        assert (found.status_code, "jobId" in found.json()) == (409, False)
        go.set()
        monkeypatch.setattr(jobs, "PATIENCE", 60)
        while site.post("analyze", {"table": "odds", "dryRun": False}).status_code == 409:
            site.run(asyncio.sleep(0.01))
        assert partitions(engine) == before


def test_one_that_hangs_before_it_began_keeps_no_other_away_for_good(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    go, asked, real = threading.Event(), [], maintenance.plan_ahead

    def hang(*args: Any, **options: Any) -> Any:
        asked.append("plan")
        if len(asked) == 1:
            assert go.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(maintenance, "plan_ahead", hang)
    with mounted(engine) as site:
        with monkeypatch.context() as impatient:
            impatient.setattr(jobs, "PATIENCE", 0.05)
            assert site.post("create", CREATE).status_code == 503
        assert site.post("create", CREATE).status_code == 409, "it may be slow"
        with monkeypatch.context() as given_up:
            given_up.setattr(calls, "PATIENCE", 0.0)
            accepted = site.post("create", CREATE)
        assert site.finished(accepted)["counts"]["created"] == 3
        go.set()
        # What was given up comes back, takes the lock for a moment, and finds that nobody waits for it.
        accepted = site.post("create", CREATE)
        while accepted.status_code == 409:
            time.sleep(0.05)
            accepted = site.post("create", CREATE)
        assert site.finished(accepted)["status"] == "done"
    made = rows(engine, "SELECT created FROM partition_runs WHERE action = 'create' ORDER BY id")
    assert made == [(3,), (0,)]


@pytest.mark.parametrize("what", ["create", "maintenance"])
def test_a_job_whose_lock_is_lost_ends_before_its_next_step(engine: Engine, gate: Gate, what: str) -> None:
    declare(engine, "odds", policy())
    run(engine, "UPDATE partition_config SET premake = 9")
    before = len(partitions(engine))
    with mounted(engine) as site:
        accepted = site.post(what, CREATE if what == "create" else {"dryRun": False})
        assert gate.reached.wait(60)
        run(
            engine,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'alembic-partitions lock%'",
        )
        gate.on.set()
        job = site.finished(accepted)
    assert job["status"] == "failed"
    assert "was lost" in job["error"]
    assert len(job["progress"]) == 1
    assert len(partitions(engine)) == before + 1
    assert [bool(error) for (error,) in rows(engine, "SELECT error FROM partition_runs")] == [True]


def test_a_name_with_a_line_break_is_one_line_of_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "alembic_partitions")
    declare(engine, "odds\nINFO forged", policy())
    with mounted(engine) as site:
        told = site.done("maintenance", {})["progress"]
    assert told
    assert all("odds\\nINFO forged" in line for line in told)
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


# -- checks of the application -------------------------------------------------------------------------


def test_checks_of_the_application_decide_readiness(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def fine() -> None:
        await asyncio.sleep(0)

    async def refused() -> None:
        raise ConnectionError("redis://me:hunter2@there")

    with mounted(
        engine,
        checks={
            "fine": fine,
            "sync": lambda: None,
            "lazy": lambda: fine(),  # noqa: PLW0108  # no coroutine function
            "refused": refused,
            "false": lambda: False,
            "zero": lambda: 0,
        },
    ) as site:
        found = site.get("/readyz")
        assert found.status_code == 503
        assert found.json() == {
            "ok": False,
            "checks": {
                "database": "ok",
                "fine": "ok",
                "sync": "ok",
                "lazy": "ok",
                "refused": "failed",
                "false": "failed",
                "zero": "ok",
            },
        }
    assert "the check 'refused' failed: ConnectionError" in caplog.text
    assert "hunter2" not in caplog.text + found.text


def test_a_check_that_hangs_is_failed_and_piles_nothing_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CHECK_PATIENCE", 0.2)
    go, begun = threading.Event(), []

    def hang() -> None:
        begun.append("sync")
        go.wait(60)

    async def hang_too() -> None:
        begun.append("async")
        await asyncio.sleep(3600)

    with mounted(engine, checks={"sync": hang, "async": hang_too}) as site:
        for _ in range(3):
            told = site.get("/readyz").json()["checks"]
            assert (told["sync"], told["async"]) == ("failed", "failed")
        assert begun.count("sync") == 1, "its thread is still there"
        assert begun.count("async") >= 2, "it was ended"
        with monkeypatch.context() as given_up:
            given_up.setattr(calls, "PATIENCE", 0.01)
            assert site.get("/readyz").json()["checks"]["sync"] == "failed"
        assert begun.count("sync") == 2, "in the end it is asked anew"
        assert site.get("/healthz").status_code == 200
        go.set()
        give_up_at = time.monotonic() + 60
        while (ready := site.get("/readyz").json())["checks"]["sync"] == "failed":
            assert time.monotonic() < give_up_at, ready
            time.sleep(0.01)


def test_a_database_that_does_not_answer_holds_nobody_up(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, asked = threading.Event(), []

    def hang(*args: object, **options: object) -> maintenance.View:
        asked.append("look")
        assert go.wait(60)
        return maintenance.View()

    monkeypatch.setattr(maintenance, "look", hang)
    monkeypatch.setattr(looks, "PATIENCE", 0.1)
    monkeypatch.setattr(probes, "SCRAPE_PATIENCE", 0.1)
    with mounted(engine) as site:
        for _ in range(2):
            assert site.get(f"{API}/list").json()["code"] == "database_unavailable"
            assert site.get("/health").json()["status"] == "failing"
            assert "alembic_partitions_up 0.0" in site.get("/metrics").text
            assert site.get("/partitions").status_code == 503
        assert asked == ["look"]
        go.set()
        while site.get(f"{API}/list").status_code != 200:
            time.sleep(0.01)
