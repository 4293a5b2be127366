"""partition_config by SQL: the database refuses a wrong value, and a right one counts from the next run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytz
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import ddl, maintenance
from alembic_partitions.errors import ConfigurationError, NotManagedError
from alembic_partitions.plan import Refusal
from tests.databases import Database
from tests.tables import NOW, columns, declare, partitions, policy, rows, run, scalar

WRONG: dict[str, list[str | None]] = {
    "partition_key": [None, "", "k" * 64, "ā" * 32],
    "interval": ["minute", "DAY", "days", "", None],
    "every": ["0", "-1", "1001", None],
    "timezone": [
        "Auckland",
        "Pacific/Aukland",
        "pacific/auckland",
        "NZST",
        "+12",
        "UTC+5",
        "Factory",
        "",
        None,
    ],
    "day_start": ["24:00", "25:00", "06:00:01", "06:00:00.5", "soon", None],
    "week_start": ["Monday", "mon", "", None],
    "premake": ["-1", "10001", "1.5", None],
    "lookback": ["-1", "10001", None],
    "retention": ["90", "0 days", "soon", "-1 days", "90 days ", "1 fortnight", "1234567 days", "90 days\n"],
    "on_expiry": ["delete", "DROP", "", None],
    "grace": ["7", "0 days", "a week", None],
    "max_ahead": ["1", "1 decade", None],
    "max_behind": ["1", "yesterday"],
    "max_create": ["0", "10001", None],
    "max_drops": ["0", "10001", None],
    "column_timezone": ["Auckland", "NZST", "NZST-12NZDT", ""],
    "epoch": ["", "m", "seconds"],
    "archive_schema": ["", "s" * 64],
    "tablespace": ["", "t" * 64],
    "storage_parameters": [
        *("[]", '"fillfactor"', "1", "fillfactor=70", None),
        *('{"fillfactor": [70]}', '{"fillfactor": {}}', '{"fillfactor": null}'),
    ],
    "enabled": ["perhaps", None],
    "declared": [None, "{"],
}


@pytest.fixture(scope="module")
def declared(module_database: Database) -> Iterator[Engine]:
    """One table, for updates that the database refuses."""
    engine = create_engine(module_database.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        declare(engine)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


def test_every_check_has_a_wrong_value_here() -> None:
    checks = {c.name for c in ddl.config_table(None).constraints if isinstance(c, sa.CheckConstraint)}
    assert checks <= {f"partition_config_{name}_check" for name in WRONG}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=ascii
)
def test_a_wrong_update_is_refused_by_the_database(declared: Engine, name: str, value: str | None) -> None:
    column = ddl.config_table(None).columns[name]
    update = text(
        f"UPDATE partition_config SET {name} = CAST(:value AS {column.type.compile(declared.dialect)})"
    )
    if column.type.compile(declared.dialect) in ("TEXT", "JSONB"):
        update = text(f"UPDATE partition_config SET {name} = :value")
    with pytest.raises(DBAPIError) as refusal, declared.begin() as connection:
        connection.execute(update, {"value": value})
    said = str(refusal.value.orig)
    if f"partition_config_{name}_check" not in said:
        assert "null value" in said or "time zone" in said or "invalid" in said or "out of range" in said, (
            said
        )
    with declared.connect() as connection:
        (found,) = maintenance.plan(connection)
    assert found.plan.findings == ()


def test_every_zone_of_pytz_is_taken_by_the_database(declared: Engine) -> None:
    zones = set(pytz.all_timezones) & set(rows_of(declared, "SELECT name FROM pg_timezone_names"))
    assert len(zones) > 400
    with declared.begin() as connection:
        update = text("UPDATE partition_config SET timezone = :zone, column_timezone = :zone")
        for zone in sorted(zones):
            connection.execute(update, {"zone": zone})
        connection.rollback()


def rows_of(engine: Engine, query: str) -> list[str]:
    return [name for (name,) in rows(engine, query)]


def test_hours_that_do_not_divide_the_day_are_refused(declared: Engine) -> None:
    with pytest.raises(DBAPIError, match="partition_config_every_check"):
        run(declared, "UPDATE partition_config SET interval = 'hour', every = 5")


def ensure(engine: Engine, **kw: Any) -> maintenance.Report:
    with engine.connect() as connection:
        return maintenance.ensure(connection, **kw)


def test_a_right_update_takes_effect_at_the_next_run(engine: Engine) -> None:
    declare(engine)
    run(engine, "UPDATE partition_config SET premake = 4 WHERE table_name = 'odds'")
    report = ensure(engine)
    assert report.results[0].created == ("odds_2026_04_08", "odds_2026_04_09")
    assert scalar(engine, "SELECT declared ->> 'premake' FROM partition_config") == "2"


@pytest.mark.parametrize(
    ("change", "made"),
    [
        ("storage_parameters = '{\"fillfactor\": 70}'", ["fillfactor=70"]),
        ("storage_parameters = '{\"autovacuum_enabled\": false}'", ["autovacuum_enabled=false"]),
        ("tablespace = 'pg_default'", None),
    ],
)
def test_what_new_partitions_get_can_be_updated(engine: Engine, change: str, made: list[str] | None) -> None:
    declare(engine)
    run(engine, f"UPDATE partition_config SET premake = 3, {change}")
    assert ensure(engine).created == 1
    assert rows(engine, "SELECT reloptions FROM pg_class WHERE relname = 'odds_2026_04_08'") == [(made,)]
    assert rows(engine, "SELECT reloptions FROM pg_class WHERE relname = 'odds_2026_04_07'") == [(None,)]


def test_a_disabled_table_is_left_alone_and_says_so(engine: Engine) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05", "UPDATE partition_config SET enabled = false")
    report = ensure(engine)
    assert report.created == 0
    (result,) = report.results
    assert result.findings == ("public.odds: the policy is disabled",)
    assert not result.current_missing
    run(engine, "UPDATE partition_config SET enabled = true")
    assert ensure(engine).results[0].created == ("odds_2026_04_05",)


def test_another_zone_counts_from_now_on_and_never_overlaps(engine: Engine) -> None:
    declare(engine)
    run(engine, "UPDATE partition_config SET timezone = 'UTC'")
    report = ensure(engine)
    # The present is covered by Auckland's days, to 2026-04-07 12:00Z; what is new begins there.
    assert report.results[0].created == ("odds_2026_04_07_120000z",)
    (finding,) = report.results[0].findings
    assert finding == (
        "public.odds_2026_04_04 to odds_2026_04_07, 4 partitions [2026-04-03 11:00:00+00:00,"
        " 2026-04-07 12:00:00+00:00): they are on another grid, an earlier policy's perhaps; new windows"
        " begin where they end. They may stay; split divides one of several windows; else DETACH it, repair"
        " the range, and INSERT its rows into the table again"
    )


@pytest.mark.parametrize("name", ["quarter", "year"])
def test_a_reach_to_the_begin_of_the_calendar_stops_nothing(engine: Engine, name: str) -> None:
    declare(engine)
    declare(engine, "other")
    run(
        engine,
        "DROP TABLE odds_2026_04_05",
        "DROP TABLE other_2026_04_05",
        f"UPDATE partition_config SET timezone = 'UTC', interval = '{name}', lookback = 10000, premake = 0"
        " WHERE table_name = 'odds'",
    )
    with engine.connect() as connection:  # to make them all would take minutes
        odds, other = maintenance.plan(connection)
    assert any("the calendar begins there" in str(finding) for finding in odds.plan.findings)
    assert [step.name for step in other.plan.steps] == ["other_2026_04_05"]


SPOILED = {
    "a zone in the wrong letters": ("timezone = 'Pacific/AUCKLAND'", "timezone"),
    "another zone in the wrong letters": ("column_timezone = 'Pacific/AUCKLAND'", "column_timezone"),
    "no storage parameter": ("storage_parameters = '{\"Fill Factor\": 70}'", "storage_parameters"),
    "a key that is no column": ("partition_key = 'born'", "'born'"),
    "another column": ("partition_key = 'note'", "'note'"),
}


@pytest.mark.parametrize(("change", "named"), SPOILED.values(), ids=SPOILED.keys())
def test_a_row_spoiled_beyond_the_checks_concerns_its_own_table_alone(
    engine: Engine, change: str, named: str
) -> None:
    for name in ("before", "odds", "zlast"):
        declare(engine, name)
    run(
        engine,
        f"UPDATE partition_config SET {change} WHERE table_name = 'odds'",
        "DROP TABLE before_2026_04_05",
        "DROP TABLE zlast_2026_04_05",
    )
    report = ensure(engine)
    first, spoiled, last = report.results
    assert first.created == ("before_2026_04_05",)
    assert last.created == ("zlast_2026_04_05",)
    assert spoiled.table == "public.odds"
    assert spoiled.created == ()
    assert spoiled.current_missing
    (finding,) = spoiled.findings
    assert named in finding
    assert str(Refusal.UNFIT.value) in finding


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ("interval = 'hour'", sa.Date(), "interval"),
        ("interval = 'hour'", sa.DateTime(), "column_timezone"),
    ],
)
def test_an_interval_that_does_not_fit_the_key_concerns_its_own_table_alone(
    engine: Engine, change: str, kind: Any, named: str
) -> None:
    declare(engine, "odds", policy(), *columns(key_type=kind))
    declare(engine, "other")
    run(
        engine,
        f"UPDATE partition_config SET {change} WHERE table_name = 'odds'",
        "DROP TABLE other_2026_04_05",
    )
    spoiled, other = ensure(engine).results
    assert f"field '{named}'" in spoiled.findings[0]
    assert other.created == ("other_2026_04_05",)


@pytest.mark.parametrize("change", ["retention = '999999 years'", "max_ahead = '999999 months'"])
@pytest.mark.parametrize("kind", [sa.DateTime(timezone=True), sa.DateTime(), sa.Date()], ids=str)
def test_periods_as_long_as_the_checks_allow_break_nothing(engine: Engine, change: str, kind: Any) -> None:
    declare(engine, "odds", policy(), *columns(key_type=kind))
    run(engine, f"UPDATE partition_config SET {change}", "DROP TABLE odds_2026_04_05")
    assert ensure(engine).results[0].created == ("odds_2026_04_05",)


def test_windows_of_a_thousand_years_break_nothing(engine: Engine) -> None:
    declare(engine)
    declare(engine, "other")
    run(
        engine,
        "UPDATE partition_config SET interval = 'year', every = 1000, lookback = 10000, premake = 10000,"
        " timezone = 'UTC' WHERE table_name = 'odds'",
        "DROP TABLE other_2026_04_05",
    )
    odds, other = ensure(engine).results
    assert odds.error is None
    assert any("the calendar of windows ends here" in finding for finding in odds.findings)
    assert other.created == ("other_2026_04_05",)


def test_two_configurations_are_an_error_that_names_both(
    engine: Engine, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    run(engine, "CREATE SCHEMA ops")
    with monkeypatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
        declare(engine, "other")
    with pytest.raises(
        ConfigurationError, match=r"schema 'ops' and schema 'public'.*ALEMBIC_PARTITIONS_SCHEMA"
    ):
        maintenance.ensure(connection)
    with pytest.raises(ConfigurationError, match="exists twice"):
        maintenance.plan(connection)
    assert [t.table for t in maintenance.plan(connection, schema="ops")] == ["public.other"]
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "public")
    assert [t.table for t in maintenance.plan(connection)] == ["public.odds"]


def test_a_configuration_that_is_not_ours_is_not_read(engine: Engine, connection: Connection) -> None:
    run(engine, "CREATE TABLE partition_config (id int)")
    assert maintenance.ensure(connection) == maintenance.Report()
    with pytest.raises(
        ConfigurationError, match=r"in schema 'public' is not ours.*ALEMBIC_PARTITIONS_SCHEMA"
    ):
        maintenance.ensure(connection, schema="public")


def test_one_of_ours_is_found_beside_somebody_elses(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(engine, "CREATE TABLE partition_config (id int)", 'CREATE SCHEMA "Ops 100%"')
    with monkeypatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "Ops 100%")
        declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    assert ensure(engine).results[0].created == ("odds_2026_04_05",)
    assert scalar(engine, 'SELECT created FROM "Ops 100%".partition_runs') == 1


def test_a_table_that_is_not_managed_is_refused_by_name(engine: Engine, connection: Connection) -> None:
    declare(engine)
    for name in ("adds", "racing.odds"):
        with pytest.raises(NotManagedError, match=f"Table {name} has no row"):
            maintenance.ensure(connection, tables=["odds", name])
    assert partitions(engine) == [f"odds_2026_04_0{n}" for n in (4, 5, 6, 7)]
    assert maintenance.ensure(connection, tables=["odds"]).results == (
        maintenance.ensure(connection, tables=["public.odds"]).results
    )
