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
from .copying import (
    PATIENCE as SPLIT_PATIENCE,
)
from .copying import (
    Copier,
    Pace,
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
from .split_script import (
    split_steps,
)
from .splitting import (
    SplitStep,
    abort_batches,
    clean_batch,
    confirm_batch,
    copying_of,
    drop_old_batch,
    key_batches,
    prepare_batches,
)
from .statements import (
    Batch,
    Statement,
    apply,
    insist,
    transaction,
)
from .swapping import (
    compare,
    promote,
    swap,
    wait_for_older,
)
from .tending import (
    analyze_batch,
    tend,
    vacuum_batch,
)

__all__ = [
    "SPLIT_PATIENCE",
    "Batch",
    "Changed",
    "Copier",
    "Pace",
    "Proof",
    "SplitStep",
    "Statement",
    "Step",
    "abort_batches",
    "abort_steps",
    "analyze_batch",
    "apply",
    "check_folder",
    "clean_batch",
    "compare",
    "confirm_batch",
    "conversion_steps",
    "copying_of",
    "create_partition",
    "detach",
    "drain",
    "drain_script",
    "drop_exported",
    "drop_index",
    "drop_old_batch",
    "export",
    "insist",
    "key_batches",
    "mend_batches",
    "mend_child",
    "our_tables",
    "place_index",
    "prepare_batches",
    "promote",
    "proof_script",
    "prove",
    "removal_script",
    "remove",
    "render",
    "restore",
    "reversal_steps",
    "run_step",
    "script",
    "split_steps",
    "swap",
    "table_to_be",
    "tend",
    "took_too_long",
    "transaction",
    "tried_index",
    "vacuum_batch",
    "wait_for_older",
]
