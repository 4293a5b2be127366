"""What monitoring asks without a token, unless it is closed: it shows no error, no SQL, no secret."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from alembic_partitions.contrib.metrics import PartitionCollector

from . import shapes
from .api import problems
from .jobs import Jobs
from .looks import CHECK_PATIENCE, PATIENCE, SCRAPE_PATIENCE, Looks
from .models import Alive, HealthInBrief, JobRecord, Ready
from .tracing import Secrets, logger
from .waiting import Single, in_thread

#: Something that an application needs: it fails by raising, or by returning ``False``.
Check = Callable[[], "object | Awaitable[object]"]


class Checks:
    """The checks of an application, each once at a time: one that hangs piles nothing up."""

    def __init__(self, looks: Looks, checks: Mapping[str, Check]) -> None:
        self._all: dict[str, Single[object]] = {"database": Single(looks.ping)}
        self._all |= {name: Single(_called(check)) for name, check in checks.items()}

    async def results(self) -> dict[str, Literal["ok", "failed"]]:
        """Run all of them at once, and say how each went."""
        told = await asyncio.gather(*(self._result(name, single) for name, single in self._all.items()))
        return dict(zip(self._all, told, strict=True))

    async def _result(self, name: str, single: Single[object]) -> Literal["ok", "failed"]:
        try:
            if await single(CHECK_PATIENCE) is not False:
                return "ok"
            why = "it returned False"
        except Exception as error:  # noqa: BLE001  # whatever a check raises, it failed
            why = type(error).__name__
        logger.warning("the check %r failed: %s", name, why)
        return "failed"


def _called(check: Check) -> Callable[[], Awaitable[object]]:
    async def call() -> object:
        result = check() if inspect.iscoroutinefunction(check) else await in_thread(check)
        # An awaitable is cancelled when its time is up; a thread cannot be.
        return await asyncio.wait_for(result, CHECK_PATIENCE) if inspect.isawaitable(result) else result

    return call


class _Told(Collector):
    """What a collector tells of the last look, so that no thread waits for another one."""

    def __init__(self, collector: PartitionCollector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        return self._collector.told()


async def _nothing() -> bytes:
    return b""


def _scraper(
    looks: Looks, gauges: Mapping[str, str], more: CollectorRegistry | None
) -> Callable[[], Awaitable[bytes]]:
    collector = PartitionCollector(looks.source, gauges=gauges)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(collector))
    ours, theirs = (
        Single(lambda: in_thread(partial(generate_latest, registry))),
        Single(lambda: in_thread(partial(generate_latest, more)) if more is not None else _nothing()),
    )

    async def scrape() -> bytes:
        try:
            collector.saw(await looks.view(SCRAPE_PATIENCE))
        except asyncio.TimeoutError:
            collector.missed(TimeoutError("the database does not answer"))
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            collector.missed(error)
        return await ours(PATIENCE) + await theirs(PATIENCE)

    return scrape


def probes(
    looks: Looks,
    jobs: Jobs,
    secrets: Secrets,
    checks: Mapping[str, Check],
    gauges: Mapping[str, str],
    registry: CollectorRegistry | None,
    records: Callable[[], Iterable[JobRecord]] | None,
    route: type[APIRoute],
    dependencies: list[Any],
) -> APIRouter:
    """Return the routes of monitoring."""
    router = APIRouter(tags=["monitoring"], route_class=route, dependencies=dependencies)
    closed = [401] if dependencies else []
    ready = Checks(looks, checks)
    scrape = _scraper(looks, gauges, registry)
    listed = Single(lambda: in_thread(lambda: list(records() if records is not None else ())))

    async def get_healthz() -> Alive:
        """Tell that the process answers."""
        return Alive()

    async def get_readyz(response: Response) -> Ready:
        """Tell whether requests can be served: the database answers, and so does what is needed beside it."""
        results = await ready.results()
        good = all(result == "ok" for result in results.values())
        response.status_code = 200 if good else 503
        return Ready(ok=good, checks=results)

    async def get_health(response: Response) -> HealthInBrief:
        """Tell whether inserts are safe."""
        found = await looks.health()
        response.status_code = 200 if found.ok else 503
        return shapes.in_brief(found, gauges)

    @router.head("/metrics", include_in_schema=False)
    @router.get(
        "/metrics",
        operation_id="getMetrics",
        response_class=Response,
        responses={
            200: {
                "content": {"text/plain": {"schema": {"type": "string"}}},
                "description": "For Prometheus.",
            },
            **problems(*closed, 500, 503),
        },
    )
    async def get_metrics() -> Response:
        """Tell how all tables stand, for Prometheus; where the database is away, ``..._up`` is 0."""
        return Response(await scrape(), media_type=CONTENT_TYPE_LATEST)

    async def get_jobs() -> list[JobRecord]:
        """List the last run of each job, and what is under way."""
        view = await looks.view()
        last = {run.action: shapes.job_record(run, secrets.hide) for run in view.runs or ()}
        if jobs.running is not None:
            last[jobs.running.order.name] = jobs.running.record()
        try:
            others = await listed(PATIENCE)
        except Exception as error:  # noqa: BLE001  # the application's own; ours are listed all the same
            logger.warning("jobs() of the application failed: %s", type(error).__name__)
            others = []
        hidden = [
            other.model_copy(update={"error_snippet": shapes.snippet(other.error_snippet, secrets.hide)})
            for other in others
        ]
        return [*(last[name] for name in sorted(last)), *hidden]

    for path, answer, name, statuses in (
        ("/healthz", get_healthz, "getLiveness", []),
        ("/readyz", get_readyz, "getReadiness", [503]),
        ("/health", get_health, "getHealth", [503]),
        ("/ops/jobs", get_jobs, "listJobs", []),
    ):
        model = inspect.signature(answer, eval_str=True).return_annotation
        responses = problems(*closed, 500, *([503] if answer is get_jobs else []))
        responses |= {status: {"model": model, "description": "It is not."} for status in statuses}
        router.add_api_route(path, answer, operation_id=name, responses=responses, methods=["GET"])
        router.add_api_route(path, answer, include_in_schema=False, methods=["HEAD"])
    return router
