"""What is answered: camelCase, but for what monitoring reads."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from alembic_partitions.health import State


def _on_the_wire(name: str) -> str:
    return to_camel(name.rstrip("_"))  # from_ is a word of Python's


def _in_utc(at: datetime) -> datetime:
    return at if at.tzinfo is None else at.astimezone(timezone.utc)


#: Some come in the zone of a database session, some in UTC: all go out in UTC.
Instant = Annotated[datetime, AfterValidator(_in_utc)]


class Shown(BaseModel):
    """What is answered."""

    model_config = ConfigDict(alias_generator=_on_the_wire, populate_by_name=True)


class Problem(Shown):
    """What went wrong."""

    error: str
    code: str
    request_id: str
    job_id: str | None = Field(default=None, description="The job that is under way in this process.")


# -- what there is -----------------------------------------------------------------------------------------

LevelName = Literal["OK", "WARNING", "CRITICAL", "UNKNOWN"]


class Stretch(Shown):
    """Keys without a partition: from the first up to, not including, the second."""

    from_: str
    to: str


class TableState(Shown):
    """How one table stands."""

    table: str
    enabled: bool
    level: LevelName
    state: State
    reasons: list[str]
    runway_days: float | None = Field(description="Days until inserts fail; null: unknown, or unlimited.")
    unlimited: bool
    covered_until: str | None
    current_missing: bool
    missing: list[str] = Field(description="Partitions that should stand ready and do not.")
    gaps: list[Stretch]
    stranded: bool | None = Field(description="Whether rows lie in a DEFAULT partition; null: unknown.")
    partition_count: int
    due: list[str] = Field(description="Partitions that retention takes next.")
    misaligned: list[str]
    failure: str | None = Field(description="What its last run failed over.")


class RunShown(Shown):
    """A past run."""

    id: int
    started_at: Instant
    finished_at: Instant
    action: str
    run_by: str
    application: str | None
    created: int
    detached: int
    archived: int
    dropped: int
    moved: int
    error: str | None
    details: dict[str, Any] = Field(description="What was done, by table.")


class HealthAnswer(Shown):
    """Whether inserts are safe, and what is to be done."""

    status: State
    ok: bool = Field(description="Inserts are safe.")
    level: LevelName
    checked_at: Instant | None
    tables: list[TableState]
    last_run: RunShown | None
    no_partition_errors: dict[str, int] | None = Field(
        description="Inserts of this process that found no partition, by table; null: nobody counts."
    )
    error: str | None
    request_id: str


class PolicyShown(Shown):
    """How a table is partitioned, and how its partitions are kept."""

    key: str
    interval: str
    every: int
    timezone: str
    day_start: str
    week_start: str
    premake: int
    lookback: int
    retention: str | None
    on_expiry: str
    grace: str
    max_ahead: str
    max_behind: str | None
    max_create: int
    max_drops: int
    column_timezone: str | None
    epoch: str | None
    archive_schema: str | None
    tablespace: str | None
    storage_parameters: dict[str, str]
    enabled: bool


class TableStatus(TableState):
    """All that is known of a table."""

    bytes: int | None
    estimated_rows: int | None
    policy: PolicyShown | None
    cutoff: str | None = Field(description="Rows before it are older than their retention.")


class StatusAnswer(Shown):
    """All tables."""

    checked_at: Instant | None
    rehearsed: bool
    tables: list[TableStatus]
    request_id: str


class PartitionShown(Shown):
    """One partition."""

    table: str
    schema_: str
    name: str
    from_: str | None = Field(description="null: MINVALUE, or a DEFAULT partition.")
    to: str | None
    bytes: int | None
    estimated_rows: int | None
    analyzed: Instant | None
    state: list[str] = Field(description="past, today, ahead, expired, pending, default, by hand")


class ListAnswer(Shown):
    """Partitions, table by table, the oldest first."""

    checked_at: Instant | None
    total: int
    limit: int
    offset: int
    partitions: list[PartitionShown]
    request_id: str


class HistoryAnswer(Shown):
    """Past runs, the newest first."""

    runs: list[RunShown]
    request_id: str


# -- what is done --------------------------------------------------------------------------------------


class Script(Shown):
    """What would be sent for one table."""

    table: str
    sql: str


class DryAnswer(Shown):
    """What would be done now."""

    dry_run: Literal[True] = True
    statements: list[Script]
    request_id: str


class AcceptedAnswer(Shown):
    """It is being done."""

    dry_run: Literal[False] = False
    job_id: str
    status: Literal["running"] = "running"
    request_id: str


class JobCounts(Shown):
    """What a job did."""

    created: int = 0
    detached: int = 0
    archived: int = 0
    dropped: int = 0
    restored: int = 0
    tended: int = Field(default=0, description="Analyzed or vacuumed.")


class JobAnswer(Shown):
    """How a job stands."""

    job_id: str
    name: str
    table: str | None
    status: Literal["running", "done", "failed"]
    started_at: Instant
    finished_at: Instant | None
    progress: list[str] = Field(description="What was done, the latest last; the last 200 lines.")
    counts: JobCounts
    error: str | None
    started_by: str = Field(description="The request id of who started it.")
    request_id: str


# -- probes ------------------------------------------------------------------------------------------------


class Alive(BaseModel):
    """The process answers."""

    ok: Literal[True] = True


class Ready(BaseModel):
    """Whether requests can be served: the database, and what the application asks for."""

    ok: bool
    checks: dict[str, Literal["ok", "failed"]]


class TableInBrief(Shown):
    """How one table stands, in brief."""

    table: str
    state: State
    horizon_days: float | None


class HealthInBrief(Shown):
    """Whether inserts are safe; beside these keys, the gauges' own names with days."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    status: Literal["ok", "failing"]
    state: State
    checked_at: Instant | None
    tables: list[TableInBrief]


class JobRecord(BaseModel):
    """The last run of a job, as ``GET /ops/jobs`` lists it; make them of jobs of your own."""

    job_name: str
    last_run_at: Instant | None = None
    duration_ms: int | None = None
    status: str
    error_snippet: str | None = None
