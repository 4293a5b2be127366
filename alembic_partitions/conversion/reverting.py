"""A partitioned table becomes a plain one while it is read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from alembic_partitions import catalog, ddl, executor, maintenance
from alembic_partitions.declare import Door
from alembic_partitions.errors import ConversionRefused, WorkFailed
from alembic_partitions.locks import one_conversion
from alembic_partitions.maintenance import Report, TableResult
from alembic_partitions.naming import partition_name
from alembic_partitions.plan import Belongings, Part, Reversal, heir_of, plan_reversal, refuse_reversal
from alembic_partitions.sessions import own_transactions

from .reading import MOST_LOOKS, ConversionPlan, Told, door_to, long_holders, read, refuse_blocked


def plan_unpartition(
    connection: Connection,
    table: str,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    primary_key: Sequence[str] | None = None,
) -> ConversionPlan:
    """Return what :func:`unpartition` would do now; nothing is changed. Raises as it does."""
    with own_transactions(connection), connection.begin():
        return _task(connection, table, schema, config_schema, primary_key).plan()


def unpartition(
    connection: Connection,
    table: str,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    primary_key: Sequence[str] | None = None,
    told: Told = lambda title: None,
) -> Report:
    """Make a partitioned table a plain one, while it is read and written; its policy is forgotten.

    :param connection: not in a transaction, not the application's own.
    :param schema: the table's; ``None`` takes what ``search_path`` leads to.
    :param config_schema: where partition_config lives; ``None`` finds it by our mark.
    :param primary_key: the columns of the primary key to be. Default: those it had before it was converted.
    :param told: told of each step when it begins.
    :raises ConversionRefused: something would be lost; nothing was changed.
    :raises LockNotAvailable: the locks of a step were not to be had; the next run goes on.
    :raises WorkFailed: PostgreSQL refused, as where rows are not unique by ``primary_key``.
    :raises RunUnderWay: another process is converting this table.
    """
    with own_transactions(connection):
        with connection.begin():
            task = _task(connection, table, schema, config_schema, primary_key)
        with one_conversion(connection.engine, str(task)):
            return _unpartition(connection, task, told)


def _unpartition(connection: Connection, task: _Task, told: Told) -> Report:
    with connection.begin():
        begun = catalog.read_session(connection, task.config or "")
    if begun.in_recovery:
        return Report(in_recovery=True)
    looks = 0
    while True:
        with connection.begin():
            if looks and task.read().kind == "r":
                break
            planned = task.plan()
        refuse_blocked(planned)
        step, *more = planned.steps
        told(step.title)
        try:
            executor.run_step(connection, planned.unchanged, step)
        except executor.Changed as error:
            looks += 1
            if looks == MOST_LOOKS:
                why = "somebody else alters it all the time"
                raise WorkFailed(table=str(task), what="undoing", reason=why) from error
            continue
        if not more:
            break
    report = Report((TableResult(str(task), findings=planned.notes),))
    if task.config is not None:
        maintenance.record(connection, begun, "unpartition", report)
    return report


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be made plain. Each method reads, in a transaction that is open."""

    connection: Connection
    home: str
    config: str | None
    schema: str
    table: str
    primary_key: Sequence[str] | None

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    def read(self) -> Belongings:
        """Return the table as it is."""
        return read(self.connection, self.schema, self.table)

    def plan(self) -> ConversionPlan:
        """Return what is left to do."""
        found = self.read()
        children = catalog.read_parts(self.connection, found) if found.kind == "p" else []
        refuse_reversal(found, children)
        self._check_columns(found)
        heir = heir_of(children)
        if heir is None:
            filled = sum(child.has_rows for child in children)
            raise ConversionRefused(table=str(found), problems=f"{filled} partitions hold rows")
        reversal = self._reversal(found, heir)
        config = ddl.config_table(self.config)
        forgotten = config.delete().where(ddl.row_of(config, self.schema, self.table))
        user = catalog.read_session(self.connection, self.home).user
        steps = executor.reversal_steps(reversal, forgotten if self.config is not None else None, user)
        return ConversionPlan(
            str(found),
            tuple(steps),
            reversal.notes,
            long_holders(self.connection, found),
            unchanged=(found, reversal.heir),
        )

    def _reversal(self, found: Belongings, heir: Part) -> Reversal:
        partition = catalog.read_belongings(self.connection, heir.schema, heir.name)
        assert partition is not None
        aside, taken = partition_name(found.name, "partitioned"), set[str]()
        while catalog.names_in_use(self.connection, found.schema, [aside]):
            taken.add(aside)
            aside = partition_name(found.name, "partitioned", taken)
        return plan_reversal(found, partition, self.primary_key, aside)

    def _check_columns(self, found: Belongings) -> None:
        unknown = [name for name in self.primary_key or () if found.column(name) is None]
        if unknown:
            columns = ", ".join(column.name for column in found.columns)
            why = f"primary_key names {', '.join(unknown)}, and its columns are {columns}"
            raise ConversionRefused(table=str(found), problems=why)


def _task(
    connection: Connection,
    table: str,
    schema: str | None,
    config_schema: str | None,
    primary_key: Sequence[str] | None,
) -> _Task:
    door: Door = door_to(connection, config_schema)
    # Before search_path is set aside: it says where things are.
    home, where = str(door.home), str(door.schema_of(schema, table))
    return _Task(connection, home, catalog.find_config(connection, home), where, table, primary_key)
