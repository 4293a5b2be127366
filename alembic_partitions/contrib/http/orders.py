"""What may be asked for, as orders: each with its plan, which is what a dry run shows."""

from __future__ import annotations

from sqlalchemy import Connection

from alembic_partitions import maintenance
from alembic_partitions.maintenance import Ahead, Orders, Report
from alembic_partitions.periods import Period

from .bodies import AnalyzeOrder, CleanupOrder, CreateOrder, MaintenanceOrder, VacuumOrder
from .jobs import Order, Tell


def maintain(told: MaintenanceOrder, schema: str | None, archive_to: str | None) -> Order:
    """Return the daily run."""
    retention = None if told.retention_days is None else f"{told.retention_days} days"
    return _run("maintain", told.table, schema, Orders(retention, archive_to, told.analyze))


def cleanup(told: CleanupOrder, schema: str | None, archive_to: str | None) -> Order:
    """Return retention of one table by itself."""
    orders = Orders(told.period, archive_to, analyze=False, horizon=False)
    return _run("cleanup", told.table, schema, orders)


def create(told: CreateOrder, schema: str | None) -> Order:
    """Return the making of windows ahead."""
    if told.count is not None:
        ahead = Ahead(windows=told.count)
    elif told.months_ahead is not None:
        ahead = Ahead(period=Period(told.months_ahead, "month"))
    else:
        ahead = Ahead(period=Period(told.days_ahead or 1, "day"))

    def plan(side: Connection) -> list[tuple[str, str]]:
        plans = maintenance.plan_ahead(side, told.table, ahead, schema=schema)
        return [(item.table, item.sql()) for item in plans]

    def work(side: Connection, tell: Tell) -> Report:
        return maintenance.make_ahead(side, told.table, ahead, schema=schema, progress=tell)

    return Order("create", told.table, plan, work)


def tend(told: AnalyzeOrder | VacuumOrder, schema: str | None) -> Order:
    """Return ANALYZE or VACUUM of a table or a partition."""
    vacuum = isinstance(told, VacuumOrder)

    def plan(side: Connection) -> list[tuple[str, str]]:
        maintenance.check_usable(side, told.table, schema=schema, disabled=True)
        items = maintenance.plan_tending(side, told.table, told.partition, vacuum=vacuum, schema=schema)
        return [(str(item.table), "".join(batch.sql() for _, batch in item.batches)) for item in items]

    def work(side: Connection, tell: Tell) -> Report:
        return maintenance.tend(side, told.table, told.partition, vacuum=vacuum, schema=schema, progress=tell)

    return Order("vacuum" if vacuum else "analyze", told.table, plan, work)


def _run(name: str, table: str | None, schema: str | None, orders: Orders) -> Order:
    tables = None if table is None else [table]

    def plan(side: Connection) -> list[tuple[str, str]]:
        if table is not None:  # who names a table is told why nothing would be done
            maintenance.check_usable(side, table, schema=schema)
        return maintenance.plan_maintain(side, schema=schema, tables=tables, orders=orders)

    def work(side: Connection, tell: Tell) -> Report:
        return maintenance.maintain(side, schema=schema, tables=tables, orders=orders, progress=tell)

    return Order(name, table, plan, work)
