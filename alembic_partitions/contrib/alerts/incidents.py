"""What people are told of a problem, and when: at first, again, and when it is over. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from itertools import accumulate

from alembic_partitions.health import Health, Level

# No message says much more, in characters: Telegram takes 4,096, and refuses the rest.
_LONGEST, _LONGEST_REASON = 3_000, 400


#: The key of the problem that the last run failed over no table of its own.
LAST_RUN = "last run"


class Event(str, Enum):
    """What the last message about a problem said."""

    OPEN = "open"
    REPEAT = "repeat"
    RECOVERED = "recovered"


class Delivery(str, Enum):
    """What became of that message."""

    #: Somebody is about to send it, or died over it.
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that people ought to know."""

    #: The same as long as it is the same problem, whatever the numbers in its reasons.
    key: str
    level: Level
    reasons: tuple[str, ...]
    #: What it is about, in words.
    subject: str
    #: What to do about it.
    remedy: str


@dataclass(frozen=True, slots=True)
class Incident:
    """One problem from its beginning to its end, as far as people were told of it."""

    problem: str
    subject: str
    #: The correlation id: the same in all messages and log lines about it.
    id: str
    level: Level
    event: Event
    state: Delivery
    since: datetime
    #: When its last message was claimed by whoever was to send it.
    at: datetime
    #: When people were last told that it is there; ``None`` before the first message went out.
    told: datetime | None = None
    #: Its row of partition_runs, where it has one.
    row: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether people were told that it is over, or need not be."""
        return self.event is Event.RECOVERED and self.state is Delivery.SENT

    def after(self, delivered: bool) -> Incident:
        """Return it with what became of the message that was being sent."""
        if not delivered:
            return dataclasses.replace(self, state=Delivery.FAILED)
        told = self.told if self.event is Event.RECOVERED else self.at
        return dataclasses.replace(self, state=Delivery.SENT, told=told)


@dataclass(frozen=True, slots=True)
class Rules:
    """How often people are told."""

    #: Between two messages about one problem.
    quiet: timedelta
    #: Between any two messages.
    spacing: timedelta
    #: How long somebody may take to send one before another one sends it.
    patience: timedelta


def problems_of(health: Health, failure: str | None = None) -> list[Problem]:
    """Return what is worth a message: tables that want looking at, a run that failed over none of them.

    :param failure: what the last run failed over and no table's name stands at.
    """
    found = [
        Problem(f"table {table.table}", table.level, table.reasons, table.table, "alembic-partitions status")
        for table in health.tables
        if table.enabled and table.level in (Level.WARNING, Level.CRITICAL)
    ]
    if failure is not None:
        found.append(
            Problem(
                LAST_RUN, Level.WARNING, (failure,), "the last run", "alembic-partitions history --failed"
            )
        )
    return found


def database_away(reason: str) -> Problem:
    """Return the problem that nothing can be looked at."""
    remedy = "alembic-partitions check (does the server run, and let us in?)"
    return Problem("database", Level.CRITICAL, (reason,), "the database", remedy)


def claims(
    problems: Sequence[Problem],
    known: Iterable[Incident],
    rules: Rules,
    *,
    now: datetime,
    looked_at: datetime,
    new_id: Callable[[], str],
    unknown: Collection[str] = (),
) -> list[Incident]:
    """Return the incidents that a message is due about, as being sent; and those that end without one.

    :param problems: all there are at ``looked_at``: what is not among them is over.
    :param known: incidents, of each problem's the newest last.
    :param looked_at: what has happened since then is left to whoever looked later.
    :param unknown: problems that may stand or not: nobody could tell.
    """
    latest = {incident.problem: incident for incident in known}
    if spacing_left(latest.values(), rules, now):
        return []
    found = []
    for problem in problems:
        last = latest.get(problem.key)
        event = _of_standing(problem, last, rules, now, looked_at)
        if event is Event.OPEN and (last is None or last.is_over):
            last = Incident(
                problem.key, problem.subject, new_id(), problem.level, event, Delivery.SENDING, now, now
            )
        if event is not None and last is not None:
            sending = Delivery.SENDING
            found.append(dataclasses.replace(last, level=problem.level, event=event, state=sending, at=now))
    still = {problem.key for problem in problems} | set(unknown)
    for last in latest.values():
        if last.problem in still or last.is_over or _busy(last, rules, now, looked_at):
            continue
        if last.told is None and last.state is Delivery.FAILED:  # nobody knows of it
            found.append(dataclasses.replace(last, event=Event.RECOVERED, state=Delivery.SENT))
        else:
            found.append(dataclasses.replace(last, event=Event.RECOVERED, state=Delivery.SENDING, at=now))
    return found


def spacing_left(known: Iterable[Incident], rules: Rules, now: datetime) -> timedelta:
    """Return for how long no message goes out because one has just gone."""
    ends = (one.at + rules.spacing for one in known if _within(rules.spacing, one.at, now))
    return max(ends, default=now) - now


def _of_standing(
    problem: Problem, last: Incident | None, rules: Rules, now: datetime, looked_at: datetime
) -> Event | None:
    """Return what a message about a problem that stands would say, ``None`` where none is due."""
    if last is None:
        return Event.OPEN
    if _busy(last, rules, now, looked_at):
        return None
    known = last.told if last.event is Event.RECOVERED else last.at if last.state is Delivery.SENT else None
    if known is not None and _within(rules.quiet, known, now) and problem.level <= last.level:
        return None
    return Event.OPEN if last.is_over or last.told is None else Event.REPEAT


def _busy(incident: Incident, rules: Rules, now: datetime, looked_at: datetime) -> bool:
    """Tell whether it is another's: claimed after our look, or just being sent."""
    if looked_at < incident.at <= now:
        return True
    return incident.state is Delivery.SENDING and _within(rules.patience, incident.at, now)


def _within(span: timedelta, then: datetime, now: datetime) -> bool:
    """Tell whether that was less than ``span`` ago.

    What lies in the future was written down by a clock that has been put right since: that is long ago.
    """
    return timedelta() <= now - then < span


# -- in words ------------------------------------------------------------------------------------------


def line(incident: Incident, problem: Problem | None) -> str:
    """Say what a message about it says, in one line."""
    if incident.event is Event.RECOVERED or problem is None:
        return _flat(f"RECOVERED {incident.subject}, after {_length(incident.at - incident.since)}")
    told = "; ".join(problem.reasons)
    if len(told) > _LONGEST_REASON:
        told = told[: _LONGEST_REASON - 3] + "..."
    still = "STILL " if incident.event is Event.REPEAT else ""
    since = f"since {incident.since.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return _flat(f"{still}{problem.level.name} {incident.subject}: {told} ({since})")


def message(
    incidents: Sequence[Incident], problems: Mapping[str, Problem], database: str, where: str
) -> tuple[str, str]:
    """Return the title and the text of one message about some incidents.

    :param where: the database and its server, without credentials.
    """
    first = sorted(incidents, key=lambda one: (one.event is not Event.RECOVERED, one.level), reverse=True)
    lines = [f"{line(one, problems.get(one.problem))} [{one.id}]" for one in first]
    room = [length for length in accumulate(map(len, lines)) if length <= _LONGEST]
    more = len(lines) - len(room)
    lines = [*lines[: len(room)], *([f"and {more} more"] if more else [])]
    standing = [problems[one.problem] for one in first if one.event is not Event.RECOVERED]
    remedies = dict.fromkeys(problem.remedy for problem in standing)
    lines += [f"What to do: {remedy}" for remedy in remedies]
    head = first[0]
    word = "RECOVERED" if head.event is Event.RECOVERED else head.level.name
    others = f" and {len(first) - 1} more" if len(first) > 1 else ""
    title = _flat(f"{word}: {head.subject}{others} ({database})")
    return title, "\n".join([*lines, f"Database: {where}"])


def _flat(text: str) -> str:
    """Return it in one line, whatever the names in it hold."""
    return " ".join(text.split())


def _length(span: timedelta) -> str:
    minutes = span.total_seconds() / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} hours" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"
