"""The acceptance list of the Docker-first odds service, end to end on its own example (examples/deploy).

What runs is what the Dockerfile puts into the image, by its own scripts: three replicas that start at once on
an empty database, and two schedulers that were there before them. They run while the tests look.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, NullPool, create_engine

from tests.databases import Database, Databases
from tests.examples.image import build
from tests.tables import declare, policy, rows, run, scalar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from deploy.processes import Machine, Process, address  # noqa: E402
from redis_server import RedisServer, redis_server  # noqa: E402

WRITE = {"Authorization": "Bearer writes-odds-and-nothing-else"}
OPERATE = {"Authorization": "Bearer looks-after-all-partitions"}
#: Seconds between two runs of refresh_odds.
EVERY = 2
PATIENCE = 60


def until(found: Callable[[], Any], what: str) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"this has not come: {what}"
        time.sleep(0.1)
    return value


@dataclass
class Receiver:
    """Whom Apprise tells, by json://; each message with when it came."""

    port: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)

    def about(self, subject: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if subject in message["message"]]


@contextmanager
def receiver() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.messages.append(json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield received
        server.shutdown()


@dataclass
class Deployed:
    """What runs, and all that it needs."""

    machine: Machine
    engine: Engine
    redis: RedisServer
    alerts: Receiver
    schedulers: list[Process]
    replicas: list[Process]
    clients: list[httpx.Client]

    def get(self, path: str, replica: int = 0, **headers: str) -> httpx.Response:
        return self.clients[replica].get(path, headers=headers)

    def offer(self, replica: int = 0, headers: dict[str, str] = WRITE, **price: Any) -> httpx.Response:
        body = {"selectionId": 7, "bookmaker": "tote", "price": "3.40", **price}
        return self.clients[replica].post("/odds", json=body, headers=headers)


def environment(database: Database, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database.url.render_as_string(hide_password=False),
        "ODDS_TOKEN": WRITE["Authorization"].split()[1],
        "ALEMBIC_PARTITIONS_TOKEN": OPERATE["Authorization"].split()[1],
        "SCHEDULER_STANDALONE": "1",
        "REFRESH_EVERY": f"{EVERY} s",
        "ALERT_EVERY": "1 s",
        **more,
    }


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The image's /app/deploy, as far as it is ours."""
    with tempfile.TemporaryDirectory() as folder:
        yield build(EXAMPLES / "deploy", Path(folder))


@pytest.fixture(scope="module")
def deployed(module_database: Database, image: Path) -> Iterator[Deployed]:
    engine = create_engine(module_database.url, poolclass=NullPool)
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as redis,
        receiver() as alerts,
        Machine(Path(folder), service=image, **environment(module_database)) as machine,
        httpx.Client() as plain,
    ):
        machine.environment |= {"REDIS_URL": redis.url, "ALERT_URLS": f"json://127.0.0.1:{alerts.port}/"}
        schedulers = [machine.start(f"scheduler{number}", "scheduler") for number in (1, 2)]
        for scheduler in schedulers:
            scheduler.wait_for("waiting until somebody has migrated")
        assert rows(engine, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
        replicas = [machine.replica(f"web{number}") for number in (1, 2, 3)]
        addresses = [address(replica) for replica in replicas]
        clients = [httpx.Client(base_url=found, timeout=PATIENCE) for found in addresses]
        for scheduler in schedulers:
            scheduler.wait_for("started: refresh_odds")
        up = Deployed(machine, engine, redis, alerts, schedulers, replicas, clients)
        trouble(up)
        yield up
        for client in clients:
            client.close()
    engine.dispose()


def trouble(up: Deployed) -> None:
    """Have two things worth an alert, the second as soon as somebody was told of the first."""
    for name in ("tips", "results"):
        declare(up.engine, name, policy())
        run(up.engine, f"CREATE TABLE {name}_default PARTITION OF {name} DEFAULT")
        run(up.engine, f"INSERT INTO {name} (at) VALUES ('2100-01-01')")
        until(lambda: up.alerts.messages, "an alert")


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
    day = datetime.now(timezone.utc) + timedelta(days=20)  # beyond the horizon, within what an insert may make
    for number in range(8):
        observed = (day + timedelta(days=number)).isoformat()
        assert deployed.offer(selectionId=20, observedAt=observed).status_code == 201
    assert len(deployed.get("/odds/20/history").json()) == 8


@pytest.mark.parametrize(
    ("spoilt", "settings", "line"),
    [
        ("CREATE TABLE odds (mine int)", {}, 'alembic-partitions: revision 0001: relation "odds" already exists'),
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
