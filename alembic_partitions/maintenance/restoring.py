"""What has been detached, brought back."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import NotDetachedError, PartitionError
from alembic_partitions.locks import one_run
from alembic_partitions.plan import ManagedTable, RestoreDetached, Retention, plan_restore

from .ensuring import snapshot_of
from .history import record
from .reports import Report, TableResult
from .retaining import names_taken


def restore(
    connection: Connection,
    names: Collection[str] = (),
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
) -> Report:
    """Attach detached partitions again, archived ones included, as long as their tables are there.

    Retention leaves each alone for another ``grace``.

    :param connection: not in a transaction, not the application's own.
    :param names: names that they have now, or had as partitions; none means all of ``tables``.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param tables: only of these, ``name`` or ``schema.name``.
    :raises NotDetachedError: one of ``names`` is no detached partition; nothing was restored.
    :raises NotManagedError: one of ``tables`` is not managed.
    """
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None or snapshot.in_recovery:
        return Report(in_recovery=snapshot is not None)
    with one_run(connection.engine, snapshot.config_schema):
        with connection.begin():
            plans = _plans(connection, snapshot.tables, names)
        report = Report(tuple(_restored(connection, planned) for planned in plans))
    record(connection, snapshot, "restore", report)
    return report


def plan_restoring(
    connection: Connection,
    names: Collection[str] = (),
    *,
    schema: str | None = None,
    tables: Collection[str] | None = None,
) -> list[tuple[str, str]]:
    """Return what :func:`restore` would send now, as a script by table; raises as it does."""
    snapshot = snapshot_of(connection, schema, tables)
    if snapshot is None:
        return []
    with connection.begin():
        plans = _plans(connection, snapshot.tables, names)
    return [(str(planned.table), executor.removal_script(planned)) for planned in plans]


def _plans(
    connection: Connection, tables: Collection[ManagedTable], names: Collection[str]
) -> list[Retention]:
    plans, known = [], set[str]()
    for found in catalog.read_removable(connection, list(tables)):
        for old in found.detached:
            known |= {old.name, old.partition, f"{old.schema}.{old.name}"}
        taken: set[tuple[str, str]] = set()
        while True:
            planned = plan_restore(found.table, found.detached, names, taken)
            more = names_taken(connection, planned) - taken
            if not more:
                break
            taken |= more
        if planned.steps or planned.findings:
            plans.append(planned)
    for name in sorted(set(names) - known):
        raise NotDetachedError(name=name)
    return plans


def _restored(connection: Connection, planned: Retention) -> TableResult:
    restored, error = [], None
    try:
        for step in planned.steps:
            assert isinstance(step, RestoreDetached)
            executor.restore(connection, step)
            restored.append(step.name)
    except (PartitionError, DBAPIError) as failure:
        error = str(failure) if isinstance(failure, PartitionError) else reason(failure)
    findings = tuple(map(str, planned.findings))
    error = error or ("; ".join(findings) or None)
    return TableResult(str(planned.table), restored=tuple(restored), error=error, findings=findings)
