"""Ratios: both sides in one run, turn and turn about, so that what else the machine does hits both alike."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=170)


def setting(name: str, default: int) -> int:
    """Read a size from the environment: BENCH_ROUNDS, BENCH_TABLES..."""
    return int(os.environ.get(name, default))


@dataclass
class Side:
    """How long each round of one side took: on the clock, and of this process's own work."""

    wall: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.wall)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.wall) < 2:
            return 0.0
        quartiles = statistics.quantiles(self.wall, n=4)
        return (quartiles[2] - quartiles[0]) / 2 / self.median

    @property
    def own_work(self) -> str:
        return f"{min(self.work) * 1000:.0f}"

    @contextmanager
    def measured(self) -> Iterator[None]:
        gc.collect()
        gc.disable()
        wall, work = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall.append(time.perf_counter() - wall)
            self.work.append(time.process_time() - work)
            gc.enable()


def in_turns(
    sides: Mapping[str, Callable[[Side], None]], rounds: int, warm_up: int = 1
) -> Mapping[str, Side]:
    """Run each side `rounds` times; every second round begins with the other one."""
    results = {name: Side() for name in sides}
    for turn in range(-warm_up, rounds):
        names = list(sides)[:: 1 if turn % 2 else -1]
        for name in names:
            sides[name](Side() if turn < 0 else results[name])
    return results


@dataclass(frozen=True)
class Row:
    """A line of the table that a benchmark prints."""

    what: str
    base: Side
    ours: Side
    budget: float | None = None
    notes: Sequence[str] = ()

    @property
    def best(self) -> float:
        return self.ours.best / self.base.best

    @property
    def median(self) -> float:
        return self.ours.median / self.base.median


def show(title: str, server: str, rows: Sequence[Row], note_names: Sequence[str] = ()) -> None:
    """Print the ratios. A budget that is missed is marked, not asserted: these machines are shared."""
    table = Table(title=f"{title}\n{machine()}, PostgreSQL {server}", title_justify="left")
    table.add_column("what", no_wrap=True)
    names = (
        "base best",
        "ours best",
        "ratio best",
        "ratio median",
        "spread",
        "client CPU",
        *note_names,
        "budget",
    )
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        kept = "" if row.budget is None else f"{row.budget:g} " + ("" if row.best <= row.budget else "MISSED")
        table.add_row(
            row.what,
            f"{row.base.best * 1000:.1f} ms",
            f"{row.ours.best * 1000:.1f} ms",
            f"{row.best:.3f}",
            f"{row.median:.3f}",
            f"±{row.base.spread:.0%} ±{row.ours.spread:.0%}",
            f"{row.base.own_work} | {row.ours.own_work} ms",
            *row.notes,
            kept,
        )
    CONSOLE.print()
    CONSOLE.print(table)


def machine() -> str:
    """Name what the figures belong to."""
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"
    )
