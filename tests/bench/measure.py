"""Ratios: both sides in one run, turn and turn about, so that what else the machine does hits both alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from tests.bench.record import QUICK, RECORD, Figures


def setting(name: str, default: int, quick: int) -> int:
    """Read a size from the environment: BENCH_ROUNDS, BENCH_TABLES..."""
    value = int(os.environ.get(name, quick if QUICK else default))
    RECORD.sizes.setdefault(name, value)
    return value


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / 2 / statistics.median(values)


@dataclass
class Side:
    """How long each round of one side took, in seconds: on the clock, and of this process's own work."""

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
        return spread(self.wall)

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

    def figures(self) -> Figures:
        rounds = [round(seconds * 1000, 3) for seconds in self.wall]
        return {
            "best_ms": min(rounds),
            "median_ms": round(statistics.median(rounds), 3),
            "spread": round(self.spread, 4),
            "rounds_ms": rounds,
        }


def in_turns(
    sides: Mapping[str, Callable[[Side], None]], rounds: int, patience: float | None = None
) -> Mapping[str, Side]:
    """Run each side `rounds` times; every second round begins with the other one.

    A first round warms up, and does not count; where it takes longer than `patience`, in seconds, it is the
    only one of that side.
    """
    results = {name: Side() for name in sides}
    slow = set()
    for turn in range(-1, rounds):
        names = list(sides)[:: 1 if turn % 2 else -1]
        for name in names:
            if name in slow:
                continue
            into = Side() if turn < 0 else results[name]
            sides[name](into)
            if turn < 0 and patience is not None and into.median > patience:
                results[name] = into
                slow.add(name)
    return results


@dataclass(frozen=True)
class Row:
    """A line of the table that a benchmark prints: two sides that have taken turns."""

    what: str
    base: Side
    ours: Side
    budget: float | None = None
    notes: Sequence[str] = ()

    @property
    def best(self) -> float:
        return self.ours.best / self.base.best

    @cached_property
    def _pairs(self) -> list[float]:
        """The ratio of each round: what the machine did meanwhile, it did to both of a pair."""
        return [ours / base for ours, base in zip(self.ours.wall, self.base.wall, strict=False)]

    @property
    def median(self) -> float:
        return statistics.median(self._pairs)

    @property
    def spread(self) -> float:
        return spread(self._pairs)

    def judged(self, budget: str, *, by_best: bool = False) -> Row:
        """Hold the ratio, the median or the best, against the budget."""
        figure = self.best if by_best else self.median
        RECORD.judge(budget, figure, self.budget, "x", spread=self.spread, best=self.best)
        return self

    def figures(self) -> Figures:
        return {
            "what": self.what,
            "base": self.base.figures(),
            "ours": self.ours.figures(),
            "ratio_median": round(self.median, 4),
            "ratio_best": round(self.best, 4),
            "ratio_spread": round(self.spread, 4),
            "budget": self.budget,
            "notes": list(self.notes),
        }


def show(title: str, server: str, rows: Sequence[Row], note_names: Sequence[str] = ()) -> None:
    """Print and keep the ratios. A budget that is missed is told, not asserted: these machines are shared."""
    header = ("what", "base", "ours", "ratio", "spread", "best", "spread of each", "client CPU")
    lines = [
        (
            row.what,
            milliseconds(row.base.median),
            milliseconds(row.ours.median),
            f"{row.median:.3f}",
            f"±{row.spread:.0%}",
            f"{row.best:.3f}",
            f"±{row.base.spread:.0%} ±{row.ours.spread:.0%}",
            f"{row.base.own_work} | {row.ours.own_work} ms",
            *row.notes,
            "" if row.budget is None else f"{row.budget:g}",
        )
        for row in rows
    ]
    names = (*header, *note_names, "budget")
    RECORD.table(title, server, names, lines, [row.figures() for row in rows])


def told(sides: Mapping[str, Side]) -> dict[str, str]:
    """Put each side's median into words."""
    return {name: milliseconds(side.median) for name, side in sides.items()}


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"
