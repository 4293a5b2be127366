"""Questions to the database: each bounded in time, and in how many wait for it at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection, literal, select
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.catalog import Run
from alembic_partitions.contrib.source import Source
from alembic_partitions.health import Health
from alembic_partitions.maintenance import View

from .waiting import Single, in_thread

T = TypeVar("T")

#: Seconds that somebody waits for an answer of the database.
PATIENCE = 10.0
#: Seconds that a check of /readyz may take.
CHECK_PATIENCE = 5.0


class Looks:
    """What routes ask of a source, sync or async, from an event loop."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._view: Single[View] = Single(lambda: self._away(source.view))
        self._health: Single[Health] = Single(lambda: self._away(source.health))
        self._runs: Single[View] = Single(lambda: self._away(lambda: source.run(self._past)))
        self._ping: Single[None] = Single(lambda: self._away(lambda: source.run(_ping)))

    async def view(self) -> View:
        """Return the tables as they stood a few seconds ago."""
        return await self._view(PATIENCE)

    async def health(self) -> Health:
        """Tell whether inserts are safe; see :meth:`Source.health`."""
        return await self._health(PATIENCE)

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

    async def _away(self, work: Callable[[], T]) -> T:
        if self.source.is_async:
            return await greenlet_spawn(work)
        return await in_thread(work)


def _ping(side: Connection) -> None:
    side.execute(select(literal(1)))
