"""An application under test: a few managed tables, and the same code on any of the three drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from typing import Any, TypeVar

import pytz
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from alembic_partitions import PartitionPolicy, keep
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.health import Health
from alembic_partitions.keeper import Keeper
from alembic_partitions.maintenance import Report
from tests.databases import Database

T = TypeVar("T")


def hours_from_now(hours: float) -> datetime:
    """An instant that far from now, aware."""
    return datetime.now(timezone.utc) + timedelta(hours=hours)


def days_from_now(days: float) -> datetime:
    """An instant that many days from now, aware."""
    return hours_from_now(24 * days)


def declare(
    engine: Engine,
    name: str,
    policy: PartitionPolicy,
    *more: sa.schema.SchemaItem,
    key_type: sa.types.TypeEngine[Any] | None = None,
    **kw: Any,
) -> None:
    """Create a managed table ``(id, <key>, note)`` as a migration would."""
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.create_partitioned_table(
            name,
            sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
            sa.Column(policy.key, key_type or sa.DateTime(timezone=True), nullable=False),
            sa.Column("note", sa.Text),
            sa.PrimaryKeyConstraint("id", policy.key),
            *more,
            policy=policy,
            **kw,
        )


def partitions(engine: Engine, name: str) -> dict[str, str]:
    """Return the partitions of a table: name and bounds, as PostgreSQL prints them under UTC."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
        rows = connection.execute(
            sa.text(
                "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits"
                " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = CAST(:name AS regclass) ORDER BY 1"
            ),
            {"name": name},
        )
        return {row[0]: row[1] for row in rows}


def rows_by_partition(engine: Engine, name: str) -> dict[str, int]:
    """Return how many rows lie in each partition that has any."""
    with engine.begin() as connection:
        table = sa.table(name, sa.column("tableoid"))
        part = sa.cast(sa.cast(table.c.tableoid, sa.dialects.postgresql.REGCLASS), sa.Text)
        return {row[0]: row[1] for row in connection.execute(sa.select(part, sa.func.count()).group_by(part))}


class App:
    """One engine with ``keep()`` on it. Work is written once, sync, and runs on async engines too."""

    def __init__(
        self,
        database: Database,
        driver: str,
        engine_options: dict[str, Any] | None = None,
        url: sa.URL | None = None,
        kept: bool = True,
        **keep_options: Any,
    ) -> None:
        self.driver = driver
        address = (url or database.url).set(drivername=f"postgresql+{driver}")
        options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, **(engine_options or {})}
        self._loop = asyncio.new_event_loop()
        self.async_engine: AsyncEngine | None = None
        self.keeper: Keeper | AsyncKeeper | None = None
        if driver == "asyncpg":
            self.async_engine = create_async_engine(address, **options)
            self.engine: Engine = self.async_engine.sync_engine
        else:
            self.engine = sa.create_engine(address, **options)
        if kept:
            self.keeper = (
                keep(self.async_engine, **keep_options)
                if self.async_engine
                else keep(self.engine, **keep_options)
            )

    def session(self, work: Callable[[Session], T], **options: Any) -> T:
        """Run ``work`` in one session and transaction, committed."""
        if self.async_engine is None:
            with Session(self.engine, **options) as session, session.begin():
                return work(session)
        return self._loop.run_until_complete(self._session(self.async_engine, work, options))

    async def _session(self, engine: AsyncEngine, work: Callable[[Session], T], options: dict[str, Any]) -> T:
        async with AsyncSession(engine, **options) as session, session.begin():
            return await session.run_sync(work)

    def connection(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one Core connection and transaction, committed."""
        if self.async_engine is None:
            with self.engine.begin() as connection:
                return work(connection)

        async def run(engine: AsyncEngine) -> T:
            async with engine.begin() as connection:
                return await connection.run_sync(work)

        return self._loop.run_until_complete(run(self.async_engine))

    def ensure(self) -> Report:
        """Call the keeper's ``ensure()``, awaited where it must be."""
        assert self.keeper is not None
        return self._done(self.keeper.ensure())

    def health(self) -> Health:
        """Call the keeper's ``health()``."""
        assert self.keeper is not None
        return self._done(self.keeper.health())

    def _done(self, result: T | Awaitable[T]) -> T:
        if isinstance(result, Awaitable):

            async def waited() -> T:
                return await result

            return self._loop.run_until_complete(waited())
        return result

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something on the event loop of the async engine."""
        return self._loop.run_until_complete(work)

    def close(self) -> None:
        """Give all connections back to the server."""
        if self.async_engine is not None:
            self._loop.run_until_complete(self.async_engine.dispose())
        else:
            self.engine.dispose()
        self._loop.close()


@contextmanager
def running(database: Database, driver: str, **options: Any) -> Iterator[App]:
    """An application for the length of a ``with`` block."""
    app = App(database, driver, **options)
    try:
        yield app
    finally:
        app.close()


def auckland_day(instant: datetime) -> date:
    """The date on Auckland's calendar at an instant."""
    return instant.astimezone(pytz.timezone("Pacific/Auckland")).date()
