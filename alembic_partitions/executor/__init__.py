"""Plans as the SQL that runs, and the running of it: small transactions, never a long wait."""

from .converting import (
    Changed,
    Step,
    abort_steps,
    conversion_steps,
    our_tables,
    run_step,
    table_to_be,
)
from .creating import (
    create_partition,
    render,
    script,
)
from .draining import (
    drain,
    drain_script,
    took_too_long,
)
from .exporting import (
    check_folder,
    drop_exported,
    export,
)
from .indexing import (
    drop_index,
    place_index,
    tried_index,
)
from .mending import (
    mend_batches,
    mend_child,
)
from .proving import (
    Proof,
    proof_script,
    prove,
)
from .removing import (
    detach,
    remove,
    restore,
)
from .reverting import (
    reversal_steps,
)
from .scripts import (
    removal_script,
)
from .statements import (
    Batch,
    Statement,
    apply,
    insist,
    transaction,
)
from .tending import (
    analyze_batch,
    tend,
    vacuum_batch,
)

__all__ = [
    "Batch",
    "Changed",
    "Proof",
    "Statement",
    "Step",
    "abort_steps",
    "analyze_batch",
    "apply",
    "check_folder",
    "conversion_steps",
    "create_partition",
    "detach",
    "drain",
    "drain_script",
    "drop_exported",
    "drop_index",
    "export",
    "insist",
    "mend_batches",
    "mend_child",
    "our_tables",
    "place_index",
    "proof_script",
    "prove",
    "removal_script",
    "remove",
    "render",
    "restore",
    "reversal_steps",
    "run_step",
    "script",
    "table_to_be",
    "tend",
    "took_too_long",
    "transaction",
    "tried_index",
    "vacuum_batch",
]
