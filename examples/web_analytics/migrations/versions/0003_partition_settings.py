"""The settings of partitions by SQL, under the names that people know

Revision ID: 0003
Revises: 0002
Create Date: 2026-02-04
"""

from __future__ import annotations

from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

# `retention` as it is kept ("12 months"), and in months where it is counted in them: in days it is no number
# of months, and in `retention_months` NULL, as where everything is kept.
VIEW = """
CREATE VIEW partition_settings AS
SELECT table_schema,
       table_name,
       split_part(retention, ' ', 1)::integer
         * CASE WHEN retention ~ 'month' THEN 1
                WHEN retention ~ 'quarter' THEN 3
                WHEN retention ~ 'year' THEN 12 END AS retention_months,
       premake AS future_partitions,
       enabled,
       retention
FROM partition_config
WHERE interval = 'month'
"""

# With the rights of its owner, so that UPDATE on the view is all that an operator needs. What is written
# passes the CHECK constraints of partition_config: it is PostgreSQL that refuses a wrong value.
FUNCTION = """
CREATE FUNCTION partition_settings_update() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_OP <> 'UPDATE' THEN
    RAISE EXCEPTION USING
      MESSAGE = 'partition_settings: ' || TG_OP || ' is not possible',
      HINT = 'A migration adds a table, or forgets it. To leave one alone, SET enabled = false.';
  ELSIF (NEW.table_schema, NEW.table_name, NEW.retention)
      IS DISTINCT FROM (OLD.table_schema, OLD.table_name, OLD.retention) THEN
    RAISE EXCEPTION 'partition_settings: only retention_months, future_partitions and enabled can be set';
  END IF;
  UPDATE partition_config c
  SET retention = CASE WHEN NEW.retention_months IS DISTINCT FROM OLD.retention_months
                       THEN NEW.retention_months || ' months' ELSE c.retention END,
      premake = NEW.future_partitions,
      enabled = NEW.enabled
  WHERE (c.table_schema, c.table_name) = (OLD.table_schema, OLD.table_name)
  RETURNING c.retention INTO NEW.retention;
  RETURN NEW;
END
$$
"""

TRIGGER = """
CREATE TRIGGER partition_settings_update INSTEAD OF INSERT OR UPDATE OR DELETE ON partition_settings
FOR EACH ROW EXECUTE FUNCTION partition_settings_update()
"""


def upgrade() -> None:
    op.execute(VIEW)
    op.execute(FUNCTION)
    op.execute("REVOKE EXECUTE ON FUNCTION partition_settings_update() FROM PUBLIC")
    op.execute(TRIGGER)


def downgrade() -> None:
    op.execute("DROP VIEW partition_settings")
    op.execute("DROP FUNCTION partition_settings_update()")
