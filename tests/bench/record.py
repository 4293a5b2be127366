"""What a run has measured: printed as it comes, and kept as JSON and as Markdown for the README."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=170)

#: Sizes at which everything runs in a minute or two: to see that it works, not to measure.
QUICK = os.environ.get("BENCH_QUICK", "0") not in ("", "0")

FOLDER = Path(os.environ.get("BENCH_OUT") or Path(__file__).resolve().parents[2] / ".bench")

PACKAGES = (
    *("alembic_partitions", "sqlalchemy", "alembic", "psycopg2-binary", "psycopg", "asyncpg"),
    *("pg-partsmith", "django-postgres-extra", "django"),
)

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A budget, and what was measured; without a limit it is told beside the others, and not judged."""

    budget: str
    figure: float
    limit: float | None
    unit: str
    spread: float | None = None
    best: float | None = None

    @property
    def kept(self) -> bool | None:
        return None if self.limit is None else self.figure <= self.limit

    def cells(self) -> tuple[str, ...]:
        spread = "" if self.spread is None else f" ±{self.spread:.0%}"
        best = "" if self.best is None else _number(self.best, self.unit)
        return (
            self.budget,
            "" if self.limit is None else f"{_number(self.limit, self.unit)}",
            f"{_number(self.figure, self.unit)}{spread}",
            best,
            {True: "kept", False: "MISSED", None: ""}[self.kept],
        )


VERDICT_HEADER = ("budget", "at most", "measured", "best", "")

#: Who may stand beside each other at one piece of work.
OURS, BY_HAND = "alembic_partitions", "by hand"
SIDES = (BY_HAND, OURS, "pg-partsmith", "django-postgres-extra", "pg_partman")

NOT_CONTESTED = (
    "–: pg_partman is packaged for PostgreSQL 15 alone, and measured there; those that need no extension are"
    " measured on the newest. None of them looks before an INSERT, keeps autogenerate quiet or locks an"
    " upgrade: there the other side is the same work without this package."
)


def _number(value: float, unit: str) -> str:
    if unit == "x":
        return f"{value:.2f} x"
    if unit == "%":
        return f"{value:.2%}"
    return f"{value:,.1f} {unit}".strip() if value % 1 else f"{value:,.0f} {unit}".strip()


@dataclass
class Record:
    """One run. `write` is called at its end."""

    sizes: dict[str, int] = field(default_factory=dict)
    servers: set[str] = field(default_factory=set)
    verdicts: list[Verdict] = field(default_factory=list)
    tables: list[Figures] = field(default_factory=list)
    contest: dict[str, dict[str, str]] = field(default_factory=dict)
    """What each side took for a piece of work, in words."""
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: dict(_versions()))
    plots: dict[str, str] = field(default_factory=dict)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    begun: float = field(default_factory=time.monotonic)

    def judge(
        self,
        budget: str,
        figure: float,
        limit: float | None,
        unit: str,
        *,
        spread: float | None = None,
        best: float | None = None,
    ) -> None:
        self.verdicts.append(Verdict(budget, figure, limit, unit, spread, best))

    def table(
        self,
        title: str,
        server: str,
        header: Sequence[str],
        lines: Sequence[Sequence[str]],
        figures: Sequence[Figures],
    ) -> None:
        """Print a table, and keep it with what it was made from: a run that is cut off has its files too."""
        server = server.split(maxsplit=1)[0]  # without the name of the distribution
        self.servers.add(server)
        self.tables.append(
            {"title": title, "postgresql": server, "header": header, "lines": lines, "figures": figures}
        )
        CONSOLE.print()
        CONSOLE.print(_drawn(f"{title}\nPostgreSQL {server}, load {os.getloadavg()[0]:.1f}", header, lines))
        self.write()

    def beside(self, work: str, server: str, took: Mapping[str, str]) -> None:
        """Keep what each side took for a piece of work that others do too."""
        self.contest[f"{work} (PostgreSQL {server.split(maxsplit=1)[0]})"] = dict(took)

    def _contest(self) -> list[tuple[str, ...]]:
        """One line a piece of work."""
        return [(work, *(took.get(side, "–") for side in SIDES)) for work, took in self.contest.items()]

    def plot(self, name: str, title: str) -> Path:
        """Return where to draw."""
        self.plots[name] = title
        FOLDER.mkdir(parents=True, exist_ok=True)
        return FOLDER / name

    def summary(self) -> None:
        """Print every budget in one table."""
        if not self.verdicts:
            return
        lines = [verdict.cells() for verdict in self.verdicts]
        if self.contest:
            CONSOLE.print()
            CONSOLE.print(_drawn("The peers at the same work, medians", ("", *SIDES), self._contest()))
            CONSOLE.print(NOT_CONTESTED)
        CONSOLE.print()
        CONSOLE.print(_drawn(f"The budgets\n{self.machine()}", VERDICT_HEADER, lines))
        for name, reason in self.missing.items():
            CONSOLE.print(f"not measured: {name}: {reason}")
        CONSOLE.print(f"{self.minutes():.1f} min; written to {FOLDER}")

    def write(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        told = {
            "machine": self.machine(),
            "on": datetime.now(timezone.utc).date().isoformat(),
            "quick": QUICK,
            "minutes": round(self.minutes(), 1),
            "load_before": round(self.load, 2),
            "versions": self.versions,
            "postgresql": sorted(self.servers),
            "sizes": self.sizes,
            "budgets": [{**asdict(v), "kept": v.kept} for v in self.verdicts],
            "peers": self.contest,
            "not_measured": self.missing,
            "tables": [
                {name: table[name] for name in ("title", "postgresql", "figures")} for table in self.tables
            ],
        }
        text = json.dumps(told, indent=1, ensure_ascii=False)
        text = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # a list is a line
        (FOLDER / "results.json").write_text(text + "\n")
        (FOLDER / "results.md").write_text("\n".join(self._markdown()))

    def machine(self) -> str:
        """Name what the figures belong to."""
        servers = " and ".join(sorted(self.servers, reverse=True))
        return (
            f"{_processor()}, {os.cpu_count()} cores, load {self.load:.1f} before;"
            f" Python {platform.python_version()}, PostgreSQL {servers}"
        )

    def minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def _markdown(self) -> Iterator[str]:
        if QUICK:
            yield "**BENCH_QUICK: these sizes show that it works, and nothing else.**\n"
        yield f"Measured on {self.machine()}, in {self.minutes():.0f} minutes."
        if self.verdicts:
            yield from _as_markdown(VERDICT_HEADER, [verdict.cells() for verdict in self.verdicts])
        if self.contest:
            versions = ", ".join(f"{side} {self.versions[side]}" for side in SIDES if side in self.versions)
            yield f"The peers at the same work, medians: {versions}."
            yield from _as_markdown(("", *SIDES), self._contest())
            yield NOT_CONTESTED
        for name, reason in self.missing.items():
            yield f"Not measured: {name}: {reason}"
        for name, title in self.plots.items():
            yield f"\n![{title}]({name})"
        for table in self.tables:
            yield f"\n### {table['title']}\n\nPostgreSQL {table['postgresql']}"
            yield from _as_markdown(table["header"], table["lines"])


def _drawn(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for line in lines:
        table.add_row(*line)
    return table


def _as_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    for line in (header, ["---", *["---:"] * (len(header) - 1)], *lines):
        yield f"| {' | '.join(cell.replace('|', '/') for cell in line)} |"
    yield ""


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _processor() -> str:
    try:
        named = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        named = None
    return named[1] if named else platform.machine()


RECORD = Record()
