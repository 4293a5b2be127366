"""The table, as it stands after the last migration."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Index, Table, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alembic_partitions import PartitionPolicy


class Base(DeclarativeBase):
    __table__: ClassVar[Table]
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}


class Event(Base):
    """What a device said, once, never changed."""

    __tablename__ = "events"
    __table_args__ = (
        # What identifies an event. PostgreSQL wants the partition key in it; an event that is delivered
        # twice says the same time twice, so this finds it.
        UniqueConstraint("tenant_id", "device_id", "sequence", "occurred_at"),
        Index("ix_events_device", "tenant_id", "device_id", text("occurred_at DESC")),
        Index("ix_events_type", "event_type", text("occurred_at DESC")),
        PartitionPolicy("occurred_at", interval="day", timezone="UTC", premake=30, retention="90 days"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, autoincrement=True)
    occurred_at: Mapped[datetime] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    device_id: Mapped[str]
    sequence: Mapped[int] = mapped_column(BigInteger)
    event_type: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())
