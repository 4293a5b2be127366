"""Alerts on a real database: told once by many, over once, and never at anybody's expense."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import alembic_partitions
from alembic_partitions import maintenance
from alembic_partitions.contrib.alerts import Alerts, Sent, patience
from alembic_partitions.contrib.source import Source
from alembic_partitions.errors import ExtraMissing, SettingError
from tests.databases import ALL_DRIVERS, Database, Roles
from tests.proxy import silence
from tests.tables import declare, partitions, policy, rows, run
from tests.terminal import caller

# Apprise's, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

TOLD = "SELECT details FROM partition_runs WHERE action = 'alert' ORDER BY id"


class Inbox:
    """Whoever reads the messages."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.texts: list[str] = []

    def notify(self, title: str, text: str) -> None:
        self.titles.append(title)
        self.texts.append(text)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def short(engine: Engine) -> Engine:
    """A database with a table that no row can be written to today."""
    declare(engine, "odds", policy())
    break_it(engine)
    return engine


def break_it(engine: Engine) -> None:
    run(engine, *(f"DROP TABLE {name}" for name in partitions(engine)))


def mend(engine: Engine) -> None:
    alembic_partitions.keep(engine).ensure()


def alerts(inbox: Inbox, **options: Any) -> Alerts:
    return Alerts(notify=inbox.notify, **{"spacing": "0 s", "correlation": lambda: "id1", **options})


def events(sent: tuple[Sent, ...]) -> list[tuple[str, str]]:
    return [(one.event, one.problem) for one in sent]


def noted(engine: Engine) -> list[tuple[str, str, str]]:
    return [
        (known["problem"], known["event"], known["state"])
        for (details,) in rows(engine, TOLD)
        for known in details.values()
    ]


def test_told_once_again_after_a_while_and_once_that_it_is_over(short: Engine, inbox: Inbox) -> None:
    source, some = Source(short), alerts(inbox)
    assert events(some.check(source)) == [("open", "table public.odds")]
    assert noted(short) == [("table public.odds", "open", "sent")]
    assert events(some.check(source)) == [], "ten minutes, if nobody says otherwise"
    assert events(alerts(inbox, quiet="0 s").check(source)) == [("repeat", "table public.odds")]
    mend(short)
    assert events(some.check(source)) == [("recovered", "table public.odds")]
    assert some.check(source) == ()
    assert len(inbox.texts) == 3
    assert all("[id1]" in text for text in inbox.texts)
    assert noted(short) == [("table public.odds", "recovered", "sent")], "one row from begin to end"
    assert inbox.titles[0] == f"CRITICAL: public.odds ({short.url.database})"
    assert f"Database: {short.url.database} at " in inbox.texts[0]
    assert short.url.username not in inbox.texts[0].split()


def test_what_many_find_at_once_is_told_by_one(short: Engine, inbox: Inbox) -> None:
    declare(short, "results", policy())
    run(short, *(f"DROP TABLE {name}" for name in partitions(short, "results")))
    engines = [create_engine(short.url, poolclass=NullPool) for _ in range(8)]
    some = [alerts(inbox, correlation=None) for _ in engines]
    gate = threading.Barrier(len(engines))

    def check(one: Alerts, engine: Engine) -> tuple[Sent, ...]:
        gate.wait()
        return one.check(Source(engine))

    for wanted in ("open", "recovered"):
        with ThreadPoolExecutor(len(engines)) as pool:
            sent = [one for told in pool.map(check, some, engines) for one in told]
        assert events(tuple(sent)) == [(wanted, "table public.odds"), (wanted, "table public.results")]
        mend(short)
    assert len(inbox.texts) == 2, "both tables in one message"
    assert inbox.titles[0].startswith("CRITICAL: public.odds and 1 more")


class Arrived(BaseHTTPRequestHandler):
    """Takes in what Apprise's json:// sends."""

    bodies: list[dict[str, str]]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *anything: object) -> None: ...


@pytest.fixture
def post() -> Iterator[tuple[int, list[dict[str, str]]]]:
    bodies: list[dict[str, str]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Here", (Arrived,), {"bodies": bodies}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port, bodies
    server.shutdown()
    thread.join()
    server.server_close()


CHECK = """
import os, sys
from sqlalchemy import create_engine
from alembic_partitions.contrib.alerts import Alerts
from alembic_partitions.contrib.source import Source
url, how, *where = sys.argv[1:]
notify = (lambda title, text: os._exit(9)) if how == "dies" else None
alerts = Alerts(*where, notify=notify, timeout="100 ms" if notify else "10 s")
print("ready", flush=True)
sys.stdin.readline()
print(*(f"{one.event} {one.problem}" for one in alerts.check(Source(create_engine(url)))), flush=True)
"""


def process(engine: Engine, *arguments: str) -> subprocess.Popen[str]:
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", CHECK, url, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_whose_alert_arrives_once(
    short: Engine, post: tuple[int, list[dict[str, str]]]
) -> None:
    port, arrived = post
    url = f"json://127.0.0.1:{port}"
    other, ours = process(short, "sends", url), Alerts(url)
    assert other.stdin
    assert other.stdout
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    sent = ours.check(Source(short))
    said, _ = other.communicate()
    assert sorted([said.strip(), *(f"{one.event} {one.problem}" for one in sent)]) in (
        ["", "open table public.odds"],
        ["open table public.odds"],
    )
    (body,) = arrived
    assert body["title"] == f"CRITICAL: public.odds ({short.url.database})"
    assert body["message"].startswith("CRITICAL public.odds: no partition for rows that are written now")


def test_whoever_dies_before_it_has_sent_is_stood_in_for(short: Engine, inbox: Inbox) -> None:
    dead = process(short, "dies")
    dead.communicate("go\n")
    assert dead.returncode == 9
    assert noted(short) == [("table public.odds", "open", "sending")]
    some = alerts(inbox, timeout="10 min")
    assert some.check(Source(short)) == (), "it might be about to"
    some._rules = dataclasses.replace(some._rules, patience=timedelta())
    assert events(some.check(Source(short))) == [("open", "table public.odds")]
    assert noted(short) == [("table public.odds", "open", "sent")]
    assert "[id1]" not in inbox.texts[0], "its id is that of the one who died"


def test_a_message_that_failed_is_tried_again_by_whoever_comes_next(
    short: Engine, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(title: str, text: str) -> object:
        raise ConnectionError("https://example.org/token-4711")

    caplog.set_level(logging.INFO)
    (sent,) = Alerts(notify=refuse, spacing="0 s").check(Source(short))
    assert not sent.delivered
    assert noted(short) == [("table public.odds", "open", "failed")]
    assert "alerts: refuse raised ConnectionError" in caplog.text
    assert f"alert {sent.id}: not told; the next check tries again" in caplog.text
    assert "4711" not in caplog.text
    (again,) = alerts(inbox).check(Source(short))
    assert (again.id, again.event, again.delivered) == (sent.id, "open", True)
    (sent,) = Alerts(notify=lambda title, text: False, spacing="0 s", quiet="0 s").check(Source(short))
    assert not sent.delivered


def test_a_notifier_that_hangs_is_given_up_and_never_called_twice(
    short: Engine, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    go_on = threading.Event()

    def hang(title: str, text: str) -> None:
        calls.append(title)
        go_on.wait()

    some = Alerts(notify=hang, spacing="0 s", quiet="0 s", timeout="50 ms")
    try:
        for _ in range(3):
            (sent,) = some.check(Source(short))
            assert not sent.delivered
        assert len(calls) == 1
        assert "alerts: hang did not answer in time" in caplog.text
        assert "alerts: hang still hangs over an earlier message" in caplog.text
        others = alerts(inbox, quiet="0 s", timeout="1 s")
        others._notifiers += some._notifiers
        assert others.check(Source(short))[0].delivered, "another notifier has told it"
    finally:
        go_on.set()


def test_two_notifiers_of_one_service_are_two(short: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def works(title: str, text: str) -> None: ...

    def fails(title: str, text: str) -> bool:
        return False

    fails.__name__ = "works"
    for order in ((works, fails), (fails, works)):
        some = Alerts("json://127.0.0.1/one", notify=order[0], spacing="0 s", quiet="0 s")
        some._notifiers[0].send, some._notifiers[0].name = order[1], "works"
        caplog.clear()
        assert some.check(Source(short))[0].delivered
        place = 1 if order[1] is fails else 2
        assert f"alerts: works (number {place} of 2) did not deliver it" in caplog.messages


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_one_notifier_for_several_databases_tells_of_each(
    short: Engine, database: Database, inbox: Inbox, driver: str
) -> None:
    both = threading.Event()

    def slow(title: str, text: str) -> None:
        both.wait(0.2)  # the other one comes meanwhile
        both.set()
        inbox.notify(title, text)

    some = Alerts(notify=slow, timeout="20 s")
    away = database.driver_url(driver).set(port=1, database="elsewhere")

    async def check() -> list[tuple[Sent, ...]]:
        url = database.driver_url(driver)
        engines = [
            create_async_engine(one) if driver == "asyncpg" else create_engine(one) for one in (url, away)
        ]
        return await asyncio.gather(*(some.acheck(Source(one)) for one in engines))

    here, there = asyncio.run(check())
    assert here[0].delivered
    assert there[0].delivered
    assert len(inbox.titles) == 2


def test_a_database_that_is_away_is_told_by_each_process_and_so_is_its_return(
    engine: Engine, database: Database, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", policy())
    mend(engine)
    source, some = Source(engine), alerts(inbox)
    assert some.check(source) == ()
    away = create_engine(database.url.set(port=1, password="open sesame"))
    source.engine = away
    with caplog.at_level(logging.INFO):
        assert events(some.check(source)) == [("open", "database")]
        assert some.check(source) == ()
    assert "sesame" not in "".join([*inbox.texts, caplog.text])
    assert "What to do: alembic-partitions check" in inbox.texts[0]


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_a_database_that_never_answers_is_away(
    engine: Engine, database: Database, inbox: Inbox, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    mend(engine)
    monkeypatch.setattr(patience, "ANSWER_WITHIN", 0.2)
    some, url = alerts(inbox), database.driver_url(driver)
    before = set(threading.enumerate())

    async def check(port: int) -> None:
        made = create_async_engine(url) if driver == "asyncpg" else create_engine(url)
        sync = made.sync_engine if isinstance(made, AsyncEngine) else made
        where = {"host": "127.0.0.1", "port": port}
        event.listen(sync, "do_connect", lambda d, r, a, told: told.update(where))
        source = Source(made)
        assert events(await some.acheck(source)) == [("open", "database")]
        assert inbox.texts[0].startswith("CRITICAL the database: TimeoutError: no answer within 0.2 s")
        where.clear()
        if driver == "psycopg2":  # it hangs where nobody can end it
            some._told[sync].patience._not_before = math.inf
            assert await some.acheck(source) == (), "so there is not another one at once"
            some._told[sync].patience._not_before = 0.0
        patience.ANSWER_WITHIN = 60.0
        assert events(await some.acheck(source)) == [("recovered", "database")]

    with silence() as port:
        asyncio.run(asyncio.wait_for(check(port), 60))
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_two_databases_that_look_the_same_from_afar_are_two(inbox: Inbox) -> None:
    def fall() -> object:
        raise ConnectionError("no route to host")

    some = alerts(inbox)
    for _ in range(2):
        engine = create_engine("postgresql+psycopg2://", creator=fall)
        assert events(some.check(Source(engine))) == [("open", "database")]
        assert some.check(Source(engine)) == ()


def test_what_comes_too_soon_after_a_message_is_held_back_and_so_it_says(short: Engine, inbox: Inbox) -> None:
    some, source = alerts(inbox, spacing="1 h"), Source(short)
    assert len(some.check(source)) == 1
    assert some.held_back(source) == 0
    mend(short)
    assert some.check(source) == ()
    assert 3500 < some.held_back(source) <= 3600
    some._rules = dataclasses.replace(some._rules, spacing=timedelta())
    assert events(some.check(source)) == [("recovered", "table public.odds")]
    assert some.held_back(source) == 0


def test_it_is_over_when_the_database_is_back(
    engine: Engine, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    mend(engine)
    source, some = Source(engine), alerts(inbox)
    real = maintenance.look

    def fall(*anything: object, **more: object) -> maintenance.View:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(maintenance, "look", fall)
    assert events(some.check(source)) == [("open", "database")]
    monkeypatch.setattr(maintenance, "look", real)
    assert events(some.check(source)) == [("recovered", "database")]
    assert noted(engine) == []


def test_a_database_that_goes_away_in_the_middle_costs_nobody_the_message(
    short: Engine, inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(short)
    real = source.engine

    def notify(title: str, text: str) -> None:
        inbox.notify(title, text)
        source.engine = create_engine(real.url.set(port=1))

    (sent,) = Alerts(notify=notify).check(source)
    assert sent.delivered
    assert f"alert {sent.id}: what became of it could not be noted" in caplog.text
    assert noted(short) == [("table public.odds", "open", "sending")]


def test_a_role_without_rights_goes_by_what_its_own_process_has_told(
    short: Engine, inbox: Inbox, roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    reader = create_engine(roles.create("reader"))
    run(short, f"GRANT SELECT ON odds, partition_config, partition_runs TO {reader.url.username}")
    some = alerts(inbox)
    for _ in range(2):
        some.check(Source(reader))
    assert len(inbox.texts) == 1
    some._rules = dataclasses.replace(some._rules, quiet=timedelta())
    assert events(some.check(Source(reader))) == [("repeat", "table public.odds")]
    mend(short)
    assert events(some.check(Source(reader))) == [("recovered", "table public.odds")]
    assert noted(short) == []
    said = [r.getMessage() for r in caplog.records if "partition_runs" in r.getMessage()]
    assert len(said) == 1, "said once"
    assert said[0].endswith("each process tells for itself: permission denied for table partition_runs")
    reader.dispose()


def test_the_rights_that_it_takes(short: Engine, inbox: Inbox, roles: Roles) -> None:
    teller = create_engine(roles.create("teller"))
    run(
        short,
        f"GRANT SELECT ON partition_config TO {teller.url.username}",
        f"GRANT SELECT, INSERT, UPDATE ON partition_runs TO {teller.url.username}",
    )
    alerts(inbox).check(Source(teller))
    assert noted(short) == [("table public.odds", "open", "sent")]
    teller.dispose()


def test_a_role_that_may_add_rows_and_not_change_them_tells_once(
    short: Engine, inbox: Inbox, roles: Roles
) -> None:
    teller = create_engine(roles.create("teller"))
    run(
        short,
        f"GRANT SELECT ON partition_config TO {teller.url.username}",
        f"GRANT SELECT, INSERT ON partition_runs TO {teller.url.username}",
    )
    some = alerts(inbox)
    some._rules = dataclasses.replace(some._rules, patience=timedelta())
    assert events(some.check(Source(teller))) == [("open", "table public.odds")]
    assert some.check(Source(teller)) == ()
    assert noted(short) == [], "nothing that nobody could end"
    teller.dispose()


def test_a_table_that_is_locked_waits_for_the_next_check(short: Engine, inbox: Inbox) -> None:
    with short.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE partition_runs IN SHARE MODE")
        assert alerts(inbox).check(Source(short)) == ()
    assert len(alerts(inbox).check(Source(short))) == 1


def test_a_run_that_failed_over_no_table_is_told_and_alerts_are_no_runs(
    engine: Engine, inbox: Inbox, database: Database
) -> None:
    declare(engine, "odds", policy())
    keeper = alembic_partitions.keep(engine)
    keeper.maintain()
    run(
        engine,
        "INSERT INTO partition_runs (started_at, action, error)"
        " VALUES (now(), 'maintain', 'the disk is full')",
        "INSERT INTO partition_runs (started_at, action) VALUES (now(), 'alert')",
    )
    some, source = alerts(inbox), Source(engine)
    assert events(some.check(source)) == [("open", "last run")]
    assert "WARNING the last run: the last maintain failed: the disk is full" in inbox.texts[0]
    assert "What to do: alembic-partitions history --failed" in inbox.texts[0]
    last = source.health(max_age=0).last_run
    assert last is not None
    assert last.action == "maintain"
    keeper.maintain()
    assert events(some.check(source)) == [("recovered", "last run")]
    shown = caller(database)
    assert "the last run, WARNING, recovered, sent, id1" in " ".join(shown("history").out.split())
    assert "the last run" not in shown("history", "--failed").out


def test_a_clock_is_not_held_against_an_alert(engine: Engine) -> None:
    declare(engine, "odds", policy(lookback=5))
    mend(engine)
    run(
        engine,
        "UPDATE partition_config SET retention = '2 days'",
        "INSERT INTO partition_runs (started_at, action) VALUES"
        " (now() - interval '3 years', 'maintain'), (now() - interval '1 day', 'alert')",
    )
    with engine.connect() as connection:
        report = maintenance.maintain(connection)
    assert "the last run was on" in (report.failure or "")


def test_a_rehearsal_says_so(short: Engine, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(maintenance.NOW_VARIABLE, "2031-05-06T07:08:09Z")
    alerts(inbox).check(Source(short))
    assert inbox.texts[0].endswith(", rehearsing 2031-05-06 07:08 UTC")


def test_nothing_is_managed_and_nothing_is_told(engine: Engine, inbox: Inbox) -> None:
    assert alerts(inbox).check(Source(engine)) == ()


def test_without_a_notifier_it_is_told_in_the_log(short: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        (sent,) = Alerts().check(Source(short))
    assert f"alert {sent.id}: CRITICAL public.odds: no partition for rows" in caplog.text


@pytest.mark.parametrize("driver", ALL_DRIVERS)
def test_awaited_on_any_engine(short: Engine, database: Database, inbox: Inbox, driver: str) -> None:
    ticks: list[float] = []

    def slow(title: str, text: str) -> None:
        inbox.notify(title, text)
        time.sleep(0.1)

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def check() -> None:
        url = database.driver_url(driver)
        watched = create_async_engine(url) if driver == "asyncpg" else create_engine(url)
        source, some = Source(watched), Alerts(notify=slow, spacing="0 s")
        clock = asyncio.create_task(tick())
        assert events(await some.acheck(source)) == [("open", "table public.odds")]
        during = len(ticks)
        assert await some.acheck(source) == ()
        await asyncio.to_thread(mend, short)
        # On a loaded machine a look may count as older than the last message: then the next check tells.
        while not (sent := await some.acheck(source)):
            await asyncio.sleep(0.05)
        assert events(sent) == [("recovered", "table public.odds")]
        clock.cancel()
        assert during > 2, "the loop went on meanwhile"

    asyncio.run(check())
    assert noted(short) == [("table public.odds", "recovered", "sent")]


TOKEN = "TIiajkdnlazkcOXrIdevi7FQ"
SLACK = f"slack://T1JJ3T3L2/A1BRTD4JD/{TOKEN}"


def test_no_token_is_ever_shown(caplog: pytest.LogCaptureFixture, inbox: Inbox, short: Engine) -> None:
    caplog.set_level(1)
    some = Alerts(SLACK, f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{TOKEN}", notify=inbox.notify)
    assert repr(some) == "Alerts(slack, slack, notify)"
    for wrong in (f"nonsense://{TOKEN}", f"slack://{TOKEN}", TOKEN, f"no such {TOKEN}://x", ""):
        with pytest.raises(SettingError, match="Apprise understands") as refused:
            Alerts(wrong)
        assert TOKEN not in f"{refused.value!r} {refused.value.__cause__} {refused.value.__context__}"
    assert TOKEN not in caplog.text


def test_what_a_library_says_in_detail_while_it_sends_is_not_logged(
    short: Engine, caplog: pytest.LogCaptureFixture, post: tuple[int, list[dict[str, str]]]
) -> None:
    caplog.set_level(1)
    port, arrived = post
    (sent,) = Alerts(f"json://127.0.0.1:{port}/{TOKEN}").check(Source(short))
    assert sent.delivered
    assert len(arrived) == 1
    others = [r.getMessage() for r in caplog.records if r.name != "alembic_partitions"]
    assert "127.0.0.1" not in "".join(others)
    assert TOKEN not in caplog.text
    assert TOKEN not in str(rows(short, TOLD))
    (sent,) = Alerts(f"json://127.0.0.1:1/{TOKEN}", spacing="0 s", quiet="0 s").check(Source(short))
    assert not sent.delivered
    assert "alerts: json did not deliver it" in caplog.text
    assert TOKEN not in caplog.text


def test_without_apprise_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ExtraMissing, match=r'pip install "alembic-partitions\[alerts\]"'):
        Alerts("json://127.0.0.1:1")
    Alerts(notify=lambda title, body: None)  # with a notifier of one's own nothing is needed
