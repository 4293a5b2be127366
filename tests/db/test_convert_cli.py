"""`alembic-partitions convert` and `unpartition` from a terminal, and in a project's migration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from alembic_partitions import cli
from tests.clock import Clock
from tests.databases import Database
from tests.db.test_convert import FIRST, LOCK, PLAIN, UNTIL, Cut, meanwhile, to_partitioned
from tests.projects import Project
from tests.tables import NOW, partitions, run, scalar
from tests.terminal import caller

TABLE = ("--table", "odds")
POLICY = ("--key", "at", "--timezone", "Pacific/Auckland", "--premake", "2")


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch).set(NOW)


@pytest.fixture
def plain(engine: Engine) -> Engine:
    run(engine, *PLAIN)
    return engine


@pytest.fixture
def call(database: Database) -> Any:
    return caller(database)


NOTE = "the primary key (id) becomes (id, at): PostgreSQL no longer keeps (id) unique over all partitions"


def test_each_step_is_told_and_what_to_know_line_by_line(plain: Engine, call: Any) -> None:
    done = call("convert", *TABLE, *POLICY)
    assert (done.code, done.out) == (cli.EXIT_OK, "")
    lines = done.err.splitlines()
    assert lines[:5] == [
        "a unique index for the primary key (id, at) to be",
        f"a CHECK that keeps rows from {UNTIL}:00 on out of public.odds; rows there are not read",
        "the CHECK is proven: public.odds is read through once",
        "the swap: public.odds becomes partitioned",
        "windows up to the horizon",
    ]
    assert lines[5:] == [
        "public.odds: partitioned; 1 partitions made",
        f"  note  {NOTE}",
        f"  note  {FIRST} holds all the rows; `alembic-partitions split` divides it into windows",
    ]
    done = call("unpartition", "--table", "public.odds")
    assert (done.code, done.out) == (cli.EXIT_OK, "")
    assert done.err.splitlines()[-1] == "public.odds: a plain table"
    assert not partitions(plain)


def test_a_dry_run_is_a_script_for_psql(plain: Engine, call: Any) -> None:
    done = call("convert", *TABLE, *POLICY, "--dry-run")
    assert done.code == cli.EXIT_OK
    assert done.out.startswith("\\set ON_ERROR_STOP on\n-- the primary key (id) becomes")
    assert (
        "-- locks: ACCESS EXCLUSIVE on public.odds, until the end of this transaction\nLOCK TABLE" in done.out
    )
    assert not partitions(plain)
    (told,) = json.loads(call("convert", *TABLE, *POLICY, "--dry-run", "--json").out)
    assert told["table"] == "public.odds"
    call("convert", *TABLE, *POLICY)
    done = call("convert", *TABLE, *POLICY, "--dry-run")
    assert (done.out, done.err) == ("", "1 table, partitioned already.\n")
    assert "DETACH PARTITION" in call("unpartition", *TABLE, "--dry-run").out


def test_what_is_given_up_is_told(plain: Engine, call: Any) -> None:
    def cut() -> None:
        raise Cut

    with pytest.raises(Cut), meanwhile(plain, LOCK, cut):
        to_partitioned(plain)
    assert call("convert", *TABLE, "--abort").err.splitlines() == [
        "drop the CHECK alembic_partitions_until",
        "drop the unique index odds_pkey_with_at",
    ]
    assert call("convert", *TABLE, "--abort").err == "Nothing of a conversion was left.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((*TABLE,), cli.EXIT_USAGE, "Missing option '--key'"),
        (("--key", "at"), cli.EXIT_USAGE, "Missing option '--table'"),
        ((*TABLE, "--key", "at", "--interval", "fortnight"), cli.EXIT_USAGE, "fortnight"),
        ((*TABLE, "--key", "at", "--timezone", "Mars"), cli.EXIT_FAILED, "field 'timezone'"),
        ((*TABLE, "--key", "note"), cli.EXIT_FAILED, "is of type text"),
        (("--table", "a.b", "--key", "at"), cli.EXIT_FAILED, "There is no table a.b"),
    ],
)
def test_what_is_wrong_is_one_line(
    plain: Engine,
    call: Any,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    done = call("convert", *arguments)
    assert done.code == code
    assert told in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.processes
def test_under_the_migration_lock_and_back(tmp_path: Path, engine: Engine, database: Database) -> None:
    project = Project.make(tmp_path, "generic", database.url)
    project.add('op.execute("CREATE TABLE odds (id int PRIMARY KEY, at timestamptz NOT NULL)")')
    project.add(
        'op.convert_to_partitioned("odds", PartitionPolicy("at"), existing_primary_key=["id"])',
        'op.unpartition_table("odds", primary_key=["id"])',
    )
    project.add('op.execute("INSERT INTO odds VALUES (1, now())")', 'op.execute("DELETE FROM odds")')
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, "SELECT count(*) FROM odds") == 1
    assert len(partitions(engine)) > 20, "up to the horizon"
    project.run("downgrade", "-2").succeeded()
    assert scalar(engine, "SELECT relkind::text FROM pg_class WHERE relname = 'odds'") == "r"
