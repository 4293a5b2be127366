"""Events, a partition for each UTC day

Revision ID: 0001
Revises:
Create Date: 2026-02-02
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

LATEST_FIRST = sa.text("occurred_at DESC")


def upgrade() -> None:
    op.create_partitioned_table(
        "events",
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant_id", sa.String, nullable=False),
        sa.Column("device_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("event_type", sa.String, nullable=False),
        sa.Column("payload", JSONB, nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", "occurred_at"),
        sa.UniqueConstraint("tenant_id", "device_id", "sequence", "occurred_at"),
        policy=PartitionPolicy(
            "occurred_at", interval="day", timezone="UTC", premake=30, retention="90 days"
        ),
    )
    op.create_index("ix_events_device", "events", ["tenant_id", "device_id", LATEST_FIRST])
    op.create_index("ix_events_type", "events", ["event_type", LATEST_FIRST])


def downgrade() -> None:
    op.drop_partitioned_table("events")
