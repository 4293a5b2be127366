"""What repair says while it goes on: a bar in a terminal, a line for each tenth where piped."""

from __future__ import annotations

import io
import sys

import pytest

from alembic_partitions.cli.repairing import progressing


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_it_says_a_plain_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progressing() as progress:
        for done in range(1, 1001):
            progress("public.odds", "rows", done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        f"public.odds: {tenth * 100} of 1000 rows" for tenth in range(1, 11)
    ]


def test_what_is_short_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progressing() as progress:
        for done in range(1, 10):
            progress("public.odds", "windows", done, 9)
    assert capsys.readouterr().err == ""


def test_in_a_terminal_it_draws_a_bar_and_takes_it_away_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progressing() as progress:
        progress("public.[odds]", "rows", 500, 1000)
        progress("public.[odds]", "rows", 1000, 1000)
    drawn = terminal.getvalue()
    assert "public.[odds], rows" in drawn
    assert "1000/1000" in drawn
    assert drawn.endswith("\x1b[2K"), "the last line drawn is wiped"
