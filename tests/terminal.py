"""The command line called in this process, as from a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from alembic_partitions import cli
from tests.databases import Database


@dataclass
class Done:
    """How a command ended."""

    code: Any
    out: str
    err: str


def caller(database: Database) -> Callable[..., Done]:
    """Return what runs commands on a database."""
    told = database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def run(*arguments: str, url: str | None = told) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([*arguments, *(["--url", url] if url else [])])
        return Done(ended.value.code, out.getvalue(), err.getvalue())

    return run
