"""What may be asked for: camelCase, and nothing unknown or of another type is taken."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from typing_extensions import Self

_NAME = r"^[^\x00-\x1f]+$"
TableName = Annotated[
    str, Field(min_length=1, max_length=127, pattern=_NAME, description="[schema.]name", examples=["odds"])
]
PartitionName = Annotated[
    str, Field(min_length=1, max_length=63, pattern=_NAME, description="As it is listed, without its schema.")
]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# 3.0 is an integer to JSON.
_WHOLE = BeforeValidator(_whole)
Days = Annotated[int, Field(ge=1, le=36_500), _WHOLE]
DryRun = Annotated[bool, Field(description="Say what would be sent; change nothing.")]


class Told(BaseModel):
    """What is asked for: strict, so that "dryRun": "false" is a mistake and no order."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)


class MaintenanceOrder(Told):
    """Bring tables to their horizon, remove what retention lets go, keep their statistics."""

    table: TableName | None = None
    retention_days: Days | None = Field(default=None, description="In place of the table's own retention.")
    analyze: bool = True
    dry_run: DryRun = True


class CreateOrder(Told):
    """Make the windows from now to so far ahead; exactly one of the three says how far."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "integer"}}}
                for name in ("monthsAhead", "daysAhead", "count")
            ]
        }
    )

    table: TableName
    months_ahead: Annotated[int, Field(ge=1, le=120), _WHOLE] | None = None
    days_ahead: Annotated[int, Field(ge=1, le=3660), _WHOLE] | None = None
    count: Annotated[int, Field(ge=1, le=1000), _WHOLE] | None = Field(
        default=None, description="Windows after the current one."
    )
    dry_run: DryRun = True

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.months_ahead, self.days_ahead, self.count]
        if sum(value is not None for value in given) != 1:
            raise ValueError("say how far ahead: monthsAhead, daysAhead or count, one of them")
        return self


class AnalyzeOrder(Told):
    """Have PostgreSQL count: a table with its partitions, or one of these."""

    table: TableName
    partition: PartitionName | None = None
    dry_run: DryRun = True


class VacuumOrder(Told):
    """Clear dead rows away: of all partitions of a table, or of one of them."""

    table: TableName
    partition: PartitionName | None = None
    dry_run: DryRun = True


class CleanupOrder(Told):
    """Remove what retention lets go, and nothing else; at most one of the three replaces the table's own."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {
                "anyOf": [
                    {
                        "required": [one, other],
                        "properties": {name: {"not": {"type": "null"}} for name in (one, other)},
                    }
                    for one, other in (
                        ("retention", "retentionMonths"),
                        ("retention", "retentionDays"),
                        ("retentionMonths", "retentionDays"),
                    )
                ]
            }
        }
    )

    table: TableName
    retention: (
        Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5} (hour|day|week|month|quarter|year)s?$")] | None
    ) = Field(default=None, examples=["12 months"])
    retention_months: Annotated[int, Field(ge=1, le=1200), _WHOLE] | None = None
    retention_days: Days | None = None
    dry_run: DryRun = True

    @model_validator(mode="after")
    def _one_at_most(self) -> Self:
        given = [self.retention, self.retention_months, self.retention_days]
        if sum(value is not None for value in given) > 1:
            raise ValueError("retention, retentionMonths or retentionDays: one of them")
        return self

    @property
    def period(self) -> str | None:
        """The retention that is asked for, as a policy has it."""
        if self.retention_months is not None:
            return f"{self.retention_months} months"
        return self.retention if self.retention_days is None else f"{self.retention_days} days"
