"""Indexes for the questions that are asked: of a day, of a race, of a runner

On a history an index is made once, on the parent: every partition has it, and every later one gets it.

Revision ID: 0004
Revises: 0003
Create Date: 2026-02-23
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

LATEST_FIRST = sa.text("event_timestamp DESC")


def upgrade() -> None:
    op.create_index("ix_races_race_date_nz_start_time_nz", "races", ["race_date_nz", "start_time_nz"])
    op.create_index("ix_races_status_start_time", "races", ["status", "start_time"])
    op.create_index(
        "ix_entrants_running",
        "entrants",
        ["race_id", "fixed_win_odds"],
        postgresql_where=sa.text("NOT scratched"),
    )
    for history in ("money_flow_history", "odds_history"):
        op.create_index(f"ix_{history}_entrant", history, ["entrant_id", LATEST_FIRST])
    op.create_index("ix_odds_history_type_entrant", "odds_history", ["odds_type", "entrant_id", LATEST_FIRST])


def downgrade() -> None:
    op.drop_index("ix_odds_history_type_entrant", table_name="odds_history")
    for history in ("odds_history", "money_flow_history"):
        op.drop_index(f"ix_{history}_entrant", table_name=history)
    op.drop_index("ix_entrants_running", table_name="entrants")
    op.drop_index("ix_races_status_start_time", table_name="races")
    op.drop_index("ix_races_race_date_nz_start_time_nz", table_name="races")
