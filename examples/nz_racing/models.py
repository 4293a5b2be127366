"""The tables, as they stand after the last migration."""

from __future__ import annotations

from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from sqlalchemy import DateTime, ForeignKey, Index, Numeric, Table, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from alembic_partitions import PartitionPolicy, nz_racing_day

Odds = Annotated[Decimal, mapped_column(Numeric(8, 2))]
Dollars = Annotated[Decimal, mapped_column(Numeric(12, 2))]
Percent = Annotated[Decimal, mapped_column(Numeric(5, 2))]


class Base(DeclarativeBase):
    __table__: ClassVar[Table]
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: DateTime(timezone=True)}


class Imported:
    """Where a row came from, when it first came, and when it last said something new."""

    data_source: Mapped[str] = mapped_column(server_default="legacy")
    imported_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_updated: Mapped[datetime] = mapped_column(server_default=func.now())


class Meeting(Imported, Base):
    __tablename__ = "meetings"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    meeting_date: Mapped[date]

    country: Mapped[str | None]
    category: Mapped[str | None]
    track_condition: Mapped[str | None]
    track_surface: Mapped[str | None]
    track_direction: Mapped[str | None]
    rail_position: Mapped[str | None]
    weather: Mapped[str | None]

    status: Mapped[str] = mapped_column(server_default="scheduled")
    first_race_time_nz: Mapped[time | None]
    race_count: Mapped[int | None]


class Race(Imported, Base):
    __tablename__ = "races"
    __table_args__ = (
        UniqueConstraint("meeting_id", "race_number"),
        Index("ix_races_race_date_nz_start_time_nz", "race_date_nz", "start_time_nz"),
        Index("ix_races_status_start_time", "status", "start_time"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    meeting_id: Mapped[int] = mapped_column(ForeignKey("meetings.id"))
    race_number: Mapped[int]
    name: Mapped[str]
    start_time: Mapped[datetime]

    # What a New Zealand race book prints. Local values, stored as stated and never converted: on the night
    # the clocks go back two races share 02:35, and no conversion could tell them apart again.
    race_date_nz: Mapped[date]
    start_time_nz: Mapped[time]

    status: Mapped[str] = mapped_column(server_default="open")
    actual_start: Mapped[datetime | None]
    results_available: Mapped[bool] = mapped_column(server_default=text("false"))

    win_pool: Mapped[Dollars | None]
    place_pool: Mapped[Dollars | None]
    quinella_pool: Mapped[Dollars | None]
    trifecta_pool: Mapped[Dollars | None]
    first4_pool: Mapped[Dollars | None]

    race_class: Mapped[str | None]
    distance_m: Mapped[int | None]
    prize_money: Mapped[Dollars | None]


class Entrant(Imported, Base):
    __tablename__ = "entrants"
    __table_args__ = (
        UniqueConstraint("race_id", "runner_number"),
        Index("ix_entrants_running", "race_id", "fixed_win_odds", postgresql_where=text("NOT scratched")),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    race_id: Mapped[int] = mapped_column(ForeignKey("races.id"))
    runner_number: Mapped[int]
    name: Mapped[str]

    barrier: Mapped[int | None]
    weight_kg: Mapped[Decimal | None] = mapped_column(Numeric(4, 1))
    jockey: Mapped[str | None]
    driver: Mapped[str | None]
    form: Mapped[str | None]
    scratched: Mapped[bool] = mapped_column(server_default=text("false"))

    fixed_win_odds: Mapped[Odds | None]
    fixed_place_odds: Mapped[Odds | None]
    pool_win_odds: Mapped[Odds | None]
    pool_place_odds: Mapped[Odds | None]
    hold_percentage: Mapped[Percent | None]
    bet_percentage: Mapped[Percent | None]


# The histories. Their entrant_id and race_id are no foreign keys: see migration 0002.


class MoneyFlowHistory(Base):
    __tablename__ = "money_flow_history"
    __table_args__ = (
        Index("ix_money_flow_history_entrant", "entrant_id", text("event_timestamp DESC")),
        nz_racing_day("event_timestamp", premake=30, retention="90 days"),
    )

    event_timestamp: Mapped[datetime] = mapped_column(primary_key=True)
    entrant_id: Mapped[int] = mapped_column(primary_key=True)
    hold_percentage: Mapped[Percent]
    bet_percentage: Mapped[Percent]
    win_pool: Mapped[Dollars]
    place_pool: Mapped[Dollars]


class OddsHistory(Base):
    __tablename__ = "odds_history"
    __table_args__ = (
        Index("ix_odds_history_entrant", "entrant_id", text("event_timestamp DESC")),
        Index("ix_odds_history_type_entrant", "odds_type", "entrant_id", text("event_timestamp DESC")),
        nz_racing_day("event_timestamp", premake=30, retention="90 days"),
    )

    event_timestamp: Mapped[datetime] = mapped_column(primary_key=True)
    entrant_id: Mapped[int] = mapped_column(primary_key=True)
    odds_type: Mapped[str] = mapped_column(primary_key=True)
    odds: Mapped[Odds]


class RaceResultHistory(Base):
    """Each version of a result as it was published: interim, final, amended."""

    __tablename__ = "race_result_history"
    __table_args__ = (
        Index("ix_race_result_history_race", "race_id", text("published_at DESC")),
        PartitionPolicy("race_date_nz", interval="month", timezone="Pacific/Auckland", premake=3),
    )

    race_date_nz: Mapped[date] = mapped_column(primary_key=True)
    race_id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(primary_key=True)
    published_at: Mapped[datetime]
    placings: Mapped[dict[str, Any]] = mapped_column(JSONB)
