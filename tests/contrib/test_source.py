"""One look for everybody who asks, on a sync engine and on an async one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

import alembic_partitions
from alembic_partitions import maintenance
from alembic_partitions.contrib import calls
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
    source.forget()
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


# -- what a look has seen, and when --------------------------------------------------------------------


class Held:
    """Holds looks after they have read, until they are let on."""

    def __init__(self) -> None:
        self.has_read, self.on = threading.Event(), threading.Event()
        self._real = maintenance.look

    def __call__(self, *args: object, **options: object) -> maintenance.View:
        view = self._real(*args, **options)  # type: ignore[arg-type]
        self.has_read.set()
        assert self.on.wait(60)
        return view


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held()
    monkeypatch.setattr(maintenance, "look", made)
    yield made
    made.on.set()


@pytest.mark.parametrize("how", ["forget", "max_age"])
def test_a_look_that_was_under_way_is_not_taken_for_a_fresh_one(engine: Engine, held: Held, how: str) -> None:
    declare(engine, "odds", policy())
    source = Source(engine, max_age="1 h")
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(source.view)
        assert held.has_read.wait(60)
        declare(engine, "results", policy())
        if how == "forget":
            source.forget()
        after = pool.submit(source.view, 0 if how == "max_age" else None)
        held.on.set()
        assert len(before.result(60).tables) == 1
        assert len(after.result(60).tables) == 2
    assert len(source.view().tables) == 2


def test_a_look_is_as_old_as_its_beginning(engine: Engine, held: Held) -> None:
    declare(engine, "odds", policy())
    source = Source(engine)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(source.view)
        assert held.has_read.wait(60)
        threading.Event().wait(0.05)
        held.on.set()
        looking.result(60)
    assert source.age is not None
    assert source.age >= 0.05


# -- a connection that never answers -------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that lets everybody in and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    for one in taken:
        one.close()


def test_a_connection_that_never_answers_is_given_up_and_remembered(
    database: Database, silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "PATIENCE", 0.1)
    source = Source(create_engine(database.url.set(host="127.0.0.1", port=silent)))
    for _ in range(3):
        with pytest.raises(TimeoutError, match="has not answered"):
            source.view()
    assert len(source._looks) == 1, "it is remembered, as each look that failed"
    for _ in range(20):
        source.forget()
        assert "has not answered" in (source.health().error or "")
    assert 1 < len(source._looks) < 10, "then another one begins, ever more rarely"


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_the_next_look_sees_what_one_that_hangs_does_not(
    engine: Engine, database: Database, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    go, begun, real = threading.Event(), [], maintenance.look

    def look(side: Connection, **options: Any) -> maintenance.View:
        begun.append(side)
        if len(begun) > 1:
            return real(side, **options)
        if side.dialect.is_async:
            await_only(asyncio.sleep(3600))
        assert go.wait(60)
        return maintenance.View()

    monkeypatch.setattr(maintenance, "look", look)
    url = database.driver_url(driver)
    source = Source(create_async_engine(url) if driver == "asyncpg" else create_engine(url))

    async def ask() -> int:
        with monkeypatch.context() as patience:
            patience.setattr(calls, "PATIENCE", 0.2)
            with pytest.raises(TimeoutError):
                await source.aview()
        source.forget()
        with monkeypatch.context() as patience:
            patience.setattr(calls, "_RAREST", 0.0)
            return len((await source.aview()).tables)

    assert asyncio.run(ask()) == 1
    go.set()
