"""Budget: `alembic-partitions upgrade head` at head takes at most 1.3 x `alembic upgrade head`.

Whole processes, alone and as many replicas that start at once. The same against Alembic where the package is
not installed (its plugin hidden), for a project whose env.py imports models, as it does in practice.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.databases import Database, Databases
from tests.projects import Project

ROUNDS = setting("BENCH_ROUNDS", 9, quick=2)
REPLICAS = setting("BENCH_REPLICAS", 20, quick=3)
REVISIONS = setting("BENCH_REVISIONS", 20, quick=2)
BUDGET = 1.3

PARTITIONED = """
op.create_partitioned_table(
    "events", sa.Column("at", sa.DateTime(timezone=True), nullable=False), policy=PartitionPolicy("at")
)
"""

ALEMBIC = ("-m", "alembic.config", "upgrade", "head")
OURS = ("-m", "alembic_partitions", "upgrade", "head")
HIDING_US = (
    "import importlib.metadata as m; found = m.entry_points; "
    "m.entry_points = lambda **by: [] if by == {'group': 'alembic.plugins'} else found(**by); "
    "from alembic.config import main; main(['upgrade', 'head'])"
)


def test_upgrade_at_head(tmp_path: Path, databases: Databases, database: Database) -> None:
    ours = deployed(tmp_path / "ours", database, PARTITIONED)
    strangers = deployed(tmp_path / "strangers", databases.clone(), "pass")
    for file in (strangers.folder / "migrations" / "versions").glob("*.py"):
        file.write_text(file.read_text().replace("from alembic_partitions import PartitionPolicy\n", ""))
    strangers.edit_env("target_metadata = None", "import sqlalchemy.orm; target_metadata = None")

    rows = [
        compare("alembic, alembic-partitions", ours, ALEMBIC, 1).judged(
            "alembic-partitions upgrade at head, beside alembic upgrade"
        ),
        compare(f"the same, {REPLICAS} at once", ours, ALEMBIC, REPLICAS, rounds=max(2, ROUNDS // 3)).judged(
            f"the same, {REPLICAS} replicas at once: until the last has ended"
        ),
        compare("alembic without this package, with it", strangers, ("-c", HIDING_US), 1),
    ]
    show("upgrade at head", databases.describe(), rows)


def deployed(folder: Path, database: Database, upgrade: str) -> Project:
    folder.mkdir()
    project = Project.make(folder, "generic", database.url)
    project.add(upgrade)
    for _ in range(REVISIONS - 1):
        project.add("pass")
    project.run("upgrade", "head").succeeded()
    return project


def compare(what: str, project: Project, plain: tuple[str, ...], at_once: int, rounds: int = ROUNDS) -> Row:
    def side(arguments: tuple[str, ...]) -> Callable[[Side], None]:
        def run(results: Side) -> None:
            with results.measured():
                processes = [
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        cwd=project.folder,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                    for _ in range(at_once)
                ]
                codes = [process.wait() for process in processes]
            assert not any(codes)

        return run

    results = in_turns({"plain": side(plain), "ours": side(OURS)}, rounds)
    return Row(what, results["plain"], results["ours"], BUDGET)
