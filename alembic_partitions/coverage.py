"""A table's coverage as a line: past, today, ahead; gaps, and what retention takes next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TypeAlias

from .periods import Grid
from .plan import ManagedTable, Partition, Runway, instant_of, uncovered

#: Where today stands in the line, as a share of its width: the same column for all tables.
TODAY = 0.6

#: From an instant up to another one.
Span: TypeAlias = "tuple[datetime, datetime]"


class Cell(Enum):
    """What one character of the line says."""

    #: Beyond the first or the last partition.
    NOTHING = "nothing"
    PAST = "past"
    DUE = "next to go"
    TODAY = "today"
    AHEAD = "ahead"
    GAP = "no partition"
    PENDING = "half detached"
    #: MINVALUE, or MAXVALUE.
    WITHOUT_BEGIN = "without begin"
    WITHOUT_END = "without end"


UNICODE = {
    Cell.NOTHING: " ",
    Cell.PAST: "━",
    Cell.DUE: "×",
    Cell.TODAY: "◆",
    Cell.AHEAD: "═",
    Cell.GAP: "!",
    Cell.PENDING: "?",
    Cell.WITHOUT_BEGIN: "«",
    Cell.WITHOUT_END: "»",
}
ASCII = {
    **UNICODE,
    Cell.PAST: "-",
    Cell.DUE: "x",
    Cell.TODAY: "#",
    Cell.AHEAD: "=",
    Cell.WITHOUT_BEGIN: "<",
    Cell.WITHOUT_END: ">",
}


def today_column(width: int) -> int:
    """Return where today stands in a line of that width."""
    return int(width * TODAY)


def coverage(table: ManagedTable, runway: Runway, width: int) -> list[Cell]:
    """Draw a table's coverage in ``width`` cells.

    The cell of today is the current window. Left of it time runs from the table's first partition, right of
    it to its last one, or to the end of the horizon that the policy asks for. A gap is never drawn over,
    however short it is.
    """
    spans = Spans.of(table, runway)
    column = today_column(width)
    left = [spans.cell(span, Cell.PAST) for span in _cut(spans.first, spans.today[0], column)]
    right = [spans.cell(span, Cell.AHEAD) for span in _cut(spans.today[1], spans.last, width - column - 1)]
    line = [*left, spans.cell(spans.today, Cell.TODAY), *right]
    line = [*[Cell.NOTHING] * (column - len(left)), *line]
    line += [Cell.NOTHING] * (width - len(line))
    bounded = [p for p in table.partitions if not p.is_default]
    if left and any(p.lower is None for p in bounded):
        line[0] = Cell.WITHOUT_BEGIN
    if right and any(p.upper is None for p in bounded):
        line[-1] = Cell.WITHOUT_END
    return line


@dataclass(frozen=True, slots=True)
class Spans:
    """What a drawing of coverage shows, as instants."""

    first: datetime
    last: datetime
    today: Span
    gaps: tuple[Span, ...]
    due: tuple[Span, ...]
    pending: tuple[Span, ...]

    @classmethod
    def of(cls, table: ManagedTable, runway: Runway) -> Spans:
        grid, bounded = table.grid, [p for p in table.partitions if not p.is_default]
        window, wanted = runway.window, runway.wanted
        # Bounds without end are drawn as far as the others reach, but at least as far as the horizon does.
        known = [b for p in bounded for b in (p.lower, p.upper) if b is not None]
        first, last = min([*known, window.begin]), max([*known, wanted])
        begin, end = instant_of(grid, first), instant_of(grid, last)
        today = instant_of(grid, window.begin), instant_of(grid, window.end)
        if begin == today[0] and any(p.lower is None for p in bounded):
            begin = today[0] - (end - today[0])
        gaps = uncovered(bounded, window.begin, wanted, pending=True)
        return cls(
            first=begin,
            last=end,
            today=today,
            gaps=tuple((instant_of(grid, low), instant_of(grid, high)) for low, high in gaps),
            due=_spans(grid, runway.due, begin, end),
            pending=_spans(grid, (p for p in bounded if p.detach_pending), begin, end),
        )

    def cell(self, span: Span, otherwise: Cell) -> Cell:
        for spans, cell in ((self.gaps, Cell.GAP), (self.pending, Cell.PENDING), (self.due, Cell.DUE)):
            if any(low < span[1] and span[0] < high for low, high in spans):
                return cell
        return otherwise


def _spans(grid: Grid, parts: Iterable[Partition], first: datetime, last: datetime) -> tuple[Span, ...]:
    return tuple(
        (
            first if part.lower is None else instant_of(grid, part.lower),
            last if part.upper is None else instant_of(grid, part.upper),
        )
        for part in parts
    )


def _cut(begin: datetime, end: datetime, pieces: int) -> Sequence[Span]:
    """Cut a stretch of time into equal pieces; nothing gives none."""
    if begin >= end:
        return ()
    marks = [begin + (end - begin) * number / pieces for number in range(pieces)]
    return list(zip(marks, [*marks[1:], end], strict=True))
