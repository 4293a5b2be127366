"""What a fault strikes: tables, a project, writers; what a verb finds to do, and what must hold after it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import NullPool, create_engine

from alembic_partitions import nz_racing_day
from alembic_partitions.maintenance import NOW_VARIABLE
from tests.postgres import Server
from tests.projects import Project
from tests.tables import declare, rows, run, scalar
from tests.torture import killing
from tests.torture.killing import DRAINED, DROPPED, KEPT, Ledger, Shared

PATIENCE = 60  # seconds; only a run that hangs gets there
WRITERS = 4
AUCKLAND = ZoneInfo("Pacific/Auckland")
#: With a round a verb the days go by, and the clocks change twice.
BEGIN = datetime(2026, 3, 20, 0, 37, 11, tzinfo=timezone.utc)
PREMAKE, RETENTION, GRACE = 4, 5, 1

VERBS = {
    "ensure": ["ensure"],
    "maintain": ["maintain", "--trust-clock"],
    "repair": ["repair", "--batch", "40", "--table", DRAINED],
    "upgrade": ["upgrade", "head"],
}
HALF_MADE = {
    "an invalid index": "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid",
    "a pending detach": "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhdetachpending",
    "a mark of work under way": "SELECT objoid::regclass::text FROM pg_description"
    " WHERE description ~ '^alembic_partitions: (detaching|draining)'",
    "an orphan": f"SELECT c.relname FROM pg_class c WHERE relkind = 'r' AND NOT relispartition"
    " AND relnamespace = 'public'::regnamespace AND relname NOT IN"
    " ('partition_config', 'partition_runs', 'alembic_version', 'put_away') AND NOT"
    f" (relname ~ '^({KEPT}|{DROPPED})_[0-9]{{4}}_[0-9]{{2}}_[0-9]{{2}}_detached$'"
    " AND obj_description(c.oid, 'pg_class') LIKE 'alembic_partitions: detached %')",
    "a left CHECK": "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'c'"
    f" AND conrelid::regclass::text ~ '^({KEPT}|{DROPPED}|{DRAINED}|m[0-9])'",
    "a window off its day": "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = inhrelid,"
    " CAST(to_date(right(c.relname, 10), 'YYYY_MM_DD') AS timestamp) day"
    f" WHERE inhparent IN ('{KEPT}'::regclass, '{DROPPED}'::regclass) AND pg_get_expr(relpartbound, c.oid)"
    " <> format('FOR VALUES FROM (%L) TO (%L)', day AT TIME ZONE 'Pacific/Auckland',"
    " (day + interval '1 day') AT TIME ZONE 'Pacific/Auckland')",
}
DAYS = (
    "SELECT to_date(right(c.relname, 10), 'YYYY_MM_DD') FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
    " WHERE inhparent = CAST(:table AS regclass) ORDER BY 1"
)
HELD = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory'"
    " AND pid <> pg_backend_pid()"
)


@dataclass
class World:
    """Tables, a project that migrates them, writers at work, and the simulated day."""

    server: Server
    folder: Path
    project: Project
    ledger: Ledger = field(default_factory=Ledger)
    migrations: int = 0
    strays: int = 0
    checked: int = 0
    """The rows found by the last look."""
    last: Run | None = None

    def __post_init__(self) -> None:
        self.fork = multiprocessing.get_context("fork")
        self.url = self.server.url.render_as_string(hide_password=False)
        self.engine = create_engine(self.server.url, poolclass=NullPool)
        now = BEGIN.timestamp()
        # Without a lock: whoever is killed while he holds one would keep it from everybody for ever.
        value = self.fork.RawValue
        self.shared = Shared(value("d", now), value("i", 0), value("i", 0), value("i", 0), value("d", now))
        self.writers: list[Any] = [None] * WRITERS
        self.generations = Counter[int]()

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.shared.now.value, timezone.utc)

    def begin(self) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(NOW_VARIABLE, self.now.isoformat())
            common = {"premake": PREMAKE, "lookback": 1, "max_drops": 1000}
            for table, fate in ((KEPT, "detach"), (DROPPED, "drop")):
                rules = {"retention": f"{RETENTION} days", "on_expiry": fate, "grace": f"{GRACE} day"}
                declare(self.engine, table, nz_racing_day("at", **common, **rules))
            declare(self.engine, DRAINED, nz_racing_day("at", premake=1, lookback=1))
        run(
            self.engine,
            f"CREATE TABLE {DRAINED}_rest PARTITION OF {DRAINED} DEFAULT",
            "CREATE TABLE put_away (at timestamptz, note text)",
        )
        for number in range(WRITERS):
            self.write(number)

    def write(self, number: int) -> None:
        """Start a writer, in place of the one before."""
        name = f"writer-{number}-{self.generations[number]}"
        self.generations[number] += 1
        self.writers[number] = self.fork.Process(
            target=killing.write, args=(self.url, number, self.shared, self.folder / name), daemon=True
        )
        self.writers[number].start()

    def end(self) -> None:
        """Kill whoever is left: what was forked holds the server's lifeline, too."""
        for process in (*self.writers, self.last and self.last.process):
            if process is not None:
                process.kill()
        for writer in self.writers:
            if writer is not None:
                writer.join()

    # -- what a verb finds to do -----------------------------------------------------------------------

    def forward(self, days: int) -> None:
        self.shared.now.value += days * 86400

    def prepare(self, verb: str, days: int) -> None:
        if verb == "ensure":
            self.forward(days)
        elif verb == "maintain":
            self.forward(3)
        elif verb == "repair":
            self._strand()
        else:
            self._add_migrations()

    def _strand(self) -> None:
        """Leave rows of three days in the DEFAULT partition: two that move at once, and one in batches."""
        self.strays += 1
        first = BEGIN - timedelta(days=30 + 3 * self.strays)
        for day, count in enumerate((10, 150, 30)):
            at = first + timedelta(days=day)
            run(
                self.engine,
                f"INSERT INTO {DRAINED} (at, note) SELECT '{at.isoformat()}'::timestamptz"
                f" + i * interval '1 min', 'stray:{self.strays}:{day}:' || i"
                f" FROM generate_series(1, {count}) i",
            )
        self.shared.stray.value = (first + timedelta(days=1, hours=8)).timestamp()

    def _add_migrations(self) -> None:
        self.migrations += 1
        table, before = f"m{self.migrations}", f"m{self.migrations - 2}"
        self.project.add(
            f"""
            op.create_partitioned_table(
                "{table}",
                sa.Column("at", sa.DateTime(timezone=True), nullable=False),
                sa.Column("note", sa.Text),
                policy=PartitionPolicy("at", timezone="Pacific/Auckland", premake=6, lookback=1),
            )
            op.execute("INSERT INTO {table} VALUES ('{self.now.isoformat()}', 'migrated')")
            """
            + (f'op.drop_partitioned_table("{before}")' if self.migrations > 2 else "")
        )
        self.project.add(f'op.create_partitioned_index("{table}_note", "{table}", ["note"])')

    # -- what must hold when the next run is through ---------------------------------------------------

    def check(self, verb: str) -> None:
        self.nothing_is_held()
        for what, query in HALF_MADE.items():
            assert rows(self.engine, query) == [], f"{what} is left"
        today = self.now.astimezone(AUCKLAND).date()
        for table in (KEPT, DROPPED):
            days = [day for (day,) in rows(self.engine, DAYS, table=table)]
            assert len(days) == (days[-1] - days[0]).days + 1, f"a gap: {days}"
            assert days[0] <= today - timedelta(days=1)
            assert days[-1] == today + timedelta(days=PREMAKE)
            if verb == "maintain":
                assert days[0] == today - timedelta(days=RETENTION)
        if verb == "repair":
            assert scalar(self.engine, f"SELECT count(*) FROM ONLY {DRAINED}_rest") == 0
        if verb == "upgrade":
            head, table = self.project.revisions[-1], f"m{self.migrations}"
            assert rows(self.engine, "SELECT version_num FROM alembic_version") == [(head,)]
            assert rows(self.engine, f"SELECT note FROM {table}") == [("migrated",)]
            assert scalar(self.engine, f"SELECT to_regclass('{table}_note')") is not None
        self.nothing_is_lost()
        for number, writer in enumerate(self.writers):
            assert writer.is_alive(), f"writer {number} ended"
        assert self.ledger.trouble == []

    def nothing_is_held(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while scalar(self.engine, HELD):  # a writer's hook may just be at work
            assert time.monotonic() < deadline, "an advisory lock is left"
            time.sleep(0.01)

    def nothing_is_lost(self) -> None:
        self.ledger.read(self.folder)
        told = dict(self.ledger.told)
        found = self._found()
        self.ledger.read(self.folder)
        gone = self.now - timedelta(days=RETENTION + GRACE)
        for row, at in told.items():
            table, note = row
            if table == DROPPED and _ends(at) <= gone:
                del self.ledger.told[row]  # its day may have been dropped
            else:
                assert found[row], f"{table}: {note} at {at} was committed, and is lost"
        sent = self.ledger.sent
        twice = [row for row, count in found.items() if count > sent[row] and not row[1].startswith("stray")]
        assert twice == []
        strays = sum(1 for table, note in found if note.startswith("stray"))
        assert strays == self.strays * 190
        assert sum(n for (_, note), n in found.items() if note.startswith("stray")) == strays
        self.checked = sum(found.values())

    def _found(self) -> Counter[tuple[str, str]]:
        """Every row, wherever it is. What was detached is put away, or it would be hundreds of tables."""
        found: Counter[tuple[str, str]] = Counter()
        for table in (KEPT, DROPPED):
            detached = rows(
                self.engine,
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ :name",
                name=f"^{table}_.*_detached$",
            )
            for (name,) in detached:
                if table == KEPT:
                    run(
                        self.engine,
                        f"BEGIN; INSERT INTO put_away SELECT at, note FROM {name}; DROP TABLE {name}; COMMIT",
                    )
                else:
                    found.update((table, note) for (note,) in rows(self.engine, f"SELECT note FROM {name}"))
            found.update((table, note) for (note,) in rows(self.engine, f"SELECT note FROM {table}"))
        found.update((KEPT, note) for (note,) in rows(self.engine, "SELECT note FROM put_away"))
        found.update((DRAINED, note) for (note,) in rows(self.engine, f"SELECT note FROM {DRAINED}"))
        return found


def _ends(at: datetime) -> datetime:
    """Return the end of the local day."""
    day = at.astimezone(AUCKLAND).date() + timedelta(days=1)
    return datetime(day.year, day.month, day.day, tzinfo=AUCKLAND)


@dataclass
class Run:
    """One run of a verb: in a process forked a moment ago, or by a new interpreter."""

    world: World
    verb: str
    new: bool = False

    def __post_init__(self) -> None:
        world, url = self.world, ["--url", self.world.url]
        shared = world.shared
        shared.statements.value = shared.changes.value = 0
        self.said, world.last = world.folder / "said", self
        arguments = [*VERBS[self.verb], *url]
        self.begun = time.monotonic()
        self.process: Any
        if self.new:
            with self.said.open("w") as said:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "alembic_partitions", *arguments],
                    cwd=world.project.folder,
                    env={**os.environ, NOW_VARIABLE: world.now.isoformat()},
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
        else:
            self.process = world.fork.Process(
                target=killing.work, args=(arguments, shared, world.project.folder, self.said), daemon=True
            )
            self.process.start()

    def is_alive(self) -> bool:
        return bool(self.process.poll() is None if self.new else self.process.is_alive())

    def wait_for_work(self) -> None:
        while not self.new and self.is_alive() and not self.world.shared.statements.value:
            time.sleep(0.001)
        if not self.new:
            self.begun = time.monotonic()

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> int:
        """Wait for it; return its exit code."""
        if self.new:
            return int(self.process.wait(PATIENCE))
        self.process.join(PATIENCE)
        assert not self.process.is_alive(), f"{self.verb} hangs: {self.said.read_text()}"
        return int(self.process.exitcode)

    def succeeds(self) -> float:
        """Wait for its success; return how many seconds it worked."""
        self.wait_for_work()
        code = self.end()
        assert code == 0, f"{self.verb} ended with {code}: {self.said.read_text()}"
        return time.monotonic() - self.begun
