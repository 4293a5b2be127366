"""Budget: 2 tables x 30 days, each partition committed by itself, against one hand-written batch: 1.25 times.

The batch is the same LIKE + ATTACH statements, sent at once as one text in one transaction: what a person
would paste into psql, and the least that PostgreSQL can do.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Engine, text

from alembic_partitions import PartitionPolicy, maintenance
from tests.apps import declare
from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.databases import Database, Databases

ROUNDS = setting("BENCH_ROUNDS", 7)
DAYS = 30
BUDGET = 1.25
TABLES = ("clicks", "views")

POLICY = PartitionPolicy("at", timezone="Pacific/Auckland", premake=DAYS - 1, lookback=0)

DROP_PARTITIONS = text("""
DO $$ DECLARE part regclass; BEGIN
  FOR part IN SELECT inhrelid FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relkind = 'r' LOOP
    EXECUTE format('DROP TABLE %s', part);
  END LOOP;
END $$
""")


def like_and_attach(engine: Engine) -> str:
    """Write down what `plan` prints for empty tables, reduced to the two statements that cannot be spared."""
    with engine.connect() as connection:
        plans = maintenance.plan(connection)
    lines = [line for plan in plans for line in plan.sql().splitlines()]
    spared = ("CREATE TABLE", "ALTER TABLE")
    kept = [line for line in lines if line.startswith(spared)]
    assert len(kept) == 2 * len(TABLES) * DAYS
    return "\n".join(kept)


def test_two_tables_of_thirty_days(database: Database, databases: Databases, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE sites (id integer PRIMARY KEY)"))
    for name in TABLES:
        declare(
            engine,
            name,
            POLICY,
            sa.Column("site_id", sa.Integer, sa.ForeignKey("sites.id")),
            sa.Column("shout", sa.Text, sa.Computed("upper(note)")),
        )
        with engine.begin() as connection:
            connection.execute(text(f"CREATE INDEX ON {name} (site_id, at DESC)"))
            connection.execute(text(f"CREATE INDEX ON {name} (note) WHERE note IS NOT NULL"))

    def empty() -> None:
        with engine.begin() as connection:
            connection.execute(DROP_PARTITIONS)

    empty()
    batch = like_and_attach(engine)

    def by_hand(into: Side) -> None:
        with engine.connect() as connection, into.measured():
            connection.exec_driver_sql(batch)
            connection.commit()
        counted()

    def by_ensure(into: Side) -> None:
        with engine.connect() as connection, into.measured():
            maintenance.ensure(connection)
        counted()

    def counted() -> None:
        with engine.connect() as connection:
            count = connection.scalar(
                text(
                    "SELECT count(*) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE relkind = 'r'"
                )
            )
        assert count == len(TABLES) * DAYS
        empty()

    sides: dict[str, Callable[[Side], None]] = {"by hand": by_hand, "ensure": by_ensure}
    found = in_turns(sides, ROUNDS)
    row = Row("key, 2 indexes, foreign key, generated", found["by hand"], found["ensure"], BUDGET)
    show(f"Create {len(TABLES)} x {DAYS} days: one batch by hand, ensure()", databases.describe(), [row])
