"""The router that an application mounts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Security
from prometheus_client import CollectorRegistry

from alembic_partitions.contrib.source import Source, Watched

from . import api
from .browsing import page
from .jobs import Jobs
from .looks import Looks
from .models import JobRecord
from .probes import Check, probes
from .routes import route_class
from .security import BASIC, BEARER, Guard
from .tracing import Secrets


def router(
    watched: Watched,
    *,
    token: str | None,
    schema: str | None = None,
    open_probes: bool = True,
    checks: Mapping[str, Check] | None = None,
    gauges: Mapping[str, str] | None = None,
    archive_to: str | None = None,
    jobs: Callable[[], Iterable[JobRecord]] | None = None,
    registry: CollectorRegistry | None = None,
) -> APIRouter:
    """Return the routes of partitions: /api/v1/partitions behind the token, and those of monitoring.

    :param watched: an engine or a keeper, sync or async.
    :param token: a secret of 16 characters or more, without which nobody sees or changes anything in /api.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param open_probes: whether monitoring needs no token: /healthz, /readyz, /health, /metrics, /ops/jobs and
        the page at /partitions. A browser may give the token as the password of HTTP Basic, with any name.
    :param checks: what /readyz asks beside the database, by name, such as ``{"redis": redis.ping}``: sync or
        async; it fails by raising, by returning ``False``, or by taking longer than 5 s.
    :param gauges: further names under which /health and /metrics show a table's horizon in days:
        ``{"stream_ingest.ladder_levels": "ladder_levels_partition_horizon_days"}``.
    :param archive_to: the folder that ``on_expiry="archive"`` exports to.
    :param jobs: returns jobs of the application's own for /ops/jobs.
    :param registry: metrics of the application's own, which /metrics shows, too. There is no need of a
        :class:`~alembic_partitions.contrib.metrics.PartitionCollector` in it.
    :raises SettingError: there is no token, or it is too short.
    """
    source = Source(watched, schema=schema)
    guard = Guard(token)
    secrets = Secrets(token or "", source.engine.url.render_as_string(hide_password=False))
    looks = Looks(source)
    work = Jobs(looks, secrets)
    closed = route_class(guard, secrets, "bearer")
    dependencies: list[Any] = [] if open_probes else [Security(BEARER)]
    basic: list[Any] = [] if open_probes else [Security(BASIC)]

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[None]:
        work.start()
        yield
        await work.stop()

    whole = APIRouter(lifespan=lifespan)
    whole.include_router(api.looking(looks, work, secrets, closed))
    whole.include_router(api.changing(looks, work, archive_to, closed))
    route = route_class(guard, secrets, "open") if open_probes else closed
    whole.include_router(
        probes(looks, work, secrets, checks or {}, gauges or {}, registry, jobs, route, dependencies)
    )
    browsed = route if open_probes else route_class(guard, secrets, "browser")
    whole.include_router(page(looks, secrets, browsed, [*dependencies, *basic]))
    return whole
