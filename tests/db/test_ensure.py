"""ensure: what plan prints is what is sent; races, kills and bad tables leave nothing half made."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import ddl, maintenance
from alembic_partitions.catalog import blockers
from alembic_partitions.drivers import backend_pid
from alembic_partitions.errors import ConfigurationError, SettingError
from alembic_partitions.executor import creating
from alembic_partitions.sessions import in_autocommit, side_connection
from tests.databases import OF_THIS_DATABASE, Database, Databases, Roles
from tests.db.test_operations import OTHERWISE, half_detach
from tests.postgres import Server
from tests.tables import (
    NOW,
    catalog,
    columns,
    declare,
    instants,
    listening,
    partitions,
    policy,
    rows,
    run,
    scalar,
)

FOUR_DAYS = [f"odds_2026_04_0{n}" for n in (4, 5, 6, 7)]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


def ensure(engine: Engine, **kw: Any) -> maintenance.Report:
    with engine.connect() as connection:
        return maintenance.ensure(connection, **kw)


def plan(engine: Engine, **kw: Any) -> tuple[maintenance.TablePlan, ...]:
    with engine.connect() as connection:
        return maintenance.plan(connection, **kw)


def emptied(engine: Engine, name: str = "odds", *items: Any, **kw: Any) -> None:
    """Declare a table and take its partitions away again."""
    declare(engine, name, kw.pop("rules", None), *items, **kw)
    run(engine, *(f'DROP TABLE "{part}"' for part in partitions(engine, name)))


# -- what plan prints is what ensure sends -------------------------------------------------------------


def with_everything(engine: Engine, roles: Roles) -> None:
    """A table that needs every kind of statement, and a plain one beside it."""
    owner = roles.create("owner").username
    assert owner is not None
    items = [*columns(), sa.Column("100%", sa.Text), sa.Column("race", sa.Integer, sa.ForeignKey("races.id"))]
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)")
    emptied(engine, "it's 100% %s", *items, rules=policy(storage_parameters={"fillfactor": 70}))
    run(
        engine,
        'ALTER TABLE "it\'s 100% %s" REPLICA IDENTITY FULL',
        'ALTER TABLE "it\'s 100% %s" ENABLE ROW LEVEL SECURITY',
        'ALTER TABLE "it\'s 100% %s" ALTER COLUMN "100%" SET STATISTICS 7',
        f'ALTER TABLE "it\'s 100% %s" OWNER TO {owner}',
    )
    emptied(engine, "odds")
    run(engine, "ALTER TABLE odds REPLICA IDENTITY USING INDEX odds_pkey")


WATCH = """
CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO seen (query) VALUES (current_query()); END $$
"""


def test_what_plan_prints_is_what_the_server_gets_byte_for_byte(
    database: Database, engine: Engine, roles: Roles, any_driver: str
) -> None:
    with_everything(engine, roles)
    run(
        engine,
        "CREATE TABLE seen (id int GENERATED ALWAYS AS IDENTITY, query text)",
        "GRANT ALL ON seen TO public",
        WATCH,
        "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watch()",
    )
    printed = "".join(item.sql() for item in plan(engine))
    if any_driver == "asyncpg":
        sent = asyncio.run(ensured_by_asyncpg(database))
    else:
        other = create_engine(database.driver_url(any_driver), poolclass=NullPool)
        with listening(other) as heard:
            assert ensure(other).created == 8
        sent = heard.statements
    printed_statements = [line.removesuffix(";") for line in statements(printed)]
    assert all(message in printed for message in sent if message.startswith("--"))
    sent = [statement for message in sent for statement in taken_apart(message)]
    lines = [s for s in sent if not s.lstrip().startswith(("SELECT", "INSERT", "WITH")) or "advisory" in s]
    # ensure makes every table's present first; beyond that the order is the same.
    assert sorted(transactions(lines)) == sorted(transactions(printed_statements))
    assert len(transactions(lines)) == 8
    # And on the other side of the wire: every DDL command, as the server saw it.
    queries = {query for (query,) in rows(engine, "SELECT query FROM seen")}
    seen = {s for query in queries for s in taken_apart(query) if not s.startswith(("SET", "SELECT"))}
    assert seen == {s for s in printed_statements if not s.startswith(("SET", "SELECT"))}
    for word in (
        "REPLICA IDENTITY FULL",
        "USING INDEX",
        "ROW LEVEL",
        "STATISTICS 7",
        "fillfactor",
        "OWNER TO",
    ):
        assert any(word in query for query in seen)


def taken_apart(message: str) -> list[str]:
    """Return the statements of what was sent: one, or several partitions' as a script."""
    is_script = message.startswith("--")
    return [line.removesuffix(";") for line in statements(message)] if is_script else [message]


def transactions(statements: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for statement in statements:
        if statement == "SET LOCAL lock_timeout = '2000ms'":
            found.append([])
        found[-1].append(statement)
    return found


async def ensured_by_asyncpg(database: Database) -> list[str]:
    engine = create_async_engine(database.driver_url("asyncpg"), poolclass=NullPool)
    with listening(engine.sync_engine) as heard:
        async with engine.connect() as connection:
            report = await connection.run_sync(maintenance.ensure)
    await engine.dispose()
    assert report.created == 8
    return heard.statements


def statements(script: str) -> list[str]:
    """Return the statements of a printed plan between BEGIN and COMMIT; each but a DO block is one line."""
    found: list[str] = []
    inside = False
    for line in script.splitlines():
        if line.startswith("--") or line in ("BEGIN;", "COMMIT;"):
            continue
        if inside:
            found[-1] += f"\n{line}"
        else:
            found.append(line)
        inside = found[-1].startswith("DO ") and not found[-1].endswith("END $alembic_partitions$;")
    return found


def test_the_printed_plan_run_as_a_script_gives_what_ensure_gives(engine: Engine, roles: Roles) -> None:
    with_everything(engine, roles)
    before = catalog(engine)
    run(engine, *(item.sql() for item in plan(engine)))
    by_script = catalog(engine)
    run(engine, *(f'DROP TABLE "{name}"' for t in ("it's 100% %s", "odds") for name in partitions(engine, t)))
    assert catalog(engine) == before
    assert ensure(engine).created == 8
    assert catalog(engine) == by_script


def test_plan_changes_nothing(engine: Engine) -> None:
    emptied(engine)
    before = catalog(engine)
    assert len(plan(engine)[0].plan.steps) == 4
    assert catalog(engine) == before


def test_plan_steps_over_taken_names_like_ensure(engine: Engine) -> None:
    emptied(engine)
    run(engine, "CREATE TABLE odds_2026_04_05 (id int)", "CREATE VIEW odds_2026_04_06 AS SELECT 1 AS id")
    planned = [step.name for step in plan(engine)[0].plan.steps]
    assert planned == ["odds_2026_04_05_2", "odds_2026_04_06_2", "odds_2026_04_04", "odds_2026_04_07"]
    assert list(ensure(engine).results[0].created) == planned


# -- the ordinary run ----------------------------------------------------------------------------------


def test_ensure_brings_a_table_to_its_horizon(engine: Engine) -> None:
    declare(engine)
    run(engine, "UPDATE partition_config SET premake = 30, lookback = 3")
    report = ensure(engine)
    assert report.created == 30
    (result,) = report.results
    assert (result.current_missing, result.horizon_short, result.error, result.findings) == (
        False,
        False,
        None,
        (),
    )
    bounds = instants(engine)
    assert bounds[0][0] == "2026-04-01 11:00:00+00"
    assert bounds[-1][1] == "2026-05-05 12:00:00+00"
    assert all(before[1] == after[0] for before, after in pairwise(bounds))


def test_a_second_run_finds_nothing_to_do(engine: Engine) -> None:
    emptied(engine)
    assert ensure(engine).created == 4
    after = catalog(engine)
    with listening(engine) as sent:
        assert ensure(engine).created == 0
    assert sent.writes() == []
    assert catalog(engine) == after
    assert [item.sql() for item in plan(engine)] == [""]


@pytest.mark.parametrize("tables", [1, 7])
def test_a_healthy_database_takes_two_statements_from_cold(engine: Engine, tables: int) -> None:
    for number in range(tables):
        declare(engine, f"odds{number}")
    with listening(engine) as sent:
        assert len(ensure(engine).results) == tables
    assert len(sent.statements) == 2


@pytest.mark.parametrize(
    "rules",
    [
        {"interval": "hour", "every": 6, "timezone": "Asia/Kathmandu", "day_start": "05:30", "premake": 9},
        {"timezone": "Pacific/Kiritimati", "day_start": "23:59"},
        {"timezone": "Etc/GMT+12", "lookback": 4},
        {"interval": "day", "every": 10, "premake": 4},
        {"interval": "week", "week_start": "sunday", "timezone": "Pacific/Auckland"},
        {"interval": "month", "premake": 13, "lookback": 2},
        {"interval": "month", "every": 5},
        {"interval": "quarter", "premake": 7, "lookback": 5},
        {"interval": "year", "every": 10, "premake": 3, "timezone": "UTC"},
    ],
    ids=lambda rules: " ".join(map(str, rules.values())),
)
@pytest.mark.parametrize("now", ["2026-01-01T00:00Z", "2026-06-30T23:59:59Z", "2026-12-31T11:00Z"])
def test_windows_of_every_kind_are_found_by_their_names(
    engine: Engine, rules: dict[str, Any], now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(maintenance.NOW_VARIABLE, now)
    declare(engine, "odds", policy(**rules))
    ensure(engine)
    run(engine, "CREATE TABLE odds_1999 PARTITION OF odds FOR VALUES FROM ('1999-01-01') TO ('2000-01-01')")
    with listening(engine) as sent:
        assert ensure(engine).created == 0
        assert [item.sql() for item in plan(engine)] == [""]
    assert len(sent.statements) == 2 + 2


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE odds_2026_04_05 RENAME TO elsewhere",
        "ALTER TABLE odds RENAME TO other; UPDATE partition_config SET table_name = 'other'",
    ],
)
def test_where_names_do_not_tell_the_bounds_do(engine: Engine, change: str) -> None:
    declare(engine)
    run(engine, change)
    before = catalog(engine)
    report = ensure(engine)
    assert (report.created, report.failure) == (0, None)
    assert catalog(engine) == before


def test_a_name_that_was_cut_is_found_by_its_bounds(engine: Engine) -> None:
    declare(engine, "o" * 60)
    report = ensure(engine)
    assert (report.created, report.failure) == (0, None)


def test_tenants_have_tables_of_one_name(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA one", "CREATE SCHEMA two")
    for schema, zone in (("one", "UTC"), ("two", "Pacific/Auckland")):
        declare(engine, "odds", policy(timezone=zone), schema=schema)
    run(engine, "DROP TABLE two.odds_2026_04_05")
    with listening(engine) as sent:
        assert [r.created for r in ensure(engine).results] == [(), ("odds_2026_04_05",)]
    assert sum("FROM pg_inherits" in s for s in sent.statements) >= 1
    with listening(engine) as sent:
        assert ensure(engine).created == 0
    assert len(sent.statements) == 2


def test_a_partition_of_the_right_name_and_other_bounds_is_not_taken_for_the_window(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        "DROP TABLE odds_2026_04_05",
        "CREATE TABLE odds_2026_04_05 PARTITION OF odds"
        " FOR VALUES FROM ('2026-04-04 11:00+00') TO ('2026-04-04 12:00+00')",
    )
    (result,) = ensure(engine).results
    assert result.created
    assert result.findings


def test_a_database_without_a_configuration_has_nothing_to_do(engine: Engine) -> None:
    assert ensure(engine) == maintenance.Report()
    assert plan(engine) == ()


def test_only_the_tables_asked_for_are_worked_on(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA racing")
    for schema in ("public", "racing"):
        declare(engine, "odds", schema=schema)
        declare(engine, "other", schema=schema)
        for name in ("odds", "other"):
            run(engine, f"DROP TABLE {schema}.{name}_2026_04_05")
    assert [r.table for r in ensure(engine, tables=["racing.odds"]).results] == ["racing.odds"]
    assert [r.table for r in ensure(engine, tables=["other"]).results] == ["public.other", "racing.other"]
    assert [r.created for r in ensure(engine).results] == [("odds_2026_04_05",), (), (), ()]


def test_the_present_of_every_table_comes_before_the_far_horizon_of_any(engine: Engine) -> None:
    emptied(engine, "one")
    emptied(engine, "two")
    with listening(engine) as sent:
        ensure(engine)
    made = re.findall(r"CREATE TABLE public\.(\w+) \(LIKE", "\n".join(sent.statements))
    assert set(made[:6]) == {f"{t}_2026_04_0{n}" for t in ("one", "two") for n in (4, 5, 6)}
    assert made[6:] == ["one_2026_04_07", "two_2026_04_07"]


def test_when_time_is_up_nothing_further_is_begun(engine: Engine) -> None:
    emptied(engine)
    report = ensure(engine, give_up_at=time.monotonic() - 1)
    (result,) = report.results
    assert (result.created, result.error) == ((), None)
    assert result.current_missing
    assert result.horizon_short
    assert partitions(engine) == []


def test_a_rehearsed_day_is_worked_on_as_if_it_were_today(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2026-09-27T13:37:11+13:00")
    assert ensure(engine).results[0].created == (
        *("odds_2026_09_27", "odds_2026_09_28", "odds_2026_09_26", "odds_2026_09_29"),
    )
    assert ("2026-09-26 12:00:00+00", "2026-09-27 11:00:00+00") in instants(engine)  # the day of 23 hours


@pytest.mark.parametrize(
    "wrong", ["tomorrow", "2026-04-05", "2026-04-05T13:37:11", "0001-01-01T00:00:00+14:00"]
)
def test_a_rehearsed_day_that_cannot_be_read_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    declare(engine)
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", wrong)
    with pytest.raises(SettingError, match="ISO 8601 instant with its offset"):
        ensure(engine)


def test_a_rehearsed_day_at_the_end_of_the_calendar_is_reported(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy(), *columns(key_type=sa.Date()))
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "9999-12-31T23:59:59+00:00")
    (result,) = ensure(engine).results
    assert result.current_missing
    assert "the calendar ends there" in result.findings[0]


def test_a_partition_that_bears_a_name_of_ours_and_covers_more_is_reported(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        *(f"DROP TABLE odds_2026_04_{day}" for day in ("04", "05", "06", "07")),
        "CREATE TABLE odds_2026_04_05 PARTITION OF odds"
        " FOR VALUES FROM ('2026-04-01 00:00+00') TO ('2026-05-01 00:00+00')",
    )
    (result,) = ensure(engine).results
    assert result.created == ()
    assert "not on the policy's grid" in result.findings[0]


def test_without_a_rehearsal_the_databases_clock_counts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied(engine)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")
    ensure(engine)
    run(engine, "INSERT INTO odds (at) SELECT now() + n * interval '1 day' FROM generate_series(-1, 2) n")
    assert scalar(engine, "SELECT count(*) FROM odds") == 4


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "Asia/Kathmandu", "America/St_Johns"])
@pytest.mark.parametrize("style", ["ISO, MDY", "ISO, DMY"])
def test_no_setting_of_the_session_moves_a_bound(engine: Engine, zone: str, style: str) -> None:
    declare(engine)
    before = instants(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    with engine.connect() as connection:
        connection.execute(text(f"SET TimeZone = '{zone}'"))
        connection.execute(text(f"SET DateStyle = '{style}'"))
        connection.commit()
        assert maintenance.ensure(connection).created == 1
        assert connection.scalar(text("SHOW TimeZone")) == zone
    assert instants(engine) == before


def test_each_partition_has_a_transaction_of_its_own(engine: Engine) -> None:
    declare(engine)
    run(engine, "UPDATE partition_config SET premake = 100")
    assert ensure(engine).created == 98
    children = "FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = 'odds'::regclass"
    assert scalar(engine, f"SELECT count(DISTINCT c.xmin::text) {children}") == 98 + 1


# -- neighbours ----------------------------------------------------------------------------------------


def test_a_hole_between_hand_made_neighbours_is_filled_exactly(engine: Engine) -> None:
    emptied(engine)
    run(
        engine,
        "CREATE TABLE left_of PARTITION OF odds FOR VALUES FROM (MINVALUE) TO ('2026-04-05 00:30+00')",
        "CREATE TABLE right_of PARTITION OF odds FOR VALUES FROM ('2026-04-05 03:15:00.25+00') TO (MAXVALUE)",
    )
    report = ensure(engine)
    assert report.results[0].created == ("odds_2026_04_05_003000z",)
    assert instants(engine)[0] == ("2026-04-05 00:30:00+00", "2026-04-05 03:15:00.25+00")
    assert len(report.results[0].findings) == 2
    assert ensure(engine).created == 0


def test_a_partition_of_days_in_utc_is_filled_around_and_reported(engine: Engine) -> None:
    emptied(engine)
    run(
        engine,
        "CREATE TABLE utc_day PARTITION OF odds FOR VALUES FROM ('2026-04-05+00') TO ('2026-04-06+00')",
    )
    (result,) = ensure(engine).results
    assert sorted(result.created) == [
        "odds_2026_04_04",
        "odds_2026_04_05",
        "odds_2026_04_06_000000z",
        "odds_2026_04_07",
    ]
    assert "public.utc_day" in result.findings[0]
    assert not result.horizon_short


@pytest.mark.parametrize(
    "bounds",
    [
        ("(MINVALUE) TO ('-infinity')", "('-infinity') TO ('2020-01-01+00')"),
        ("(MINVALUE) TO ('0044-03-15+00 BC')", "('0044-03-15+00 BC') TO ('2020-01-01+00')"),
        ("('2030-01-01+00') TO ('infinity')", "('infinity') TO (MAXVALUE)"),
        ("('2030-01-01+00') TO ('12000-01-01+00')", "('12000-01-01+00') TO (MAXVALUE)"),
    ],
)
def test_partitions_beyond_the_calendar_are_no_obstacle(engine: Engine, bounds: tuple[str, str]) -> None:
    emptied(engine)
    for number, values in enumerate(bounds):
        run(engine, f"CREATE TABLE odd_{number} PARTITION OF odds FOR VALUES FROM {values}")
    assert sorted(ensure(engine).results[0].created) == FOUR_DAYS


def test_a_partition_in_another_schema_counts_by_its_bounds(engine: Engine) -> None:
    declare(engine)
    run(engine, "CREATE SCHEMA attic", "ALTER TABLE odds_2026_04_05 SET SCHEMA attic")
    assert ensure(engine).created == 0


def test_a_partition_that_is_itself_partitioned_counts_by_its_bounds(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        "DROP TABLE odds_2026_04_05",
        "CREATE TABLE by_note PARTITION OF odds FOR VALUES FROM ('2026-04-04 11:00+00') TO"
        " ('2026-04-05 12:00+00') PARTITION BY RANGE (at)",
    )
    assert ensure(engine).created == 0


def test_a_partition_half_detached_is_reported_until_it_is_finalized(engine: Engine) -> None:
    declare(engine)
    half_detach(engine, "odds", "odds_2026_04_05")
    (result,) = ensure(engine).results
    assert (result.created, result.error) == ((), None)
    assert result.current_missing
    assert "half-way through DETACH CONCURRENTLY" in result.findings[0]
    run(engine, "ALTER TABLE odds DETACH PARTITION odds_2026_04_05 FINALIZE")
    assert ensure(engine).results[0].created == ("odds_2026_04_05_2",)


def test_beside_an_empty_default_partition_windows_are_made(engine: Engine) -> None:
    emptied(engine)
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    (planned,) = plan(engine)
    assert "ACCESS EXCLUSIVE on public.rest (DEFAULT)" in planned.sql()
    (result,) = ensure(engine).results
    assert len(result.created) == 4
    assert "a DEFAULT partition exists" in result.findings[0]
    assert ensure(engine).results[0].findings == ()


def test_rows_in_the_default_partition_are_named_as_the_obstacle_and_stay(engine: Engine) -> None:
    emptied(engine)
    run(
        engine,
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at) VALUES ('2026-04-05 13:37:11+12')",
    )
    declare(engine, "other")
    run(engine, "DROP TABLE other_2026_04_05")
    odds, other = ensure(engine).results
    assert odds.error is not None
    assert "odds_2026_04_05 of public.odds" in odds.error
    assert 'default partition "rest"' in odds.error
    assert not odds.current_missing  # the DEFAULT partition takes the rows
    assert odds.horizon_short
    assert other.created == ("other_2026_04_05",)
    assert scalar(engine, "SELECT count(*) FROM rest") == 1
    assert scalar(engine, "SELECT to_regclass('odds_2026_04_05')") is None


# -- one bad table never stops the others --------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "message"),
    [
        *OTHERWISE.values(),
        ("SELECT 1", "the table does not exist"),
        ("CREATE VIEW odds AS SELECT 1", "not a part"),
    ],
    ids=[*OTHERWISE, "gone", "a view"],
)
def test_a_table_that_does_not_fit_its_policy_stops_no_other(engine: Engine, made: str, message: str) -> None:
    for name in ("before", "odds", "zlast"):
        declare(engine, name)
    run(engine, "DROP TABLE odds, before_2026_04_05, zlast_2026_04_05", made)
    first, bad, last = ensure(engine).results
    assert (first.created, last.created) == (("before_2026_04_05",), ("zlast_2026_04_05",))
    assert bad.table == "public.odds"
    assert re.search(message, bad.findings[0])
    assert bad.current_missing
    assert bad.created == ()
    healthy = [item for item in plan(engine) if not item.plan.findings]
    assert [item.table for item in healthy] == ["public.before", "public.zlast"]


def test_a_table_whose_partitions_cannot_be_made_stops_no_other(engine: Engine) -> None:
    for name in ("before", "odds", "zlast"):
        declare(engine, name)
        run(engine, f"DROP TABLE {name}_2026_04_05")
    run(engine, "UPDATE partition_config SET tablespace = 'nowhere' WHERE table_name = 'odds'")
    first, bad, last = ensure(engine).results
    assert (first.created, last.created) == (("before_2026_04_05",), ("zlast_2026_04_05",))
    assert bad.error is not None
    assert 'tablespace "nowhere" does not exist' in bad.error
    assert bad.current_missing


def test_after_the_first_failure_a_tables_other_windows_wait_for_the_next_run(engine: Engine) -> None:
    emptied(engine)
    run(engine, "UPDATE partition_config SET tablespace = 'nowhere'")
    with listening(engine) as sent:
        ensure(engine)
    assert len([s for s in sent.statements if s.startswith("CREATE")]) == 1


# -- races ---------------------------------------------------------------------------------------------

TODAY = "FOR VALUES FROM ('2026-04-04 11:00+00') TO ('2026-04-05 12:00+00')"
MINE = f"CREATE TABLE odds_2026_04_05 PARTITION OF odds {TODAY}"


@contextmanager
def meanwhile(engine: Engine, beginning: str, act: Callable[[], object]) -> Iterator[None]:
    """Do something from elsewhere just before the first statement that begins so is sent."""
    pending = [act]

    def listen(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if pending and statement.startswith(beginning):
            pending.pop()()

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", listen)
    assert not pending


# When a competitor may strike: before it is our turn, and after it (one who does not take turns).
WHEN = pytest.mark.parametrize("when", ["SET LOCAL", "CREATE TABLE"])


@pytest.fixture
def short_of_today(engine: Engine, database: Database) -> Iterator[Engine]:
    """An engine for the competitor, in a database where one window is missing."""
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    other = create_engine(database.url, poolclass=NullPool)
    yield other
    other.dispose()


@WHEN
@pytest.mark.parametrize("made", [MINE, MINE.replace("odds_2026_04_05", "by_hand")])
def test_a_race_lost_to_the_same_window_is_success(
    engine: Engine, short_of_today: Engine, when: str, made: str
) -> None:
    with meanwhile(engine, when, lambda: run(short_of_today, made)):
        (result,) = ensure(engine).results
    assert (result.created, result.error, result.current_missing) == ((), None, False)
    assert len(partitions(engine)) == 4
    assert scalar(engine, "SELECT count(*) FROM partition_runs") == 0


@WHEN
def test_a_race_lost_to_smaller_windows_that_cover_it_is_success(
    engine: Engine, short_of_today: Engine, when: str
) -> None:
    halves = (
        MINE.replace("12:00", "00:00"),
        MINE.replace("04-04 11:00", "04-05 00:00").replace("_05 ", "_05b "),
    )
    with meanwhile(engine, when, lambda: run(short_of_today, *halves)):
        (result,) = ensure(engine).results
    assert (result.created, result.error) == ((), None)


@WHEN
@pytest.mark.parametrize(
    ("made", "next_time"),
    [
        ("CREATE TABLE odds_2026_04_05 (LIKE odds)", ["odds_2026_04_05_2"]),
        (MINE.replace("12:00", "00:00"), ["odds_2026_04_05_000000z"]),
        (MINE.replace("odds_2026_04_05", "half").replace("12:00", "00:00"), ["odds_2026_04_05_000000z"]),
        (MINE.replace("2026-04-0", "2030-04-0"), ["odds_2026_04_05_2"]),
        ("CREATE TYPE odds_2026_04_05 AS ENUM ('a')", ["odds_2026_04_05_2"]),
    ],
    ids=["a plain table of that name", "half of it", "half, other name", "that name, other bounds", "a type"],
)
def test_a_race_lost_to_something_else_is_told_and_the_next_run_completes(
    engine: Engine, short_of_today: Engine, when: str, made: str, next_time: list[str]
) -> None:
    with meanwhile(engine, when, lambda: run(short_of_today, made)):
        (result,) = ensure(engine).results
    assert result.error is not None
    assert result.error.startswith("Making partition odds_2026_04_05 of public.odds failed: ")
    assert result.current_missing
    assert result.created == ()
    assert list(ensure(engine).results[0].created) == next_time
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-04 11:00+00'), ('2026-04-05 11:59:59+00')")


@pytest.mark.parametrize(
    "act",
    [
        "DROP TABLE odds",
        "ALTER TABLE odds RENAME TO gone; CREATE TABLE odds (LIKE gone) PARTITION BY RANGE (at)",
    ],
    ids=["dropped", "replaced"],
)
def test_a_table_that_went_meanwhile_is_told_and_nothing_is_left_behind(
    engine: Engine, short_of_today: Engine, act: str
) -> None:
    with meanwhile(engine, "SELECT pg_advisory", lambda: run(short_of_today, act)):
        (result,) = ensure(engine).results
    assert result.error is not None
    assert "dropped or replaced meanwhile" in result.error
    assert scalar(engine, "SELECT to_regclass('odds_2026_04_05')") is None


def test_a_competitor_who_has_not_committed_is_waited_for_and_not_for_ever(
    engine: Engine, short_of_today: Engine
) -> None:
    with short_of_today.connect() as competitor:
        competitor.execute(text("CREATE TABLE odds_2026_04_05 (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)"))
        competitor.execute(text(f"ALTER TABLE odds ATTACH PARTITION odds_2026_04_05 {TODAY}"))
        (result,) = ensure(engine, give_up_at=time.monotonic() + 0.3).results
        assert result.error is not None
        assert "ShareUpdateExclusiveLock on odds" in result.error
        competitor.commit()
    assert ensure(engine).results[0] == maintenance.TableResult("public.odds")


def test_a_window_that_is_there_is_not_waited_for(engine: Engine, short_of_today: Engine) -> None:
    """Others still stand before us in the queue of those who make partitions, though it is made."""
    oid = scalar(engine, "SELECT CAST('odds'::regclass AS oid)")
    queue = ddl.LockParent(oid).sql()
    with short_of_today.connect() as competitor:
        competitor.execute(text(queue))
        with meanwhile(engine, queue, lambda: run(short_of_today, MINE)):
            (result,) = ensure(engine, give_up_at=time.monotonic() + 0.3).results
    assert result == maintenance.TableResult("public.odds")


def test_a_competitor_who_has_stood_in_the_queue_is_none_in_the_way(
    engine: Engine, short_of_today: Engine
) -> None:
    """Its transaction began before its turn came; a migration's, which is in the way, goes on for longer."""
    oid = scalar(engine, "SELECT CAST('odds'::regclass AS oid)")
    with short_of_today.connect() as competitor, engine.connect() as other:
        competitor.execute(text("SELECT pg_sleep(3.1)"))
        competitor.execute(text(ddl.LockParent(oid).sql()))
        competitor.execute(text("LOCK TABLE ONLY odds IN SHARE UPDATE EXCLUSIVE MODE"))
        assert blockers(other, oid) == []
        competitor.execute(text("SELECT pg_sleep(2)"))
        assert [found.mode for found in blockers(other, oid)] == ["ShareUpdateExclusiveLock"]


def test_a_competitor_who_commits_in_time_costs_nothing(engine: Engine, short_of_today: Engine) -> None:
    with short_of_today.connect() as competitor:
        competitor.execute(text("CREATE TABLE odds_2026_04_05 (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)"))
        competitor.execute(text(f"ALTER TABLE odds ATTACH PARTITION odds_2026_04_05 {TODAY}"))
        # Our second try: the first ran into the competitor's locks.
        tries: list[str] = []

        def commit_at_the_second_try(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.startswith("SELECT pg_advisory"):
                tries.append(statement)
                if len(tries) == 2:
                    competitor.commit()

        event.listen(engine, "before_cursor_execute", commit_at_the_second_try)
        (result,) = ensure(engine).results
    assert result == maintenance.TableResult("public.odds")
    assert len(tries) == 2


def test_two_runs_at_once_take_turns(engine: Engine, short_of_today: Engine) -> None:
    reports: list[maintenance.Report] = []
    competing = meanwhile(engine, "SET LOCAL", lambda: reports.append(ensure(short_of_today)))
    with listening(engine) as sent, competing:
        reports.append(ensure(engine))
    assert not [s for s in sent.statements if s.startswith("CREATE")]  # it looked when its turn came
    assert [report.created for report in reports] == [1, 0]
    assert [result.error for report in reports for result in report.results] == [None, None]


def test_turns_are_taken_by_the_oid_not_by_the_name(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA racing")
    declare(engine)
    declare(engine, schema="racing")
    run(engine, "DROP TABLE odds_2026_04_05", "DROP TABLE racing.odds_2026_04_05")
    with engine.connect() as holder:
        (lock,) = [s for s in statements(plan(engine, tables=["racing.odds"])[0].sql()) if "advisory" in s]
        holder.execute(text(lock.removesuffix(";")))
        assert ensure(engine, tables=["public.odds"]).created == 1


# -- a connection that dies --------------------------------------------------------------------------------


@pytest.mark.parametrize("aside", [False, True], ids=["a connection", "a side connection"])
def test_what_is_opened_for_a_connection_that_died_is_at_no_autocommit_of_the_engines(
    engine: Engine, driver: str, database: Database, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creating, "AT_ONCE", 1)  # a message of several has its own BEGIN and COMMIT
    for name in ("a", "b"):
        declare(engine, name)
        run(engine, *(f"DROP TABLE {part}" for part in partitions(engine, name)))
    own = create_engine(database.driver_url(driver), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    died: list[int] = []
    levels: set[bool] = set()

    def kill(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if "CREATE TABLE" in statement:
            levels.add(in_autocommit(connection))
            if not died:
                died.append(backend_pid(connection))
                run(engine, f"SELECT pg_terminate_backend({died[0]}, 10000)")

    with side_connection(own) if aside else own.connect() as connection:
        event.listen(connection, "before_cursor_execute", kill)
        first, second = (maintenance.ensure if aside else maintenance.maintain)(connection).results
    assert first.error
    assert (second.error, len(second.created)) == (None, 4)
    assert levels == {False}


# -- killed at any moment ------------------------------------------------------------------------------


def killed_before(engine: Engine, number: int) -> str | None:
    """Run ensure, whose backend is ended before its n-th statement of making a partition; None: too few."""
    executioner = create_engine(engine.url, poolclass=NullPool)
    count, over = 0, False
    victim: list[str] = []

    def kill(connection: Connection, statement: str) -> None:
        pid = connection.connection.dbapi_connection.get_backend_pid()  # type: ignore[union-attr]
        with executioner.connect() as other:
            # Waits until it is gone.
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        victim.append(statement)

    def before(connection: Connection, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal count, over
        if statement.startswith("SET LOCAL lock_timeout = '2000ms'") and not count:
            count = 1
        if count and not over and not victim:
            if count == number:
                kill(connection, statement)
            count += 1

    def commit(connection: Connection) -> None:
        nonlocal over
        if count == number and not over and not victim:
            kill(connection, "COMMIT")
        over = count > 0

    target = create_engine(engine.url, poolclass=NullPool)
    event.listen(target, "before_cursor_execute", before)
    event.listen(target, "commit", commit)
    report = ensure(target)
    if victim:
        (result,) = report.results
        assert result.error is not None
        assert result.created == ()
        assert result.current_missing
    return victim[0] if victim else None


@pytest.fixture(scope="module")
def laden(module_database: Database, databases: Databases) -> Iterator[Engine]:
    """A table whose partitions take every kind of statement there is."""
    engine = create_engine(module_database.url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        owner = Roles(databases, module_database).create("owner").username
        declare(engine, "odds", policy(premake=0, lookback=0))
        run(
            engine,
            "ALTER TABLE odds REPLICA IDENTITY USING INDEX odds_pkey",
            "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE odds ALTER COLUMN note SET STATISTICS 7",
            f"ALTER TABLE odds OWNER TO {owner}",
        )
    yield engine
    engine.dispose()


# SET, turn, SET, look, CREATE, COMMENT, RLS, STATISTICS, OWNER, ATTACH, replica identity; and COMMIT.
KILLS = (
    *("SET LOCAL", "SELECT pg_advisory_xact_lock", "\nSELECT ARRAY", "SET LOCAL", "CREATE TABLE", "COMMENT"),
    *("ALTER TABLE", "ALTER TABLE", "ALTER TABLE", "ALTER TABLE", "DO $", "COMMIT"),
)


@pytest.mark.parametrize(("number", "beginning"), list(enumerate(KILLS, start=1)))
def test_killed_before_any_statement_leaves_nothing_and_the_next_run_completes(
    laden: Engine, number: int, beginning: str
) -> None:
    run(laden, "DROP TABLE IF EXISTS odds_2026_04_05")
    before = catalog(laden)

    killed = killed_before(laden, number)

    assert killed is not None
    assert killed.startswith(beginning)
    assert catalog(laden) == before
    assert (
        scalar(laden, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND " + OF_THIS_DATABASE)
        == 0
    )
    assert ensure(laden).created == 1
    assert rows(
        laden,
        "SELECT relreplident, relrowsecurity, obj_description(oid, 'pg_class') FROM pg_class"
        " WHERE oid = 'odds_2026_04_05'::regclass",
    ) == [("i", True, "alembic_partitions: made by ensure")]


def test_the_kills_above_are_all_there_are(laden: Engine) -> None:
    run(laden, "DROP TABLE IF EXISTS odds_2026_04_05")
    assert killed_before(laden, len(KILLS) + 1) is None
    assert partitions(laden) == ["odds_2026_04_05"]


def test_killed_in_the_middle_of_one_table_the_others_are_still_made(engine: Engine) -> None:
    for name in ("odds", "other"):
        emptied(engine, name, rules=policy(premake=0, lookback=0))
    target = create_engine(engine.url, poolclass=NullPool)
    executioner = create_engine(engine.url, poolclass=NullPool)

    def kill_all_others() -> None:
        run(
            executioner,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state = 'idle in transaction'",
        )

    with meanwhile(target, "ALTER TABLE public.odds ATTACH", kill_all_others):
        odds, other = ensure(target).results
    assert odds.error is not None
    assert (other.created, other.error) == (("other_2026_04_05",), None)
    assert ensure(engine).results[0].created == ("odds_2026_04_05",)


KILL_NINE = """
import os, signal, sys
from sqlalchemy import create_engine, event
from alembic_partitions import maintenance
from alembic_partitions.executor import creating

engine = create_engine(sys.argv[1])
creating.AT_ONCE = 1

@event.listens_for(engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if " ATTACH " in statement:
        os.kill(os.getpid(), signal.SIGKILL)

with engine.connect() as connection:
    maintenance.ensure(connection)
"""


def test_kill_nine_between_attach_and_commit_heals(engine: Engine, database: Database) -> None:
    emptied(engine)
    before = catalog(engine)
    address = database.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", KILL_NINE, address], check=False, capture_output=True, text=True
    )
    assert done.returncode == -9, done.stderr
    assert ensure(engine).created == 4
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)), "TRUNCATE partition_runs")
    assert catalog(engine) == before


# -- what a run leaves in partition_runs ---------------------------------------------------------------


def test_a_run_that_made_something_is_written_down(database: Database, engine: Engine) -> None:
    emptied(engine)
    named = create_engine(database.url.update_query_dict({"application_name": "our provisioner"}))
    ensure(named)
    named.dispose()
    found = rows(
        engine, "SELECT action, run_by, application, created, detached, dropped, error FROM partition_runs"
    )
    assert found == [("ensure", "postgres", "our provisioner", 4, 0, 0, None)]
    assert scalar(
        engine, "SELECT started_at <= finished_at AND finished_at <= clock_timestamp() FROM partition_runs"
    )


def test_a_run_that_failed_is_written_down_with_what_it_made_elsewhere(engine: Engine) -> None:
    emptied(engine, "odds")
    emptied(engine, "other")
    run(engine, "UPDATE partition_config SET tablespace = 'nowhere' WHERE table_name = 'odds'")
    ensure(engine)
    ((created, error),) = rows(engine, "SELECT created, error FROM partition_runs")
    assert created == 4
    assert error.startswith("public.odds: Making partition odds_2026_04_05 of public.odds failed: ")
    assert "nowhere" in error


def test_a_run_that_failed_by_what_it_found_is_written_down(engine: Engine) -> None:
    declare(engine)
    run(engine, "ALTER TABLE odds RENAME TO evens")
    ensure(engine)
    assert rows(engine, "SELECT created, error FROM partition_runs") == [
        (0, "public.odds: public.odds: the table does not exist")
    ]


def test_a_configuration_that_is_not_where_it_was_told_to_be_is_an_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    with pytest.raises(ConfigurationError, match="is not in schema 'publik', but in 'public'"):
        ensure(engine, schema="publik")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "publik")
    with pytest.raises(ConfigurationError, match="ALEMBIC_PARTITIONS_SCHEMA"):
        ensure(engine)


def test_a_run_with_nothing_to_do_is_not_written_down(engine: Engine) -> None:
    declare(engine)
    ensure(engine)
    assert scalar(engine, "SELECT count(*) FROM partition_runs") == 0


def ddl_role(engine: Engine, roles: Roles, *grants: str) -> Engine:
    """Return an engine for a role that owns `odds` and may read the configuration."""
    address = roles.create("ddl")
    name = address.username
    run(
        engine,
        f"ALTER TABLE odds OWNER TO {name}",
        f"GRANT CREATE ON SCHEMA public TO {name}",
        f"GRANT SELECT ON partition_config TO {name}",
        *(grant.format(name) for grant in grants),
    )
    return create_engine(address, poolclass=NullPool)


def test_a_role_that_may_not_write_it_down_makes_partitions_all_the_same(
    engine: Engine, roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    emptied(engine)
    with caplog.at_level(logging.WARNING, "alembic_partitions"):
        report = ensure(ddl_role(engine, roles))
    assert report.created == 4
    assert report.results[0].error is None
    assert "could not be written to partition_runs: permission denied" in caplog.text


def test_a_role_that_may_write_it_down_is_named(
    engine: Engine, roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    emptied(engine)
    with caplog.at_level(logging.WARNING, "alembic_partitions"):
        ensure(ddl_role(engine, roles, "GRANT INSERT ON partition_runs TO {0}"))
    assert caplog.text == ""
    assert str(scalar(engine, "SELECT run_by FROM partition_runs")).endswith("_ddl")


def test_a_role_without_ddl_rights_fails_for_its_table_and_says_why(engine: Engine, roles: Roles) -> None:
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    address = roles.create("app")
    run(engine, f"GRANT SELECT ON partition_config TO {address.username}")
    (result,) = ensure(create_engine(address, poolclass=NullPool)).results
    assert result.error is not None
    assert "permission denied" in result.error
    assert "open sesame" not in result.error
    assert result.current_missing


def test_a_role_that_may_not_read_the_configuration_is_told_by_the_database(
    engine: Engine, roles: Roles
) -> None:
    declare(engine)
    with pytest.raises(DBAPIError, match="permission denied for table partition_config"):
        ensure(create_engine(roles.create("stranger"), poolclass=NullPool))


# -- a standby -----------------------------------------------------------------------------------------


def test_a_standby_reports_that_it_is_one_and_is_left_alone(private_server: Server) -> None:
    engine = create_engine(private_server.url, poolclass=NullPool)
    declare(engine)
    run(engine, "DROP TABLE odds_2026_04_05")
    private_server.restart(standby=True)
    engine = create_engine(private_server.url, poolclass=NullPool)
    with listening(engine) as sent:
        assert ensure(engine) == maintenance.Report(in_recovery=True)
    assert sent.writes() == []
    assert [step.name for step in plan(engine)[0].plan.steps] == ["odds_2026_04_05"]
    private_server.restart()
    assert ensure(create_engine(private_server.url, poolclass=NullPool)).created == 1


def test_a_server_that_dies_at_a_commit_heals(private_server: Server) -> None:
    engine = create_engine(private_server.url, poolclass=NullPool)
    emptied(engine)
    dead: list[bool] = []

    def power_cut(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if " ATTACH " in statement and not dead:
            dead.append(True)
            private_server.kill()

    event.listen(engine, "before_cursor_execute", power_cut)
    (result,) = ensure(engine).results
    assert dead
    assert result.error is not None
    private_server.start()
    # Our servers do not wait for their log, so what was committed in that very moment may be gone.
    assert len(result.created) <= 1
    again = create_engine(private_server.url, poolclass=NullPool)
    assert 4 - len(result.created) <= ensure(again).created <= 4
    assert len(partitions(again)) == 4


# -- in between ----------------------------------------------------------------------------------------


def test_rows_go_where_the_local_day_says_on_the_long_and_the_short_day(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2026-09-27T00:37:11Z")
    ensure(engine)
    for first in (NOW - timedelta(days=1), NOW + timedelta(days=175)):
        run(
            engine,
            f"INSERT INTO odds (at) SELECT '{first.isoformat()}'::timestamptz + n * interval '30 minutes'"
            " FROM generate_series(0, 95) n",
        )
    wrong = rows(
        engine,
        "SELECT at, tableoid::regclass FROM odds WHERE tableoid::regclass::text <>"
        " to_char(at AT TIME ZONE 'Pacific/Auckland', '\"odds\"_YYYY_MM_DD')",
    )
    assert wrong == []
    assert scalar(engine, "SELECT count(*) FROM odds") == 192
