"""Every write: our two tables, and DDL elements quoted in the last step, by SQLAlchemy's preparer."""

from .elements import Element, bound_literal, text_literal
from .migrations import (
    CopyTraits,
    CreateUnseen,
    DetachForeign,
    DropEmptyPartitions,
    EnsureOurTables,
    FreeSequences,
    schema_of_name,
)
from .partitions import (
    Attach,
    CreateLike,
    DropExclusions,
    EnableRowSecurity,
    LockParent,
    MarkPartition,
    ResetBound,
    SetBound,
    SetLockTimeout,
    SetOwner,
    SetReplicaIdentity,
    SetReplicaIndex,
    SetStatistics,
    partition_elements,
)
from .tables import config_table, runs_table

__all__ = [
    "Attach",
    "CopyTraits",
    "CreateLike",
    "CreateUnseen",
    "DetachForeign",
    "DropEmptyPartitions",
    "DropExclusions",
    "Element",
    "EnableRowSecurity",
    "EnsureOurTables",
    "FreeSequences",
    "LockParent",
    "MarkPartition",
    "ResetBound",
    "SetBound",
    "SetLockTimeout",
    "SetOwner",
    "SetReplicaIdentity",
    "SetReplicaIndex",
    "SetStatistics",
    "bound_literal",
    "config_table",
    "partition_elements",
    "runs_table",
    "schema_of_name",
    "text_literal",
]
