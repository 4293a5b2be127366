"""Tables with a thousand partitions each, by the hundred, within a minute.

PostgreSQL takes 0.3 ms for a table, and 3 ms where it becomes the thousandth partition of another: it reads
the bounds of all the others again each time. So the first table's partitions are made by DDL; those of the
other tables are made as plain tables, and then become partitions by the catalog rows that ATTACH writes, in
one statement each. That needs a superuser.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Engine, create_engine, text

from alembic_partitions import PartitionPolicy, maintenance
from alembic_partitions.plan import PARTITION_MARK
from tests.databases import Database, Databases
from tests.tables import run, scalar

POLICY = PartitionPolicy("at", premake=0, lookback=0)

# Older days for one table, committed now and then.
OLDER_DAYS = """
DO $$ DECLARE day date; BEGIN
  FOR n IN REVERSE {last}..{first} LOOP
    day := (now() AT TIME ZONE 'UTC')::date - n;
    EXECUTE format('CREATE TABLE {table}_%s PARTITION OF {table} FOR VALUES FROM (%L) TO (%L)',
                   to_char(day, 'YYYY_MM_DD'), day || ' 00:00+00', (day + 1) || ' 00:00+00');
    EXECUTE format('COMMENT ON TABLE {table}_%s IS %L', to_char(day, 'YYYY_MM_DD'), '{mark}');
    IF n % 100 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$
"""

# For each partition of the first table, a table of the same ending.
SAME_ENDINGS = """
DO $$ DECLARE ending text; n int := 0; BEGIN
  FOR ending IN SELECT substr(c.relname, length('{first}') + 1) FROM pg_inherits i
                JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = '{first}'::regclass LOOP
    IF to_regclass('{table}' || ending) IS NULL THEN
      EXECUTE format('CREATE TABLE {table}%s (at timestamptz NOT NULL)', ending);
      n := n + 1;
      IF n % 200 = 0 THEN COMMIT; END IF;
    END IF;
  END LOOP;
END $$
"""

# What ATTACH writes. `new` pairs each such table with the first table's partition of that bound.
NEW = """
WITH new AS (
  SELECT c.oid AS child, t.oid AS parent, model.oid AS model, model.relpartbound AS bound
  FROM unnest(CAST('{{{tables}}}' AS text[])) AS names (name)
  JOIN pg_class t ON t.oid = names.name::regclass
  JOIN pg_inherits i ON i.inhparent = '{first}'::regclass
  JOIN pg_class model ON model.oid = i.inhrelid
  JOIN pg_class c ON c.relname = t.relname || substr(model.relname, length('{first}') + 1)
                 AND c.relnamespace = t.relnamespace
  WHERE NOT EXISTS (SELECT FROM pg_inherits x WHERE x.inhrelid = c.oid)
)
"""
ATTACHED = """
UPDATE pg_attribute a SET attinhcount = 1, attislocal = false FROM new
WHERE a.attrelid = new.child AND a.attnum > 0;

UPDATE pg_constraint k SET coninhcount = 1, conislocal = false FROM new  -- NOT NULL, from 18 on
WHERE k.conrelid = new.child;

INSERT INTO pg_depend
SELECT 'pg_class'::regclass, new.child, 0, 'pg_class'::regclass, new.parent, 0, 'a' FROM new;

INSERT INTO pg_description
SELECT new.child, d.classoid, d.objsubid, d.description FROM new
JOIN pg_description d ON d.objoid = new.model AND d.classoid = 'pg_class'::regclass;

UPDATE pg_class c SET relispartition = true, relpartbound = new.bound FROM new WHERE c.oid = new.child;

INSERT INTO pg_inherits SELECT new.child, new.parent, 1, false FROM new
"""

CATALOGS = "pg_class, pg_inherits, pg_attribute, pg_type, pg_depend, pg_description, pg_constraint"


def names(tables: int) -> list[str]:
    return [f"table_{number}" for number in range(tables)]


def declare(engine: Engine, name: str, policy: PartitionPolicy = POLICY) -> None:
    """Declare the smallest table that can be partitioned: it is the catalog that is read here."""
    with engine.begin() as connection:
        operations: Any = Operations(MigrationContext.configure(connection))
        key = sa.Column("at", sa.DateTime(timezone=True), nullable=False)
        operations.create_partitioned_table(name, key, policy=policy)


@contextmanager
def filled(databases: Databases, tables: int, partitions: int, horizon: int = 28) -> Iterator[Database]:
    """A database of tables by UTC day: that many partitions each, the horizon after today among them."""
    database = databases.clone()
    engine = create_engine(database.url)
    first, *others = names(tables)
    for name in (first, *others):
        declare(engine, name)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE partition_config SET premake = :horizon, lookback = 1"), {"horizon": horizon}
        )
    older(engine, first, partitions - horizon - 1)
    with engine.connect() as connection:
        report = maintenance.ensure(connection, tables=[first])
    assert not any(result.error for result in report.results)
    copy(engine, first, others)
    assert scalar(engine, "SELECT count(*) FROM pg_inherits") == tables * partitions
    prove(engine, first, (first, *others)[-1], partitions - horizon - 2)
    engine.dispose()
    yield database
    databases.drop(database.name)


def older(engine: Engine, table: str, days: int, after: int = 0) -> None:
    """Make the partitions of that many days before today, or before those that are `after` days back."""
    run(
        engine,
        OLDER_DAYS.format(table=table, first=after + 1, last=after + days, mark=f"{PARTITION_MARK}bench"),
    )


def copy(engine: Engine, first: str, others: Sequence[str]) -> None:
    """Give other tables the partitions that the first one has, by two connections at once."""

    def make(half: Sequence[str]) -> None:
        run(engine, *(SAME_ENDINGS.format(first=first, table=table) for table in half))

    threads = [threading.Thread(target=make, args=(others[number::2],)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL allow_system_table_mods = on")
        for statement in ATTACHED.split(";\n"):
            new = NEW.format(first=first, tables=",".join(others))
            connection.exec_driver_sql(f"{new} {statement}")
        connection.exec_driver_sql("UPDATE pg_class SET relhassubclass = true WHERE relkind = 'p'")
    run(engine, f"VACUUM ANALYZE {CATALOGS}")  # as autovacuum would have done


def prove(engine: Engine, first: str, last: str, days: int) -> None:
    """See that PostgreSQL takes the copies for what they are: rows find them, and one can be taken off."""
    long_ago = datetime.now(timezone.utc) - timedelta(days=days)
    child = f"{last}_{long_ago:%Y_%m_%d}"
    with engine.connect() as connection:
        for table in (first, last):
            row = connection.execute(
                text(f"INSERT INTO {table} VALUES (:at) RETURNING tableoid::regclass::text"), {"at": long_ago}
            )
            assert row.scalar_one() == f"{table}_{long_ago:%Y_%m_%d}"
        connection.exec_driver_sql(f"ALTER TABLE {last} DETACH PARTITION {child}")
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(text(f"INSERT INTO {last} VALUES (:at)"), {"at": long_ago})
        connection.rollback()
