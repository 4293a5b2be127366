"""`MetaData.create_all()` and `drop_all()`: the same tables and partitions, for who has no migrations."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, MetaData, create_mock_engine, text

from alembic_partitions import PolicyError, plain_tables
from alembic_partitions.errors import ConfigurationError
from tests.apps import running
from tests.databases import Database
from tests.db.test_autogenerate import bring_about, comparable, day, diffs, key, models
from tests.tables import NOW, catalog, partitions, rows, run, scalar

pytestmark = pytest.mark.versions

FOUR_DAYS = ["odds_2026_04_04", "odds_2026_04_05", "odds_2026_04_06", "odds_2026_04_07"]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.fixture
def emptied(engine: Engine) -> Iterator[Engine]:
    yield engine
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0
    assert not partitions(engine)


def everything() -> MetaData:
    return models(
        day(retention="90 days"),
        sa.Index("by_note", "note"),
        sa.UniqueConstraint("at", "note", name="once"),
        comment="100%",
    )


def test_what_a_migration_makes_create_all_makes(engine: Engine) -> None:
    bring_about(engine, everything())
    by_migration = comparable(engine)
    everything().drop_all(engine)
    everything().create_all(engine)
    assert comparable(engine) == by_migration
    assert diffs(engine, everything()) == []


def test_create_all_and_drop_all_as_often_as_they_are_called(emptied: Engine) -> None:
    for _ in range(2):
        everything().create_all(emptied)
        once = catalog(emptied)
        everything().create_all(emptied)
        assert catalog(emptied) == once
        assert partitions(emptied) == FOUR_DAYS
        everything().drop_all(emptied)
        assert not partitions(emptied)
        everything().drop_all(emptied)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "asyncpg"])
def test_with_each_driver(database: Database, engine: Engine, driver: str) -> None:
    with running(database, driver, kept=False) as app:
        app.connection(everything().create_all)
        app.connection(
            lambda c: c.execute(text("INSERT INTO odds (at) VALUES (timestamptz '2026-04-05 13:37:11+12')"))
        )
        assert partitions(engine) == FOUR_DAYS
        app.connection(everything().drop_all)
    assert not partitions(engine)


def test_one_table_alone(emptied: Engine) -> None:
    metadata = everything()
    sa.Table("plain", metadata, sa.Column("id", sa.Integer(), primary_key=True))
    metadata.tables["odds"].create(emptied)
    assert partitions(emptied) == FOUR_DAYS
    assert not rows(emptied, "SELECT FROM pg_tables WHERE tablename = 'plain'")
    metadata.tables["odds"].drop(emptied)


def test_any_schema_translated_or_not(engine: Engine) -> None:
    run(engine, 'CREATE SCHEMA "My App"', "CREATE SCHEMA tenant")
    models(day(), name="Größe", schema="My App").create_all(engine)
    assert len(partitions(engine, "Größe")) == 4
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    models(day()).create_all(translated)
    assert rows(engine, "SELECT table_schema, table_name FROM partition_config ORDER BY 1") == [
        ("My App", "Größe"),
        ("tenant", "odds"),
    ]
    models(day()).drop_all(translated)
    models(day(), name="Größe", schema="My App").drop_all(engine)
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 0


def test_our_own_tables_are_translated_to_nowhere(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA tenant")
    translated = engine.execution_options(schema_translate_map={"public": "tenant"})
    models(day(), schema="public").create_all(translated)
    assert rows(engine, "SELECT table_schema FROM public.partition_config") == [("tenant",)]
    models(day(), schema="public").drop_all(translated)
    assert scalar(engine, "SELECT count(*) FROM public.partition_config") == 0


def test_a_table_further_down_the_search_path_is_forgotten_too(emptied: Engine) -> None:
    everything().create_all(emptied)
    with emptied.begin() as connection:
        connection.execute(text("CREATE SCHEMA app"))
        connection.execute(text("SET LOCAL search_path = app, public"))
        everything().drop_all(connection)


def test_the_settings_of_the_callers_transaction_stay_as_they_were(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '1234ms'"))
        everything().create_all(connection)
        everything().drop_all(connection)
        assert connection.scalar(text("SHOW lock_timeout")) == "1234ms"


def test_a_policy_is_forgotten_wherever_it_was_written_down(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(engine, "CREATE SCHEMA meta")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "meta")
    everything().create_all(engine)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_SCHEMA")
    everything().drop_all(engine)
    assert scalar(engine, "SELECT count(*) FROM meta.partition_config") == 0


def test_many_at_once_on_a_fresh_database(engine: Engine) -> None:
    names = [f"odds_{number}" for number in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(
            pool.map(
                lambda name: models(day(), sa.PrimaryKeyConstraint("id", "at"), name=name).create_all(engine),
                names,
            )
        )
    assert scalar(engine, "SELECT count(*) FROM partition_config") == len(names)


def test_a_partition_attached_by_hand_survives_drop_all(emptied: Engine) -> None:
    everything().create_all(emptied)
    run(
        emptied,
        "CREATE TABLE mine PARTITION OF odds FOR VALUES FROM ('2020-01-01+00') TO ('2021-01-01+00')",
        "INSERT INTO odds (at, note) VALUES ('2020-06-06', 'kept')",
    )
    everything().drop_all(emptied)
    assert scalar(emptied, "SELECT note FROM mine") == "kept"


def test_wrong_models_are_refused_before_anything_changes(engine: Engine) -> None:
    before = catalog(engine)
    nullable = models(day())
    nullable.tables["odds"].c.at.nullable = True
    for wrong in (models(day(), key("id")), nullable):
        with pytest.raises(PolicyError):
            wrong.create_all(engine)
    assert catalog(engine) == before


def test_somebody_elses_table_of_that_name_stops_it(engine: Engine) -> None:
    run(engine, "CREATE TABLE partition_config (id int)")
    before = catalog(engine)
    with pytest.raises(ConfigurationError, match="ALEMBIC_PARTITIONS_SCHEMA"):
        everything().create_all(engine)
    assert catalog(engine) == before


def test_other_databases_and_printed_sql_are_left_alone() -> None:
    sqlite = sa.create_engine("sqlite://")
    everything().create_all(sqlite)
    everything().drop_all(sqlite)
    sqlite.dispose()
    printed: list[str] = []

    def note(statement: Any, *args: Any, **kw: Any) -> None:
        printed.append(str(statement.compile(dialect=mock.dialect)))

    mock: Any = create_mock_engine("postgresql+psycopg2://", note)
    everything().create_all(mock, checkfirst=False)
    assert any("PARTITION BY RANGE (at)" in statement for statement in printed)
    assert not any("partition_config" in statement for statement in printed)


def test_models_can_be_plain_tables_for_unit_tests(engine: Engine) -> None:
    metadata = everything()
    with plain_tables(metadata):
        metadata.create_all(engine)
    assert scalar(engine, "SELECT relkind FROM pg_class WHERE relname = 'odds'") == "r"
    assert not rows(engine, "SELECT FROM pg_tables WHERE tablename = 'partition_config'")
    run(engine, "INSERT INTO odds (at) VALUES ('1066-10-14')")
    metadata.drop_all(engine)
    metadata.create_all(engine)
    assert partitions(engine) == FOUR_DAYS
