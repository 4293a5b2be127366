"""The acceptance list of the Docker-first odds service, end to end on its own example (examples/deploy).

What runs is what the Dockerfile puts into the image, by its own scripts: three replicas that start at once on
an empty database, and two schedulers that were there before them. They run while the tests look.
"""

from __future__ import annotations

import io
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from alembic_partitions.locks import UpgradeLock
from tests.databases import Database, Databases
from tests.examples.image import build
from tests.examples.odds_service import (
    EXAMPLES,
    OPERATE,
    WRITE,
    Deployed,
    deployment,
    environment,
    until,
)
from tests.tables import rows, run, scalar

from deploy import demo, scheduler  # isort: skip  # where the examples are is known by now
from deploy.jobs import Jobs  # isort: skip
from deploy.processes import Machine, Process, address  # isort: skip
from deploy.service import Service  # isort: skip


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The image's /app/deploy, as far as it is ours."""
    with tempfile.TemporaryDirectory() as folder:
        yield build(EXAMPLES / "deploy", Path(folder))


@pytest.fixture(scope="module")
def deployed(module_database: Database, image: Path) -> Iterator[Deployed]:
    with deployment(module_database, image) as up:
        yield up


# -- an entrypoint that migrates under an advisory lock, then starts Gunicorn; several replicas --------------


def test_of_three_replicas_that_start_at_once_one_migrates_and_all_come_up(deployed: Deployed) -> None:
    migrated = [replica.name for replica in deployed.replicas if "Running upgrade  -> 0001" in replica.said]
    assert len(migrated) == 1
    assert [client.get("/healthz").status_code for client in deployed.clients] == [200, 200, 200]
    assert scalar(deployed.engine, "SELECT version_num FROM alembic_version") == "0002"


def test_the_first_process_of_a_replica_is_gunicorn_itself_with_two_workers(deployed: Deployed) -> None:
    for replica in deployed.replicas:
        assert b"gunicorn" in Path(f"/proc/{replica.pid}/cmdline").read_bytes()
        assert len(set(re.findall(r"Application startup complete", replica.said))) == 1
        assert len(re.findall(r"Booting worker with pid", replica.said)) == 2


def test_each_worker_of_an_application_that_was_loaded_before_the_fork_writes_and_keeps_partitions(
    deployed: Deployed,
) -> None:
    beyond_the_horizon = datetime.now(timezone.utc) + timedelta(days=20)
    days = iter(range(300))

    def both() -> bool:
        observed = (beyond_the_horizon + timedelta(days=next(days))).isoformat()
        # A connection of its own: it may be the other worker's.
        kept = deployed.offer(selectionId=20, observedAt=observed, headers={**WRITE, "Connection": "close"})
        assert kept.status_code == 201, kept.text
        wrote = re.findall(r"INFO (\d+) \[\w+\] deploy.logs: POST /odds 201", deployed.replicas[0].said)
        return len(set(wrote)) == 2

    until(both, "a price by each worker")


@pytest.mark.parametrize(
    ("spoilt", "settings", "line"),
    [
        (
            "CREATE TABLE odds (mine int)",
            {},
            'alembic-partitions: revision 0001: relation "odds" already exists',
        ),
        ("SELECT 1", {"ODDS_TOKEN": "short"}, "ODDS_TOKEN: a token of 16 characters or more is needed"),
        ("SELECT 1", {"DATABASE_URL_FILE": "/none"}, "entrypoint: DATABASE_URL_FILE=/none cannot be read"),
    ],
    ids=["a table in the way", "no token", "no secret"],
)
def test_what_fails_at_the_start_ends_the_container_with_one_clear_line(
    engine: Engine,
    database: Database,
    image: Path,
    tmp_path: Path,
    spoilt: str,
    settings: dict[str, str],
    line: str,
) -> None:
    run(engine, spoilt)
    with Machine(tmp_path, service=image, **environment(database, **settings)) as machine:
        replica = machine.replica("web")
        assert replica.wait() not in (0, None)
    assert line in replica.said.splitlines()
    assert "Traceback" not in replica.said
    assert "Listening at" not in replica.said


def test_sigterm_while_a_replica_waits_to_migrate_ends_that_too_and_nothing_is_migrated_later(
    engine: Engine, database: Database, image: Path, tmp_path: Path
) -> None:
    lock = UpgradeLock(engine, "alembic_version", None)
    assert lock.take()
    try:
        with Machine(tmp_path, service=image, **environment(database)) as machine:
            replica = machine.replica("web")
            replica.wait_for("waiting for the migration lock")
            assert replica.terminate() == 128 + signal.SIGTERM
            with pytest.raises(ProcessLookupError):  # of its session nobody is left who could migrate
                os.killpg(replica.pid, 0)
    finally:
        lock.let_go()
    assert rows(engine, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []


def test_any_other_command_runs_with_the_secrets_that_lie_in_files(
    deployed: Deployed, tmp_path: Path
) -> None:
    secret = tmp_path / "database_url"
    secret.write_text(deployed.machine.environment["DATABASE_URL"] + "\n")
    elsewhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/", "DATABASE_URL_FILE": str(secret)}
    done = deployed.machine.run(
        "entrypoint.sh", "alembic-partitions", "check", "--table", "odds", "--warn-days", "7", **elsewhere
    )
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "OK"), done.stderr


# -- a standalone scheduler that never migrates and runs each job once across processes ----------------------


def test_a_scheduler_that_nobody_migrates_for_gives_up_with_one_clear_line_and_has_migrated_nothing(
    engine: Engine, database: Database, image: Path, tmp_path: Path
) -> None:
    settings = environment(database, SCHEMA_TIMEOUT="0 s")
    with Machine(tmp_path, service=image, **settings) as machine:
        process = machine.start("scheduler", "scheduler")
        assert process.wait() == 75
    told = process.said.splitlines()
    assert len(told) == 1
    assert told[0].endswith(
        "deploy.scheduler: gave up after 0 s: the database is not at this image's revision; "
        "the web replicas migrate, or migrate.sh"
    )
    assert rows(engine, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []


def test_two_schedulers_run_each_slot_of_a_job_once_between_them(deployed: Deployed) -> None:
    begun = "SELECT FROM job_runs WHERE job_name = 'refresh_odds'"
    finished = f"{begun} AND finished_at IS NOT NULL"
    until(lambda: len(rows(deployed.engine, finished)) >= 4, "four runs")
    least = len(rows(deployed.engine, finished))
    until(lambda: ran_by(deployed.schedulers) >= least, "a line for each run")
    assert ran_by(deployed.schedulers) <= len(rows(deployed.engine, begun))


def ran_by(processes: list[Process]) -> int:
    return sum(process.said.count("deploy.jobs: refresh_odds: ") for process in processes)


def test_where_there_is_a_scheduler_the_replicas_run_no_jobs(deployed: Deployed) -> None:
    until(lambda: rows(deployed.engine, "SELECT FROM job_runs"), "a run")
    by = {int(who.rpartition(":")[2]) for (who,) in rows(deployed.engine, "SELECT run_by FROM job_runs")}
    assert by <= {process.pid for process in deployed.schedulers}
    assert ran_by(deployed.replicas) == 0
    assert not any("partition schedule started" in replica.said for replica in deployed.replicas)


def test_without_one_the_workers_of_a_replica_run_them_each_slot_once(
    engine: Engine, database: Database, image: Path, tmp_path: Path, deployed: Deployed
) -> None:
    settings = environment(
        database, SCHEDULER_STANDALONE="0", REFRESH_EVERY="1 s", REDIS_URL=deployed.redis.url
    )
    with Machine(tmp_path, service=image, **settings) as machine:
        replica = machine.replica("web")
        address(replica)
        finished = "SELECT run_by FROM job_runs WHERE status = 'ok'"
        until(lambda: len(rows(engine, finished)) >= 2, "two runs")
        replica.wait_for("partition run done")
        assert replica.terminate() == 0, "it ends in peace"
    by = {int(who.rpartition(":")[2]) for (who,) in rows(engine, finished)}
    assert by <= {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", replica.said)}
    assert ran_by([replica]) == len(rows(engine, finished))
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'") == 1


def test_the_health_check_of_the_scheduler_tells_whether_jobs_are_run(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: rows(deployed.engine, "SELECT FROM job_runs WHERE status = 'ok'"), "a run")
    told = deployed.machine.run("entrypoint.sh", "scheduler", "--check", REFRESH_EVERY="1 h")
    assert (told.returncode, told.stdout) == (0, "on time\n")
    for name, value in deployed.machine.environment.items():
        monkeypatch.setenv(name, value)
    service = Service.from_environment()
    service.jobs = Jobs(service.engine, {"settle_bets": lambda: None})
    assert (scheduler.check(service), capsys.readouterr().out) == (1, "overdue: settle_bets\n")
    service.stop()


def test_the_health_check_of_the_image_asks_for_the_role_that_runs(deployed: Deployed) -> None:
    def check(process: int, **settings: str) -> tuple[int, str]:
        told = deployed.machine.run("healthcheck.sh", str(process), **settings)
        return told.returncode, told.stdout

    until(lambda: rows(deployed.engine, "SELECT FROM job_runs WHERE status = 'ok'"), "a run")
    scheduler, web = deployed.schedulers[0].pid, deployed.replicas[0].pid
    bind = str(deployed.clients[0].base_url).removeprefix("http://").rstrip("/")
    assert check(scheduler, REFRESH_EVERY="1 h", BIND="127.0.0.1:1") == (0, "on time\n")
    assert check(scheduler, REFRESH_EVERY="0 s")[0] == 1
    assert check(web, BIND=bind) == (0, "")
    assert check(web, BIND="127.0.0.1:1")[0] == 1
    assert check(os.getpid(), BIND="127.0.0.1:1") == (0, ""), "a command by hand"


# -- /healthz {"ok": true}; /readyz: the database, and Redis -------------------------------------------------


def test_healthz_says_ok_true(deployed: Deployed) -> None:
    found = deployed.get("/healthz")
    assert (found.status_code, found.json()) == (200, {"ok": True})


def test_readyz_asks_the_database_and_redis_and_prices_are_served_without_redis(deployed: Deployed) -> None:
    assert deployed.get("/readyz").json() == {"ok": True, "checks": {"database": "ok", "redis": "ok"}}
    deployed.offer(selectionId=30)
    deployed.redis.stop()
    try:
        found = deployed.get("/readyz")
        assert (found.status_code, found.json()["checks"]) == (503, {"database": "ok", "redis": "failed"})
        assert deployed.get("/healthz").status_code == 200
        assert deployed.get("/odds/30").json()["price"] == "3.40"
        assert deployed.offer(selectionId=30, price="3.60").status_code == 201
        failed = until(
            lambda: [job for job in jobs_of(deployed) if job["status"] == "failed"], "a failed job"
        )
        assert (
            "redis" in failed[0]["error_snippet"].lower() or "connect" in failed[0]["error_snippet"].lower()
        )
    finally:
        deployed.redis.start()
    assert deployed.get("/readyz").status_code == 200


def jobs_of(deployed: Deployed) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployed.get("/ops/jobs").json()
    return found


# -- /ops/jobs: job_name, last_run_at, duration_ms, status, error_snippet ------------------------------------


def test_ops_jobs_lists_partition_runs_and_the_services_own_job(deployed: Deployed) -> None:
    found = until(
        lambda: jobs if {"maintain", "refresh_odds"} <= (jobs := by_name(deployed)).keys() else None, "both"
    )
    assert {tuple(job) for job in found.values()} == {
        ("job_name", "last_run_at", "duration_ms", "status", "error_snippet")
    }
    ours = until(lambda: ok_run(by_name(deployed)["refresh_odds"]), "a run that is done")
    assert all(job["last_run_at"].endswith("Z") for job in found.values()), "of all in UTC"
    begun = datetime.fromisoformat(ours["last_run_at"].replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - begun) < timedelta(minutes=5)
    assert ours["duration_ms"] >= 0


def by_name(deployed: Deployed) -> dict[str, dict[str, Any]]:
    return {job["job_name"]: job for job in jobs_of(deployed)}


def ok_run(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["status"] == "ok" and job["error_snippet"] is None else None


# -- request ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/odds/7", "/odds/nonsense", "/readyz", "/api/v1/partitions/list", "/none"])
def test_a_request_id_goes_in_comes_out_and_is_in_the_log(deployed: Deployed, path: str) -> None:
    number = f"asked-for{path.replace('/', '-')}"
    found = deployed.get(path, headers={"X-Request-ID": number})
    assert found.headers["X-Request-ID"] == number
    if found.status_code >= 400:
        assert found.json()["requestId"] == number
    deployed.replicas[0].wait_for(rf"\[{number}\] deploy.logs: GET {path} {found.status_code} ")


def test_a_request_without_an_id_or_with_an_odd_one_is_given_one(deployed: Deployed) -> None:
    told = [
        deployed.get("/odds/7", headers=headers).headers["X-Request-ID"]
        for headers in ({}, {"X-Request-ID": "a b"}, {"X-Request-ID": "x" * 999})
    ]
    assert len(set(told)) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", number) for number in told)


# -- Cache-Control on the data routes ------------------------------------------------------------------------


def test_prices_may_be_cached_for_seconds_and_nothing_else_may_be_kept(deployed: Deployed) -> None:
    kept = deployed.offer(selectionId=40)
    assert (kept.status_code, kept.headers["Cache-Control"]) == (201, "no-store")
    for path in ("/odds/40", "/odds/40/history"):
        assert deployed.get(path).headers["Cache-Control"] == "public, max-age=5"
    for path in ("/odds/41", "/odds/0", "/healthz", "/ops/jobs"):
        assert deployed.get(path).headers["Cache-Control"] == "no-store", path
    assert deployed.offer(headers={}).headers["Cache-Control"] == "no-store"


def test_a_new_price_is_read_at_once_from_every_replica(deployed: Deployed) -> None:
    for number, price in enumerate(("2.10", "2.20", "2.30")):
        assert deployed.offer(replica=number, selectionId=50, price=price).json()["price"] == price
        assert [deployed.get("/odds/50", replica).json()["price"] for replica in range(3)] == [price] * 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"headers": {}}, 401),
        ({"headers": OPERATE}, 401),
        ({"price": "0.5"}, 422),
        ({"more": 1}, 422),
        ({"bookmaker": "a\0b"}, 422),
        ({"bookmaker": "a\nb"}, 422),
        ({"observedAt": "2126-01-01T00:00:00Z"}, 422),
    ],
)
def test_what_is_no_price_or_not_from_the_feed_is_refused_with_a_clear_status(
    deployed: Deployed, wrong: dict[str, Any], says: int
) -> None:
    found = deployed.offer(**wrong)
    assert (found.status_code, sorted(found.json())) == (says, ["error", "requestId"])


# -- a manual migrate and a smoke script ---------------------------------------------------------------------


def test_the_migrate_script_goes_up_down_and_up_again(
    engine: Engine, database: Database, image: Path, tmp_path: Path
) -> None:
    machine = Machine(tmp_path, service=image, **environment(database))
    at = "SELECT version_num FROM alembic_version"
    for arguments, revision in (((), "0002"), (("downgrade", "0001"), "0001"), (("head",), "0002")):
        done = machine.run("migrate.sh", *arguments)
        assert (done.returncode, scalar(engine, at)) == (0, revision), done.stderr


def test_the_smoke_script_says_that_all_is_well(deployed: Deployed) -> None:
    done = deployed.machine.run("smoke.sh", str(deployed.clients[2].base_url))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"All is well at {str(deployed.clients[2].base_url).rstrip('/')}."
    assert done.stdout.count("ok ") == 9


def test_the_smoke_script_ends_with_1_at_the_first_thing_that_is_not_well(deployed: Deployed) -> None:
    address = str(deployed.clients[0].base_url)
    done = deployed.machine.run("smoke.sh", address, ODDS_TOKEN="a-token-that-is-wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("FAIL  a price goes in: status 401, expected 201")
    done = deployed.machine.run("smoke.sh", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "FAIL  it lives: no answer" in done.stderr


# -- alerts: at most one in 10 s, and one per problem in 10 min ----------------------------------------------


def test_of_two_schedulers_one_tells_of_a_problem_once_and_of_the_next_one_ten_seconds_later(
    deployed: Deployed,
) -> None:
    for name in ("tips", "results"):
        until(lambda name=name: deployed.alerts.about(f"public.{name}"), f"an alert about {name}")  # type: ignore[misc]
    for name in ("tips", "results"):
        told = [message["message"] for message in deployed.alerts.about(f"public.{name}")]
        assert len(told) == 1, deployed.alerts.messages
        assert "the DEFAULT partition holds rows" in told[0]
    claimed = rows(
        deployed.engine, "SELECT started_at FROM partition_runs WHERE action = 'alert' ORDER BY started_at"
    )
    assert claimed[1][0] - claimed[0][0] >= timedelta(seconds=10)


def test_by_then_partitions_have_been_maintained_once_by_one_of_the_schedulers(deployed: Deployed) -> None:
    done = until(lambda: [s for s in deployed.schedulers if "partition run done" in s.said], "a run")
    assert len(done) == 1
    assert all("partition schedule started" in process.said for process in deployed.schedulers)
    assert scalar(deployed.engine, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'") == 1


# Last: for while the database is away, each process tells for itself what there is to tell.
def test_readyz_fails_while_the_database_is_away_and_all_is_well_when_it_is_back(
    deployed: Deployed, databases: Databases, module_database: Database
) -> None:
    name = module_database.name
    with databases.admin() as admin:
        admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            admin.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            )
            found = deployed.get("/readyz", replica=1)
            assert (found.status_code, found.json()["checks"]["database"]) == (503, "failed")
            assert deployed.get("/healthz", replica=1).status_code == 200
            refused = deployed.offer(replica=1)
            assert (refused.status_code, refused.json()["error"]) == (503, "the database does not answer")
        finally:
            admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert deployed.get("/readyz", replica=1).status_code == 200
    assert deployed.offer(replica=1).status_code == 201


def test_the_demo_ends_as_it_should(databases: Databases) -> None:
    told = io.StringIO()
    assert demo.main(databases.server.render_as_string(hide_password=False), out=told) == 0, told.getvalue()
