"""A partitioned table becomes a plain one while it is read and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ClauseElement, Connection

from alembic_partitions import catalog, ddl, executor, maintenance
from alembic_partitions.declare import Door
from alembic_partitions.errors import ConversionRefused, WorkFailed
from alembic_partitions.executor import Pace
from alembic_partitions.locks import one_conversion
from alembic_partitions.maintenance import Progress, Report, TableResult
from alembic_partitions.naming import partition_name
from alembic_partitions.plan import Belongings, Part, Reversal, heir_of, plan_reversal, refuse_reversal
from alembic_partitions.sessions import own_transactions

from .merging import Manner, Merging, Work, plan_merging, put_aside
from .reading import MOST_LOOKS, ConversionPlan, Told, door_to, long_holders, read, refuse_blocked


def plan_unpartition(
    connection: Connection,
    table: str,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    primary_key: Sequence[str] | None = None,
    batch: int = 10_000,
    drop_old: bool = False,
    verify: bool = True,
    lock_timeout: float = 0.04,
) -> ConversionPlan:
    """Return what :func:`unpartition` would do now; nothing is changed. Raises as it does."""
    with own_transactions(connection), connection.begin():
        manner = _manner(table, batch, 0.0, drop_old, verify, lock_timeout)
        task = _task(connection, table, schema, config_schema, primary_key, manner)
        if task.aside() is not None:
            return ConversionPlan(str(task))
        return task.plan()


def unpartition(
    connection: Connection,
    table: str,
    *,
    schema: str | None = None,
    config_schema: str | None = None,
    primary_key: Sequence[str] | None = None,
    batch: int = 10_000,
    pause: float = 0.0,
    drop_old: bool = False,
    verify: bool = True,
    lock_timeout: float = 0.04,
    told: Told = lambda title: None,
    progress: Progress | None = None,
) -> Report:
    """Make a partitioned table a plain one, while it is read and written; its policy is forgotten.

    Where one partition holds all rows it takes the table's name, and nothing is copied. Else the rows of all
    are copied into one plain table, what changes meanwhile is caught up with, both are compared, and one
    short transaction changes the names; the partitions stay as they were, under another name. A run that was
    cut off is gone on with.

    :param connection: not in a transaction, not the application's own.
    :param schema: the table's; ``None`` takes what ``search_path`` leads to.
    :param config_schema: where partition_config lives; ``None`` finds it by our mark.
    :param primary_key: the columns of the primary key to be. Default: those it had before it was converted.
    :param batch: rows that one transaction copies.
    :param pause: seconds to rest after each.
    :param drop_old: drop what has been copied once all is done; it must have been verified.
    :param verify: compare the copy with its origin before the names change: by count and checksum.
    :param lock_timeout: seconds that others may have to wait at a time where rows are copied; beside
        transactions that are longer it needs more.
    :param told: told of each step when it begins.
    :param progress: told of rows that are copied as that goes on.
    :raises ConversionRefused: something would be lost; nothing was changed.
    :raises LockNotAvailable: the locks of a step were not to be had; the next run goes on.
    :raises WorkFailed: PostgreSQL refused, as where rows are not unique by ``primary_key``.
    :raises UnpartitionFailed: the table was altered since a copy of it was begun, or writers are too fast.
    :raises RunUnderWay: another process is converting this table.
    """
    with own_transactions(connection):
        with connection.begin():
            manner = _manner(table, batch, pause, drop_old, verify, lock_timeout)
            task = _task(connection, table, schema, config_schema, primary_key, manner)
        with one_conversion(connection.engine, str(task)):
            return _unpartition(connection, task, told, progress or (lambda *told: None))


def abort_unpartition(
    connection: Connection, table: str, *, schema: str | None = None, config_schema: str | None = None
) -> tuple[str, ...]:
    """Take back what a run that was cut off has made; return what that was.

    :param connection: not in a transaction.
    :raises NoTableError: there is no such table.
    :raises RunUnderWay: a process is converting this table.
    """
    with own_transactions(connection):
        with connection.begin():
            task = _task(connection, table, schema, config_schema, None, Manner())
        with one_conversion(connection.engine, str(task)):
            with connection.begin():
                merging = task.merging() if task.begun() is not None else None
            if merging is None:
                return ()
            step = executor.abort_merge_step(merging.merge)
            executor.run_step(connection, [merging.merge.table, merging.merge.heir], step)
    return (step.title,)


def _unpartition(connection: Connection, task: _Task, told: Told, progress: Progress) -> Report:
    with connection.begin():
        begun = catalog.read_session(connection, task.config or "")
        aside = task.aside()
        is_done = aside is None and task.read().kind == "r"
        merges = aside is None and not is_done and task.merges()
    if begun.in_recovery:
        return Report(in_recovery=True)
    if is_done:
        return Report((TableResult(str(task), findings=("it is a plain table already",)),))
    if aside is not None:  # the last run was cut off right after the swap
        left = put_aside(connection, task.schema, *aside, task.manner.drop_old)
        return Report((TableResult(str(task), findings=tuple(left)),))
    if merges:
        result = Work(connection, task.look, task.config, task.manner, told, progress).done()
    else:
        result = _renamed(connection, task, told)
    report = Report((result,))
    if task.config is not None:
        maintenance.record(connection, begun, "unpartition", report)
    return report


def _renamed(connection: Connection, task: _Task, told: Told) -> TableResult:
    """Have the partition that holds all rows take the table's name."""
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
    return TableResult(str(task), findings=planned.notes)


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be made plain. Each method reads, in a transaction that is open, but for :meth:`look`."""

    connection: Connection
    home: str
    config: str | None
    schema: str
    table: str
    primary_key: Sequence[str] | None
    manner: Manner

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    def read(self) -> Belongings:
        """Return the table as it is."""
        return read(self.connection, self.schema, self.table)

    def begun(self) -> Belongings | None:
        """Return the plain table that a run which was cut off copies rows into."""
        return catalog.read_merging(self.connection, self.read())

    def aside(self) -> tuple[str, bool] | None:
        """Return the partitioned table that this plain one has taken the place of, and whether both were
        compared."""
        found = self.read()
        return catalog.read_unpartitioned(self.connection, found) if found.kind == "r" else None

    def merges(self) -> bool:
        """Tell whether rows have to be copied."""
        found, children = self._checked()
        begun = catalog.read_merging(self.connection, found)
        return begun is not None or heir_of(children) is None

    def look(self) -> Merging:
        """Return what is left to do of a merge, as it is now."""
        with self.connection.begin():
            return self.merging()

    def merging(self) -> Merging:
        """Return what is left to do of a merge."""
        found = self.read()
        begun = catalog.read_merging(self.connection, found)
        merge, reversal = plan_merging(self.connection, found, begun, self.primary_key, self.manner)
        return Merging(merge, reversal, self._forgotten(), self._user())

    def plan(self) -> ConversionPlan:
        """Return what is left to do."""
        if self.read().kind == "r":
            return ConversionPlan(str(self))
        found, children = self._checked()
        heir = heir_of(children)
        blockers = long_holders(self.connection, found)
        if heir is None or catalog.read_merging(self.connection, found) is not None:
            merging = self.merging()
            # It takes its time, and they will have ended by then.
            notes = *merging.reversal.notes, *blockers
            return ConversionPlan(str(found), tuple(merging.steps(self.manner)), notes)
        reversal = self._reversal(found, heir)
        steps = executor.reversal_steps(reversal, self._forgotten(), self._user())
        unchanged = found, reversal.heir
        return ConversionPlan(str(found), tuple(steps), reversal.notes, blockers, unchanged)

    def _checked(self) -> tuple[Belongings, list[Part]]:
        found = self.read()
        children = catalog.read_parts(self.connection, found) if found.kind == "p" else []
        refuse_reversal(found, children, *catalog.other_work(self.connection, found))
        self._check_columns(found)
        return found, children

    def _forgotten(self) -> ClauseElement | None:
        config = ddl.config_table(self.config)
        forgotten = config.delete().where(ddl.row_of(config, self.schema, self.table))
        return forgotten if self.config is not None else None

    def _user(self) -> str:
        return catalog.read_session(self.connection, self.home).user

    def _reversal(self, found: Belongings, heir: Part) -> Reversal:
        partition = catalog.read_belongings(self.connection, heir.schema, heir.name)
        assert partition is not None
        aside, taken = partition_name(found.name, "partitioned"), set[str]()
        while catalog.names_in_use(self.connection, found.schema, [aside]):
            taken.add(aside)
            aside = partition_name(found.name, "partitioned", taken)
        return plan_reversal(found, partition, self.primary_key, aside, partition.comment)

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
    manner: Manner,
) -> _Task:
    door: Door = door_to(connection, config_schema)
    # Before search_path is set aside: it says where things are.
    home, where = str(door.home), str(door.schema_of(schema, table))
    config = catalog.find_config(connection, home)
    return _Task(connection, home, config, where, table, primary_key, manner)


def _manner(
    table: str, batch: int, pause: float, drop_old: bool, verify: bool, lock_timeout: float
) -> Manner:
    if drop_old and not verify:
        why = "what was partitioned is dropped only once the copy has been compared with it: leave out one"
        raise ConversionRefused(table=table, problems=why)
    return Manner(Pace(batch, pause, max(round(lock_timeout * 1000), 1)), drop_old, verify)
