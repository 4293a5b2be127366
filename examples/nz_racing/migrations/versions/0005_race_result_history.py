"""Every published version of a result, a partition for each month of race_date_nz

The key is a date: the day that the race book prints, which no time zone can move.

Revision ID: 0005
Revises: 0004
Create Date: 2026-03-09
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from alembic_partitions import PartitionPolicy

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_partitioned_table(
        "race_result_history",
        sa.Column("race_date_nz", sa.Date, nullable=False),
        sa.Column("race_id", sa.Integer, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("placings", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("race_date_nz", "race_id", "status"),
        policy=PartitionPolicy("race_date_nz", interval="month", timezone="Pacific/Auckland", premake=3),
    )
    op.create_index(
        "ix_race_result_history_race",
        "race_result_history",
        ["race_id", sa.text("published_at DESC")],
    )


def downgrade() -> None:
    op.drop_partitioned_table("race_result_history")
