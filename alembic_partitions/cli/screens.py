"""What `status` and `check` draw. Values in, lines of rich out: nothing is read or printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.text import Text

from alembic_partitions.coverage import ASCII, UNICODE, Cell, coverage, today_column
from alembic_partitions.health import Level
from alembic_partitions.plan import Runway
from alembic_partitions.standing import Row
from alembic_partitions.words import (
    policy_words,
    printable,
    retention_words,
    runway_words,
    size,
    some,
    stretch,
)

# Colours only help: every sign is another character, too.
_CELLS = {
    Cell.NOTHING: "",
    Cell.PAST: "blue",
    Cell.DUE: "yellow",
    Cell.TODAY: "bold green",
    Cell.AHEAD: "green",
    Cell.GAP: "bold white on red",
    Cell.PENDING: "bold magenta",
    Cell.WITHOUT_BEGIN: "blue",
    Cell.WITHOUT_END: "green",
}
_LEVELS = {
    Level.OK: "green",
    Level.WARNING: "yellow",
    Level.CRITICAL: "bold red",
    Level.UNKNOWN: "magenta",
}
_WORST_FIRST = (Level.CRITICAL, Level.WARNING, Level.UNKNOWN, Level.OK)
_ENDS = {"none": "lacks a partition now", "no end": "never runs out"}
_FEW = 5
_RUNWAY, _COUNT, _SIZE, _GAP = 8, 5, 8, 2


@dataclass(frozen=True, slots=True)
class Paper:
    """What is drawn on: so many columns, and whether they take more than ASCII."""

    width: int
    unicode: bool = True

    @property
    def dot(self) -> str:
        """What stands between two remarks."""
        return " · " if self.unicode else "; "

    def shown(self, text: str) -> str:
        """Return text that this paper takes."""
        return printable(text, self.unicode)


# -- status --------------------------------------------------------------------------------------------


def status(rows: Sequence[Row], paper: Paper) -> Iterator[Text]:
    """Draw each table: its coverage as a line, below it its policy, and what is wrong with it."""
    side, line = _columns(rows, paper)
    yield _header(side, line)
    several = len({row.database for row in rows}) > 1
    before = None
    for row in rows:
        if several and row.database != before:
            yield Text(f"database {paper.shown(row.database)}", "bold underline")
        before = row.database
        yield from _table(row, side, line, paper)
    yield Text()
    yield Text(paper.dot.join([f"{len(rows)} table{'s' * (len(rows) != 1)}", *_counts(rows)]))
    yield from _worst(rows, paper)
    yield _legend(paper)


def _worst(rows: Sequence[Row], paper: Paper) -> Iterator[Text]:
    """Name those that are not well: of many tables they may have scrolled away."""
    for level in (Level.CRITICAL, Level.WARNING):
        names = [paper.shown(row.health.table) for row in rows if row.health.level is level]
        if names and len(rows) > _FEW:
            yield Text(f"{level.name}: {some(names, _FEW)}", _LEVELS[level])


def one_table(row: Row, paper: Paper) -> Iterator[Text]:
    """Draw one table as :func:`status` does, without head and legend."""
    return _table(row, *_columns([row], paper), paper)


def _columns(rows: Sequence[Row], paper: Paper) -> tuple[int, int]:
    """Return how wide names are, and coverage."""
    longest = max((cell_len(paper.shown(row.health.table)) for row in rows), default=0)
    side = max(min(longest, paper.width // 3), 8)
    return side, max(paper.width - side - _RUNWAY - _COUNT - _SIZE - 4 * _GAP, 10)


def _header(side: int, line: int) -> Text:
    # "today" stands over the column of today, as far as there is room for the words beside it.
    column = today_column(line)
    scale = f"{'past':<{max(column - 2, 0)}}today"
    scale = f"{scale}{'ahead':>{max(line - len(scale), 0)}}" if line - len(scale) > 6 else f"{scale:<{line}}"
    figures = f"{'RUNWAY':>{_RUNWAY}}  {'PARTS':>{_COUNT}}  {'SIZE':>{_SIZE}}"
    return Text(f"{'TABLE':<{side}}  {scale[:line]}  {figures}", "bold")


def _table(row: Row, side: int, line: int, paper: Paper) -> Iterator[Text]:
    runway, name = row.runway, paper.shown(row.health.table)
    first = Text()
    if cell_len(name) > side:  # in full: it is what an operator copies
        yield Text(name, "bold")
        name = ""
    first.append(name + " " * (side - cell_len(name) + _GAP), "bold")
    glyphs = UNICODE if paper.unicode else ASCII
    cells = coverage(row.view.table, runway, line) if runway else [Cell.NOTHING] * line
    for cell, same in groupby(cells):
        first.append(glyphs[cell] * len(list(same)), _CELLS[cell])
    left = runway_words(row.health) if row.health.enabled else "disabled"
    first.append(f"  {left:>{_RUNWAY}}", _LEVELS[row.health.level] if row.health.enabled else "dim")
    parts = len(row.view.table.partitions)
    first.append(f"  {parts:>{_COUNT}}  {size(row.view.bytes):>{_SIZE}}")
    yield first
    for told in _wrapped(_remarks(row, runway, paper), paper.dot, paper.width - 2):
        yield Text(f"  {told}", "dim")
    if row.health.level is not Level.OK:
        reasons = f"{row.health.level.name}: {paper.shown('; '.join(row.health.reasons))}"
        for told in _wrapped(reasons.split(" "), " ", paper.width - 4):
            yield Text(f"  {told}", _LEVELS[row.health.level])


def _remarks(row: Row, runway: Runway | None, paper: Paper) -> list[str]:
    table = row.view.table
    if table.policy is None:
        return []
    told = [policy_words(table.policy)]
    bounded = [p for p in row.ordered if not p.is_default]
    if bounded:
        told.append(stretch(table.grid, bounded[0].lower, bounded[-1].upper))
    elif runway:
        told.append("no partition at all")
    gaps = runway.gaps if bounded and runway else ()
    if runway and row.health.level is not Level.OK:  # of the one that ends the runway the reasons tell
        gaps = tuple(gap for gap in gaps if gap[0] != runway.end)
    if gaps:
        more = len(gaps) - 1
        told.append(f"gap {stretch(table.grid, *gaps[0])}" + f" and {more} more" * bool(more))
    told.append(retention_words(table.policy, runway))
    if table.has_default:
        words = {True: "holds rows", False: "is empty", None: "may hold rows"}
        told.append(f"its DEFAULT partition {words[row.view.stranded]}")
    return list(map(paper.shown, told))


def _legend(paper: Paper) -> Text:
    glyphs = UNICODE if paper.unicode else ASCII
    legend = Text()
    for cell in (Cell.PAST, Cell.DUE, Cell.TODAY, Cell.AHEAD, Cell.GAP, Cell.PENDING):
        legend.append("  " if legend else "")
        legend.append(glyphs[cell], _CELLS[cell])
        legend.append(f" {cell.value}", "dim")
    return legend


def _counts(rows: Iterable[Row]) -> list[str]:
    counts = Counter(row.health.level for row in rows)
    return [f"{counts[level]} {level.name.lower()}" for level in _WORST_FIRST if counts[level]]


def _wrapped(pieces: Iterable[str], between: str, width: int) -> Iterator[str]:
    line = ""
    for piece in pieces:
        if line and cell_len(line + between + piece) > width:
            yield line
            line = piece
        else:
            line = line + between + piece if line else piece
    if line:
        yield line


# -- check ---------------------------------------------------------------------------------------------


def check(rows: Sequence[Row], paper: Paper) -> Iterator[Text]:
    """Draw a line a table, the worst first."""
    several = len({row.database for row in rows}) > 1
    ordered = sorted(rows, key=lambda r: (_WORST_FIRST.index(r.health.level), r.health.runway or 0.0))
    names = [paper.shown(f"{r.database}: " * several + r.health.table) for r in ordered]
    side = max(map(cell_len, names), default=0)
    for row, name in zip(ordered, names, strict=True):
        level = row.health.level
        line = Text(f"{level.name:<8}", _LEVELS[level])
        left = runway_words(row.health)
        left = "disabled" if not row.health.enabled else f"{left} left" if left != "no end" else left
        line.append(f"  {name}{' ' * (side - cell_len(name))}  {left}")
        if row.health.reasons:
            line.append(f"  {paper.shown('; '.join(row.health.reasons))}", "dim" if level is Level.OK else "")
        yield line


def verdict(rows: Sequence[Row], level: Level, failures: Sequence[str], paper: Paper) -> Text:
    """Say in one line how all tables stand."""
    if not rows:
        told = "no table is managed here"
    else:
        told = ", ".join(_counts(rows))
        soonest = min(
            (r for r in rows if r.health.enabled and r.health.runway is not None),
            key=lambda r: r.health.runway or 0.0,
            default=None,
        )
        if soonest is not None:
            left = runway_words(soonest.health)
            ends = {"none": "lacks a partition now", "no end": "never runs out"}.get(
                left, f"runs out in {left}"
            )
            told += f"; {paper.shown(soonest.health.table)} {ends}"
    told = "; ".join([told, *map(paper.shown, failures)])
    return Text.assemble((level.name, _LEVELS[level]), f": {told}")
