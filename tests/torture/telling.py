"""What a torture run is told by: its sizes, its seed, and the lines that it ends with."""

from __future__ import annotations

import json
import os
import random
import secrets
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=120)

#: Printed with every result: the same TORTURE_SEED draws the same moments, names and bounds again.
SEED = int(os.environ.get("TORTURE_SEED") or secrets.randbits(32))


def setting(name: str, default: int) -> int:
    """Read a size from the environment: TORTURE_ROUNDS, TORTURE_WRITERS..."""
    return int(os.environ.get(name, default))


def draws(what: str) -> random.Random:
    """Return what one torture draws from, whichever others run before it."""
    return random.Random(f"{SEED} {what}")


def tell(title: str, found: Mapping[str, object]) -> None:
    """Print what a torture found; add it to the file that TORTURE_JSON names."""
    table = Table(title=f"{title} (TORTURE_SEED={SEED})", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("found", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    CONSOLE.print()
    CONSOLE.print(table)
    path = os.environ.get("TORTURE_JSON")
    if path:
        file = Path(path)
        known = json.loads(file.read_text()) if file.is_file() else {"seed": SEED}
        known[title] = dict(found)
        file.write_text(json.dumps(known, indent=1, default=str) + "\n")
