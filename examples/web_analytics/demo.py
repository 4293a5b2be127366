"""``python examples/web_analytics/demo.py [URL]``: the service and its operators, on a scratch database."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

EXAMPLES = Path(__file__).resolve().parents[1]
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from sqlalchemy import URL, NullPool, create_engine  # noqa: E402
from sqlalchemy.exc import DBAPIError  # noqa: E402

from web_analytics import feed, serving  # noqa: E402

API = "/api/v1/partitions"


def main(url: str | None = None, *, out: IO[str] | None = None) -> int:
    """Run the demo on a scratch database at ``url``, or on an embedded server; return an exit code."""
    began = time.perf_counter()
    token = secrets.token_hex(16)
    own = {"PARTITION_DATABASE_URL": None, "ENABLE_PARTITION_MAINTENANCE": None}
    with (
        tempfile.TemporaryDirectory() as folder,
        scratch.database("web_analytics_demo", url, PARTITION_API_TOKEN=token, COLUMNS="120", **own) as made,
    ):
        told = Teller(out or sys.stdout, made, token)
        told.say("1  One migration, and the service\n")
        told.migrate("alembic-partitions upgrade head -c web_analytics/alembic.ini")
        with serving.service(Path(folder, "service.log")) as address:
            told.address = address
            visit(told)
            look(told)
            set_retention(told)
            clean(told)
        roll_back(told)
    told.say(f"\nDone and cleaned up, {time.perf_counter() - began:.1f} s in all.")
    for line in told.surprises:
        told.say(f"This ended otherwise than it should: {line}")
    return 1 if told.surprises else 0


def visit(told: Teller) -> None:
    """Send a year's events: what months they need is made as they come."""
    now = datetime.now(timezone.utc)
    for back in range(11, -1, -1):
        day = now - timedelta(days=30 * back)
        told.ask("POST", "/events", feed.visits(day - timedelta(days=1), day, 240), code=201, quiet=back > 0)
    told.ask("GET", "/events/count?site=shop.example&having=plan:pro")


def look(told: Teller) -> None:
    told.say("\n2  What there is: over HTTP with the token, and in psql\n")
    told.ask("GET", f"{API}/health", only=("status", "ok", "level"))
    told.sql("SELECT table_name, status, runway_days, partitions FROM partition_health_summary()")
    told.ask("POST", f"{API}/analyze", {"table": "events", "dryRun": False}, code=202)
    told.sql(
        "SELECT partition_name, rows_estimate, bytes, last_analyze::date FROM partition_metadata"
        " WHERE table_name = 'events' AND rows_estimate > 0 LIMIT 4"
    )


def set_retention(told: Teller) -> None:
    told.say("\n3  Keep six months, not twelve: in psql, under the names that people know\n")
    told.sql("UPDATE partition_settings SET retention_months = 0 WHERE table_name = 'events'", fails=True)
    told.sql("UPDATE partition_settings SET retention_months = 6 WHERE table_name = 'events'")
    told.sql("TABLE partition_settings")


def clean(told: Teller) -> None:
    told.say("\n4  Clean up: rehearsed, then done\n")
    told.ask("GET", f"{API}/health", only=("status", "ok", "level"))
    told.ask("POST", f"{API}/cleanup", {"table": "events"}, scripts="^-- detach")
    told.ask("POST", f"{API}/cleanup", {"table": "events", "dryRun": False}, code=202, progress=True)
    told.ask("GET", f"{API}/health", only=("status", "ok", "level"))


def roll_back(told: Teller) -> None:
    told.say("\n5  And back: without our functions and settings, then without partitions; every row stays\n")
    told.sql("SELECT count(*) FROM events")
    told.migrate("alembic -c web_analytics/alembic.ini downgrade 0002")
    told.sql("SELECT count(*) FROM events")
    told.migrate("alembic -c web_analytics/alembic.ini -n way_back upgrade head")
    told.sql("SELECT count(*), (SELECT relkind FROM pg_class WHERE relname = 'events') FROM events")


class Teller:
    """Does what it says: requests, SQL and commands, each with its answer."""

    def __init__(self, out: IO[str], database: URL, token: str) -> None:
        self._out = out
        self._engine = create_engine(database, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._token = token
        self._opener = build_opener(ProxyHandler({}))
        self.address = ""
        self.surprises: list[str] = []

    def say(self, line: str) -> None:
        print(line, file=self._out)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        code: int = 200,
        only: Sequence[str] = (),
        scripts: str = "",
        progress: bool = False,
        quiet: bool = False,
    ) -> None:
        """Send a request, and show it with its answer.

        :param code: the status it should have.
        :param only: show these keys alone.
        :param scripts: of the statements of a dry run show the lines that match.
        :param progress: wait for the job, and show what it tells.
        """
        status, answer = self._send(method, path, body)
        line = f"{method} {path}"
        if status != code:
            self.surprises.append(line)
        if quiet:
            return
        sent = "" if body is None else f" {_short(body)}"
        self.say(f"{line}{sent}")
        if scripts:
            lines = [found for item in answer["statements"] for found in item["sql"].splitlines()]
            for found in filter(re.compile(scripts).search, lines):
                self.say(f"    {found}")
            return
        shown = {key: answer[key] for key in only} if only else answer
        self.say(f"    {status} {json.dumps(shown)}{' ...' if only else ''}")
        if status == 202:
            job = self._finished(answer["jobId"])
            for told in job["progress"] if progress else ():
                self.say(f"    {told}")
            if job["status"] != "done":
                self.surprises.append(f"{line}: {job['error']}")

    def sql(self, statement: str, *, fails: bool = False) -> None:
        """Send a statement as a person does in psql, and show it with its answer."""
        self.say(f"=> {statement};")
        refused = None
        try:
            with self._engine.connect() as connection:
                result = connection.exec_driver_sql(statement)
                lines = [f"UPDATE {result.rowcount}"]
                if result.returns_rows:
                    lines = _table(list(result.keys()), result.all())
        except DBAPIError as error:
            refused = str(error.orig).splitlines()[0]
            lines = [f"ERROR:  {refused}"]
        for line in lines:
            self.say(f"    {line}")
        if fails != (refused is not None):
            self.surprises.append(statement)

    def migrate(self, line: str) -> None:
        """Run a command of Alembic's, and show it with the migrations that it runs."""
        done = shell(line)
        self.say(f"$ {line}")
        for told in re.findall("Running (?:up|down)grade.*", done.stderr):
            self.say(f"    {told}")
        if done.returncode:
            self.surprises.append(f"{line}\n{done.stderr}")

    def _send(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = Request(
            f"{self.address}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def _finished(self, job: str) -> Any:
        while True:
            _, answer = self._send("GET", f"{API}/jobs/{job}")
            if answer["status"] != "running":
                return answer
            time.sleep(0.05)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line as a person would who has this Python's commands at hand, in the folder of the examples."""
    python = shlex.quote(sys.executable)
    commands = {"alembic": f"{python} -m alembic", "alembic-partitions": f"{python} -m alembic_partitions"}
    line = re.sub(r"^(alembic|alembic-partitions)(?= )", lambda name: commands[name[1]], line)
    return subprocess.run(line, shell=True, check=False, capture_output=True, text=True, cwd=EXAMPLES)


def _short(body: Any) -> str:
    """Write a body; of many events the first in brief, and how many more."""
    if isinstance(body, list):
        begins = json.dumps({key: body[0][key] for key in ("occurredAt", "eventType")}).rstrip("}")
        return f"[{begins}, ...}}, and {len(body) - 1} more]"
    return json.dumps(body)


def _table(names: Sequence[str], found: Sequence[Sequence[Any]]) -> list[str]:
    cells = [list(names), *([_cell(value) for value in row] for row in found)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
