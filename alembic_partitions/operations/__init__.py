"""Alembic operations: what a migration says of a partitioned table.

They send everything through the migration's own connection and transaction, and print with ``--sql`` what
they would send. Importing this package registers them.
"""

from .adoption import (
    AdoptPartitionedTableOp,
    UnadoptPartitionedTableOp,
)
from .conversion import (
    ConvertToPartitionedOp,
    UnpartitionTableOp,
)
from .functions import (
    CreatePartitionFunctionsOp,
    DropPartitionFunctionsOp,
)
from .indexes import (
    CONCURRENTLY,
    CreatePartitionedIndexOp,
    DropPartitionedIndexOp,
)
from .policies import (
    AlterPartitionPolicyOp,
)
from .tables import (
    CreatePartitionedTableOp,
    DropPartitionedTableOp,
)
from .windows import (
    MOST_WINDOWS,
    CreatePartitionsOp,
    DropPartitionsOp,
)

__all__ = [
    "CONCURRENTLY",
    "MOST_WINDOWS",
    "AdoptPartitionedTableOp",
    "AlterPartitionPolicyOp",
    "ConvertToPartitionedOp",
    "CreatePartitionFunctionsOp",
    "CreatePartitionedIndexOp",
    "CreatePartitionedTableOp",
    "CreatePartitionsOp",
    "DropPartitionFunctionsOp",
    "DropPartitionedIndexOp",
    "DropPartitionedTableOp",
    "DropPartitionsOp",
    "UnadoptPartitionedTableOp",
    "UnpartitionTableOp",
]
