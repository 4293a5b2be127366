"""The page at /partitions."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from html import escape
from secrets import token_hex
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

from alembic_partitions.catalog import Run
from alembic_partitions.contrib.page import render
from alembic_partitions.maintenance import View

from .api import problems
from .faults import fault_of, is_of_database
from .looks import Looks
from .tracing import Secrets, request_id
from .waiting import in_thread, seen

# Nothing from elsewhere, and nobody may frame it. Styles and the icon lie in the page itself.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
_AWAY = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>Partitions</title></head>
<body><h1>Partitions</h1><p>{text}</p><p>Request {number}</p></body></html>
"""
_REFRESH_SECONDS = 60
_HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}


def page(looks: Looks, secrets: Secrets, route: type[APIRoute], dependencies: list[Any]) -> APIRouter:
    """Return the route of the page."""
    router = APIRouter(tags=["monitoring"], route_class=route, dependencies=dependencies)
    closed = [401] if dependencies else []
    drawn: _Drawn | None = None

    @router.head("/partitions", include_in_schema=False)
    @router.get(
        "/partitions",
        operation_id="getPage",
        response_class=HTMLResponse,
        responses={
            **problems(*closed, 500),
            503: {"description": "The database cannot be reached.", **_HTML},
        },
    )
    async def get_page() -> Response:
        """Show all tables to a person: what they cover along time, their sizes, past runs."""
        nonlocal drawn
        try:
            view, runs = await looks.view(), await looks.runs()
        except Exception as error:
            if not is_of_database(error):
                raise
            fault = fault_of(error, secrets)
            text = _AWAY.format(text=escape(fault.text), number=escape(request_id()))
            return HTMLResponse(text, fault.status, headers=_HEADERS)
        if drawn is None or not drawn.shows(view, runs):
            drawn = _Drawn(view, runs, secrets)
        return HTMLResponse(await drawn.html(), headers=_HEADERS)

    return router


class _Drawn:
    """The page of one look, which is drawn once for all who see it: with many tables that takes a while."""

    def __init__(self, view: View, runs: Sequence[Run], secrets: Secrets) -> None:
        self._view, self._runs, self._secrets = view, runs, secrets
        self._loop = asyncio.get_running_loop()
        self._mark = token_hex(16)  # stands for the request id, which is everybody's own
        self._drawing = self._loop.create_task(in_thread(self._draw))
        self._drawing.add_done_callback(seen)

    def shows(self, view: View, runs: Sequence[Run]) -> bool:
        """Tell whether it is the page of this look."""
        here = self._loop is asyncio.get_running_loop()
        return here and self._view is view and list(self._runs) == list(runs)

    async def html(self) -> str:
        """Return it for the request that is being answered."""
        drawn = await asyncio.shield(self._drawing)
        return drawn.replace(self._mark, escape(request_id()))

    def _draw(self) -> str:
        shown, past = _masked(self._view, self._runs, self._secrets)
        return render(shown, runs=past, request_id=self._mark, refresh_seconds=_REFRESH_SECONDS)


def _masked(view: View, runs: Sequence[Run], secrets: Secrets) -> tuple[View, list[Run]]:
    """Take passwords out of what others wrote: errors of the database, above all."""

    def hide(text: str | None) -> str | None:
        return None if text is None else secrets.hide(text)

    tables = tuple(dataclasses.replace(table, failure=hide(table.failure)) for table in view.tables)
    unknown = tuple(secrets.hide(line) for line in view.unknown)
    masked = dataclasses.replace(view, tables=tables, unknown=unknown, failure=hide(view.failure))
    return masked, [dataclasses.replace(run, error=hide(run.error)) for run in runs]
