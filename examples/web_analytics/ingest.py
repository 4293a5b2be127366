"""The service's own routes. Nothing in them knows of partitions."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from .models import Event, GoalCompletion

MOST = 1000
#: What numeric(12, 2) holds.
LARGEST = 9_999_999_999.99

routes = APIRouter(tags=["events"])


#: No control characters: PostgreSQL takes no NUL, and logs and pages none of the others.
Text = Annotated[str, Field(pattern=r"^\P{Cc}*$")]
Property = Annotated[str, Field(pattern=r"^\w+:\P{Cc}*$")]


def _storable(properties: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON may say, or Python reads as JSON, and jsonb does not take.

    :raises ValueError: there is a NUL, half a surrogate pair, NaN or an infinity in it.
    """
    written = json.dumps(properties, ensure_ascii=False, allow_nan=False).encode()
    if re.search(rb"(?<!\\)(\\\\)*\\u0000", written):  # a backslash before it would be one itself
        raise ValueError("\\u0000 cannot be stored")
    return properties


Properties = Annotated[dict[str, Any], AfterValidator(_storable)]


class Incoming(BaseModel):
    """One event as a browser sends it; with ``goal`` it completes one."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")

    occurred_at: AwareDatetime
    site_id: Text = Field(max_length=100)
    visitor_id: Text = Field(max_length=100)
    event_type: Text = Field(max_length=100)
    path: Text | None = Field(default=None, max_length=2000)
    properties: Properties = {}
    goal: Text | None = Field(default=None, max_length=100)
    value: float | None = Field(default=None, ge=-LARGEST, le=LARGEST)


class Recorded(BaseModel):
    events: int
    goals: int


class Counted(BaseModel):
    count: int


def engine_of(request: Request) -> AsyncEngine:
    engine: AsyncEngine = request.app.state.engine
    return engine


Engine = Annotated[AsyncEngine, Depends(engine_of)]


@routes.post("/events", status_code=201)
async def record(
    events: Annotated[list[Incoming], Field(min_length=1, max_length=MOST)], engine: Engine
) -> Recorded:
    """Write events and the goals they complete, all of them or none."""
    done = [event for event in events if event.goal is not None]
    async with engine.begin() as connection:
        await connection.execute(insert(Event), [_event(event) for event in events])
        if done:
            await connection.execute(insert(GoalCompletion), [_goal(event) for event in done])
    return Recorded(events=len(events), goals=len(done))


@routes.get("/events/count")
async def count(
    engine: Engine,
    site: Annotated[Text | None, Query()] = None,
    since: Annotated[AwareDatetime | None, Query()] = None,
    until: Annotated[AwareDatetime | None, Query()] = None,
    having: Annotated[list[Property], Query()] = [],  # noqa: B006  # FastAPI makes a new one
) -> Counted:
    """Count events, of a site, of a time, and having properties such as ``plan:pro``."""
    query = select(func.count()).select_from(Event)
    if site is not None:
        query = query.where(Event.site_id == site)
    if since is not None:
        query = query.where(Event.occurred_at >= since)
    if until is not None:
        query = query.where(Event.occurred_at < until)
    if having:
        query = query.where(Event.properties.contains(dict(pair.split(":", 1) for pair in having)))
    async with engine.connect() as connection:
        return Counted(count=await connection.scalar(query) or 0)


def _event(event: Incoming) -> dict[str, Any]:
    return event.model_dump(exclude={"goal", "value"})


def _goal(event: Incoming) -> dict[str, Any]:
    at: datetime = event.occurred_at
    shared = event.model_dump(include={"site_id", "visitor_id", "goal", "value", "properties"})
    return {**shared, "completed_at": at}
