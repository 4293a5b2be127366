"""Budget: `ensure()` with nothing to do takes at most 1.3 times as long with 1,000 partitions as with 30.

The peers that run on any server look over the same tables, and so does one query by hand, which counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import Engine, create_engine

from alembic_partitions import maintenance
from tests.bench import peers
from tests.bench.many import filled, names
from tests.bench.measure import Row, Side, in_turns, setting, show, told
from tests.bench.record import BY_HAND, OURS, RECORD
from tests.databases import Databases
from tests.tables import listening, run, scalar

ROUNDS = setting("BENCH_ROUNDS", 9, quick=2)
PEER_ROUNDS = setting("BENCH_PEER_ROUNDS", 3, quick=1)
TABLES = setting("BENCH_TABLES", 100, quick=3)
MANY = setting("BENCH_PARTITIONS", 1_000, quick=60)
FEW, HORIZON = 30, 28
BUDGET, STATEMENTS = 1.3, 2


def ensure(engine: Engine, into: Side) -> None:
    with engine.connect() as connection, into.measured():
        report = maintenance.ensure(connection)
    assert report.created == 0
    assert len(report.results) == TABLES
    assert not any(result.error or result.horizon_short for result in report.results)


def timed(work: peers.Work, into: Side) -> None:
    with into.measured():
        work()


def statements(engine: Engine) -> int:
    with listening(engine) as sent:
        ensure(engine, Side())
    return len(sent.statements)


def test_nothing_to_do(databases: Databases) -> None:
    server = databases.describe()
    with (
        filled(databases, TABLES, FEW, HORIZON) as few_days,
        filled(databases, TABLES, MANY, HORIZON) as many_days,
    ):
        few, many = create_engine(few_days.url), create_engine(many_days.url)
        found = in_turns({"few": partial(ensure, few), "many": partial(ensure, many)}, ROUNDS)
        sent = max(statements(few), statements(many))
        row = Row(
            f"{TABLES} tables: {FEW} and {MANY:,} partitions each",
            found["few"],
            found["many"],
            BUDGET,
            (f"{sent}, budget {STATEMENTS}",),
        )
        show("Nothing to do: ensure() over all tables", server, [row], ("statements",))
        row.judged(f"nothing to do over {TABLES} tables: {MANY:,} partitions each beside {FEW} each")
        RECORD.judge("the same: statements in all", sent, STATEMENTS, "")
        earlier: Mapping[str, Side] = {}
        for engine, each in ((few, FEW), (many, MANY)):
            others, reasons = peers.patient(earlier), peers.untried(earlier, f"{FEW} each")
            earlier = beside_peers(engine, each, server, others, reasons)
            assert scalar(engine, "SELECT count(*) FROM pg_inherits") == TABLES * each
            engine.dispose()


def beside_peers(
    engine: Engine,
    each: int,
    server: str,
    others: Sequence[peers.Peer],
    reasons: Mapping[str, str],
    **more: peers.Work,
) -> Mapping[str, Side]:
    """Have others look over the same tables; `more` are those who have tables of their own."""
    works = {peer.name: peer.prepare(engine, names(TABLES), HORIZON) for peer in others} | more
    sides: dict[str, Callable[[Side], None]] = {
        BY_HAND: partial(timed, peers.look_by_hand(engine, names(TABLES), HORIZON)),
        OURS: partial(ensure, engine),
        **{name: partial(timed, work) for name, work in works.items()},
    }
    found = in_turns(sides, PEER_ROUNDS, peers.PATIENCE)
    what = f"nothing to do, {TABLES} tables of {each:,}"
    rows = [Row(name, found[BY_HAND], found[name]) for name in sides if name != BY_HAND]
    show(f"{what} partitions, beside one query by hand".capitalize(), server, rows)
    RECORD.beside(what, server, {**told(found), **reasons})
    return found


def test_beside_pg_partman() -> None:
    with peers.partman_server() as databases:
        if databases is None:
            return
        with filled(databases, TABLES, FEW, HORIZON) as ours, peers.utc_database(databases) as theirs:
            for name in names(TABLES):
                run(theirs, f"CREATE TABLE {name} (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
            look = peers.PARTMAN.prepare(theirs, names(TABLES), HORIZON)
            look()
            # Today and the horizon, and a DEFAULT one.
            assert scalar(theirs, "SELECT count(*) FROM pg_inherits") == TABLES * (HORIZON + 2)
            engine = create_engine(ours.url)
            beside_peers(engine, FEW, databases.describe(), [], {}, **{peers.PARTMAN.name: look})
            assert scalar(theirs, "SELECT count(*) FROM pg_inherits") == TABLES * (HORIZON + 2)
            engine.dispose()
