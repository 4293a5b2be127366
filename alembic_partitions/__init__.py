"""Time-partitioned PostgreSQL tables, declared in an Alembic migration, always ready for the next row."""

from typing import TYPE_CHECKING, Any

from .create_all import plain_tables
from .deploy import upgrading
from .errors import KeyOutsideLimits, PartitionError, PartitionPending, PolicyError
from .locks import upgrade_lock_key
from .policy import PartitionPolicy, nz_racing_day

if TYPE_CHECKING:
    from .events import keep

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022  # grouped by when it is needed
    # Declare: in a model and in a migration, the same object.
    "PartitionPolicy",
    "nz_racing_day",
    # Test: models as plain tables.
    "plain_tables",
    # Deploy: in env.py.
    "upgrade_lock_key",
    "upgrading",
    # Run: in the application.
    "keep",
    # What can go wrong, each with what to do next.
    "KeyOutsideLimits",
    "PartitionError",
    "PartitionPending",
    "PolicyError",
]


def __getattr__(name: str) -> Any:
    # Every Alembic command loads this package, as a plugin; none needs the hooks, nor the ORM behind them.
    if name == "keep":
        from .events import keep

        return keep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
