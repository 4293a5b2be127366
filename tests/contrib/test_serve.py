"""`alembic-partitions serve`, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, event

from alembic_partitions.cli import connecting, main, serving
from alembic_partitions.cli.door import Call
from tests.contrib.web import API, TOKEN
from tests.databases import Database
from tests.projects import Project
from tests.tables import declare, partitions, policy


@dataclass
class Served:
    """A service, and what it says."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=60, **more)

    def end(self) -> str:
        """Tell it to end, and return all that it said."""
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=60)
        return "".join([*self.said, rest])


@contextmanager
def served(folder: Path, *arguments: str, **variables: str) -> Iterator[Served]:
    names = [name for name in os.environ if name.startswith("ALEMBIC_") or name == "DATABASE_URL"]
    environment = {name: value for name, value in os.environ.items() if name not in names}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "alembic_partitions", "serve", "--port", "0", *arguments],
        cwd=folder,
        env={**environment, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            match = re.search(r"running on (http://[\d.:]+)", line)
            if match:
                yield Served(process, match[1], said)
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.kill()
        process.communicate()


def test_it_serves_and_ends_when_it_is_told_to(engine: Engine, database: Database, tmp_path: Path) -> None:
    declare(engine, "odds", policy())
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    url = database.url.render_as_string(hide_password=False)
    with served(tmp_path, "--token-file", "token", "--url", url, ALEMBIC_PARTITIONS_TOKEN="x" * 20) as site:
        assert site.url.startswith("http://127.0.0.1:")
        assert site.ask("GET", "/healthz").json() == {"ok": True}
        assert site.ask("HEAD", "/readyz").status_code == 200
        assert site.ask("GET", "/health").json()["status"] == "ok"
        assert "alembic_partitions_horizon_days" in site.ask("GET", "/metrics").text
        assert site.ask("GET", f"{API}/list").status_code == 401
        assert (
            site.ask("GET", f"{API}/list", headers={"Authorization": f"Bearer {'x' * 20}"}).status_code == 401
        )
        accepted = site.ask(
            "POST",
            f"{API}/create",
            headers={"Authorization": f"Bearer {TOKEN}", "X-Request-ID": "night-shift"},
            json={"table": "odds", "count": 300, "dryRun": False},
        )
        assert accepted.status_code == 202
        assert "server" not in accepted.headers
        said = site.end()
    assert site.process.returncode == 0, said
    assert TOKEN not in said
    assert "Traceback" not in said
    assert f"POST {API}/create: 202 in " in said
    assert re.search(r"INFO .*job \w+ \(create\) began \[request night-shift\]", said)
    # It was let finish its step, and begin no other.
    assert "the process was stopped before the end" in said
    assert 4 <= len(partitions(engine)) < 304


def test_it_connects_as_env_py_does(engine: Engine, database: Database, tmp_path: Path) -> None:
    declare(engine, "odds", policy())
    project = Project.make(tmp_path, "async", database.driver_url("asyncpg"))
    with served(project.folder, "--closed", ALEMBIC_PARTITIONS_TOKEN=TOKEN) as site:
        assert site.ask("GET", "/healthz").status_code == 401
        told = site.ask("GET", f"{API}/health", headers={"Authorization": f"Bearer {TOKEN}"})
        assert [table["table"] for table in told.json()["tables"]] == ["public.odds"]
        said = site.end()
    assert site.process.returncode == 0, said
    assert "GET /healthz: 401 in " in said, "env.py's own logging silences nothing"


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
@pytest.mark.parametrize("told", ["", "?{}=3"])
def test_a_host_that_does_not_answer_is_given_up(driver: str, told: str) -> None:
    option = "timeout" if driver == "asyncpg" else "connect_timeout"
    engine = connecting.engine_at(Call(), f"postgresql+{driver}://me@host/base{told.format(option)}")
    given: dict[str, Any] = {}

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
        given.update(options)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.raw_connection()
    assert int(given[option]) == (3 if told else 10)
    assert ("tcp_user_timeout" in given) is (driver != "asyncpg"), "nor one that answers no more"


@pytest.mark.parametrize(
    ("told", "complaint"),
    [([], "set ALEMBIC_PARTITIONS_TOKEN"), (["--token-file", "token"], "16 characters or more")],
)
def test_it_refuses_to_start_without_a_good_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serving.TOKEN_VARIABLE, raising=False)
    Path("token").write_text("hush")
    done = CliRunner().invoke(
        main, ["serve", "--url", "postgresql+psycopg2://nobody@localhost:1/none", *told]
    )
    assert done.exit_code == 1
    assert complaint in done.stderr
    assert "hush" not in done.stderr


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code == 1
    assert 'pip install "alembic-partitions[http]"' in done.stderr


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setenv(serving.TOKEN_VARIABLE, TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        url = "postgresql+psycopg2://nobody@localhost:1/none"
        done = CliRunner().invoke(main, ["serve", "--port", port, "--url", url])
    assert done.exit_code == 1
    assert f"it cannot listen at 127.0.0.1, port {port}." in done.stderr
