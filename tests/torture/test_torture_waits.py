"""A writer's wait beside a long transaction, with our runs and without, in turns: nobody waits for us.

Writers insert all the time. Beside them a transaction stays open that holds what a run may want, and on one
side ensure, the insert hook, maintain and repair come again and again, a day going by each time. How long
the writers took is told; asserted is what does not depend on how busy the machine is: that no insert fails,
that nobody queues behind us for long, and that we queue for no ACCESS EXCLUSIVE on the table but where the
plan says so.

TORTURE_OPEN_SECONDS (5) is how long the transaction is open, TORTURE_WAITERS (6) how many write;
TORTURE_OPEN_SECONDS=1 and `-k reader` make it a matter of seconds.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, NullPool, create_engine, text

from alembic_partitions import PartitionPending, PartitionPolicy, maintenance
from alembic_partitions.maintenance import Report
from tests.apps import running
from tests.bench.record import RECORD
from tests.clock import Clock
from tests.databases import Database, Databases
from tests.tables import NOW, columns, declare, operations, run
from tests.torture import writers
from tests.torture.telling import SEED, draws, setting, tell

WIDE = Console(width=150)
OPEN = setting("TORTURE_OPEN_SECONDS", 5)
WRITERS = setting("TORTURE_WAITERS", 6)
AFTER = 1.0  # seconds that all goes on when the long transaction has ended
#: Milliseconds.
BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
#: How long somebody may queue behind us, in seconds: a whole order more than one wait of ours.
BEHIND_US = 1.0
BUDGET = 50  # ms that a writer's longest wait may be longer
REST = 0.02  # seconds between two runs of ours

EVENTS = sa.table("events", sa.column("at", sa.DateTime(timezone=True)), sa.column("site"))

#: What the long transaction has done.
KINDS: Mapping[str, tuple[str, ...]] = {
    "reader": ("SELECT count(*) FROM events",),
    "writer": (f"INSERT INTO events (at, site) VALUES ('{NOW}', 1)",),
    "writer of the referred": ("INSERT INTO sites DEFAULT VALUES",),
    "ANALYZE and COMMENT": ("ANALYZE events", "COMMENT ON TABLE events IS 'all of them'"),
}
#: What each writer sends, in one transaction.
WRITE = [
    "INSERT INTO sites DEFAULT VALUES",
    f"INSERT INTO events (at, site) VALUES ('{NOW}', lastval() - lastval() + 1)",
]
# Whoever is none of these is one of our sessions.
OTHERS = (writers.NAME, "holder", "watcher")
_WAITING = text("""
    WITH waiting AS MATERIALIZED (
      SELECT pid, mode, relation, coalesce(extract(epoch FROM clock_timestamp() - waitstart), 0) AS seconds
      FROM pg_locks
      WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    SELECT a.application_name AS who, a.query, w.mode, c.relname AS name, w.seconds,
           a.application_name = :writer AND EXISTS (
             SELECT FROM pg_stat_activity o WHERE o.pid = ANY (pg_blocking_pids(w.pid))
               AND o.application_name <> ALL (:others)) AS behind_us
    FROM waiting w JOIN pg_stat_activity a USING (pid) LEFT JOIN pg_class c ON c.oid = w.relation
    WHERE a.wait_event_type = 'Lock'  -- what it sends is not yet the next statement""")
# What the plan says ACCESS EXCLUSIVE on the table of: both only beside a DEFAULT partition.
_PLANNED = re.compile("DETACH PARTITION|LOCK TABLE")


@dataclass
class Watcher:
    """Looks at who waits for which lock, many times a second."""

    url: sa.URL
    looks: int = 0
    behind_us: float = 0.0
    #: Statements of ours that waited for ACCESS EXCLUSIVE, by table.
    exclusive: dict[str, set[str]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        with engine_of(self.url, "watcher").connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            while not self._over.wait(0.005):
                self.looks += 1
                for row in connection.execute(_WAITING, {"writer": writers.NAME, "others": list(OTHERS)}):
                    if row.behind_us:
                        self.behind_us = max(self.behind_us, float(row.seconds))
                    if row.who not in OTHERS and row.mode == "AccessExclusiveLock":
                        self.exclusive.setdefault(row.name, set()).add(row.query)


@dataclass
class Side:
    """What there was to be seen in one turn."""

    told: writers.Told
    watcher: Watcher
    done: Counter[str] = field(default_factory=Counter)
    trouble: list[str] = field(default_factory=list)


def engine_of(url: sa.URL, name: str) -> Engine:
    return create_engine(url.update_query_dict({"application_name": name}), poolclass=NullPool)


def prepare(database: Database, default: bool) -> None:
    """Today's partition, and sixty of long ago, of which one more expires with each day."""
    engine = create_engine(database.url, poolclass=NullPool)
    run(engine, "CREATE TABLE sites (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    run(engine, "INSERT INTO sites DEFAULT VALUES")
    rules = PartitionPolicy(
        "at", premake=1, lookback=0, retention="160 days", on_expiry="drop", grace="1 day", max_create=90
    )
    site = sa.Column("site", sa.Integer, sa.ForeignKey("sites.id"))
    declare(engine, "events", rules, *columns(), site)
    with operations(engine) as op:
        op.create_partitions("events", (NOW - timedelta(days=160)).date(), (NOW - timedelta(days=100)).date())
    run(engine, f"INSERT INTO events (at, site) SELECT '{NOW - timedelta(days=155)}', 1"
                " FROM generate_series(1, 100)")  # fmt: skip
    if default:
        run(engine, "CREATE TABLE events_rest PARTITION OF events DEFAULT")


class Runs:
    """Our runs: each comes again and again until the time is over."""

    def __init__(self, database: Database, clock: Clock, default: bool, side: Side) -> None:
        self._clock, self._default, self._side = clock, default, side
        self._engine = engine_of(database.url, "ours")
        self._app_url = database.url.update_query_dict({"application_name": "ours"})
        self._database = database
        self._over = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._again, args=(each,)) for each in (self._making, self._removing)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _again(self, runs: Callable[[], Generator[None, None, None]]) -> None:
        try:
            with closing(runs()) as each:
                for _ in each:
                    if self._over.wait(REST):
                        return
        except Exception as error:
            self._side.trouble.append(f"{type(error).__name__}: {error}")

    def _making(self) -> Generator[None, None, None]:
        """Ensure, and rows of one application that need a partition each."""
        with running(self._database, "psycopg2", url=self._app_url) as app:
            for number in range(1, 1000):
                with self._engine.connect() as connection:
                    self._note(maintenance.ensure(connection))
                yield
                insert = EVENTS.insert().values(at=NOW + timedelta(days=60 + number), site=1)
                try:
                    app.connection(partial(_send, insert))
                    self._side.done["rows by the hook"] += 1
                except PartitionPending:
                    self._side.done["pending"] += 1
                yield

    def _removing(self) -> Generator[None, None, None]:
        """A day goes by: repair a window, where there is a DEFAULT with a row stranded in it; maintain."""
        for number in range(1, 1000):
            self._clock.forward(days=1)
            day = NOW + timedelta(days=200 + number)
            if self._default:
                run(self._engine, f"INSERT INTO events (at, site) VALUES ('{day}', 1)")
            with self._engine.connect() as connection:
                self._note(maintenance.repair(connection, start=day.date(), stop=day.date()))
            yield
            with self._engine.connect() as connection:
                self._note(maintenance.maintain(connection))
            yield

    def _note(self, report: Report) -> None:
        done = self._side.done
        for what in ("created", "detached", "dropped"):
            done[what] += report.count(what)
        done["rows moved"] += sum(result.moved for result in report.results)
        done["gave up"] += report.failure is not None


def _send(statement: sa.Insert, connection: Connection) -> None:
    connection.execute(statement)


def one_turn(database: Database, kind: str, runs: Callable[[Side], Any] | None) -> Side:
    """Open the transaction, let writers and our runs begin, and close it."""
    holder: Connection
    with engine_of(database.url, "holder").connect() as holder:
        holder.execution_options(isolation_level="REPEATABLE READ" if kind == "reader" else "READ COMMITTED")
        for statement in KINDS[kind]:
            holder.execute(text(statement))
        watcher = Watcher(database.url)
        with (
            ExitStack() as ours,  # a run that is under way may end when the writers have gone
            writers.writing(database.url, WRITE, WRITERS) as told,
            watcher.at_work(),
        ):
            side = Side(told, watcher)
            if runs is not None:
                ours.enter_context(runs(side).at_work())
            end = threading.Timer(OPEN, holder.rollback)
            end.start()
            time.sleep(OPEN + AFTER)
            end.join()
    return side


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, Side]]]:
    """Told as one table, after the last kind."""
    found: dict[str, dict[str, Side]] = {}
    yield found
    table = Table(
        title=f"A writer's wait beside a transaction open for {OPEN} s: {WRITERS} writers, their transactions"
        f" by milliseconds (TORTURE_SEED={SEED})\n{RECORD.machine()}",
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column("beside", no_wrap=True)
    table.add_column("us", no_wrap=True)
    names = *(f"≤{b}" for b in BUCKETS), f">{BUCKETS[-1]}", "p99", "p99.9", "longest", "more", "behind us"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    worst = 0.0
    total: Counter[str] = Counter()
    for kind, sides in found.items():
        more = sides["with"].told.longest - sides["without"].told.longest
        worst = max(worst, more)
        for name, side in sides.items():
            figures = [f"{count:,}" if count else "" for count in side.told.histogram(BUCKETS)]
            figures += [f"{side.told.quantile(share):.1f}" for share in (0.99, 0.999, 1.0)]
            if name == "with":
                figures += [f"{more:+.1f}", f"{side.watcher.behind_us * 1000:.0f}"]
            table.add_row(kind if name == "without" else "", name, *figures, end_section=name == "with")
            total.update(side.done)
    WIDE.print()
    WIDE.print(table)
    behind = max((s.watcher.behind_us for sides in found.values() for s in sides.values()), default=0.0)
    kept = "" if worst <= BUDGET else " MISSED"
    tell(
        "Writers' waits",
        {
            **total,
            "longest with us, less the longest without": f"{worst:+.1f} ms, budget {BUDGET} ms{kept}",
            "longest that a writer queued behind us": f"{behind * 1000:.0f} ms",
        },
    )


@pytest.mark.parametrize("default", [False, True], ids=["", "DEFAULT"])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_waits_for_us(
    kind: str,
    default: bool,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    table: dict[str, dict[str, Side]],
) -> None:
    clock = Clock(monkeypatch, as_the_server_is=True)
    clock.set(NOW)
    world = databases.clone()
    prepare(world, default)
    sides: dict[str, Side] = {}
    turns = ["without", "with"]
    draws(f"waits {kind} {default}").shuffle(turns)
    for turn in turns:
        clock.set(NOW)
        database = databases.clone(world.name)
        ours = (lambda side: Runs(database, clock, default, side)) if turn == "with" else None  # noqa: B023
        sides[turn] = one_turn(database, kind, ours)
        databases.drop(database.name)
    databases.drop(world.name)
    table[kind + (", DEFAULT" if default else "")] = {name: sides[name] for name in ("without", "with")}
    for side in sides.values():
        assert side.told.errors == []
        assert side.trouble == []
        assert side.watcher.looks > OPEN
        assert side.watcher.behind_us < BEHIND_US
        assert len(side.told.took) > 20 * OPEN  # else nobody was there to wait
    done, watcher = sides["with"].done, sides["with"].watcher
    assert done["created"] + done["rows by the hook"] > 0
    asked = watcher.exclusive.get("events", set())
    assert all(default and _PLANNED.search(statement) for statement in asked), asked
