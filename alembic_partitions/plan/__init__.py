"""What is there + policy + now -> what to do. Pure: plain values in, plain values out."""

from .horizon import plan_horizon, plan_rows, plan_windows, windows_between
from .values import (
    CONFIG_MARK,
    KEPT_MARK,
    MARKS,
    PARENT_LOCK_CLASS,
    PARTITION_MARK,
    RUNS_MARK,
    Coverage,
    CreatePartition,
    Finding,
    ManagedTable,
    Partition,
    Plan,
    Reason,
    Refusal,
    Traits,
    in_order,
)

__all__ = [
    "CONFIG_MARK",
    "KEPT_MARK",
    "MARKS",
    "PARENT_LOCK_CLASS",
    "PARTITION_MARK",
    "RUNS_MARK",
    "Coverage",
    "CreatePartition",
    "Finding",
    "ManagedTable",
    "Partition",
    "Plan",
    "Reason",
    "Refusal",
    "Traits",
    "in_order",
    "plan_horizon",
    "plan_rows",
    "plan_windows",
    "windows_between",
]
