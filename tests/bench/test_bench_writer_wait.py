"""Budget: partitions made beside an open transaction of 5 s let no writer wait 50 ms longer than without.

The open transaction has written what the writer writes. With a foreign key ATTACH needs a lock on the table
referred to, which that transaction holds and which later writers of it queue behind. The peers make the same
partitions beside the same transaction.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import PartitionPolicy, maintenance
from tests.apps import declare
from tests.bench import peers
from tests.bench.measure import setting
from tests.bench.record import BY_HAND, OURS, QUICK, RECORD
from tests.bench.test_bench_create import DROP_MADE, MADE
from tests.databases import Databases
from tests.tables import run, scalar

ROUNDS = setting("BENCH_WAIT_ROUNDS", 3, quick=1)
OPEN = setting("BENCH_OPEN_SECONDS", 5, quick=1)
BUDGET = 50  # ms more than without
DAYS = 30
PATIENCE = 30  # seconds after the transaction's end: what was held up is made then

NOBODY = "nobody"

# Today's partition is there; what is watched makes the others.
TODAY = PartitionPolicy("at", premake=0, lookback=0)


class Writer:
    """Writes a site and an event in one small transaction after another, and keeps the longest time."""

    def __init__(self, engine: Engine, refer: bool) -> None:
        self.longest = 0.0
        self.count = 0
        self.failed = 0
        self._engine = engine
        self._refer = refer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def _write(self) -> None:
        with self._engine.connect() as connection:
            while not self._stop.is_set():
                begun = time.perf_counter()
                try:
                    write(connection, self._refer)
                    connection.commit()
                except DBAPIError:  # a deadlock
                    connection.rollback()
                    self.failed += 1
                self.longest = max(self.longest, time.perf_counter() - begun)
                self.count += 1
                time.sleep(0.001)


def write(connection: Connection, refer: bool) -> None:
    site = None
    if refer:
        site = connection.scalar(text("INSERT INTO sites DEFAULT VALUES RETURNING id"))
    connection.execute(text("INSERT INTO events (at, site_id) VALUES (now(), :site)"), {"site": site})


@dataclass
class Contender:
    """Who makes partitions of a table of his own: the work, and how the writer beside him fared."""

    engine: Engine
    refer: bool
    work: Callable[[float], None]
    longest: list[float] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def one_round(self) -> None:
        """Open a transaction that has written, start the writer, make partitions; then let go."""
        writer, closed, opened = Writer(self.engine, self.refer), threading.Event(), threading.Event()

        def hold() -> None:
            with self.engine.connect() as connection:
                write(connection, self.refer)
                opened.set()
                closed.wait(OPEN)
                connection.rollback()

        holder = threading.Thread(target=hold)
        holder.start()
        assert opened.wait(60)
        with writer.at_work():
            end = time.monotonic() + OPEN + 0.5
            self.work(end + PATIENCE)
            time.sleep(max(0.0, end - time.monotonic()))
        holder.join()
        self.longest.append(writer.longest * 1000)
        self.writes.append(writer.count)
        self.failed.append(writer.failed)
        self.made.append(scalar(self.engine, MADE))
        run(self.engine, DROP_MADE)


def ours(engine: Engine) -> Callable[[float], None]:
    peers.ours(engine, DAYS)

    def work(end: float) -> None:
        with engine.connect() as connection:
            maintenance.ensure(connection, give_up_at=end)

    return work


def theirs(work: peers.Work) -> Callable[[float], None]:
    """Have a peer try until it is done or the time is over: some give up at once, and say so."""

    def tried(end: float) -> None:
        while time.monotonic() < end:
            with suppress(Exception):
                work()
                return
            time.sleep(0.2)

    return tried


def table_of_events(stack: ExitStack, databases: Databases, refer: bool) -> Engine:
    engine = stack.enter_context(peers.utc_database(databases))
    run(engine, "CREATE TABLE sites (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY)")
    key = [sa.ForeignKey("sites.id")] if refer else []
    declare(engine, "events", TODAY, sa.Column("site_id", sa.Integer, *key))
    return engine


def contend(
    databases: Databases, refer: bool, others: Sequence[peers.Peer], rounds: int
) -> dict[str, Contender]:
    with ExitStack() as stack:
        nobody, hand, mine = (table_of_events(stack, databases, refer) for _ in range(3))
        contenders = {
            NOBODY: Contender(nobody, refer, lambda end: None),
            BY_HAND: Contender(hand, refer, theirs(peers.by_hand(hand, ["events"], range(1, DAYS + 1)))),
            OURS: Contender(mine, refer, ours(mine)),
        }
        for peer in others:
            engine = table_of_events(stack, databases, refer)
            if peer is peers.PARTMAN:
                child = "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'events'::regclass"
                run(engine, f"DROP TABLE {scalar(engine, child)}")
            work = peer.prepare(engine, ["events"], DAYS)
            run(engine, DROP_MADE)
            contenders[peer.name] = Contender(engine, refer, theirs(work))
        for number in range(rounds):
            for name, contender in contenders.items():
                if number == 0 or name in (NOBODY, OURS):  # a peer once: each round takes 5 s
                    contender.one_round()
    return contenders


def told(databases: Databases, title: str, contenders: dict[str, Contender]) -> float:
    """Print how long the writer waited beside each; return how much longer beside us than beside nobody."""
    alone = statistics.median(contenders[NOBODY].longest)
    lines, figures, took = [], [], dict[str, str]()
    for name, contender in contenders.items():
        longest = statistics.median(contender.longest)
        made = f"{max(contender.made)} of {DAYS}" if name != NOBODY else ""
        rounds = ", ".join(f"{wait:,.0f}" for wait in contender.longest)
        writes = f"{statistics.median(contender.writes):,.0f}"
        failed = str(max(contender.failed))
        if name != NOBODY:
            took[name] = f"{longest - alone:+,.0f} ms" + (f", {failed} writes failed" if int(failed) else "")
        lines.append((name, f"{longest:,.0f} ms", rounds, took.get(name, ""), writes, failed, made))
        figures.append(
            {
                "beside": name,
                "longest_ms": [round(wait, 1) for wait in contender.longest],
                "writes": contender.writes,
                "failed": contender.failed,
                "made": contender.made,
            }
        )
    header = ("beside", "longest wait", "each round", "more", "writes", "failed", "partitions made")
    server = databases.describe()
    RECORD.table(title, server, header, lines, figures)
    RECORD.beside(f"a writer waits longer, {title.split(', ')[1]}", server, took)
    return statistics.median(contenders[OURS].longest) - alone


@pytest.mark.parametrize("refer", [False, True], ids=["no foreign key", "foreign key"])
def test_the_longest_wait_of_a_writer(databases: Databases, refer: bool) -> None:
    key = "with a foreign key" if refer else "without a foreign key"
    title = f"A writer's longest wait beside a transaction open for {OPEN} s, {key}"
    contenders = contend(databases, refer, peers.installed(), ROUNDS)
    more = told(databases, title, contenders)
    mine = contenders[OURS]
    assert set(mine.made) == {DAYS}
    assert min(mine.writes) > 20 * OPEN  # else nobody was there to wait
    assert not any(mine.failed)
    RECORD.judge(f"a writer's longest wait beside an open transaction, {key}: more", more, BUDGET, "ms")
    if QUICK and refer:
        return
    with peers.partman_server() as server:
        if server is not None:
            beside = contend(server, refer, [peers.PARTMAN], 1)
            told(server, f"{title}, on the server that has pg_partman", beside)
