"""Who writes and who works while processes are killed and the server is stopped; forked, so quick to begin.

A writer notes each row down before it commits it, and afterwards what it was told, in a file that
outlives it.
"""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from alembic_partitions import PartitionPending, cli
from alembic_partitions.maintenance import NOW_VARIABLE
from tests.apps import App
from tests.clock import Clock
from tests.databases import ALL_DRIVERS, Database
from tests.ledger import LEVELS
from tests.torture.telling import draws

#: A table with retention that detaches, one that drops; and one with a DEFAULT partition, to be drained.
KEPT, DROPPED, DRAINED = "odds", "ticks", "meter"

_TABLES = {
    name: sa.table(name, sa.column("at", sa.DateTime(timezone=True)), sa.column("note", sa.Text))
    for name in (KEPT, DROPPED, DRAINED)
}
_COLUMNS = {"id": sa.BigInteger, "at": sa.DateTime(timezone=True), "note": sa.Text}


@dataclass
class Shared:
    """What the processes know of each other."""

    now: Any
    """The simulated instant, in seconds since 1970."""
    outages: Any
    """How often the server went down, or came back: even while it is up."""
    statements: Any
    """How many statements the worker has sent since it began."""
    changes: Any
    """How many of them change something."""
    stray: Any
    """The simulated instant that rows of the drained table are written around."""


# -- the writers ---------------------------------------------------------------------------------------


def write(url: str, number: int, shared: Shared, ledger: Path) -> None:
    """Insert until killed: with the hook, and every fourth without, into a DEFAULT partition."""
    with ledger.open("a", buffering=1) as file:
        try:
            _Writer(url, number, shared, file).live()
        except BaseException:
            file.write(f"trouble\t{traceback.format_exc()!r}\t\t\n")


class _Writer:
    def __init__(self, url: str, number: int, shared: Shared, file: Any) -> None:
        self.number, self.shared, self.file = number, shared, file
        self.strays = number % 4 == 3
        self.name = Path(file.name).name
        self.dice, self.count = draws(f"killed, {self.name}"), 0
        # The outage before which a transaction passed last: a pool's connection may be dead since.
        self.passed = shared.outages.value
        self._rehearse()
        self.app = App(
            Database(sa.make_url(url), 0),
            ALL_DRIVERS[number % 3],
            engine_options={"isolation_level": LEVELS[number % 3]},
            kept=not self.strays,
        )

    def live(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:  # who outlived the test would keep its server, too
            rows = self._draw()
            while not self._committed(rows) and os.getppid() == parent:
                time.sleep(0.02)
            time.sleep(self.dice.random() * 0.1)

    def _rehearse(self) -> datetime:
        now = datetime.fromtimestamp(self.shared.now.value, timezone.utc)
        os.environ[NOW_VARIABLE] = now.isoformat()
        return now

    def _draw(self) -> list[tuple[str, str, datetime]]:
        """Draw the rows of one transaction: table, note, instant."""
        around = datetime.fromtimestamp(self.shared.stray.value, timezone.utc)
        rows = []
        for _ in range(self.dice.randrange(1, 4)):
            self.count += 1
            table = DRAINED if self.strays else self.dice.choice([KEPT, DROPPED])
            at = (around if self.strays else self._rehearse()) - timedelta(hours=self.dice.random() * 20)
            rows.append((table, f"{self.name}:{self.count}", at))
        return rows

    def _committed(self, rows: Sequence[tuple[str, str, datetime]]) -> bool:
        """Try once; return whether it was committed as far as we were told."""
        stage = "not sent"

        def work(session: Session) -> None:
            nonlocal stage
            for table, note, at in rows:
                session.connection().execute(_TABLES[table].insert().values(at=at, note=note))
            self._note("try", rows)
            stage = "sent"

        self._rehearse()
        outages = self.shared.outages.value
        try:
            self.app.session(work)
        except PartitionPending:  # run it again, as the README says
            self._note("pending", rows)
            return False
        except Exception:
            if self.shared.outages.value == self.passed and not self.passed % 2:
                raise  # the server was up all the while: nothing may fail
            self._note("unknown" if stage == "sent" else "failed", rows)
            return False
        self._note("told", rows)
        self.passed = outages
        return True

    def _note(self, what: str, rows: Sequence[tuple[str, str, datetime]]) -> None:
        # One call: whoever is killed has written all of it or nothing.
        self.file.write("".join(f"{what}\t{table}\t{note}\t{at.isoformat()}\n" for table, note, at in rows))
        self.file.flush()


@dataclass
class Ledger:
    """What the writers wrote down so far."""

    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: dict[tuple[str, str], datetime] = field(default_factory=dict)
    acknowledged: int = 0
    unknown: int = 0
    pending: int = 0
    trouble: list[str] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)

    def read(self, folder: Path) -> None:
        """Read what has come since the last time."""
        for path in sorted(folder.glob("writer-*")):
            with path.open() as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
                whole = text[: text.rfind("\n") + 1]
                self._read[path] = self._read.get(path, 0) + len(whole.encode())
            for line in whole.splitlines():
                self._take(*line.split("\t"))

    def _take(self, what: str, table: str, note: str, at: str) -> None:
        if what == "try":
            self.sent[table, note] += 1
        elif what == "told":
            self.told[table, note] = datetime.fromisoformat(at)
            self.acknowledged += 1
        elif what == "unknown":
            self.unknown += 1
        elif what == "pending":
            self.pending += 1
        elif what == "trouble":
            self.trouble.append(table)


# -- the worker ----------------------------------------------------------------------------------------


def work(arguments: Sequence[str], shared: Shared, folder: Path, said: Path) -> None:
    """Run the command line in this process, forked a moment ago, on the simulated day."""
    with said.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        shared.statements.value += 1
        shared.changes.value += not statement.lstrip().startswith(("SELECT", "SHOW", "SET", "RESET", "WITH"))

    event.listen(Engine, "before_cursor_execute", count)
    with pytest.MonkeyPatch.context() as patched:
        Clock(patched, as_the_server_is=True).set(datetime.fromtimestamp(shared.now.value, timezone.utc))
        code = cli.main(list(arguments), standalone_mode=False)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def fresh(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool)


def pick(dice: random.Random, rounds: int, *choices: str) -> list[str]:
    """Return each choice as often as the others, in any order."""
    picked = [choices[number % len(choices)] for number in range(rounds)]
    dice.shuffle(picked)
    return picked
