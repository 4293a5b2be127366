"""The odds service (examples/deploy) as it is deployed: its processes, its Redis, and whom it alerts."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, NullPool, create_engine

from tests.databases import Database
from tests.tables import declare, policy, rows, run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

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
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.messages.append(json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *told: object) -> None:
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

    def get(self, path: str, replica: int = 0, headers: dict[str, str] | None = None) -> httpx.Response:
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


@contextmanager
def deployment(database: Database, image: Path) -> Iterator[Deployed]:
    """Start it: two schedulers on an empty database, then three replicas at once."""
    engine = create_engine(database.url, poolclass=NullPool)
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as redis,
        receiver() as alerts,
        Machine(Path(folder), service=image, **environment(database)) as machine,
    ):
        machine.environment |= {"REDIS_URL": redis.url, "ALERT_URLS": f"json://127.0.0.1:{alerts.port}/"}
        schedulers = [machine.start(f"scheduler{number}", "scheduler") for number in (1, 2)]
        for process in schedulers:
            process.wait_for("waiting until somebody has migrated")
        assert rows(engine, "SELECT * FROM pg_tables WHERE schemaname = 'public'") == []
        replicas = [machine.replica(f"web{number}") for number in (1, 2, 3)]
        addresses = [address(replica) for replica in replicas]
        clients = [httpx.Client(base_url=found, timeout=PATIENCE) for found in addresses]
        for process in schedulers:
            process.wait_for("started: refresh_odds")
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
