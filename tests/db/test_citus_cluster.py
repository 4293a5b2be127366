"""A real Citus cluster: the same code path on tables whose rows lie in shards, on workers.

`ALEMBIC_PARTITIONS_TEST_CITUS` is the URL of a database on a coordinator with a worker or more, made for
these tests: they drop every table in its schema public. A worker whose TimeZone is not the coordinator's
makes them mean more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from alembic_partitions import PartitionPolicy, catalog, executor, maintenance
from alembic_partitions.errors import NotCoordinatorError
from alembic_partitions.maintenance import Orders, TableResult
from tests.apps import days_from_now, running
from tests.databases import Database
from tests.db.test_citus import detached_long_ago, ensure, maintain, past_and_future, snapshot
from tests.projects import Project
from tests.tables import declare, operations, partitions, policy, rows, run, scalar

URL_OF = os.environ.get("ALEMBIC_PARTITIONS_TEST_CITUS")

pytestmark = pytest.mark.skipif(
    URL_OF is None, reason="ALEMBIC_PARTITIONS_TEST_CITUS names no coordinator of a Citus cluster"
)

WRITE = "INSERT INTO odds (at, tenant, note) SELECT now(), g, 'n' FROM generate_series(1, 40) g"


def clear(engine: Engine) -> None:
    # Partitioned ones first: what they refer to would convert them on its way out.
    found = rows(
        engine,
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY c.relkind",
    )
    run(engine, *(f"DROP TABLE IF EXISTS {name} CASCADE" for (name,) in found))


@pytest.fixture
def database() -> Database:
    assert URL_OF is not None
    return Database(make_url(URL_OF).set(drivername="postgresql+psycopg2"), 150000)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url, poolclass=NullPool)
    clear(engine)
    yield engine
    clear(engine)


def columns(*more: Any) -> list[Any]:
    return [
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.Integer, nullable=False),
        sa.Column("note", sa.Text),
        sa.PrimaryKeyConstraint("tenant", "id", "at"),
        *more,
    ]


def distribute(engine: Engine, name: str = "odds", rules: PartitionPolicy | None = None) -> None:
    declare(engine, name, rules or policy(), *columns())
    run(engine, f"SELECT create_distributed_table('{name}', 'tenant')")


def workers(engine: Engine) -> list[URL]:
    found = rows(engine, "SELECT nodename, nodeport FROM pg_dist_node WHERE groupid > 0 ORDER BY nodeid")
    return [engine.url.set(host=host, port=port) for host, port in found]


def on_shards(engine: Engine, table: str, command: str) -> list[str]:
    """Run a query on each shard of a table: ``%s`` is the shard's name."""
    quoted = command.replace("'", "''")
    found = rows(engine, f"SELECT success, result FROM run_command_on_placements('{table}', '{quoted}')")
    assert all(success for success, _ in found), found
    return [result for _, result in found]


def shards_of(engine: Engine, table: str) -> list[str]:
    found = on_shards(engine, table, "SELECT '%s'")
    assert found
    return found


@contextmanager
def holding(engine: Engine, table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """Somebody on a worker holds one shard of a table."""
    shard, host, port = rows(
        engine,
        f"SELECT shard_name, nodename, nodeport FROM citus_shards WHERE table_name = '{table}'::regclass"
        " AND nodeport <> (SELECT nodeport FROM pg_dist_node WHERE groupid = 0) ORDER BY shardid LIMIT 1",
    )[0]
    worker = create_engine(engine.url.set(host=host, port=port), poolclass=NullPool)
    with worker.connect() as connection:
        # Whoever waits for it without a bound has it in the end.
        connection.execute(text("SET idle_in_transaction_session_timeout = '25s'"))
        connection.execute(text("SET citus.enable_ddl_propagation = off"))
        connection.execute(text(f"LOCK TABLE {shard} IN {mode} MODE"))
        yield
        with suppress(OperationalError):
            connection.rollback()


# -- what is distributed, and where --------------------------------------------------------------------


def test_the_trigger_says_what_pg_dist_partition_says(engine: Engine) -> None:
    _, *items = columns()[:-1]  # what has an identity column, Citus does not undistribute
    declare(engine, "odds", policy(), *items)
    run(engine, "SELECT create_distributed_table('odds', 'tenant')")
    declare(engine, "bets")
    run(
        engine,
        "CREATE TABLE venues (id int PRIMARY KEY)",
        "SELECT create_reference_table('venues')",
        "CREATE TABLE here (id int PRIMARY KEY)",
        "CREATE TABLE kept (id int PRIMARY KEY)",
        "SELECT citus_add_local_table_to_metadata('kept')",
    )
    listed = {name for (name,) in rows(engine, "SELECT logicalrelid::text FROM pg_dist_partition")}
    assert {"odds", "venues", "kept", *partitions(engine)} == listed
    with engine.begin() as connection:
        tables = catalog.read_snapshot(connection, "public").tables
        assert {t.name: t.traits.distributed for t in tables} == {"odds": True, "bets": False}
        for name in ("venues", "here", "kept", "odds", "bets"):
            found = catalog.read_belongings(connection, "public", name)
            assert found is not None
            assert found.is_distributed is (name in listed), name
    run(engine, "SELECT undistribute_table('odds')")
    with engine.begin() as connection:
        tables = catalog.read_snapshot(connection, "public").tables
    assert {t.name: t.traits.distributed for t in tables} == {"odds": False, "bets": False}


def test_a_worker_is_refused(engine: Engine) -> None:
    distribute(engine)
    for url in workers(engine):
        worker = create_engine(url, poolclass=NullPool)
        with worker.connect() as connection, pytest.raises(NotCoordinatorError):
            maintenance.ensure(connection)


def test_marks_that_undistribute_table_loses_come_back_by_adopting_again(engine: Engine) -> None:
    _, *items = columns()[:-1]
    rules = policy(retention="3 days")
    declare(engine, "odds", rules, *items)
    with operations(engine) as op:
        op.create_partitions("odds", *past_and_future())
    run(
        engine,
        "SELECT create_distributed_table('odds', 'tenant')",
        "SELECT undistribute_table('odds')",
        "SELECT create_distributed_table('odds', 'tenant')",
    )
    assert maintain(engine).detached == (), "without a mark it is not ours"
    with operations(engine) as op:
        op.adopt_partitioned_table("odds", rules, mark=True)
    assert len(maintain(engine).detached) == 3


# -- partitions made -----------------------------------------------------------------------------------


def test_each_shard_has_the_bounds_of_its_partition_wherever_its_worker_is(engine: Engine) -> None:
    distribute(engine)
    run(engine, "UPDATE partition_config SET premake = 5")
    assert len(ensure(engine).created) == 3
    bound = (
        "SELECT pg_get_expr(c.relpartbound, 0) FROM pg_class c,"
        " (SELECT set_config('TimeZone', 'UTC', true) AS zone OFFSET 0) s"
        " WHERE c.oid = '%s'::regclass AND s.zone = 'UTC'"
    )
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
        ours = connection.execute(
            text(
                "SELECT c.relname, pg_get_expr(c.relpartbound, 0) FROM pg_class c"
                " JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = 'odds'::regclass"
            )
        ).all()
    assert len(ours) == 7
    for name, wanted in ours:
        assert set(on_shards(engine, name, bound)) == {wanted}
    (zone,) = {z for (z,) in rows(engine, "SELECT current_setting('TimeZone')")}
    others = rows(engine, "SELECT result FROM run_command_on_workers('SHOW TimeZone')")
    print(f"coordinator {zone}, workers {[z for (z,) in others]}")


@pytest.mark.parametrize("referring", [False, True])
def test_names_near_63_bytes_and_a_reference_table(engine: Engine, referring: bool) -> None:
    name = "n" * 50
    distribute(engine, name, policy(retention="3 days", on_expiry="drop"))
    if referring:
        run(
            engine,
            "CREATE TABLE venues (id int PRIMARY KEY)",
            "SELECT create_reference_table('venues')",
            "INSERT INTO venues SELECT generate_series(1, 40)",
            f"ALTER TABLE {name} ADD CONSTRAINT venue FOREIGN KEY (tenant) REFERENCES venues",
        )
    with operations(engine) as op:
        op.create_partitions(name, *past_and_future())
    run(engine, WRITE.replace("odds", name), "UPDATE partition_config SET premake = 4")
    result = ensure(engine)
    assert (len(result.created), result.error) == (2, None)
    before = partitions(engine, name)
    gone = maintain(engine)
    assert (len(gone.detached), gone.error) == (3, None)
    run(engine, "UPDATE partition_config SET grace = '1 hour'", *detached_long_ago(engine))
    dropped = maintain(engine)
    assert (len(dropped.dropped), dropped.error) == (3, None)
    assert len(partitions(engine, name)) == len(before) - 3
    assert scalar(engine, f"SELECT count(*) FROM {name}") == 40


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_an_insert_outside_the_horizon_finds_its_partition_in_the_same_transaction(
    engine: Engine, database: Database, any_driver: str, isolation: str
) -> None:
    distribute(engine)
    odds = sa.table(
        "odds", sa.column("at", sa.DateTime(timezone=True)), sa.column("tenant"), sa.column("note")
    )
    days = range(10, 17)

    def work(connection: Connection) -> None:
        connection.execute(sa.insert(odds), [{"at": days_from_now(0), "tenant": 1, "note": "now"}])
        for day in days:  # often enough for statements to be prepared
            at = days_from_now(day)
            connection.execute(sa.insert(odds), [{"at": at, "tenant": t, "note": "n"} for t in (1, 2, 3)])
        assert connection.scalar(sa.select(sa.func.count()).select_from(odds)) == 1 + 3 * len(days)

    options = {"isolation_level": isolation}
    with running(database, any_driver, engine_options=options, on_error="raise") as app:
        app.connection(work)
        app.connection(lambda c: c.execute(sa.insert(odds), [{"at": days_from_now(12), "tenant": 9}]))
    assert scalar(engine, "SELECT count(*) FROM odds") == 2 + 3 * len(days)
    assert len(partitions(engine)) == 4 + len(days)


TRAITS = {
    "replica identity": "ALTER TABLE {} REPLICA IDENTITY FULL",
    "replica index": "ALTER TABLE {} REPLICA IDENTITY USING INDEX odds_pkey",
    "statistics": "ALTER TABLE {} ALTER COLUMN note SET STATISTICS 7",
    "row security": "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
}


@pytest.mark.parametrize("trait", TRAITS)
def test_what_like_leaves_behind_reaches_the_shards(engine: Engine, trait: str) -> None:
    """Citus passes few kinds of ALTER TABLE on; ours come before ATTACH, while the partition is plain."""
    declare(engine, "odds", policy(), *columns())
    run(
        engine,
        *(TRAITS[trait].format(name) for name in ["odds", *partitions(engine)] if trait != "replica index"),
    )
    run(engine, *([TRAITS[trait].format("odds")] if trait == "replica index" else []))
    run(engine, "SELECT create_distributed_table('odds', 'tenant')")
    run(engine, "UPDATE partition_config SET premake = 3")
    result = ensure(engine)
    assert result.error is None
    (made,) = result.created
    shape = (
        "SELECT concat_ws(' ', c.relreplident, c.relrowsecurity, (SELECT a.attstattarget FROM pg_attribute a"
        " WHERE a.attrelid = c.oid AND a.attname = 'note')) FROM pg_class c WHERE c.oid = '{}'::regclass"
    )
    wanted = scalar(engine, shape.format("odds"))
    assert wanted != "d f -1"
    assert scalar(engine, shape.format(made)) == wanted
    assert set(on_shards(engine, made, shape.format("%s"))) == {wanted}


def test_eight_processes_make_the_same_windows_once(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    distribute(engine)
    run(engine, "UPDATE partition_config SET premake = 8")
    project = Project(tmp_path)
    started = [
        project.start("ensure", "--json", "--url", database.url.render_as_string(hide_password=False))
        for _ in range(8)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err
    assert len(partitions(engine)) == 1 + 1 + 8
    assert len(set(partitions(engine))) == 10
    for name in partitions(engine):
        assert len(set(shards_of(engine, name))) == len(shards_of(engine, "odds"))
    made = scalar(engine, "SELECT sum(created) FROM partition_runs")
    assert made == 6


def test_a_lock_on_a_shard_is_given_up_within_our_bound(engine: Engine) -> None:
    distribute(engine)
    run(engine, "UPDATE partition_config SET premake = 3")
    with holding(engine, "odds"):
        began = time.monotonic()
        with engine.connect() as connection:
            (result,) = maintenance.ensure(connection, give_up_at=began + 2).results
        print(f"gave up after {time.monotonic() - began:.2f} s: {result.error}")
        assert result.created == (), "the wait on a worker is not bounded"
        assert result.error is not None
        assert rows(engine, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2") == []
    assert len(ensure(engine).created) == 1


def test_a_worker_that_is_not_reached_is_tried_again_and_named_in_the_end(engine: Engine) -> None:
    """The coordinator believes that one of its workers is somewhere else."""
    distribute(engine)
    run(engine, "UPDATE partition_config SET premake = 3")
    node, port = rows(engine, "SELECT nodeid, nodeport FROM pg_dist_node WHERE groupid > 0 LIMIT 1")[0]
    astray = "UPDATE pg_dist_node SET nodeport = {} WHERE nodeid = {}"
    run(engine, astray.format(1, node))
    try:
        with engine.connect() as connection:
            (result,) = maintenance.ensure(connection, give_up_at=time.monotonic() + 5).results
        assert "connection to the remote node" in str(result.error)
        mending = threading.Timer(2, run, (engine, astray.format(port, node)))
        mending.start()
        assert len(ensure(engine).created) == 1
        mending.join()
    finally:
        run(engine, astray.format(port, node))


def test_writers_on_shards_go_on_beside_a_try_that_has_to_wait(engine: Engine) -> None:
    """A reader holds a shard that ATTACH can have all the same; DETACH, which cannot, gives way."""
    distribute(engine, rules=policy(retention="3 days"))
    with operations(engine) as op:
        op.create_partitions("odds", *past_and_future())
    run(engine, "UPDATE partition_config SET premake = 3")
    with holding(engine, "odds", "ACCESS SHARE"):
        assert len(ensure(engine).created) == 1
        stop, waits = threading.Event(), list[float]()
        writer = threading.Thread(target=_write, args=(engine, stop, waits))
        writer.start()
        began = time.monotonic()
        result = maintain(engine)
        took = time.monotonic() - began
        stop.set()
        writer.join()
        print(
            f"gave up after {took:.2f} s, slowest of {len(waits)} writes {max(waits):.2f} s: {result.error}"
        )
        assert result.detached == ()
        assert result.error is not None
        assert len(waits) > 5, "writers waited as long as we did"
    assert len(maintain(engine).detached) >= 2


def _write(engine: Engine, stop: threading.Event, waits: list[float]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not stop.is_set():
            began = time.monotonic()
            connection.execute(text(WRITE))
            waits.append(time.monotonic() - began)


def test_a_window_that_somebody_else_makes_meanwhile_is_no_failure(engine: Engine) -> None:
    distribute(engine)
    run(engine, "UPDATE partition_config SET premake = 6")

    def once(_: int) -> TableResult:
        return ensure(create_engine(engine.url, poolclass=NullPool))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(once, range(4)))
    assert [result.error for result in found] == [None] * 4
    assert sum(len(result.created) for result in found) == 4
    # Not by our lock alone: somebody makes it by hand, and ours finds it.
    run(engine, "UPDATE partition_config SET premake = 7")
    with engine.connect() as connection:
        (planned,) = maintenance.plan(connection)
    by_hand = [s for s in planned.sql().splitlines() if s.startswith(("CREATE", "ALTER"))]
    run(engine, *(line.rstrip(";") for line in by_hand))
    with engine.connect() as connection:
        (step,) = planned.plan.steps
        assert executor.create_partition(connection, step) is False


# -- partitions gone, and come back --------------------------------------------------------------------


def test_what_retention_detaches_can_come_back_and_is_dropped_in_the_end(engine: Engine) -> None:
    distribute(engine, rules=policy(retention="3 days", on_expiry="drop"))
    with operations(engine) as op:
        op.create_partitions("odds", *past_and_future())
    old = days_from_now(-5)
    run(engine, f"INSERT INTO odds (at, tenant) SELECT '{old}', g FROM generate_series(1, 9) g")
    with engine.connect() as connection:
        printed = "".join(
            sql for _, sql in maintenance.plan_maintain(connection, orders=Orders(analyze=False))
        )
    assert "CONCURRENTLY" not in printed
    result = maintain(engine)
    assert (len(result.detached), result.error) == (3, None)
    assert scalar(engine, "SELECT count(*) FROM odds") == 0
    assert maintain(engine).detached == ()
    with engine.connect() as connection:
        (back,) = maintenance.restore(connection).results
    assert (len(back.restored), back.error) == (3, None)
    assert scalar(engine, "SELECT count(*) FROM odds") == 9
    assert maintain(engine).detached == (), "restored so lately that its grace begins anew"
    for name in partitions(engine):
        assert len(shards_of(engine, name)) == len(shards_of(engine, "odds"))


def test_an_archive_schema_takes_them(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA IF NOT EXISTS attic")
    try:
        distribute(engine, rules=policy(retention="3 days", on_expiry="archive", archive_schema="attic"))
        with operations(engine) as op:
            op.create_partitions("odds", *past_and_future())
        result = maintain(engine)
        assert (len(result.detached), result.error) == (3, None)
        assert scalar(engine, "SELECT count(*) FROM pg_tables WHERE schemaname = 'attic'") == 3
        with engine.connect() as connection:
            (back,) = maintenance.restore(connection).results
        assert (len(back.restored), back.error) == (3, None)
    finally:
        run(engine, "DROP SCHEMA attic CASCADE")


def test_the_whole_of_maintenance_passes_and_nothing_is_left_to_do(engine: Engine) -> None:
    distribute(engine)
    run(engine, WRITE)
    with engine.connect() as connection:
        (result,) = maintenance.maintain(
            connection, orders=Orders(vacuum=tuple(partitions(engine)[:1]))
        ).results
        assert (result.error, result.findings) == (None, ())
        assert result.tended
        (result,) = maintenance.repair(connection, days=3).results
        assert (result.error, len(result.created)) == (None, 3)
        (result,) = maintenance.repair(connection, days=3).results
        assert (result.error, result.created, result.mended, result.findings) == (None, (), (), ())
        (planned,) = maintenance.plan(connection)
        assert planned.plan.steps == ()


def test_rows_of_a_default_partition_move_to_windows_of_their_own(engine: Engine) -> None:
    distribute(engine)
    run(
        engine,
        "CREATE TABLE venues (id int PRIMARY KEY)",
        "SELECT create_reference_table('venues')",
        "INSERT INTO venues SELECT generate_series(0, 40)",
        "ALTER TABLE odds ADD CONSTRAINT venue FOREIGN KEY (tenant) REFERENCES venues",
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at, tenant, note)"
        f" SELECT timestamptz '{days_from_now(20)}' + g * interval '1 min', g % 41, 'n' || g"
        " FROM generate_series(1, 3000) g",
    )
    everything = "SELECT tenant, id, at, note FROM odds ORDER BY 1, 2"
    before = rows(engine, everything)
    with engine.connect() as connection:
        (result,) = maintenance.repair(connection).results
    assert (result.moved, result.error) == (3000, None)
    assert rows(engine, everything) == before
    assert scalar(engine, "SELECT count(*) FROM rest") == 0
    for name in result.created:
        assert len(shards_of(engine, name)) == len(shards_of(engine, "odds"))
    assert sum(scalar(engine, f"SELECT count(*) FROM {name}") for name in result.created) == 3000


# -- looking -------------------------------------------------------------------------------------------


def test_status_shows_what_the_shards_hold(engine: Engine) -> None:
    distribute(engine)
    run(engine, WRITE.replace("40", "4000"), "CREATE TABLE rest PARTITION OF odds DEFAULT", "ANALYZE odds")
    run(engine, f"INSERT INTO odds (at, tenant) VALUES ('{days_from_now(40)}', 1)")
    with engine.connect() as connection:
        view = maintenance.look(connection, rows=True)
    (item,) = view.tables
    told = {p.name: item.figures[p.oid].bytes for p in item.table.partitions} if item.figures else {}
    wanted = rows(
        engine,
        "SELECT c.relname, citus_total_relation_size(c.oid) FROM pg_class c JOIN pg_inherits i"
        " ON i.inhrelid = c.oid WHERE i.inhparent = 'odds'::regclass",
    )
    assert told == dict(wanted)
    assert view.tables[0].bytes is not None
    assert view.tables[0].bytes > 100_000
    assert item.stranded is True
    assert item.rows is not None
    assert sum(found.count for found in item.rows.values()) == 4001
    default = next(p for p in item.table.partitions if p.is_default)
    assert item.rows[default.oid].count == 1


# -- migrations ----------------------------------------------------------------------------------------


def test_a_migration_declares_distributes_and_later_ones_go_on(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    project = Project.make(tmp_path, "generic", database.url)
    project.add(
        """
        op.create_partitioned_table(
            "odds",
            sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("tenant", sa.Integer, nullable=False),
            sa.PrimaryKeyConstraint("tenant", "id", "at"),
            policy=PartitionPolicy("at", timezone="Pacific/Auckland", premake=20),
        )
        op.execute("SELECT create_distributed_table('odds', 'tenant')")
        """,
        'op.drop_partitioned_table("odds")',
    )
    project.run("upgrade", "head").succeeded()
    assert len(partitions(engine)) == 1 + 1 + 20
    assert snapshot(engine).traits.distributed
    begin, end = (day - timedelta(days=30) for day in past_and_future())
    project.add(
        f'op.create_partitions("odds", "{begin}", "{end}")',
        f'op.drop_partitions("odds", "{begin}", "{end}")',
    )
    project.add(
        'op.add_column("odds", sa.Column("price", sa.Numeric))\n'
        'op.alter_partition_policy("odds", premake=25)',
        'op.drop_column("odds", "price")',
    )
    project.run("upgrade", "head").succeeded()
    assert len(partitions(engine)) == 1 + 1 + 25 + (end - begin).days
    marks = scalar(
        engine,
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'odds'::regclass"
        " AND obj_description(inhrelid, 'pg_class') LIKE 'alembic_partitions: made by%'",
    )
    assert marks == len(partitions(engine))
    project.run("downgrade", "-2").succeeded()
    assert len(partitions(engine)) == 1 + 1 + 25
    project.run("downgrade", "base").succeeded()
    assert scalar(engine, "SELECT to_regclass('odds')") is None


def test_an_index_of_all_partitions_is_built_beside_writers(engine: Engine) -> None:
    distribute(engine)
    run(engine, WRITE)
    table = sa.Table("odds", sa.MetaData(), sa.Column("note", sa.Text), schema="public")
    index = sa.Index("odds_note", table.c.note)
    with engine.connect() as connection:
        maintenance.create_index(connection, index)
        assert scalar(engine, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'odds_note'::regclass")
        valid = "SELECT count(*) FROM pg_index x WHERE x.indisvalid AND x.indrelid = '%s'::regclass"
        for name in partitions(engine):
            assert set(on_shards(engine, name, valid)) == {"2"}
        maintenance.drop_index(connection, "public", "odds", "odds_note")
    assert scalar(engine, "SELECT to_regclass('odds_note')") is None
    assert set(on_shards(engine, partitions(engine)[0], valid)) == {"1"}


def test_a_table_made_by_hand_is_adopted(engine: Engine) -> None:
    declare(engine, "bets")  # so that partition_config is there
    run(
        engine,
        "CREATE TABLE odds (at timestamptz NOT NULL, tenant int NOT NULL) PARTITION BY RANGE (at)",
        "SELECT create_distributed_table('odds', 'tenant')",
    )
    first = days_from_now(-1).replace(hour=0, minute=0, second=0, microsecond=0)
    for day in range(3):
        begin, end = first + timedelta(days=day), first + timedelta(days=day + 1)
        run(
            engine,
            f"CREATE TABLE odds_p{begin:%Y%m%d} PARTITION OF odds FOR VALUES FROM ('{begin}') TO ('{end}')",
        )
    with operations(engine) as op:
        op.adopt_partitioned_table("odds", PartitionPolicy("at", premake=4))
        op.drop_partitioned_table("bets")
    result = ensure(engine)
    assert (result.error, result.findings, len(result.created)) == (None, (), 3)
    assert len(partitions(engine)) == 6
