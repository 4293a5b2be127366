"""Plans as the SQL that runs, and the running of it: small transactions, never a long wait."""

from .creating import create_partition, render, script
from .draining import drain, drain_script
from .mending import mend_batches, mend_child
from .proving import Proof, proof_script, prove
from .statements import Statement

__all__ = [
    "Proof",
    "Statement",
    "create_partition",
    "drain",
    "drain_script",
    "mend_batches",
    "mend_child",
    "proof_script",
    "prove",
    "render",
    "script",
]
