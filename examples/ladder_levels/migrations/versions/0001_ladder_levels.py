"""Ladder levels, a partition for each UTC day, in a schema of their own

Revision ID: 0001
Revises:
Create Date: 2026-03-02
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from alembic_partitions import PartitionPolicy

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.execute("CREATE SCHEMA IF NOT EXISTS stream_ingest")
    op.create_partitioned_table(
        "ladder_levels",
        sa.Column("market_id", sa.String, nullable=False),
        sa.Column("selection_id", sa.BigInteger, nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("side", sa.String, nullable=False),
        sa.Column("level", sa.SmallInteger, nullable=False),
        sa.Column("price", sa.Numeric(8, 2), nullable=False),
        sa.Column("size", sa.Numeric(12, 2)),
        sa.PrimaryKeyConstraint("market_id", "selection_id", "published_at", "side", "level"),
        schema="stream_ingest",
        policy=PartitionPolicy("published_at", interval="day", timezone="UTC", premake=30),
    )


def downgrade() -> None:
    op.drop_partitioned_table("ladder_levels", schema="stream_ingest")
    op.execute("DROP SCHEMA stream_ingest")
