"""What goes wrong, as a status and a body: a text, a code, the request id; no SQL, no secret."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from alembic_partitions.drivers import sqlstate_of
from alembic_partitions.errors import (
    KeyOutsideLimits,
    NoPartitionError,
    NotManagedError,
    PartitionError,
    PolicyError,
    RunUnderWay,
    WindowRangeError,
)
from alembic_partitions.talk import explain

from .models import Problem
from .tracing import Secrets, logger, request_id

# The first that fits.
_STATUS: Sequence[tuple[type[PartitionError], int, str]] = (
    (NotManagedError, 404, "not_managed"),
    (NoPartitionError, 404, "no_partition"),
    (RunUnderWay, 409, "busy"),
    (PolicyError, 422, "policy"),
    (WindowRangeError, 422, "window_range"),
    (KeyOutsideLimits, 422, "limits"),
    (PartitionError, 409, "refused"),
)
_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed"}
_IN_OUR_WORDS = {
    "model_attributes_type": "it is no JSON object, or its Content-Type is not application/json",
    "json_invalid": "it is no JSON",
    "extra_forbidden": "there is no such field",
    "missing": "it is missing",
}
_SHOWN_PROBLEMS, _SHOWN_NAME = 5, 60


class Fault(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, code: str, text: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.text, self.headers, self.more = status, code, text, headers, more


def busy(text: str, job_id: str | None = None) -> Fault:
    """Say that something else is under way."""
    return Fault(409, "busy", text, job_id=job_id)


def is_of_database(error: BaseException) -> bool:
    """Tell whether it is the database that failed: drivers raise their own errors, unwrapped, while they
    connect."""
    kinds = (DBAPIError, PoolTimeout, OSError, asyncio.TimeoutError)
    return isinstance(error, kinds) or sqlstate_of(error) is not None


def fault_of(error: Exception, secrets: Secrets) -> Fault:
    """Return what is answered; what nobody expected is in the log, with its traceback."""
    if isinstance(error, PartitionError):
        status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
        return Fault(status, code, secrets.hide(str(error)))
    if isinstance(error, RequestValidationError):
        return Fault(422, "invalid", _problems(error))
    if isinstance(error, HTTPException):
        if error.status_code == 400:
            return Fault(422, "invalid", "body: it is no JSON")
        code = _CODES.get(error.status_code, "refused")
        return Fault(error.status_code, code, str(error.detail), error.headers)
    return error if isinstance(error, Fault) else _unexpected(error, secrets)


def _unexpected(error: Exception, secrets: Secrets) -> Fault:
    if is_of_database(error):
        logger.warning("the database failed: %s", secrets.hide(explain(error)))
        return Fault(503, "database_unavailable", "The database cannot be reached, or refuses to answer.")
    told = secrets.hide("".join(traceback.format_exception(error)).rstrip())
    logger.error("a request failed\n%s", told)
    return Fault(500, "internal", "This failed; the log says why, under this request id.")


def respond(fault: Fault) -> JSONResponse:
    """Return a fault as a response."""
    body = Problem(error=fault.text, code=fault.code, request_id=request_id(), **fault.more)
    content = body.model_dump(by_alias=True, exclude_none=True)
    return JSONResponse(content, fault.status, headers=dict(fault.headers or {}))


def _problems(error: RequestValidationError) -> str:
    """Say what is wrong with a request, without repeating what it held."""
    told = []
    for problem in error.errors():
        where = ".".join(str(part)[:_SHOWN_NAME] for part in problem["loc"][1:] if not isinstance(part, int))
        what = _IN_OUR_WORDS.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
        told.append(f"{where or problem['loc'][0]}: {what}")
    more = len(told) - _SHOWN_PROBLEMS
    return "; ".join([*told[:_SHOWN_PROBLEMS], *([f"and {more} more"] if more > 0 else [])])
