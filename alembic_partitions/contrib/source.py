"""Where the integrations look: one engine or keeper, sync or async, looked at once for everybody who asks.

A scrape, a health check and a page that is open in ten browsers cost one look together. A look that failed is
remembered as well, so that a database in need is not asked ever more often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.health import WARN_DAYS, Health
from alembic_partitions.keeper import Keeper, seconds
from alembic_partitions.keeper import _apart as apart
from alembic_partitions.maintenance import View
from alembic_partitions.sessions import Turn, side_connection
from alembic_partitions.standing import health_of_view
from alembic_partitions.talk import explain

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

#: What may be looked at. A keeper tells what its hooks met, too, and looks with its DDL role.
Watched: TypeAlias = "Engine | AsyncEngine | Keeper | AsyncKeeper"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sight:
    """A look, or what it failed over; ``at`` on the monotonic clock."""

    at: float
    view: View | None = None
    error: Exception | None = None


class Source:
    """Looks at the tables of one database.

    The plain methods are for a synchronous engine, or for SQLAlchemy's greenlet; those with an ``a`` in front
    are awaited, whatever the engine: work of a synchronous one is done in a thread, so the loop never stalls.

    :param watched: an engine or a keeper.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param max_age: how long a look is good for.
    """

    def __init__(self, watched: Watched, *, schema: str | None = None, max_age: str = "15 s") -> None:
        keeper = watched.sync_keeper if isinstance(watched, AsyncKeeper) else watched
        self._keeper = keeper if isinstance(keeper, Keeper) else None
        if isinstance(keeper, Keeper):
            self.engine, schema = keeper.ddl_engine, schema or keeper.schema
        else:
            self.engine = keeper if isinstance(keeper, Engine) else keeper.sync_engine
        self.schema = schema
        self._max_age = seconds("max_age", max_age)
        self._turn = Turn(self.engine.dialect.is_async)
        self._sight: _Sight | None = None

    @property
    def is_async(self) -> bool:
        """Whether only the awaited methods can be called, outside SQLAlchemy's greenlet."""
        return self.engine.dialect.is_async

    def run(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` with a connection of its own, not in a transaction; no hook makes anything for it."""
        with apart(), side_connection(self.engine) as side:
            return work(side)

    async def arun(self, work: Callable[[Connection], T]) -> T:
        """Call ``work`` as :meth:`run` does, without stalling the event loop."""
        return await self._away(lambda: self.run(work))

    def view(self, max_age: float | None = None) -> View:
        """Look at all tables with their sizes, or return the last look.

        :param max_age: seconds that the last look may be old, in place of our own.
        :raises Exception: what the look, or the last one, failed over.
        """
        asked = time.monotonic()
        with self._turn():
            sight = self._sight
            # Whoever waited for another's look has it, though it asks for a fresh one.
            if sight is None or sight.at < asked - (self._max_age if max_age is None else max_age):
                sight = self._sight = self._look()
        if sight.error is not None:
            raise sight.error
        assert sight.view is not None
        return sight.view

    async def aview(self, max_age: float | None = None) -> View:
        """Look as :meth:`view` does, without stalling the event loop."""
        return await self._away(lambda: self.view(max_age))

    def health(self, *, warn_days: float = WARN_DAYS, max_age: float | None = None) -> Health:
        """Tell whether inserts are safe; never raises, as a keeper's own :meth:`Keeper.health`."""
        error = self._keeper.last_error if self._keeper is not None else None
        met = self.no_partition_errors
        try:
            view = self.view(max_age)
        except Exception as failure:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            return Health(ok=False, error=explain(failure), no_partition_errors=met)
        return health_of_view(view, warn_days=warn_days, error=error, met=met)

    async def ahealth(self, *, warn_days: float = WARN_DAYS, max_age: float | None = None) -> Health:
        """Tell as :meth:`health` does, without stalling the event loop."""
        return await self._away(lambda: self.health(warn_days=warn_days, max_age=max_age))

    @property
    def no_partition_errors(self) -> dict[str, int] | None:
        """Inserts of this process that found no partition; ``None`` where no keeper counts them."""
        return self._keeper.no_partition_errors if self._keeper is not None else None

    @property
    def age(self) -> float | None:
        """Seconds since the last look began; ``None`` where there is none."""
        sight = self._sight
        return None if sight is None else time.monotonic() - sight.at

    def forget(self) -> None:
        """Look anew next time: something was changed."""
        self._sight = None

    def _look(self) -> _Sight:
        try:
            view = self.run(lambda side: maintenance.look(side, schema=self.schema))
        except Exception as error:  # noqa: BLE001  # raised by view(), now and for whoever asks next
            return _Sight(time.monotonic(), error=error)
        return _Sight(time.monotonic(), view)

    async def _away(self, work: Callable[[], T]) -> T:
        if self.is_async:
            return await greenlet_spawn(work)
        return await asyncio.to_thread(work)
