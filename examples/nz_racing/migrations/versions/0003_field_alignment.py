"""Field alignment: everything the racing feed states has a column

win_odds and place_odds become fixed_win_odds and fixed_place_odds: renamed, so each value moves without a
row being written, and moves back on the way down with whatever was written in between.

Revision ID: 0003
Revises: 0002
Create Date: 2026-02-16
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

INSTANT = sa.DateTime(timezone=True)
ODDS = sa.Numeric(8, 2)
DOLLARS = sa.Numeric(12, 2)
PERCENT = sa.Numeric(5, 2)

RENAMED = {"win_odds": "fixed_win_odds", "place_odds": "fixed_place_odds"}


def imported() -> list[sa.Column[Any]]:
    return [
        sa.Column("data_source", sa.String, nullable=False, server_default="legacy"),
        sa.Column("imported_at", INSTANT, nullable=False, server_default=sa.func.now()),
        sa.Column("last_updated", INSTANT, nullable=False, server_default=sa.func.now()),
    ]


ADDED: dict[str, list[sa.Column[Any]]] = {
    "meetings": [
        *imported(),
        sa.Column("country", sa.String),
        sa.Column("category", sa.String),
        sa.Column("track_condition", sa.String),
        sa.Column("track_surface", sa.String),
        sa.Column("track_direction", sa.String),
        sa.Column("rail_position", sa.String),
        sa.Column("weather", sa.String),
        sa.Column("status", sa.String, nullable=False, server_default="scheduled"),
        sa.Column("first_race_time_nz", sa.Time),
        sa.Column("race_count", sa.Integer),
    ],
    "races": [
        *imported(),
        sa.Column("race_date_nz", sa.Date),
        sa.Column("start_time_nz", sa.Time),
        sa.Column("status", sa.String, nullable=False, server_default="open"),
        sa.Column("actual_start", INSTANT),
        sa.Column("results_available", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("win_pool", DOLLARS),
        sa.Column("place_pool", DOLLARS),
        sa.Column("quinella_pool", DOLLARS),
        sa.Column("trifecta_pool", DOLLARS),
        sa.Column("first4_pool", DOLLARS),
        sa.Column("race_class", sa.String),
        sa.Column("distance_m", sa.Integer),
        sa.Column("prize_money", DOLLARS),
    ],
    "entrants": [
        *imported(),
        sa.Column("barrier", sa.Integer),
        sa.Column("weight_kg", sa.Numeric(4, 1)),
        sa.Column("jockey", sa.String),
        sa.Column("driver", sa.String),
        sa.Column("form", sa.String),
        sa.Column("scratched", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("pool_win_odds", ODDS),
        sa.Column("pool_place_odds", ODDS),
        sa.Column("hold_percentage", PERCENT),
        sa.Column("bet_percentage", PERCENT),
    ],
}


def upgrade() -> None:
    for old, new in RENAMED.items():
        op.alter_column("entrants", old, new_column_name=new)
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(table, column)

    # Races from before these columns know their instant alone: say, this once, what the race book said.
    races = sa.table("races", *map(sa.column, ("race_date_nz", "start_time_nz", "start_time")))
    local = sa.func.timezone("Pacific/Auckland", races.c.start_time)
    stated = {"race_date_nz": sa.cast(local, sa.Date), "start_time_nz": sa.cast(local, sa.Time)}
    op.execute(races.update().values(stated))
    for name in stated:
        op.alter_column("races", name, nullable=False)


def downgrade() -> None:
    for table, columns in ADDED.items():
        for column in columns:
            op.drop_column(table, column.name)
    for old, new in RENAMED.items():
        op.alter_column("entrants", new, new_column_name=old)
