"""Each request has an id: in its answer, in every log line about it, and in what it is handed on to."""

from __future__ import annotations

import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# What is taken over from whoever asks: nothing that a log or a header could stumble over.
_SANE = re.compile(r"[A-Za-z0-9][\w.:-]{0,63}", re.ASCII)


def set_up() -> None:
    """Log to stderr, where Docker and systemd look, with process and request in each line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(process)d [%(request_id)s] %(name)s: %(message)s")
    )
    handler.addFilter(_add_request_id)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("alembic.runtime.migration", "apscheduler"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class Requests:
    """Goes around the whole application, so that the answer to an unexpected error has an id, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = given if _SANE.fullmatch(given) else secrets.token_hex(8)
        others = [(name, value) for name, value in scope["headers"] if name != b"x-request-id"]
        scope = {**scope, "headers": [*others, (b"x-request-id", identity.encode())]}
        began, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = identity
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        token = request_id.set(identity)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            took = 1000 * (time.perf_counter() - began)
            logger.info("%s %s %s %.0f ms", scope["method"], scope["path"], status or "aborted", took)
            request_id.reset(token)
