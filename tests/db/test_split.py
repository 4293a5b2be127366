"""Split: a partition gives way to its windows, and nobody reads, writes or loses anything differently."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine

from alembic_partitions import PartitionPolicy, maintenance
from tests.databases import Database
from tests.ledger import LEVELS, Writer, at_work, differences, keep_ledger
from tests.tables import NOW, declare, partitions, policy, quote, rows, run, scalar


def wide(
    engine: Engine,
    name: str = "odds",
    *items: Any,
    days: int = 5,
    per_day: int = 20,
    rules: PartitionPolicy | None = None,
    written: str = "at, note",
    values: str = "{at}, 'n' || i",
    schema: str = "public",
    key_type: str = "timestamptz",
) -> str:
    """Declare a table whose first partition is a plain one with all there was, as a conversion leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        table = rules or policy(premake=1, lookback=0)
        declare(engine, name, table, *items, schema=None if schema == "public" else schema)
    parent, old = f"{quote(schema)}.{quote(name)}", f"{quote(schema)}.{quote(name + '_old')}"
    until = scalar(
        engine,
        "SELECT min(pg_get_expr(c.relpartbound, 0)) FROM pg_class c"
        " JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = CAST(:parent AS regclass)",
        parent=parent,
    )
    first = until.removeprefix("FOR VALUES FROM (").split(")")[0]
    run(
        engine,
        f"CREATE TABLE {old} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)",
        f"ALTER TABLE {parent} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ({first})",
        f"COMMENT ON TABLE {old} IS 'alembic_partitions: made by convert'",
    )
    at = f"({first}::{key_type} - interval '7 min' - i * interval '1 day' / {per_day})::{key_type}"
    run(
        engine,
        f"INSERT INTO {parent} ({written}) SELECT {values.format(at=at)}"
        f" FROM generate_series(0, {days * per_day - 1}) i",
    )
    return name + "_old"


def split(engine: Engine, table: str = "odds", **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.split(connection, table=table, **kw).results
    return result


def everything(engine: Engine, table: str = "odds") -> list[tuple[Any, ...]]:
    return rows(engine, f"SELECT t::text FROM {table} t ORDER BY 1")


def left_over(engine: Engine) -> list[str]:
    """Return the tables, functions and triggers that belong to a split and not to the result."""
    found = rows(
        engine,
        "SELECT c.relname FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0"
        " WHERE d.description ~ '^alembic_partitions: (splitting|helper|windows)'"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '_split_log'"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ '^alembic_partitions'"
        " UNION ALL SELECT conname FROM pg_constraint WHERE conname ~ '^alembic_partitions'",
    )
    return [name for (name,) in found]


def test_a_partition_gives_way_to_its_windows(engine: Engine) -> None:
    wide(engine)
    before = everything(engine)
    result = split(engine, batch=17)
    assert result.error is None
    assert everything(engine) == before
    assert len(before) == 100
    assert result.moved == 100
    assert partitions(engine) == [*result.created, "odds_2026_04_05", "odds_2026_04_06"]
    assert result.created == tuple(
        f"odds_2026_0{month}_{day}" for month, day in [(3, 31), (4, "01"), (4, "02"), (4, "03"), (4, "04")]
    )
    assert left_over(engine) == []


def test_what_is_written_meanwhile_is_kept(engine: Engine, database: Database) -> None:
    wide(engine, per_day=600)
    keep_ledger(engine)
    crowd = create_engine(database.url, poolclass=NullPool)
    writers = [Writer(crowd, LEVELS[n % 3], n, "2026-04-04 12:00+00") for n in range(6)]
    with at_work(writers):
        time.sleep(0.3)
        result = split(engine, batch=150, pause=0.01)
        time.sleep(0.3)
    assert result.error is None, result.error
    assert differences(engine) == []
    assert left_over(engine) == []
    print(result, [w.changes for w in writers], max(w.longest for w in writers))
