"""Alembic operations: what a migration says of a partitioned table.

They send everything through the migration's own connection and transaction, and print with ``--sql`` what
they would send. Importing this package registers them.
"""

from .adoption import AdoptPartitionedTableOp, UnadoptPartitionedTableOp
from .policies import AlterPartitionPolicyOp
from .tables import CreatePartitionedTableOp, DropPartitionedTableOp
from .windows import MOST_WINDOWS, CreatePartitionsOp, DropPartitionsOp

__all__ = [
    "MOST_WINDOWS",
    "AdoptPartitionedTableOp",
    "AlterPartitionPolicyOp",
    "CreatePartitionedTableOp",
    "CreatePartitionsOp",
    "DropPartitionedTableOp",
    "DropPartitionsOp",
    "UnadoptPartitionedTableOp",
]
