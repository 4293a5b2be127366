"""How it all grows: with the partitions of a table, with the tables, with the rows of an insert.

Each point is the median of some rounds in turns, after one that does not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from alembic_partitions import PartitionPolicy
from tests.apps import declare as declare_readings
from tests.bench import peers
from tests.bench.many import declare, filled, names, older
from tests.bench.measure import Side, in_turns, milliseconds, setting
from tests.bench.plots import Curve, Panel, draw
from tests.bench.record import BY_HAND, OURS, QUICK, RECORD
from tests.bench.test_bench_insert_hook import Both, bulk, flush, readings
from tests.databases import Database, Databases
from tests.tables import run, scalar

ROUNDS = setting("BENCH_GROWTH_ROUNDS", 5, quick=1)
HORIZON = 28


def numbers(name: str, default: str, quick: str) -> list[int]:
    """Read a list of sizes: BENCH_GROWTH_ROWS="1,100,10000"."""
    return [int(number) for number in os.environ.get(name, quick if QUICK else default).split(",")]


PARTITIONS = numbers("BENCH_GROWTH_PARTITIONS", "30,100,300,1000,2000", "30,60")
TABLES = numbers("BENCH_GROWTH_TABLES", "1,10,30,100", "1,3")
ROWS = numbers("BENCH_GROWTH_ROWS", "1,10,100,1000,10000,50000,200000", "1,100")


@pytest.fixture(scope="module")
def panels(databases: Databases) -> Iterator[list[Panel]]:
    """Collect what is to be drawn when all is measured."""
    found: list[Panel] = []
    yield found
    if found and find_spec("matplotlib"):
        draw("growth", "How it grows with partitions, tables and rows", found)
    elif found:
        RECORD.missing["the plots"] = "matplotlib is not installed: `tox -e bench` does it"


def kept(databases: Databases, title: str, along: str, curves: Mapping[str, dict[int, Side]]) -> None:
    """Print the curves, and keep them."""
    columns = list(next(iter(curves.values())))
    lines = [
        (name, *(milliseconds(curve[n].median) if n in curve else "not tried: slow" for n in columns))
        for name, curve in curves.items()
    ]
    figures = [
        {"what": name, "along": along, "points": {str(n): side.figures() for n, side in curve.items()}}
        for name, curve in curves.items()
    ]
    RECORD.table(title, databases.describe(), (along, *(f"{n:,}" for n in columns)), lines, figures)


def medians(curves: Mapping[str, dict[int, Side]]) -> dict[str, Curve]:
    return {name: {n: side.median for n, side in curve.items()} for name, curve in curves.items()}


def grown(points: Mapping[int, Mapping[str, Side]]) -> dict[str, dict[int, Side]]:
    """Turn sides by number into numbers by side."""
    names = next(iter(points.values()))
    return {
        name: {number: sides[name] for number, sides in points.items() if name in sides} for name in names
    }


def timed(work: peers.Work, into: Side) -> None:
    with into.measured():
        work()


# -- nothing to do ---------------------------------------------------------------------------------------


def looking(
    engine: Engine, tables: list[str], others: Sequence[peers.Peer]
) -> dict[str, Callable[[Side], None]]:
    """Every side that may look over these tables, which have all that it wants."""
    sides: dict[str, Callable[[Side], None]] = {
        BY_HAND: partial(timed, peers.look_by_hand(engine, tables, HORIZON)),
        OURS: partial(timed, peers.ours(engine, HORIZON)),
    }
    for peer in others:
        sides[peer.name] = partial(timed, peer.prepare(engine, tables, HORIZON))
    return sides


@contextmanager
def one_table(databases: Databases) -> Iterator[Engine]:
    with peers.utc_database(databases) as engine:
        declare(engine, "table_0")
        yield engine


def grow(engine: Engine, partitions: int) -> None:
    """Add older days until the table has that many partitions, its horizon among them."""
    have = scalar(engine, "SELECT count(*) FROM pg_inherits")
    past = max(0, have - HORIZON - 1)
    if have == 1:
        peers.ours(engine, HORIZON)()
        have += HORIZON
    older(engine, "table_0", partitions - have, after=past)
    assert scalar(engine, "SELECT count(*) FROM pg_inherits") == partitions
    run(engine, "VACUUM ANALYZE pg_class, pg_inherits, pg_attribute, pg_depend, pg_description")


# -- one more partition ----------------------------------------------------------------------------------

DROP_LAST = """
DO $$ DECLARE part regclass; BEGIN
  SELECT c.oid INTO STRICT part FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
  WHERE pg_get_expr(c.relpartbound, 0) LIKE format('FOR VALUES FROM (''%s%%', current_date + {day});
  EXECUTE format('DROP TABLE %s', part);
END $$
"""


def one_more(engine: Engine) -> dict[str, Callable[[Side], None]]:
    """Every side that makes the day after the horizon, which is then taken away again."""
    day = HORIZON + 1

    def side(work: peers.Work) -> Callable[[Side], None]:
        def one_round(into: Side) -> None:
            before = scalar(engine, "SELECT count(*) FROM pg_inherits")
            timed(work, into)
            assert scalar(engine, "SELECT count(*) FROM pg_inherits") == before + 1
            run(engine, DROP_LAST.format(day=day))

        return one_round

    hand, ours = peers.by_hand(engine, ["table_0"], [day]), peers.ours(engine, day)
    sides = {BY_HAND: side(hand), OURS: side(ours)}
    for peer in peers.installed():
        sides[peer.name] = side(peer.prepare(engine, ["table_0"], day))
    return sides


def test_with_the_partitions_of_a_table(databases: Databases, panels: list[Panel]) -> None:
    nothing, more = {}, {}
    with one_table(databases) as engine:
        for number in PARTITIONS:
            grow(engine, number)
            nothing[number] = in_turns(looking(engine, ["table_0"], peers.installed()), ROUNDS)
            more[number] = in_turns(one_more(engine), ROUNDS)
            peers.ours(engine, HORIZON)
    along = "partitions of one table"
    for title, points in (("Nothing to do", nothing), ("One more partition", more)):
        curves = grown(points)
        kept(databases, f"{title}, by partitions of one table", along, curves)
        panels.append(Panel(f"{title}: one table", along, medians(curves)))


def test_with_the_tables(databases: Databases, panels: list[Panel]) -> None:
    points = {}
    earlier: Mapping[str, Side] = {}
    for number in TABLES:
        with filled(databases, number, 30, HORIZON) as database:
            engine = create_engine(database.url)
            others = peers.patient(earlier)
            earlier = in_turns(looking(engine, names(number), others), ROUNDS, peers.PATIENCE)
            points[number] = earlier
            engine.dispose()
    curves = grown(points)
    along = "tables of 30 partitions"
    kept(databases, "Nothing to do, by tables of 30 partitions", along, curves)
    panels.append(Panel("Nothing to do: many tables", along, medians(curves), logarithmic=True))


# -- rows ------------------------------------------------------------------------------------------------

WITHOUT, INSIDE = "without the hook", "alembic_partitions: in the hook"


def test_with_the_rows(databases: Databases, database: Database, engine: Engine, panels: list[Panel]) -> None:
    declare_readings(engine, "readings", PartitionPolicy("at", timezone="Pacific/Auckland"))
    curves: dict[str, dict[int, Side]] = {}
    with ExitStack() as stack:
        both = Both(stack, database, "psycopg")
        for title, way in (("ORM flush", flush), ("ORM bulk", bulk)):
            whole, inside = (
                curves.setdefault(f"{title}, {WITHOUT}", {}),
                curves.setdefault(f"{title}, in it", {}),
            )
            for number in ROWS:
                data: list[dict[str, Any]] = readings(number)
                rounds = 1 if number > 20_000 else ROUNDS
                whole[number], inside[number] = Side(), Side()
                both.insert(way, data, "without", Side())
                for _ in range(rounds):
                    both.insert(way, data, "without", whole[number])
                    inside[number].wall.append(both.inside(way, data, 1))
    kept(databases, "Insert hook, by rows of one insert (psycopg)", "rows of one insert", curves)
    found = medians(curves)
    chosen = {
        WITHOUT: found[f"ORM bulk, {WITHOUT}"],
        INSIDE: found["ORM bulk, in it"],
    }
    panels.append(Panel("ORM bulk insert", "rows", chosen, logarithmic=True))
