"""The web replica: odds in and out, and what operators look at."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp

from alembic_partitions import KeyOutsideLimits, PartitionPending
from alembic_partitions.contrib.http import JobRecord, router

from . import logs, store
from .service import Service

#: Seconds that a price may be shown by whoever keeps a copy: browsers, and the CDN in front.
MAX_AGE = 5
SHORTEST_TOKEN = 16
BEARER = HTTPBearer(auto_error=False)

Selection = Annotated[int, Path(ge=1, le=2**63 - 1)]
#: No control characters: PostgreSQL takes no NUL, and logs and pages none of the others.
Text = Annotated[str, Field(pattern=r"^\P{Cc}*$")]


class Price(BaseModel):
    """What POST /odds takes."""

    model_config = ConfigDict(extra="forbid")

    selectionId: int = Field(ge=1, le=2**63 - 1)  # noqa: N815  # as it is sent
    bookmaker: Text = Field(min_length=1, max_length=40)
    price: Decimal = Field(gt=1, max_digits=8, decimal_places=2)
    observedAt: AwareDatetime | None = None  # noqa: N815


def create() -> ASGIApp:
    """Make the application: for Gunicorn, as ``deploy.app:create()``, once in the master that forks."""
    logs.set_up()
    service = Service.from_environment()
    settings = service.settings
    if len(settings.write_token) < SHORTEST_TOKEN:
        raise SystemExit(f"ODDS_TOKEN: a token of {SHORTEST_TOKEN} characters or more is needed")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not settings.scheduler_standalone:
            service.start_jobs()
        yield
        service.stop()

    app = FastAPI(title="Odds", lifespan=lifespan)
    app.include_router(
        router(
            service.keeper,
            token=settings.operator_token,
            checks={"redis": service.cache.ping},
            jobs=lambda: records(service),
        )
    )
    add_routes(app, service)
    answer_errors(app)
    return logs.Requests(app)


def records(service: Service) -> Iterator[JobRecord]:
    """Tell /ops/jobs of our own jobs; of runs that keep partitions it knows by itself."""
    for ran in service.jobs.latest():
        yield JobRecord(
            job_name=ran.job_name,
            last_run_at=ran.last_run_at,
            duration_ms=None if ran.duration_ms is None else round(ran.duration_ms),
            status=ran.status,
            error_snippet=ran.error,
        )


def add_routes(app: FastAPI, service: Service) -> None:
    """Add what the service is for. Its functions are plain ones: FastAPI runs them in threads."""

    def allowed(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        told = given.credentials if given is not None else ""
        if not secrets.compare_digest(told.encode(), service.settings.write_token.encode()):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "a token is needed: Authorization: Bearer ...", challenge)

    @app.post("/odds", status_code=201, dependencies=[Depends(allowed)])
    def record(price: Price) -> dict[str, Any]:
        kept = store.record(service.engine, price.selectionId, price.bookmaker, price.price, price.observedAt)
        service.cache.forget(price.selectionId)
        return kept

    @app.get("/odds/{selection}")
    def latest(selection: Selection, response: Response) -> dict[str, Any]:
        found = service.cache.get(selection)
        if found is None:
            found = store.latest(service.engine, selection)
            if found is None:
                raise HTTPException(404, "there are no odds for that selection")
            service.cache.try_to_put(found)
        response.headers["Cache-Control"] = f"public, max-age={MAX_AGE}"
        return found

    @app.get("/odds/{selection}/history")
    def history(
        selection: Selection, response: Response, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> list[dict[str, Any]]:
        response.headers["Cache-Control"] = f"public, max-age={MAX_AGE}"
        return store.history(service.engine, selection, limit)


def answer_errors(app: FastAPI) -> None:
    """Answer every error of ours with a text and the request's id."""

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        return said(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def no_sense(request: Request, error: RequestValidationError) -> JSONResponse:
        told = (f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in error.errors())
        return said(422, "; ".join(told))

    @app.exception_handler(KeyOutsideLimits)
    async def too_far(request: Request, error: KeyOutsideLimits) -> JSONResponse:
        return said(422, str(error))

    @app.exception_handler(PartitionPending)
    async def come_again(request: Request, error: PartitionPending) -> JSONResponse:
        return said(503, str(error), {"Retry-After": "1"})

    @app.exception_handler(OperationalError)
    async def no_database(request: Request, error: OperationalError) -> JSONResponse:
        logs.logger.error("the database does not answer: %s", error.orig)
        return said(503, "the database does not answer", {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return said(500, "this failed; the log says why, under this request id")


def said(status: int, error: str, headers: Any = None) -> JSONResponse:
    body = {"error": error, "requestId": logs.request_id.get()}
    return JSONResponse(body, status, headers=dict(headers or {}))
