"""Budget: `ensure()` with nothing to do takes at most 1.3 times as long with 1,000 partitions as with 30.

BENCH_TABLES=100 is the full size; making 100,000 partitions takes minutes, so the default is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, event, text

from alembic_partitions import PartitionPolicy, maintenance
from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.databases import Database, Databases

ROUNDS = setting("BENCH_ROUNDS", 7)
TABLES = setting("BENCH_TABLES", 20)
FEW, MANY = 30, setting("BENCH_PARTITIONS", 1_000)
BUDGET = 1.3

POLICY = PartitionPolicy("at", premake=0, lookback=0)

# Older days for one table, by SQL alone, committed now and then.
OLDER_DAYS = """
DO $$ DECLARE day date; BEGIN
  FOR n IN REVERSE {days}..2 LOOP
    day := (now() AT TIME ZONE 'UTC')::date - n;
    EXECUTE format('CREATE TABLE {table}_%s PARTITION OF {table} FOR VALUES FROM (%L) TO (%L)',
                   to_char(day, 'YYYY_MM_DD'), day || ' 00:00+00', (day + 1) || ' 00:00+00');
    IF n % 100 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$
"""


@pytest.fixture
def second_database(databases: Databases) -> Iterator[Database]:
    database = databases.clone()
    yield database
    databases.drop(database.name)


def declare(engine: Engine, name: str) -> None:
    """Declare the smallest table that can be partitioned: it is the catalog that is read here."""
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        key = sa.Column("at", sa.DateTime(timezone=True), nullable=False)
        operations.create_partitioned_table(name, key, policy=POLICY)


@contextmanager
def filled(database: Database, partitions: int) -> Iterator[Engine]:
    """A database whose tables have that many partitions each, all that the policy wants among them."""
    engine, past = create_engine(database.url), partitions - FEW
    for number in range(TABLES):
        with pytest.MonkeyPatch.context() as patch:  # made long ago, on the day before the older ones
            long_ago = datetime.now(timezone.utc) - timedelta(days=past + 1)
            patch.setenv(maintenance.NOW_VARIABLE, long_ago.isoformat())
            declare(engine, f"table_{number}")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(OLDER_DAYS.format(table=f"table_{number}", days=past)))
    with engine.begin() as connection:  # the horizon comes last, as in a table that has grown old
        horizon = {"premake": FEW - 2, "lookback": 1}
        connection.execute(
            text("UPDATE partition_config SET premake = :premake, lookback = :lookback"), horizon
        )
    with engine.connect() as connection:
        assert not any(result.error for result in maintenance.ensure(connection).results)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))  # as autovacuum would have done
    yield engine
    engine.dispose()


def ensure(engine: Engine, into: Side) -> None:
    with engine.connect() as connection, into.measured():
        report = maintenance.ensure(connection)
    assert report.created == 0
    assert len(report.results) == TABLES
    assert not any(result.error or result.horizon_short for result in report.results)


def partitions_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM pg_inherits")) or 0)


def statements(engine: Engine) -> list[str]:
    sent: list[str] = []

    def note(*args: object) -> None:
        sent.append(str(args[2]))

    event.listen(engine, "before_cursor_execute", note)
    ensure(engine, Side())
    event.remove(engine, "before_cursor_execute", note)
    return sent


def test_nothing_to_do(database: Database, second_database: Database, databases: Databases) -> None:
    with filled(database, FEW) as few, filled(second_database, MANY) as many:
        sides = {"few": partial(ensure, few), "many": partial(ensure, many)}
        found = in_turns(sides, ROUNDS)
        assert (partitions_of(few), partitions_of(many)) == (TABLES * FEW, TABLES * MANY)
        sent = [len(statements(engine)) for engine in (few, many)]
    notes = (f"{sent[0]} and {sent[1]}, budget 2",)
    row = Row(
        f"{TABLES} tables: {FEW} and {MANY:,} partitions each", found["few"], found["many"], BUDGET, notes
    )
    show("Nothing to do: ensure() over all tables", databases.describe(), [row], ("statements",))
