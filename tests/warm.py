"""A Python that has imported what commands import; each command runs in a fork of it.

Importing takes a command longer than its work does, and the tests run some hundreds of them. Who wants
several commands at once, or to send one a signal, starts real ones.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MAIN = {"alembic.config": "alembic.config", "alembic_partitions": "alembic_partitions.cli"}
"""Where the programs are that `python -m` runs."""

SECONDS = 60
"""How long a command may take."""

# All that a command would import: what the program itself imports late, the drivers, and what Alembic loads.
LOADED = (
    "alembic_partitions.cli",
    "alembic.autogenerate",
    "alembic.config",
    "alembic.context",
    "alembic.op",
    "asyncpg",
    "logging.config",
    "mako.template",
    "psycopg",
    "psycopg2",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
)


def run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Do what `python -m module` does; return its exit code and what it printed, on stdout and on stderr."""
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as told:
        process.stdin.write(json.dumps([module, arguments, str(folder), environment, told]) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            os.killpg(process.pid, signal.SIGKILL)
            _process.cache_clear()
            raise subprocess.TimeoutExpired([module, *arguments], SECONDS)
        code = int(process.stdout.readline())
        return code, Path(told, "1").read_text(), Path(told, "2").read_text()


@functools.cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(process.communicate)
    return process


def _serve() -> None:
    for line in sys.stdin:
        module, arguments, folder, environment, told = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(folder, environment, told)
            _main(module, arguments)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(folder: str, environment: dict[str, str], told: str) -> None:
    """Be a process as it starts: its folder, its environment, and nobody at the terminal."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # A test that changes a file twice within a second would find it compiled as it was before.
    sys.dont_write_bytecode = True
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(os.open(Path(told, str(number)), os.O_WRONLY | os.O_CREAT), number)


def _main(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    importlib.import_module(MAIN[module]).main()


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # or a fork, at its end, goes through all that was imported
    _serve()
