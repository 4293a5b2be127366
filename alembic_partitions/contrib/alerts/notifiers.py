"""Whoever carries a message to people: Apprise's services, or a function of the user's own.

An Apprise URL holds tokens: of it only the service's name is ever shown.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.util import await_only

from alembic_partitions.errors import ExtraMissing, SettingError

logger = logging.getLogger("alembic_partitions")

_THREAD = "alembic-partitions alert by "
_SERVICE = re.compile(r"([a-z][a-z0-9]{1,15})://")


@dataclass(eq=False)
class Notifier:
    """One way to tell people. A message that hangs is left hanging; there is never a second one beside it."""

    name: str
    send: Callable[[str, str], object] = field(repr=False)
    #: Which of several it is, in the log: two may have one name.
    place: str = ""
    free: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def renew(self) -> None:
        """Forget what hung in the process that this one was forked from."""
        self.free = threading.Lock()


class _Sending:
    """One message by one notifier, in a thread that nobody has to wait for.

    :param timeout: seconds it waits for an earlier message, as one of another database, and then for its own.
    """

    def __init__(self, by: Notifier, title: str, body: str, timeout: float) -> None:
        #: What went wrong; ``None`` if it was delivered.
        self.wrong: str | None = "did not answer in time"
        self.by = by
        self._message = title, body
        self._timeout = timeout
        self._began = threading.Event()
        self._until = 0.0
        self._thread = threading.Thread(target=self._work, name=_THREAD + by.name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        free = self.by.free
        ours = free.acquire(timeout=self._timeout)
        self._until = time.monotonic() + self._timeout
        if not ours:
            self.wrong = "still hangs over an earlier message"
        self._began.set()
        if ours:
            try:
                self.wrong = None if self.by.send(*self._message) is not False else "did not deliver it"
            except Exception as error:  # noqa: BLE001  # any of a foreign library
                # Its text may hold the URL, and the URL the token.
                self.wrong = f"raised {type(error).__name__}"
            finally:
                free.release()

    def outcome(self) -> str | None:
        """Wait, and return what went wrong; ``None`` if it was delivered."""
        self._began.wait()
        self._thread.join(max(0.0, self._until - time.monotonic()))
        return self.wrong


def by_url(url: str) -> Notifier:
    """Return what sends by an Apprise URL.

    :raises SettingError: Apprise can do nothing with it.
    """
    try:
        from apprise import Apprise, NotifyFormat, NotifyType  # who brings a notifier needs none of it
    except ImportError:
        raise ExtraMissing(what="An alert by URL", package="Apprise", extra="alerts") from None

    log = logging.getLogger("apprise")
    was, log.disabled = log.disabled, True  # it would show a URL that it does not understand
    try:
        service = Apprise.instantiate(url)
    finally:
        log.disabled = was
    if service is None:
        match = _SERVICE.match(url)
        raise SettingError(
            name="alert URL",
            value=f"{match[1]}://***" if match else "***",
            expected="a URL that Apprise understands, such as tgram://TOKEN/CHAT or mailto://USER:PASSWORD@HOST",
        )
    for name in ("apprise", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_discreet)

    def send(title: str, body: str) -> bool:
        # Not through an Apprise(): its thread pool would hold the process back at its end.
        kind = NotifyType.SUCCESS if title.startswith("RECOVERED") else NotifyType.WARNING
        return bool(service.notify(body=body, title=title, notify_type=kind, body_format=NotifyFormat.TEXT))

    return Notifier(str(service.schema), send)


def send_by_all(notifiers: Sequence[Notifier], title: str, body: str, timeout: float, in_loop: bool) -> bool:
    """Send a message by all of them at once; tell whether any delivered it.

    :param timeout: seconds for one to become free, and then to send; whoever takes longer is left to itself.
    :param in_loop: whether an event loop is waiting that must not stall.
    """
    begun = [_Sending(one, title, body, timeout) for one in notifiers]
    outcomes = await_only(asyncio.to_thread(_outcomes, begun)) if in_loop else _outcomes(begun)
    for one, wrong in zip(begun, outcomes, strict=True):
        if wrong is not None:
            logger.warning("alerts: %s%s %s", one.by.name, one.by.place, wrong)
    return None in outcomes or not notifiers


def _outcomes(begun: Sequence[_Sending]) -> list[str | None]:
    return [one.outcome() for one in begun]


def _discreet(record: logging.LogRecord) -> bool:
    """Keep what libraries say in detail while they send, tokens among it, out of the log."""
    return record.levelno > logging.DEBUG or not (record.threadName or "").startswith(_THREAD)
