"""Time-partitioned PostgreSQL tables, declared in an Alembic migration, always ready for the next row."""

from .errors import PartitionError, PolicyError
from .policy import PartitionPolicy, nz_racing_day

__version__ = "0.1.0"

__all__ = [
    "PartitionError",
    "PartitionPolicy",
    "PolicyError",
    "nz_racing_day",
]
