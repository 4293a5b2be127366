"""Meetings, races and entrants

Revision ID: 0001
Revises:
Create Date: 2026-01-12
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "meetings",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("meeting_date", sa.Date, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "races",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("meeting_id", sa.Integer, nullable=False),
        sa.Column("race_number", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["meeting_id"], ["meetings.id"]),
        sa.UniqueConstraint("meeting_id", "race_number"),
    )
    op.create_table(
        "entrants",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("race_id", sa.Integer, nullable=False),
        sa.Column("runner_number", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("win_odds", sa.Numeric(8, 2)),
        sa.Column("place_odds", sa.Numeric(8, 2)),
        sa.PrimaryKeyConstraint("id"),
        sa.ForeignKeyConstraint(["race_id"], ["races.id"]),
        sa.UniqueConstraint("race_id", "runner_number"),
    )


def downgrade() -> None:
    op.drop_table("entrants")
    op.drop_table("races")
    op.drop_table("meetings")
