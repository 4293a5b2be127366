"""Functions for people in psql: partition_health_summary(), list_partitions() and the others

Revision ID: 0004
Revises: 0003
Create Date: 2026-02-04
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_partition_functions()


def downgrade() -> None:
    op.drop_partition_functions()
