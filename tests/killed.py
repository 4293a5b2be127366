"""A run that is killed (SIGKILL) right before or right after its n-th step; without a number it is counted.

Steps are the statements that reach the server, and on the way to an archive the file's own.
"""

from __future__ import annotations

import json
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
        self.when, self.number = when, number
        #: Of each step whether it changes something: only then is it another thing to die right after it.
        self.steps: list[bool] = []

    def before(self, *told: Any) -> None:
        statement = told[2] if len(told) > 2 else "a step of the file's"
        self.steps.append(not str(statement).lstrip().startswith(("SELECT", "SHOW", "SET", "RESET")))
        self.meet("before")

    def after(self, *anything: Any) -> None:
        self.meet("after")

    def meet(self, when: str) -> None:
        if len(self.steps) == self.number and when == self.when:
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
    "repair": lambda connection, folder: maintenance.repair(connection, batch=3),
    "restore": lambda connection, folder: maintenance.restore(connection),
}


def live(url: str, now: str, action: str, when: str, number: int, folder: str) -> list[bool]:
    """Run, and return the steps that took; or do not return."""
    with pytest.MonkeyPatch.context() as patched:
        Clock(patched).set(datetime.fromisoformat(now))
        fate = Fate(when, number)
        event.listen(Engine, "before_cursor_execute", fate.before)
        event.listen(Engine, "after_cursor_execute", fate.after)
        for name in FILE_STEPS:
            patched.setattr(exporting, name, fate.around(getattr(exporting, name)))
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            ACTIONS[action](connection, folder)
        return fate.steps


def serve() -> None:
    """Read runs from stdin, a JSON list a line; each lives in a process of its own, forked from this one."""
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            code = 1
            try:
                os.write(writer, json.dumps(live(*json.loads(line))).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as told:
            steps = told.read()
        _, status = os.waitpid(child, 0)
        ended = f"killed by {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(json.dumps([ended, json.loads(steps or "[]")]), flush=True)


if __name__ == "__main__":
    serve()
