"""Unpartition: rows of many partitions come back into one plain table, and nobody loses anything meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import conversion, maintenance
from alembic_partitions.conversion import abort_unpartition, plan_unpartition, unpartition
from alembic_partitions.errors import ConversionRefused, LockNotAvailable, UnpartitionFailed, WorkFailed
from alembic_partitions.executor import converting, merge_swap
from alembic_partitions.maintenance import TableResult, ensuring
from tests.databases import Database, Roles
from tests.db.test_convert import RICH, content, cut_off, meanwhile, schema_of, to_partitioned
from tests.ledger import LEVELS, Writer, at_work, differences, keep_ledger
from tests.tables import NOW, declare, listening, partitions, policy, quote, rows, run, scalar

FIRST_OF = "odds_2026_04_05"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maintenance, ensuring):
        monkeypatch.setattr(module, "clock", lambda database_now: NOW)
    monkeypatch.setattr(converting, "PATIENCE", 3.0)


@pytest.fixture
def odds(engine: Engine) -> Engine:
    """Three windows, with rows in each."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, rules=policy(premake=1))
    fill(engine, 60)
    return engine


def fill(engine: Engine, count: int) -> None:
    run(
        engine,
        "INSERT INTO odds (at, note) SELECT timestamptz '2026-04-05 13:37:11+00' - i * interval '49 hours' /"
        f" {count}, 'n' || i FROM generate_series(0, {count - 1}) i",
    )


def to_plain(engine: Engine, table: str = "odds", **kw: Any) -> TableResult:
    with engine.connect() as connection:
        (result,) = unpartition(connection, table, **kw).results
    return result


def script(engine: Engine, table: str = "odds", **kw: Any) -> str:
    with engine.connect() as connection:
        return plan_unpartition(connection, table, **kw).sql()


def left_over(engine: Engine) -> list[str]:
    """Return what belongs to a merge that is under way and not to the result."""
    found = rows(
        engine,
        "SELECT c.relname FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0"
        " WHERE d.description ~ '^alembic_partitions: (merging|helper)'"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '_plain_log'"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ '^alembic_partitions'"
        " UNION ALL SELECT relname FROM pg_class WHERE relname ~ '_plain' AND relkind <> 't'",
    )
    return [name for (name,) in found]


def kind(engine: Engine, table: str = "odds") -> str:
    return str(scalar(engine, "SELECT relkind::text FROM pg_class WHERE relname = :name", name=table))


def test_rows_of_many_partitions_come_back(odds: Engine) -> None:
    before, parts = content(odds), partitions(odds)
    assert len(before) == 60
    result = to_plain(odds, batch=7)
    assert result.moved == 60
    assert result.proof is not None
    assert result.proof.startswith("60 rows, checksum ")
    assert content(odds) == before
    assert kind(odds) == "r"
    assert left_over(odds) == []
    assert partitions(odds, "odds_partitioned") == parts
    assert content(odds, "odds_partitioned") == before
    assert result.findings == (
        "its partitions stay as they were; once you are sure: DROP TABLE public.odds_partitioned",
    )
    assert scalar(odds, "SELECT count(*) FROM partition_config") == 0
    run(odds, "INSERT INTO odds (at) VALUES ('1999-12-31')", "DROP TABLE odds_partitioned")
    assert scalar(odds, "SELECT max(id) FROM odds") == 61
