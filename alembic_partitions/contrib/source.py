"""Where the integrations look: one engine or keeper, sync or async, looked at once for everybody who asks.

A scrape, a health check and a page that is open in ten browsers cost one look together. A look that failed is
remembered as well, so that a database in need is not asked ever more often; one that does not end is given up
after half a minute, so that a connection that never answers blinds nobody for good.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.health import WARN_DAYS, Health
from alembic_partitions.keeper import Keeper, apart, seconds
from alembic_partitions.maintenance import View
from alembic_partitions.sessions import side_connection
from alembic_partitions.standing import Row, health_of_view, judge
from alembic_partitions.talk import explain

from . import calls
from .calls import Call, next_after

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

#: What may be looked at. A keeper tells what its hooks met, too, and looks with its DDL role.
Watched: TypeAlias = "Engine | AsyncEngine | Keeper | AsyncKeeper"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Sight:
    """A look, or what it failed over; times on the monotonic clock."""

    began: float
    ended: float
    view: View | None = None
    error: Exception | None = None

    def serves(self, asked: float, forgotten: float, max_age: float | None, usual: float) -> bool:
        """Tell whether whoever asked then may have it: what it saw is no newer than its beginning."""
        if self.began < forgotten:
            return False
        if self.error is not None:  # whoever asked while it was failing has it, too
            return self.ended >= asked - (usual if max_age is None else max_age)
        # One that takes long is good for as long, or there would be nothing but looks.
        return self.began >= asked - (max(usual, self.ended - self.began) if max_age is None else max_age)


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
        self._sight: _Sight | None = None
        self._forgotten = time.monotonic()
        self._renew()

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held for a moment, never while anything is waited for
        self._looks: list[Call] = []

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
        :raises TimeoutError: the database has not answered for half a minute.
        :raises Exception: what the look, or the last one, failed over.
        """
        asked, forgotten = time.monotonic(), self._forgotten
        while True:
            sight, look = self._seen_or_under_way(asked, forgotten, max_age)
            if sight is not None:
                break
            if look is None or not look.wait():
                sight = self._unanswered(look)
                break
        if sight.error is not None:
            raise sight.error
        assert sight.view is not None
        return sight.view

    async def aview(self, max_age: float | None = None) -> View:
        """Look as :meth:`view` does, without stalling the event loop."""
        return await self._away(lambda: self.view(max_age))

    def health(self, *, warn_days: float = WARN_DAYS, max_age: float | None = None) -> Health:
        """Tell whether inserts are safe; never raises, as a keeper's own :meth:`Keeper.health`."""
        try:
            view = self.view(max_age)
        except Exception as failure:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            return self.unknown(failure)
        return self.judged(view, judge([("", view)], warn_days))

    def judged(self, view: View, rows: Iterable[Row]) -> Health:
        """Return how all tables of a look stand, with what a keeper's hooks met."""
        error = self._keeper.last_error if self._keeper is not None else None
        return health_of_view(view, error=error, met=self.no_partition_errors, rows=rows)

    def unknown(self, failure: Exception) -> Health:
        """Return what is known where a look failed."""
        return Health(ok=False, error=explain(failure), no_partition_errors=self.no_partition_errors)

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
        return None if sight is None else time.monotonic() - sight.began

    def forget(self) -> None:
        """Look anew next time: something was changed, which a look under way may not have seen."""
        self._forgotten = time.monotonic()

    def _seen_or_under_way(
        self, asked: float, forgotten: float, max_age: float | None
    ) -> tuple[_Sight | None, Call | None]:
        """Return the last look if it is good, else one to wait for; nothing while too many hang."""
        if os.getpid() != self._pid:  # after fork the lock may be held by a thread that is not here
            self._renew()
        with self._lock:
            sight = self._sight
            if sight is not None and sight.serves(asked, forgotten, max_age, self._max_age):
                return sight, None
            looks = self._looks = [look for look in self._looks if look.is_under_way]
            if not looks or time.monotonic() - looks[-1].began >= next_after(len(looks)):
                looks.append(Call(self._look, self.is_async))
            return None, looks[-1] if looks[-1].left > 0 else None

    def _look(self) -> None:
        began = time.monotonic()
        try:
            view = self.run(lambda side: maintenance.look(side, schema=self.schema))
        except Exception as error:  # noqa: BLE001  # raised by view(), now and for whoever asks next
            self._see(_Sight(began, time.monotonic(), error=error))
        else:
            self._see(_Sight(began, time.monotonic(), view))

    def _see(self, sight: _Sight) -> None:
        with self._lock:
            if self._sight is None or sight.began >= self._sight.began:
                self._sight = sight

    def _unanswered(self, look: Call | None) -> _Sight:
        """Return what to raise in place of a look that does not end; each that is given up is remembered."""
        error = TimeoutError(f"the database has not answered within {calls.PATIENCE:g} s")
        now = time.monotonic()
        sight = _Sight(now if look is None else look.began, now, error=error)
        if look is not None:
            self._see(sight)
        return sight

    async def _away(self, work: Callable[[], T]) -> T:
        if self.is_async:
            return await greenlet_spawn(work)
        return await asyncio.to_thread(work)
