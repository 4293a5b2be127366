"""The acceptance list of the stream recorder, end to end on its own example (examples/ladder_levels).

Recorders, scripts and commands are real processes, with real roles; psql comes with the embedded server.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from alembic import command
from sqlalchemy import Engine
from sqlalchemy.exc import ProgrammingError

from tests.databases import Database, Databases
from tests.tables import rows, run, scalar

from .exchange import (
    EVENING,
    EXAMPLES,
    HERE,
    TABLE,
    Ended,
    Exchange,
    Served,
    alembic,
    ended,
    messages,
    migrate,
    names,
    prepare,
    serving,
)

sys.path.insert(0, str(EXAMPLES))

from ladder_levels import demo, feed, fix, recorder, service
from ladder_levels.settings import Settings, SettingsError

#: Beside the checkout, not in it: without it a made-up stream does.
RECORDING = EXAMPLES.parents[1] / "shared" / "data" / "betfair" / "BASIC-1.132153978"
PARTITION_ROLE = ("POSTGRES_PARTITION_USER", "POSTGRES_PARTITION_PASSWORD")


@pytest.fixture
def fresh(databases: Databases, database: Database, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    return prepare(databases, database, monkeypatch)


@pytest.fixture
def exchange(fresh: Exchange) -> Exchange:
    return migrate(fresh)


# -- by UTC day, 30 days ahead, in its own schema --------------------------------------------------------


BOUNDS = r"""
    SELECT match[1]::timestamptz AT TIME ZONE 'UTC', match[2]::timestamptz AT TIME ZONE 'UTC'
    FROM pg_class, regexp_match(pg_get_expr(relpartbound, oid), '\(''(.*)''\) TO \(''(.*)''\)') AS match
    WHERE relispartition AND relkind = 'r' ORDER BY 1"""


def test_ladder_levels_has_a_partition_for_each_utc_day_30_days_ahead_in_its_own_schema(
    exchange: Exchange,
) -> None:
    assert exchange.partitions() == names(-1, 30)
    bounds = rows(exchange.engine, BOUNDS)
    yesterday = datetime(2026, 11, 24)
    days = [yesterday + timedelta(days=number) for number in range(33)]
    assert bounds == list(itertools.pairwise(days))


def test_the_model_is_the_end_state_of_the_migration_which_goes_back_and_applies_again(
    fresh: Exchange,
) -> None:
    for _ in range(2):
        command.upgrade(alembic(), "head")
        command.check(alembic())
        assert fresh.partitions() == names(-1, 30)
        command.downgrade(alembic(), "base")
        assert scalar(fresh.engine, "SELECT to_regnamespace('stream_ingest')") is None


# -- roles and grants ------------------------------------------------------------------------------------


def test_grants_make_the_partition_role_the_owner_of_the_table_and_of_every_partition(
    exchange: Exchange,
) -> None:
    assert exchange.owners() == {exchange.role("POSTGRES_PARTITION_USER")}


def test_roles_and_grants_run_again_change_nothing(exchange: Exchange) -> None:
    rights = """
        SELECT relname, relowner, relacl::text FROM pg_class WHERE relnamespace IN
            ('public'::regnamespace, 'stream_ingest'::regnamespace)
        UNION ALL SELECT nspname, nspowner, nspacl::text FROM pg_namespace ORDER BY 1"""
    before = rows(exchange.engine, rights)
    assert "CREATE ROLE" not in exchange.psql("roles.sql")
    assert "ALTER TABLE" not in exchange.psql("grants.sql")
    assert rows(exchange.engine, rights) == before


def test_grants_take_back_what_was_given_to_the_wrong_one(exchange: Exchange) -> None:
    writer, stray = exchange.role("POSTGRES_USER"), names(0, 0)[0]
    run(
        exchange.engine,
        f'GRANT CREATE ON SCHEMA stream_ingest TO "{writer}"',
        f'GRANT ALL ON {TABLE} TO "{writer}"',
        f"ALTER TABLE {stray} OWNER TO CURRENT_USER",
    )
    said = exchange.psql("grants.sql", DATABASE_URL=exchange.url.render_as_string(hide_password=False))
    assert "INSERT, SELECT\n" in said
    assert exchange.owners() == {exchange.role("POSTGRES_PARTITION_USER")}
    assert not scalar(exchange.engine, "SELECT has_schema_privilege(:w, 'stream_ingest', 'CREATE')", w=writer)


FORBIDDEN = (
    "CREATE TABLE stream_ingest.another (id int)",
    "CREATE TABLE {table}_default PARTITION OF {table} DEFAULT",
    "ALTER TABLE {table} ADD COLUMN note text",
    "ALTER TABLE {table} DETACH PARTITION {today}",
    "DROP TABLE {today}",
    "TRUNCATE {table}",
    "DELETE FROM {table}",
    "UPDATE {table} SET price = 1",
    "SELECT * FROM {today}",
    "SELECT * FROM public.partition_config",
)


def test_the_stream_writer_may_insert_and_select_and_nothing_else(exchange: Exchange) -> None:
    engine = exchange.connect("POSTGRES_USER")
    with engine.begin() as writer:
        writer.exec_driver_sql(f"INSERT INTO {TABLE} VALUES ('1.1', 7, '2026-11-25Z', 'back', 0, 3.5, 20)")
        assert writer.exec_driver_sql(f"SELECT count(*) FROM {TABLE}").scalar() == 1
    for statement in FORBIDDEN:
        with (
            pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
            engine.begin() as writer,
        ):
            writer.exec_driver_sql(statement.format(table=TABLE, today=names(0, 0)[0]))


@pytest.mark.parametrize("missing", [PARTITION_ROLE[:1], PARTITION_ROLE[1:], PARTITION_ROLE])
@pytest.mark.parametrize("empty", [False, True])
def test_both_partition_credentials_are_required_and_the_error_names_what_is_missing(
    fresh: Exchange, missing: tuple[str, ...], empty: bool
) -> None:
    given = dict(fresh.environment)
    for name in missing:
        given[name] = ""
        if not empty:
            del given[name]
    with pytest.raises(SettingsError) as refused:
        Settings.read(given)
    told = str(refused.value)
    assert told.startswith(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set.")
    assert "never taken in place of its own" in told


def test_the_stream_writer_cannot_be_the_partition_role(fresh: Exchange) -> None:
    same = {"POSTGRES_PARTITION_USER": fresh.role("POSTGRES_USER")}
    with pytest.raises(SettingsError, match="are both"):
        Settings.read(fresh.environment | same)


def test_without_its_own_credentials_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "nowhere.invalid")
    monkeypatch.setenv("POSTGRES_PARTITION_USER", "partitions")
    monkeypatch.delenv("POSTGRES_PARTITION_PASSWORD", raising=False)
    assert service.main([]) == 2
    told = "POSTGRES_PARTITION_PASSWORD is not set."
    assert capsys.readouterr().err.startswith(f"ladder_levels: {told}")
    with pytest.raises(SystemExit, match=told):
        fix.main([])


def test_the_stream_writer_never_stands_in_for_the_partition_role(exchange: Exchange) -> None:
    """Neither with its credentials nor with its rights: a day that is not there stays away."""
    run(exchange.engine, f"DROP TABLE {names(0, 0)[0]}")
    stream = messages(feed.made_up(EVENING, 5, timedelta(seconds=1)))
    done = exchange.python("service", code=1, stdin=stream, POSTGRES_PARTITION_USER="nobody of that name")
    assert done.out == "5 messages, 0 levels recorded, 5 refused\n"
    assert exchange.partitions() == [*names(-1, -1), *names(1, 30)]
    told = [line for line in done.log if line["event"] == "message refused"]
    assert len(told) == 5
    assert "no partition of relation" in told[0]["message"]
    assert any('"nobody of that name" does not exist' in line["event"] for line in done.log)


# -- replicas, across midnight ---------------------------------------------------------------------------

REPLICAS = 3
#: An evening beyond the horizon: nobody has made a partition for it, nor for the day after.
FAR_EVENING = EVENING + timedelta(days=40)
STREAM = [
    message
    for evening in (EVENING, FAR_EVENING)
    for message in feed.made_up(evening, 60, timedelta(seconds=1))
]


@dataclass(frozen=True)
class Recorded:
    exchange: Exchange
    replicas: list[Ended]


@pytest.fixture(scope="module")
def recorded(
    databases: Databases, module_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    """Three replicas that record the same stream at the same time, over two midnights."""
    stream = tmp_path_factory.mktemp("stream") / "stream.jsonl"
    stream.write_text(messages(STREAM))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as opened:
        exchange = migrate(prepare(databases, module_database, patch))
        replicas = [
            exchange.start(
                *(sys.executable, "-m", "ladder_levels.service"),
                stdin=opened.enter_context(stream.open()),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(REPLICAS)
        ]
        yield Recorded(exchange, [ended(replica) for replica in replicas])


def test_inserts_across_utc_midnight_from_several_replicas_never_fail(recorded: Recorded) -> None:
    tallies = [replica.out.split(",") for replica in recorded.replicas]
    assert [tally[0] for tally in tallies] == ["120 messages"] * REPLICAS
    assert [tally[2] for tally in tallies] == [" 0 refused\n"] * REPLICAS
    levels = sum(int(tally[1].split()[0]) for tally in tallies)
    assert levels == scalar(recorded.exchange.engine, f"SELECT count(*) FROM {TABLE}")


def test_each_level_is_there_once_in_the_partition_of_its_utc_day(recorded: Recorded) -> None:
    landed = rows(
        recorded.exchange.engine,
        f"SELECT tableoid::regclass::text, count(*) FROM {TABLE} GROUP BY 1 ORDER BY 1",
    )
    expected = Counter(
        f"{TABLE}_{level['published_at']:%Y_%m_%d}"
        for message in STREAM
        for level in recorder.levels_of(message)
    )
    assert sorted(expected) == names(0, 1) + names(40, 41)
    assert landed == sorted(expected.items())


def test_days_beyond_the_horizon_are_made_by_the_partition_role_and_belong_to_it(recorded: Recorded) -> None:
    engine, role = recorded.exchange.engine, recorded.exchange.role("POSTGRES_PARTITION_USER")
    assert recorded.exchange.partitions() == names(-1, 30) + names(40, 41)
    for day in names(40, 41):
        assert "made by insert" in scalar(engine, "SELECT obj_description(CAST(:t AS regclass))", t=day)
    assert recorded.exchange.owners() == {role}
    assert rows(engine, "SELECT DISTINCT run_by FROM partition_runs WHERE action = 'maintain'") == [(role,)]


def test_the_log_tells_of_the_provisioner_its_lock_and_the_horizon(recorded: Recorded) -> None:
    told = [replica.events("ladder_levels.provisioner") for replica in recorded.replicas]
    assert sorted(told, key=len) == [
        ["partition provisioner started"],
        ["partition provisioner started"],
        [
            "partition provisioner started",
            "partition provisioning acquired lock",
            "coverage horizon: 2026-12-25",
        ],
    ], "one process of several acquires the lock"


# -- /health and /metrics --------------------------------------------------------------------------------


@pytest.fixture
def served(exchange: Exchange, tmp_path: Path) -> Iterator[Served]:
    with serving(exchange, tmp_path / "log.jsonl", "--port", "0") as service:
        yield service


def test_health_and_metrics_tell_the_horizon_while_the_stream_is_recorded(served: Served) -> None:
    address = served.await_event(r"Uvicorn running on (http://\S+)")[1]
    served.await_event("coverage horizon: ")
    assert served.process.stdin is not None
    served.process.stdin.write(messages(feed.made_up(EVENING, 5, timedelta(seconds=1))))
    served.process.stdin.close()
    served.await_event("stream ended")
    assert scalar(served.exchange.engine, f"SELECT count(*) > 5 FROM {TABLE}")

    health = httpx.get(f"{address}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    # From half a minute before midnight, 30 whole days.
    assert health.json()["ladder_levels_partition_horizon_days"] == pytest.approx(30, abs=0.001)
    metrics = httpx.get(f"{address}/metrics").text
    (horizon,) = re.findall(r"(?m)^ladder_levels_partition_horizon_days (\S+)$", metrics)
    assert float(horizon) == pytest.approx(30, abs=0.001)
    assert httpx.get(f"{address}/api/v1/partitions/status").status_code == 401

    served.process.send_signal(signal.SIGTERM)
    served.process.wait(60)
    last = [json.loads(line)["event"] for line in served.log.read_text().splitlines()][-3:]
    assert last[0] == "partition schedule stopped"
    assert last[2].startswith("Finished server process")


def test_provisioning_comes_again_12_hours_after_whoever_did_it_last(
    recorded: Recorded, tmp_path: Path
) -> None:
    """A replica that starts within that time leaves it; what it would lack it makes all the same."""
    exchange, runs = recorded.exchange, "SELECT count(*) FROM partition_runs WHERE action = 'maintain'"
    assert scalar(exchange.engine, runs) == 1
    run(exchange.engine, f"DROP TABLE {names(20, 20)[0]}")
    with serving(exchange, tmp_path / "soon.jsonl") as soon:
        soon.await_event("next partition run: ")
        soon.await_that(lambda: exchange.partitions() == names(-1, 30) + names(40, 41))
    assert scalar(exchange.engine, runs) == 1
    run(exchange.engine, "UPDATE partition_runs SET started_at = started_at - interval '12 hours'")
    with serving(exchange, tmp_path / "later.jsonl") as later:
        later.await_event("partition provisioning acquired lock")
    assert scalar(exchange.engine, runs) == 2


# -- the one-off fix -------------------------------------------------------------------------------------


def test_the_one_off_fix_makes_what_is_missing_as_the_partition_role_and_proves_it(
    exchange: Exchange,
) -> None:
    for day in (*names(0, 3), *names(9, 9)):
        run(exchange.engine, f"DROP TABLE {day}")
    for made in ("34 made", "0 made"):
        done = exchange.python("fix")
        assert f"{TABLE}: {made}\n" in done.err
        assert exchange.partitions() == names(-30, 30)
        proofs = [line.split("goes to ")[1].split()[0] for line in done.err.splitlines() if "proof" in line]
        assert proofs == [*names(0, 0), *names(-30, -30), *names(30, 30)]
    role = exchange.role("POSTGRES_PARTITION_USER")
    assert exchange.owners() == {role}
    assert rows(exchange.engine, "SELECT DISTINCT run_by FROM partition_runs") == [(role,)]
    assert scalar(exchange.engine, f"SELECT count(*) FROM {TABLE}") == 0


# -- a recorded market -----------------------------------------------------------------------------------


@pytest.mark.skipif(not RECORDING.is_file(), reason=f"the recorded market is not at {RECORDING}")
def test_a_recorded_market_is_stored_by_utc_day(fresh: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    when = "2017-06-13T10:53:00Z"
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", when)
    migrate(fresh)
    done = fresh.python("service", stdin=RECORDING.read_text(), ALEMBIC_PARTITIONS_NOW=when)
    assert done.out == "480 messages, 1208 levels recorded, 0 refused\n"
    landed = rows(
        fresh.engine, f"SELECT tableoid::regclass::text, count(*) FROM {TABLE} GROUP BY 1 ORDER BY 1"
    )
    assert landed == [(f"{TABLE}_2017_06_13", 53), (f"{TABLE}_2017_06_14", 1155)]
    # Its second message: {"pt":1497371499779,"mc":[{"id":"1.132153978","rc":[{"ltp":15.0,"id":11695059}]}]}
    first = f"""
        SELECT extract(epoch FROM published_at) * 1000, selection_id, side, price, size
        FROM {TABLE} ORDER BY published_at LIMIT 1"""
    assert rows(fresh.engine, first) == [(1497371499779, 11695059, "last", 15, None)]


# -- the run-book ----------------------------------------------------------------------------------------


def test_the_readme_names_files_and_modules_that_exist() -> None:
    page = (HERE / "README.md").read_text()
    files = set(re.findall(r"`([\w/]+\.(?:py|sql))`", page)) | set(
        re.findall(r"ladder_levels/(\S+\.(?:sql|ini))", page)
    )
    files |= {f"{name}.py" for name in re.findall(r"python -m ladder_levels\.(\w+)", page)}
    there = {path.name for path in HERE.rglob("*")} | {"tests/examples/test_ladder_levels.py"}
    assert len(files) > 10
    assert files <= there


def test_the_demo_runs_as_it_should_and_cleans_up(database: Database, engine: Engine) -> None:
    before, out = dict(os.environ), io.StringIO()
    assert demo.main(database.url.render_as_string(hide_password=False), out=out) == 0, out.getvalue()
    assert dict(os.environ) == before
    told = out.getvalue()
    for line in (
        "must be owner of table ladder_levels",
        '"event": "partition provisioning acquired lock"',
        '"status": "ok"',
        "120 messages, 0 levels recorded",
        "POSTGRES_PARTITION_PASSWORD is not set",
        "30 made",
    ):
        assert line in told
    left = """SELECT datname FROM pg_database WHERE datname LIKE 'ladder_levels_demo%'
              UNION ALL SELECT rolname FROM pg_roles WHERE rolname LIKE 'ladder\\_%'"""
    assert rows(engine, left) == []
