"""Writers in a process of their own: `python -m tests.torture.writers '<order as JSON>'`.

Apart from whoever makes partitions meanwhile, so that what they wait for is PostgreSQL and not that one's
interpreter. Each writes small transactions, one after another, until its standard input is closed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, text

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "writer"
_REST = 0.002  # seconds between two transactions


@dataclass
class Told:
    """What the writers met: milliseconds that each transaction took, and what went wrong."""

    took: list[float] = field(default_factory=list, repr=False)
    errors: list[str] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.took)

    def quantile(self, share: float) -> float:
        """Return what that share of all transactions did not take longer than."""
        return sorted(self.took)[min(int(len(self.took) * share), len(self.took) - 1)]

    def histogram(self, buckets: tuple[float, ...]) -> list[int]:
        """Count those up to each bucket, and above the last."""
        edges = (0.0, *buckets, float("inf"))
        return [sum(low < t <= high for t in self.took) for low, high in pairwise(edges)]


@contextmanager
def writing(url: URL, statements: list[str], writers: int) -> Iterator[Told]:
    """Let writers send these statements over and over; what they met is told when the block has ended."""
    address = url.update_query_dict({"application_name": NAME}).render_as_string(hide_password=False)
    order = {"url": address, "statements": statements, "writers": writers}
    told = Told()
    with subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield told
        finally:
            met = json.loads(process.communicate()[0])
            told.took, told.errors = met["took"], met["errors"]


def main(url: str, statements: list[str], writers: int) -> Told:
    told, over, ready = Told(), threading.Event(), threading.Barrier(writers + 1)

    def write() -> None:
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            texts = list(map(text, statements))
            ready.wait()
            while not over.is_set():
                begun = time.perf_counter()
                try:
                    with connection.begin():
                        for one in texts:
                            connection.execute(one)
                except Exception as error:  # told at the end, where it fails the test
                    told.errors.append(str(error))
                    return
                told.took.append((time.perf_counter() - begun) * 1000)
                time.sleep(_REST)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    ready.wait()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return told


if __name__ == "__main__":
    print(json.dumps(asdict(main(**json.loads(sys.argv[1])))))
