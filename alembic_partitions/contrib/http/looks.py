"""Questions to the database: each bounded in time, and in how many wait for it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, literal, select
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.catalog import Run
from alembic_partitions.contrib import calls
from alembic_partitions.contrib.source import Source
from alembic_partitions.health import WARN_DAYS, Health
from alembic_partitions.maintenance import View
from alembic_partitions.standing import Row, judge

from .waiting import Single, in_thread, seen

T = TypeVar("T")

#: Seconds that somebody waits for an answer of the database.
PATIENCE = 10.0
#: Seconds that a scrape waits for a look: Prometheus itself gives up after ten.
SCRAPE_PATIENCE = 8.0
#: Seconds that a check of /readyz may take.
CHECK_PATIENCE = 5.0


class Looks:
    """What routes ask of a source, sync or async, from an event loop."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._view: Single[View] = Single(lambda: self._away(source.view))
        self._runs: Single[View] = Single(lambda: self._bounded(lambda: source.run(self._past)))
        self._ping: Single[None] = Single(lambda: self._bounded(lambda: source.run(_ping)))
        self._judged: tuple[View, asyncio.Task[list[Row]]] | None = None

    async def view(self, patience: float | None = None) -> View:
        """Return the tables as they stood a few seconds ago."""
        return await self._view(PATIENCE if patience is None else patience)

    async def rows(self) -> tuple[View, list[Row]]:
        """Return them with what is to be said of each: judged once a look, which takes a while with many."""
        view, loop = await self.view(), asyncio.get_running_loop()
        if self._judged is None or self._judged[0] is not view or self._judged[1].get_loop() is not loop:
            judging = loop.create_task(in_thread(lambda: judge([("", view)], WARN_DAYS)))
            judging.add_done_callback(seen)
            self._judged = view, judging
        return view, await asyncio.shield(self._judged[1])

    async def health(self) -> Health:
        """Tell whether inserts are safe; never raises, as :meth:`Source.health`."""
        try:
            view, rows = await self.rows()
        except asyncio.TimeoutError:
            return self.source.unknown(TimeoutError("the database does not answer"))
        except Exception as failure:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            return self.source.unknown(failure)
        return self.source.judged(view, rows)

    async def runs(self) -> Sequence[Run]:
        """Return the last runs, the newest first, and what people were told of."""
        return (await self._runs(PATIENCE)).runs or ()

    async def ping(self) -> None:
        """Make sure that the database answers."""
        await self._ping(CHECK_PATIENCE)

    async def run(self, work: Callable[[Connection], T], patience: float | None = None) -> T:
        """Call ``work`` with a connection of its own.

        :param patience: seconds to wait for it; ``None`` waits for as long as it takes.
        """
        return await asyncio.wait_for(self._away(lambda: self.source.run(work)), patience)

    def _past(self, side: Connection) -> View:
        return maintenance.past_runs(side, schema=self.source.schema, alerts=True)

    async def _bounded(self, work: Callable[[], T]) -> T:
        """Do what a :class:`Single` gives up in the end: a task is ended then, a thread cannot be."""
        awaited = self._away(work)
        return await (asyncio.wait_for(awaited, calls.PATIENCE) if self.source.is_async else awaited)

    async def _away(self, work: Callable[[], T]) -> T:
        if self.source.is_async:
            return await greenlet_spawn(work)
        return await in_thread(work)


def _ping(side: Connection) -> None:
    side.execute(select(literal(1)))
