"""The command line without a database: options, exit codes, one line for an error, and no password in it."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from alembic_partitions import cli, deploy, talk, upgrade_lock_key
from alembic_partitions.cli import connecting, keeping, showing
from alembic_partitions.cli.door import Call
from alembic_partitions.errors import PolicyError, SettingError

PASSWORD = "tell-nobody"


@dataclass
class Result:
    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, out.getvalue(), err.getvalue())


def complaint(result: Result) -> str:
    """The one line on stderr."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("alembic-partitions: ")
    return line.removeprefix("alembic-partitions: ")


# The lock's key is a contract: a script of an operator's may rely on it.


def test_the_key_of_the_migration_lock_never_changes() -> None:
    assert (
        upgrade_lock_key("shop") == upgrade_lock_key("shop", "alembic_version", None) == -664727455975216358
    )
    assert upgrade_lock_key("shop", "history", "ops") == 2834966476349777517


def test_the_key_fits_a_signed_bigint_and_tells_databases_apart() -> None:
    keys = [upgrade_lock_key(f"db{number}", table) for number in range(500) for table in ("a", "b")]
    assert len(set(keys)) == 1000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)
    assert upgrade_lock_key("a", "b", "c") != upgrade_lock_key("a", "c", "b")


# How long to wait for it.


class Migration:
    def __init__(self, **opts: Any) -> None:
        self.opts = opts


@pytest.mark.parametrize(
    ("option", "argument", "env", "seconds"),
    [
        (None, None, {}, 600),
        (None, None, {"MIGRATION_LOCK_TIMEOUT_SECONDS": "30"}, 30),
        (None, None, {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "0.5", "MIGRATION_LOCK_TIMEOUT_SECONDS": "30"}, 0.5),
        (None, None, {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "", "MIGRATION_LOCK_TIMEOUT_SECONDS": "30"}, 30),
        (None, 7, {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "30"}, 7),
        (None, 0, {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "30"}, 0),
        (0.0, 7, {"ALEMBIC_PARTITIONS_LOCK_TIMEOUT": "30"}, 0),
    ],
)
def test_the_lock_timeout(
    monkeypatch: pytest.MonkeyPatch,
    option: float | None,
    argument: float | None,
    env: dict[str, str],
    seconds: float,
) -> None:
    for name in deploy.LOCK_TIMEOUT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    migration: Any = Migration(alembic_partitions_lock_timeout=option)
    assert deploy._lock_timeout(migration, argument) == seconds


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_lock_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_LOCK_TIMEOUT", value)
    migration: Any = Migration()
    with pytest.raises(SettingError, match="is not a number of seconds"):
        deploy._lock_timeout(migration, None)


# Usage.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing command. See alembic-partitions --help."),
        (["upgrad"], "No such command 'upgrad'."),
        (["--no-such", "upgrade"], "No such option"),
        (["plan", "--no-such"], "No such option"),
        (["downgrade"], "Missing argument 'REVISION'. See alembic-partitions downgrade --help."),
        (["stamp"], "Missing argument 'REVISIONS...'."),
        (["upgrade", "head", "--lock-timeout", "-1"], "-1"),
        (["upgrade", "head", "--lock-timeout", "soon"], "'soon' is not a valid float"),
        (["upgrade", "head", "tail"], "Got unexpected extra argument (tail)"),
        (["upgrade", "head", "--no-such"], "Got unexpected extra argument (--no-such)"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == cli.EXIT_USAGE == 2
    assert told in complaint(result)


@pytest.mark.parametrize("arguments", [["--help"], ["upgrade", "-h"], ["--version"]])
def test_help_and_version(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == cli.EXIT_OK
    assert "alembic-partitions" in result.stdout
    assert result.stderr == ""


def test_every_command_says_what_it_does() -> None:
    for name, command in cli.main.commands.items():
        assert command.help, name


@pytest.mark.parametrize("module", ["alembic_partitions", "alembic_partitions.cli"])
def test_it_runs_as_a_module(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "upgrade"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == cli.EXIT_FAILED == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("alembic-partitions: No 'script_location' key found in configuration")


def test_the_command_line_loads_alembic_and_rich_only_when_it_uses_them() -> None:
    script = "import sys, alembic_partitions.cli; print(*sorted({'alembic', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Which driver a plain URL means.


@pytest.mark.parametrize(
    ("installed", "url", "driver"),
    [
        ({"psycopg", "psycopg2", "asyncpg"}, "postgresql://h/db", "psycopg"),
        ({"psycopg2"}, "postgresql://h/db", "psycopg2"),
        ({"psycopg2"}, "postgres://h/db", "psycopg2"),
        ({"asyncpg"}, "postgresql://h/db", "asyncpg"),
        ({"psycopg2"}, "postgresql+asyncpg://h/db", "asyncpg"),
    ],
)
def test_a_plain_url_uses_the_driver_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], url: str, driver: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in installed or None)
    assert connecting.address(Call(), url).drivername == f"postgresql+{driver}"


def test_without_any_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("ensure", "--url", "postgresql://h/db")
    assert result.exit_code == cli.EXIT_FAILED
    assert complaint(result) == "no PostgreSQL driver is installed: pip install psycopg2-binary"


# The demo.


def test_the_demo_without_its_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("demo")
    assert result.exit_code == cli.EXIT_FAILED
    assert 'pip install "alembic-partitions[demo]"' in complaint(result)


def test_the_demo_is_loaded_from_a_checkout_or_a_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("examples", "alembic_partitions/_examples"):
        home = tmp_path / place.replace("/", "-")
        package = home / "alembic_partitions"
        script = home / place / "nz_racing" / "demo.py"
        script.parent.mkdir(parents=True)
        script.write_text("def main(url=None):\n    print('raced at', url)\n    return 3\n")
        monkeypatch.setattr(showing, "__file__", str(package / "cli" / "showing.py"))
        result = run("demo", "--url", f"postgresql+psycopg2://u:{PASSWORD}@h/db")
        assert result.stdout == f"raced at postgresql+psycopg2://u:{PASSWORD}@h/db\n"
        assert result.exit_code == 3
    bare = tmp_path / "bare" / "alembic_partitions" / "cli" / "showing.py"
    monkeypatch.setattr(showing, "__file__", str(bare))
    assert "has no examples" in complaint(run("demo", "--url", "postgresql+psycopg2://h/db"))


# One line, no password.


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PolicyError(field="every", problem="no", remedy="Ask."),
            "Partition policy, field 'every': no. Ask.",
        ),
        (OperationalError("SELECT 1", {}, Exception("down\n\tIs it up?")), "down"),
        (
            OperationalError("SELECT 1", {}, Exception("<class 'asyncpg.X'>: down")),
            "down",
        ),
        (KeyError("url"), "KeyError: 'url'"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x'"),
        (RuntimeError(), "RuntimeError"),
        (OSError("several\n  lines"), "OSError: several lines"),
    ],
)
def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, line: str) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert talk.explain(error) == line


@pytest.mark.parametrize(
    "text",
    [
        f"could not connect to postgresql://u:{PASSWORD}@h/db",
        f"postgresql+asyncpg://u:{PASSWORD}@h/db is no DSN",
        f"host=h password={PASSWORD} user=u",
        f"password = '{PASSWORD} and more'",
        f'dsn: password="{PASSWORD}"',
        f"bad option in {PASSWORD!r}",
        f"host '{PASSWORD}@h' is unknown",
    ],
)
def test_a_password_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    url = f"postgresql://u:{PASSWORD}@h/db"
    assert PASSWORD not in talk.mask(text, [url])
    monkeypatch.setenv("SOME_URL", url)
    assert PASSWORD not in talk.mask(text)
    monkeypatch.delenv("SOME_URL")
    monkeypatch.setenv("POSTGRES_PARTITION_PASSWORD", PASSWORD)
    assert PASSWORD not in talk.explain(RuntimeError(text))


def test_an_encoded_password_is_masked_in_both_forms() -> None:
    url = "postgresql://u:p%40ss%2Fword@h/db"
    assert talk.mask("p@ss/word or p%40ss%2Fword", [url]) == "*** or ***"


def test_a_password_that_is_also_a_name_leaves_the_name_readable() -> None:
    told = 'role "app" of database "shop" does not exist'
    assert talk.mask(told, ["postgresql://app:app@h/shop", "postgresql://app:shop@h/shop"]) == told


@pytest.mark.parametrize("url", [f"postgresql://u:a@{PASSWORD}@h/db", f"postgresql://u:{PASSWORD}@h:x/db"])
def test_a_malformed_url_is_not_shown_at_all(url: str) -> None:
    told = talk.explain(ValueError(f"what is {url[20:40]}?"), [url])
    assert told.startswith("a database URL cannot be read")


def test_an_unexpected_error_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError(f"postgresql://u:{PASSWORD}@h/db")

    monkeypatch.setattr(keeping, "visit", fail)
    result = run("plan", "--url", "postgresql+psycopg2://h/db")
    assert result.exit_code == cli.EXIT_FAILED
    assert complaint(result) == "RuntimeError: postgresql://u:***@h/db"
    for arguments in (["-v", "plan"], ["plan", "--verbose"]):
        result = run(*arguments, "--url", "postgresql+psycopg2://h/db")
        assert result.exit_code == cli.EXIT_FAILED
        assert "Traceback" in result.stderr
        assert PASSWORD not in result.stderr
        assert result.stderr.splitlines()[-1] == "alembic-partitions: RuntimeError: postgresql://u:***@h/db"


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "visit", interrupt)
    result = run("plan", "--url", "postgresql+psycopg2://h/db")
    assert result.exit_code == cli.EXIT_INTERRUPTED == 130
    assert result.stderr.splitlines()[-1] == "alembic-partitions: interrupted"
