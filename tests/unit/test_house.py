"""The house: each floor imports only floors below it, and each kind of code has its one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = "alembic_partitions"
HOME = Path(__file__).parents[2] / PACKAGE

FLOORS = {
    "errors": 0,
    "periods": 1,
    "naming": 1,
    "policy": 2,
    "keys": 2,
    "plan": 3,
    "compare": 3,
    "drivers": 3,
    "catalog": 4,
    "ddl": 4,
    "rows": 4,
    "sessions": 4,
    "executor": 5,
    "locks": 5,
    "maintenance": 6,
    "adoption": 6,
    "declare": 6,
    "conversion": 6,
    "health": 6,
    "knowledge": 6,
    "talk": 6,
    "standing": 7,
    "words": 7,
    "coverage": 7,
    "operations": 7,
    "create_all": 7,
    "keeper": 7,
    "events": 7,
    "deploy": 7,
    "autogenerate": 8,
    "plugin": 9,
    "cli": 9,
    "__main__": 9,
    "demo": 9,
}

# Neighbours on one floor do not know each other, but for these.
SIDEWAYS = {
    ("declare", "maintenance"),  # the clock, and names that are free
    ("conversion", "declare"),  # a conversion ends as a declaration does,
    ("conversion", "maintenance"),  # and at the horizon
    ("adoption", "declare"),  # a row of partition_config, and the door it goes through
    ("adoption", "maintenance"),  # the clock
    ("keeper", "standing"),  # its health
    ("events", "keeper"),  # the listeners are thin: what they do is the keeper's
    ("cli", "demo"),
    ("__main__", "cli"),
}

# Who may open a door to contrib, and that inside a function alone: what nobody calls is not loaded.
DOORS_TO_CONTRIB = {"keeper", "events", "cli"}

# The rooms beside the house, each of which may be there without those of its own floor.
CONTRIB_FLOORS = {"calls": 0, "page": 0, "source": 1, "alerts": 2, "metrics": 2, "schedule": 2, "http": 3}

# `__init__` is a door: it may open onto any floor, except these, which load Alembic or the command line.
KEPT_OUT_OF_INIT = {"operations", "autogenerate", "plugin", "cli", "demo"}

SQL_LIVES_IN = {"catalog", "ddl"}
FIRST_FLOOR_WITH_A_CLOCK = 6

SQL = re.compile(
    r"""\s*(
        SELECT\s | INSERT\s+INTO\s | DELETE\s+FROM\s | UPDATE\s+\S+\s+SET\s | MERGE\s+INTO\s | TRUNCATE\s
      | (CREATE|ALTER|DROP)\s+(OR\s+REPLACE\s+)?(UNIQUE\s+)?
        (TABLE|INDEX|SCHEMA|VIEW|FUNCTION|TYPE|ROLE|SEQUENCE|DATABASE|DOMAIN|POLICY|TRIGGER)\s
      | SET\s+(LOCAL|SESSION)\s | RESET\s | LOCK\s+TABLE\s | COMMENT\s+ON\s | ANALYZE\s+\S+$ | VACUUM\s
      | WITH\s+\S+\s+AS\s | VALUES\s*\( | BEGIN$ | COMMIT$ | ROLLBACK$ | SAVEPOINT\s
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Module:
    """One source file; `name` is its folder or file directly below the package."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(HOME).parts[0].removesuffix(".py")

    @property
    def dotted(self) -> str:
        """As `import` names it, for a package the package's own name."""
        below = self.path.relative_to(HOME.parent).with_suffix("").parts
        return ".".join(below[:-1] if below[-1] == "__init__" else below)

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(HOME.parent)}:{line}"

    def __str__(self) -> str:
        return self.dotted


MODULES = [Module(path) for path in sorted(HOME.rglob("*.py")) if "_examples" not in path.parts]
CONTRIB = [module for module in MODULES if module.name == "contrib"]
CORE = [module for module in MODULES if module.name != "contrib"]
FLOORED = [module for module in CORE if module.name != "__init__"]


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Yield what `module` imports of the package: at its head, in a function, for types alone."""
    known = {other.dotted for other in MODULES}
    parent = module.dotted if module.path.name == "__init__.py" else module.dotted.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = parent.split(".")
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            # `from package import x` may mean the module x or a name in the package's __init__.
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in known else base for name in names]
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            targets = [
                PACKAGE * argument.value.startswith(".") + argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        else:
            continue
        for target in targets:
            first, _, below = target.partition(".")
            if first == PACKAGE:
                yield below.split(".")[0] or "__init__", node.lineno


def _at_the_head(module: Module) -> set[int]:
    """Return the lines of what is imported with the module itself, for types alone or not."""
    heads = set[int]()
    waiting: list[ast.AST] = list(module.tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            heads.add(node.lineno)
        waiting += ast.iter_child_nodes(node)
    return heads


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name):
        return node.func.id
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def test_every_module_has_a_floor() -> None:
    strangers = sorted({module.name for module in FLOORED} - set(FLOORS))
    assert not strangers, f"give these a floor in FLOORS (and in the house's plan): {strangers}"


@pytest.mark.parametrize("module", FLOORED, ids=str)
def test_imports_go_down(module: Module) -> None:
    floor = FLOORS[module.name]
    wrong = []
    for name, line in imports(module):
        if name == module.name or (module.name, name) in SIDEWAYS:
            continue
        if name == "__init__":
            wrong.append(f"{module.at(line)} imports the package's own door: name the module instead")
        elif name == "contrib":
            if module.name in DOORS_TO_CONTRIB and line not in _at_the_head(module):
                continue
            wrong.append(f"{module.at(line)} imports contrib, which stands beside the house")
        elif FLOORS[name] >= floor:
            way = "sideways" if FLOORS[name] == floor else "up"
            wrong.append(f"{module.at(line)} imports {name}, {way} from floor {floor} to {FLOORS[name]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", [m for m in CONTRIB if m.dotted != f"{PACKAGE}.contrib"], ids=str)
def test_rooms_of_contrib_know_those_below_them(module: Module) -> None:
    mine = module.dotted.split(".")[2]
    others = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            others |= {name.split(".")[2] for name in names if name.startswith(f"{PACKAGE}.contrib.")}
    wrong = [o for o in others - {mine} if CONTRIB_FLOORS.get(o, 9) >= CONTRIB_FLOORS[mine]]
    assert not wrong, f"{module} imports {wrong}"


def test_the_door_loads_neither_alembic_nor_the_command_line() -> None:
    door = Module(HOME / "__init__.py")
    wrong = [f"{door.at(line)}: {name}" for name, line in imports(door) if name in KEPT_OUT_OF_INIT]
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_costs_a_web_process_nothing_extra() -> None:
    script = (
        f"import sys, {PACKAGE}, {PACKAGE}.events; "
        "print(*sorted({'alembic', 'click', 'rich', 'typer', 'psycopg2', 'alembic_partitions.contrib',"
        " 'fastapi', 'apscheduler', 'apprise', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=HOME.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.name not in SQL_LIVES_IN], ids=str)
def test_sql_lives_in_catalog_and_ddl(module: Module) -> None:
    tree = module.tree
    docstrings = {id(node) for node in _docstrings(tree)}
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "text":
            wrong.append(f"{module.at(node.lineno)} calls text()")
        elif isinstance(node, ast.Constant) and id(node) not in docstrings and SQL.match(str(node.value)):
            wrong.append(f"{module.at(node.lineno)} holds {node.value!r:.60}")
    assert not wrong, "\n".join(wrong)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield every string that stands as a statement by itself: docstrings, and those below an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


@pytest.mark.parametrize(
    "module", [m for m in FLOORED if FLOORS.get(m.name, 0) < FIRST_FLOOR_WITH_A_CLOCK], ids=str
)
def test_nobody_below_the_doors_asks_what_time_it_is(module: Module) -> None:
    clocks = {
        *(("datetime", method) for method in ("now", "utcnow", "today")),
        *(("date", "today"), ("time", "time"), ("time", "time_ns"), ("time", "localtime")),
    }
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if (name, node.attr) in clocks:
                wrong.append(f"{module.at(node.lineno)} reads {name}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            names = [alias.name for alias in node.names if ("time", alias.name) in clocks]
            wrong += [f"{module.at(node.lineno)} imports time.{name}" for name in names]
    assert not wrong, "\n".join(wrong)


# How Alembic loads us. 1.18.0 to 1.20.0 iterate over what the entry point gives, 1.20.1 takes a module as it
# is; an exception in either would end every `alembic` command of the user.

ENTRY_POINT = EntryPoint("alembic.autogenerate.partitions", f"{PACKAGE}.plugin", "alembic.plugins")


def test_the_installed_entry_point_is_the_one_tested_here() -> None:
    installed = tuple(entry_points(group="alembic.plugins"))
    assert ENTRY_POINT in installed, "the package is not installed here: pip install -e '.[test]'"


def test_alembic_may_iterate_over_the_plugin_module() -> None:
    module = ENTRY_POINT.load()
    assert list(module) == [module]
    assert list(module) == [module], "a second look finds the same"


def test_the_plugin_module_is_a_real_module_with_a_setup() -> None:
    module = ENTRY_POINT.load()
    assert isinstance(module, ModuleType)
    assert callable(module.setup)
    assert module is sys.modules[ENTRY_POINT.value]


LOADERS = {
    "1.18.0 to 1.20.0": "for mod in loaded: Plugin.setup_plugin_from_module(mod, name)",
    "1.20.1": "assert isinstance(loaded, ModuleType); Plugin.setup_plugin_from_module(loaded, name)",
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=list(LOADERS))
def test_alembic_starts_with_the_plugin(loader: str) -> None:
    """Load it once as each Alembic does, in a process where Alembic itself has not done so yet."""
    script = f"""
import importlib.metadata
from types import ModuleType
real = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **by: [] if by == {{"group": "alembic.plugins"}} else real(**by)
import alembic
importlib.metadata.entry_points = real
from alembic.runtime.plugins import Plugin
name = {ENTRY_POINT.name!r}
loaded = importlib.metadata.EntryPoint(name, {ENTRY_POINT.value!r}, "alembic.plugins").load()
{loader}
print("set up")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=HOME.parent,
    )
    assert done.stdout.split("\n")[0] == "set up", done.stderr


def test_importing_alembic_itself_finds_the_plugin_and_lives() -> None:
    script = (
        "import alembic, alembic.command; from alembic.runtime import plugins; "
        f"print({ENTRY_POINT.name!r} in plugins._all_plugins)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=HOME.parent
    )
    assert done.stdout.strip() == "True", done.stderr
