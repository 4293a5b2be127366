"""The insert hook taken apart: switched off for the other side of a ratio, or its time measured.

A hook listens to the class of all sessions, so the side without one would meet it too.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event


class Hooks:
    """All listeners that `keep()` installs while this is installed itself."""

    def __init__(self) -> None:
        self.on = True
        self.timed = False
        self.seconds = 0.0
        self.calls = 0

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Take hold of each listener that is added meanwhile."""
        listen = event.listen

        def listen_through(
            target: Any, name: str, listener: Callable[..., Any], *rest: Any, **kw: Any
        ) -> None:
            listen(target, name, self._through(listener, "retval" in kw), *rest, **kw)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(event, "listen", listen_through)
            yield

    def _through(self, listener: Callable[..., Any], answers: bool) -> Callable[..., Any]:
        @functools.wraps(listener)
        def called(*args: Any) -> Any:
            if not self.on:  # what is to be sent, where a listener may change it
                return args[2:4] if answers else None
            if not self.timed:
                return listener(*args)
            begun = time.perf_counter()
            try:
                return listener(*args)
            finally:
                self.seconds += time.perf_counter() - begun
                self.calls += 1

        return called

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count seconds and calls from nought on."""
        self.seconds, self.calls, self.timed = 0.0, 0, True
        try:
            yield
        finally:
            self.timed = False
