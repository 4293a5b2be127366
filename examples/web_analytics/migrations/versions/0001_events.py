"""Events and goal completions, a partition for each UTC month

Revision ID: 0001
Revises:
Create Date: 2026-01-12
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from alembic_partitions import PartitionPolicy

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_partitioned_table(
        "events",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("site_id", sa.String, nullable=False),
        sa.Column("visitor_id", sa.String, nullable=False),
        sa.Column("event_type", sa.String, nullable=False),
        sa.Column("path", sa.String),
        sa.Column("properties", JSONB, server_default="{}", nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", "occurred_at"),
        policy=PartitionPolicy(
            "occurred_at", interval="month", premake=6, retention="12 months", on_expiry="drop"
        ),
    )
    op.create_index("ix_events_site", "events", ["site_id", "occurred_at"])
    op.create_partitioned_table(
        "goal_completions",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("site_id", sa.String, nullable=False),
        sa.Column("visitor_id", sa.String, nullable=False),
        sa.Column("goal", sa.String, nullable=False),
        sa.Column("value", sa.Numeric(12, 2)),
        sa.Column("properties", JSONB, server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", "completed_at"),
        policy=PartitionPolicy(
            "completed_at", interval="month", premake=6, retention="12 months", on_expiry="drop"
        ),
    )
    op.create_index("ix_goal_completions_goal", "goal_completions", ["site_id", "goal", "completed_at"])


def downgrade() -> None:
    op.drop_partitioned_table("goal_completions")
    op.drop_partitioned_table("events")
