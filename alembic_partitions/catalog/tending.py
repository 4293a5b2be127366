"""When tables were last analyzed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, text

# By ANALYZE or by autovacuum, which never analyzes a partitioned parent. Restored by nobody after a crash.
_ANALYZED = text("""
SELECT s.relid AS oid, greatest(s.last_analyze, s.last_autoanalyze) AS at
FROM pg_stat_all_tables s WHERE s.relid = ANY (CAST(:oids AS oid[]))
""")

_WAS_ANALYZED = text("""
SELECT NOT current_setting('track_counts')::boolean OR pg_stat_get_last_analyze_time(CAST(:oid AS oid))
       > coalesce(CAST(:before AS timestamptz), '-infinity')
""")

# End what our own upkeep does to a table: it holds the lock that ATTACH needs.
_CANCEL_UPKEEP = text("""
SELECT count(pg_cancel_backend(l.pid)) AS cancelled
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = CAST(:oid AS oid)
  AND l.mode = 'ShareUpdateExclusiveLock' AND a.application_name = :upkeep
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND pg_has_role(a.usesysid, 'USAGE')
""")


def analyzed(connection: Connection, oids: Collection[int]) -> dict[int, datetime | None]:
    """Return when each of some tables was last analyzed."""
    return {row.oid: row.at for row in connection.execute(_ANALYZED, {"oids": list(oids)})}


def was_analyzed(connection: Connection, oid: int, before: datetime | None) -> bool:
    """Tell whether a table was analyzed since; PostgreSQL only warns of one that it has skipped.

    :param before: when it had last been analyzed.
    :return: true also where the server counts nothing (``track_counts``).
    """
    return bool(connection.execute(_WAS_ANALYZED, {"oid": oid, "before": before}).scalar())


def cancel_upkeep(connection: Connection, oid: int, name: str) -> bool:
    """Cancel the ANALYZE of a session of that application_name, as far as this role may.

    :return: whether there was one.
    """
    return bool(connection.execute(_CANCEL_UPKEEP, {"oid": oid, "upkeep": name}).scalar())
