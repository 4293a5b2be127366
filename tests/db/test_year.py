"""A year in Auckland, a run a day at odd hours: each evening the partitions are what SQL itself says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from alembic_partitions import maintenance, nz_racing_day
from tests.clock import Clock
from tests.databases import Database
from tests.tables import columns, declare, run
from tests.zones import utc

pytestmark = pytest.mark.long

# Both clock changes lie within: back on 5 April 2026, forward on 27 September 2026, back on 4 April 2027.
FIRST, DAYS = utc("2026-04-01 01:37:11"), 371
RETENTION, PREMAKE, GRACE = 30, 5, 3

# PostgreSQL's own calendar and clocks: a day's partition is there from premake days before it begins until
# all of it lies before this time of day RETENTION days ago; then it is detached, for GRACE days and the rest
# of a run's day.
EXPECTED = text(f"""
WITH z AS (SELECT CAST(:now AS timestamptz) AT TIME ZONE 'Pacific/Auckland' AS wall),
     days AS (SELECT d::date AS day FROM z, generate_series(CAST(:first AS date),
              z.wall::date + {PREMAKE}, '1 day') d)
SELECT to_char(day, '"odds_"YYYY_MM_DD') FROM days, z
WHERE (day + 1)::timestamp AT TIME ZONE 'Pacific/Auckland'
      > (z.wall - interval '{RETENTION} days') AT TIME ZONE 'Pacific/Auckland'
ORDER BY 1
""")
BOUNDS = text("""
SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)',
           day AT TIME ZONE 'Pacific/Auckland', (day + interval '1 day') AT TIME ZONE 'Pacific/Auckland')
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
     CAST(to_date(right(c.relname, 10), 'YYYY_MM_DD') AS timestamp) day
WHERE i.inhparent = 'odds'::regclass ORDER BY 1
""")
MISSING = text(f"""
SELECT count(*) FROM written w
WHERE w.at >= (CAST(:now AS timestamptz) AT TIME ZONE 'Pacific/Auckland' - interval '{RETENTION} days')
              AT TIME ZONE 'Pacific/Auckland'
      AND NOT EXISTS (SELECT FROM odds o WHERE o.at = w.at)
""")
DETACHED = text("""
SELECT count(*) FROM pg_class c WHERE c.relname LIKE 'odds%detached'
""")


def test_a_year_day_by_day(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = create_engine(database.url, poolclass=NullPool)
    clock = Clock(monkeypatch)
    clock.set(FIRST)
    rules = nz_racing_day(
        "at",
        premake=PREMAKE,
        lookback=0,
        retention=f"{RETENTION} days",
        on_expiry="drop",
        grace=f"{GRACE} days",
    )
    declare(engine, "odds", rules, *columns())
    run(engine, "CREATE TABLE written (at timestamptz)")
    orders = maintenance.Orders(analyze=False)
    changes, gone = set(), 0
    with engine.connect() as connection:
        for number in range(DAYS):
            # 13:37, 14:44, 15:51...: never the same hour, midnight among them.
            clock.set(FIRST + timedelta(days=number, minutes=67 * (number % 20)))
            told = maintenance.maintain(connection, orders=orders)
            assert told.failure is None
            (result,) = told.results
            gone += len(result.dropped)
            moment = {"now": clock.now}
            connection.execute(text("SET LOCAL TimeZone = 'Pacific/Auckland'"))
            for table in ("written", "odds"):
                connection.execute(
                    text(
                        f"INSERT INTO {table} (at) SELECT CAST(:now AS timestamptz) + h * interval '7 hours'"
                        " FROM generate_series(-1, 2) h"
                    ),
                    moment,
                )
            expected = connection.execute(EXPECTED, {**moment, "first": "2026-04-01"}).scalars().all()
            found = connection.execute(BOUNDS).all()
            assert [name for name, _ in found] == list(expected), clock.now
            assert all(right for _, right in found), clock.now
            assert connection.scalar(MISSING, moment) == 0, clock.now
            # Each waits out its grace, and the run that finds it over.
            assert (connection.scalar(DETACHED) or 0) <= GRACE + 1
            changes.add(connection.scalar(text("SELECT to_char(CAST(:now AS timestamptz), 'OF')"), moment))
            connection.commit()
    assert changes == {"+12", "+13"}
    assert gone == DAYS - 1 - RETENTION - GRACE
    engine.dispose()
