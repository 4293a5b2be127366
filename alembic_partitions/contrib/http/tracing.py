"""Request ids: one in every response, error and log line, and no secret in any of them."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alembic_partitions.talk import mask

#: The header that a request id comes in, and goes out in.
HEADER = "X-Request-ID"

logger = logging.getLogger("alembic_partitions")

_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
_current: ContextVar[str | None] = ContextVar("alembic_partitions_request", default=None)


def taken_over(told: str | None) -> str:
    """Return the id that a request came with, or a new one in place of none or of an odd one."""
    return told if told is not None and _SANE.fullmatch(told) else secrets.token_hex(8)


def request_id() -> str:
    """Return the id of the request that this is done for; a new one where it is done for none."""
    return _current.get() or secrets.token_hex(8)


@contextmanager
def request(number: str) -> Iterator[str]:
    """Have every log line within bear this id, those of threads and tasks that are started here, too."""
    _show_in_log()
    before = _current.set(number)
    try:
        yield number
    finally:
        _current.reset(before)


class _Numbered(logging.Filter):
    """Adds the request id to what the package logs: as ``request_id``, and readable in the line itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        number = _current.get()
        if number is not None and not hasattr(record, "request_id"):
            record.request_id = number
            record.msg, record.args = f"{record.getMessage()} [request {number}]", ()
        return True


_NUMBERED = _Numbered()


def _show_in_log() -> None:
    logger.addFilter(_NUMBERED)  # once, however often


class Secrets:
    """What must be seen by nobody: the token, and passwords of the database."""

    def __init__(self, token: str, url: str) -> None:
        self._token = token
        self._url = url

    def __repr__(self) -> str:
        return "Secrets()"

    def hide(self, text: str) -> str:
        """Return ``text`` without them."""
        return mask(text.replace(self._token, "***"), [self._url])
