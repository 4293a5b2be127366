"""Tell people what is wrong with partitions: once, now and then again, and when it is over.

Any number of processes may check: who tells is settled in partition_runs, in rows whose action is ``alert``.
A claim is written down in a short transaction; then the message is sent, outside any; then what became of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from alembic_partitions import maintenance
from alembic_partitions.contrib.source import Source
from alembic_partitions.drivers import sqlstate
from alembic_partitions.health import WARN_DAYS, Level
from alembic_partitions.keeper import seconds
from alembic_partitions.standing import health_of_view
from alembic_partitions.talk import explain

from .incidents import (
    LAST_RUN,
    Delivery,
    Event,
    Incident,
    Problem,
    Rules,
    claims,
    database_away,
    line,
    message,
    problems_of,
    spacing_left,
)
from .notifiers import Notifier, by_url, send_by_all
from .patience import Patience
from .stores import Decide, Memory, Rows

logger = logging.getLogger("alembic_partitions")

#: Where they were claimed, and what is to be sent or was ended.
Claimed: TypeAlias = "tuple[Memory | Rows, list[Incident]]"

# The role may not, or nobody may: on a standby.
_NEVER = {"42501", "25006"}


@dataclass(frozen=True, slots=True)
class Sent:
    """One problem that a message was about."""

    problem: str
    event: str
    level: Level
    #: The correlation id: in all messages and log lines about this problem until it is over.
    id: str
    delivered: bool


@dataclass(slots=True)
class _Told:
    """What this process knows of one engine's database."""

    #: What it has told: that the database is away.
    away: Memory = field(default_factory=Memory)
    #: The rest, where its rows cannot be used.
    rest: Memory | None = None
    patience: Patience = field(default_factory=Patience)
    #: How long the last check is to be left alone for the sake of spacing, in seconds.
    held_back: float = 0.0


class Alerts:
    """Tells people of tables that want looking at, of runs that failed, and of a database that is away.

    All processes that check one database should do so with the same settings and rights. Where the role may
    not SELECT, INSERT and UPDATE partition_runs, or the database is away, each process goes by what it has
    told itself.

    :param urls: where to, in Apprise's notation: ``tgram://TOKEN/CHAT``, ``slack://...``, ``mailto://...``.
    :param notify: a notifier of your own, called with title and text; ``False`` or an exception means that it
        was not delivered.
    :param warn_days: a runway in days that is worth a message if it is shorter.
    :param quiet: how long people are left alone about one problem that stands, unless it gets worse.
    :param spacing: how long they are left alone after any message.
    :param timeout: how long a notifier may take; one that takes longer is not called again meanwhile. For as
        long a message waits for one that is busy with another database's.
    :param correlation: makes the id of a problem.
    :raises SettingError: Apprise can do nothing with one of the URLs.
    """

    def __init__(
        self,
        *urls: str,
        notify: Callable[[str, str], object] | None = None,
        warn_days: float = WARN_DAYS,
        quiet: str = "10 min",
        spacing: str = "10 s",
        timeout: str = "10 s",
        correlation: Callable[[], str] | None = None,
    ) -> None:
        self._notifiers = [by_url(url) for url in urls]
        if notify is not None:
            self._notifiers.append(Notifier(getattr(notify, "__name__", "notify"), notify))
        if len(self._notifiers) > 1:
            for number, one in enumerate(self._notifiers, start=1):
                one.place = f" (number {number} of {len(self._notifiers)})"
        self._warn_days = warn_days
        self._timeout = seconds("timeout", timeout)
        self._rules = Rules(
            quiet=timedelta(seconds=seconds("quiet", quiet)),
            spacing=timedelta(seconds=seconds("spacing", spacing)),
            patience=timedelta(seconds=3 * self._timeout),
        )
        self._new_id = correlation or partial(secrets.token_hex, 4)
        # By engine: two that say the same of where they connect may lead to two databases.
        self._told: WeakKeyDictionary[Engine, _Told] = WeakKeyDictionary()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"Alerts({', '.join(one.name for one in self._notifiers)})"

    async def acheck(self, source: Source) -> tuple[Sent, ...]:
        """Check as :meth:`check` does, without stalling the event loop."""
        if source.is_async:
            return await greenlet_spawn(self.check, source)
        return await asyncio.to_thread(self.check, source)

    def check(self, source: Source) -> tuple[Sent, ...]:
        """Look anew, and tell people what is due; never raises because of a database or a notifier.

        :param source: of a synchronous engine, or within SQLAlchemy's greenlet. What this process alone has
            told is remembered as long as its engine is there.
        :return: what the message was about, if one was due.
        """
        self._after_fork()
        told = self._told.setdefault(source.engine, _Told())
        told.held_back = 0.0
        where = _where(source.engine)
        began = time.monotonic()

        def look(connection: Connection) -> maintenance.View:
            return maintenance.look(connection, schema=source.schema)

        try:
            view = told.patience(partial(source.run, look), source.is_async)
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            problem = database_away(explain(error))
            claimed = told.away.claim(self._decide(told, [problem], began))
            return self._tell(source, where, [problem], [(told.away, claimed)])
        health = health_of_view(view, warn_days=self._warn_days)
        problems = problems_of(health, view.failure)
        done: list[Claimed] = [(told.away, told.away.claim(self._decide(told, [], began)))]
        if view.now is not None:
            unknown = {LAST_RUN} if view.runs is None else set[str]()
            done.append(self._claim(source, told, self._decide(told, problems, began, unknown)))
        if view.rehearsed:
            where += f", rehearsing {view.now:%Y-%m-%d %H:%M} UTC"
        return self._tell(source, where, problems, done)

    def held_back(self, source: Source) -> float:
        """Return after how many seconds to check again, as the last check came too soon after a message.

        :return: 0 if it did not.
        """
        told = self._told.get(source.engine)
        return 0.0 if told is None else told.held_back

    def _decide(
        self, told: _Told, problems: Sequence[Problem], began: float, unknown: Collection[str] = ()
    ) -> Decide:
        def decide(known: Sequence[Incident], now: datetime) -> list[Incident]:
            told.held_back = max(told.held_back, spacing_left(known, self._rules, now).total_seconds())
            looked_at = now - timedelta(seconds=time.monotonic() - began)
            return claims(
                problems,
                known,
                self._rules,
                now=now,
                looked_at=looked_at,
                new_id=self._new_id,
                unknown=unknown,
            )

        return decide

    def _claim(self, source: Source, told: _Told, decide: Decide) -> Claimed:
        rows = Rows(source, max(self._rules.quiet, self._rules.spacing), told.patience)
        try:
            claimed = rows.claim(decide)
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            if not (isinstance(error, DBAPIError) and sqlstate(error) in _NEVER):
                logger.warning("alerts: left to the next check: %s", explain(error))
                return rows, []
            if told.rest is None:
                told.rest = Memory()
                logger.warning(
                    "alerts: partition_runs cannot be used, so each process tells for itself: %s",
                    explain(error),
                )
            return told.rest, told.rest.claim(decide)
        memory = told.rest
        if memory is None or claimed:  # else what this process has told may be over
            told.rest = None
            return rows, claimed
        return memory, memory.claim(decide)

    def _tell(
        self,
        source: Source,
        where: str,
        problems: Iterable[Problem],
        claimed: Sequence[Claimed],
    ) -> tuple[Sent, ...]:
        by_key = {problem.key: problem for problem in problems}
        told = [one for _, some in claimed for one in some if one.state is Delivery.SENDING]
        if not told:
            return ()
        for one in told:
            level = logging.INFO if one.event is Event.RECOVERED else logging.WARNING
            logger.log(level, "alert %s: %s", one.id, line(one, by_key.get(one.problem)))
        title, text = message(told, by_key, _database(source.engine), where)
        delivered = send_by_all(self._notifiers, title, text, self._timeout, source.is_async)
        ids = ", ".join(one.id for one in told)
        logger.info("alert %s: %s", ids, "told" if delivered else "not told; the next check tries again")
        for store, some in claimed:
            store.note([(one, one.after(delivered)) for one in some if one.state is Delivery.SENDING])
        return tuple(Sent(one.problem, one.event.value, one.level, one.id, delivered) for one in told)

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            for notifier in self._notifiers:
                notifier.renew()
            for told in self._told.values():
                told.patience.renew()
                for memory in filter(None, (told.away, told.rest)):
                    memory.renew()


def _where(engine: Engine) -> str:
    """Return the database and its server, without credentials."""
    url = engine.url
    hosts = url.host or url.query.get("host") or "a local socket"
    host = hosts if isinstance(hosts, str) else ", ".join(hosts)
    return f"{_database(engine)} at {host}" + (f":{url.port}" if url.port else "")


def _database(engine: Engine) -> str:
    return engine.url.database or "the default database"
