"""From the stream to rows: each message in a transaction of its own. Nothing here knows of partitions."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from alembic_partitions import PartitionError, PartitionPending

from .feed import Message, published
from .logs import fields
from .models import LadderLevel

log = logging.getLogger("ladder_levels.recorder")

#: What the stream calls the two sides of a ladder: the best prices available to back and to lay.
SIDES = {"batb": "back", "batl": "lay"}
#: What a message is refused for: the database's word, or ours; no connection; no message as we know them.
REFUSED = (SQLAlchemyError, PartitionError, OSError, ValueError, LookupError, TypeError)


@dataclass
class Tally:
    """What became of the messages."""

    messages: int = 0
    recorded: int = 0
    """Rows that were new: a replica may have been first."""
    refused: int = 0
    """Messages that could not be written."""


def levels_of(message: Message) -> Iterator[dict[str, Any]]:
    """Yield a row for each rung, and for each traded price, that a message speaks of."""
    at = published(message)
    for market in message.get("mc", ()):
        for change in market.get("rc", ()):
            runner = {"market_id": market["id"], "selection_id": change["id"], "published_at": at}
            if "ltp" in change:
                yield runner | {"side": "last", "level": 0, "price": change["ltp"], "size": None}
            for name, side in SIDES.items():
                for level, price, size in change.get(name, ()):
                    yield runner | {"side": side, "level": level, "price": price, "size": size}


# Once in a blue moon a partition cannot be made just then: the same transaction passes a moment later.
@retry(
    retry=retry_if_exception_type(PartitionPending),
    stop=stop_after_attempt(5),
    wait=wait_random(0.01, 0.2),
    reraise=True,
)
async def write(engine: AsyncEngine, levels: list[dict[str, Any]]) -> int:
    """Write rows in one transaction; return how many were new."""
    async with engine.begin() as connection:
        done = await connection.execute(insert(LadderLevel).values(levels).on_conflict_do_nothing())
        return done.rowcount


async def record(engine: AsyncEngine, lines: AsyncIterable[str]) -> Tally:
    """Write what a stream says, until it ends. One message that fails never stops the others."""
    tally = Tally()
    async for line in lines:
        tally.messages += 1
        try:
            levels = list(levels_of(json.loads(line)))
            tally.recorded += await write(engine, levels) if levels else 0
        except REFUSED as error:
            tally.refused += 1
            reason = str(getattr(error, "orig", error)).strip()
            log.error("message refused", extra=fields(error=type(error).__name__, message=reason))
    log.info("stream ended", extra=fields(**vars(tally)))
    return tally


async def lines_of(stream: TextIO) -> AsyncIterator[str]:
    """Yield the lines of a file or a pipe as they come, without stalling the event loop."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None](maxsize=100)

    def read() -> None:
        for line in itertools.chain(stream, [None]):
            asyncio.run_coroutine_threadsafe(queue.put(line), loop).result()

    threading.Thread(target=read, daemon=True).start()  # a daemon: nobody waits for a line that never comes
    while (line := await queue.get()) is not None:
        yield line
