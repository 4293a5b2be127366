"""``python examples/sensor_events/demo.py [URL]``: the run-book, by command, on a scratch database."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO

EXAMPLES = Path(__file__).resolve().parents[1]
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from runbook import RunBook  # noqa: E402


def main(url: str | None = None, *, out: IO[str] | None = None) -> int:
    """Run the demo on a scratch database at ``url``, or on an embedded server; return an exit code."""
    began = time.perf_counter()
    days = os.environ.get("EVENTS_RETENTION_DAYS", "90")
    with (
        tempfile.TemporaryDirectory() as folder,
        scratch.database(
            "sensor_events_demo",
            url,
            EVENTS_RETENTION_DAYS=days,
            TEXTFILE=str(Path(folder, "sensor_events.prom")),
            COLUMNS="120",
        ),
    ):
        book = Fleet(datetime.now(timezone.utc), out)
        book.neglect(int(days))
        book.fail()
        book.fix()
        book.maintain(int(days))
        book.look()
        book.wait()
    return book.end(time.perf_counter() - began)


class Fleet(RunBook):
    """The fleet's run-book: neglected, failed, fixed, maintained."""

    def __init__(self, now: datetime, out: IO[str] | None) -> None:
        super().__init__(out)
        self._now = now

    def neglect(self, retention: int) -> None:
        """Leave the table as the story has it: with a past, and with nothing for today."""
        self.say("1  A month ago the last migration ran. Nobody has made a partition since.\n")
        then = f"ALEMBIC_PARTITIONS_NOW={self._at(-31)}"
        self.run(f"{then} alembic-partitions upgrade head -c sensor_events/alembic.ini", only="Running")
        before = f"--from {self._day(-retention - 3)} --to {self._day(-32)}"
        self.run(f"{then} alembic-partitions repair --table events {before}", only="made")
        for day in (-retention - 1, -45, -1):
            self.record(day, only="recorded")

    def fail(self) -> None:
        self.say("\n2  Today every insert fails\n")
        self.record(0, code=1)
        self.run('cat "$TEXTFILE"', only="^events.*(total|days)")
        self.run("alembic-partitions check --table events", code=2)

    def fix(self) -> None:
        self.say("\n3  One command\n")
        self.run("alembic-partitions repair --table events --days 30", only="made|proof")
        self.record(0)
        self.run("alembic-partitions check --table events")

    def maintain(self, retention: int) -> None:
        self.say("\n4  Retention: rehearsed, done, undone\n")
        command = 'alembic-partitions maintain --table events --retention-days "$EVENTS_RETENTION_DAYS"'
        self.run(f"{command} --dry-run", only="^-- detach")
        self.run(command, only="detached")
        kept = f"events_{self._now + timedelta(days=-retention - 1):%Y_%m_%d}"
        self.run(f"alembic-partitions restore --table events {kept}")

    def look(self) -> None:
        self.say("\n5  What there is, and what was done\n")
        self.run("alembic-partitions status --table events")
        held = r"^PARTITION|B +[1-9]\d* "
        self.run("alembic-partitions status --table events --partitions --rows", only=held)
        self.run("alembic-partitions history --table events")

    def wait(self) -> None:
        self.say("\n6  If nobody came back: in 24 days, and in 30\n")
        for days, code in ((24, 1), (30, 2)):
            when = f"ALEMBIC_PARTITIONS_NOW={self._at(days)}"
            self.run(f"{when} alembic-partitions check --table events", code=code)

    def record(self, day: int, *, code: int = 0, only: str = "") -> None:
        feed = f"python -m sensor_events.feed --first {self._day(day)}"
        self.run(f'{feed} | python -m sensor_events.recorder --metrics "$TEXTFILE"', code=code, only=only)

    def _day(self, days: int) -> str:
        return f"{self._now + timedelta(days=days):%Y-%m-%d}"

    def _at(self, days: int) -> str:
        return f"{self._day(days)}T05:00Z"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
