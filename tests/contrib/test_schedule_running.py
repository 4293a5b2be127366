"""The schedule as it is: its threads, an event loop, forks, processes, and a database that goes away."""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import apscheduler.schedulers.base  # type: ignore[import-untyped]
import pytest
from sqlalchemy import URL, Engine, create_engine, event, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import contrib, keep, maintenance
from alembic_partitions.cli import running as running_verb
from alembic_partitions.cli.door import Call
from alembic_partitions.contrib.schedule import beating, duties, runs
from alembic_partitions.contrib.schedule import scheduling as schedule
from alembic_partitions.errors import ExtraMissing, PolicyError
from alembic_partitions.events import AsyncKeeper
from alembic_partitions.keeper import Keeper
from alembic_partitions.locks import one_run, one_schedule
from alembic_partitions.maintenance import Report, standing
from alembic_partitions.sessions import side_connection
from alembic_partitions.talk import shown_log
from tests.databases import Database
from tests.projects import Project
from tests.proxy import proxy, silence
from tests.tables import declare, operations, partitions, policy, rows, run
from tests.terminal import caller

RUNS = "SELECT error FROM partition_runs WHERE action = 'maintain' ORDER BY id"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beat often; and see to it that no thread outlives its test."""
    monkeypatch.setattr(beating, "BEAT", 0.05)
    monkeypatch.setattr(runs, "_OTHERS", 0.1)
    monkeypatch.setattr(duties, "FIRST_BACK_OFF", 0.1)
    monkeypatch.setattr(runs, "_BUSY", 0.1)
    before = set(threading.enumerate())
    yield
    left = {thread for thread in threading.enumerate() if thread not in before}
    assert not [thread for thread in left if "partition" in thread.name or "APS" in thread.name]
    assert not schedule._running


@contextmanager
def running(keeper: Keeper, **told: Any) -> Iterator[None]:
    keeper.start(**{"every": "12h", **told})
    try:
        yield
    finally:
        keeper.stop()


def until(condition: Callable[[], object]) -> None:
    """Wait for something that will come to pass."""
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_what_has_become_of_runs_is_read_as_written(engine: Engine) -> None:
    declare(engine, "odds", policy())

    def now() -> Any:
        with side_connection(engine) as side:
            return standing(side, "public", "maintain")

    assert (now().good, now().failures, now().failed, now().known) == (None, 0, None, True)
    keep(engine).maintain()
    first = now().good
    assert first is not None
    insert = "INSERT INTO partition_runs (started_at, action, error) VALUES"
    run(
        engine,
        f"{insert} (clock_timestamp(), 'maintain', 'too bad'), (clock_timestamp(), 'ensure', 'too bad')",
        f"{insert} (clock_timestamp(), 'maintain', 'too bad')",
        f"{insert} (clock_timestamp() + '1 year', 'maintain', NULL)",
    )
    found = now()
    assert (found.good, found.failures) == (first, 2)
    assert first < found.failed <= found.now
    run(engine, f"{insert} (clock_timestamp(), 'maintain', NULL)")
    assert (now().good > first, now().failures, now().failed) == (True, 0, None)


def test_what_saw_to_some_tables_alone_is_no_run_over_all(engine: Engine) -> None:
    """Else a daily `maintain --table` would put the run over all tables off for good."""
    declare(engine, "odds", policy())
    declare(engine, "results", policy())
    with operations(engine) as op:
        op.create_partition_functions()
    with side_connection(engine) as side:
        maintenance.maintain(side, tables=["odds"])
        maintenance.maintain(side, orders=maintenance.Orders(horizon=False))
        with side.begin():
            side.execute(text("SELECT * FROM run_partition_maintenance('odds', dry_run => false)"))
            side.execute(text("SELECT * FROM drop_old_partitions('odds', '90 days', dry_run => false)"))
        assert standing(side, "public", "maintain").good is None
        assert [run.action for run in maintenance.past_runs(side, tables=["odds"]).runs or ()] == [
            *("cleanup", "maintain", "maintain"),
        ]
        with side.begin():
            side.execute(text("SELECT * FROM run_partition_maintenance(dry_run => false)"))
        assert standing(side, "public", "maintain").good is not None


def test_two_keepers_run_once_and_leave_no_thread(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    declare(engine, "odds", policy())
    told: list[tuple[Report | None, Exception | None]] = []
    one, other = keep(engine), keep(engine)
    with (
        running(one, on_run=lambda *how: told.append(how)),
        running(other, on_run=lambda *how: told.append(how)),
    ):
        until(lambda: one.schedule.next_run and other.schedule.next_run and told)
        until(lambda: one.schedule.next_run == other.schedule.next_run)
        assert one.running
        with pytest.raises(PolicyError, match=r"has a schedule already. Call stop\(\) first"):
            one.start(every="12h")
    assert len(told) == 1
    assert rows(engine, RUNS) == [(None,)]
    assert [m for m in caplog.messages if "done" in m or "started" in m or "stopped" in m][0::2] == [
        "partition schedule started: every 12h",
        caplog.messages[[("done" in m) for m in caplog.messages].index(True)],
        "partition schedule stopped",
    ]
    assert not [record for record in caplog.records if record.name.startswith("apscheduler")]


def test_it_can_be_started_again_and_refuses_what_it_does_not_know(engine: Engine) -> None:
    keeper = keep(engine)
    with pytest.raises(PolicyError, match="there is no such day"):
        keeper.start(cron="0 0 31 4 *")
    with pytest.raises(TypeError, match="retain"):
        keeper.start(every="12h", retain="90 days")
    keeper.stop()
    for _ in range(2):
        with running(keeper):
            assert keeper.running
        assert not keeper.running


def test_who_is_at_it_already_is_left_to_it(engine: Engine) -> None:
    declare(engine, "odds", policy())
    run(engine, f"DROP TABLE {partitions(engine)[-1]}")
    keeper = keep(engine)
    with one_run(engine, "public"), running(keeper):
        until(lambda: len(partitions(engine)) == 4)
        assert rows(engine, RUNS) == [], "no run has failed"
    with one_schedule(engine, "public"), running(keeper):
        until(lambda: keeper.schedule._work.due_at > time.monotonic() + 1)
    assert rows(engine, RUNS) == []


def test_a_session_that_is_ended_in_the_middle_is_a_run_to_be_tried_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    real = Keeper.maintain
    told: list[tuple[Report | None, str]] = []

    def maintain(keeper: Keeper, **orders: Any) -> Report:
        if not told:
            run(
                engine,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()",
            )
            with side_connection(keeper.ddl_engine) as side:
                side.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return real(keeper, **orders)

    monkeypatch.setattr(Keeper, "maintain", maintain)
    with running(keep(engine), on_run=lambda report, error: told.append((report, type(error).__name__))):
        until(lambda: len(told) == 2)
    assert [name for _, name in told] == ["OperationalError", "NoneType"]
    assert rows(engine, RUNS) == [(None,)]


def test_a_database_that_is_away_is_waited_for(
    engine: Engine, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", policy())
    with proxy(database.url) as door:
        away = create_engine(database.url.set(host="127.0.0.1", port=door.port, password="hushhush"))
        keeper = keep(away)
        with running(keeper):
            until(lambda: caplog.text.count("next try") >= 2)
            door.open()
            until(lambda: rows(engine, RUNS) and not keeper.schedule._work.busy)
            door.shut()
            run(engine, "UPDATE partition_runs SET started_at = started_at - interval '12 h'")
            keeper.schedule._runs._memory.good = None  # nor does it remember
            seen = caplog.text.count("next try")
            keeper.schedule._work.due_at = 0
            until(lambda: caplog.text.count("next try") > seen)
            door.open()
            until(lambda: len(rows(engine, RUNS)) == 2)
    assert "hushhush" not in caplog.text


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_a_connection_that_never_answers_is_given_up_and_holds_nobody(
    engine: Engine,
    database: Database,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    declare(engine, "odds", policy())
    monkeypatch.setattr(schedule, "_LOOK_WITHIN", 0.3)
    monkeypatch.setattr(schedule, "_LOOK_ENDS", 0.1)
    ports: list[int] = []

    async def application(port: int) -> None:
        is_async = driver == "asyncpg"
        made: Any = (create_async_engine if is_async else create_engine)(database.driver_url(driver))

        @event.listens_for(made.sync_engine if is_async else made, "do_connect")
        def lead_astray(dialect: Any, record: Any, arguments: Any, where: dict[str, Any]) -> None:
            if ports:
                where.update(host="127.0.0.1", port=ports.pop())

        async def done(keeper: Any, what: str, *arguments: Any, **options: Any) -> None:
            answer = getattr(keeper, what)(*arguments, **options)
            if is_async:
                await answer

        keeper = keep(made)
        ports.append(port)
        await done(keeper, "start", every="12h")
        while not rows(engine, RUNS):
            await asyncio.sleep(0.02)
        await done(keeper, "stop")
        schedule._LOOK_WITHIN = 300.0
        ports.append(port)
        await done(keeper, "start", every="12h")
        while ports:
            await asyncio.sleep(0.02)
        await done(keeper, "stop", timeout="365 d")
        await (made.dispose() if is_async else asyncio.sleep(0))

    with silence() as port:
        asyncio.run(asyncio.wait_for(application(port), 60))
    assert "partition run: no answer for 0.3 s; next try in 0.1 s" in caplog.text
    until(lambda: not [one for one in threading.enumerate() if one.name == "alembic_partitions schedule"])


def test_stopping_waits_for_a_run_as_long_as_it_is_told(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", policy())
    real, begun, may_end = Keeper.maintain, threading.Event(), threading.Event()

    def maintain(keeper: Keeper, **orders: Any) -> Report:
        begun.set()
        may_end.wait()
        return real(keeper, **orders)

    monkeypatch.setattr(Keeper, "maintain", maintain)
    keeper = keep(engine)
    keeper.start(every="12h")
    begun.wait()
    doing = keeper.schedule._work.current.doing
    keeper.stop(timeout="0 s")
    assert doing.is_alive()
    assert "partition schedule stopped; its partition run goes on" in caplog.text
    may_end.set()
    doing.join()
    run(engine, "DELETE FROM partition_runs")
    begun.clear()
    may_end.clear()
    keeper.start(every="12h")
    begun.wait()
    threading.Timer(0.2, may_end.set).start()
    keeper.stop()
    assert rows(engine, RUNS) == [(None,)]


def test_a_host_whose_clock_is_set_back_does_not_sleep_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[datetime] = []

    class Clock(datetime):
        wrong = timedelta()

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + cls.wrong

    monkeypatch.setattr(apscheduler.schedulers.base, "datetime", Clock)
    monkeypatch.setattr(beating, "datetime", Clock)
    heart = beating.Heart(lambda: beats.append(Clock.now(timezone.utc)), lambda: 60.0)
    try:
        until(lambda: beats)
        Clock.wrong = timedelta(days=-1)
        until(lambda: beats[-1] < beats[0])
    finally:
        heart.stop()


# -- on an event loop ----------------------------------------------------------------------------------


def test_on_an_event_loop(engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(engine, "odds", policy())
    told: list[Any] = []
    checked: list[int] = []

    class Alerts:
        def check(self, source: Any) -> None:
            checked.append(len(source.view(max_age=0).tables))

    async def on_run(report: Report | None, error: Exception | None) -> None:
        await asyncio.sleep(0)
        told.append((report, error))

    async def came(condition: Callable[[], object]) -> None:
        while not condition():
            await asyncio.sleep(0.02)

    async def application() -> None:
        before = asyncio.all_tasks()
        other = create_async_engine(database.driver_url("asyncpg"))
        keeper = keep(other)
        await keeper.start(cron="0 0 * * *", timezone="Pacific/Auckland", alerts=Alerts(), on_run=on_run)
        assert keeper.running
        await came(lambda: told and checked)
        await keeper.stop()
        assert asyncio.all_tasks() == before

        # What does not end is cut off.
        run(engine, "DELETE FROM partition_runs")
        real = Keeper.maintain

        def maintain(keeper: Keeper, **orders: Any) -> Report:
            with side_connection(keeper.ddl_engine) as side:
                side.execute(select(text("pg_sleep(600)")))
            return real(keeper, **orders)

        monkeypatch.setattr(Keeper, "maintain", maintain)
        await keeper.start(every="12h")
        schedule_ = keeper.sync_keeper.schedule
        sleeping = (
            "SELECT 1 FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE '%sleep(600)' AND state = 'active'"
        )
        await came(lambda: schedule_._work.busy and rows(engine, sleeping))
        await keeper.stop(timeout="100 ms")
        assert asyncio.all_tasks() == before
        await other.dispose()

    asyncio.run(asyncio.wait_for(application(), 60))
    ((report, error),) = told
    assert (report.failure, error) == (None, None)
    assert set(checked) == {1}
    assert rows(engine, RUNS) == []


def test_an_event_loop_that_ends_takes_the_schedule_with_it(engine: Engine, database: Database) -> None:
    declare(engine, "odds", policy())

    keeper = keep(create_async_engine(database.driver_url("asyncpg")))

    async def application() -> None:
        await keeper.start(every="12h")
        while not rows(engine, RUNS):
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(application(), 60))
    assert keeper.running, "it was not stopped"
    asyncio.run(keeper.stop())
    asyncio.run(keeper.stop())


# -- processes -----------------------------------------------------------------------------------------

_FORKS = """
import logging, os, sys, threading, time
from sqlalchemy import create_engine, text
from alembic_partitions import keep
from alembic_partitions.contrib.schedule import beating

beating.BEAT = 0.05
engine = create_engine(sys.argv[1])
keeper = keep(engine)
told = threading.Event()
keeper.start(every="12h", on_run=lambda report, error: (print(os.getpid(), flush=True), told.set()))
told.wait(60)
while not 60 < keeper.schedule._work.due_at - time.monotonic() < 3600:  # it has seen that it is done
    time.sleep(0.02)
with engine.begin() as connection:
    connection.execute(text("DELETE FROM partition_runs"))
engine.dispose()
keeper.schedule._runs._memory.good = None  # it never was
told.clear()
before = threading.active_count()
child = os.fork()
if not child:
    told.wait(60)
    assert keeper.running and threading.active_count() <= 3, threading.enumerate()
    keeper.stop()
    assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
    sys.exit()  # as an application ends
assert os.waitpid(child, 0)[1] == 0
assert keeper.running and threading.active_count() == before
print("parent", os.getpid(), "child", child)
# It is left running: that keeps no process alive.
"""


def test_a_fork_goes_on_by_itself(engine: Engine) -> None:
    declare(engine, "odds", policy())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORKS, _told(engine.url)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert last == f"parent {first} child {second}"
    assert rows(engine, RUNS) == [(None,)]


def test_two_processes_run_once_and_end_when_they_are_told(
    engine: Engine, database: Database, tmp_path: Path
) -> None:
    declare(engine, "odds", policy())
    run(engine, f"DROP TABLE {partitions(engine)[-1]}")
    logs = [tmp_path / "one", tmp_path / "other"]
    both = []
    for log, told, driver in (
        (logs[0], ["--cron", "0 0 * * *", "--timezone", "Pacific/Auckland"], "psycopg2"),
        (logs[1], ["--every", "6h", "--no-ensure-on-start", "--no-analyze"], "asyncpg"),
    ):
        command = [sys.executable, "-W", "error", "-m", "alembic_partitions", "run", *told, "--url"]
        with log.open("w") as stderr:
            both.append(subprocess.Popen([*command, _told(database.driver_url(driver))], stderr=stderr))
    try:
        until(lambda: all("started" in log.read_text() for log in logs) and rows(engine, RUNS))
    finally:
        for process, number in zip(both, (signal.SIGTERM, signal.SIGINT), strict=True):
            process.send_signal(number)
        codes = [process.wait(60) for process in both]
    said = [log.read_text().splitlines() for log in logs]
    assert codes == [0, 0], said
    assert len([line for lines in said for line in lines if "partition run done" in line]) == 1, said
    assert [lines[0].removeprefix("INFO  [alembic_partitions] ") for lines in said] == [
        'partition schedule started: "0 0 * * *" in Pacific/Auckland',
        "partition schedule started: every 6h",
    ]
    assert [lines[-1] for lines in said] == ["INFO  [alembic_partitions] partition schedule stopped"] * 2
    assert rows(engine, RUNS) == [(None,)]
    assert len(partitions(engine)) == 4


def _told(url: URL) -> str:
    return url.render_as_string(hide_password=False)


# -- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--every", "5s"], "'5s' is not between a minute and 366 days"),
        (["--every", "5h", "--cron", "0 0 * * *"], "it or cron is needed, and only one of them"),
        (["--cron", "0 0 * * *", "--timezone", "Mars/Olympus"], "'Mars/Olympus' is no time zone"),
        (["--url", "sqlite://"], "sqlite is not PostgreSQL"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(database: Database, arguments: list[str], complaint: str) -> None:
    done = caller(database)("run", *arguments, url=None if "--url" in arguments else "postgresql://h/d")
    assert done.code == 1
    assert complaint in done.err
    assert len(done.err.splitlines()) == 1


def test_without_apscheduler_it_says_what_to_install(
    engine: Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("alembic_partitions.contrib.schedule")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr(contrib, "schedule")
    monkeypatch.setitem(sys.modules, "apscheduler.executors.debug", None)
    advice = 'pip install "alembic-partitions[schedule]"'
    with pytest.raises(ExtraMissing) as missing:
        keep(engine).start(every="12h")
    assert advice in str(missing.value)
    done = caller(database)("run")
    assert (done.code, advice in done.err, len(done.err.splitlines())) == (1, True, 1)


@pytest.mark.parametrize(("template", "driver"), [("generic", "psycopg2"), ("async", "asyncpg")])
def test_without_an_address_it_goes_where_env_py_goes(
    engine: Engine, database: Database, tmp_path: Path, template: str, driver: str
) -> None:
    declare(engine, "odds", policy())
    project = Project.make(tmp_path, template, database.driver_url(driver))
    call = Call(config=[str(tmp_path / "alembic.ini")])
    with shown_log():
        (found,) = running_verb._engines_of_env(call, threading.Event())
        assert logging.getLogger("alembic_partitions").isEnabledFor(logging.INFO), "env.py has silenced it"
    keeper = Keeper(found)
    if template == "async":
        assert asyncio.run(AsyncKeeper(keeper).maintain()).failure is None
    else:
        assert keeper.maintain().failure is None

    project.point_at(database.driver_url(driver).set(port=1, password="hushhush"))
    end, err = threading.Event(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(err), shown_log():
        patch.setattr(running_verb, "_FIRST_WAIT", 0.01)
        timer = threading.Timer(0.5, end.set)
        timer.start()
        assert running_verb._engines_of_env(call, end) == []
        timer.join()
    assert "the database is away: " in err.getvalue()
    assert "hushhush" not in err.getvalue()


@pytest.mark.parametrize(("template", "driver"), [("generic", "psycopg2"), ("async", "asyncpg")])
def test_an_env_py_that_gets_no_answer_is_no_reason_to_stay(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, driver: str
) -> None:
    monkeypatch.setattr(running_verb, "_NO_ANSWER", 0.01)
    end, err = threading.Event(), io.StringIO()
    with silence() as port, redirect_stderr(err), shown_log():
        Project.make(tmp_path, template, database.driver_url(driver).set(host="127.0.0.1", port=port))
        timer = threading.Timer(0.5, end.set)
        timer.start()
        assert running_verb._engines_of_env(Call(config=[str(tmp_path / "alembic.ini")]), end) == []
    timer.join()
    assert "no answer from env.py for 0.01 s: does the database answer it?" in err.getvalue()
    until(lambda: "alembic_partitions env.py" not in [one.name for one in threading.enumerate()])
