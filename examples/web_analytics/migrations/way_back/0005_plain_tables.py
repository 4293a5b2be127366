"""Back to plain tables, with every row: not in versions/, as it is the way out

Revision ID: 0005
Revises: 0004
Create Date: 2026-02-05
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from alembic import op

from alembic_partitions import PartitionPolicy

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = {"events": "occurred_at", "goal_completions": "completed_at"}


def upgrade() -> None:
    # Copied beside readers and writers, compared, and swapped. The partitions stay, under another name, until
    # somebody drops them.
    for table, key in TABLES.items():
        op.unpartition_table(table, primary_key=["id"], existing_policy=policy(key))


def downgrade() -> None:
    # No row is copied: the table becomes its own first partition, and `alembic-partitions split` divides it.
    for table, key in TABLES.items():
        op.convert_to_partitioned(table, policy(key), existing_primary_key=["id"])


def policy(key: str) -> PartitionPolicy:
    return PartitionPolicy(key, interval="month", premake=6, retention="12 months", on_expiry="drop")
