"""The table, as it stands after the last migration."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Numeric, SmallInteger, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alembic_partitions import PartitionPolicy

SCHEMA = "stream_ingest"


class Base(DeclarativeBase):
    __table__: ClassVar[Table]
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}


class LadderLevel(Base):
    """What the stream said of one rung of a runner's ladder at one moment; or of its last traded price."""

    __tablename__ = "ladder_levels"
    __table_args__ = (
        PartitionPolicy("published_at", interval="day", timezone="UTC", premake=30),
        {"schema": SCHEMA},
    )

    # The whole key is what the stream says, so replicas that record the same stream write each row once.
    market_id: Mapped[str] = mapped_column(primary_key=True)
    selection_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    published_at: Mapped[datetime] = mapped_column(primary_key=True)
    side: Mapped[str] = mapped_column(primary_key=True)
    level: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    size: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
