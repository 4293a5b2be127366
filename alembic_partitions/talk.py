"""What an operator gets to read: one line for an error, without passwords, and the package's log."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from .drivers import reason
from .errors import PartitionError

_HIDDEN = "***"
# Up to the last "@": a password with an unquoted one in it is a password all the same.
_IN_URL = re.compile(r"(?P<before>[a-z0-9+]+://[^:/?#@\s]*):(?P<password>[^\s'\"]*)@")
_IN_WORDS = re.compile(r"(?P<before>\b(?:ssl)?password\s*=\s*)(?:'[^']*'|\"[^\"]*\"|[^\s&'\"]+)")
_DRIVER_CLASS = re.compile(r"<class '[^']*'>:\s*")


def explain(error: BaseException, urls: Iterable[str] = ()) -> str:
    """Return what went wrong in one line that holds no password.

    :param urls: database URLs in use, as their owners wrote them.
    """
    urls = list(urls)
    if isinstance(error, (ArgumentError, ValueError)) and not isinstance(error, PartitionError):
        # Where env.py reads it by itself.
        urls += filter(None, [os.environ.get("DATABASE_URL")])
    if any(map(_unreadable, urls)):
        return "a database URL cannot be read: write its port in digits, and special characters as %XX."
    cause = reason(error) if isinstance(error, DBAPIError) else str(error)
    line = _DRIVER_CLASS.sub("", " ".join(cause.split()))
    ours = isinstance(error, (PartitionError, DBAPIError)) or type(error).__module__.startswith("alembic.")
    if not ours:
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    revision = _revision(error)
    return mask(f"revision {revision}: {line}" if revision else line, urls)


def mask(text: str, urls: Collection[str] = ()) -> str:
    """Return ``text`` without passwords: of ``urls``, of the environment, and whatever looks like one."""
    for url in filter(_unreadable, urls):
        text = text.replace(url, _HIDDEN)
    text = _IN_URL.sub(rf"\g<before>:{_HIDDEN}@", text)
    text = _IN_WORDS.sub(rf"\g<before>{_HIDDEN}", text)
    for secret in sorted(_secrets([*urls, *os.environ.values()]), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


@contextmanager
def shown_log() -> Iterator[None]:
    """Show what the package logs, as Alembic shows its own, however the project sets logging up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)-5.5s [%(name)s] %(message)s"))
    logger = logging.getLogger("alembic_partitions")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _secrets(urls: Iterable[str]) -> set[str]:
    found, common = set(), {"postgres"}
    for match in filter(None, map(_IN_URL.search, urls)):
        found |= {match["password"], unquote(match["password"])}
        # A driver that was given "p@ss@host" complains about the host "ss@host".
        found |= {f"{piece}@" for piece in match["password"].split("@")[1:]}
        # Who uses a role's or a database's name as its password must still be able to read that name.
        common |= set(
            re.split(r"[:/?@]+", match.string[: match.start("password")] + match.string[match.end() :])
        )
    found |= {value for name, value in os.environ.items() if name.endswith("PASSWORD")}
    return {secret for secret in found - common if len(secret) > 2}


def _unreadable(url: str) -> bool:
    match = _IN_URL.match(url)
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        return True
    return match is not None and "@" in match["password"]


def _revision(error: BaseException) -> str | None:
    """Return the migration that an error came out of."""
    revisions = [
        frame.f_globals["revision"]
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name in {"upgrade", "downgrade"} and "down_revision" in frame.f_globals
    ]
    return str(revisions[-1]) if revisions else None
