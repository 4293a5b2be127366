"""Plans as the SQL that runs, and the running of it: small transactions, never a long wait."""

from .creating import create_partition, render, script
from .exporting import check_folder, export, verify
from .removing import detach, remove, restore
from .scripts import removal_script
from .statements import Batch, Statement
from .tending import analyze_batch, tend, vacuum_batch

__all__ = [
    "Batch",
    "Statement",
    "analyze_batch",
    "check_folder",
    "create_partition",
    "detach",
    "export",
    "removal_script",
    "remove",
    "render",
    "restore",
    "script",
    "tend",
    "vacuum_batch",
    "verify",
]
