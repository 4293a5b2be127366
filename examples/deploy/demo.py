"""``python examples/deploy/demo.py [URL]``: two replicas, a scheduler and a Redis, for some seconds."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

EXAMPLES = Path(__file__).resolve().parents[1]
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from redis_server import RedisServer, redis_server  # noqa: E402

from deploy.processes import Machine, Process, address  # noqa: E402

#: For the length of the demo.
SETTINGS = {
    "SCHEDULER_STANDALONE": "1",
    "REFRESH_EVERY": "1 s",
    "ODDS_TOKEN": "the-feed-has-this-one",
    "ALEMBIC_PARTITIONS_TOKEN": "the-operators-have-this",
}


def main(url: str | None = None, *, out: IO[str] | None = None) -> int:
    """Run the demo on a scratch database at ``url``, or on an embedded server; return an exit code."""
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as redis,
        scratch.database("deploy_demo", url, ALERT_URLS=None, **SETTINGS),
        Machine(Path(folder), REDIS_URL=redis.url) as machine,
    ):
        show = Show(machine, out or sys.stdout)
        show.start()
        show.use()
        show.look()
        show.lose(redis)
        show.rehearse()
        show.smoke()
        show.end()
    show.say(f"\nAll of it ended and cleaned up, {time.perf_counter() - began:.1f} s in all.")
    for line in show.surprises:
        show.say(f"This ended otherwise than it should: {line}")
    return 1 if show.surprises else 0


class Show:
    """What somebody sees who deploys the service, and asks it."""

    def __init__(self, machine: Machine, out: IO[str]) -> None:
        self._machine = machine
        self._out = out
        self.surprises: list[str] = []
        self._processes: list[Process] = []

    def start(self) -> None:
        self.say("1  A scheduler and two replicas start at once, on an empty database\n")
        scheduler = self._machine.start("scheduler", "scheduler")
        replicas = [self._machine.replica(f"web{number}") for number in (1, 2)]
        for number, replica in enumerate(replicas, 1):
            self._machine.environment[f"WEB{number}"] = address(replica)
            replica.wait_for("Application startup complete")
        scheduler.wait_for("partition run done")
        self._processes = [*replicas, scheduler]
        self.tell(replicas[0], "entrypoint.sh web", "lock of", "Running upgrade", "Listening")
        self.tell(replicas[1], "entrypoint.sh web", "lock of", "Running upgrade", "Listening")
        self.tell(scheduler, "entrypoint.sh scheduler", "waiting", "partition run done")

    def use(self) -> None:
        self.say("\n2  A price goes in at one of them, and comes out at the other\n")
        price = '{"selectionId": 7, "bookmaker": "tote", "price": "3.40"}'
        self.run(f"curl -s -X POST $WEB1/odds {_bearer('ODDS_TOKEN')} -d '{price}'", holds='"price":"3.40"')
        self.run(
            "curl -s -i $WEB2/odds/7 -H 'X-Request-ID: what-is-7-paying' | grep -iE '^(cache|x-req)|price'",
            holds="public, max-age=5",
        )
        self._processes[1].wait_for("what-is-7-paying")
        self.tell(self._processes[1], "the log of that replica", "what-is-7-paying")

    def look(self) -> None:
        self.say("\n3  What operators look at\n")
        self.run("curl -s $WEB1/healthz", holds='{"ok":true}')
        self.run("curl -s $WEB1/readyz", holds='"redis":"ok"')
        self.run("curl -s $WEB1/health", holds='"status":"ok"')
        self.run("curl -s $WEB1/metrics | grep ^alembic_partitions_horizon_days", holds='table="odds"')
        self.run("curl -s $WEB1/ops/jobs | python -m json.tool --indent 1", holds='"refresh_odds"')

    def lose(self, redis: RedisServer) -> None:
        self.say("\n4  Redis goes away: nobody is sent here any more, and whoever is gets an answer\n")
        redis.stop()
        self.run("curl -s -w ' %{http_code}' $WEB1/readyz", holds='"redis":"failed"}} 503')
        self.run("curl -s -w ' %{http_code}' $WEB1/odds/7", holds="200")
        redis.start()

    def rehearse(self) -> None:
        self.say("\n5  What two more days would take, asked over HTTP; nothing is done\n")
        create, body = "$WEB1/api/v1/partitions/create", '{"table": "odds", "daysAhead": 16}'
        self.run(f"curl -s -w ' %{{http_code}}' -X POST {create} -d '{body}'", holds="401")
        self.run(
            f"curl -s -X POST {create} {_bearer('ALEMBIC_PARTITIONS_TOKEN')} -d '{body}'"
            " | grep -oE 'ALTER TABLE [^;]+;'",
            holds="ATTACH PARTITION",
        )

    def smoke(self) -> None:
        self.say("\n6  After the deploy\n")
        self.run('./smoke.sh "$WEB2"', holds="All is well")

    def end(self) -> None:
        codes = [process.terminate() for process in self._processes]
        if any(codes):
            self.surprises.append(f"SIGTERM: {codes}")

    def run(self, line: str, *, holds: str) -> None:
        """Run a line in a shell, and show it with what it says, which must hold this."""
        done = subprocess.run(
            line,
            shell=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._machine.service,
            env=self._machine.environment,
        )
        self.say(f"$ {line}")
        self.say(done.stdout.rstrip())
        if holds not in done.stdout:
            self.surprises.append(line)

    def tell(self, process: Process, title: str, *patterns: str) -> None:
        """Show those lines of a log that hold one of these."""
        self.say(f"# {title}")
        for line in process.said.splitlines():
            if any(pattern in line for pattern in patterns):
                self.say(line)

    def say(self, line: str) -> None:
        print(line, file=self._out)


def _bearer(variable: str) -> str:
    return f'-H "Authorization: Bearer ${variable}" -H "Content-Type: application/json"'


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
