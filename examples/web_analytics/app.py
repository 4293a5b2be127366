"""``uvicorn --factory web_analytics.app:create_app``: the service, and the API of those who operate it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import KeyOutsideLimits, PartitionPending, keep
from alembic_partitions.contrib.http import router

from . import ingest, settings


def create_app() -> FastAPI:
    """Make the application; it connects when it is started."""
    engine = create_async_engine(settings.database_url("asyncpg"), pool_size=10)
    # This line makes the partition that an insert lacks, before the insert is sent.
    keeper = keep(engine, ddl_url=settings.ddl_url())
    maintains, every = settings.maintains(), settings.maintained_every()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if maintains:  # in any number of processes: one of them at a time does it
            await keeper.start(every=every)
        yield
        if maintains:
            await keeper.stop()
        await engine.dispose()

    app = FastAPI(title="Web analytics", lifespan=lifespan)
    app.state.engine = engine
    app.include_router(ingest.routes)
    # /api/v1/partitions with the token; without it /healthz, /readyz, /health, /metrics, /partitions.
    app.include_router(router(keeper, token=settings.token()))
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(KeyOutsideLimits, _refuse)
    app.add_exception_handler(PartitionPending, _ask_again)
    return app


def _explain(request: Request, error: Exception) -> JSONResponse:
    """Answer to what makes no sense, without saying it again: half a surrogate pair cannot be said."""
    assert isinstance(error, RequestValidationError)
    told = (f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in error.errors())
    return JSONResponse({"error": "; ".join(told)}, status_code=422)


def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer to a time outside of what a table takes: a broken clock, or an event older than retention."""
    return JSONResponse({"error": str(error)}, status_code=422)


def _ask_again(request: Request, error: Exception) -> JSONResponse:
    """Answer to the rare transaction that has to be run again."""
    return JSONResponse({"error": "try again"}, status_code=503, headers={"Retry-After": "1"})
