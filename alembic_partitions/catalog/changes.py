"""Whether a table's partitions are those that were read before, without reading their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from sqlalchemy import Connection, text

from alembic_partitions.plan import ManagedTable

# ATTACH and a DETACH that is half-way write a row of pg_inherits anew, and then a later transaction is its
# xmin: of as many rows the sum has grown. Ten thousand bounds take a second to read, these sums milliseconds.
_STATES = text("""
SELECT i.inhparent AS parent, count(*) AS partitions, sum(i.inhrelid::bigint)::text AS oids,
       sum(i.xmin::text::bigint)::text AS writers
FROM pg_inherits i
WHERE i.inhparent = ANY (CAST(:parents AS oid[]))
GROUP BY i.inhparent
""")

#: Equal for the same partitions with the same bounds, read as the same type of key.
State: TypeAlias = "tuple[object, ...]"


def partition_states(connection: Connection, tables: Sequence[ManagedTable]) -> dict[int, State]:
    """Return what tells whether the partitions of tables have changed, by parent OID.

    To be read before the partitions: what is attached in between is then noticed the next time.
    """
    types = {t.oid: t.key_type for t in tables if t.oid is not None and t.problem is None}
    rows = connection.execute(_STATES, {"parents": list(types)}) if types else ()
    found = {row.parent: (row.partitions, row.oids, row.writers) for row in rows}
    return {oid: (key_type, *found.get(oid, ())) for oid, key_type in types.items()}
