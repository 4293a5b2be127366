"""Other people's suites and tables, with our plugin installed: `python -m tests.ecosystem FOLDER`.

Alembic's own, from the source distribution of the Alembic that is installed, on SQLite and on PostgreSQL; and
the tests that pytest-alembic brings, over the migrations of examples/nz_racing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from sqlalchemy import URL, NullPool, create_engine, make_url

from tests.postgres import Server

CHECKOUT = Path(__file__).resolve().parents[1]

# What Alembic's README.unittests.rst asks of a PostgreSQL to test on.
PREPARED = ("CREATE SCHEMA test_schema", 'CREATE COLLATION "en_US" FROM "C"')

CONFTEST = """
import pytest
import sqlalchemy as sa


@pytest.fixture
def alembic_config():
    return {{"file": {ini!r}, "script_location": {scripts!r}}}


@pytest.fixture
def alembic_engine():
    admin = sa.create_engine({server!r}, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS migrated WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE migrated")
    engine = sa.create_engine({database!r})
    yield engine
    engine.dispose()
"""

BUILT_IN = """
from pytest_alembic.tests import (
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from pytest_alembic.tests.experimental import test_downgrade_leaves_no_trace
"""


def main(folder: Path) -> int:
    """Run them all below ``folder``, and return the worst exit code."""
    assert "alembic.autogenerate.partitions" in {
        point.name for point in entry_points(group="alembic.plugins")
    }
    folder.mkdir(parents=True, exist_ok=True)
    address = os.environ.get("DATABASE_URL")
    server = None if address else Server()
    try:
        url = make_url(address) if address else server.url  # type: ignore[union-attr]
        url = url.set(drivername="postgresql+psycopg2")
        return max(alembics_own(folder, url), pytest_alembics(folder, url), mlflows_tables(url))
    finally:
        if server is not None:
            server.close()


def alembics_own(folder: Path, server: URL) -> int:
    source = f"alembic-{version('alembic')}"
    if not (folder / source).is_dir():
        wanted = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "alembic"]
        subprocess.run([*wanted, "-d", folder, source.replace("-", "==", 1)], check=True)
        with tarfile.open(folder / f"{source}.tar.gz") as archive:
            safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
            archive.extractall(folder, **safely)
    administer(server, "DROP DATABASE IF EXISTS alembics", "CREATE DATABASE alembics TEMPLATE template0")
    database = server.set(database="alembics")
    administer(database, *PREPARED)
    address = database.render_as_string(hide_password=False)
    return max(
        pytest(folder / source, "-n", "2"),
        pytest(folder / source, "--dburi", address),
    )


def pytest_alembics(folder: Path, server: URL) -> int:
    home = folder / "pytest-alembic"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(CHECKOUT / "examples" / "nz_racing", home / "nz_racing")
    env = home / "nz_racing" / "migrations" / "env.py"
    # Its connection is to be used: https://pytest-alembic.readthedocs.io/en/latest/setup.html
    own, text = "connectable = engine_from_config", env.read_text()
    assert own in text
    env.write_text(text.replace(own, f'connectable = config.attributes.get("connection") or {own[14:]}'))
    database = server.set(database="migrated").render_as_string(hide_password=False)
    ini, scripts = home / "nz_racing" / "alembic.ini", home / "nz_racing" / "migrations"
    (home / "conftest.py").write_text(
        CONFTEST.format(
            ini=str(ini),
            scripts=str(scripts),
            server=server.render_as_string(hide_password=False),
            database=database,
        )
    )
    (home / "test_built_in.py").write_text(BUILT_IN)
    (home / "pytest.ini").write_text("[pytest]\n")  # ours is none of theirs
    return pytest(home, "--test-alembic", PYTHONPATH=str(home), DATABASE_URL=database)


def mlflows_tables(server: URL) -> int:
    """Partition a table of MLflow's, which its own migrations have made."""
    if importlib.util.find_spec("mlflow") is None:
        print("\nmlflow is not installed, so nothing of it was converted")
        return 0
    administer(server, "DROP DATABASE IF EXISTS mlflow", "CREATE DATABASE mlflow TEMPLATE template0")
    database = server.set(database="mlflow").render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.mlflow_tables", database]
    return subprocess.run(command, check=False).returncode


def pytest(folder: Path, *arguments: str, **variables: str) -> int:
    print(f"\n{folder.name}: pytest {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-r", "fE", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(command, cwd=folder, env={**inherited, **variables}, check=False).returncode


def administer(url: URL, *statements: str) -> None:
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
