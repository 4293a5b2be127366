"""Budget: 2 tables x 30 days, each partition committed by itself, against one hand-written batch: 1.25 times;
and faster than the peers.

The batch is the same LIKE + ATTACH statements, sent at once as one text in one transaction: what a person
would paste into psql, and the least that PostgreSQL can do. Every side has tables that hold today, and makes
the thirty days after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from alembic_partitions import PartitionPolicy
from tests.apps import declare
from tests.bench import peers
from tests.bench.measure import Row, Side, in_turns, setting, show, told
from tests.bench.record import BY_HAND, OURS, RECORD
from tests.databases import Databases
from tests.tables import run, scalar

ROUNDS = setting("BENCH_ROUNDS", 9, quick=2)
DAYS = setting("BENCH_DAYS", 30, quick=5)
BUDGET = 1.25
TABLES = ("clicks", "views")

TODAY = PartitionPolicy("at", premake=0, lookback=0)

PLAIN = "key, index"
FULL = "key, 2 indexes, foreign key, generated"

# All but today's and a DEFAULT one.
DROP_MADE = """
DO $$ DECLARE part regclass; BEGIN
  FOR part IN SELECT c.oid FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relkind = 'r'
              AND pg_get_expr(c.relpartbound, 0) LIKE 'FOR VALUES%'
              AND substring(pg_get_expr(c.relpartbound, 0) FROM $r$'([^']+)'$r$)::timestamptz > now() LOOP
    EXECUTE format('DROP TABLE %s', part);
  END LOOP;
END $$
"""
MADE = """
SELECT count(*) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
WHERE relkind = 'r' AND pg_get_expr(c.relpartbound, 0) LIKE 'FOR VALUES%'
  AND substring(pg_get_expr(c.relpartbound, 0) FROM $r$'([^']+)'$r$)::timestamptz > now()
"""


def declared(engine: Engine, shape: str) -> Engine:
    """Make the tables as a migration does, with today's partitions."""
    full = shape == FULL
    run(engine, "CREATE TABLE sites (id integer PRIMARY KEY)")
    for name in TABLES:
        more: list[sa.schema.SchemaItem] = [
            sa.Column("site_id", sa.Integer, *([sa.ForeignKey("sites.id")] if full else []))
        ]
        if full:
            more.append(sa.Column("shout", sa.Text, sa.Computed("upper(note)")))
        declare(engine, name, TODAY, *more)
        run(engine, f"CREATE INDEX ON {name} (site_id, at DESC)")
        if full:
            run(engine, f"CREATE INDEX ON {name} (note) WHERE note IS NOT NULL")
    return engine


def empty(engine: Engine) -> None:
    """Leave the tables to one who makes today's partitions too."""
    for name in TABLES:
        child = f"SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = '{name}'::regclass"
        run(engine, f"DROP TABLE {scalar(engine, child)}")


def side(engine: Engine, work: peers.Work) -> Callable[[Side], None]:
    def one_round(into: Side) -> None:
        with into.measured():
            work()
        assert scalar(engine, MADE) == len(TABLES) * DAYS
        run(engine, DROP_MADE)

    return one_round


def compared(databases: Databases, shape: str, others: Sequence[peers.Peer]) -> list[Row]:
    """Have every side make the same partitions of tables of its own, in turns."""
    with ExitStack() as stack:

        def tables() -> Engine:
            return declared(stack.enter_context(peers.utc_database(databases)), shape)

        hand, ours = tables(), tables()
        sides = {
            BY_HAND: side(hand, peers.by_hand(hand, TABLES, range(1, DAYS + 1))),
            OURS: side(ours, peers.ours(ours, DAYS)),
        }
        for peer in others:
            engine = tables()
            if peer is peers.PARTMAN:
                empty(engine)
            work = peer.prepare(engine, TABLES, DAYS)
            run(engine, DROP_MADE)
            sides[peer.name] = side(engine, work)
        found = in_turns(sides, ROUNDS)
    base, mine = found[BY_HAND], found[OURS]
    row = Row(f"{OURS}: {shape}", base, mine, BUDGET, ("each partition",))
    rows = [row]
    for peer in others:
        rows.append(Row(peer.name, base, found[peer.name], None, (peer.commits,)))
        limit = None if peer is peers.PSQLEXTRA else 1.0  # DESIGN.md has no budget beside it
        beside = f"the same, beside {peer.name} (which commits {peer.commits})"
        Row(peer.name, found[peer.name], mine, limit).judged(beside)
    if others:
        RECORD.beside(f"create {len(TABLES)} x {DAYS} days", databases.describe(), told(found))
    return rows


@pytest.mark.parametrize("shape", [FULL, PLAIN])
def test_two_tables_of_thirty_days(databases: Databases, shape: str) -> None:
    others = peers.installed() if shape == PLAIN else []
    rows = compared(databases, shape, others)
    rows[0].judged(f"create {len(TABLES)} x {DAYS} days ({shape}), beside one batch by hand")
    show(f"Create {len(TABLES)} x {DAYS} days ({shape})", databases.describe(), rows, ("committed",))


def test_beside_pg_partman() -> None:
    with peers.partman_server() as databases:
        if databases is None:
            return
        rows = compared(databases, PLAIN, [peers.PARTMAN])
        title = f"Create {len(TABLES)} x {DAYS} days ({PLAIN}), on the server that has pg_partman"
        show(title, databases.describe(), rows, ("committed",))
