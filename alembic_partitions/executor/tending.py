"""Statistics and dead rows: each statement by itself, bounded in time, in the way of no ATTACH.

ANALYZE of a parent holds the lock that ATTACH needs. It runs under an application_name of its own, by which
whoever makes a partition finds it and cancels it.
"""

from __future__ import annotations

from sqlalchemy import Connection

from alembic_partitions import ddl

from .creating import UPKEEP
from .statements import LOCK_TIMEOUT_MS, Batch, Statement, alone, apply

#: Longest that one ANALYZE or VACUUM may take.
ANALYZE_TIMEOUT_MS, VACUUM_TIMEOUT_MS = 60_000, 600_000


def analyze_batch(schema: str, name: str, *, parent: bool, server_version: int) -> Batch:
    """Return the ANALYZE of a parent or of one partition; before PostgreSQL 18 a parent's visits each."""
    only = parent and server_version >= 18
    lock = f"SHARE UPDATE EXCLUSIVE on {schema}.{name}"
    return _bounded(Statement(ddl.Analyze(schema, name, only).sql(), lock), ANALYZE_TIMEOUT_MS)


def vacuum_batch(schema: str, name: str) -> Batch:
    """Return the VACUUM of one partition; it is skipped where others hold it."""
    lock = f"SHARE UPDATE EXCLUSIVE on {schema}.{name}"
    return _bounded(Statement(ddl.Vacuum(schema, name).sql(), lock), VACUUM_TIMEOUT_MS)


def tend(connection: Connection, batch: Batch) -> None:
    """Run one of them; what PostgreSQL raises is raised: the next run tries again.

    :param connection: not in a transaction.
    """
    apply(connection, batch)


def _bounded(statement: Statement, timeout_ms: int) -> Batch:
    return alone(
        ddl.SetApplication(UPKEEP),
        statement,
        lock_timeout_ms=LOCK_TIMEOUT_MS,
        statement_timeout_ms=timeout_ms,
        reset=("application_name",),
    )
