"""What was done by hand, as commands of a shell, each run as it is printed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

EXAMPLES = Path(__file__).resolve().parent


class RunBook:
    """Runs lines in a shell, and shows them with what they say."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self._out = out or sys.stdout
        #: Lines that ended otherwise than they should.
        self.surprises: list[str] = []

    def run(self, line: str, *, code: int = 0, only: str = "") -> str:
        """Run a line, show it with what it says, and return that.

        :param code: what it should exit with.
        :param only: show the lines that match; dots stand for the others.
        """
        done = shell(line, stderr=subprocess.STDOUT)
        self.say(f"$ {line}")
        for told in _chosen(done.stdout.splitlines(), only):
            self.say(told)
        if done.returncode:
            self.say(f"exit code {done.returncode}")
        if done.returncode != code:
            self.surprises.append(line)
        return done.stdout

    def say(self, line: str) -> None:
        print(line, file=self._out)

    def end(self, seconds: float) -> int:
        """Say how it went, and return an exit code."""
        self.say(f"\nDone and cleaned up, {seconds:.1f} s in all.")
        for line in self.surprises:
            self.say(f"This ended otherwise than it should: {line}")
        return 1 if self.surprises else 0


def shell(line: str, *, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run a line as a person would who has this Python's commands at hand, in the folder of the examples."""
    return subprocess.run(
        _here(line), shell=True, check=False, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=EXAMPLES
    )


def _here(line: str) -> str:
    python = shlex.quote(sys.executable)
    commands = {"python": python, "alembic-partitions": f"{python} -m alembic_partitions"}
    return re.sub(r"(?<![\w/-])(python|alembic-partitions)(?= )", lambda name: commands[name[1]], line)


def _chosen(lines: list[str], only: str) -> Iterator[str]:
    left_out = False
    for line in lines:
        if not re.search(only, line):
            left_out = True
            continue
        if left_out:
            yield "..."
        left_out = False
        yield line
    if left_out:
        yield "..."
