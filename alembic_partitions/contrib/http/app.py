"""An application of its own, for ``alembic-partitions serve``."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alembic_partitions import __version__
from alembic_partitions.contrib.source import Watched

from .faults import fault_of, respond
from .router import router
from .routes import finished
from .tracing import HEADER, Secrets, logger, request, request_id, taken_over


def create_app(watched: Watched, *, token: str | None, **options: Any) -> FastAPI:
    """Return an application with nothing but the router; its options are those of :func:`router`.

    It offers its OpenAPI at /openapi.json, and no page of it: that would load scripts from elsewhere.
    """
    app = FastAPI(title="alembic_partitions", version=__version__, docs_url=None, redoc_url=None)
    app.include_router(router(watched, token=token, **options))
    app.add_middleware(_Numbered)

    @app.exception_handler(HTTPException)
    async def nowhere(asked: Request, error: HTTPException) -> Response:
        return finished(respond(fault_of(error, Secrets(token or "", ""))), request_id())

    return app


class _Numbered:
    """Gives each request its id before anything else, and each a line in the log when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500
        number = scope["alembic_partitions.request"] = taken_over(Request(scope).headers.get(HEADER))

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault(HEADER, number)
            await send(message)

        with request(number):
            try:
                await self._app(scope, receive, note)
            finally:
                took = 1000 * (time.monotonic() - began)
                where = quote(scope["path"])  # a line break in it would begin another line
                logger.info("%s %s: %s in %.0f ms", scope["method"], where, status, took)
