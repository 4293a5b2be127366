"""An application of FastAPI, asked as a client asks it, without a server."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from alembic_partitions.contrib.http import router
from alembic_partitions.contrib.source import Watched
from tests.databases import Database

T = TypeVar("T")

TOKEN = "open sesame, but longer".replace(" ", "-")
API = "/api/v1/partitions"


class Web:
    """A client; what the application does beside goes on while it is asked."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self._loop = loop
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def ask(
        self, method: str, path: str, *, token: str | None = None, basic: str | None = None, **more: Any
    ) -> httpx.Response:
        headers: dict[Any, Any] = dict(more.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = b"Bearer " + token.encode()
        if basic is not None:
            headers["Authorization"] = b"Basic " + base64.b64encode(f"ops:{basic}".encode())
        return self.run(self._client.request(method, path, headers=headers, **more))

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Ask with the token below /api, without it elsewhere."""
        more.setdefault("token", TOKEN if path.startswith("/api") else None)
        return self.ask("GET", path, **more)

    def post(self, what: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return self.ask("POST", f"{API}/{what}", token=TOKEN, json=body, **more)

    def finished(self, accepted: httpx.Response) -> dict[str, Any]:
        """Wait for the job that was accepted to end."""
        assert accepted.status_code == 202, accepted.text
        give_up_at = time.monotonic() + 60
        while time.monotonic() < give_up_at:
            job: dict[str, Any] = self.get(accepted.headers["Location"]).json()
            if job["status"] != "running":
                return job
            self.run(asyncio.sleep(0.02))
        raise AssertionError(f"the job does not end: {job}")

    def done(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """Have something done, and wait for its end."""
        return self.finished(self.post(what, {**body, "dryRun": False}))

    async def aclose(self) -> None:
        await self._client.aclose()


@contextmanager
def web(app: FastAPI) -> Iterator[Web]:
    """Start an application, and end it."""
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())
    client = Web(app, loop)
    try:
        yield client
    finally:
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.run_until_complete(client.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@contextmanager
def mounted(watched: Watched, **options: Any) -> Iterator[Web]:
    """Mount the router in somebody's application."""
    app = FastAPI()
    app.include_router(router(watched, **{"token": TOKEN, **options}))
    with web(app) as client:
        yield client


def engine_for(database: Database, driver: str) -> Engine | AsyncEngine:
    url = database.driver_url(driver)
    return create_async_engine(url) if driver == "asyncpg" else create_engine(url)
