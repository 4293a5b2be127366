"""A table that has grown old: thousands of daily partitions, made in seconds.

One by one PostgreSQL makes them slower and slower: 10,000 take four minutes. In batches below a parent of
their own they take half a minute; then the catalog is told whose they are. It ends as ATTACH would leave it.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, text

from alembic_partitions import PartitionPolicy, maintenance

READY = 30  # yesterday, today and four weeks
_BATCH = 250

POLICY = PartitionPolicy("at", premake=0, lookback=0)

_DAYS = """
DO $$ DECLARE day timestamptz; BEGIN
  SET TimeZone = 'UTC';
  FOR n IN {first}..{last} LOOP
    day := date_trunc('day', now()) - n * interval '1 day';
    EXECUTE format('CREATE TABLE %s PARTITION OF {batch} FOR VALUES FROM (%L) TO (%L)',
                   '{table}_' || to_char(day, 'YYYY_MM_DD'), day, day + interval '1 day');
    EXECUTE format('COMMENT ON TABLE %s IS ''alembic_partitions: made by ensure''',
                   '{table}_' || to_char(day, 'YYYY_MM_DD'));
    IF n % 50 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$
"""

_COPY = """
DO $$ DECLARE copy text; part record; BEGIN
  SET TimeZone = 'UTC';
  FOR n IN {first}..{last} LOOP
    copy := '{table}_' || n;
    EXECUTE format('CREATE TABLE %s (LIKE {table} INCLUDING ALL) PARTITION BY RANGE (at)', copy);
    FOR part IN SELECT c.relname, pg_get_expr(c.relpartbound, 0) AS bound FROM pg_inherits
                JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = '{table}'::regclass LOOP
      EXECUTE format('CREATE TABLE %s PARTITION OF %s %s', copy || right(part.relname, 11), copy, part.bound);
    END LOOP;
    INSERT INTO partition_config
    SELECT (jsonb_populate_record(c, jsonb_build_object('table_name', copy))).*
    FROM partition_config c WHERE table_name = '{table}';
    COMMIT;
  END LOOP;
END $$
"""

# Parents, their indexes and their primary keys: those of the batches, and those that take their place.
_MOVE = r"""
SET LOCAL allow_system_table_mods = on;
CREATE TEMP TABLE moved ON COMMIT DROP AS
WITH batches AS (SELECT oid FROM pg_class WHERE relname ~ '^{table}_batch_\d+$')
SELECT 'pg_class'::regclass AS catalog, oid AS old, '{table}'::regclass::oid AS new FROM batches
UNION ALL
SELECT 'pg_class'::regclass, theirs.indexrelid, ours.indexrelid
FROM pg_index theirs JOIN batches ON batches.oid = theirs.indrelid
JOIN pg_index ours ON ours.indrelid = '{table}'::regclass AND ours.indkey::text = theirs.indkey::text
UNION ALL
SELECT 'pg_constraint'::regclass, theirs.oid, ours.oid
FROM pg_constraint theirs JOIN batches ON batches.oid = theirs.conrelid AND theirs.contype = 'p'
JOIN pg_constraint ours ON ours.conrelid = '{table}'::regclass AND ours.contype = 'p';
ANALYZE moved;
UPDATE pg_inherits SET inhparent = new FROM moved WHERE inhparent = old AND catalog = 'pg_class'::regclass;
UPDATE pg_constraint SET conparentid = new FROM moved
WHERE conparentid = old AND catalog = 'pg_constraint'::regclass;
UPDATE pg_depend SET refobjid = new FROM moved
WHERE refobjid = old AND refclassid = catalog AND deptype IN ('P', 'S', 'a')
      AND NOT EXISTS (SELECT FROM moved m WHERE m.old = objid AND m.catalog = classid)
      AND NOT EXISTS (SELECT FROM moved m JOIN pg_type t ON t.typrelid = m.old WHERE t.oid = objid)
"""


def grow(engine: Engine, name: str, partitions: int) -> None:
    """Declare a table of five columns and two indexes with that many partitions, its horizon the last."""
    past = partitions - READY
    with pytest.MonkeyPatch.context() as patch:
        long_ago = datetime.now(timezone.utc) - timedelta(days=past + 1)
        patch.setenv(maintenance.NOW_VARIABLE, long_ago.isoformat())
        _declare(engine, name)
    run = engine.execution_options(isolation_level="AUTOCOMMIT")
    batches = range(2, past + 1, _BATCH)
    for first in batches:
        batch = f"{name}_batch_{first}"
        last = min(first + _BATCH - 1, past)
        with run.connect() as connection:  # each its own, which knows of no partitions yet
            connection.execute(
                text(f"CREATE TABLE {batch} (LIKE {name} INCLUDING ALL) PARTITION BY RANGE (at)")
            )
            connection.exec_driver_sql(
                _DAYS.format(table=name, batch=batch, first=first, last=last),
                execution_options={"no_parameters": True},
            )
    if batches:
        with engine.begin() as connection:
            connection.exec_driver_sql(_MOVE.format(table=name), execution_options={"no_parameters": True})
        engine.dispose()
        with run.connect() as connection:
            for first in batches:
                connection.execute(text(f"DROP TABLE {name}_batch_{first}"))
    with engine.begin() as connection:
        horizon = {"premake": READY - 2, "name": name}
        connection.execute(
            text("UPDATE partition_config SET premake = :premake, lookback = 1 WHERE table_name = :name"),
            horizon,
        )
    with engine.connect() as connection:
        report = maintenance.ensure(connection, tables=[name])
        assert not any(result.error or result.horizon_short for result in report.results)
        found = connection.scalar(
            text("SELECT count(*) FROM pg_inherits WHERE inhparent = CAST(:name AS regclass)"), {"name": name}
        )
        assert found == partitions, found
    engine.dispose()


def copies(engine: Engine, name: str, count: int) -> None:
    """Make tables as `name` is, with its partitions, by SQL alone: `name`_1 and so on."""
    run = engine.execution_options(isolation_level="AUTOCOMMIT")
    for first in range(1, count + 1, 10):
        with run.connect() as connection:
            connection.execute(text("VACUUM ANALYZE pg_class, pg_inherits"))  # as autovacuum would
            connection.exec_driver_sql(
                _COPY.format(table=name, first=first, last=min(first + 9, count)),
                execution_options={"no_parameters": True},
            )
            connection.invalidate()  # the next one knows of none of them


def tidy(engine: Engine) -> None:
    """VACUUM and ANALYZE, as autovacuum would have done."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _declare(engine: Engine, name: str) -> None:
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        operations.create_partitioned_table(
            name,
            sa.Column("id", sa.BigInteger, nullable=False),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("kind", sa.Integer),
            sa.Column("amount", sa.Numeric),
            sa.Column("note", sa.Text),
            sa.PrimaryKeyConstraint("id", "at"),
            policy=POLICY,
        )
        connection.execute(text(f"CREATE INDEX ON {name} (kind, at)"))
