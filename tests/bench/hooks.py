"""The insert hook taken apart: switched off for the other side of a ratio, or its time measured.

A hook listens to the class of all sessions, so the side without one would meet it too. What listens to an
engine is left as it is, but where its time is measured: to stand between takes as long as it does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session


class Hooks:
    """Listeners that `keep()` installs while this is installed itself.

    :param timed: count the seconds and the calls of all of them.
    """

    def __init__(self, timed: bool = False) -> None:
        self.on = False
        self.timed = timed
        self.seconds = 0.0
        self.calls = 0

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Take hold of each listener that is added meanwhile."""
        listen = event.listen

        def listen_through(
            target: Any, name: str, listener: Callable[..., Any], *rest: Any, **kw: Any
        ) -> None:
            if self.timed or target is Session:
                listener = self._through(listener)
            listen(target, name, listener, *rest, **kw)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event, "listen", listen_through)
            yield

    def _through(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(listener)
        def called(*args: Any) -> Any:
            if not self.on:
                return None if isinstance(args[0], Session) else listener(*args)
            begun = time.perf_counter()
            try:
                return listener(*args)
            finally:
                self.seconds += time.perf_counter() - begun
                self.calls += 1

        return called

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have them listen to sessions, and count from nought on."""
        self.seconds, self.calls, self.on = 0.0, 0, True
        try:
            yield
        finally:
            self.on = False
