"""What a server is put to: its sessions and its processors' time, as the kernel counts them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds in which nothing happens before and after what is measured.
QUIET = 0.8

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """Samples of one server: when, its child processes, and its processor time in seconds."""

    pid: int
    samples: list[tuple[float, int, float]] = field(default_factory=list)

    def take(self, thorough: bool = True) -> None:
        """Count the sessions, and where that is asked for, what may be a thousand processes' work."""
        now, children = time.monotonic(), _children(self.pid)
        work = self.samples[-1][2] if self.samples else 0.0
        if thorough:
            work = _seconds(self.pid, with_dead=True) + sum(map(_seconds, children))
        self.samples.append((now, len(children), work))

    def most_sessions(self, begin: float, end: float) -> int:
        """Return the most sessions at one time, beyond what there was at first."""
        return max(count for at, count, _ in self._during(begin, end)) - self.samples[0][1]

    def work(self, begin: float, end: float) -> float:
        """Return the processor time that passed, in seconds."""
        during = self._during(begin, end)
        return during[-1][2] - during[0][2]

    def _during(self, begin: float, end: float) -> list[tuple[float, int, float]]:
        """Return the samples of a stretch, and of nearly a second around it, in which nothing happens."""
        return [sample for sample in self.samples if begin - QUIET <= sample[0] <= end + QUIET]


@contextmanager
def watching(pid: int, every: float = 0.02) -> Iterator[Load]:
    """Watch a server from its postmaster's PID."""
    load, over = Load(pid), threading.Event()

    def watch() -> None:
        turn = 0
        while not over.wait(every):
            load.take(thorough=turn % 25 == 0)
            turn += 1

    load.take()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield load
    finally:
        over.set()
        thread.join()
        load.take()


def is_possible() -> bool:
    """Tell whether the kernel counts what is counted here."""
    return Path("/proc/self/task", str(os.getpid()), "children").exists()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _seconds(pid: int, with_dead: bool = False) -> float:
    """Return the processor time of a process, and of its children that have ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11 : 15 if with_dead else 13])) / _TICKS
    return 0.0
