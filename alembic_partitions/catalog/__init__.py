"""Every read of pg_catalog and of our two tables.

The session's TimeZone and DateStyle decide how PostgreSQL prints a bound (``pg_get_expr``), so bounds are
read under UTC and ISO: :func:`read_snapshot` sets both for its transaction, :func:`utc_settings` for a
stretch of somebody else's.
"""

from .reads import (
    Blocker,
    Snapshot,
    TableKey,
    blockers,
    config_schemas,
    describe_table,
    find_config,
    holders,
    inherited_keys,
    meant,
    names_in_use,
    notice,
    partitioned_tables,
    partitions_of,
    read_key,
    read_snapshot,
    resolve,
    schema_exists,
    shown_tables,
    standing,
    utc_settings,
    with_partitions,
)
from .removal import Removable, count_rows, detach_state, qualified_names_in_use, read_removable
from .tending import analyzed, cancel_upkeep

__all__ = [
    "Blocker",
    "Removable",
    "Snapshot",
    "TableKey",
    "analyzed",
    "blockers",
    "cancel_upkeep",
    "config_schemas",
    "count_rows",
    "describe_table",
    "detach_state",
    "find_config",
    "holders",
    "inherited_keys",
    "meant",
    "names_in_use",
    "notice",
    "partitioned_tables",
    "partitions_of",
    "qualified_names_in_use",
    "read_key",
    "read_removable",
    "read_snapshot",
    "resolve",
    "schema_exists",
    "shown_tables",
    "standing",
    "utc_settings",
    "with_partitions",
]
