"""Real data: a recorded exchange market, stored by New Zealand day as a stream would do it.

The recording lies beside the checkout, not in it; without it there is nothing to show here.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import PartitionPolicy, keep
from tests.databases import Database

RECORDING = Path(__file__).resolve().parents[3] / "shared" / "data" / "betfair" / "BASIC-1.132153978"
MESSAGES = 480

ZONE = "Pacific/Auckland"
NIGHTFALL, FULL_DAY, RACE_DAY = date(2017, 6, 13), date(2017, 6, 14), date(2017, 6, 15)

POLICY = PartitionPolicy(
    "published_at", interval="day", timezone=ZONE, premake=0, lookback=0, max_behind=None
)

LADDER_LEVELS = sa.Table(
    "ladder_levels",
    sa.MetaData(schema="stream_ingest"),
    sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
    sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("published_ms", sa.BigInteger, nullable=False),
    sa.Column("market_id", sa.Text, nullable=False),
    sa.Column("runner_id", sa.BigInteger, nullable=False),
    sa.Column("last_traded_price", sa.Numeric(8, 2)),
    sa.PrimaryKeyConstraint("id", "published_at"),
)

pytestmark = pytest.mark.skipif(not RECORDING.is_file(), reason=f"the recorded market is not at {RECORDING}")


def levels_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each runner that a message speaks of: one that joins the market has no price yet."""
    published = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=message["pt"])
    return [
        {
            "published_at": published,
            "published_ms": message["pt"],
            "market_id": market["id"],
            "runner_id": change["id"],
            "last_traded_price": change.get("ltp"),
        }
        for market in message["mc"]
        for change in (market.get("marketDefinition", {}).get("runners", []) + market.get("rc", []))
    ]


@dataclass(frozen=True)
class Recorded:
    engine: Engine
    messages: int
    sent: Counter[int]
    """Rows by publish time in milliseconds."""

    def all(self, query: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]


@pytest.fixture(scope="module")
def recorded(module_database: Database) -> Iterator[Recorded]:
    engine = create_engine(module_database.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA stream_ingest"))
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.create_partitioned_table(
            "ladder_levels",
            *(column._copy() for column in LADDER_LEVELS.columns),
            sa.PrimaryKeyConstraint("id", "published_at"),
            policy=POLICY,
            schema="stream_ingest",
        )
    with RECORDING.open(encoding="utf-8") as lines:
        messages = [json.loads(line) for line in lines]
    sent = asyncio.run(replay(module_database, messages))
    yield Recorded(engine, len(messages), sent)
    engine.dispose()


async def replay(database: Database, messages: list[dict[str, Any]]) -> Counter[int]:
    """Write each message as it comes, in a transaction of its own, on one long-lived connection."""
    engine = create_async_engine(database.driver_url("asyncpg"), pool_size=1, max_overflow=0)
    keep(engine, on_error="raise")
    sent = Counter[int]()
    async with engine.connect() as connection:
        for message in messages:
            levels = levels_of(message)
            if levels:
                async with connection.begin():
                    await connection.execute(LADDER_LEVELS.insert(), levels)
            sent[message["pt"]] += len(levels)
    await engine.dispose()
    return sent


def test_every_runner_change_is_stored(recorded: Recorded) -> None:
    assert recorded.messages == MESSAGES
    assert recorded.sent.total() > 1_200
    stored = recorded.all("SELECT published_ms, count(*) FROM stream_ingest.ladder_levels GROUP BY 1")
    assert Counter(dict(stored)) == +recorded.sent


def test_the_instant_is_the_publish_time_to_the_millisecond(recorded: Recorded) -> None:
    assert recorded.all("""
        SELECT count(*) FROM stream_ingest.ladder_levels
        WHERE published_at <> 'epoch'::timestamptz + published_ms * interval '1 ms'
    """) == [(0,)]


def test_three_new_zealand_days_each_row_in_the_partition_of_its_own(recorded: Recorded) -> None:
    landed = recorded.all(f"""
        SELECT tableoid::regclass::text, ('epoch'::timestamptz + published_ms * interval '1 ms')
               AT TIME ZONE '{ZONE}' AS local
        FROM stream_ingest.ladder_levels""")
    days = {(name, local.date()) for name, local in landed}
    assert days == {
        (f"stream_ingest.ladder_levels_{day:%Y_%m_%d}", day) for day in (NIGHTFALL, FULL_DAY, RACE_DAY)
    }


def test_the_rows_of_each_day_are_as_many_as_the_recording_has(recorded: Recorded) -> None:
    # New Zealand's June is twelve hours ahead of UTC all through: an oracle without a time zone library.
    expected = Counter[date]()
    for milliseconds, rows in recorded.sent.items():
        expected[(datetime(1970, 1, 1) + timedelta(hours=12, milliseconds=milliseconds)).date()] += rows
    stored = {
        day: recorded.all(f"SELECT count(*) FROM stream_ingest.ladder_levels_{day:%Y_%m_%d}")[0][0]
        for day in expected
        if expected[day]
    }
    assert stored == dict(+expected)


def test_inserts_made_these_days_and_no_others(recorded: Recorded) -> None:
    made = recorded.all("""
        SELECT inhrelid::regclass::text FROM pg_inherits
        WHERE inhparent = 'stream_ingest.ladder_levels'::regclass
              AND obj_description(inhrelid, 'pg_class') = 'alembic_partitions: made by insert'
        ORDER BY 1""")
    assert [name for (name,) in made] == [
        f"stream_ingest.ladder_levels_{day:%Y_%m_%d}" for day in (NIGHTFALL, FULL_DAY, RACE_DAY)
    ]
