"""``python -m ladder_levels.service < stream``: record a stream, keep its partitions, tell how they are.

With ``--port`` it answers under /health and /metrics as well, until it is stopped. Without, it ends with the
stream; the exit code is 1 if anything was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from alembic_partitions import PartitionError, keep
from alembic_partitions.events import AsyncKeeper

from . import logs, provisioner
from .recorder import Tally, lines_of, record
from .settings import Settings, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI


def opened(settings: Settings) -> tuple[AsyncEngine, AsyncKeeper]:
    """Return the stream writer's engine, and what keeps its partitions as the partition role."""
    engine = create_async_engine(settings.stream)
    return engine, keep(engine, ddl_url=settings.partitions)


@asynccontextmanager
async def provisioned(engine: AsyncEngine, keeper: AsyncKeeper) -> AsyncIterator[None]:
    await provisioner.start(keeper)
    try:
        yield
    finally:
        await keeper.stop()
        await engine.dispose()


async def run(settings: Settings) -> Tally:
    """Record standard input to its end."""
    engine, keeper = opened(settings)
    async with provisioned(engine, keeper):
        return await record(engine, lines_of(sys.stdin))


def application(settings: Settings, token: str) -> FastAPI:
    """Return an application that records standard input for as long as it is served."""
    from fastapi import FastAPI  # a recorder without a port needs no FastAPI

    from alembic_partitions.contrib.http import router

    engine, keeper = opened(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with provisioned(engine, keeper):
            recorder = asyncio.create_task(record(engine, lines_of(sys.stdin)))
            yield
            recorder.cancel()
            await asyncio.wait([recorder])

    app = FastAPI(title="ladder_levels", lifespan=lifespan)
    app.include_router(router(keeper, token=token, gauges=provisioner.GAUGES))
    return app


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        description="Record a stream from standard input, a JSON line a message."
    )
    options.add_argument("--port", type=int, help="answer under /health and /metrics there")
    wanted = options.parse_args(arguments)
    try:
        settings = Settings.read()
        logs.configure()
        if wanted.port is None:
            tally = asyncio.run(run(settings))
            # In one piece: other replicas may write to the same terminal.
            told = f"{tally.messages} messages, {tally.recorded} levels recorded, {tally.refused} refused\n"
            sys.stdout.write(told)
            return 1 if tally.refused else 0
        app = application(settings, os.environ.get("ALEMBIC_PARTITIONS_TOKEN", ""))
    except (SettingsError, PartitionError) as error:
        print(f"ladder_levels: {error}", file=sys.stderr)
        return 2
    import uvicorn

    uvicorn.run(app, port=wanted.port, log_config=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
