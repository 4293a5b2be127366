"""``alembic-partitions demo``: the whole path in seconds, on a PostgreSQL that is gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import pytz
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, Connection, Engine, Row, create_engine, text

from alembic_partitions import keep
from alembic_partitions.keeper import Keeper

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))  # loaded by its path, from a checkout or from an installed wheel

import scratch  # noqa: E402

from nz_racing import explain, feed, ingest  # noqa: E402

#: The demo plays on this morning. Two nights later New Zealand's clocks go back.
TODAY = datetime(2026, 4, 2, 19, 0, tzinfo=pytz.utc)
NEXT_WEEK = TODAY + timedelta(days=7)
AUTUMN = feed.days_from(date(2026, 4, 3), 4)
SPRING = feed.days_from(date(2026, 9, 26), 2)
LONG_DAY, RUNNER = date(2026, 4, 5), 228630401


def main(url: str | None = None, *, out: IO[str] | None = None) -> int:
    """Run the demo on a scratch database at ``url``, or on an embedded server; return an exit code."""
    console = Console(file=out, highlight=False)
    began = time.perf_counter()
    with scratch.database("nz_racing_demo", url, ALEMBIC_PARTITIONS_NOW=TODAY.isoformat()) as database:
        code = _show(database, console)
    console.print(f"\nDone and cleaned up, {time.perf_counter() - began:.1f} s in all.")
    return code


def _show(database: URL, console: Console) -> int:
    console.print("It is Friday 3 April 2026, 08:00 in New Zealand. On Sunday the clocks go back.")
    code = _migrate(console)
    if code:
        return code
    engine = create_engine(database)
    try:
        keeper = keep(engine)
        failed = _ingest(engine, console)
        with engine.connect() as connection:
            connection.execute(text("SET TimeZone = 'Pacific/Auckland'"))
            _look(connection, console)
            _wait_a_week(keeper, connection, console)
    finally:
        engine.dispose()
    return 1 if failed else 0


def _migrate(console: Console) -> int:
    _title(console, "1  alembic-partitions upgrade head")
    command = [sys.executable, "-m", "alembic_partitions", "upgrade", "head", "-c", str(HERE / "alembic.ini")]
    # Not in a folder of the user's, where `python -m` would find an alembic/ of theirs.
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=HERE)
    _lines(console, (done.stdout + done.stderr).splitlines())
    return done.returncode


def _ingest(engine: Engine, console: Console) -> int:
    _title(console, "2  Ingest six New Zealand days; nothing in it knows of partitions")
    failed = 0
    for days, what in ((AUTUMN, "their partitions stand ready"), (SPRING, "made as the rows arrive")):
        report = ingest.ingest(engine, days)
        failed += report.failed
        _lines(console, [f"{days[0]:%d %B} to {days[-1]:%d %B}, {what}:", f"  {report}"])
    return failed


def _look(connection: Connection, console: Console) -> None:
    _title(console, "3  Each row is in the partition of its New Zealand day")
    _table(console, explain.landed(connection))
    _table(console, connection.execute(explain.RESULTS_LANDED).all())

    _title(console, "4  A runner's prices on the day of 25 hours: one partition, by its index")
    _lines(console, explain.explain(connection, explain.latest_prices(RUNNER, LONG_DAY)))


def _wait_a_week(keeper: Keeper, connection: Connection, console: Console) -> None:
    _title(console, "5  What stands ready, and a week later")
    _lines(console, _horizon(connection, TODAY))
    connection.commit()

    os.environ["ALEMBIC_PARTITIONS_NOW"] = NEXT_WEEK.isoformat()
    began = time.perf_counter()
    report = keeper.ensure()
    took = (time.perf_counter() - began) * 1000
    _lines(console, [f"A week later: {ingest.told_of(report, took)}"])
    _lines(console, _horizon(connection, NEXT_WEEK))


def _horizon(connection: Connection, now: datetime) -> Iterator[str]:
    for history in explain.reach(connection, now):
        reach = f"{history.partitions:>2} partitions, ready until {history.until:%d %B %Y %H:%M}"
        yield f"{history.history:<20} {reach}: {(history.until - now).days} days"


def _title(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")


def _lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _table(console: Console, rows: Sequence[Row[Any]]) -> None:
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False)
    for name in rows[0]._fields:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
