"""/api/v1/partitions: looking, and what changes something. Behind the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import Scope

from alembic_partitions import maintenance
from alembic_partitions.errors import NotManagedError
from alembic_partitions.standing import Row

from . import orders, shapes
from .bodies import AnalyzeOrder, CleanupOrder, CreateOrder, MaintenanceOrder, TableName, VacuumOrder
from .faults import Fault
from .jobs import Jobs, Order
from .looks import PATIENCE, Looks
from .models import (
    AcceptedAnswer,
    DryAnswer,
    HealthAnswer,
    HistoryAnswer,
    JobAnswer,
    ListAnswer,
    Problem,
    Script,
    StatusAnswer,
)
from .security import BEARER
from .tracing import Secrets, request_id
from .waiting import in_thread

PREFIX = "/api/v1/partitions"

Answer: TypeAlias = "DryAnswer | Response"

_HEADERS: Mapping[str, Any] = {"X-Request-ID": {"schema": {"type": "string"}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of errors."""
    told = {
        401: "There is no token, or a wrong one.",
        404: "There is no such thing.",
        409: "Something else is under way, or it is refused.",
        422: "The request is wrong.",
        500: "This failed.",
        503: "The database cannot be reached.",
    }
    return {
        status: {"model": Problem, "description": told[status], "headers": dict(_HEADERS)}
        for status in statuses
    }


_EVERYTHING = MaintenanceOrder()
_DOING: dict[str, Any] = {
    "response_model": DryAnswer,
    "response_description": "What would be done: nothing was.",
    "responses": {
        202: {
            "model": AcceptedAnswer,
            "description": "It is being done: look at the job.",
            "headers": {**_HEADERS, "Location": {"schema": {"type": "string"}}},
        },
        **problems(401, 404, 409, 422, 500, 503),
    },
}


def looking(looks: Looks, jobs: Jobs, secrets: Secrets, route: type[APIRoute]) -> APIRouter:
    """Return the routes that change nothing."""
    router = _router(route)

    @router.get("/health", operation_id="getPartitionHealth", responses=problems(401, 500, 503))
    async def get_health() -> HealthAnswer:
        """Tell whether inserts are safe, table by table, and what is to be done."""
        await looks.view()  # a database that is away is an error here
        found = await looks.health()
        return await in_thread(lambda: shapes.health(found, request_id(), secrets.hide))

    @router.get("/list", operation_id="listPartitions", responses=problems(401, 404, 422, 500, 503))
    async def get_list(
        table: Annotated[TableName | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> ListAnswer:
        """List partitions with their bounds and sizes."""
        view, rows = await looks.rows()
        found = _of(rows, table)
        shown = await in_thread(lambda: shapes.partitions(found, offset, limit))
        return ListAnswer(
            checked_at=view.now,
            total=sum(len(row.view.table.partitions) for row in found),
            limit=limit,
            offset=offset,
            partitions=shown,
            request_id=request_id(),
        )

    @router.get("/status", operation_id="getPartitionStatus", responses=problems(401, 404, 422, 500, 503))
    async def get_status(table: Annotated[TableName | None, Query()] = None) -> StatusAnswer:
        """Tell all that is known of tables: as health, and their policies and sizes."""
        view, rows = await looks.rows()
        found = _of(rows, table)
        return StatusAnswer(
            checked_at=view.now,
            rehearsed=view.rehearsed,
            tables=await in_thread(lambda: [shapes.status(row, secrets.hide) for row in found]),
            request_id=request_id(),
        )

    @router.get("/history", operation_id="getPartitionHistory", responses=problems(401, 404, 422, 500, 503))
    async def get_history(
        table: Annotated[TableName | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 20,
        failed: Annotated[bool, Query(description="Only those that failed.")] = False,
    ) -> HistoryAnswer:
        """List past runs, the newest first."""
        tables = None if table is None else [table]
        view = await looks.run(
            lambda side: maintenance.past_runs(
                side, schema=looks.source.schema, tables=tables, limit=limit, failed=failed
            ),
            PATIENCE,
        )
        return HistoryAnswer(
            runs=[shapes.run(past, secrets.hide) for past in view.runs or ()], request_id=request_id()
        )

    @router.get(
        "/jobs/{jobId}",
        operation_id="getPartitionJob",
        responses=problems(401, 404, 500),
    )
    async def get_job(jobId: str) -> JobAnswer:  # noqa: N803  # as it goes over the wire
        """Tell how a job stands. Each process knows its own."""
        job = jobs.get(jobId)
        if job is None:
            raise Fault(404, "no_job", "This process knows no such job: it may be another's, or long ago.")
        return job.answer(request_id())

    return router


def changing(looks: Looks, jobs: Jobs, archive_to: str | None, route: type[APIRoute]) -> APIRouter:
    """Return the routes that change something, where they are told ``"dryRun": false``."""
    router, schema = _router(route), looks.source.schema

    async def answer(order: Order, dry_run: bool, asked: Request) -> Answer:
        if dry_run:
            scripts = await looks.run(order.plan, PATIENCE)
            told = [Script(table=table, sql=sql) for table, sql in scripts if sql]
            return DryAnswer(statements=told, request_id=request_id())
        job = await jobs.begin(order)
        accepted = AcceptedAnswer(job_id=job.id, request_id=request_id())
        where = {"Location": _beside(asked.scope, f"jobs/{job.id}")}
        return JSONResponse(accepted.model_dump(by_alias=True), 202, headers=where)

    @router.post("/maintenance", operation_id="maintainPartitions", **_DOING)
    async def post_maintenance(asked: Request, body: MaintenanceOrder = _EVERYTHING) -> Answer:
        """Bring tables to their horizon, remove what retention lets go, keep their statistics."""
        return await answer(orders.maintain(body, schema, archive_to), body.dry_run, asked)

    @router.post("/create", operation_id="createPartitions", **_DOING)
    async def post_create(asked: Request, body: CreateOrder) -> Answer:
        """Make the windows of a table from now to so far ahead."""
        return await answer(orders.create(body, schema), body.dry_run, asked)

    @router.post("/analyze", operation_id="analyzePartitions", **_DOING)
    async def post_analyze(asked: Request, body: AnalyzeOrder) -> Answer:
        """Analyze a table with its partitions, or one of these."""
        return await answer(orders.tend(body, schema), body.dry_run, asked)

    @router.post("/vacuum", operation_id="vacuumPartitions", **_DOING)
    async def post_vacuum(asked: Request, body: VacuumOrder) -> Answer:
        """Vacuum the partitions of a table, or one of them."""
        return await answer(orders.tend(body, schema), body.dry_run, asked)

    @router.post("/cleanup", operation_id="cleanUpPartitions", **_DOING)
    async def post_cleanup(asked: Request, body: CleanupOrder) -> Answer:
        """Remove what the retention of a table lets go: at most ``max_drops`` partitions a run."""
        return await answer(orders.cleanup(body, schema, archive_to), body.dry_run, asked)

    return router


def _beside(scope: Scope, name: str) -> str:
    """Return the path of what lies beside the route that was asked: of this router, if there are several."""
    path: str = scope["path"]
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    # A proxy in front may have taken the root away.
    whole = path if path == root or path.startswith(f"{root}/") else root + path
    return quote(f"{whole.rpartition('/')[0]}/{name}")


def _router(route: type[APIRoute]) -> APIRouter:
    return APIRouter(prefix=PREFIX, tags=["partitions"], route_class=route, dependencies=[Security(BEARER)])


def _of(rows: list[Row], table: str | None) -> list[Row]:
    if table is None:
        return rows
    found = [row for row in rows if table in (row.view.table.name, row.health.table)]
    if not found:
        raise NotManagedError(table=table)
    return found
