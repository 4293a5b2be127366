"""A run that is killed (SIGKILL) right before or right after its n-th step; without a number it is counted.

Steps are the statements that reach the server, and on the way to an archive the file's own.
`python -m tests.killed URL NOW ACTION WHEN NUMBER FOLDER`
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event

from alembic_partitions import maintenance
from alembic_partitions.executor import exporting
from tests.clock import Clock

FILE_STEPS = ("_settle", "_read_back", "_write_manifest", "copy_out")


class Fate:
    def __init__(self, when: str, number: int) -> None:
        self.when, self.number, self.steps = when, number, 0

    def before(self, *anything: Any) -> None:
        self.steps += 1
        self.meet("before")

    def after(self, *anything: Any) -> None:
        self.meet("after")

    def meet(self, when: str) -> None:
        if self.steps == self.number and when == self.when:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def met(*arguments: Any) -> Any:
            self.before()
            done = step(*arguments)
            self.after()
            return done

        return met


ACTIONS: dict[str, Callable[[Any, str], Any]] = {
    "ensure": lambda connection, folder: maintenance.ensure(connection),
    "maintain": lambda connection, folder: maintenance.maintain(
        connection, orders=maintenance.Orders(archive_to=folder)
    ),
    "restore": lambda connection, folder: maintenance.restore(connection),
    "repair": lambda connection, folder: maintenance.repair(connection, batch=2),
}


def main(url: str, now: str, action: str, when: str, number: str, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        Clock(patched).set(datetime.fromisoformat(now))
        fate = Fate(when, int(number))
        event.listen(Engine, "before_cursor_execute", fate.before)
        event.listen(Engine, "after_cursor_execute", fate.after)
        for name in FILE_STEPS:
            patched.setattr(exporting, name, fate.around(getattr(exporting, name)))
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            ACTIONS[action](connection, folder)
        print(fate.steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
