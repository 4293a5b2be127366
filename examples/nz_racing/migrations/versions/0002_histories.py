"""Money-flow and odds histories, a partition for each New Zealand day

Their entrant_id is no foreign key, on purpose. Making a partition of a table with one takes SHARE ROW
EXCLUSIVE on entrants, and would wait for whoever is writing entrants just then, which is everybody in the
last minutes before a race. A history also outlives the entrant that it tells of.

Revision ID: 0002
Revises: 0001
Create Date: 2026-01-19
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from alembic_partitions import nz_racing_day

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_partitioned_table(
        "money_flow_history",
        sa.Column("event_timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entrant_id", sa.Integer, nullable=False),
        sa.Column("hold_percentage", sa.Numeric(5, 2), nullable=False),
        sa.Column("bet_percentage", sa.Numeric(5, 2), nullable=False),
        sa.Column("win_pool", sa.Numeric(12, 2), nullable=False),
        sa.Column("place_pool", sa.Numeric(12, 2), nullable=False),
        sa.PrimaryKeyConstraint("event_timestamp", "entrant_id"),
        policy=nz_racing_day("event_timestamp", premake=30, retention="90 days"),
    )
    op.create_partitioned_table(
        "odds_history",
        sa.Column("event_timestamp", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entrant_id", sa.Integer, nullable=False),
        sa.Column("odds_type", sa.String, nullable=False),
        sa.Column("odds", sa.Numeric(8, 2), nullable=False),
        sa.PrimaryKeyConstraint("event_timestamp", "entrant_id", "odds_type"),
        policy=nz_racing_day("event_timestamp", premake=30, retention="90 days"),
    )


def downgrade() -> None:
    op.drop_partitioned_table("odds_history")
    op.drop_partitioned_table("money_flow_history")
