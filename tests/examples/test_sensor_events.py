"""The acceptance list of the IoT fleet, end to end on its own example (examples/sensor_events).

Commands are real processes. Most run on a day of the test's choosing; what removes partitions runs today.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import click
import psycopg2.errors
import pytest
import yaml
from alembic import command
from alembic.config import Config
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from alembic_partitions import cli
from alembic_partitions.drivers import sqlstate
from tests.databases import Database
from tests.tables import partitions, rows, run, scalar

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import runbook  # noqa: E402
import scratch  # noqa: E402
from sensor_events import demo, feed, recorder  # noqa: E402
from sensor_events.metrics import Metrics, is_no_partition  # noqa: E402

HERE = EXAMPLES / "sensor_events"
#: The morning on which there is no partition for today. The last migration ran 31 days before.
TODAY = datetime(2026, 11, 25, 13, 37, 11, tzinfo=timezone.utc)
A_DAY = len(feed.DEVICES) * 48


def name_of(day: date) -> str:
    return f"events_{day:%Y_%m_%d}"


def days(first: int, last: int, today: datetime = TODAY) -> list[str]:
    """The names of partitions from ``first`` to ``last`` days after today, both included."""
    return [name_of(today + timedelta(days=day)) for day in range(first, last + 1)]


pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def surroundings(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(scratch.SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("EVENTS_RETENTION_DAYS", "90")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def alembic() -> Config:
    config = Config()  # without its file: env.py would reconfigure the logging of the tests
    config.set_main_option("script_location", str(HERE / "migrations"))
    return config


@pytest.fixture
def neglected(alembic: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The table as it stands on a morning without a partition for today."""
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", (TODAY - timedelta(days=31)).isoformat())
    command.upgrade(alembic, "head")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", TODAY.isoformat())
    assert partitions(engine, "events") == days(-32, -1)
    return engine


@pytest.fixture
def aged(alembic: Config, engine: Engine) -> tuple[Engine, datetime]:
    """The table by the real clock, with two old partitions beside those of today, and rows in all three."""
    command.upgrade(alembic, "head")
    now = scalar(engine, "SELECT now()").astimezone(timezone.utc)
    long_ago = now - timedelta(days=120)
    tell(f"alembic-partitions repair --from {long_ago:%F} --to {long_ago:%F}")
    between = now - timedelta(days=60)
    tell(f"alembic-partitions repair --from {between:%F} --to {between:%F}")
    for day in (long_ago, between, now):
        recorder.record(engine, list(feed.events_on(day.date())))
    return engine, now


def tell(line: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a line in a shell, and see how it ends."""
    done = runbook.shell(line)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def record(day: date, options: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    return tell(
        f"python -m sensor_events.feed --first {day:%F} | python -m sensor_events.recorder {options}", code
    )


def samples(exposed: str) -> dict[str, float]:
    """What Prometheus reads of the metrics of this example's own, but for when each counter was made."""
    found = (sample for family in text_string_to_metric_families(exposed) for sample in family.samples)
    return {
        sample.name: sample.value
        for sample in found
        if sample.name.startswith("events_") and not sample.name.endswith("_created")
    }


def counted(engine: Engine) -> int:
    return int(scalar(engine, "SELECT count(*) FROM events"))


# -- the error reproduced --------------------------------------------------------------------------------


def test_the_error_is_reproduced(neglected: Engine) -> None:
    done = record(TODAY, code=1)
    assert done.stderr.splitlines()[:2] == [
        'psycopg2.errors.CheckViolation: no partition of relation "events" found for row',
        "DETAIL:  Partition key of the failing row contains (occurred_at) = (2026-11-24 20:30:04-03:30).",
    ], "in the session's own zone"
    assert done.stderr.splitlines()[-1] == f"0 events recorded, {A_DAY} refused"

    with pytest.raises(IntegrityError) as refused:
        recorder.record(neglected, list(feed.events_on(TODAY.date())))
    assert isinstance(refused.value.orig, psycopg2.errors.CheckViolation)
    assert counted(neglected) == 0


# -- repair -30..+30 days with a verifying test insert ---------------------------------------------------


def test_repair_makes_30_days_before_and_after_today_and_a_test_insert_proves_it(neglected: Engine) -> None:
    record(TODAY - timedelta(days=1))
    run(neglected, f"DROP TABLE {name_of(TODAY - timedelta(days=9))}")
    done = tell("alembic-partitions repair --table events --days 30")
    assert partitions(neglected, "events") == days(-32, 30)
    proofs = [line.split("proof")[1].strip() for line in done.stderr.splitlines() if "proof" in line]
    assert proofs == [
        f"2026-11-25 13:37:11+00:00 goes to public.{name_of(TODAY)}",
        "2026-10-26 00:00:00+00:00 goes to public.events_2026_10_26",
        "2026-12-25 00:00:00+00:00 goes to public.events_2026_12_25",
    ]
    assert counted(neglected) == A_DAY, "the test rows were rolled back"


def test_after_repair_inserts_pass_and_what_was_refused_comes_again(neglected: Engine) -> None:
    record(TODAY, code=1)
    tell("alembic-partitions repair --table events --days 30")
    for again in (False, True):
        done = record(TODAY)
        assert done.stderr == f"{0 if again else A_DAY} events recorded, 0 refused\n"
    held = rows(neglected, "SELECT DISTINCT tableoid::regclass::text FROM events")
    assert held == [(name_of(TODAY),)]


# -- 90-day retention: EVENTS_RETENTION_DAYS, --retention-days -------------------------------------------

MAINTAIN = 'alembic-partitions maintain --table events --retention-days "$EVENTS_RETENTION_DAYS"'


def test_a_dry_run_of_maintain_names_what_goes_and_changes_nothing(aged: tuple[Engine, datetime]) -> None:
    engine, now = aged
    before = partitions(engine, "events")
    done = tell(f"{MAINTAIN} --dry-run")
    detached = re.findall(r"DETACH PARTITION public\.(\w+)", done.stdout)
    assert detached == [name_of(now - timedelta(days=120))]
    assert partitions(engine, "events") == before


@pytest.mark.parametrize(("kept", "gone"), [("90", (120,)), ("30", (120, 60))])
def test_maintain_detaches_what_events_retention_days_lets_go_and_restore_brings_it_back(
    aged: tuple[Engine, datetime], monkeypatch: pytest.MonkeyPatch, kept: str, gone: tuple[int, ...]
) -> None:
    engine, now = aged
    monkeypatch.setenv("EVENTS_RETENTION_DAYS", kept)
    before, names = partitions(engine, "events"), [name_of(now - timedelta(days=day)) for day in gone]
    assert counted(engine) == 3 * A_DAY

    done = tell(MAINTAIN)
    assert [f"public.events: detached {name}" for name in names] == done.stderr.splitlines()[: len(names)]
    assert set(before) - set(partitions(engine, "events")) == set(names)
    assert counted(engine) == (3 - len(gone)) * A_DAY

    tell(f"alembic-partitions restore --table events {' '.join(names)}")
    assert set(before) <= set(partitions(engine, "events"))
    assert counted(engine) == 3 * A_DAY


def test_retention_is_90_days_when_nobody_says_otherwise(aged: tuple[Engine, datetime]) -> None:
    engine, now = aged
    tell("alembic-partitions maintain --table events")
    assert scalar(engine, "SELECT retention FROM partition_config WHERE table_name = 'events'") == "90 days"
    left = partitions(engine, "events")
    assert name_of(now - timedelta(days=120)) not in left
    assert name_of(now - timedelta(days=60)) in left


# -- check / fix / maintain commands ---------------------------------------------------------------------


def told_commands(page: str) -> Iterator[list[str]]:
    """Yield every command of ours that a page shows, in a block or in backticks, as words."""
    prompt = r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )?"
    for found in re.findall(rf"(?:`|{prompt})alembic-partitions ([^`\n]+)", page, re.MULTILINE):
        yield shlex.split(found.replace('"$EVENTS_RETENTION_DAYS"', "90"))


def parse(words: list[str]) -> None:
    """Parse a command line, as far as running it; what is wrong with it is raised."""
    verb, *arguments = words
    cli.main.commands[verb].make_context(verb, arguments, parent=click.Context(cli.main, obj=cli.door.Call()))


def test_the_command_line_takes_every_command_of_the_run_book() -> None:
    told = list(told_commands((HERE / "README.md").read_text()))
    for words in told:
        parse(words)
    verbs = {words[0] for words in told}
    assert verbs >= {"check", "repair", "maintain", "restore", "history", "status"}
    with pytest.raises(click.UsageError):
        parse(["repair", "--day", "thirty"])


# -- run history -----------------------------------------------------------------------------------------


def test_history_tells_what_was_done_when_and_by_whom(aged: tuple[Engine, datetime]) -> None:
    engine, now = aged
    tell(MAINTAIN)
    (told,) = json.loads(tell("alembic-partitions history --table events --json").stdout)
    maintained, *repaired = told["runs"]
    assert maintained["action"] == "maintain"
    assert [run["action"] for run in repaired] == ["repair", "repair"]
    assert (maintained["detached"], [run["created"] for run in repaired]) == (1, [1, 1])
    assert maintained["run_by"] == scalar(engine, "SELECT current_user")
    assert datetime.fromisoformat(maintained["finished_at"]) >= now
    drawn = tell("alembic-partitions history --table events").stdout
    assert re.search(r"maintain .* 1 detached", drawn)


# -- rows per partition with oldest and newest -----------------------------------------------------------


def test_status_counts_the_rows_of_each_partition_with_the_oldest_and_the_newest(neglected: Engine) -> None:
    for day in (1, 3):
        record(TODAY - timedelta(days=day))
    (told,) = json.loads(tell("alembic-partitions status --table events --rows --json").stdout)
    found = {
        part["name"]: (part["rows"], part["oldest"], part["newest"])
        for part in told["partitions"]
        if part["rows"]
    }
    expected = rows(
        neglected,
        "SELECT tableoid::regclass::text, count(*), min(occurred_at), max(occurred_at)"
        " FROM events GROUP BY 1",
    )
    assert len(expected) == 2
    assert {
        name: (count, datetime.fromisoformat(oldest), datetime.fromisoformat(newest))
        for name, (count, oldest, newest) in found.items()
    } == {name: (count, oldest, newest) for name, count, oldest, newest in expected}

    drawn = tell("alembic-partitions status --table events --partitions --rows").stdout
    (line,) = (line for line in drawn.splitlines() if line.startswith("events_2026_11_24"))
    assert f"{A_DAY}  2026-11-24 00:00:04  2026-11-24 23:31:43  past" in line


# -- warning under 7 days of runway ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "code", "verdict"),
    [
        (-8, 0, "OK"),  # 7 days and some hours
        (-7, 1, "WARNING"),
        (-2, 1, "WARNING"),
        (-1, 2, "CRITICAL"),  # tomorrow is missing
        (0, 2, "CRITICAL"),  # today is
    ],
)
def test_check_warns_under_7_days_and_is_critical_when_today_or_tomorrow_is_missing(
    neglected: Engine, monkeypatch: pytest.MonkeyPatch, ahead: int, code: int, verdict: str
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", (TODAY + timedelta(days=ahead)).isoformat())
    assert tell("alembic-partitions check --table events", code).stdout.startswith(f"{verdict}: ")


# -- a count of "no partition" errors as a metric --------------------------------------------------------


def test_no_partition_errors_are_counted_in_a_textfile(neglected: Engine, tmp_path: Path) -> None:
    textfile = tmp_path / "sensor_events.prom"
    tell(f"python -m sensor_events.recorder --metrics {textfile} < {os.devnull}")
    assert samples(textfile.read_text()) == {
        "events_no_partition_errors_total": 0.0,
        "events_partition_runway_days": 0.0,
    }
    record(TODAY, f"--metrics {textfile}", code=1)
    batches = math.ceil(A_DAY / recorder.BATCH)
    assert samples(textfile.read_text())["events_no_partition_errors_total"] == batches > 1
    assert "# TYPE events_no_partition_errors_total counter" in textfile.read_text()
    assert list(tmp_path.iterdir()) == [textfile]


def test_each_run_that_is_refused_counts_on_from_the_one_before(
    neglected: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    textfile = tmp_path / "sensor_events.prom"
    textfile.write_text("half a li")  # of somebody else's making: counted from 0
    told = []
    for _ in range(3):
        monkeypatch.setattr(sys, "stdin", map(json.dumps, feed.events_on(TODAY.date())))
        assert recorder.main(["--metrics", str(textfile)]) == 1
        told.append(samples(textfile.read_text())["events_no_partition_errors_total"])
    assert told == [2, 4, 6]


def test_the_runway_is_a_gauge_on_stdout_and_is_what_check_says(neglected: Engine) -> None:
    tell("alembic-partitions repair --table events --days 30")
    exposed = samples(record(TODAY).stdout)
    (checked,) = json.loads(tell("alembic-partitions check --table events --json").stdout)["tables"]
    assert exposed["events_no_partition_errors_total"] == 0
    assert exposed["events_partition_runway_days"] == pytest.approx(checked["runway_days"], abs=0.001)
    assert exposed["events_partition_runway_days"] == pytest.approx(30.43, abs=0.01)


def test_a_runway_that_cannot_be_measured_is_not_told(
    neglected: Engine, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run(neglected, "ALTER TABLE partition_config RENAME COLUMN premake TO gone")
    Metrics(neglected).write()
    exposed = capsys.readouterr().out
    assert samples(exposed) == {"events_no_partition_errors_total": 0.0}
    assert "alembic_partitions_up 0.0" in exposed
    assert "the database cannot be looked at" in caplog.text


def test_only_errors_for_want_of_a_partition_are_counted(
    neglected: Engine, database: Database, driver: str, capsys: pytest.CaptureFixture[str]
) -> None:
    yesterday = name_of(TODAY - timedelta(days=1))
    run(neglected, "ALTER TABLE events ADD CONSTRAINT a_known_tenant CHECK (tenant_id <> 'nobody')")
    engine = create_engine(database.driver_url(driver))
    metrics = Metrics(engine)
    insert = (
        "INSERT INTO {} (id, occurred_at, tenant_id, device_id, sequence, event_type, payload)"
        " VALUES (1, '{}', '{}', 'd', 1, 't', '{{}}')"
    )
    judged = []
    for target, at, tenant in (
        ("events", "2026-11-25 12:00Z", "harbour"),  # no partition
        ("events", "2026-11-24 12:00Z", "nobody"),  # a CHECK
        (yesterday, "2026-11-23 12:00Z", "harbour"),  # a partition, but not this row's
    ):
        with pytest.raises(DBAPIError) as refused, engine.begin() as connection:
            connection.execute(text(insert.format(target, at, tenant)))
        judged.append(is_no_partition(refused.value.orig))
        assert sqlstate(refused.value) == "23514"
    metrics.write()
    engine.dispose()
    assert judged == [True, False, False]
    assert samples(capsys.readouterr().out)["events_no_partition_errors_total"] == 1


# -- a Kubernetes CronJob and alert rules ----------------------------------------------------------------

CRONJOBS = {
    job["metadata"]["name"]: job for job in yaml.safe_load_all((HERE / "k8s/cronjob.yaml").read_text())
}
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((HERE / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


def container_of(job: str) -> dict[str, Any]:
    (container,) = CRONJOBS[job]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("job", CRONJOBS)
def test_a_cronjob_runs_one_at_a_time_bounded_and_without_rights_it_does_not_need(job: str) -> None:
    assert (CRONJOBS[job]["apiVersion"], CRONJOBS[job]["kind"]) == ("batch/v1", "CronJob")
    schedule = CRONJOBS[job]["spec"]
    assert (schedule["concurrencyPolicy"], schedule["timeZone"]) == ("Forbid", "Etc/UTC")
    task = schedule["jobTemplate"]["spec"]
    assert task["backoffLimit"] == {"events-partitions-maintain": 3, "events-partitions-check": 0}[job]
    assert task["activeDeadlineSeconds"] < 3600
    pod = task["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"] is True
    container = container_of(job)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert container["resources"]["limits"].keys() == {"memory"}
    secrets = {variable["name"]: variable.get("valueFrom") for variable in container["env"]}
    reference = {"secretKeyRef": {"name": "sensor-events-database", "key": "url"}}
    assert secrets.pop("DATABASE_URL") == reference
    assert not any(secrets.values())


def run_in_cluster(job: str) -> subprocess.CompletedProcess[str]:
    """Run a CronJob's very command, in the environment that it asks for, as Kubernetes would."""
    container = container_of(job)
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    given["DATABASE_URL"] = os.environ["DATABASE_URL"]
    words = [
        re.sub(r"\$\((\w+)\)", lambda match: given[match[1]], word)
        for word in (*container["command"], *container["args"])
    ]
    assert words[0] == "alembic-partitions"
    return subprocess.run(
        [sys.executable, "-m", "alembic_partitions", *words[1:]],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **given},
    )


def test_the_cronjobs_keep_a_table_ready_and_fail_when_it_is_not(aged: tuple[Engine, datetime]) -> None:
    engine, now = aged
    for day in range(30, 0, -1):
        run(engine, f"DROP TABLE IF EXISTS {name_of(now + timedelta(days=day))}")
    done = run_in_cluster("events-partitions-check")
    assert done.returncode == cli.CHECK_CRITICAL, done.stderr

    done = run_in_cluster("events-partitions-maintain")
    assert done.returncode == cli.EXIT_OK, done.stderr
    assert name_of(now - timedelta(days=120)) not in partitions(engine, "events")
    assert name_of(now + timedelta(days=29)) in partitions(engine, "events")

    done = run_in_cluster("events-partitions-check")
    assert done.returncode == cli.CHECK_OK, done.stderr


EXPECTED = {
    "EventsInsertsFindNoPartition": ("critical", "increase(events_no_partition_errors_total[1h]) > 0"),
    "EventsPartitionsEndTomorrow": ("critical", "min(events_partition_runway_days) < 1"),
    "EventsPartitionsRunOut": ("warning", "min(events_partition_runway_days) < 7"),
    "EventsPartitionsUnknown": ("warning", "absent(events_partition_runway_days >= 0)"),
    "EventsMaintenanceTooOld": ("warning", "> 26 * 3600"),
    "EventsCheckNotOk": ("warning", "> 3 * 3600"),
}


def test_each_alert_rule_is_tested_here() -> None:
    assert set(RULES) == set(EXPECTED)


@pytest.mark.parametrize("alert", EXPECTED)
def test_the_alert_rules_ask_for_metrics_jobs_and_commands_that_exist(
    neglected: Engine, capsys: pytest.CaptureFixture[str], alert: str
) -> None:
    rule, (severity, condition) = RULES[alert], EXPECTED[alert]
    assert rule["labels"] == {"severity": severity}
    assert condition in rule["expr"]
    assert rule["expr"].count("(") == rule["expr"].count(")")
    Metrics(neglected).write()
    exposed = samples(capsys.readouterr().out)
    assert set(re.findall(r"\bevents_\w+", rule["expr"])) <= set(exposed)
    assert set(re.findall(r'cronjob="([^"]+)"', rule["expr"])) <= set(CRONJOBS)
    for line in rule["annotations"].values():
        assert line.count("alembic-partitions") == line.count("`alembic-partitions ")
        for words in told_commands(line):
            parse(words)


# -- the migration, and the demo -------------------------------------------------------------------------


def test_the_model_is_the_end_state_of_the_migration_which_goes_back_and_applies_again(
    alembic: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", TODAY.isoformat())
    command.upgrade(alembic, "head")
    command.check(alembic)
    assert partitions(engine, "events") == days(-1, 30)
    command.downgrade(alembic, "base")
    assert scalar(engine, "SELECT to_regclass('events')") is None
    command.upgrade(alembic, "head")
    assert partitions(engine, "events") == days(-1, 30)


def test_the_demo_runs_as_it_should_and_cleans_up(database: Database, engine: Engine) -> None:
    before = dict(os.environ)
    out = io.StringIO()
    assert demo.main(database.url.render_as_string(hide_password=False), out=out) == 0, out.getvalue()
    assert dict(os.environ) == before
    told = out.getvalue()
    for line in (
        "no partition of relation",
        "31 made",
        "3 detached",
        "1 restored",
        "WARNING: ",
        "CRITICAL: ",
    ):
        assert line in told
    assert rows(engine, "SELECT datname FROM pg_database WHERE datname LIKE 'sensor_events_demo%'") == []
