"""The operations, in real migrations on a real database: up, down, and up again leaves the same catalog."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from alembic_partitions import PartitionPolicy, PolicyError, maintenance
from alembic_partitions.declare import FIRST_WINDOWS
from alembic_partitions.errors import ConfigurationError, NotManagedError
from alembic_partitions.executor import creating
from alembic_partitions.operations import (
    AlterPartitionPolicyOp,
    CreatePartitionedTableOp,
    CreatePartitionsOp,
    DropPartitionedTableOp,
    DropPartitionsOp,
)
from tests.databases import OF_THIS_DATABASE, Database, Roles
from tests.projects import Project
from tests.tables import (
    NOW,
    catalog,
    columns,
    declare,
    operations,
    partitions,
    policy,
    quote,
    rows,
    run,
    scalar,
    without,
)

pytestmark = pytest.mark.versions

OURS = ("partition_config", "partition_runs", "alembic_version")
FOUR_DAYS = ["odds_2026_04_04", "odds_2026_04_05", "odds_2026_04_06", "odds_2026_04_07"]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Project:
    return Project.make(tmp_path, "generic", database.url)


@pytest.fixture
def alembic(project: Project, database: Database) -> Config:
    return configured(project, database)


def configured(project: Project, database: Database) -> Config:
    """Return the project's configuration without its file: env.py would reconfigure the tests' logging."""
    config = Config()
    config.set_main_option("script_location", str(project.folder / "migrations"))
    config.set_main_option("sqlalchemy.url", database.url.render_as_string(hide_password=False))
    return config


def create(
    name: str = "odds",
    key: str = "at",
    *,
    schema: str | None = None,
    rules: str = "premake=2",
    more: str = "",
    kw: str = "",
) -> str:
    """Write `table = op.create_partitioned_table(...)` as a person does."""
    return dedent(f"""
        table = op.create_partitioned_table(
            {name!r},
            sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
            sa.Column({key!r}, sa.DateTime(timezone=True), nullable=False),
            sa.Column("note", sa.Text),
            sa.PrimaryKeyConstraint("id", {key!r}),
            {more}
            policy=PartitionPolicy({key!r}, timezone="Pacific/Auckland", {rules}),
            schema={schema!r},
            {kw}
        )
    """)


def drop(name: str = "odds", schema: str | None = None) -> str:
    return f"op.drop_partitioned_table({name!r}, schema={schema!r})"


def up_down_up(alembic: Config, engine: Engine, revisions: int) -> None:
    """Take each revision up, down and up again: the catalog is the same each time."""
    for number in range(revisions):
        before = catalog(engine)
        command.upgrade(alembic, "+1")
        after = catalog(engine)
        command.downgrade(alembic, "-1")
        again = catalog(engine)
        if number == 0:  # our two tables, and Alembic's, stay
            before, again = without(before, *OURS), without(again, *OURS)
        assert again == before
        command.upgrade(alembic, "+1")
        assert catalog(engine) == after


# -- create_partitioned_table and drop_partitioned_table -----------------------------------------------


def test_every_operation_goes_up_down_and_up_again(project: Project, alembic: Config, engine: Engine) -> None:
    project.add(create(), drop())
    project.add(
        'op.alter_partition_policy("odds", premake=9, existing_premake=2, retention="90 days",'
        ' existing_retention=None, storage_parameters={"fillfactor": 70}, existing_storage_parameters={})',
        'op.alter_partition_policy("odds", premake=2, retention=None, storage_parameters={})',
    )
    project.add(
        'op.create_partitions("odds", "2026-06-01", "2026-06-04")',
        'op.drop_partitions("odds", "2026-06-01", "2026-06-04")',
    )
    project.add(
        'op.drop_partitions("odds", "2026-06-01", "2026-06-04")',
        'op.create_partitions("odds", "2026-06-01", "2026-06-04")',
    )
    up_down_up(alembic, engine, 4)
    assert partitions(engine) == FOUR_DAYS
    command.downgrade(alembic, "base")
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0
    assert scalar(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds%'") == 0


NAMES: dict[str, tuple[str | None, str, str]] = {
    "plain": (None, "odds", "at"),
    "in a schema": ("racing", "odds", "at"),
    "reserved words": ("table", "order", "user"),
    "mixed case": ("Racing", "OddsHistory", "EventAt"),
    "quotes and blanks": ('Ra"cing', "Odds 'n' \"History\"", 'Event "at"'),
    "not ASCII": ("ōdds", "賽馬の歴史", "tëmps"),
    "percent signs": ("100%", "50%s of %(all)s %%", "at%"),
    "colons and backslashes": (":racing", "odds:at \\d", "at::time"),
    "63 bytes": ("s" * 63, "ō" * 31 + "x", "k" * 63),
    "dollar quotes": ("$alembic_partitions$", "$$odds", "$1"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_any_name_goes_up_down_and_up_again(
    project: Project, alembic: Config, engine: Engine, names: tuple[str | None, str, str]
) -> None:
    schema, name, key = names
    if schema is not None:
        run(engine, f"CREATE SCHEMA {quote(schema)}")
    project.add(
        create(name, key, schema=schema) + f"op.bulk_insert(table, [{{{key!r}: {NOW.isoformat()!r}}}])",
        drop(name, schema),
    )
    project.add(
        f'op.create_partitions({name!r}, "2026-06-01", "2026-06-03", schema={schema!r})\n'
        f"op.alter_partition_policy({name!r}, premake=7, schema={schema!r})",
        f"op.alter_partition_policy({name!r}, premake=2, schema={schema!r})\n"
        f'op.drop_partitions({name!r}, "2026-06-01", "2026-06-03", schema={schema!r})',
    )
    up_down_up(alembic, engine, 2)
    assert len(partitions(engine, name)) == 6
    found = rows(engine, "SELECT table_schema, table_name, partition_key, premake FROM partition_config")
    assert found == [(schema or "public", name, key, 7)]


def test_a_data_migration_in_the_same_revision_inserts_at_once(
    project: Project, alembic: Config, engine: Engine
) -> None:
    project.add(
        create()
        + f'op.bulk_insert(table, [{{"at": {NOW.isoformat()!r}, "note": "100%"}}])\n'
        + """op.execute("INSERT INTO odds (at) VALUES ('2026-04-03 11:00Z'), ('2026-04-07 11:59:59Z')")""",
        drop(),
    )
    command.upgrade(alembic, "head")
    assert rows(engine, "SELECT tableoid::regclass::text, note FROM odds ORDER BY at") == [
        ("odds_2026_04_04", None),
        ("odds_2026_04_05", "100%"),
        ("odds_2026_04_07", None),
    ]


def test_without_a_rehearsed_clock_a_row_of_now_goes_in(
    project: Project, alembic: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")
    project.add(create() + """op.execute("INSERT INTO odds (at) VALUES (now())")""", drop())
    command.upgrade(alembic, "head")
    assert scalar(engine, "SELECT count(*) FROM odds") == 1


def test_the_first_windows_are_few_enough_for_one_transaction(engine: Engine) -> None:
    declare(engine, "odds", policy(interval="hour", premake=500, lookback=40))
    assert len(partitions(engine)) == FIRST_WINDOWS
    assert scalar(engine, "SELECT premake FROM partition_config") == 500


def test_indexes_comments_and_constraints_are_alembics_own(
    project: Project, alembic: Config, engine: Engine
) -> None:
    project.add(
        create(
            more=(
                'sa.Column("price", sa.Numeric, comment="what it\'s worth, in %", index=True),\n'
                'sa.CheckConstraint("price > 0", name="ck_price"),'
            ),
            kw='comment="Odds as they come: 100%",',
        )
        + 'op.create_index("ix_note", "odds", ["note", sa.text("at DESC")],'
        + ' postgresql_where=sa.text("price > 1"))',
        drop(),
    )
    up_down_up(alembic, engine, 1)
    assert scalar(engine, "SELECT obj_description('odds'::regclass)") == "Odds as they come: 100%"
    assert scalar(engine, "SELECT col_description('odds'::regclass, 4)") == "what it's worth, in %"
    indexes = rows(engine, "SELECT tablename, count(*) FROM pg_indexes WHERE tablename ~ 'odds' GROUP BY 1")
    assert sorted(indexes) == [(name, 3) for name in ("odds", *FOUR_DAYS)]
    assert scalar(engine, "SELECT count(*) FROM pg_constraint WHERE conname = 'ck_price'") == 5


def test_a_naming_convention_names_the_constraints(engine: Engine) -> None:
    metadata = sa.MetaData(naming_convention={"pk": "pk_of_%(table_name)s"})
    with operations(engine, target_metadata=metadata) as op:
        op.create_partitioned_table("odds", *columns(), policy=policy())
    assert scalar(engine, "SELECT count(*) FROM pg_constraint WHERE conname = 'pk_of_odds'") == 1


@pytest.mark.parametrize(
    ("key_type", "fields"),
    [
        (sa.DateTime(), {"column_timezone": "UTC"}),
        (sa.Date(), {}),
        (sa.DateTime(), {"interval": "hour", "column_timezone": "UTC", "every": 6}),
        (sa.DateTime(timezone=True), {"interval": "week", "week_start": "sunday", "day_start": "06:00"}),
    ],
)
def test_other_keys_and_intervals_are_declared_as_well(
    engine: Engine, key_type: Any, fields: dict[str, Any]
) -> None:
    rules = policy(**fields)
    declare(engine, "odds", rules, *columns(key_type=key_type))
    assert len(partitions(engine)) == 4
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-05 01:37:11')")


def test_every_field_of_a_policy_reaches_its_column(engine: Engine) -> None:
    rules = PartitionPolicy(
        "at",
        interval="hour",
        every=6,
        timezone="Pacific/Auckland",
        day_start="06:30",
        week_start="sunday",
        premake=3,
        lookback=2,
        retention="90 days",
        on_expiry="drop",
        grace="2 weeks",
        max_ahead="2 days",
        max_behind="3 days",
        max_create=7,
        max_drops=8,
        column_timezone="UTC",
        archive_schema="o'ld 100%",
        storage_parameters={"fillfactor": "70"},
    )
    declare(engine, "odds", rules)
    found = rows(engine, "SELECT to_jsonb(c) - 'declared', declared FROM partition_config c")
    ((row, declared),) = found
    assert PartitionPolicy.from_dict(declared) == rules
    assert row.pop("table_schema") == "public"
    assert row.pop("table_name") == "odds"
    assert row.pop("day_start") == "06:30:00"
    assert {"key": row.pop("partition_key"), "day_start": "06:30", **row} == rules.to_dict()


def test_each_partition_says_who_made_it(engine: Engine) -> None:
    declare(engine)
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    marks = rows(
        engine,
        "SELECT DISTINCT obj_description(inhrelid, 'pg_class') FROM pg_inherits"
        " WHERE inhparent = 'odds'::regclass ORDER BY 1",
    )
    assert marks == [
        ("alembic_partitions: made by create_partitions 2026-06-01/2026-06-02",),
        ("alembic_partitions: made by ensure",),
    ]


def test_a_table_left_behind_under_a_partitions_name_is_stepped_over(engine: Engine) -> None:
    run(engine, "CREATE TABLE odds_2026_04_05 (id int)", "CREATE TYPE odds_2026_04_06 AS ENUM ('a')")
    declare(engine)
    assert partitions(engine) == [
        "odds_2026_04_04",
        "odds_2026_04_05_2",
        "odds_2026_04_06_2",
        "odds_2026_04_07",
    ]


def test_declaring_again_replaces_a_policy_left_behind(engine: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds")
    declare(engine, "odds", policy(premake=1))
    assert rows(engine, "SELECT premake, declared ->> 'premake' FROM partition_config") == [(1, "1")]


def test_it_works_outside_a_transaction_too(project: Project, alembic: Config, engine: Engine) -> None:
    project.add(
        "with op.get_context().autocommit_block():\n"
        "    op.execute(\"SET TimeZone = 'Asia/Kathmandu'\")\n" + indent(create(), "    ") + "\n"
        '    op.create_partitions("odds", "2026-06-01", "2026-06-02")\n'
        '    op.alter_partition_policy("odds", premake=3)\n'
        '    assert op.get_bind().scalar(sa.text("SHOW TimeZone")) == "Asia/Kathmandu"',
        "with op.get_context().autocommit_block():\n    " + drop(),
    )
    up_down_up(alembic, engine, 1)
    assert partitions(engine) == [*FOUR_DAYS, "odds_2026_06_01"]


# -- dropping: only what we made -----------------------------------------------------------------------


def test_partitions_attached_by_hand_survive_as_plain_tables(
    project: Project, alembic: Config, engine: Engine
) -> None:
    project.add(create(), drop())
    command.upgrade(alembic, "head")
    run(
        engine,
        "CREATE TABLE \"Ol'd 100%\" PARTITION OF odds FOR VALUES FROM ('2020-01-01+00') TO ('2021-01-01+00')",
        "INSERT INTO odds (at, note) VALUES ('2020-06-06', 'kept')",
        "CREATE TABLE odds_rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at, note) VALUES ('1999-09-09', 'kept too')",
        "COMMENT ON TABLE odds_rest IS 'not ours'",
    )
    command.downgrade(alembic, "base")
    assert rows(engine, 'SELECT note FROM "Ol\'d 100%" UNION ALL SELECT note FROM odds_rest') == [
        ("kept",),
        ("kept too",),
    ]
    assert rows(engine, "SELECT relname FROM pg_class WHERE relname ~ 'odds' AND relkind IN ('r', 'p')") == [
        ("odds_rest",)
    ]


def test_a_partition_half_detached_by_hand_survives_too(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        "CREATE TABLE stuck PARTITION OF odds FOR VALUES FROM ('2020-01-01+00') TO ('2021-01-01+00')",
        "INSERT INTO odds (at, note) VALUES ('2020-06-06', 'kept')",
    )
    half_detach(engine, "odds", "stuck")
    with operations(engine) as op:
        op.drop_partitioned_table("odds")
    assert scalar(engine, "SELECT note FROM stuck") == "kept"


def half_detach(engine: Engine, parent: str, child: str) -> None:
    """Leave a partition half-way through DETACH CONCURRENTLY: it waits for a reader, and is interrupted."""
    with engine.connect() as reader:
        reader.execute(sa.text(f"SELECT count(*) FROM {parent}"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SET lock_timeout = '100ms'"))
            with pytest.raises(DBAPIError, match="timeout"):
                connection.execute(sa.text(f"ALTER TABLE {parent} DETACH PARTITION {child} CONCURRENTLY"))
    engine.dispose()
    assert scalar(engine, f"SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = '{child}'::regclass")


def test_dropping_a_table_that_is_gone_needs_if_exists(engine: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds")
    with pytest.raises(DBAPIError, match="does not exist"), operations(engine) as op:
        op.drop_partitioned_table("odds")
    with operations(engine) as op:
        op.drop_partitioned_table("odds", if_exists=True)
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0


def test_dropping_one_table_leaves_its_namesake_in_another_schema(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA racing")
    declare(engine)
    declare(engine, schema="racing")
    with operations(engine) as op:
        op.drop_partitioned_table("odds", schema="racing")
    assert rows(engine, "SELECT table_schema FROM partition_config") == [("public",)]
    assert partitions(engine) == FOUR_DAYS


# -- create_partitions and drop_partitions -------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ("2026-06-01", "2026-06-04"),
        (date(2026, 6, 1), date(2026, 6, 4)),
        (datetime(2026, 6, 1, 13, 37, 11), datetime(2026, 6, 3, 0, 0, 1)),
        ("2026-06-01T01:37:11Z", "2026-06-03T00:00:00+12:00"),
    ],
)
def test_a_stretch_is_days_local_times_or_instants(engine: Engine, start: Any, stop: Any) -> None:
    declare(engine)
    with operations(engine) as op:
        op.create_partitions("odds", start, stop)
    made = [name for name in partitions(engine) if "_06_" in name]
    assert made in (
        ["odds_2026_06_01", "odds_2026_06_02", "odds_2026_06_03"],
        ["odds_2026_06_01", "odds_2026_06_02"],
    )
    assert len(made) == (3 if "T" not in str(start) or isinstance(start, datetime) else 2)
    with operations(engine) as op:
        op.drop_partitions("odds", start, stop)
    assert partitions(engine) == FOUR_DAYS


def test_drop_partitions_leaves_those_with_rows_and_those_of_others(engine: Engine) -> None:
    declare(engine)
    with operations(engine) as op:
        op.create_partitions("odds", "2026-04-06", "2026-04-11")
        op.create_partitions("odds", "2026-04-11", "2026-04-12")
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-09 13:37:11+12')")
    with operations(engine) as op:
        op.drop_partitions("odds", "2026-04-06", "2026-04-11")
    assert partitions(engine) == [*FOUR_DAYS, "odds_2026_04_09", "odds_2026_04_11"]
    assert scalar(engine, "SELECT count(*) FROM odds") == 1


def test_drop_partitions_never_takes_hidden_rows_for_none(engine: Engine, roles: Roles) -> None:
    declare(engine)
    address = roles.create("owner")
    run(
        engine,
        f"GRANT CREATE ON SCHEMA public TO {address.username}",
        f"ALTER TABLE odds OWNER TO {address.username}",
        f"GRANT ALL ON partition_config, partition_runs TO {address.username}",
        "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
    )
    owner = sa.create_engine(address, poolclass=sa.NullPool)
    with operations(owner) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-03")
    run(
        engine,
        "ALTER TABLE odds_2026_06_01 FORCE ROW LEVEL SECURITY",
        "INSERT INTO odds (at) VALUES ('2026-06-01 05:00+12')",
    )
    with operations(owner) as op:
        op.drop_partitions("odds", "2026-06-01", "2026-06-03")
        assert op.get_bind().scalar(sa.text("SHOW row_security")) == "on"
    assert scalar(engine, "SELECT count(*) FROM odds") == 1
    assert [name for name in partitions(engine) if "_06_" in name] == ["odds_2026_06_01"]


def test_drop_partitions_of_a_table_that_others_refer_to(engine: Engine) -> None:
    declare(engine)
    run(
        engine, "CREATE TABLE bets (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES odds (id, at))"
    )
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
        op.drop_partitions("odds", "2026-06-01", "2026-06-02")
    assert partitions(engine) == FOUR_DAYS


def test_a_partition_detached_from_a_table_with_a_serial_column_survives_it(engine: Engine) -> None:
    declare(
        engine,
        "odds",
        policy(),
        sa.Column("id", sa.BigInteger, autoincrement=True, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
    )
    run(
        engine,
        "INSERT INTO odds (at) VALUES ('2026-04-04 13:37:11+13')",
        "ALTER TABLE odds DETACH PARTITION odds_2026_04_04",
    )
    with operations(engine) as op:
        op.drop_partitioned_table("odds")
    assert scalar(engine, "SELECT id FROM odds_2026_04_04") == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_drop_partitions_never_drops_a_row_that_is_just_being_written(
    engine: Engine, database: Database, level: str
) -> None:
    declare(engine)
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-03")
    migration = sa.create_engine(database.url, isolation_level=level, poolclass=sa.NullPool)

    def drop_partitions() -> None:
        with operations(migration) as op:
            op.drop_partitions("odds", "2026-06-01", "2026-06-03")

    with ThreadPoolExecutor() as pool, engine.connect() as writer:
        writer.execute(sa.text("INSERT INTO odds (at) VALUES ('2026-06-01 13:37:11+12')"))
        migrating = pool.submit(drop_partitions)
        while not scalar(engine, "SELECT count(*) FROM pg_locks WHERE NOT granted AND " + OF_THIS_DATABASE):
            assert not migrating.done()
        writer.commit()
        migrating.result()
    assert scalar(engine, "SELECT count(*) FROM odds") == 1
    assert [name for name in partitions(engine) if "_06_" in name] == ["odds_2026_06_01"]


def test_create_partitions_fills_around_what_stands(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        "CREATE TABLE h PARTITION OF odds FOR VALUES FROM ('2026-06-01 00:00+00') TO ('2026-06-02 00:00+00')",
    )
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-03")
    assert [n for n in partitions(engine) if "_06_" in n] == ["odds_2026_06_01", "odds_2026_06_02_000000z"]


def test_create_partitions_takes_turns_with_an_application_that_makes_the_same(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "TURN_TIMEOUT_MS", 50)
    declare(engine)
    other = sa.create_engine(database.url, poolclass=sa.NullPool)
    run(engine, "UPDATE partition_config SET premake = 4")
    pending = [True]

    def meanwhile(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if pending and statement.startswith("SELECT pg_advisory"):
            pending.clear()
            with other.connect() as application:
                assert maintenance.ensure(application).created == 2

    sa.event.listen(engine, "before_cursor_execute", meanwhile)
    with operations(engine) as op:
        op.create_partitions("odds", "2026-04-05", "2026-04-12")
        # From now on it is the application that waits, and not for long.
        run(other, "UPDATE partition_config SET premake = 5")
        with other.connect() as application:
            result = maintenance.ensure(application, give_up_at=time.monotonic() + 0.2).results[0]
    assert not pending
    assert result.error is not None
    assert "another process is making partitions of it" in result.error
    assert partitions(engine) == [*FOUR_DAYS, *(f"odds_2026_04_{n:02}" for n in range(8, 12))]


def test_create_partitions_of_a_timestamp_key_counts_in_its_columns_zone(engine: Engine) -> None:
    declare(engine, "odds", policy(column_timezone="Asia/Tokyo"), *columns(key_type=sa.DateTime()))
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    run(engine, "INSERT INTO odds (at) VALUES ('2026-05-31 21:00'), ('2026-06-01 20:59:59')")
    assert rows(engine, "SELECT DISTINCT tableoid::regclass::text FROM odds") == [("odds_2026_06_01",)]


@pytest.mark.parametrize(
    ("start", "stop", "field"),
    [
        ("2026-06-04", "2026-06-01", "start"),
        ("2026-06-01", "2026-06-01", "start"),
        ("2026-01-01", "2027-06-01", "stop"),
        ("tomorrow", "2026-06-01", "start"),
        ("2026-06-01", "2026-13-01", "stop"),
        (20260601, "2026-06-02", "start"),
    ],
)
def test_a_stretch_that_is_none_is_refused_by_name(engine: Engine, start: Any, stop: Any, field: str) -> None:
    declare(engine)
    before = catalog(engine)
    with pytest.raises(PolicyError) as refusal, operations(engine) as op:
        op.create_partitions("odds", start, stop)
    assert refusal.value.field == field
    assert catalog(engine) == before


def test_create_partitions_of_a_table_without_a_policy_is_refused(engine: Engine) -> None:
    with pytest.raises(NotManagedError, match=r"public\.odds"), operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    declare(engine, "other")
    with pytest.raises(NotManagedError, match=r"public\.odds"), operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")


def test_create_partitions_of_a_disabled_table_is_refused(engine: Engine) -> None:
    declare(engine)
    run(engine, "UPDATE partition_config SET enabled = false")
    with pytest.raises(PolicyError, match="disabled") as refusal, operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    assert refusal.value.field == "enabled"


def test_the_migrations_own_settings_stay_as_they_were(engine: Engine) -> None:
    with operations(engine) as op:
        op.execute("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        op.execute("SET LOCAL DateStyle = 'ISO, DMY'")
        op.create_partitioned_table("odds", *columns(), policy=policy())
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
        op.alter_partition_policy("odds", premake=3)
        connection = op.get_bind()
        assert connection.scalar(sa.text("SHOW TimeZone")) == "Asia/Kathmandu"
        assert connection.scalar(sa.text("SHOW DateStyle")) == "ISO, DMY"
    assert FOUR_DAYS[0] in partitions(engine)


# -- alter_partition_policy ----------------------------------------------------------------------------


def test_alter_keeps_what_an_operator_set_and_says_what_is_declared(engine: Engine) -> None:
    declare(engine, "odds", policy(retention="90 days"))
    run(engine, "UPDATE partition_config SET retention = '180 days', max_drops = 3")
    with operations(engine) as op:
        op.alter_partition_policy("odds", premake=5, max_ahead="2 years", day_start="06:00")
    ((row, declared),) = rows(engine, "SELECT to_jsonb(c), declared FROM partition_config c")
    assert (row["premake"], row["max_ahead"], row["day_start"]) == (5, "2 years", "06:00:00")
    assert (row["retention"], row["max_drops"]) == ("180 days", 3)
    assert (
        declared == policy(retention="90 days", premake=5, max_ahead="2 years", day_start="06:00").to_dict()
    )


def test_alter_takes_a_field_back_to_none(engine: Engine) -> None:
    declare(engine, "odds", policy(retention="90 days", tablespace=None))
    with operations(engine) as op:
        op.alter_partition_policy("odds", retention=None)
    assert rows(engine, "SELECT retention, declared -> 'retention' FROM partition_config") == [(None, None)]


def test_alter_leaves_partitions_as_they_are(engine: Engine) -> None:
    declare(engine)
    with operations(engine) as op:
        op.alter_partition_policy("odds", interval="month", premake=1)
    assert partitions(engine) == FOUR_DAYS


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"retention": "soon"}, "retention"),
        ({"timezone": "Auckland"}, "timezone"),
        ({"interval": "minute"}, "interval"),
        ({"key": "id"}, "key"),
        ({"premade": 3}, "premade"),
        ({"premake": 3, "every": 0}, "every"),
    ],
)
def test_a_wrong_alteration_is_refused_by_name(engine: Engine, fields: dict[str, Any], field: str) -> None:
    declare(engine)
    before = catalog(engine)
    with pytest.raises(PolicyError) as refusal, operations(engine) as op:
        op.alter_partition_policy("odds", **fields)
    assert refusal.value.field == field
    assert refusal.value.remedy
    assert catalog(engine) == before


@pytest.mark.parametrize(
    ("key_type", "fields", "field"),
    [
        (sa.Date(), {"interval": "hour"}, "interval"),
        (sa.DateTime(), {"interval": "hour"}, "column_timezone"),
    ],
)
def test_an_alteration_that_does_not_fit_the_key_is_refused(
    engine: Engine, key_type: Any, fields: dict[str, Any], field: str
) -> None:
    declare(engine, "odds", policy(), *columns(key_type=key_type))
    with pytest.raises(PolicyError) as refusal, operations(engine) as op:
        op.alter_partition_policy("odds", **fields)
    assert refusal.value.field == field
    assert scalar(engine, "SELECT interval FROM partition_config") == "day"


def test_alter_mends_a_row_that_was_spoiled(engine: Engine) -> None:
    declare(engine)
    run(
        engine, "UPDATE partition_config SET timezone = 'Pacific/AUCKLAND'"
    )  # PostgreSQL knows it, pytz does not
    with operations(engine) as op:
        op.alter_partition_policy("odds", timezone="Pacific/Auckland")
    with operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    assert "odds_2026_06_01" in partitions(engine)


def test_altering_a_table_without_a_policy_is_refused(engine: Engine) -> None:
    with pytest.raises(NotManagedError, match=r"public\.odds"), operations(engine) as op:
        op.alter_partition_policy("odds", premake=3)


# -- reverse() -----------------------------------------------------------------------------------------


def test_the_reverse_of_create_is_drop_and_back(engine: Engine) -> None:
    created = CreatePartitionedTableOp("odds", columns(), policy=policy(), comment="100%")
    dropped = created.reverse()
    assert isinstance(dropped, DropPartitionedTableOp)
    assert dropped.reverse() is created
    assert created.to_diff_tuple()[0] == "add_partitioned_table"
    assert (dropped.to_diff_tuple()[0], dropped.to_diff_tuple()[1].name) == (
        "remove_partitioned_table",
        "odds",
    )
    with operations(engine) as op:
        op.invoke(created)
    after = catalog(engine)
    with operations(engine) as op:
        op.invoke(dropped)
    assert partitions(engine) == []
    with operations(engine) as op:
        op.invoke(dropped.reverse())
    assert catalog(engine) == after


def test_a_drop_with_what_existed_can_be_reversed(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA racing")
    declare(engine, schema="racing", comment="100%")
    after = catalog(engine)
    invoked: list[Any] = []
    with operations(engine) as op:
        invoke = op.invoke

        def note(operation: Any) -> Any:
            invoked.append(operation)
            return invoke(operation)

        op.invoke = note
        op.drop_partitioned_table(
            "odds", *columns(), existing_policy=policy(), schema="racing", comment="100%"
        )
    assert partitions(engine) == []
    with operations(engine) as op:
        op.invoke(invoked[0].reverse())
    assert catalog(engine) == after


def test_a_drop_without_what_existed_cannot_be_reversed() -> None:
    with pytest.raises(ValueError, match="columns and existing_policy="):
        DropPartitionedTableOp("odds").reverse()


def test_the_reverse_of_alter_puts_the_old_values_back(engine: Engine) -> None:
    declare(engine)
    before = catalog(engine)
    altered = AlterPartitionPolicyOp("odds", {"premake": 9}, {"premake": 2})
    for operation in (altered, altered.reverse()):
        with operations(engine) as op:
            op.invoke(operation)
        assert scalar(engine, "SELECT premake FROM partition_config") == operation.changes["premake"]
    assert catalog(engine) == before
    assert altered.reverse().reverse().changes == altered.changes
    assert altered.to_diff_tuple() == ("alter_partition_policy", "odds", None, {"premake": 9})


def test_an_alteration_without_its_old_values_cannot_be_reversed() -> None:
    altered = AlterPartitionPolicyOp(
        "odds", {"premake": 9, "every": 2, "grace": "1 day"}, {"grace": "7 days"}
    )
    with pytest.raises(ValueError, match="needs existing_every=, existing_premake= to be reversed"):
        altered.reverse()


def test_the_reverse_of_create_partitions_is_drop_partitions_and_back(engine: Engine) -> None:
    declare(engine)
    before = catalog(engine)
    made = CreatePartitionsOp("odds", date(2026, 6, 1), "2026-06-03", existing_policy=policy())
    dropped = made.reverse()
    assert isinstance(dropped, DropPartitionsOp)
    again = dropped.reverse()
    assert type(again) is CreatePartitionsOp
    assert (again.start, again.stop, again.existing_policy) == (made.start, made.stop, made.existing_policy)
    with operations(engine) as op:
        op.invoke(made)
    after = catalog(engine)
    with operations(engine) as op:
        op.invoke(dropped)
    assert catalog(engine) == before
    with operations(engine) as op:
        op.invoke(again)
    assert catalog(engine) == after
    assert made.to_diff_tuple() == ("create_partitions", "odds", None, "2026-06-01", "2026-06-03")


# -- where our two tables live -------------------------------------------------------------------------


def homes(engine: Engine) -> list[tuple[str, str]]:
    found = rows(
        engine,
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relname IN ('partition_config', 'partition_runs') AND c.relkind = 'r' ORDER BY 1, 2",
    )
    return [(schema, name) for schema, name in found]


def both(schema: str) -> list[tuple[str, str]]:
    return [(schema, "partition_config"), (schema, "partition_runs")]


def whole_life(alembic: Config, project: Project) -> None:
    """Use every operation once, so that each finds our tables where the first put them."""
    project.add(create(), drop())
    project.add(
        'op.alter_partition_policy("odds", premake=3)\n'
        'op.create_partitions("odds", "2026-06-01", "2026-06-02")',
        'op.drop_partitions("odds", "2026-06-01", "2026-06-02")\n'
        'op.alter_partition_policy("odds", premake=2)',
    )
    command.upgrade(alembic, "head")
    command.downgrade(alembic, "base")
    command.upgrade(alembic, "head")


def test_our_tables_are_made_on_first_use_and_not_before(
    project: Project, alembic: Config, engine: Engine
) -> None:
    project.add('op.create_table("plain", sa.Column("id", sa.Integer))')
    command.upgrade(alembic, "head")
    assert homes(engine) == []
    project.add(create())
    command.upgrade(alembic, "head")
    assert homes(engine) == both("public")


def test_our_tables_live_beside_alembic_version(project: Project, alembic: Config, engine: Engine) -> None:
    run(engine, 'CREATE SCHEMA "Ops 100%"')
    project.edit_env(
        "connection=connection, target_metadata=target_metadata",
        'connection=connection, target_metadata=target_metadata, version_table_schema="Ops 100%"',
    )
    whole_life(alembic, project)
    assert homes(engine) == both("Ops 100%")


def test_the_environment_says_where_our_tables_live(
    project: Project, alembic: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, "CREATE SCHEMA ops", "CREATE SCHEMA ini")
    alembic.set_main_option("alembic_partitions_schema", "ini")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
    whole_life(alembic, project)
    assert homes(engine) == both("ops")


def test_alembic_ini_says_where_our_tables_live(project: Project, alembic: Config, engine: Engine) -> None:
    run(engine, "CREATE SCHEMA ini")
    alembic.set_main_option("alembic_partitions_schema", "ini")
    whole_life(alembic, project)
    assert homes(engine) == both("ini")


def test_the_search_path_says_where_our_tables_live(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA tenant")
    with operations(engine) as op:
        op.execute("SET LOCAL search_path = tenant")
        op.create_partitioned_table("odds", *columns(), policy=policy())
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
        op.alter_partition_policy("odds", premake=3)
    assert homes(engine) == both("tenant")
    assert rows(engine, "SELECT table_schema, premake FROM tenant.partition_config") == [("tenant", 3)]


@pytest.mark.parametrize("name", ["partition_config", "partition_runs"])
@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE {} (id int)",
        "CREATE VIEW {} AS SELECT 1 AS id",
        "CREATE TABLE {} (id int); COMMENT ON TABLE {} IS 'alembic_partitions: something'",
    ],
)
def test_somebody_elses_table_of_that_name_stops_everything_with_the_setting_to_use(
    project: Project, alembic: Config, engine: Engine, made: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, *made.replace("{}", name).split(";"))
    before = catalog(engine)
    project.add(create(), drop())
    with pytest.raises((ConfigurationError, DBAPIError), match=r"not ours.*ALEMBIC_PARTITIONS_SCHEMA"):
        command.upgrade(alembic, "head")
    assert catalog(engine) == before

    run(engine, "CREATE SCHEMA ops")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
    command.upgrade(alembic, "head")
    assert homes(engine)[:2] == both("ops")


# -- bad input: refused before anything changes --------------------------------------------------------

TZ = sa.DateTime(timezone=True)
BAD_TABLES: dict[str, tuple[str, list[Any], str]] = {
    "a key that is no column": ("odds", [sa.Column("id", sa.Integer)], "no column 'at'.*Its columns are id"),
    "a nullable key": ("odds", [sa.Column("at", TZ)], "nullable.*nullable=False"),
    "a key missing from the primary key": (
        "odds",
        [sa.Column("id", sa.Integer, primary_key=True), sa.Column("at", TZ, nullable=False)],
        "primary key.*lacks.*add the key",
    ),
    "a key missing from a unique constraint": (
        "odds",
        [sa.Column("id", sa.Integer, unique=True), sa.Column("at", TZ, nullable=False)],
        "unique constraint.*lacks.*add the key",
    ),
    "a key missing from a unique index": (
        "odds",
        [sa.Column("id", sa.Integer, unique=True, index=True), sa.Column("at", TZ, nullable=False)],
        "unique index.*lacks.*add the key",
    ),
    "a key without time": (
        "odds",
        [sa.Column("at", sa.SmallInteger, nullable=False)],
        "type smallint.*timestamptz",
    ),
    "a name that is too long": ("ō" * 32, [sa.Column("at", TZ, nullable=False)], "63 bytes.*Shorten"),
}


@pytest.mark.parametrize(("name", "items", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_that_cannot_be_partitioned_is_refused_before_anything_changes(
    engine: Engine, name: str, items: list[Any], message: str
) -> None:
    before = catalog(engine)
    with pytest.raises(PolicyError, match=message) as refusal, operations(engine) as op:
        op.create_partitioned_table(name, *items, policy=policy())
    assert refusal.value.field == "key"
    assert catalog(engine) == before


@pytest.mark.parametrize(
    ("key_type", "fields", "field"),
    [
        (sa.Date(), {"interval": "hour"}, "interval"),
        (sa.DateTime(), {"interval": "hour"}, "column_timezone"),
    ],
)
def test_an_interval_that_does_not_fit_the_key_is_refused(
    engine: Engine, key_type: Any, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(PolicyError) as refusal:
        declare(engine, "odds", policy(**fields), *columns(key_type=key_type))
    assert refusal.value.field == field
    assert homes(engine) == []


OTHERWISE: dict[str, tuple[str, str]] = {
    "not partitioned": ("CREATE TABLE odds (at timestamptz NOT NULL)", "not a partitioned table"),
    "by LIST": ("CREATE TABLE odds (at timestamptz NOT NULL) PARTITION BY LIST (at)", "LIST, not by RANGE"),
    "by HASH": ("CREATE TABLE odds (at timestamptz NOT NULL) PARTITION BY HASH (at)", "HASH, not by RANGE"),
    "by another column": (
        "CREATE TABLE odds (at timestamptz, b timestamptz) PARTITION BY RANGE (b)",
        "by column 'b', the policy by column 'at'",
    ),
    "by two columns": (
        "CREATE TABLE odds (at timestamptz, b int) PARTITION BY RANGE (at, b)",
        "'at' and more",
    ),
    "by an expression": (
        "CREATE TABLE odds (at timestamp) PARTITION BY RANGE (date(at))",
        "by an expression",
    ),
    "by another type": (
        "CREATE TABLE odds (at bigint) PARTITION BY RANGE (at)",
        "type bigint.*epoch=",
    ),
}


@pytest.mark.parametrize(("made", "message"), OTHERWISE.values(), ids=OTHERWISE.keys())
def test_a_policy_over_a_table_of_another_make_is_refused(engine: Engine, made: str, message: str) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds", made)
    before = catalog(engine)
    with pytest.raises(PolicyError, match=message), operations(engine) as op:
        op.create_partitions("odds", "2026-06-01", "2026-06-02")
    assert catalog(engine) == before


def test_what_is_said_twice_or_not_at_all_is_refused(engine: Engine) -> None:
    wrong = (
        ({"policy": None}, "policy"),
        ({"policy": "day"}, "policy"),
        ({"policy": policy(), "postgresql_partition_by": "RANGE (at)"}, "key"),
    )
    for kw, field in wrong:
        with pytest.raises(PolicyError) as refusal, operations(engine) as op:
            op.create_partitioned_table("odds", *columns(), **kw)
        assert refusal.value.field == field
    with pytest.raises(PolicyError, match="told twice"), operations(engine) as op:
        op.create_partitioned_table("odds", *columns(), policy(), policy=policy())
    assert not rows(engine, "SELECT FROM pg_tables WHERE schemaname = 'public'")


def test_if_not_exists_declares_a_table_that_is_there(engine: Engine) -> None:
    for _ in range(2):
        declare(engine, "odds", policy(), if_not_exists=True)
    assert partitions(engine) == FOUR_DAYS
    run(engine, "CREATE TABLE plain (at timestamptz NOT NULL)")
    with pytest.raises(PolicyError, match="it is not a partitioned table"):
        declare(
            engine,
            "plain",
            policy(),
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            if_not_exists=True,
        )


def test_a_unique_index_over_text_is_left_to_postgresql(engine: Engine) -> None:
    declare(engine, "odds", policy(), *columns(), sa.Index("u", sa.text("at"), "id", unique=True))
    assert partitions(engine) == FOUR_DAYS


def test_a_date_key_is_one_under_quote_all_identifiers(engine: Engine, database: Database) -> None:
    run(engine, f"ALTER DATABASE {database.name} SET quote_all_identifiers = on")
    engine.dispose()
    declare(engine, "odds", policy(), *columns(key_type=sa.Date()))
    assert partitions(engine) == FOUR_DAYS


def test_our_tables_are_not_made_twice_by_mistake(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(engine, "CREATE SCHEMA ops")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
    declare(engine)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_SCHEMA")
    with pytest.raises(ConfigurationError, match="is there already, in schema 'ops'"):
        declare(engine, "other")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "public")
    declare(engine, "other")


def test_a_schema_for_our_tables_that_is_not_there_is_named(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
    with pytest.raises(ConfigurationError, match=r"there is no schema 'ops'.*ALEMBIC_PARTITIONS_SCHEMA"):
        declare(engine)


def test_a_failing_revision_leaves_nothing_behind(project: Project, alembic: Config, engine: Engine) -> None:
    before = catalog(engine)
    project.add(create() + 'op.execute("SELECT 1 / 0")', drop())
    with pytest.raises(DBAPIError, match="division by zero"):
        command.upgrade(alembic, "head")
    assert catalog(engine) == before


def test_a_table_further_down_the_search_path_is_the_one_meant(engine: Engine) -> None:
    declare(engine)
    run(engine, "CREATE SCHEMA app")
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL search_path = app, public")
        op: Any = Operations(MigrationContext.configure(connection))
        op.alter_partition_policy("odds", premake=5)
        op.create_partitions("odds", "2030-01-01", "2030-01-02")
        assert connection.exec_driver_sql("SELECT premake FROM public.partition_config").scalars().all() == [
            5
        ]
        op.drop_partitioned_table("odds")
        assert connection.exec_driver_sql("SELECT count(*) FROM public.partition_config").scalar() == 0
        assert connection.exec_driver_sql("SELECT to_regclass('app.partition_config')").scalar() is None


def test_in_an_autocommit_block_bounds_are_read_right_in_any_session_zone(database: Database) -> None:
    engine = sa.create_engine(database.url, isolation_level="AUTOCOMMIT")
    declare(engine, "odds", policy(timezone="UTC"))
    with engine.connect() as connection:
        connection.exec_driver_sql("SET TimeZone = 'Pacific/Auckland'")
        op: Any = Operations(MigrationContext.configure(connection))
        op.create_partitions("odds", "2031-01-01", "2031-01-03")
        op.create_partitions("odds", "2031-01-02", "2031-01-05")
        assert connection.exec_driver_sql("SHOW TimeZone").scalar() == "Pacific/Auckland"
    names = {row[0] for row in rows(engine, "SELECT relname FROM pg_class WHERE relname ~ '^odds_2031'")}
    engine.dispose()
    assert names >= {f"odds_2031_01_0{day}" for day in range(1, 5)}
    assert not [name for name in names if name.endswith("z")]


def test_an_altered_interval_leaves_premake_alone_and_is_reversed_exactly(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=48))
    with engine.begin() as connection:
        op: Any = Operations(MigrationContext.configure(connection))
        op.alter_partition_policy("odds", interval="hour", existing_interval="day")
        op.alter_partition_policy("odds", interval="day", existing_interval="hour")
        found = connection.exec_driver_sql(
            "SELECT interval, premake, declared ->> 'premake' FROM partition_config"
        )
        assert found.one() == ("day", 48, "48")
