"""What the odds service is deployed with (examples/deploy): each file by its own linter, and all together.

The linters are in the extra ``test-operate``, but for systemd's own, which comes with systemd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HERE = EXAMPLES / "deploy"
UNITS = sorted((HERE / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text())
OURS = ("web", "scheduler", "migrate")


def lint(program: str, *arguments: str | Path) -> str:
    """Run a linter, and show what it says against us; return what it says if that is all right."""
    beside = Path(sys.executable).with_name(program)
    found = str(beside) if beside.exists() else shutil.which(program)
    assert found, f"there is no {program}: pip install 'alembic-partitions[test-operate]'"
    done = subprocess.run([found, *arguments], check=False, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return f"{done.stdout}{done.stderr}"


def test_the_scripts_please_shellcheck() -> None:
    scripts = sorted(HERE.glob("*.sh"))
    assert [script.name for script in scripts] == [
        "entrypoint.sh",
        "healthcheck.sh",
        "migrate.sh",
        "smoke.sh",
    ]
    lint("shellcheck", *scripts)


def test_the_dockerfile_pleases_hadolint() -> None:
    lint("hadolint", "Dockerfile")


def test_compose_yaml_is_what_the_compose_specification_says() -> None:
    lint("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine")
def test_systemd_takes_the_units_and_finds_little_that_they_expose(tmp_path: Path) -> None:
    for unit in UNITS:
        # It looks for each program that a unit starts: ours are here, and not in /opt.
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/odds/deploy/", f"{HERE}/"))
    said = lint("systemd-analyze", "verify", *(tmp_path / unit.name for unit in UNITS))
    assert "Unknown" not in said, "a setting of a systemd that Debian 12 has not"
    for unit in SERVICES:
        lint("systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / unit.name)


# -- together ------------------------------------------------------------------------------------------------


def read_by_us() -> set[str]:
    """The variables that the service, its scripts, or the library's command line read."""
    texts = [path.read_text() for path in (*HERE.glob("*.py"), *HERE.glob("*.sh"))]
    names = set(re.findall(r"\b[A-Z][A-Z]+(?:_[A-Z]+)+\b|\bBIND\b", "\n".join(texts)))
    secrets = re.search(r"for name in ([A-Z_ ]+);", (HERE / "entrypoint.sh").read_text())
    assert secrets is not None
    return names | {f"{name}_FILE" for name in secrets[1].split()} | {"MIGRATION_LOCK_TIMEOUT_SECONDS"}


def of_compose(service: str) -> dict[str, str]:
    return dict(COMPOSE["services"][service]["environment"])


def of_unit(unit: Path) -> dict[str, str]:
    words = re.findall(r"^Environment=(.*)", unit.read_text(), re.MULTILINE)
    return dict(word.split("=", 1) for line in words for word in line.split())


def test_every_variable_that_compose_and_systemd_set_is_one_that_somebody_reads() -> None:
    told = {name for service in OURS for name in of_compose(service)}
    told |= {name for unit in SERVICES for name in of_unit(unit)}
    assert told - {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED"} <= read_by_us()
    assert {"DATABASE_URL_FILE", "ODDS_TOKEN_FILE", "SCHEDULER_STANDALONE", "BIND"} <= told


def test_secrets_come_from_files_alone_and_each_of_them_is_there() -> None:
    for service in OURS:
        files = {path for name, path in of_compose(service).items() if name.endswith("_FILE")}
        assert files == {f"/run/secrets/{name}" for name in COMPOSE["services"][service]["secrets"]}
    for unit in SERVICES:
        files = {path for name, path in of_unit(unit).items() if name.endswith("_FILE")}
        loaded = re.findall(r"^LoadCredential=(\w+):", unit.read_text(), re.MULTILINE)
        assert files == {f"%d/{name}" for name in loaded}
    assert "://" not in re.sub(
        r"#.*|redis://redis:6379/0|http://127.0.0.1:8000", "", (HERE / "compose.yaml").read_text()
    )


def test_replicas_run_no_jobs_where_a_scheduler_is_deployed_beside_them() -> None:
    assert COMPOSE["services"]["web"]["deploy"]["replicas"] >= 2
    assert COMPOSE["services"]["scheduler"]["command"] == ["scheduler"]
    assert of_compose("web")["SCHEDULER_STANDALONE"] == "1"
    assert of_unit(HERE / "systemd/odds-web.service")["SCHEDULER_STANDALONE"] == "1"


@pytest.mark.parametrize("service", OURS)
def test_a_container_has_no_right_that_it_does_not_need(service: str) -> None:
    told = COMPOSE["services"][service]
    assert (told["read_only"], told["user"], told["cap_drop"]) == (True, "10001:10001", ["ALL"])
    assert told["security_opt"] == ["no-new-privileges:true"]
    assert {name: how["condition"] for name, how in told["depends_on"].items()} == {
        "db": "service_healthy",
        "redis": "service_healthy",
    }


def test_everything_that_runs_for_long_has_a_health_check_and_an_end_to_its_logs() -> None:
    for name, service in COMPOSE["services"].items():
        if name != "migrate":
            assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}, name
        assert service["logging"]["options"]["max-size"], name


def test_each_unit_starts_the_entrypoint_by_a_role_that_it_knows() -> None:
    for unit in SERVICES:
        parser = RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(unit.read_text())
        program, *arguments = parser["Service"]["ExecStart"].split()
        assert program == "/opt/odds/deploy/entrypoint.sh"
        assert arguments[0] in {"web", "scheduler", "alembic-partitions"}


def test_what_runs_for_long_is_started_again_however_often_it_failed_for_want_of_a_database() -> None:
    for unit in SERVICES:
        told = unit.read_text()
        if "Restart=" in told:
            assert "\nStartLimitIntervalSec=0\n" in told, unit.name


def test_the_readme_names_every_file_and_no_other() -> None:
    told = set(
        re.findall(r"`([\w.]+\.(?:py|sh|ini|txt|yaml)|Dockerfile|\w+/)`", (HERE / "README.md").read_text())
    )
    there = {f"{path.name}/" if path.is_dir() else path.name for path in HERE.iterdir()}
    unremarkable = {"__init__.py", "__pycache__/", ".dockerignore", "README.md"}
    assert told - {"test_deploy_files.py"} == there - unremarkable
