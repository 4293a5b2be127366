"""The tables, as they stand after the last migration."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Index, Numeric, Table, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alembic_partitions import PartitionPolicy


def monthly(key: str) -> PartitionPolicy:
    """Return the policy of both: UTC months; the previous one and six ahead stand ready, twelve are kept."""
    return PartitionPolicy(
        key, interval="month", timezone="UTC", lookback=1, premake=6, retention="12 months", on_expiry="drop"
    )


class Base(DeclarativeBase):
    __table__: ClassVar[Table]
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        int: BigInteger,
    }


class Event(Base):
    """What a visitor did, once, never changed."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_site", "site_id", "occurred_at"),
        # For `properties @> '{"plan": "pro"}'`. Every partition to come gets its own.
        Index(
            "ix_events_properties",
            "properties",
            postgresql_using="gin",
            postgresql_ops={"properties": "jsonb_path_ops"},
            postgresql_concurrently=True,
        ),
        monthly("occurred_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, autoincrement=True)
    occurred_at: Mapped[datetime] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    visitor_id: Mapped[str]
    event_type: Mapped[str]
    path: Mapped[str | None]
    properties: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())


class GoalCompletion(Base):
    """An event that reached a goal, written in the same transaction."""

    __tablename__ = "goal_completions"
    __table_args__ = (
        Index("ix_goal_completions_goal", "site_id", "goal", "completed_at"),
        Index(
            "ix_goal_completions_properties",
            "properties",
            postgresql_using="gin",
            postgresql_ops={"properties": "jsonb_path_ops"},
            postgresql_concurrently=True,
        ),
        monthly("completed_at"),
    )

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, autoincrement=True)
    completed_at: Mapped[datetime] = mapped_column(primary_key=True)
    site_id: Mapped[str]
    visitor_id: Mapped[str]
    goal: Mapped[str]
    value: Mapped[float | None] = mapped_column(Numeric(12, 2, asdecimal=False))
    properties: Mapped[dict[str, Any]] = mapped_column(server_default="{}")
