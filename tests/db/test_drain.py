"""Drain: rows of a DEFAULT partition moved to their windows, none lost, none twice, whoever is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import maintenance
from alembic_partitions.maintenance import repairing
from alembic_partitions.plan import DRAINING_MARK
from tests.databases import Database, Roles
from tests.tables import NOW, columns, declare, listening, partitions, policy, quote, rows, run, scalar

WINDOW = "odds_2026_03_20"
# 2026-03-20 in Auckland.
BEGIN, END = "2026-03-19 11:00:00+00", "2026-03-20 11:00:00+00"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock, and not by ALEMBIC_PARTITIONS_NOW: nothing is moved by a rehearsed one."""
    monkeypatch.setattr(repairing, "clock", lambda database_now: NOW)


def repair(engine: Engine, **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.repair(connection, **kw).results
    return result


def script(engine: Engine, **kw: Any) -> str:
    with engine.connect() as connection:
        return "".join(plan.sql() for plan in maintenance.plan_repair(connection, **kw))


def with_default(engine: Engine, name: str = "odds", *items: Any, **kw: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine, name, kw.pop("rules", None), *items, **kw)
    run(engine, f"CREATE TABLE {quote(name + '_rest')} PARTITION OF {quote(name)} DEFAULT")


def strand(engine: Engine, count: int = 100, begin: str = BEGIN, table: str = "odds") -> None:
    """Write rows, a minute apart, where no partition is."""
    run(
        engine,
        f"INSERT INTO {quote(table)} (at, note) SELECT timestamptz '{begin}' + i * interval '14 s', 'n' || i"
        f" FROM generate_series(0, {count - 1}) i",
    )


def state(engine: Engine, table: str = "odds") -> tuple[Any, ...]:
    """Count the rows and sum them up, wherever they are: a table that rows are gathered in is looked at, too."""
    apart = rows(
        engine,
        "SELECT d.objoid::regclass::text FROM pg_description d JOIN pg_class c ON c.oid = d.objoid"
        " WHERE starts_with(d.description, :mark) AND NOT c.relispartition",
        mark=DRAINING_MARK,
    )
    sources = [quote(table), *(name for (name,) in apart)]
    union = " UNION ALL ".join(f"SELECT id, at, note FROM {name}" for name in sources)
    (found,) = rows(
        engine,
        "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id, at)) FROM"
        f" (SELECT id, at AT TIME ZONE 'UTC', note, at FROM ({union}) u) t",
    )
    return found


def in_default(engine: Engine, table: str = "odds_rest") -> int:
    return int(scalar(engine, f"SELECT count(*) FROM ONLY {quote(table)}"))


def nothing_is_held(engine: Engine) -> bool:
    held = rows(
        engine,
        "SELECT l.locktype, l.mode, a.query FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE pid <> pg_backend_pid() AND a.datname = current_database()"
        " AND (l.locktype = 'advisory' OR l.locktype = 'relation' AND l.mode <> 'AccessShareLock')",
    )
    return not held


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_stranded_rows_move_to_their_windows(engine: Engine, batch: int) -> None:
    with_default(engine)
    strand(engine)
    strand(engine, 5, "2026-03-25 01:37:11+00")
    before = state(engine)
    result = repair(engine, batch=batch)
    assert result.error is None
    assert result.moved == 105
    assert result.created == (WINDOW, "odds_2026_03_25")
    assert state(engine) == before
    assert in_default(engine) == 0
    assert scalar(engine, f"SELECT count(*) FROM {WINDOW}") == 100
    mark = scalar(engine, f"SELECT obj_description('{WINDOW}'::regclass)")
    assert mark == "alembic_partitions: made by repair"
    again = repair(engine, batch=batch)
    assert (again.moved, again.created, again.error) == (0, (), None)
    assert nothing_is_held(engine)


@pytest.mark.parametrize("batch", [10_000, 30], ids=["at once", "gathered"])
def test_what_is_printed_is_what_is_sent(engine: Engine, batch: int) -> None:
    with_default(engine, "100% of 'it'")
    strand(engine, table="100% of 'it'")
    printed = script(engine, batch=batch)
    with listening(engine) as sent:
        repair(engine, batch=batch)
    lines = [line.removesuffix(";") for line in printed.splitlines() if not line.startswith("--")]
    known = {*lines, "BEGIN", "COMMIT"}
    words = ("SET LOCAL", "SELECT pg_adv", "CREATE", "ALTER", "COMMENT", "LOCK", "WITH", "DROP", "SET CONSTRAINTS")
    changes = [s for s in sent.statements if s.startswith(words)]
    assert [s for s in changes if s not in known] == []
    assert {line for line in lines if line.startswith(words)} == set(changes)
    assert ("cannot be seen through the table" in printed) is (batch == 30)
