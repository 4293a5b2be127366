"""Tables that Citus distributes, on plain PostgreSQL: a few objects that bear Citus' names stand in for it.

What only a cluster can show is in test_citus_cluster.py.
"""

from __future__ import annotations

import time
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor, maintenance
from alembic_partitions.conversion import convert, unpartition
from alembic_partitions.errors import ConversionRefused, NotCoordinatorError, SplitRefused
from alembic_partitions.maintenance import Orders, TableResult
from tests.apps import auckland_day, days_from_now
from tests.databases import Database
from tests.db.test_keys import KINDS
from tests.tables import (
    columns,
    declare,
    listening,
    operations,
    partitions,
    policy,
    rows,
    run,
    scalar,
)
from tests.terminal import caller

TELL = "SET LOCAL citus.propagate_set_commands = 'local'"
ONE_BY_ONE = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"
SETTINGS = [TELL, ONE_BY_ONE]


def ensure(engine: Engine) -> TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection).results
    return result


def maintain(engine: Engine, **orders: Any) -> TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.maintain(connection, orders=Orders(analyze=False, **orders)).results
    return result


def dry_run(engine: Engine, **orders: Any) -> str:
    with engine.connect() as connection:
        return "".join(
            sql for _, sql in maintenance.plan_maintain(connection, orders=Orders(analyze=False, **orders))
        )


def snapshot(engine: Engine) -> Any:
    with engine.connect() as connection:
        (found,) = catalog.read_snapshot(connection, "public").tables
    return found


def past_and_future() -> tuple[date, date]:
    today = auckland_day(datetime.now(timezone.utc))
    return today - timedelta(days=6), today


# -- plain PostgreSQL, with objects that bear Citus' names ------------------------------------------------


def pretend(engine: Engine, *tables: str) -> None:
    """Make tables look as if Citus had distributed them."""
    run(
        engine,
        "CREATE OR REPLACE FUNCTION pg_catalog.citus_truncate_trigger() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'",
        "CREATE OR REPLACE FUNCTION pg_catalog.citus_total_relation_size(regclass, boolean) RETURNS bigint"
        " LANGUAGE sql AS 'SELECT 4711'",
        "CREATE OR REPLACE FUNCTION pg_catalog.column_to_column_name(regclass, text) RETURNS text"
        " LANGUAGE sql AS 'SELECT $2'",
        "CREATE OR REPLACE FUNCTION pg_catalog.create_distributed_table("
        "regclass, text, colocate_with text) RETURNS void LANGUAGE sql AS ''",
        "SET allow_system_table_mods = on",
        "CREATE TABLE IF NOT EXISTS pg_catalog.pg_dist_partition"
        ' (logicalrelid regclass, partmethod "char", partkey text)',
        *(f"INSERT INTO pg_dist_partition VALUES ('{name}', 'h', 'id')" for name in tables),
        *(
            f"CREATE TRIGGER truncate_trigger AFTER TRUNCATE ON {name}"
            " EXECUTE FUNCTION citus_truncate_trigger()"
            for name in tables
        ),
    )


def pretend_node(engine: Engine, group: int) -> None:
    """Make a server look like a node of Citus: the coordinator is group 0."""
    run(
        engine,
        "SET allow_system_table_mods = on",
        "CREATE TABLE IF NOT EXISTS pg_catalog.pg_dist_local_group (groupid int)",
        "DELETE FROM pg_dist_local_group",
        f"INSERT INTO pg_dist_local_group VALUES ({group})",
    )


def test_a_table_is_known_as_distributed_by_the_statements_that_are_sent_anyway(engine: Engine) -> None:
    declare(engine)
    with listening(engine) as plain:
        ensure(engine)
    assert not snapshot(engine).traits.distributed
    pretend(engine, "odds")
    assert snapshot(engine).traits.distributed
    with listening(engine) as distributed:
        ensure(engine)
    assert distributed.statements == plain.statements


def test_what_is_printed_for_a_distributed_table_is_what_is_sent(engine: Engine) -> None:
    declare(engine, rules=policy(premake=0, lookback=0))
    pretend(engine, "odds")
    run(engine, "UPDATE partition_config SET premake = 1")
    with engine.connect() as connection:
        (planned,) = maintenance.plan(connection)
    printed = planned.sql()
    with listening(engine) as sent:
        made = ensure(engine).created
    assert len(made) == 1
    lines = [line.rstrip(";") for line in printed.splitlines() if not line.startswith(("--", "BEGIN", "COM"))]
    assert [s for s in sent.writes() if not s.startswith("COMMENT")] == lines
    # Before the time-out that workers are to heed.
    assert lines[2:5] == [*SETTINGS, "SET LOCAL lock_timeout = '40ms'"]
    assert "SHARE UPDATE EXCLUSIVE on public.odds; the same on each of its shards" in printed


def test_a_plain_table_gets_none_of_that(engine: Engine) -> None:
    declare(engine, rules=policy(premake=0, lookback=0))
    run(engine, "UPDATE partition_config SET premake = 1")
    with listening(engine) as sent:
        assert len(ensure(engine).created) == 1
    assert not [s for s in sent.statements if "citus." in s]


def test_a_worker_that_is_not_reached_is_tried_again(engine: Engine, driver: str) -> None:
    """The server says 08006 itself, and its session lives."""
    declare(engine, rules=policy(premake=0, lookback=0))
    run(
        engine,
        "CREATE SEQUENCE tries MINVALUE -1000 START 1",
        "CREATE FUNCTION unreached() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF nextval('tries') < 3 THEN RAISE 'connection to the remote node failed' USING ERRCODE = '08006';"
        " END IF; END$$",
        "CREATE EVENT TRIGGER unreached ON ddl_command_start WHEN TAG IN ('CREATE TABLE')"
        " EXECUTE FUNCTION unreached()",
        "UPDATE partition_config SET premake = 1",
    )
    result = ensure(
        sa.create_engine(engine.url.set(drivername=f"postgresql+{driver}"), poolclass=sa.NullPool)
    )
    assert (len(result.created), result.error) == (1, None)
    assert scalar(engine, "SELECT last_value FROM tries") == 3
    run(engine, "ALTER SEQUENCE tries RESTART WITH -1000", "UPDATE partition_config SET premake = 2")
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection, give_up_at=time.monotonic() + 0.5).results
    assert "connection to the remote node failed" in str(result.error), "it is no lock"


def test_a_partition_of_it_is_detached_plainly_and_dropped_later(engine: Engine) -> None:
    declare(engine, rules=policy(retention="3 days", on_expiry="drop"))
    with operations(engine) as op:
        op.create_partitions("odds", *past_and_future())
    pretend(engine, "odds")
    printed = dry_run(engine)
    assert "CONCURRENTLY" not in printed
    assert "-- locks: ACCESS EXCLUSIVE on public.odds; the same on each of its shards" in printed
    with listening(engine) as sent:
        gone = maintain(engine).detached
    assert len(gone) >= 2
    assert sent.statements.count(TELL) == sent.statements.count(ONE_BY_ONE) == len(gone)
    run(engine, "UPDATE partition_config SET grace = '1 hour'", *detached_long_ago(engine))
    with listening(engine) as sent:
        assert len(maintain(engine).dropped) == len(gone)
    assert sent.statements.count(TELL) == len(gone)
    assert sent.statements.index(TELL) < sent.statements.index("SET LOCAL lock_timeout = '40ms'")


def detached_long_ago(engine: Engine) -> list[str]:
    """Have what is detached be so for two hours."""
    found = rows(
        engine,
        "SELECT c.oid::regclass::text, obj_description(c.oid, 'pg_class') FROM pg_class c"
        " WHERE obj_description(c.oid, 'pg_class') LIKE 'alembic_partitions: detached%'",
    )
    before = datetime.now(timezone.utc) - timedelta(hours=2)
    changed = []
    for name, mark in found:
        head, _, tail = mark.partition('"at": "')
        told = f'{head}"at": "{before:%Y-%m-%d %H:%M:%S.%f}Z"{tail.partition(chr(34))[2]}'
        quoted = told.replace("'", "''")
        changed.append(f"COMMENT ON TABLE {name} IS '{quoted}'")
    return changed


def test_in_a_migration_one_shard_is_changed_after_the_other(engine: Engine) -> None:
    declare(engine)
    pretend(engine, "odds")
    with listening(engine) as sent, operations(engine) as op:
        op.create_partitions("odds", date(2026, 1, 1), date(2026, 1, 4))
    assert [s for s in sent.statements if "citus." in s] == SETTINGS
    attach = next(n for n, s in enumerate(sent.statements) if "ATTACH" in s)
    assert sent.statements.index(ONE_BY_ONE) < attach


def test_on_a_worker_nothing_is_done_and_it_is_told_where_to_go(engine: Engine, database: Database) -> None:
    declare(engine, rules=policy(premake=0))
    pretend_node(engine, 1)
    before = partitions(engine)
    run(engine, "UPDATE partition_config SET premake = 3")
    for act in (maintenance.ensure, maintenance.plan, maintenance.maintain, maintenance.repair):
        with engine.connect() as connection, pytest.raises(NotCoordinatorError, match="coordinator"):
            act(connection)
    with pytest.raises(NotCoordinatorError):
        declare(engine, "bets")
    assert scalar(engine, "SELECT to_regclass('bets')") is None
    told = caller(database)("ensure")
    assert told.code != 0
    assert "Connect to the coordinator" in told.err
    assert partitions(engine) == before
    pretend_node(engine, 0)
    assert len(ensure(engine).created) == 3


def test_a_worker_without_a_configuration_is_told_apart_from_a_server_with_nothing_to_do(
    engine: Engine,
) -> None:
    with engine.connect() as connection:
        assert maintenance.ensure(connection).results == ()
    pretend_node(engine, 2)
    with engine.connect() as connection, pytest.raises(NotCoordinatorError):
        maintenance.ensure(connection)


def test_sizes_are_those_of_the_shards_and_an_estimate_of_rows_is_none(engine: Engine) -> None:
    declare(engine)
    run(engine, "INSERT INTO odds (at) SELECT now() FROM generate_series(1, 9)", "ANALYZE odds")
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")

    def told() -> dict[str, Any]:
        with engine.connect() as connection:
            found = snapshot(engine)
            figures = catalog.partition_figures(connection, [found])
            return {p.name: figures[p.oid] for p in found.partitions}

    plain = told()
    assert {f.rows for f in plain.values()} >= {9}
    assert plain["rest"].default_is == "empty"
    pretend(engine, "odds")
    found = told()
    assert {(f.bytes, f.rows) for f in found.values()} == {(4711, None)}
    assert found["rest"].default_is == "readable", "its file is empty whatever its shards hold"
    assert {n: f.mark for n, f in found.items()} == {n: f.mark for n, f in plain.items()}


PLAIN_KEYS: dict[str, Any] = {
    "timestamptz": sa.DateTime(timezone=True),
    "timestamp": sa.DateTime(),
    "date": sa.Date(),
}


@pytest.mark.parametrize("kind", [*PLAIN_KEYS, *KINDS])
def test_rows_are_counted_by_bounds_as_they_are_by_partition(engine: Engine, kind: str) -> None:
    key_type = PLAIN_KEYS[kind] if kind in PLAIN_KEYS else KINDS[kind].column
    rules = policy() if kind in PLAIN_KEYS else KINDS[kind].policy()
    written = (lambda value: value) if kind in PLAIN_KEYS else KINDS[kind].value
    declare(engine, "odds", rules, *columns(key_type=key_type))
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    bounds = [(p.lower, p.upper) for p in snapshot(engine).partitions if not p.is_default]
    little = timedelta(days=1) if kind == "date" else timedelta(seconds=1)
    # Both ends of each partition and what lies in none, before the first, and after the last one's end.
    values = [v for lower, upper in bounds for v in (lower, upper - little)]
    values += [min(values) - 99 * little, max(values) + little, max(values) + 99 * little]
    with engine.begin() as connection:
        into = sa.table("odds", sa.column("at", key_type))
        connection.execute(sa.insert(into), [{"at": written(value)} for value in values])

    def counted() -> dict[int, catalog.Rows]:
        found = snapshot(engine)
        with engine.connect() as connection:
            catalog.only_reading(connection)
            return catalog.counted_rows(connection, found)

    by_partition = counted()
    assert max(found.count for found in by_partition.values()) == 3
    assert sum(found.count for found in by_partition.values()) == len(values)
    pretend(engine, "odds")
    assert counted() == by_partition


def test_open_ends_take_what_lies_beyond(engine: Engine) -> None:
    declare(engine, rules=policy(premake=0, lookback=0))
    (name,) = partitions(engine)
    run(
        engine,
        f"DROP TABLE {name}",
        "CREATE TABLE old PARTITION OF odds FOR VALUES FROM (MINVALUE) TO ('2026-01-01+00')",
        "CREATE TABLE new PARTITION OF odds FOR VALUES FROM ('2026-02-01+00') TO (MAXVALUE)",
        "INSERT INTO odds (at) VALUES ('1960-01-01'), ('2025-12-31'), ('2026-02-01+00'), ('2099-01-01')",
    )
    pretend(engine, "odds")
    found = snapshot(engine)
    with engine.connect() as connection:
        catalog.only_reading(connection)
        counted = catalog.counted_rows(connection, found)
    assert {p.name: counted[p.oid].count for p in found.partitions} == {"old": 2, "new": 2}


def stranded(engine: Engine, count: int = 1) -> None:
    """A distributed table with rows of one window in its DEFAULT partition."""
    declare(engine)
    run(
        engine,
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        f"INSERT INTO odds (at) SELECT '{days_from_now(-20):%Y-%m-%d}' FROM generate_series(1, {count})",
    )
    pretend(engine, "odds")


def test_rows_of_a_default_partition_move_to_one_that_is_distributed_first(engine: Engine) -> None:
    stranded(engine, 9)
    with engine.connect() as connection:
        (planned,) = maintenance.plan_repair(connection)
        printed = [line.rstrip(";") for line in planned.sql().splitlines() if not line.startswith("--")]
        with listening(engine) as sent:
            (result,) = maintenance.repair(connection).results
    assert (result.moved, result.error) == (9, None)
    assert [line for line in printed if line not in ("BEGIN", "COMMIT")] == [
        s for s in sent.statements if s in printed
    ]
    (made,) = result.created
    spread = f"SELECT create_distributed_table('public.{made}', 'id', colocate_with => 'public.odds')"
    order = [printed.index(s) for s in (TELL, spread)]
    order += [n for n, line in enumerate(printed) if line.startswith(("WITH moved", "ALTER TABLE"))]
    assert order == sorted(order)
    assert scalar(engine, f"SELECT count(*) FROM {made}") == 9
    assert scalar(engine, "SELECT count(*) FROM rest") == 0


def test_a_window_of_more_rows_than_one_transaction_moves_stays(engine: Engine) -> None:
    stranded(engine, 9)
    with engine.connect() as connection:
        (result,) = maintenance.repair(connection, batch=8).results
        assert (result.moved, result.error) == (0, None)
        assert "larger --batch" in "".join(result.findings)
        assert maintenance.repair(connection, batch=9).results[0].moved == 9


def test_one_that_has_grown_beyond_that_meanwhile_waits_for_the_next_run(engine: Engine) -> None:
    stranded(engine, 3)
    grow = f"INSERT INTO odds (at) SELECT '{days_from_now(-20):%Y-%m-%d}' FROM generate_series(1, 9)"
    with pytest.MonkeyPatch.context() as patch, engine.connect() as connection:
        drain = executor.drain

        def grown(*args: Any, **kw: Any) -> bool:
            run(engine, grow)
            return drain(*args, **kw)

        patch.setattr(executor, "drain", grown)
        (result,) = maintenance.repair(connection, batch=8).results
    assert "too many" in str(result.error)
    assert scalar(engine, "SELECT count(*) FROM rest") == 12


def test_rows_stay_where_no_table_could_be_distributed_beside_its_parent(engine: Engine) -> None:
    stranded(engine)
    run(engine, "SET allow_system_table_mods = on", "UPDATE pg_dist_partition SET partmethod = 'n'")
    with engine.connect() as connection:
        (planned,) = maintenance.plan_repair(connection)
        (result,) = maintenance.repair(connection).results
    assert "WITH moved" not in planned.sql()
    assert [told for told in result.findings if told.startswith("public.rest: Citus keeps it")]
    assert (result.moved, result.error) == (0, None)
    assert result.proof is not None
    assert "no test row" in result.proof
    assert scalar(engine, "SELECT count(*) FROM rest") == 1


def test_what_copies_or_nests_tables_is_refused_before_anything_is_changed(engine: Engine) -> None:
    declare(engine)
    run(engine, "CREATE TABLE plain (id int PRIMARY KEY, at timestamptz NOT NULL)")
    pretend(engine, "odds", "plain")
    before = rows(engine, "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    (name, *_) = partitions(engine)
    with engine.connect() as connection:
        with pytest.raises(ConversionRefused, match=r"public\.plain .*Citus has distributed it"):
            convert(connection, "plain", policy())
        with pytest.raises(ConversionRefused, match=r"public\.odds .*undistribute_table"):
            unpartition(connection, "odds")
        with pytest.raises(SplitRefused, match="levels of partitions cannot be distributed"):
            maintenance.split(connection, table="odds", partition=name)
    after = rows(engine, "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    assert after == before


def test_functions_in_the_database_change_nothing_and_show_no_sizes(engine: Engine) -> None:
    declare(engine)
    with operations(engine) as op:
        op.create_partition_functions()
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT", "ANALYZE odds")
    listed = "SELECT * FROM list_partitions()"
    assert all(row[5] is not None and row[6] is not None for row in rows(engine, listed))
    assert scalar(engine, "SELECT stranded FROM partition_health_summary()") is False
    pretend(engine, "odds", *partitions(engine))
    assert {row[5:7] for row in rows(engine, listed)} == {(None, None)}
    assert scalar(engine, "SELECT total_bytes FROM partition_health_summary()") is None
    run(engine, "INSERT INTO odds (at) VALUES ('1999-01-01')")
    assert scalar(engine, "SELECT stranded FROM partition_health_summary()") is True
    for call in ("create_future_partitions('odds', 9)", "run_partition_maintenance('odds', false)"):
        with pytest.raises(DBAPIError, match="Citus has distributed table"):
            run(engine, f"SELECT * FROM {call}")


def test_an_archive_of_files_is_refused_and_nothing_is_detached(engine: Engine, tmp_path: Path) -> None:
    declare(engine, rules=policy(retention="3 days", on_expiry="archive"))
    with operations(engine) as op:
        op.create_partitions("odds", *past_and_future())
    pretend(engine, "odds")
    before = partitions(engine)
    result = maintain(engine, archive_to=str(tmp_path))
    assert "set archive_schema" in str(result.error)
    assert partitions(engine) == before


def test_a_downgrade_drops_no_partition_whose_rows_are_on_workers(engine: Engine) -> None:
    """A role that may not read a partition goes by its file, and that is empty on the coordinator."""
    declare(engine)
    days = date(2026, 1, 1), date(2026, 1, 2)
    with operations(engine) as op:
        op.create_partitions("odds", *days)
    pretend(engine, "odds_2026_01_01")
    run(engine, "CREATE ROLE blind_owner", "ALTER TABLE odds OWNER TO blind_owner")
    try:
        run(
            engine,
            "ALTER TABLE odds_2026_01_01 OWNER TO blind_owner",
            "REVOKE SELECT ON odds_2026_01_01 FROM blind_owner",
            "GRANT ALL ON SCHEMA public TO blind_owner",
        )
        with operations(engine) as op:
            op.execute("SET LOCAL ROLE blind_owner")
            op.drop_partitions("odds", *days)
        assert "odds_2026_01_01" in partitions(engine)
    finally:
        run(engine, "DROP TABLE odds", "DROP OWNED BY blind_owner", "DROP ROLE blind_owner")
