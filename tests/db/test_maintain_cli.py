"""`alembic-partitions maintain` and `restore` from a terminal: what is printed where, and how they exit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine

from alembic_partitions import cli, keep
from tests.clock import Clock
from tests.databases import Database
from tests.db.test_retention import KEPT, PAST, history, keeping
from tests.tables import NOW, partitions, policy, rows, run
from tests.terminal import caller


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


@pytest.fixture
def call(database: Database) -> Any:
    return caller(database)


def test_maintain_tells_each_step_and_sums_up_on_stderr(engine: Engine, call: Any) -> None:
    history(engine)
    done = call("maintain")
    assert (done.code, done.out) == (cli.EXIT_OK, "")
    lines = done.err.splitlines()
    assert f"public.odds: detached {PAST[0]}" in lines
    assert lines[-1] == "public.odds: 0 made; 3 detached; 4 analyzed; ready"
    assert partitions(engine) == KEPT


def test_a_dry_run_prints_sql_alone_and_changes_nothing(engine: Engine, call: Any) -> None:
    history(engine)
    done = call("maintain", "--dry-run")
    assert done.code == cli.EXIT_OK
    assert f"ALTER TABLE public.odds DETACH PARTITION public.{PAST[0]} CONCURRENTLY;" in done.out
    assert "-- locks: " in done.out
    assert done.out.startswith("\\set ON_ERROR_STOP on\n"), "each relies on the check before it"
    assert partitions(engine) == PAST + KEPT
    assert rows(engine, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'") == [(0,)]


def test_a_dry_run_rehearses_another_day(
    engine: Engine, call: Any, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    history(engine)
    clock.monkeypatch.undo()
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2026-04-06T13:37:11+12:00")
    done = call("maintain", "--dry-run")
    assert done.out.count(" DETACH PARTITION ") == 4, "a day later one more is expired"
    done = call("maintain")
    assert done.code == cli.EXIT_FAILED
    assert "unset ALEMBIC_PARTITIONS_NOW, or use --dry-run" in done.err
    assert set(PAST + KEPT) <= set(partitions(engine))


def test_json_is_a_list_of_tables(engine: Engine, call: Any, database: Database) -> None:
    history(engine)
    (told,) = json.loads(call("maintain", "--json", "--no-analyze").out)
    assert (told["database"], told["table"], told["detached"]) == (database.name, "public.odds", PAST)
    assert set(told) == {
        "database", "table", "created", "detached", "archived", "dropped", "restored", "moved", "mended",
        "tended", "proof", "current_missing", "horizon_short", "error", "findings",
    }  # fmt: skip
    (script,) = json.loads(call("restore", "--dry-run", "--json").out)
    assert set(script) == {"database", "table", "sql"}


def test_retention_days_for_one_table(engine: Engine, call: Any) -> None:
    history(engine, rules=policy())
    history(engine, "others", policy())
    done = call("maintain", "--retention-days", "3")
    assert done.code == cli.EXIT_FAILED
    assert "Name the tables that are meant: --table" in done.err
    assert partitions(engine) == PAST + KEPT
    assert call("maintain", "--retention-days", "3", "--table", "odds").code == cli.EXIT_OK
    assert partitions(engine) == KEPT
    assert len(partitions(engine, "others")) == 9


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["maintain", "--retention-days", "0"], cli.EXIT_USAGE, "--retention-days"),
        (["maintain", "--retention-days", "-5"], cli.EXIT_USAGE, "--retention-days"),
        (["maintain", "--table", "nowhere"], cli.EXIT_FAILED, "nowhere has no row in partition_config"),
        (["maintain", "--vacuum", "nothing"], cli.EXIT_FAILED, "nothing is no partition of a table"),
        (["restore"], cli.EXIT_USAGE, "name the partitions, or say --all"),
        (["restore", "x", "--all"], cli.EXIT_USAGE, "not both"),
        (["restore", "odds_2019"], cli.EXIT_FAILED, "odds_2019 is no partition that has been detached"),
    ],
)
def test_a_mistake_is_one_line(engine: Engine, call: Any, arguments: list[str], code: int, told: str) -> None:
    history(engine)
    done = call(*arguments)
    assert done.code == code
    assert told in done.err
    assert len(done.err.splitlines()) == 1
    assert partitions(engine) == PAST + KEPT


def test_one_bad_table_is_told_and_fails_the_run(engine: Engine, call: Any) -> None:
    history(engine, "a")
    history(engine, "b", keeping(on_expiry="archive"))
    done = call("maintain")
    assert done.code == cli.EXIT_FAILED
    assert done.err.splitlines()[-1] == "alembic-partitions: 1 of 2 tables failed: public.b"
    assert "neither archive_schema nor a folder (--archive-to" in done.err
    assert len(partitions(engine, "a")) == 6


def test_archive_to_a_folder_and_back(engine: Engine, call: Any, tmp_path: Any) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    done = call("maintain", "--archive-to", str(tmp_path))
    assert done.code == cli.EXIT_OK
    assert f"public.odds: exported 3 rows of {PAST[0]} to {tmp_path}/" in done.err
    done = call("restore", PAST[0])
    assert done.err == "public.odds: 0 made; 1 restored; ready\n"
    assert call("restore", "--all").code == cli.EXIT_OK
    assert partitions(engine) == PAST + KEPT
    assert "2 restored" in call("history").out
    assert call("restore", "--all").err == "Nothing was detached.\n"


def test_nothing_managed_is_said(call: Any) -> None:
    done = call("maintain")
    assert (done.code, done.err) == (cli.EXIT_OK, "No table is managed here.\n")


def test_no_password_in_what_is_printed(engine: Engine, call: Any, database: Database) -> None:
    history(engine)
    url = database.url.set(drivername="postgresql", password="tell-nobody", port=1)
    done = call("maintain", url=url.render_as_string(hide_password=False))
    assert done.code == cli.EXIT_FAILED
    assert "tell-nobody" not in done.err + done.out


# From an application.


def test_a_keeper_maintains_and_then_knows_what_is_left(database: Database, engine: Engine) -> None:
    history(engine)
    keeper = keep(engine)
    assert keeper.maintain(analyze=False).count("detached") == 3
    run(engine, "UPDATE partition_config SET retention = '1 hour' WHERE false")
    assert partitions(engine) == KEPT
    assert keeper.health().error is None


def test_an_async_keeper_maintains(database: Database, engine: Engine) -> None:
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    history(engine)

    async def go() -> int:
        own = create_async_engine(database.driver_url("asyncpg"))
        keeper = keep(own)
        report = await keeper.maintain(retention="3 days")
        await own.dispose()
        return report.count("detached")

    assert asyncio.run(go()) == 3
