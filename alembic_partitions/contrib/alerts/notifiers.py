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

from alembic_partitions.errors import SettingError

logger = logging.getLogger("alembic_partitions")

_THREAD = "alembic-partitions alert by "
_SERVICE = re.compile(r"([a-z][a-z0-9]{1,15})://")


@dataclass(eq=False)
class Notifier:
    """One way to tell people. A message that hangs is left hanging; there is never a second one beside it."""

    name: str
    send: Callable[[str, str], object] = field(repr=False)
    _free: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _delivered: bool = field(default=False, repr=False)

    def renew(self) -> None:
        """Forget what hung in the process that this one was forked from."""
        self._free = threading.Lock()

    def begin(self, title: str, body: str) -> threading.Thread | None:
        """Begin to send, in a thread that nobody has to wait for; ``None`` while another message hangs."""
        free = self._free
        if not free.acquire(blocking=False):
            return None
        self._delivered = False

        def work() -> None:
            try:
                self._delivered = self.send(title, body) is not False
            except Exception as error:  # noqa: BLE001  # any of a foreign library
                # Its text may hold the URL, and the URL the token.
                logger.warning("alerts: %s raised %s", self.name, type(error).__name__)
            finally:
                free.release()

        thread = threading.Thread(target=work, name=_THREAD + self.name, daemon=True)
        thread.start()
        return thread

    def outcome(self, thread: threading.Thread | None) -> str | None:
        """Return what became of what was begun: ``None`` if it was delivered."""
        if thread is None:
            return "still hangs over an earlier message"
        if thread.is_alive():
            return "did not answer in time"
        return None if self._delivered else "did not deliver it"


def by_url(url: str) -> Notifier:
    """Return what sends by an Apprise URL.

    :raises SettingError: Apprise can do nothing with it.
    """
    from apprise import Apprise, NotifyFormat, NotifyType  # who brings a notifier needs none of it

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

    :param timeout: seconds to wait; whoever takes longer is left to itself.
    :param in_loop: whether an event loop is waiting that must not stall.
    """
    begun = [(one, one.begin(title, body)) for one in notifiers]
    threads = [thread for _, thread in begun if thread is not None]
    if in_loop:
        await_only(asyncio.to_thread(_wait, threads, timeout))
    else:
        _wait(threads, timeout)
    outcomes = {one.name: one.outcome(thread) for one, thread in begun}
    for name, wrong in outcomes.items():
        if wrong is not None:
            logger.warning("alerts: %s %s", name, wrong)
    return None in outcomes.values() or not notifiers


def _wait(threads: Sequence[threading.Thread], timeout: float) -> None:
    until = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _discreet(record: logging.LogRecord) -> bool:
    """Keep what libraries say in detail while they send, tokens among it, out of the log."""
    return record.levelno > logging.DEBUG or not (record.threadName or "").startswith(_THREAD)
