"""The page at /partitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
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
        try:
            view, runs = await looks.view(), await looks.runs()
        except Exception as error:
            if not is_of_database(error):
                raise
            fault = fault_of(error, secrets)
            text = _AWAY.format(text=escape(fault.text), number=escape(request_id()))
            return HTMLResponse(text, fault.status, headers=_HEADERS)
        shown, past = _masked(view, runs, secrets)
        text = render(shown, runs=past, request_id=request_id(), refresh_seconds=_REFRESH_SECONDS)
        return HTMLResponse(text, headers=_HEADERS)

    return router


def _masked(view: View, runs: Sequence[Run], secrets: Secrets) -> tuple[View, list[Run]]:
    """Take passwords out of what others wrote: errors of the database, above all."""

    def hide(text: str | None) -> str | None:
        return None if text is None else secrets.hide(text)

    tables = tuple(dataclasses.replace(table, failure=hide(table.failure)) for table in view.tables)
    unknown = tuple(secrets.hide(line) for line in view.unknown)
    masked = dataclasses.replace(view, tables=tables, unknown=unknown, failure=hide(view.failure))
    return masked, [dataclasses.replace(run, error=hide(run.error)) for run in runs]
