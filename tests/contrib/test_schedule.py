"""The schedule on a host and a database whose clocks the test moves; nothing sleeps, nothing is connected."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine

from alembic_partitions.contrib.schedule import Schedule, duties, rhythm, runs
from alembic_partitions.contrib.schedule import scheduling as schedule
from alembic_partitions.contrib.schedule.beating import BEAT
from alembic_partitions.contrib.schedule.runs import Runs
from alembic_partitions.errors import NoPartitionError, PolicyError, RunUnderWay
from alembic_partitions.keeper import Keeper
from alembic_partitions.maintenance import Report, Standing, TableResult
from tests.zones import utc

AUCKLAND = "Pacific/Auckland"


@dataclass
class World:
    """A host's two clocks, a database's, and what its partition_runs holds."""

    now: datetime
    awake: float = 1000.0
    #: How far the host's clock is from the database's, in seconds.
    wrong: float = 0.0
    runs: list[tuple[datetime, str | None]] = field(default_factory=list)
    looks: int = 0
    fails: bool = False
    #: Whether a run is written down.
    writes: bool = True
    others_at_work: bool = False
    ensured: int = 0

    def time(self) -> float:
        return self.now.timestamp() + self.wrong

    def monotonic(self) -> float:
        return self.awake

    def pass_by(self, seconds: float, asleep: bool = False) -> None:
        self.now += timedelta(seconds=seconds)
        self.awake += 0 if asleep else seconds

    def standing(self) -> Standing:
        self.looks += 1
        known = self.runs if self.writes else []
        good = max((at for at, error in known if not error and at <= self.now), default=None)
        bad = [at for at, error in known if error and at <= self.now and (good is None or at > good)]
        return Standing(self.now, False, good, len(bad), max(bad, default=None))

    def maintain(self) -> Report:
        self.runs.append((self.now, "too bad" if self.fails else None))
        self.pass_by(0.2)
        return Report((TableResult("public.odds", error="too bad" if self.fails else None),))

    def begun(self) -> list[str]:
        return [f"{at:%m-%d %H:%M:%S}" for at, _ in self.runs]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(utc("2026-04-03 01:37:11"))

    @contextmanager
    def one_run(*args: Any, **options: Any) -> Iterator[None]:
        if made.others_at_work:
            raise RunUnderWay(database="d", seconds=0, holder="process 7")
        yield

    def ensure(keeper: Keeper) -> None:
        made.ensured += 1

    monkeypatch.setattr(schedule, "time", made)
    monkeypatch.setattr(duties, "time", made)
    monkeypatch.setattr(runs, "one_schedule", lambda *args: nullcontext())
    monkeypatch.setattr(runs, "one_run", one_run)
    monkeypatch.setattr(Keeper, "maintain", lambda keeper, **orders: made.maintain())
    monkeypatch.setattr(Keeper, "ensure", ensure)
    monkeypatch.setattr(Runs, "_read", lambda self: ("public", made.standing()))
    monkeypatch.setattr(Schedule, "_begin", lambda self, attempt: attempt.run())
    return made


def started(
    every: str | None = None, cron: str | None = None, orders: dict[str, Any] | None = None, **options: Any
) -> Schedule:
    """Return a schedule whose heart does not beat by itself."""
    keeper = Keeper(create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/nowhere"))
    return Schedule(keeper, rhythm(every, cron, AUCKLAND), orders or {}, **options)


def live(world: World, until: str, *schedules: Schedule) -> None:
    """Beat as APScheduler does, the nearest beat first, each in a process of its own."""
    next_beats = {id(s): world.awake + 0.1 * number for number, s in enumerate(schedules)}
    while world.now < utc(until):
        for one in sorted(schedules, key=lambda s: next_beats[id(s)])[:1]:
            world.pass_by(max(next_beats[id(one)] - world.awake, 0))
            one.beat()
            next_beats[id(one)] = world.awake + min(max(one.seconds_to_beat(), 0.01), BEAT)


@pytest.mark.parametrize(
    ("cron", "begin", "end", "begun"),
    [
        (
            "0 0 * * *",
            "2026-04-04 01:37:11",
            "2026-04-07 01:37:11",
            ["04-04 11:00:00", "04-05 12:00:00", "04-06 12:00:00"],
        ),
        (
            "0 0 * * *",
            "2026-09-26 01:37:11",
            "2026-09-28 15:37:11",
            ["09-26 12:00:00", "09-27 11:00:00", "09-28 11:00:00"],
        ),
        ("30 2 * * *", "2026-04-04 01:37:11", "2026-04-06 01:37:11", ["04-04 13:30:00", "04-05 14:30:00"]),
        ("30 2 * * *", "2026-09-26 01:37:11", "2026-09-28 01:37:11", ["09-26 14:00:00", "09-27 13:30:00"]),
    ],
)
def test_a_clock_change_brings_no_run_too_many_and_none_too_few(
    world: World, cron: str, begin: str, end: str, begun: list[str]
) -> None:
    world.now = utc(begin)
    world.runs = [(world.now, None)]
    live(world, end, started(cron=cron), started(cron=cron))
    assert [at.replace(microsecond=0) for at, _ in world.runs[1:]] == [utc(f"2026-{at}") for at in begun]


def test_every_twelve_hours_is_by_the_last_run_whoever_did_it(world: World) -> None:
    world.now = utc("2026-04-04 01:37:11")
    one, other = started("12h"), started("12h")
    live(world, "2026-04-04 09:00", one, other)
    world.runs.append((world.now, None))  # somebody called maintain
    live(world, "2026-04-05 23:00", one, other)
    assert world.begun()[0] == "04-04 01:37:11", "there was none yet"
    gaps = [later - earlier for (earlier, _), (later, _) in zip(world.runs[1:], world.runs[2:], strict=False)]
    assert len(gaps) == 3
    assert all(timedelta(hours=12) <= gap < timedelta(hours=12, seconds=5) for gap in gaps)


def test_times_that_nobody_was_there_for_are_made_up_once(world: World) -> None:
    world.runs = [(world.now - timedelta(days=9), None)]
    live(world, "2026-04-03 11:30:00", started(cron="0 0 * * *"), started(cron="0 0 * * *"))
    assert world.begun()[1:] == ["04-03 01:37:11", "04-03 11:00:00"]


def test_a_machine_that_slept_over_midnight_runs_when_it_wakes(world: World) -> None:
    world.runs = [(world.now, None)]
    one = started(cron="0 0 * * *")
    live(world, "2026-04-03 10:30:00", one)
    world.pass_by(2 * 3600, asleep=True)
    awake = world.now
    live(world, "2026-04-03 14:00:00", one)
    assert len(world.runs) == 2
    assert world.runs[1][0] - awake <= timedelta(seconds=BEAT)


@pytest.mark.parametrize("days", [-1, 1])
def test_a_host_whose_clock_is_set_goes_by_the_databases(world: World, days: int) -> None:
    world.runs = [(world.now, None)]
    one = started(cron="0 0 * * *")
    live(world, "2026-04-03 10:30:00", one)
    looks = world.looks
    world.wrong = days * 86400
    one.beat()
    assert world.looks == looks + 1, "it looks, and finds that nothing is due"
    live(world, "2026-04-03 13:00:00", one)
    assert world.begun()[1:] == ["04-03 11:00:00"]


def test_a_run_of_the_future_is_none(world: World) -> None:
    world.runs = [(world.now - timedelta(hours=1), None), (world.now + timedelta(days=3650), None)]
    one = started("12h")
    one._runs._memory.good = world.now + timedelta(days=3650)
    live(world, "2026-04-03 13:00:00", one)
    assert world.begun()[2:] == ["04-03 12:37:11"]


def test_a_run_that_failed_is_tried_again_ever_later(world: World) -> None:
    world.fails = True
    one, other = started(cron="0 0 * * *"), started(cron="0 0 * * *")
    live(world, "2026-04-03 03:00:00", one, other)
    gaps = [
        round((later[0] - earlier[0]) / timedelta(minutes=1))
        for earlier, later in zip(world.runs, world.runs[1:], strict=False)
    ]
    assert gaps == [5, 10, 20, 40]
    world.fails = False
    live(world, "2026-04-03 11:30:00", one, other)
    assert world.begun()[5:] == ["04-03 04:12:11", "04-03 11:00:00"]


def test_the_next_time_does_not_wait_for_a_run_that_failed_long_ago(world: World) -> None:
    failed = utc("2026-04-03 10:50:00")
    world.runs = [(failed - timedelta(hours=n), "too bad") for n in range(9, -1, -1)]
    world.now = utc("2026-04-03 10:51:00")
    live(world, "2026-04-03 11:01:00", started(cron="0 0 * * *"))
    assert world.begun()[10:] == ["04-03 11:00:00"]


def test_a_database_that_can_write_no_run_down_is_maintained_no_more_often(world: World) -> None:
    world.writes = False
    live(world, "2026-04-04 01:37:11", started("12h"))
    assert world.begun() == ["04-03 01:37:11", "04-03 13:37:11", "04-04 01:37:11"]


def test_the_horizon_does_not_wait_for_who_splits_for_hours(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alembic_partitions")
    world.others_at_work = True
    one = started("12h")
    live(world, "2026-04-03 02:00:00", one)
    assert world.ensured > 10
    assert world.runs == []
    assert caplog.text.count("the partition run waits: process 7 is at work") == 1
    world.others_at_work = False
    live(world, "2026-04-03 02:02:00", one)
    assert len(world.runs) == 1


def test_a_standby_and_a_database_without_tables_are_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alembic_partitions")
    found: list[Any] = [(None, None), ("public", Standing(world.now, in_recovery=True))]
    monkeypatch.setattr(Runs, "_read", lambda self: found[0])
    one = started("12h", ensure_first=True)
    live(world, "2026-04-03 01:40:00", one)
    del found[0]
    live(world, "2026-04-03 01:45:00", one)
    assert world.runs == []
    assert world.ensured == 0
    assert [line for line in caplog.messages if "maintained yet" in line] == [
        "nothing is maintained yet: there is no partition_config",
        "nothing is maintained yet: this server is a standby",
    ]


def test_who_is_told_and_who_tells_cannot_end_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alembic_partitions")
    told: list[tuple[Report | None, Exception | None]] = []
    checks: list[datetime] = []

    class Alerts:
        def check(self, source: object) -> None:
            checks.append(world.now)
            raise OSError("no route to https://api.telegram.org/bot12:hush/send")

    def on_run(report: Report | None, error: Exception | None) -> None:
        told.append((report, error))
        raise ValueError("on_run is broken")

    one = started("1 h", alerts=Alerts(), on_run=on_run)
    live(world, "2026-04-03 02:40:00", one)
    assert [(report is not None, error) for report, error in told] == [(True, None), (True, None)]
    assert len(checks) == 13, "every five minutes, and after each run"
    assert checks[-1] - world.runs[1][0] < timedelta(seconds=1)
    assert "on_run is broken" in caplog.text
    assert "partition alerts: OSError" in caplog.text
    assert "hush" not in caplog.text


def test_a_run_that_dies_is_told_and_tried_again_soon(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    dies = [True, True, True]

    def maintain(keeper: Keeper, **orders: Any) -> Report:
        if dies and dies.pop():
            raise ConnectionError("postgresql://me:hush@db went away")
        return world.maintain()

    monkeypatch.setattr(Keeper, "maintain", maintain)
    live(world, "2026-04-03 01:40:00", started("12h", on_run=lambda report, error: told.append(error)))
    assert [type(error) for error in told] == [ConnectionError] * 3 + [type(None)]
    assert world.begun() == ["04-03 01:37:46"]
    assert "next try in 5 s" in caplog.text
    assert "next try in 20 s" in caplog.text
    assert "hush" not in caplog.text


def test_a_run_whose_orders_are_refused_makes_the_horizon_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    def maintain(keeper: Keeper, **orders: Any) -> Report:
        raise PolicyError(field="retention", problem="given for 2 tables at once", remedy="Name them.")

    monkeypatch.setattr(Keeper, "maintain", maintain)
    live(world, "2026-04-03 01:37:13", started("12h", on_run=lambda report, error: told.append(error)))
    assert world.ensured == 2
    assert [type(error) for error in told] == [PolicyError] * 2
    assert "given for 2 tables at once. Name them.; next try in 5 s" in caplog.text


def test_a_partition_to_vacuum_that_is_gone_stops_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alembic_partitions")
    gone = {"odds_p1", "odds_p2"}
    tended: list[Any] = []

    def maintain(keeper: Keeper, **orders: Any) -> Report:
        for name in orders["vacuum"]:
            if name in gone:
                raise NoPartitionError(name=name)
        tended.append(orders)
        return world.maintain()

    monkeypatch.setattr(Keeper, "maintain", maintain)
    vacuum = ("odds_p1", "odds_p2", "odds_p3", "closed")
    live(world, "2026-04-03 03:00:00", started("1 h", orders={"vacuum": vacuum, "analyze": True}))
    assert tended == [{"vacuum": ["odds_p3", "closed"], "analyze": True}] * 2
    assert caplog.text.count("no vacuum of odds_p1: it is no partition any more") == 1, "said once"


class Counting:
    """Alerts that only note when they are checked."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.checks: list[datetime] = []
        self.spacing: list[float] = []

    def check(self, source: object) -> None:
        self.checks.append(self._world.now)

    def held_back(self, source: object) -> float:
        return self.spacing.pop() if self.spacing else 0.0


@pytest.mark.parametrize("takes", [1, 7200])
def test_nobody_is_alarmed_while_the_first_run_makes_what_is_lacking(
    world: World, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    at_it: list[duties.Attempt] = []
    alerts = Counting(world)
    one = started("12h", alerts=alerts)
    monkeypatch.setattr(
        Schedule,
        "_begin",
        lambda self, attempt: at_it.append(attempt) if attempt is self._work.current else attempt.run(),
    )
    began = world.now
    world.pass_by(0.1)
    one.beat()
    with at_it[0].at_work():
        live(world, str(began + timedelta(seconds=takes)), one)
    seconds = [round((at - began).total_seconds()) for at in alerts.checks]
    assert seconds[:1] == ([60] if takes > 60 else []), "but nobody is left in the dark for hours"
    before = len(seconds)
    at_it[0].run()
    assert not one._work.busy
    one.beat()
    assert len(alerts.checks) == before + 1
    one.beat()
    assert len(alerts.checks) == before + 1


def test_what_a_message_just_before_has_held_back_is_looked_at_soon(world: World) -> None:
    alerts = Counting(world)
    alerts.spacing = [8.0]
    world.runs = [(world.now, None)]
    live(world, "2026-04-03 01:43:00", started("12h", alerts=alerts))
    gaps = [(b - a).total_seconds() for a, b in zip(alerts.checks, alerts.checks[1:], strict=False)]
    assert [round(gap) for gap in gaps] == [8, 300]


def test_a_look_without_an_answer_is_given_up_and_a_run_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at_it: list[duties.Attempt] = []
    alerts = Counting(world)
    monkeypatch.setattr(
        Schedule,
        "_begin",
        lambda self, attempt: attempt.run() if attempt is self._checks.current else at_it.append(attempt),
    )
    one = started("12h", alerts=alerts)
    began = world.now
    live(world, "2026-04-03 05:00:00", one)
    assert alerts.checks[0] - began < timedelta(seconds=32), "people are told"
    assert 5 < len(at_it) < 12, "the more hang, the longer the next is waited for"
    assert "partition run: no answer for 30 s; next try in 5 s" in caplog.text
    assert "partition run: no answer for 60 s; next try in 10 s" in caplog.text
    at_it[0].run()
    assert world.runs == [], "what comes back late begins nothing"
    while not one._work.busy:
        world.pass_by(BEAT)
        one.beat()
    last = at_it[-1]
    with last.at_work():
        live(world, "2026-04-03 15:00:00", one)
        assert at_it[-1] is last
    last.run()
    assert len(world.runs) == 1
    assert not one._work.busy


def test_at_the_end_nothing_comes_after_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at_it: list[duties.Attempt] = []
    monkeypatch.setattr(Schedule, "_begin", lambda self, attempt: at_it.append(attempt))
    one = started("12h")
    one._work.begin(one._begin)

    def run_and_end() -> None:
        with at_it[0].at_work():
            assert one._work.end() is at_it[0]

    with pytest.raises(duties.GivenUp):
        run_and_end()
    at_it[0].run()
    assert world.runs == [], "nor does a look that has ended begin one"
