"""Repair as a whole: a range filled, one bad table stopping no other, and a test row as proof."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import maintenance
from alembic_partitions.errors import NotManagedError, RepairRangeError, RunUnderWay
from alembic_partitions.executor import creating
from alembic_partitions.locks import one_run
from alembic_partitions.maintenance import repairing
from tests.databases import Database, Roles
from tests.postgres import Server
from tests.tables import NOW, columns, declare, partitions, policy, rows, run, scalar
from tests.unit.test_cli import complaint
from tests.unit.test_cli import run as call

HORIZON = [f"odds_2026_04_0{n}" for n in (4, 5, 6, 7)]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


def repair(engine: Engine, **kw: Any) -> maintenance.Report:
    with engine.connect() as connection:
        return maintenance.repair(connection, **kw)


def alone(engine: Engine, **kw: Any) -> maintenance.TableResult:
    (result,) = repair(engine, **kw).results
    return result


def emptied(engine: Engine, name: str = "odds", **kw: Any) -> None:
    declare(engine, name, **kw)
    run(engine, *(f"DROP TABLE {part}" for part in partitions(engine, name)))


# -- gaps ------------------------------------------------------------------------------------------------


def test_a_range_is_filled_both_dates_included(engine: Engine) -> None:
    emptied(engine)
    result = alone(engine, start="2025-10-01", stop="2025-11-30")
    assert result.error is None
    assert result.created[0] == "odds_2026_04_05", "the present comes first"
    made = partitions(engine)
    assert len(made) == 61 + 4
    assert (made[0], made[60]) == ("odds_2025_10_01", "odds_2025_11_30")
    assert alone(engine, start="2025-10-01", stop="2025-11-30").created == ()


def test_days_reach_both_ways_and_each_partition_is_committed_by_itself(engine: Engine) -> None:
    emptied(engine)
    result = alone(engine, days=30)
    assert len(result.created) == 61
    transactions = rows(
        engine, "SELECT DISTINCT xmin FROM pg_class WHERE relname = ANY (:made)", made=[*result.created]
    )
    assert len(transactions) == 61
    marks = rows(
        engine,
        "SELECT DISTINCT obj_description(oid, 'pg_class') FROM pg_class WHERE relname LIKE 'odds_2026%'"
        " AND relkind = 'r'",
    )
    assert marks == [("alembic_partitions: made by repair",)]


def test_without_a_range_the_horizon_is_brought_back(engine: Engine) -> None:
    emptied(engine)
    assert sorted(alone(engine).created) == HORIZON


def test_a_wrong_range_changes_nothing_at_all(engine: Engine) -> None:
    emptied(engine)
    emptied(engine, "hours", rules=policy(interval="hour"))
    # Fine for days; too many hours.
    with pytest.raises(RepairRangeError, match="more than 10000"):
        repair(engine, start="2024-01-01", stop="2026-04-01")
    with pytest.raises(RepairRangeError, match="Swap them"):
        repair(engine, start="2025-11-30", stop="2025-10-01")
    with pytest.raises(NotManagedError, match="nowhere"):
        repair(engine, tables=["odds", "nowhere"])
    assert partitions(engine) == partitions(engine, "hours") == []


def test_past_windows_beyond_retention_are_made_and_told(engine: Engine) -> None:
    emptied(engine, rules=policy(retention="90 days"))
    result = alone(engine, start="2025-10-01", stop="2025-10-02")
    assert len(result.created) == 6
    (finding,) = [f for f in result.findings if "retention" in f]
    assert finding.startswith("public.odds_2025_10_01 to odds_2025_10_02: ")


def test_a_disabled_table_is_left_alone(engine: Engine) -> None:
    emptied(engine)
    run(engine, "UPDATE partition_config SET enabled = false")
    result = alone(engine, days=3)
    assert (result.created, result.proof, result.error) == ((), None, None)
    assert partitions(engine) == []


def test_one_bad_table_stops_no_other(engine: Engine) -> None:
    for name in ("a", "b", "c"):
        emptied(engine, name)
    run(engine, "ALTER TABLE b RENAME TO moved", "ALTER TABLE a RENAME note TO other")
    run(
        engine,
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF current_query() LIKE '%a_2026%' THEN RAISE 'no such luck'; END IF; END $$",
        "CREATE EVENT TRIGGER no ON ddl_command_end EXECUTE FUNCTION no()",
    )
    a, b, c = repair(engine, days=1).results
    assert a.error is not None
    assert "no such luck" in a.error
    assert b.current_missing
    assert (len(c.created), c.error) == (4, None)
    (action, error) = rows(engine, "SELECT action, error FROM partition_runs")[0]
    assert action == "repair"
    assert "public.a: " in error


def test_a_misaligned_partition_is_told_with_its_remedy(engine: Engine) -> None:
    emptied(engine)
    run(
        engine,
        "CREATE TABLE odd PARTITION OF odds"
        " FOR VALUES FROM ('2026-03-20 00:00+00') TO ('2026-03-20 12:00+00')",
    )
    result = alone(engine, start="2026-03-19", stop="2026-03-22")
    (finding,) = [f for f in result.findings if f.startswith("public.odd ")]
    assert "DETACH it, repair the range, and INSERT its rows into the table again" in finding
    assert result.error is None
    # And that is what helps.
    run(
        engine,
        "INSERT INTO odds (at) VALUES ('2026-03-20 01:37:11+00')",
        "ALTER TABLE odds DETACH PARTITION odd",
    )
    assert alone(engine, start="2026-03-19", stop="2026-03-22").error is None
    run(engine, "INSERT INTO odds OVERRIDING SYSTEM VALUE SELECT * FROM odd", "DROP TABLE odd")
    assert not [f for f in alone(engine, start="2026-03-19", stop="2026-03-22").findings if "odd " in f]


def test_a_run_is_written_down(engine: Engine) -> None:
    emptied(engine)
    alone(engine, days=1)
    ((action, created, details),) = rows(engine, "SELECT action, created, details FROM partition_runs")
    assert (action, created) == ("repair", 4)
    assert details["public.odds"]["proof"].count(" goes to ") == 3


def test_one_run_at_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied(engine)
    monkeypatch.setattr(repairing, "one_run", lambda engine, schema: one_run(engine, schema, patience=0.2))
    with one_run(engine, "public"), pytest.raises(RunUnderWay):
        repair(engine)
    assert partitions(engine) == []


def test_a_standby_is_reported(private_server: Server) -> None:
    engine = create_engine(private_server.url, poolclass=NullPool)
    declare(engine)
    private_server.restart(standby=True)
    report = repair(create_engine(private_server.url, poolclass=NullPool))
    assert report.in_recovery
    assert report.results == ()


def test_progress_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied(engine)
    monkeypatch.setattr(creating, "AT_ONCE", 3)
    told: list[tuple[str, str, int, int]] = []
    alone(engine, progress=lambda *some: told.append(some))
    assert told == [("public.odds", "windows", n, 4) for n in (3, 4)]


@pytest.mark.parametrize("batch", [10_000, 3], ids=["at once", "gathered"])
def test_each_driver_repairs_everything(
    database: Database, engine: Engine, any_driver: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")
    monkeypatch.setattr(repairing, "clock", lambda database_now: NOW)
    run(
        engine,
        "DROP TABLE odds_2026_04_06",
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at, note) SELECT timestamptz '2026-03-20 00:37:11+00' + i * interval '1 s',"
        " '100%' FROM generate_series(1, 10) i",
        "INSERT INTO odds (at) VALUES ('-infinity')",
        "ALTER TABLE ONLY odds ALTER note SET STATISTICS 500",
        "CREATE INDEX by_note ON ONLY odds (note) WHERE note LIKE '100%'",
        "DROP TABLE IF EXISTS nothing",
    )
    url = database.driver_url(any_driver)
    if any_driver == "asyncpg":

        async def by_asyncpg() -> maintenance.Report:
            other = create_async_engine(url, poolclass=NullPool)
            async with other.connect() as connection:
                return await connection.run_sync(lambda sync: maintenance.repair(sync, days=3, batch=batch))

        (result,) = asyncio.run(by_asyncpg()).results
    else:
        result = alone(create_engine(url, poolclass=NullPool), days=3, batch=batch)
    assert result.error is None
    assert result.moved == 10
    assert set(result.created) == {
        "odds_2026_03_20",
        "odds_2026_04_02",
        "odds_2026_04_03",
        "odds_2026_04_06",
        "odds_2026_04_08",
    }
    assert len([m for m in result.mended if "statistics" in m]) == 3
    assert len([m for m in result.mended if "missing index" in m]) == 3
    assert result.proof is not None
    assert result.proof.count(" goes to public.odds_2026_04_0") == 3
    assert any(f.startswith("public.rest, 1 from -infinity to -infinity") for f in result.findings)
    assert scalar(engine, "SELECT count(*) FROM odds") == 11


# -- proof -----------------------------------------------------------------------------------------------


def test_the_test_row_copies_the_newest_and_leaves_nothing(engine: Engine) -> None:
    items = [
        *columns(),
        sa.Column("must", sa.Text, nullable=False),
        sa.Column("twice", sa.Integer, sa.Computed("length(must) * 2", persisted=True)),
    ]
    declare(engine, "odds", None, *items)
    run(
        engine,
        "CREATE TABLE log (what text)",
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO log VALUES (NEW.must); RETURN NEW; END $$",
        "CREATE TRIGGER tell AFTER INSERT ON odds FOR EACH ROW EXECUTE FUNCTION tell()",
        "INSERT INTO odds (at, must) VALUES ('2026-04-05 01:00:00+00', 'be')",
    )
    result = alone(engine, days=2)
    assert result.proof == (
        "2026-04-05 01:37:11+00:00 goes to public.odds_2026_04_05;"
        " 2026-04-02 11:00:00+00:00 goes to public.odds_2026_04_03;"
        " 2026-04-06 12:00:00+00:00 goes to public.odds_2026_04_07"
    )
    assert scalar(engine, "SELECT count(*) FROM odds") == 1
    assert scalar(engine, "SELECT count(*) FROM log") == 1


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (sa.Column("must", sa.Text, nullable=False), "its own not-null constraint"),
        (
            sa.Column("race", sa.Integer, sa.ForeignKey("races.id"), server_default="7"),
            "its own foreign key constraint odds_race_fkey",
        ),
        (
            sa.Column("race", sa.Integer, sa.CheckConstraint("race > 9", name="above"), server_default="7"),
            "its own check constraint above",
        ),
    ],
    ids=["not null", "foreign key", "check"],
)
def test_a_row_that_is_refused_in_its_partition_proves_the_path(
    engine: Engine, column: sa.Column[Any], told: str
) -> None:
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)")
    declare(engine, "odds", None, *columns(), column)
    result = alone(engine)
    assert result.error is None
    assert result.proof is not None
    assert "goes to public.odds_2026_04_05 (refused there by " in result.proof
    assert told in result.proof


def test_a_row_that_finds_no_partition_is_an_error(engine: Engine) -> None:
    """A trigger that sends rows elsewhere is not in any plan."""
    declare(engine)
    run(
        engine,
        "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO odds (at) VALUES (NEW.at + interval '9 years'); RETURN NEW; END $$",
        "CREATE TRIGGER away AFTER INSERT ON odds FOR EACH ROW EXECUTE FUNCTION away()",
    )
    result = alone(engine)
    assert result.error == "a test row was refused: 2026-04-05 01:37:11+00:00: no partition"


def test_a_row_that_lands_in_the_default_partition_is_told(engine: Engine) -> None:
    emptied(engine)
    run(
        engine,
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF tg_tag = 'ALTER TABLE' THEN RAISE 'no such luck'; END IF; END $$",
        "CREATE EVENT TRIGGER no ON ddl_command_end EXECUTE FUNCTION no()",
    )
    result = alone(engine)
    assert result.error is not None
    assert any("a test row went into the DEFAULT partition" in finding for finding in result.findings)


def test_a_role_that_may_not_insert_is_told_and_no_failure(
    database: Database, engine: Engine, roles: Roles
) -> None:
    declare(engine)
    url = roles.create("looker")
    run(engine, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {url.username}")
    result = alone(create_engine(url, poolclass=NullPool))
    assert result.error is None
    assert any("permission denied" in f and "could not be tried" in f for f in result.findings)


def test_a_proof_does_not_wait_for_ever(engine: Engine) -> None:
    declare(engine)
    with engine.begin() as other:
        other.execute(text("LOCK TABLE odds_2026_04_05"))
        result = alone(engine)
    assert any("could not be tried" in finding for finding in result.findings), result


# -- the command line ------------------------------------------------------------------------------------


def at(database: Database) -> tuple[str, str]:
    return "--url", database.url.render_as_string(hide_password=False)


def test_the_command_repairs_and_says_how_it_went(database: Database, engine: Engine) -> None:
    emptied(engine)
    done = call("repair", *at(database), "--from", "2026-03-01", "--to", "2026-03-31")
    assert (done.exit_code, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert "public.odds: 30 of 35 windows" in lines
    assert "public.odds: 35 made" in lines
    assert "  proof   2026-04-05 01:37:11+00:00 goes to public.odds_2026_04_05" in lines
    assert len(partitions(engine)) == 35


def test_the_command_prints_json(database: Database, engine: Engine) -> None:
    emptied(engine)
    done = call("repair", *at(database), "--json")
    (result,) = json.loads(done.stdout)
    assert done.exit_code == 0
    assert result["database"] == database.name
    assert result["table"] == "public.odds"
    assert sorted(result["created"]) == HORIZON
    assert {"moved", "mended", "proof", "findings", "error"} <= result.keys()


def test_a_dry_run_prints_the_sql_and_changes_nothing(database: Database, engine: Engine) -> None:
    emptied(engine)
    done = call("repair", *at(database), "--days", "1", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.count("ATTACH PARTITION") == 4
    assert "ROLLBACK;" in done.stdout
    assert partitions(engine) == []
    (plan,) = json.loads(call("repair", *at(database), "--dry-run", "--json").stdout)
    assert plan["sql"].count("ATTACH PARTITION") == 4
    # And what it prints is what runs.
    run(engine, *[line for line in done.stdout.split(";\n") if line.strip()])
    assert sorted(partitions(engine)) == HORIZON


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "2025-11-30", "--to", "2025-10-01"], "2025-11-30 is after 2025-10-01. Swap them."),
        (["--from", "the day before"], "Write dates as 2026-04-05"),
        (["--from", "1066-10-14"], "more than 10000 windows"),
        (["--days", "-3"], "--days"),
        (["--days", "3", "--to", "2026-04-04"], "two ranges"),
        (["--batch", "0"], "--batch"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_one_line(
    database: Database, engine: Engine, words: list[str], told: str
) -> None:
    emptied(engine)
    done = call("repair", *at(database), *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in complaint(done)
    assert partitions(engine) == []


def test_a_table_that_is_not_managed_is_one_line(database: Database, engine: Engine) -> None:
    declare(engine)
    done = call("repair", *at(database), "--table", "nowhere")
    assert done.exit_code == 1
    assert "nowhere" in complaint(done)


def test_a_table_that_failed_is_an_exit_code(database: Database, engine: Engine) -> None:
    declare(engine)
    run(engine, "ALTER TABLE odds RENAME TO gone")
    done = call("repair", *at(database))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "alembic-partitions: 1 of 1 tables failed: public.odds"


# -- a connection that dies --------------------------------------------------------------------------------


def test_a_connection_that_dies_while_partitions_are_compared_is_that_tables_error(engine: Engine) -> None:
    emptied(engine, "a")
    emptied(engine, "b")
    own = create_engine(engine.url, poolclass=NullPool)
    died: list[int] = []

    def kill(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("SAVEPOINT") and not died:
            died.append(connection.connection.dbapi_connection.get_backend_pid())  # type: ignore[union-attr]
            run(engine, f"SELECT pg_terminate_backend({died[0]}, 10000)")

    sa.event.listen(own, "after_cursor_execute", kill)
    first, second = repair(own).results
    assert died
    assert first.error
    assert (second.error, len(second.created)) == (None, 4)
