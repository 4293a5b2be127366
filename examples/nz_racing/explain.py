"""``python -m nz_racing.explain 2026-04-05``: what PostgreSQL made of it.

Where the rows are, and how two everyday questions are answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, TypeAlias

import pytz
from sqlalchemy import Connection, NullPool, Row, create_engine, select, text

from .feed import AUCKLAND
from .models import Entrant, OddsHistory, Race
from .settings import database_url

Query: TypeAlias = Any  # a Select, whose type parameters SQLAlchemy 2.0 and 2.1 write differently

#: The partitions of the histories that hold rows, each with its length and its first and last local time.
LANDED = text(r"""
    SELECT child::regclass::text AS partition,
           to_char(bound[1]::timestamptz AT TIME ZONE 'UTC', 'DD Mon HH24:MI"Z"') AS begins,
           extract(epoch FROM bound[2]::timestamptz - bound[1]::timestamptz)::int / 3600 AS hours,
           rows,
           to_char(first AT TIME ZONE 'Pacific/Auckland', 'DD Mon HH24:MI') AS first_local,
           to_char(last AT TIME ZONE 'Pacific/Auckland', 'DD Mon HH24:MI') AS last_local
    FROM (SELECT tableoid AS child, count(*) AS rows,
                 min(event_timestamp) AS first, max(event_timestamp) AS last
          FROM (SELECT tableoid, event_timestamp FROM odds_history
                UNION ALL SELECT tableoid, event_timestamp FROM money_flow_history) AS history
          GROUP BY tableoid) AS landed
    JOIN pg_class ON pg_class.oid = child
    JOIN pg_inherits ON inhrelid = child,
    regexp_match(pg_get_expr(relpartbound, oid), '\(''(.*)''\) TO \(''(.*)''\)') AS bound
    ORDER BY inhparent::regclass::text DESC, landed.first
""")

#: The same of race_result_history, whose key is a date.
RESULTS_LANDED = text("""
    SELECT tableoid::regclass::text AS partition, count(*) AS rows,
           min(race_date_nz) AS first, max(race_date_nz) AS last
    FROM race_result_history GROUP BY tableoid ORDER BY first
""")

#: The partitions of each history, in order.
BOUNDS = text(r"""
    SELECT inhparent::regclass::text AS history,
           bound[1]::timestamptz AS lower, bound[2]::timestamptz AS upper
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid,
    regexp_match(pg_get_expr(relpartbound, pg_class.oid), '\(''(.*)''\) TO \(''(.*)''\)') AS bound
    WHERE relkind = 'r' ORDER BY history, lower
""")


def bounds_of(day: date) -> tuple[datetime, datetime]:
    """Return the instants at which a New Zealand day begins and ends: 23, 24 or 25 hours apart."""
    midnights = (datetime.combine(day + timedelta(days=n), datetime.min.time()) for n in (0, 1))
    begin, end = (AUCKLAND.localize(midnight).astimezone(pytz.utc) for midnight in midnights)
    return begin, end


def latest_prices(entrant_id: int, day: date) -> Query:
    """Ask for the last ten prices of a runner on a New Zealand day."""
    moment = OddsHistory.event_timestamp
    begin, end = bounds_of(day)
    prices = select(moment, OddsHistory.odds_type, OddsHistory.odds)
    of_the_day = prices.where(OddsHistory.entrant_id == entrant_id, moment >= begin, moment < end)
    return of_the_day.order_by(moment.desc()).limit(10)


def field_of(race_id: int) -> Query:
    """Ask for the runners that are still in a race, favourite first."""
    runners = select(Entrant.runner_number, Entrant.name, Entrant.fixed_win_odds)
    return runners.where(Entrant.race_id == race_id, ~Entrant.scratched).order_by(Entrant.fixed_win_odds)


def explain(connection: Connection, query: Query) -> list[str]:
    """Return the lines of EXPLAIN."""
    compiled = query.compile(connection)
    return list(connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {compiled}", compiled.params).scalars())


def landed(connection: Connection) -> Sequence[Row[Any]]:
    """Return where the rows of the two histories by day are."""
    return connection.execute(LANDED).all()


@dataclass
class Reach:
    """How far the partitions of a history reach from an instant, without a gap."""

    history: str
    partitions: int
    until: datetime


def reach(connection: Connection, now: datetime) -> list[Reach]:
    """Tell until when rows written from now on find their partition."""
    reached: dict[str, Reach] = {}
    for row in connection.execute(BOUNDS):
        found = reached.setdefault(row.history, Reach(row.history, 0, now))
        found.partitions += 1
        if row.lower <= found.until < row.upper:
            found.until = row.upper
    return list(reached.values())


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description="Show the plans and partitions of a New Zealand racing day."
    )
    options.add_argument("day", type=date.fromisoformat)
    day = options.parse_args(arguments).day
    engine = create_engine(database_url(), poolclass=NullPool)
    with engine.connect() as connection:
        race_id = connection.scalar(select(Race.id).where(Race.race_date_nz == day).limit(1))
        if race_id is None:
            print(f"No races on {day}: python -m nz_racing.ingest --first {day} --days 1", file=sys.stderr)
            return 1
        for query in (latest_prices(race_id * 100 + 1, day), field_of(race_id)):
            print(*explain(connection, query), "", sep="\n")
        for row in landed(connection):
            print(*row, sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
