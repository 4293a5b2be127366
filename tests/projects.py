"""Alembic projects as `alembic init` makes them, with migrations of our own, run as users run them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent

from alembic import command
from alembic.config import Config
from sqlalchemy import URL

from tests import warm

PROGRAM = "alembic-partitions: "

_REVISION = """
import sqlalchemy as sa
from alembic import op
from alembic_partitions import PartitionPolicy

revision = "{revision}"
down_revision = {down!r}
branch_labels = None
depends_on = None


def upgrade(engine_name=None):
{upgrade}


def downgrade(engine_name=None):
{downgrade}
"""


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that says what went wrong."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith(PROGRAM)]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        return lines[0].removeprefix(PROGRAM)

    def succeeded(self) -> Outcome:
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert PROGRAM not in self.err
        return self

    def failed(self) -> str:
        assert self.code == 1, f"exit code {self.code}\n{self.out}\n{self.err}"
        return self.complaint


@dataclass
class Project:
    """A folder with alembic.ini, env.py and versions."""

    folder: Path
    template: str = "generic"
    revisions: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, template: str, *urls: URL) -> Project:
        """Do what `alembic init -t template` does, and write the URLs into alembic.ini."""
        project = cls(folder, template)
        config = Config(folder / "alembic.ini", stdout=io.StringIO())
        command.init(config, str(folder / "migrations"), template)
        project.point_at(*urls)
        return project

    @property
    def env(self) -> Path:
        return self.folder / "migrations" / "env.py"

    def point_at(self, *urls: URL) -> None:
        ini = self.folder / "alembic.ini"
        addresses = iter([url.render_as_string(hide_password=False).replace("%", "%%") for url in urls])
        written = re.sub(
            r"(?m)^sqlalchemy\.url = .*$", lambda _: f"sqlalchemy.url = {next(addresses)}", ini.read_text()
        )
        ini.write_text(written)

    def edit_env(self, old: str, new: str) -> None:
        text = self.env.read_text()
        assert old in text, text
        self.env.write_text(text.replace(old, new))

    def add(self, upgrade: str, downgrade: str = "pass") -> str:
        """Add a revision on top of the others; in a multidb project its body finds `engine_name`."""
        number = f"{len(self.revisions) + 1:04}"
        down = self.revisions[-1] if self.revisions else None
        text = _REVISION.format(
            revision=number,
            down=down,
            upgrade=indent(dedent(upgrade).strip(), "    "),
            downgrade=indent(dedent(downgrade).strip(), "    "),
        )
        self._versions.mkdir(exist_ok=True)
        (self._versions / f"{number}.py").write_text(text)
        self.revisions.append(number)
        return number

    @property
    def _versions(self) -> Path:
        return self.folder / "migrations" / "versions"

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start `alembic-partitions` with these arguments."""
        return self._popen("alembic_partitions", *arguments, env=env)

    def start_alembic(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start plain `alembic`."""
        return self._popen("alembic.config", *arguments, env=env)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
        """Run `alembic-partitions` with these arguments."""
        return self._run("alembic_partitions", *arguments, env=env)

    def alembic(self, *arguments: str, env: Mapping[str, str] | None = None) -> Outcome:
        """Run plain `alembic`."""
        return self._run("alembic.config", *arguments, env=env)

    def _run(self, module: str, *arguments: str, env: Mapping[str, str] | None) -> Outcome:
        settled_at_start = any(name.startswith("PYTHON") for name in env or ())
        if settled_at_start or not hasattr(os, "fork"):
            return finish(self._popen(module, *arguments, env=env))
        return Outcome(*warm.run(module, arguments, self.folder, _environment(env)))

    def _popen(self, module: str, *arguments: str, env: Mapping[str, str] | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=_environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _environment(given: Mapping[str, str] | None) -> dict[str, str]:
    """Return what a command finds: nothing of ours that is not given."""
    names = ("DATABASE_URL", "ALEMBIC_CONFIG", "MIGRATION_LOCK_TIMEOUT_SECONDS")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith("ALEMBIC_PARTITIONS_")
    }
    return {**inherited, **(given or {})}


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for the end of a command."""
    out, err = process.communicate(timeout=warm.SECONDS)
    return Outcome(process.returncode, out, err)
