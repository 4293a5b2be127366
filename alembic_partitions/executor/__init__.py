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
    Told,
)
from .creating import (
    create_next,
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
from .merge_swap import (
    MERGE_PATIENCE,
    LeafCopier,
    MergeCopier,
    Unsettled,
    compare_merged,
    is_settled,
    swap_merged,
)
from .merging import (
    abort_merge_step,
    copying_of_leaf,
    drop_aside_batch,
    foreign_key_steps,
    merge_steps,
    prepare_step,
    settle_batch,
    swap_step,
    verified_batch,
)
from .merging import (
    confirm_batch as confirm_merge_batch,
)
from .merging import (
    copying_of as copying_of_merge,
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
    key_index_steps,
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
    "MERGE_PATIENCE",
    "SPLIT_PATIENCE",
    "Batch",
    "Changed",
    "Copier",
    "LeafCopier",
    "MergeCopier",
    "Pace",
    "Proof",
    "SplitStep",
    "Statement",
    "Step",
    "Told",
    "Unsettled",
    "abort_batches",
    "abort_merge_step",
    "abort_steps",
    "analyze_batch",
    "apply",
    "check_folder",
    "clean_batch",
    "compare",
    "compare_merged",
    "confirm_batch",
    "confirm_merge_batch",
    "conversion_steps",
    "copying_of",
    "copying_of_leaf",
    "copying_of_merge",
    "create_next",
    "create_partition",
    "detach",
    "drain",
    "drain_script",
    "drop_aside_batch",
    "drop_exported",
    "drop_index",
    "drop_old_batch",
    "export",
    "foreign_key_steps",
    "insist",
    "is_settled",
    "key_batches",
    "key_index_steps",
    "mend_batches",
    "mend_child",
    "merge_steps",
    "our_tables",
    "place_index",
    "prepare_batches",
    "prepare_step",
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
    "settle_batch",
    "split_steps",
    "swap",
    "swap_merged",
    "swap_step",
    "table_to_be",
    "tend",
    "took_too_long",
    "transaction",
    "tried_index",
    "vacuum_batch",
    "verified_batch",
    "wait_for_older",
]
