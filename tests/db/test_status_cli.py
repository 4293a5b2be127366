"""`status`, `check` and `history` on real databases: what they tell, to whom, and how they exit."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import NullPool

import alembic_partitions
from alembic_partitions import PartitionPolicy, cli, maintenance
from alembic_partitions.health import Level
from tests.databases import Database, Databases, Roles
from tests.postgres import Server
from tests.projects import Project
from tests.tables import declare, listening, partitions, policy, run, scalar

pytestmark = pytest.mark.versions

# 13:37:11 in Auckland, on the day of 25 hours.
NOW = "2026-04-05T13:37:11+12:00"


@pytest.fixture(autouse=True)
def _rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW)
    for name in ("DATABASE_URL", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@dataclass
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(verb: str, url: URL | None, *arguments: str) -> Told:
    """Run a command in this process."""
    given = ["--url", url.render_as_string(hide_password=False)] if url is not None else []
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main([verb, *given, *arguments])
    assert isinstance(ended.value.code, int)
    return Told(ended.value.code, out.getvalue(), err.getvalue())


def process(folder: Path, verb: str, url: URL, *arguments: str, **env: str) -> Told:
    """Run a command as an operator does."""
    address = url.render_as_string(hide_password=False)
    environment = {"ALEMBIC_PARTITIONS_NOW": NOW, **env}
    done = Project(folder).run(verb, "--url", address, *arguments, env=environment)
    assert "Traceback" not in done.err
    return Told(done.code, done.out, done.err)


def month(**fields: Any) -> PartitionPolicy:
    return policy(**{"premake": 30, "lookback": 9, **fields})


def keep(engine: Engine, name: str = "odds", rules: PartitionPolicy | None = None, **kw: Any) -> None:
    """Declare a table and bring it to its horizon, of which a migration makes but the beginning."""
    declare(engine, name, rules or month(), **kw)
    ensure(engine)


def ensure(engine: Engine) -> maintenance.Report:
    with engine.connect() as connection:
        return maintenance.ensure(connection)


def add_default(engine: Engine, *rows: str) -> None:
    run(engine, "CREATE TABLE odds_default PARTITION OF odds DEFAULT")
    for at in rows:
        run(engine, f"INSERT INTO odds (at) VALUES ('{at}')")


# -- check: exit codes are answers ---------------------------------------------------------------------


def test_the_exit_codes_of_check(engine: Engine, database: Database, tmp_path: Path) -> None:
    nothing = process(tmp_path, "check", database.url)
    assert (nothing.code, nothing.out) == (cli.CHECK_UNKNOWN, "UNKNOWN: no table is managed here\n")

    keep(engine, "odds")
    fine = process(tmp_path, "check", database.url)
    assert fine.code == cli.CHECK_OK == 0
    assert fine.out.splitlines() == [
        "OK: 1 ok; public.odds runs out in 30 days",
        "Rehearsing 2026-04-05 01:37:11 UTC (ALEMBIC_PARTITIONS_NOW).",
        "OK        public.odds  30 days left",
    ]
    assert fine.err == ""

    may = {"ALEMBIC_PARTITIONS_NOW": "2026-05-01T13:37:11+12:00"}
    soon = process(tmp_path, "check", database.url, **may)
    assert soon.code == cli.CHECK_WARNING == 1
    assert soon.out.startswith("WARNING: 1 warning; public.odds runs out in 4 days\n")
    calm = process(
        tmp_path,
        "check",
        database.url,
        "--warn-days",
        "3",
        ALEMBIC_PARTITIONS_NOW="2026-05-01T13:37:11+12:00",
    )
    assert calm.code == cli.CHECK_OK

    run(engine, "DROP TABLE odds_2026_04_06")
    bad = process(tmp_path, "check", database.url)
    assert bad.code == cli.CHECK_CRITICAL == 2
    assert bad.out.splitlines()[-1] == (
        "CRITICAL  public.odds  10 hours left"
        "  no partition for rows from 2026-04-06 00:00 Pacific/Auckland on"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nonsense"], "No such option"),
        (["--warn-days", "soon"], "not a valid float"),
        (["--table", "nobody"], "nobody has no row in partition_config"),
        (["--schema", "nowhere"], "is not in schema 'nowhere'"),
        (["-c", "no/such.ini"], "No 'script_location' key found"),
    ],
)
def test_whatever_goes_wrong_with_check_is_unknown(
    engine: Engine, database: Database, arguments: list[str], told: str
) -> None:
    declare(engine)
    url = None if "-c" in arguments else database.url
    found = call("check", url, *arguments)
    assert found.code == cli.CHECK_UNKNOWN == 3
    (line,) = found.err.splitlines()
    assert told in line
    assert found.out == ""


def test_check_without_a_server_or_a_readable_clock_or_a_right_is_unknown(
    engine: Engine, database: Database, roles: Roles, tmp_path: Path
) -> None:
    declare(engine)
    stranger = roles.create("stranger")
    for found, told in (
        (process(tmp_path, "check", database.url.set(port=1)), "refused"),
        (process(tmp_path, "check", database.url, ALEMBIC_PARTITIONS_NOW="noon"), "ALEMBIC_PARTITIONS_NOW"),
        (process(tmp_path, "check", stranger), "permission denied for table partition_config"),
        (process(tmp_path, "check", URL.create("sqlite")), "sqlite is not PostgreSQL"),
    ):
        assert found.code == cli.CHECK_UNKNOWN, found
        assert told in found.err
        assert "open sesame" not in found.err


def test_an_env_py_that_exits_by_itself_is_no_answer(database: Database, tmp_path: Path) -> None:
    project = Project.make(tmp_path, "generic", database.url)
    project.edit_env("from logging.config", "raise SystemExit(1)\nfrom logging.config")
    found = project.run("check")
    assert found.code == cli.CHECK_UNKNOWN
    assert "env.py ended the process with exit code 1" in found.complaint


def test_the_other_verbs_fail_as_usual(engine: Engine, database: Database) -> None:
    declare(engine)
    for verb in ("status", "history"):
        assert call(verb, database.url, "--nonsense").code == cli.EXIT_USAGE
        assert call(verb, database.url, "--table", "nobody").code == cli.EXIT_FAILED


def test_where_nothing_is_managed(database: Database) -> None:
    assert call("status", database.url) == Told(0, "", "No table is managed here.\n")
    assert call("history", database.url) == Told(0, "", "No run yet.\n")
    assert call("status", database.url, "--json").json == []
    told = call("check", database.url, "--json")
    assert (told.code, told.json["level"], told.json["tables"]) == (cli.CHECK_UNKNOWN, "UNKNOWN", [])


def test_a_disabled_table_is_ok_and_says_so(engine: Engine, database: Database) -> None:
    keep(engine, "odds")
    run(engine, "UPDATE partition_config SET enabled = false", "DROP TABLE odds_2026_04_05")
    found = call("check", database.url)
    assert found.code == cli.CHECK_OK
    assert found.out.splitlines()[-1] == "OK        public.odds  disabled"


def test_a_table_that_was_dropped_or_does_not_fit_is_critical(engine: Engine, database: Database) -> None:
    keep(engine, "odds")
    keep(engine, "results")
    run(
        engine,
        "DROP TABLE odds",
        "UPDATE partition_config SET partition_key = 'note' WHERE table_name = 'results'",
    )
    found = call("check", database.url)
    assert found.code == cli.CHECK_CRITICAL
    assert "public.odds     none left  the table does not exist" in found.out
    assert "the table does not fit its policy" in found.out
    assert call("status", database.url, "--partitions", "--rows").code == 0


def test_the_health_of_a_keeper_has_the_runway_too(engine: Engine) -> None:
    keep(engine)
    (table,) = alembic_partitions.keep(engine).health().tables
    assert (table.level, round(table.runway or 0)) == (Level.OK, 30)


# -- a DEFAULT partition -------------------------------------------------------------------------------


def test_rows_in_a_default_partition_are_a_warning_and_never_critical(
    engine: Engine, database: Database
) -> None:
    keep(engine, "odds")
    add_default(engine)
    assert call("check", database.url).code == cli.CHECK_OK
    assert "its DEFAULT partition is empty" in call("status", database.url).out
    run(engine, "INSERT INTO odds (at) VALUES ('2020-01-01')")
    found = call("check", database.url)
    assert found.code == cli.CHECK_WARNING
    assert "the DEFAULT partition holds rows" in found.out
    run(engine, "DROP TABLE odds_2026_04_05", "DROP TABLE odds_2026_04_06")
    found = call("check", database.url)
    assert found.code == cli.CHECK_WARNING
    assert "they strand in the DEFAULT partition" in found.out


def test_a_default_partition_that_is_partitioned_itself_is_asked_too(
    engine: Engine, database: Database
) -> None:
    keep(engine, "odds")
    run(
        engine,
        "CREATE TABLE odds_default PARTITION OF odds DEFAULT PARTITION BY HASH (id)",
        "CREATE TABLE odds_default_0 PARTITION OF odds_default FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    assert call("status", database.url, "--json").json[0]["stranded"] is False
    run(engine, "INSERT INTO odds (at) VALUES ('2020-01-01')")
    (told,) = call("status", database.url, "--json", "--partitions", "--rows").json
    assert told["stranded"] is True
    (default,) = [part for part in told["partitions"] if "default" in part["state"]]
    assert (default["rows"], default["oldest"]) == (1, "2020-01-01T03:30:00+00:00")
    assert default["bytes"] > 0


# -- who looks -----------------------------------------------------------------------------------------


def test_a_role_that_may_read_the_configuration_alone_sees_all_but_rows(
    engine: Engine, roles: Roles, any_driver: str
) -> None:
    keep(engine, "odds")
    add_default(engine, "2020-01-01")
    run(engine, f"GRANT SELECT ON partition_config TO {roles.create('watcher').username}")
    watcher = roles.database.url.set(
        username=f"{roles.database.name}_watcher", drivername=f"postgresql+{any_driver}"
    )

    found = call("status", watcher)
    assert found.code == 0
    assert "its DEFAULT partition may hold rows" in found.out
    assert found.err == "unknown: past runs: permission denied for table partition_runs\n"
    assert call("check", watcher).code == cli.CHECK_OK

    found = call("status", watcher, "--json", "--rows")
    (told,) = found.json
    assert told["stranded"] is None
    assert told["bytes"] > 0
    assert {part["rows"] for part in told["partitions"]} == {None}
    assert "unknown: rows of public.odds: permission denied for table odds" in found.err

    found = call("history", watcher)
    assert (found.code, found.out) == (0, "")
    assert found.err.splitlines()[-1] == "No run is known."
    assert call("history", watcher, "--json").json == [{"database": watcher.database, "runs": None}]


def test_rows_that_row_level_security_hides_are_unknown_not_fewer(engine: Engine, roles: Roles) -> None:
    keep(engine, "odds")
    reader = roles.create("reader")
    run(
        engine,
        "INSERT INTO odds (at) VALUES ('2026-04-05 02:00+00')",
        f"GRANT SELECT ON odds, partition_config, partition_runs TO {reader.username}",
    )
    (told,) = call("status", reader, "--json", "--rows").json
    assert sum(part["rows"] for part in told["partitions"]) == 1, "a right on the parent is enough"
    run(engine, "ALTER TABLE odds ENABLE ROW LEVEL SECURITY")
    found = call("status", reader, "--json", "--rows")
    assert {part["rows"] for part in found.json[0]["partitions"]} == {None}
    assert "row-level security" in found.err


def test_on_a_standby_it_is_looked_at_just_so(private_server: Server) -> None:
    keep(create_engine(private_server.url, poolclass=NullPool))
    private_server.restart(standby=True)
    found = call("status", private_server.url, "--rows")
    assert found.code == 0
    assert "This server is a standby." in found.out
    assert found.err == ""
    assert call("check", private_server.url).code == cli.CHECK_OK
    assert call("history", private_server.url).code == 0


def test_looking_writes_nothing_and_waits_for_nobody_long(engine: Engine) -> None:
    keep(engine, "odds")
    add_default(engine, "2020-01-01")
    with engine.connect() as connection, listening(engine) as sent:
        view = maintenance.look(connection, rows=True)
        assert not connection.in_transaction()
    reads = ("SELECT", "WITH session")
    assert all(statement.lstrip().startswith(reads) for statement in sent.statements), sent.statements
    assert len(sent.statements) <= 3 + 2 + 2 + 2 + 2 + 3
    assert view.unknown == ()

    with engine.begin() as holder, engine.connect() as connection:
        holder.exec_driver_sql("LOCK TABLE odds_2026_04_05 IN ACCESS EXCLUSIVE MODE")
        view = maintenance.look(connection)
    assert view.tables[0].bytes is None
    assert view.tables[0].plan.steps == ()
    assert view.unknown == ("sizes and rows: canceling statement due to lock timeout",)


def test_a_read_only_transaction_counts_the_rows(engine: Engine) -> None:
    """A function that a view or a default might call cannot write while we look."""
    keep(engine, "odds")
    with engine.connect() as connection:
        modes: list[str] = []

        def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if "tableoid" in statement:
                modes.append(str(conn.exec_driver_sql("SHOW transaction_read_only").scalar()))

        sa.event.listen(connection, "after_cursor_execute", note)
        maintenance.look(connection, rows=True)
    assert modes == ["on"]


# -- status --------------------------------------------------------------------------------------------


def test_piped_status_is_plain_and_a_hundred_columns_wide(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    keep(engine, "odds", month(retention="7 days"))
    keep(engine, "[red]r[/red]")
    run(engine, "DROP TABLE odds_2026_04_20")
    found = process(tmp_path, "status", database.url, PYTHONIOENCODING="utf-8")
    lines = found.out.splitlines()
    assert "\x1b" not in found.out
    assert lines[0] == "Rehearsing 2026-04-05 01:37:11 UTC (ALEMBIC_PARTITIONS_NOW)."
    assert lines[1].startswith("TABLE ")
    assert len(lines[1]) == 100
    assert "public.[red]r[/red]  ━" in found.out
    (odds,) = [line for line in lines if line.startswith("public.odds ")]
    assert odds.count("!") in {1, 2}
    assert "×" not in odds, "nothing lies wholly before the cutoff: lookback stops there"
    assert odds.index("◆") == lines[1].index("today") + 2
    assert "gap 2026-04-20 to 2026-04-21" in found.out

    narrow = process(tmp_path, "status", database.url, COLUMNS="80", PYTHONIOENCODING="ascii")
    assert narrow.out.isascii()
    assert len(narrow.out.splitlines()[1]) == 80


@pytest.mark.parametrize("no_color", [False, True])
def test_in_a_terminal_colours_help(
    engine: Engine, database: Database, tmp_path: Path, no_color: bool
) -> None:
    keep(engine, "odds")
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    address = database.url.render_as_string(hide_password=False)
    child = subprocess.Popen(
        [sys.executable, "-m", "alembic_partitions", "status", "--url", address],
        stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=env, cwd=tmp_path,
    )  # fmt: skip
    os.close(theirs)
    told = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux ends a terminal so
            break
        if not piece:
            break
        told += piece
    os.close(ours)
    assert child.wait() == 0
    assert b"public.odds" in told
    assert (b"\x1b[34m" in told) is not no_color


def test_what_retention_takes_next_is_told(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(engine, "odds")
    run(engine, "UPDATE partition_config SET retention = '3 days', on_expiry = 'drop'")
    assert "3 days, then drop: 6 due" in call("status", database.url).out
    (told,) = call("status", database.url, "--json").json
    assert told["due"] == [f"odds_2026_0{day}" for day in ("3_27", "3_28", "3_29", "3_30", "3_31", "4_01")]
    assert told["cutoff"] == "2026-04-02T00:37:11+00:00"
    run(engine, "COMMENT ON TABLE odds_2026_03_27 IS NULL")
    (told,) = call("status", database.url, "--json", "--partitions").json
    assert told["due"][0] == "odds_2026_03_28"
    assert told["partitions"][0]["state"] == ["expired", "by hand"]


def test_the_shape_of_status_as_json(engine: Engine, database: Database) -> None:
    declare(engine, "odds", policy(premake=2, lookback=1))
    run(
        engine,
        "INSERT INTO odds (at) SELECT '2026-04-05 01:00+00'::timestamptz + n * interval '1 minute'"
        " FROM generate_series(0, 9) n",
        "ANALYZE odds_2026_04_05",
        "DROP TABLE odds_2026_04_06",
    )
    (told,) = call("status", database.url, "--json", "--rows").json
    assert list(told) == [
        *("database", "table", "enabled", "level", "state", "reasons", "runway_days", "unlimited"),
        *(
            "covered_until",
            "gaps",
            "partition_count",
            "bytes",
            "estimated_rows",
            "stranded",
            "policy",
            "cutoff",
            "due",
        ),
        *("now", "rehearsed", "partitions"),
    ]
    assert told["database"] == database.name
    assert told["table"] == "public.odds"
    assert (told["level"], told["state"]) == ("CRITICAL", "CRITICAL")
    assert told["runway_days"] == pytest.approx(0.433, abs=0.001)
    assert told["unlimited"] is False
    assert told["covered_until"] == "2026-04-05T12:00:00+00:00"
    assert told["gaps"] == [["2026-04-05T12:00:00+00:00", "2026-04-06T12:00:00+00:00"]]
    assert told["partition_count"] == 3
    assert told["bytes"] == scalar(
        engine,
        "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'odds'::regclass",
    )
    assert told["estimated_rows"] is None, "two were never analyzed"
    assert told["stranded"] is False
    assert told["policy"] == policy(premake=2, lookback=1).to_dict()
    assert (told["cutoff"], told["due"]) == (None, [])
    assert (told["now"], told["rehearsed"]) == ("2026-04-05T01:37:11+00:00", True)
    past, today, ahead = told["partitions"]
    assert today == {
        "schema": "public",
        "name": "odds_2026_04_05",
        "from": "2026-04-04T11:00:00+00:00",
        "to": "2026-04-05T12:00:00+00:00",
        "bytes": today["bytes"],
        "estimated_rows": 10,
        "analyzed": today["analyzed"],
        "state": ["today"],
        "rows": 10,
        "oldest": "2026-04-05T01:00:00+00:00",
        "newest": "2026-04-05T01:09:00+00:00",
    }
    assert today["analyzed"] is not None
    assert (past["state"], past["rows"], past["oldest"]) == (["past"], 0, None)
    assert ahead["state"] == ["ahead"]


@pytest.mark.parametrize(
    ("key_type", "fields", "value", "told"),
    [
        (sa.Date(), {}, "2026-04-05", "2026-04-05"),
        (sa.DateTime(), {"column_timezone": "UTC"}, "2026-04-05 03:04:05", "2026-04-05T03:04:05"),
    ],
)
def test_other_keys_are_told_as_they_are(
    engine: Engine, database: Database, key_type: Any, fields: dict[str, Any], value: str, told: str
) -> None:
    declare(
        engine,
        "odds",
        policy(**fields),
        sa.Column("at", key_type, nullable=False),
        sa.PrimaryKeyConstraint("at"),
    )
    run(engine, f"INSERT INTO odds VALUES ('{value}')")
    (found,) = call("status", database.url, "--json", "--rows").json
    assert [(p["oldest"], p["newest"]) for p in found["partitions"] if p["rows"]] == [(told, told)]
    assert told[:10] in call("status", database.url, "--rows").out


def test_names_of_partitions_are_never_cut_in_pieces(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    declare(engine)
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-05 01:02:03+00')")
    lines = process(tmp_path, "status", database.url, "--rows", COLUMNS="60").out.splitlines()
    (today,) = [line for line in lines if line.startswith("odds_2026_04_05")]
    assert today.split("  ")[-3:] == ["2026-04-05 13:02:03", "2026-04-05 13:02:03", "today"]


def test_keys_beyond_the_calendar_end_nothing(engine: Engine, database: Database) -> None:
    declare(engine)
    run(
        engine,
        "CREATE TABLE far PARTITION OF odds FOR VALUES FROM ('2030-01-01') TO (MAXVALUE)",
        "INSERT INTO odds (at) VALUES ('infinity'), ('20000-01-01'), ('2031-01-01')",
    )
    (told,) = call("status", database.url, "--json", "--rows").json
    assert told["partitions"][-1]["rows"] == 3
    assert call("status", database.url, "--partitions", "--rows").code == 0


def test_only_some_tables(engine: Engine, database: Database) -> None:
    run(engine, "CREATE SCHEMA racing")
    for name, schema in (("odds", None), ("odds", "racing"), ("results", None)):
        keep(engine, name, schema=schema)
    assert [t["table"] for t in call("status", database.url, "--json", "--table", "odds").json] == [
        "public.odds",
        "racing.odds",
    ]
    some = call(
        "status", database.url, "--json", "--table", "results", "--table", "racing.odds", "--table", "odds"
    ).json
    assert [t["table"] for t in some] == ["public.results", "racing.odds", "public.odds"]
    assert len(call("check", database.url, "--table", "results", "--json").json["tables"]) == 1


def test_several_databases_are_told_apart(databases: Databases, database: Database, tmp_path: Path) -> None:
    other = databases.clone()
    project = Project.make(tmp_path, "multidb", database.url, other.url)
    for place in (database, other):
        engine = create_engine(place.url, poolclass=NullPool)
        keep(engine, "odds")
    run(engine, "DROP TABLE odds_2026_04_06")
    env = {"ALEMBIC_PARTITIONS_NOW": NOW}
    told = project.run("status", env=env).succeeded().out
    assert told.index(f"database {database.name}") < told.index(f"database {other.name}")
    found = project.run("check", env=env)
    assert found.code == cli.CHECK_CRITICAL
    assert f"CRITICAL  {other.name}: public.odds" in found.out
    assert f"OK        {database.name}: public.odds" in found.out
    assert len(json.loads(project.run("history", "--json", env=env).succeeded().out)) == 2
    databases.drop(other.name)


# -- history -------------------------------------------------------------------------------------------


def test_history_shows_runs_the_newest_first(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    declare(engine, "results", policy())
    run(engine, "DROP TABLE odds_2026_04_07")
    ensure(engine)
    run(
        engine,
        "DROP TABLE results_2026_04_07",
        "CREATE TABLE results_2026_04_08 (at int)",
        "INSERT INTO partition_runs (started_at, action, moved, error)"
        " VALUES (now() - interval '70 s', 'repair', 12, E'public.odds: no room\\nand no time')",
    )
    ensure(engine)

    (told,) = call("history", database.url, "--json").json
    last, repair, first = told["runs"]
    assert told["database"] == database.name
    assert list(last) == [
        *("id", "started_at", "finished_at", "action", "run_by", "application", "created", "detached"),
        *("archived", "dropped", "moved", "error", "details"),
    ]
    assert last["details"] == {"public.results": {"created": ["results_2026_04_07"]}}
    assert first["details"] == {"public.odds": {"created": ["odds_2026_04_07"]}}
    assert (repair["action"], repair["moved"]) == ("repair", 12)
    assert repair["error"] == "public.odds: no room\nand no time"

    text = call("history", database.url).out
    assert text.index("1 created") < text.index("12 rows moved") < text.rindex("1 created")
    assert "public.odds: no room" in text
    assert "and no time" in text
    assert "1 min" in text

    def ids(*arguments: str) -> list[int]:
        return [one["id"] for one in call("history", database.url, "--json", *arguments).json[0]["runs"]]

    assert ids("--failed") == [repair["id"]]
    assert ids("--limit", "1") == [last["id"]]
    assert ids("--table", "odds") == [repair["id"], first["id"]]
    assert ids("--table", "public.results") == [last["id"]]
    assert ids("--table", "results", "--table", "odds") == [last["id"], repair["id"], first["id"]]
    assert ids("--table", "odds", "--table", "public.odds", "--limit", "1") == [repair["id"]]


def test_a_failed_run_is_a_warning_until_one_of_its_kind_goes_well(
    engine: Engine, database: Database
) -> None:
    keep(engine, "odds")
    keep(engine, "results")

    def note(action: str, error: str | None, ago: str = "0 s") -> None:
        told = f"'{error}'" if error else "NULL"
        run(
            engine,
            "INSERT INTO partition_runs (started_at, action, error)"
            f" VALUES ('{NOW}'::timestamptz - interval '{ago}', '{action}', {told})",
        )

    note("maintain", "public.odds: no room")
    found = call("check", database.url)
    assert found.code == cli.CHECK_WARNING
    assert "WARNING   public.odds     30 days left  the last maintain failed: no room" in found.out
    assert "OK        public.results" in found.out
    note("ensure", None)
    assert call("check", database.url).code == cli.CHECK_WARNING, "another kind of run"
    note("maintain", None)
    assert call("check", database.url).code == cli.CHECK_OK

    note("maintain", "the disk is full")
    found = call("check", database.url)
    assert found.code == cli.CHECK_WARNING
    assert found.out.splitlines()[0].endswith("; the last maintain failed: the disk is full")
    assert call("check", database.url, "--table", "odds").code == cli.CHECK_OK
    note("maintain", "the disk is full", "8 days")
    assert call("check", database.url).code == cli.CHECK_OK, "nobody runs it any more"

    # ensure that finds nothing to do is not written down.
    note("ensure", "public.odds: no room")
    assert call("check", database.url).code == cli.CHECK_OK
    run(engine, f"DROP TABLE {partitions(engine)[-1]}")
    assert call("check", database.url).code == cli.CHECK_WARNING
