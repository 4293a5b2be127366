"""Our own kind of route, so that a user's other routes and handlers stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeAlias

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from .faults import Fault, fault_of, respond
from .security import Guard
from .tracing import HEADER, Secrets, request, taken_over

Access: TypeAlias = Literal["open", "bearer", "browser"]

_Handler: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]


def route_class(guard: Guard, secrets: Secrets, access: Access) -> type[APIRoute]:
    """Return a class of routes that know a request's id, ask for the token first, and answer every error."""

    class Route(APIRoute):
        def get_route_handler(self) -> _Handler:
            answer = super().get_route_handler()

            async def handler(asked: Request) -> Response:
                with request(_number(asked.scope)) as number:
                    try:
                        if access != "open":
                            guard.check(asked, basic=access == "browser")
                        response = await answer(asked)
                    except Exception as error:  # noqa: BLE001  # the last stop before the user's own handlers
                        response = respond(fault_of(error, secrets))
                    return finished(response, number)

            return handler

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await super().handle(scope, receive, send)
            except HTTPException as error:  # before any handler: another method
                if error.status_code != 405:
                    raise
                with request(_number(scope)) as number:
                    fault = Fault(405, "method_not_allowed", "There is no such method here.", error.headers)
                    await finished(respond(fault), number)(scope, receive, send)

    return Route


def _number(scope: Scope) -> str:
    """Return the request's id; an application of ours has given it one already."""
    known: str | None = scope.get("alembic_partitions.request")
    return known or taken_over(Request(scope).headers.get(HEADER))


def finished(response: Response, number: str) -> Response:
    """Give a response what every one has."""
    response.headers[HEADER] = number
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
