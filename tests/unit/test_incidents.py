"""When people are told of a problem, and what: no clock, no database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count

from alembic_partitions.contrib.alerts.incidents import (
    Delivery,
    Incident,
    Problem,
    Rules,
    claims,
    database_away,
    message,
    problems_of,
)
from alembic_partitions.health import Health, Level, TableHealth
from tests.tables import NOW

MINUTE = timedelta(minutes=1)
RULES = Rules(quiet=10 * MINUTE, spacing=timedelta(seconds=10), patience=timedelta(seconds=20))
DAY = timedelta(days=1)


def problem(table: str = "odds", level: Level = Level.WARNING, *reasons: str) -> Problem:
    return Problem(f"table {table}", level, reasons or ("it runs out",), table, "alembic-partitions status")


class World:
    """Checks one after the other, as one process makes them."""

    def __init__(self) -> None:
        self.now: datetime = NOW
        self.known: dict[str, Incident] = {}
        self.ids = map("id{}".format, count(1))

    def check(
        self, *problems: Problem, after: timedelta = MINUTE, delivered: bool | None = True
    ) -> list[str]:
        """Return what was told, as ``open odds id1``; ``delivered`` is ``None`` where the sender dies."""
        self.now += after
        found = self.decide(problems)
        told = [one for one in found if one.state is Delivery.SENDING]
        if delivered is not None:
            found = [one.after(delivered) if one in told else one for one in found]
        self.known |= {one.problem: one for one in found}
        return [f"{one.event.value} {one.subject} {one.id}" for one in told]

    def decide(self, problems: Sequence[Problem], looked: timedelta = timedelta()) -> list[Incident]:
        known = self.known.values()
        return claims(
            problems, known, RULES, now=self.now, looked_at=self.now - looked, new_id=lambda: next(self.ids)
        )


def test_told_once_then_every_ten_minutes_then_that_it_is_over() -> None:
    world = World()
    told = {minute: world.check(problem()) for minute in range(25)}
    assert {minute: one for minute, one in told.items() if one} == {
        0: ["open odds id1"],
        10: ["repeat odds id1"],
        20: ["repeat odds id1"],
    }
    assert world.check() == ["recovered odds id1"]
    assert world.check() == []


def test_what_gets_worse_is_told_at_once_and_what_gets_better_is_not() -> None:
    world = World()
    world.check(problem())
    assert world.check(problem(level=Level.CRITICAL)) == ["repeat odds id1"]
    assert world.check(problem()) == []
    assert world.check(problem(level=Level.CRITICAL)) == [], "that was known"


def test_several_at_once_are_one_message_and_two_messages_are_apart() -> None:
    world = World()
    assert len(world.check(problem("odds"), problem("results"))) == 2
    third = problem("raw")
    everything = (problem("odds"), problem("results"), third)
    assert world.check(*everything, after=timedelta(seconds=9)) == []
    assert world.check(*everything, after=timedelta(seconds=1)) == ["open raw id3"]


def test_what_comes_back_is_left_alone_as_long_as_what_stands() -> None:
    world = World()
    world.check(problem())
    assert world.check() == ["recovered odds id1"]
    assert world.check(problem()) == []
    assert world.check(problem(level=Level.CRITICAL)) == ["open odds id2"], "but for what is worse"
    assert world.check() == ["recovered odds id2"]
    assert world.check(problem(), after=10 * MINUTE) == ["open odds id3"]


def test_a_message_that_failed_is_tried_again_at_the_next_check() -> None:
    world = World()
    assert world.check(problem(), delivered=False) == ["open odds id1"]
    assert world.check(problem()) == ["open odds id1"]
    assert world.check(problem()) == []
    assert world.check(delivered=False) == ["recovered odds id1"]
    assert world.check(problem()) == [], "it never was over, as far as people know"
    assert world.check() == ["recovered odds id1"]


def test_what_nobody_was_told_of_ends_in_silence() -> None:
    world = World()
    world.check(problem(), delivered=False)
    assert world.check() == []
    assert world.check(problem()) == ["open odds id2"]


def test_a_sender_that_died_is_stood_in_for_after_a_while() -> None:
    world = World()
    world.check(problem(), delivered=None)
    assert world.check(problem(), after=timedelta(seconds=19)) == []
    assert world.check(problem(), after=timedelta(seconds=1)) == ["open odds id1"]
    world.check(problem("results"), delivered=None)
    assert world.check(problem("odds"), after=timedelta(seconds=15)) == []
    assert world.check(problem("odds")) == ["recovered results id2"], "it may have gone out"


def test_an_older_look_has_no_say() -> None:
    world = World()
    world.check(problem())
    world.now += timedelta(seconds=30)
    assert world.decide([], looked=MINUTE) == []
    world.check()
    world.now += timedelta(seconds=30)
    assert world.decide([problem(level=Level.CRITICAL)], looked=MINUTE) == []


def test_a_clock_that_was_ahead_silences_nobody() -> None:
    world = World()
    world.now += DAY
    world.check(problem("odds"), problem("raw"))
    world.check(problem("results"), delivered=None)
    world.now -= DAY
    assert world.check(problem("odds"), problem("results")) == [
        "repeat odds id1",
        "open results id3",
        "recovered raw id2",
    ]
    assert world.check(problem("odds"), problem("results")) == [], "these were told by the right clock"


def test_what_nobody_can_tell_is_not_over() -> None:
    world = World()
    world.check(problem())
    world.now += MINUTE
    known = world.known.values()
    told = {"now": world.now, "looked_at": world.now, "new_id": lambda: next(world.ids)}
    assert claims([], known, RULES, **told, unknown={"table odds"}) == []  # type: ignore[arg-type]
    assert len(claims([], known, RULES, **told)) == 1  # type: ignore[arg-type]


def test_what_is_worth_a_message() -> None:
    odds = TableHealth("public.odds", False, (), (), Level.WARNING, reasons=("it runs out",))
    tables = (
        odds,
        dataclasses.replace(odds, table="public.raw", level=Level.OK),
        dataclasses.replace(odds, table="public.off", enabled=False),
    )
    found = problems_of(Health(True, tables), "the last maintain failed: the disk is full")
    assert [(one.subject, one.level, one.reasons) for one in found] == [
        ("public.odds", Level.WARNING, ("it runs out",)),
        ("the last run", Level.WARNING, ("the last maintain failed: the disk is full",)),
    ]


def test_a_message_says_what_is_wrong_since_when_and_what_to_do() -> None:
    world = World()
    results = problem("results", Level.WARNING, "a", "b\nc")
    world.check(results, problem("raw"))
    world.now += 30 * MINUTE
    odds = problem("od\nds", Level.CRITICAL, "no partition for rows that are written now")
    told = world.decide([odds, results])
    title, text = message(told, {p.key: p for p in (odds, results)}, "racing", "racing at db:5432")
    assert title == "CRITICAL: od ds and 2 more (racing)"
    assert text.splitlines() == [
        "CRITICAL od ds: no partition for rows that are written now (since 2026-04-05 02:08 UTC) [id3]",
        "STILL WARNING results: a; b c (since 2026-04-05 01:38 UTC) [id1]",
        "RECOVERED raw, after 30 min [id2]",
        "What to do: alembic-partitions status",
        "Database: racing at db:5432",
    ]


def test_a_message_is_never_long_and_a_recovery_has_nothing_to_do() -> None:
    world = World()
    many = [problem(f"t{number}", Level.WARNING, "x" * 1000) for number in range(100)]
    told = world.decide(many)
    _, text = message(told, {p.key: p for p in many}, "racing", "racing at db:5432")
    assert "and 94 more" in text
    assert len(text.splitlines()) == 9
    assert len(text) < 4_096
    away = database_away("connection refused")
    world = World()
    world.check(away)
    world.now += 3 * 60 * MINUTE
    title, text = message(world.decide([]), {}, "racing", "racing at db:5432")
    assert title == "RECOVERED: the database (racing)"
    assert text == "RECOVERED the database, after 3 hours [id1]\nDatabase: racing at db:5432"
