"""Split a partition that spans several windows into these, beside readers and writers."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import NoPartitionError, PartitionError, SplitRefused, WindowRangeError
from alembic_partitions.executor import Pace, SplitStep
from alembic_partitions.executor.statements import insist, remark
from alembic_partitions.locks import one_conversion, one_run
from alembic_partitions.plan import (
    Belongings,
    Finding,
    ManagedTable,
    Partition,
    Split,
    in_order,
    names_of_split,
)
from alembic_partitions.plan import (
    plan_split as planned_split,
)
from alembic_partitions.sessions import own_transactions

from .ensuring import snapshot_of
from .history import record
from .repairing import Progress
from .reports import Report, TableResult
from .space import lacking_room

logger = logging.getLogger("alembic_partitions")


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What is left to do of a split."""

    split: Split
    user: str
    batch: int
    drop_old: bool = False
    verify: bool = True

    @property
    def table(self) -> str:
        return str(self.split.table)

    @property
    def bytes(self) -> int:
        """What it needs on disk while it runs, and keeps until the old table is dropped."""
        return 0 if self.split.is_swapped else self.split.facts.bytes

    def sql(self) -> str:
        """Return the script: every statement that is sent, batches once."""
        lines = [remark(note) for note in self.split.facts.notes]
        for step in executor.split_steps(self.split, self.user, self.batch, self.verify, self.drop_old):
            lines += [remark(step.title), step.batch.sql().rstrip("\n")]
        return "".join(f"{line}\n" for line in lines)


def plan_split(
    connection: Connection,
    *,
    table: str,
    schema: str | None = None,
    partition: str | None = None,
    batch: int = 10_000,
    drop_old: bool = False,
    verify: bool = True,
    lock_timeout: float = 0.04,
) -> SplitPlan:
    """Return what :func:`split` would do now; nothing is changed. Raises as it does."""
    _refuse_unproven(table, drop_old, verify)
    snapshot = snapshot_of(connection, schema, [table])
    assert snapshot is not None  # or the table would not be managed
    managed = snapshot.tables[0]
    found = _under_way(connection, managed, partition)
    if found is None or not (found.is_swapped or found.is_watched):
        found = _planned(connection, managed, partition)
    found = dataclasses.replace(found, wait_ms=_milliseconds(lock_timeout))
    return SplitPlan(found, snapshot.user, batch, drop_old, verify)


def split(
    connection: Connection,
    *,
    table: str,
    schema: str | None = None,
    partition: str | None = None,
    batch: int = 10_000,
    pause: float = 0.0,
    drop_old: bool = False,
    verify: bool = True,
    lock_timeout: float = 0.04,
    progress: Progress | None = None,
) -> Report:
    """Split a partition into its windows. A run that was cut off is gone on with.

    All rows can be read and written all the time, but for the moments in which the windows take the place of
    the partition, and are made partitions of the table itself.

    :param connection: not in a transaction, not the application's own.
    :param table: ``name`` or ``schema.name``.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param partition: which one, where several span more than one window.
    :param batch: rows that one transaction copies.
    :param pause: seconds to rest after each.
    :param drop_old: drop what has been split once all is done; it must have been verified.
    :param verify: compare the copy with its origin before they are swapped: by count and checksum.
    :param lock_timeout: seconds that others may have to wait at a time, where the swap waits for those who
        use the table; beside transactions that are longer it needs more.
    :raises NotManagedError: the table is not managed.
    :raises NoPartitionError: there is no such partition.
    :raises SplitRefused: it would lose something, or there is nothing to split; nothing was changed.
    :raises RunUnderWay: another run splits this table, or has not ended for a minute.
    """
    _refuse_unproven(table, drop_old, verify)
    with own_transactions(connection):
        snapshot = snapshot_of(connection, schema, [table])
        assert snapshot is not None
        if snapshot.in_recovery:
            return Report(in_recovery=True)
        managed = snapshot.tables[0]
        with one_conversion(connection.engine, str(managed)):
            work = _Work(
                connection,
                managed,
                snapshot,
                partition,
                Pace(batch, pause, _milliseconds(lock_timeout)),
                drop_old,
                verify,
                progress or (lambda *told: None),
            )
            report = Report((work.done(),))
            record(connection, snapshot, "split", report)
    return report


def abort_split(connection: Connection, *, table: str, schema: str | None = None) -> Report:
    """Take back a split that has not come to its swap; nothing but what it made is changed.

    :raises NotManagedError: the table is not managed.
    :raises SplitRefused: there is none under way, or its rows are in the windows already.
    """
    with own_transactions(connection):
        snapshot = snapshot_of(connection, schema, [table])
        assert snapshot is not None
        managed = snapshot.tables[0]
        with one_conversion(connection.engine, str(managed)):
            found = _under_way(connection, managed, None)
            if found is None:
                raise _refused(managed, "no split of it is under way", "There is nothing to take back")
            if found.is_swapped:
                told = "its rows are in the windows already"
                raise _refused(managed, told, "Run split once more: what is left takes seconds")
            _abort(connection, found)
            report = Report((TableResult(str(managed), findings=("the split was taken back",)),))
            record(connection, snapshot, "split", report)
    return report


def _milliseconds(seconds: float) -> int:
    return max(round(seconds * 1000), 1)


def _refuse_unproven(table: str, drop_old: bool, verify: bool) -> None:
    if drop_old and not verify:
        raise SplitRefused(
            table=table,
            problem="what has been split is dropped only once the copy has been compared with it",
            remedy="Leave out one of both",
        )


def _refused(managed: ManagedTable, problem: str, remedy: str) -> SplitRefused:
    return SplitRefused(table=str(managed), problem=problem, remedy=remedy)


def _under_way(connection: Connection, managed: ManagedTable, partition: str | None) -> Split | None:
    if managed.problem is not None:
        raise _refused(managed, str(Finding(*managed.problem)), "Put that right first")
    with connection.begin():
        catalog.see_all_rows(connection)
        found = catalog.read_split(connection, managed)
    if found is not None and partition is not None and partition != found.source.name:
        told = f"{found.source.schema}.{found.source.name} is being split"
        raise _refused(managed, told, "Let that come to its end, or --abort it")
    return found


def _planned(connection: Connection, managed: ManagedTable, partition: str | None) -> Split:
    """Plan a split from the beginning."""
    source = _source(managed, partition)
    with connection.begin():
        catalog.see_all_rows(connection)
        marked = catalog.bounds_as_printed(connection, managed)
        source = dataclasses.replace(source, bound=marked[source.oid])
        owner = managed.traits.owner or ""
        if catalog.read_merging(
            connection, Belongings(managed.oid or 0, managed.schema, managed.name, owner)
        ):
            raise _refused(managed, "it is just being made plain", "Let unpartition end, or --abort it")
        default = next((p for p in managed.partitions if p.is_default), None)
        if default is not None and catalog.has_rows(connection, default.schema, default.name):
            told = (
                f"the DEFAULT partition {default.schema}.{default.name} holds rows, which ATTACH would read"
            )
            raise _refused(managed, f"{told} while all wait", "Run repair first, or empty it by hand")
        facts = catalog.read_splittable(connection, managed, source)
        if facts is None:
            raise NoPartitionError(name=f"{source.schema}.{source.name}")
        low, high, wrong = (
            (None, None, "") if facts.problems else catalog.read_key_ends(connection, managed, source)
        )
        if wrong:
            raise _refused(managed, f"{wrong}, which no window can hold", "Correct or delete those rows")
        taken = set[str]()
        while True:
            found = planned_split(managed, source, facts, (low, high), taken)
            more = catalog.names_in_use(connection, managed.schema, names_of_split(found)) - taken
            if not more:
                return found
            taken |= more


def _source(managed: ManagedTable, partition: str | None) -> Partition:
    bounded = in_order(p for p in managed.partitions if not p.is_default)
    if partition is not None:
        for part in bounded:
            if partition in (part.name, f"{part.schema}.{part.name}"):
                return part
        raise NoPartitionError(name=partition)
    wide = [part for part in bounded if _is_wide(managed, part)]
    if not wide:
        raise _refused(
            managed, "none of its partitions spans more than one window", "There is nothing to split"
        )
    if len(wide) > 1:
        told = ", ".join(part.name for part in wide)
        raise _refused(managed, f"several partitions span more than one window: {told}", "Name one of them")
    return wide[0]


def _is_wide(managed: ManagedTable, part: Partition) -> bool:
    if part.lower is None or part.upper is None:
        return True
    try:
        return managed.grid.at(part.lower).end < part.upper
    except WindowRangeError:
        return False


def _abort(connection: Connection, found: Split) -> None:
    for step in executor.abort_batches(found):
        _send(connection, found, step)


def _send(connection: Connection, found: Split, step: SplitStep) -> None:
    insist(
        lambda: executor.apply(connection, step.batch),
        connection,
        table=str(found.table),
        what=f"splitting ({step.title})",
        relations=[found.source.oid, found.table.oid or 0],
        give_up_at=time.monotonic() + executor.SPLIT_PATIENCE,
    )


@dataclass
class _Work:
    """One split on its way."""

    connection: Connection
    table: ManagedTable
    snapshot: catalog.Snapshot
    partition: str | None
    pace: Pace
    drop_old: bool
    verify: bool
    progress: Progress
    created: tuple[str, ...] = ()
    moved: int = 0
    proof: str | None = None
    findings: list[str] = field(default_factory=list)

    def done(self) -> TableResult:
        """Do it all, as far as it goes, and say how it went."""
        error = None
        try:
            self._run()
        except (SplitRefused, NoPartitionError):
            raise
        except (PartitionError, DBAPIError) as failure:
            error = str(failure) if isinstance(failure, PartitionError) else reason(failure)
            logger.warning("split of %s: %s", self.table, error)
        return TableResult(
            table=str(self.table),
            created=self.created,
            moved=self.moved,
            proof=self.proof,
            error=error,
            findings=tuple(self.findings),
        )

    def _run(self) -> None:
        _under_way(self.connection, self.table, self.partition)
        found = self._read()
        if found is not None and not (found.is_swapped or found.is_watched):
            _abort(self.connection, found)  # nothing is in it yet
            found = None
        if found is None:
            found = self._prepare()
        if not found.is_swapped:
            self._in_step(found, self._copied(found))
            again = self._read()
            if again is None:
                raise NoPartitionError(name=str(found.source.name))
            found = again
        self._finish(found)

    def _prepare(self) -> Split:
        planned = _planned(self.connection, self.table, self.partition)
        planned = dataclasses.replace(planned, wait_ms=self.pace.wait_ms)
        full = lacking_room(self.connection, planned.facts.bytes)
        if full is not None:
            remedy = "Free some, or move the server's folder to a larger disk"
            raise SplitRefused(table=str(self.table), problem=full, remedy=remedy)
        self.findings += planned.facts.notes
        steps = list(executor.prepare_batches(planned, self.snapshot.user))
        for number, step in enumerate(steps, start=1):
            _send(self.connection, planned, step)
            self._told("steps of preparation")(number, len(steps))
        found = self._read()
        assert found is not None
        return found

    def _read(self) -> Split | None:
        with self.connection.begin():
            catalog.see_all_rows(self.connection)
            found = catalog.read_split(self.connection, self.table)
        return found and dataclasses.replace(found, wait_ms=self.pace.wait_ms)

    def _told(self, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(str(self.table), unit, done, total)

    def _copier(self, found: Split) -> executor.Copier:
        what = f"splitting {found.source.name}"
        return executor.Copier(self.connection, executor.copying_of(found), what, str(self.table), self.pace)

    def _copied(self, found: Split) -> executor.Copier:
        """Copy all rows, and compare them."""
        copier = self._copier(found)
        copier.confirm(executor.confirm_batch(found))
        copier.copy(found.facts.rows, self._told("blocks copied"))
        copier.catch_up(told=self._told("changes caught up with"))
        if self.verify and not copier.progress().verified:
            compared = executor.compare(copier, found, self._told("steps of comparison"))
            self.proof = f"{compared}, in and out"
            self.moved = compared.rows
        else:
            self.moved = copier.progress().rows
        self._analyze(found)
        copier.catch_up(told=self._told("changes caught up with"))
        return copier

    def _in_step(self, found: Split, copier: executor.Copier) -> None:
        """Have the copy kept in step, and swap it; where that cannot be had now, writers are relieved."""
        executor.wait_for_older(copier)  # of whom one may take long: before it is a burden to writers
        copier.catch_up()
        copier.keep_in_step()
        try:
            for step in list(executor.key_batches(found, self._keys(found))):
                _send(self.connection, found, step)
            with one_run(self.connection.engine, self.snapshot.config_schema):
                executor.swap(copier, found)
        except (PartitionError, DBAPIError):
            # With its foreign keys a copy that lags behind would keep writers from deleting what a row that
            # they have deleted referred to, so it stays in step then.
            if not found.facts.foreign_keys:
                with suppress(PartitionError, DBAPIError):
                    copier.only_log()
            raise

    def _analyze(self, found: Split) -> None:
        """Nobody reads them yet, so this is the time; autovacuum would come late."""
        for number, piece in enumerate(found.pieces, start=1):
            batch = executor.analyze_batch(found.schema, piece.name, parent=False, server_version=0)
            try:
                executor.tend(self.connection, batch)
            except DBAPIError as error:
                logger.info("%s could not be analyzed: %s", piece.name, reason(error))
            self._told("windows analyzed")(number, len(list(found.pieces)))

    def _keys(self, found: Split) -> dict[str, dict[str, bool]]:
        with self.connection.begin():
            return catalog.keys_of(self.connection, found.schema, [piece.name for piece in found.pieces])

    def _finish(self, found: Split) -> None:
        """Make the windows partitions of the table itself, and clean up."""
        verified, copier = self._verified(found), self._copier(found)
        with one_run(self.connection.engine, self.snapshot.config_schema):
            for number, group in enumerate(found.groups, start=1):
                executor.promote(copier, found, group)
                self._told("groups of windows")(number, len(found.groups))
        self.created = self._attached(found)
        if self.drop_old and verified and found.kept_as:
            _send(self.connection, found, SplitStep("drop what was split", executor.drop_old_batch(found)))
        elif found.kept_as:
            drop = executor.drop_old_batch(found).statements[-1].sql
            told = "" if verified or not self.drop_old else " (not compared, so not dropped)"
            self.findings.append(f"what was split stays as it was{told}; once you are sure: {drop}")
        _send(self.connection, found, SplitStep("clean up", executor.clean_batch(found)))

    def _verified(self, found: Split) -> bool:
        with self.connection.begin():
            progress = catalog.read_progress(self.connection, found.schema, found.state, found.source.oid)
        return progress is not None and progress.verified

    def _attached(self, found: Split) -> tuple[str, ...]:
        with self.connection.begin():
            parts = catalog.partitions_of(self.connection, self.table)
        names = {piece.name for piece in found.pieces}
        return tuple(part.name for part in in_order(parts) if part.name in names)
