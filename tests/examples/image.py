"""What a Dockerfile puts into its image, in a folder: enough of COPY and .dockerignore for ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path


def build(context: Path, root: Path) -> Path:
    """Copy what COPY copies, and return where ``/app/deploy`` is below ``root``.

    :raises ValueError: something is copied that .dockerignore leaves out, or that is not there.
    """
    taken = set(_context(context))
    for line in _lines(context / "Dockerfile"):
        if not line.startswith("COPY "):
            continue
        *sources, target = [word for word in line.split()[1:] if not word.startswith("--")]
        for pattern in sources:
            found = [path for path in context.glob(pattern) if taken & {path, *path.rglob("*")}]
            if not found:
                raise ValueError(f"{line}: there is no {pattern} in the build context")
            for path in found:
                _copy(path, Path(root, target.lstrip("/")), target.endswith("/"), taken)
    return root / "app/deploy"


def _copy(path: Path, target: Path, into: bool, taken: set[Path]) -> None:
    for file in [path] if path.is_file() else [f for f in taken if path in f.parents]:
        to = target / file.relative_to(path) if path.is_dir() else target / path.name if into else target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)


def _context(context: Path) -> Iterator[Path]:
    patterns = _lines(context / ".dockerignore")
    for file in context.rglob("*"):
        name = file.relative_to(context)
        ignored = False
        for pattern in patterns:
            if any(_fits(str(part), pattern.lstrip("!")) for part in (name, *name.parents)):
                ignored = not pattern.startswith("!")
        if file.is_file() and not ignored:
            yield file


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch(name.rpartition("/")[2], pattern[3:])
    return "/" not in name and fnmatch(name, pattern)


def _lines(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
