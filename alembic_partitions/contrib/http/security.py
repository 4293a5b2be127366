"""The bearer token: asked for before anything of a request is read."""

from __future__ import annotations

import base64
import binascii
import secrets

from fastapi.security import HTTPBasic, HTTPBearer
from starlette.requests import Request

from alembic_partitions.errors import SettingError

from .faults import Fault

#: A shorter one can be guessed.
SHORTEST_TOKEN = 16


class _Told(HTTPBasic):
    """Said in OpenAPI alone: FastAPI reads ASCII, and refuses the names and tokens of all others."""

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        return None


#: What OpenAPI says of the token; it is checked in :class:`Guard`, before a body is read.
BEARER = HTTPBearer(auto_error=False, scheme_name="bearerToken", description="The token of this service.")
BASIC = _Told(
    auto_error=False, scheme_name="tokenAsPassword", description="For a browser: the token as the password."
)


class Guard:
    """Lets nobody in who does not have the token.

    :raises SettingError: there is no token, or one that is too short, or that no header can hold.
    """

    def __init__(self, token: str | None) -> None:
        told = token or ""
        if len(told) < SHORTEST_TOKEN or any(c.isspace() or not c.isprintable() for c in told):
            raise SettingError(
                name="token",
                value="***" if told else "",
                expected=f"a secret of {SHORTEST_TOKEN} characters or more, none of them a blank",
            )
        self._token = told.encode()

    def __repr__(self) -> str:
        return "Guard()"

    def check(self, request: Request, basic: bool = False) -> None:
        """Make sure that a request has the token.

        :param basic: whether it may come as the password of HTTP Basic, too, which browsers ask for.
        :raises Fault: it has none, or a wrong one.
        """
        scheme, _, given = _authorization(request).partition(b" ")
        token = given.strip()
        if basic and scheme.lower() == b"basic":
            token = _password(token)
        elif scheme.lower() != b"bearer":
            token = b""
        if not secrets.compare_digest(token, self._token):
            challenge = 'Basic realm="partitions", charset="UTF-8"' if basic else 'Bearer realm="partitions"'
            text = "The token is wrong." if token else "This needs the token: Authorization: Bearer <token>."
            raise Fault(401, "unauthorized", text, {"WWW-Authenticate": challenge})


def _authorization(request: Request) -> bytes:
    headers: list[tuple[bytes, bytes]] = request.scope["headers"]
    return next((value for name, value in headers if name == b"authorization"), b"")


def _password(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
