"""The tables, as they stand after the last migration."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Identity, Index, Numeric, Table, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alembic_partitions import nz_racing_day


class Base(DeclarativeBase):
    __table__: ClassVar[Table]
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}


class Odds(Base):
    """A price that a bookmaker offered, a partition for each New Zealand day."""

    __tablename__ = "odds"
    __table_args__ = (
        Index("ix_odds_selection", "selection_id", text("observed_at DESC")),
        nz_racing_day("observed_at", premake=14, retention="60 days"),
    )

    observed_at: Mapped[datetime] = mapped_column(primary_key=True)
    selection_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    bookmaker: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))


class JobRun(Base):
    """One run of a job of ours. Whoever writes the row for a slot runs it: nobody else can."""

    __tablename__ = "job_runs"
    __table_args__ = (UniqueConstraint("job_name", "slot"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    job_name: Mapped[str]
    slot: Mapped[datetime]
    started_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    finished_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(server_default="running")
    error: Mapped[str | None]
    run_by: Mapped[str]
