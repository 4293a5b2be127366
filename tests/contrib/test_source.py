"""One look for everybody who asks, on a sync engine and on an async one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import alembic_partitions
from alembic_partitions import maintenance
from alembic_partitions.contrib.source import Source
from alembic_partitions.errors import ConfigurationError
from alembic_partitions.health import State
from tests.databases import Database
from tests.tables import declare, policy, run


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every look that reaches the database."""
    made: list[str] = []
    real = maintenance.look

    def look(*args: object, **options: object) -> maintenance.View:
        made.append("look")
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(maintenance, "look", look)
    return made


def test_ten_who_ask_at_once_cost_one_look(engine: Engine, looks: list[str]) -> None:
    declare(engine, "odds", policy())
    source = Source(engine)
    with ThreadPoolExecutor(10) as pool:
        views = list(pool.map(lambda _: source.view(), range(10)))
    assert looks == ["look"]
    assert {id(view) for view in views} == {id(views[0])}


def test_what_was_changed_is_seen_once_it_is_forgotten(engine: Engine, looks: list[str]) -> None:
    declare(engine, "odds", policy())
    source = Source(engine, max_age="1 h")
    assert len(source.view().tables) == 1
    declare(engine, "results", policy())
    assert len(source.view().tables) == 1
    source.forget()
    assert len(source.view().tables) == 2
    assert len(source.view(max_age=0).tables) == 2
    assert len(looks) == 3


def test_a_failed_look_is_remembered_too(database: Database, looks: list[str]) -> None:
    source = Source(create_engine(database.url.set(port=1)), max_age="1 h")
    for _ in range(3):
        found = source.health()
        assert (found.ok, found.state) == (False, State.CRITICAL)
    assert looks == [], "it never came so far"
    source._sight = None
    with pytest.raises(Exception, match="port 1"):
        source.view()


def test_a_keeper_tells_what_its_hooks_met(engine: Engine) -> None:
    declare(engine, "odds", policy())
    keeper = alembic_partitions.keep(engine)
    keeper.ensure()
    source = Source(keeper)
    assert source.health().no_partition_errors == {}
    assert source.health().state is State.HEALTHY
    assert Source(engine).health().no_partition_errors is None
    keeper._error = "the DDL role is refused"
    assert source.health().state is State.DEGRADED


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_awaited_on_any_engine(engine: Engine, database: Database, driver: str) -> None:
    declare(engine, "odds", policy())

    async def ask() -> int:
        url = database.url.set(drivername=f"postgresql+{driver}")
        watched = create_async_engine(url) if driver == "asyncpg" else create_engine(url)
        source = Source(watched)
        views = await asyncio.gather(*(source.aview() for _ in range(4)))
        health = await source.ahealth()
        assert health.tables[0].table == "public.odds"
        assert await source.arun(lambda side: side.dialect.driver) == driver
        return len({id(view) for view in views})

    assert asyncio.run(ask()) == 1


def test_another_schema(engine: Engine) -> None:
    declare(engine, "odds", policy())
    run(engine, "CREATE SCHEMA elsewhere")
    with pytest.raises(ConfigurationError, match="elsewhere"):
        Source(engine, schema="elsewhere").view()
    assert "elsewhere" in (Source(engine, schema="elsewhere").health().error or "")
