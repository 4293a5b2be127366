"""GIN indexes on the properties, built while both tables are written

Revision ID: 0002
Revises: 0001
Create Date: 2026-02-03
"""

# mypy: disable-error-code="attr-defined"

from __future__ import annotations

from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

TABLES = ("events", "goal_completions")


def upgrade() -> None:
    # ON ONLY the table, then CONCURRENTLY on each partition. A migration of its own: what came before it in
    # the same one would be committed.
    for table in TABLES:
        op.create_partitioned_index(
            f"ix_{table}_properties",
            table,
            ["properties"],
            postgresql_using="gin",
            postgresql_ops={"properties": "jsonb_path_ops"},
        )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_partitioned_index(f"ix_{table}_properties", table)
