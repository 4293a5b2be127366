"""Promise 2: thirty-two processes at a midnight whose window nobody has made; on nights the clocks change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

from alembic_partitions import nz_racing_day
from alembic_partitions.maintenance import NOW_VARIABLE
from tests import midnight
from tests.apps import declare
from tests.databases import Database
from tests.midnight import PROCESSES, Met

pytestmark = pytest.mark.processes


@dataclass(frozen=True)
class Night:
    """A New Zealand day on which the clocks change, from the midnight that begins it."""

    day: date
    begins: datetime
    hours: int

    @property
    def ends(self) -> datetime:
        return self.begins + timedelta(hours=self.hours)


BACK = Night(date(2026, 4, 5), datetime.fromisoformat("2026-04-05T00:00:00+13:00"), 25)
FORWARD = Night(date(2026, 9, 27), datetime.fromisoformat("2026-09-27T00:00:00+12:00"), 23)

# Nothing stands ready beyond the current day, so at midnight everybody finds the next one missing.
NOTHING_AHEAD = nz_racing_day("at", premake=0, lookback=0)


@pytest.fixture(params=[BACK, FORWARD], ids=["clocks go back", "clocks go forward"])
def night(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Night:
    found = request.param
    assert isinstance(found, Night)
    monkeypatch.setenv(NOW_VARIABLE, (found.begins - timedelta(seconds=10)).isoformat())
    return found


def made_by_inserts(connection: Connection) -> list[tuple[str, str, str]]:
    """Return the partitions that inserts made: name, and bounds under UTC."""
    connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
    rows = connection.execute(
        text(r"""
        SELECT c.relname, bounds.found[1], bounds.found[2]
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid,
             regexp_match(pg_get_expr(c.relpartbound, c.oid), $$\('(.*)'\) TO \('(.*)'\)$$) AS bounds (found)
        WHERE i.inhparent = 'ticks'::regclass
              AND obj_description(c.oid, 'pg_class') = 'alembic_partitions: made by insert'
        ORDER BY 1""")
    )
    return [(row[0], row[1], row[2]) for row in rows]


def partition_of(begins: datetime, ends: datetime, day: date) -> tuple[str, str, str]:
    lower, upper = (f"{at - (at.utcoffset() or timedelta()):%Y-%m-%d %H:%M:%S}+00" for at in (begins, ends))
    return f"ticks_{day:%Y_%m_%d}", lower, upper


def strays(connection: Connection) -> int:
    """Count the rows that do not lie in the partition of their New Zealand day."""
    count = connection.scalar(
        text("""
        SELECT count(*) FROM ticks
        WHERE tableoid::regclass::text
              <> 'ticks_' || to_char((at AT TIME ZONE 'Pacific/Auckland')::date, 'YYYY_MM_DD')
        """)
    )
    assert isinstance(count, int)
    return count


def deadlocks(engine: Engine) -> int:
    """Read PostgreSQL's count once the crowd's sessions, which report when they end, are gone."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        while connection.scalar(others):
            time.sleep(0.01)
        count = connection.scalar(
            text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        )
    assert isinstance(count, int)
    return count


def nobody_failed(crowd: list[Met]) -> None:
    assert [met.number for met in crowd] == list(range(PROCESSES))
    assert not [met.error for met in crowd if met.error], "\n".join(met.error or "" for met in crowd)


def test_thirty_two_processes_pass_both_midnights_of_a_clock_change(
    database: Database, engine: Engine, any_driver: str, night: Night
) -> None:
    declare(engine, "ticks", NOTHING_AHEAD, sa.Column("race_id", sa.Integer))
    engine.dispose()

    crowd = midnight.run(database, any_driver, [night.begins, night.ends], races_first=False)

    nobody_failed(crowd)
    assert sum(met.pending for met in crowd) == 0
    assert sum(met.created for met in crowd) == 2
    assert deadlocks(engine) == 0
    with engine.begin() as connection:
        next_day = night.day + timedelta(days=1)
        assert made_by_inserts(connection) == [
            partition_of(night.begins, night.ends, night.day),
            partition_of(night.ends, night.ends + timedelta(days=1), next_day),
        ]
        assert connection.scalar(text("SELECT count(*) FROM ticks")) == sum(met.committed for met in crowd)
        assert strays(connection) == 0


def test_where_the_same_transactions_write_the_table_referred_to_every_retry_passes(
    database: Database, engine: Engine, any_driver: str, night: Night
) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE races (id integer PRIMARY KEY)"))
    declare(engine, "ticks", NOTHING_AHEAD, sa.Column("race_id", sa.Integer, sa.ForeignKey("races.id")))
    engine.dispose()

    crowd = midnight.run(database, any_driver, [night.begins], races_first=True)

    nobody_failed(crowd)
    assert sum(met.created for met in crowd) == 1
    assert deadlocks(engine) == 0
    with engine.begin() as connection:
        assert made_by_inserts(connection) == [partition_of(night.begins, night.ends, night.day)]
        assert connection.scalar(text("SELECT count(*) FROM races")) == PROCESSES
        assert connection.scalar(text("SELECT count(*) FROM ticks")) == PROCESSES
        assert strays(connection) == 0
