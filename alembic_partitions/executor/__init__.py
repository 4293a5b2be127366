"""Plans as the SQL that runs, and the running of it: small transactions, never a long wait."""

from .creating import create_partition, render, script
from .draining import drain, drain_script, took_too_long
from .exporting import check_folder, drop_exported, export
from .mending import mend_batches, mend_child
from .proving import Proof, proof_script, prove
from .removing import detach, remove, restore
from .scripts import removal_script
from .statements import Batch, Statement, apply, insist, transaction
from .tending import analyze_batch, tend, vacuum_batch

__all__ = [
    "Batch",
    "Proof",
    "Statement",
    "analyze_batch",
    "apply",
    "check_folder",
    "create_partition",
    "detach",
    "drain",
    "drain_script",
    "drop_exported",
    "export",
    "insist",
    "mend_batches",
    "mend_child",
    "proof_script",
    "prove",
    "removal_script",
    "remove",
    "render",
    "restore",
    "script",
    "tend",
    "took_too_long",
    "transaction",
    "vacuum_batch",
]
