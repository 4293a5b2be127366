"""A keeper's health: one cheap read, and never a change."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError

import alembic_partitions
from alembic_partitions import PartitionPending, keeper, maintenance, sessions
from alembic_partitions.health import State
from alembic_partitions.standing import survey
from tests.databases import Database
from tests.tables import declare, policy, run


def test_health_tells_the_last_run_and_what_retention_takes(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=10, lookback=4))
    kept = alembic_partitions.keep(engine)
    kept.maintain()
    run(engine, "UPDATE partition_config SET retention = '2 days'")
    found = kept.health()
    (table,) = found.tables
    assert (found.state, found.status, table.state) == (State.CLEANUP_NEEDED, "ok", State.CLEANUP_NEEDED)
    assert table.due
    assert table.partitions == 15
    assert found.last_run is not None
    assert found.last_run.action == "maintain"
    assert found.now is not None
    run(engine, f"COMMENT ON TABLE {table.due[0]} IS NULL")
    assert table.due[0] not in kept.health().tables[0].due, "made by hand: retention leaves it alone"


def test_health_changes_nothing_and_asks_as_little_for_a_long_history(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=3))
    declare(engine, "results", policy(premake=40))
    kept = alembic_partitions.keep(engine)
    kept.ensure()
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        kept.health()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(sent) <= 16, "as many with a thousand tables"
    assert sent
    words = {s.split()[0].upper() for s in sent}
    assert words <= {"SELECT", "SET", "SHOW", "WITH"}, words


def test_inserts_that_found_no_partition_are_counted(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=1))
    kept = alembic_partitions.keep(engine)
    kept.ensure()
    assert kept.health().no_partition_errors == {}
    far = datetime.now(timezone.utc) + timedelta(days=20)
    with pytest.raises(PartitionPending), engine.begin() as connection:
        connection.execute(text("INSERT INTO odds (at) SELECT CAST(:at AS timestamptz)"), {"at": far})
    assert kept.health().no_partition_errors == {"public.odds": 1}
    run(engine, "ALTER TABLE odds ADD CONSTRAINT short CHECK (length(note) < 3)")
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text("INSERT INTO odds (at, note) VALUES (now(), 'too long')"))
    assert kept.health().no_partition_errors == {"public.odds": 1}, "another check is none"


def test_a_database_that_went_away_is_told_not_raised(engine: Engine, database: Database) -> None:
    declare(engine, "odds", policy())
    gone = create_engine(database.url.set(port=1))
    found = alembic_partitions.keep(gone).health()
    assert (found.ok, found.state) == (False, State.CRITICAL)
    assert found.error
    assert "password" not in found.error


def test_health_of_some_tables_does_not_judge_the_others(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=10))
    declare(engine, "results", policy(premake=10))
    run(
        engine,
        "DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits"
        " WHERE inhparent = 'results'::regclass LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$",
    )
    with sessions.side_connection(engine) as side:
        maintenance.ensure(side, tables=["odds"])
        assert survey(side, tables=["odds"]).state is State.HEALTHY
        assert survey(side).state is State.CRITICAL


def test_what_goes_on_going_wrong_is_not_logged_with_each_insert(
    engine: Engine, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    odds = declare(engine, "odds", policy(premake=1))
    nobody = database.url.set(username="nobody_of_that_name", password="tell-nobody")
    alembic_partitions.keep(engine, ddl_url=nobody)

    def insert() -> int:
        far = datetime.now(timezone.utc) + timedelta(days=20)
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(odds.insert(), {"at": far})
        return caplog.text.count("partitions are not kept")

    assert [insert(), insert(), insert()] == [1, 1, 1]
    monkeypatch.setattr(keeper, "_REPEAT", 0.0)
    assert insert() > 1, "after a while it is told again"
    assert "tell-nobody" not in caplog.text
