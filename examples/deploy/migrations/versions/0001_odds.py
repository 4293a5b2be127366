"""Odds, a partition for each New Zealand day

Revision ID: 0001
Revises:
Create Date: 2026-03-02
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from alembic_partitions import nz_racing_day

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_partitioned_table(
        "odds",
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("selection_id", sa.BigInteger, nullable=False),
        sa.Column("bookmaker", sa.String, nullable=False),
        sa.Column("price", sa.Numeric(8, 2), nullable=False),
        sa.PrimaryKeyConstraint("observed_at", "selection_id", "bookmaker"),
        policy=nz_racing_day("observed_at", premake=14, retention="60 days"),
    )
    op.create_index("ix_odds_selection", "odds", ["selection_id", sa.text("observed_at DESC")])


def downgrade() -> None:
    op.drop_partitioned_table("odds")
