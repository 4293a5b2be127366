"""A door to a server that the test opens and shuts, as a database that is restarted does."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import URL


class Proxy:
    """Listens on a port of its own while it is open."""

    def __init__(self, target: URL) -> None:
        self._target = (target.host or "127.0.0.1", target.port or 5432)
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self.port = _free_port()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse whoever comes, and cut off whoever is inside."""
        for one in [self._listener, *self._pairs]:
            if one is not None:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        self._pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                inside, _ = listener.accept()
                outside = socket.create_connection(self._target)
                self._pairs += [inside, outside]
                for one, other in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _free_port() -> int:
    """Return a port that nobody gets by chance while the door is shut: one the kernel hands to no client."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


@contextmanager
def proxy(target: URL) -> Iterator[Proxy]:
    made = Proxy(target)
    try:
        yield made
    finally:
        made.shut()


@contextmanager
def silence() -> Iterator[int]:
    """Yield a port that lets everybody in and answers nobody; who is inside at the end is thrown out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port
