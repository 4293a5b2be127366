"""Partitions that hold rows become one plain table beside readers and writers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.drivers import reason
from alembic_partitions.errors import ConversionRefused, LockNotAvailable, PartitionError, WorkFailed
from alembic_partitions.executor import Pace, Step
from alembic_partitions.locks import one_run
from alembic_partitions.maintenance import Progress, TableResult, lacking_room
from alembic_partitions.plan import (
    CONVERTED_MARK,
    Belongings,
    Leaf,
    Merge,
    Reversal,
    names_of_merge,
    plan_merge,
    plan_reversal,
    refuse_merge,
)
from alembic_partitions.sessions import pause

from .reading import MOST_LOOKS, Told

logger = logging.getLogger("alembic_partitions")

_HALF_WAY = 0.2  # seconds between two looks at a partition that is just being detached


@dataclass(frozen=True, slots=True)
class Manner:
    """How partitions are merged."""

    pace: Pace = field(default_factory=Pace)
    drop_old: bool = False
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Merging:
    """What is left to do, and what comes of it."""

    merge: Merge
    reversal: Reversal
    forgotten: ClauseElement | None
    user: str

    def steps(self, manner: Manner) -> list[Step]:
        """Return it as a script has it."""
        steps = executor.merge_steps(
            self.merge,
            self.reversal,
            self.forgotten,
            self.user,
            batch=manner.pace.batch,
            verify=manner.verify,
            drop_old=manner.drop_old,
        )
        return list(steps)

    def swap(self, manner: Manner) -> Step:
        """Return its last step."""
        return executor.swap_step(self.merge, self.reversal, self.forgotten, self.user, manner.verify)


def plan_merging(
    connection: Connection,
    found: Belongings,
    begun: Belongings | None,
    primary_key: Sequence[str] | None,
    manner: Manner,
) -> tuple[Merge, Reversal]:
    """Plan what is left to do of a merge; in a transaction.

    :param begun: the plain table of a run that was cut off.
    :raises ConversionRefused: it would lose something.
    """
    facts = catalog.read_mergeable(connection, found)
    leaves = catalog.read_leaves(connection, found)
    if begun is None:
        refuse_merge(found, facts, leaves)
    converted = next((leaf for leaf in leaves if (leaf.mark or "").startswith(CONVERTED_MARK)), None)
    options = converted.options if converted is not None else _shared(leaves)
    taken = set[str]()
    while True:
        merge = plan_merge(found, facts, leaves, options, manner.pace.wait_ms, taken, begun)
        more = catalog.names_in_use(connection, found.schema, names_of_merge(merge)) - taken
        if not more:
            break
        taken |= more
    if merge.target is not None:
        merge = merge.with_leaves(catalog.read_leaves(connection, found, (merge.schema, merge.state)))
    mark = converted.mark if converted is not None else None
    return merge, plan_reversal(found, merge.heir, primary_key, merge.aside, mark)


def _shared(leaves: Sequence[Leaf]) -> tuple[str, ...]:
    """Return the storage parameters that all partitions have."""
    first, *others = leaves
    return tuple(option for option in first.options if all(option in leaf.options for leaf in others))


@dataclass
class Work:
    """One merge on its way."""

    connection: Connection
    #: Reads the table anew, in a transaction of its own.
    look: Callable[[], Merging]
    config: str | None
    manner: Manner
    told: Told
    progress: Progress
    proof: str | None = None
    moved: int = 0
    findings: list[str] = field(default_factory=list)

    def done(self) -> TableResult:
        """Do it all."""
        merging = self.look()
        self.findings += merging.reversal.notes
        if merging.merge.target is None:
            needed = sum(leaf.bytes for leaf in merging.merge.leaves)
            full = lacking_room(self.connection, needed)
            if full is not None:
                raise ConversionRefused(table=str(merging.merge.table), problems=f"{full}: free some")
            self._take(merging, executor.prepare_step(merging.merge, merging.user))
            merging = self.look()
        self._copier(merging.merge).confirm(executor.confirm_merge_batch(merging.merge))
        self.told("rows are copied")
        merge = self._copied()
        self._analyze(merge)
        self._indexed()
        merge = self._in_step()
        self.findings += put_aside(
            self.connection, merge.schema, merge.aside, self.manner.verify, self.manner.drop_old
        )
        return TableResult(
            str(merge.table), moved=self.moved, proof=self.proof, findings=tuple(self.findings)
        )

    def _take(self, merging: Merging, step: Step) -> None:
        self.told(step.title)
        executor.run_step(self.connection, [merging.merge.table, merging.merge.heir], step)

    def _copier(self, merge: Merge) -> executor.MergeCopier:
        copying = executor.copying_of_merge(merge)
        return executor.MergeCopier(self.connection, copying, "copying", str(merge.table), self.manner.pace)

    def _steps(self, merge: Merge, unit: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(str(merge.table), unit, done, total)

    # -- copying ----------------------------------------------------------------------------------------

    def _copied(self) -> Merge:
        """Copy all there is, and compare it if that is wished."""
        while True:
            merge = self._all_copied()
            if not self.manner.verify or merge.is_verified:
                self.moved = self.moved or sum(leaf.copied for leaf in merge.leaves)
                return merge
            copier = self._copier(merge)
            both = executor.compare_merged(copier, merge, self._steps(merge, "partitions compared"))
            if both is None:
                continue
            before, after = both
            if before != after:
                told = f"the copy is not what it is a copy of: {before} in, {after} out"
                raise copier.failed(told, "Abort it with --abort, and report this")
            copier.send(executor.verified_batch(merge))
            self.proof, self.moved = f"{after}, in and out", after.rows

    def _all_copied(self) -> Merge:
        """Copy the blocks of whatever partitions there are, and what the log names."""
        merge = self.look().merge
        give_up_at = time.monotonic() + executor.MERGE_PATIENCE
        while True:
            copier = self._copier(merge)
            copier.confirm(executor.settle_batch(merge))
            merge = self.look().merge
            half_way = [leaf for leaf in merge.leaves if leaf.detach_pending]
            if half_way:
                self._wait_for(half_way[0], copier, give_up_at)
                continue
            if all(leaf.is_copied for leaf in merge.leaves):
                copier.catch_up(told=self._steps(merge, "changes caught up with"))
                return merge
            try:
                self._copy_leaves(merge, copier)
            except executor.Unsettled:
                continue

    def _wait_for(self, leaf: Leaf, copier: executor.Copier, give_up_at: float) -> None:
        """Wait until a partition is detached that is neither one any more nor none yet."""
        if time.monotonic() > give_up_at:
            told = f"partition {leaf} is half-way through DETACH CONCURRENTLY"
            raise copier.failed(
                told, "Let that come to its end, or DETACH PARTITION ... FINALIZE; run it again"
            )
        pause(self.connection, _HALF_WAY)

    def _copy_leaves(self, merge: Merge, copier: executor.Copier) -> None:
        told, total, done = self._steps(merge, "blocks copied"), merge.blocks, 0
        for leaf in merge.leaves:
            if not leaf.is_copied:
                of_leaf = executor.copying_of_leaf(merge, leaf)
                one = executor.LeafCopier(
                    self.connection, of_leaf, f"copying {leaf.name}", str(merge.table), self.manner.pace
                )
                try:
                    one.copy(leaf.rows, _after(done, total, told))
                except WorkFailed:
                    if leaf.oid in {now.oid for now in self.look().merge.leaves}:
                        raise
                    raise executor.Unsettled from None
                copier.catch_up()
            done += leaf.blocks

    def _analyze(self, merge: Merge) -> None:
        """Nobody reads it yet, so this is the time; autovacuum would come late."""
        batch = executor.analyze_batch(*merge.plain, parent=False, server_version=0)
        try:
            executor.tend(self.connection, batch)
        except DBAPIError as error:
            logger.info("%s could not be analyzed: %s", merge.name, reason(error))

    def _indexed(self) -> None:
        """Build the unique index for the primary key to be, once what it would stumble over is caught up
        with."""
        while True:
            merging = self.look()
            steps = list(executor.key_index_steps(merging.reversal))
            if not steps:
                return
            self._copier(merging.merge).all_changes()
            self.told(steps[0].title)
            executor.run_step(self.connection, [merging.merge.heir], steps[0])

    # -- the swap ---------------------------------------------------------------------------------------

    def _in_step(self) -> Merge:
        """Have the copy kept in step, and swap it; where that cannot be had now, writers are relieved."""
        merging = self.look()
        merge, copier = merging.merge, self._copier(merging.merge)
        executor.wait_for_older(copier)  # of whom one may take long: before it is a burden to writers
        copier.catch_up()
        copier.keep_in_step()
        try:
            for step in list(executor.foreign_key_steps(merge)):
                self._take(merging, step)
            with one_run(self.connection.engine, self.config) if self.config else nullcontext():
                return self._swapped(copier)
        except (PartitionError, DBAPIError) as error:
            # With its foreign keys a copy that lags behind would keep writers from deleting what a row that
            # they have deleted referred to, so it stays in step then.
            if not merge.table.foreign_keys:
                with suppress(PartitionError, DBAPIError):
                    copier.only_log()
            if isinstance(error, LockNotAvailable):
                self._refuse_doubles(copier, merging.reversal, error)
            raise

    def _swapped(self, copier: executor.Copier) -> Merge:
        for _ in range(MOST_LOOKS):
            merging = self.look()
            copier.confirm(executor.confirm_merge_batch(merging.merge))  # it has no index that is new
            merge, step = merging.merge, merging.swap(self.manner)
            self.told(step.title)
            with suppress(executor.Changed):
                tables = merge.table, merge.heir
                executor.swap_merged(copier, merge, tables, step, self._renewed)
                return merge
        raise WorkFailed(table=copier.table, what="undoing", reason="somebody else alters it all the time")

    def _renewed(self) -> bool:
        """Bring the copy in step again where it is not; tell whether that was so."""
        merge = self.look().merge
        copier = self._copier(merge)
        with self.connection.begin():
            settled = executor.is_settled(self.connection, merge)
            if settled and not copier.entries(1).count:
                return False
        if not settled:
            if not merge.table.foreign_keys:
                copier.only_log()
            self._copied()
        copier.keep_in_step()
        return True

    def _refuse_doubles(self, copier: executor.Copier, reversal: Reversal, error: LockNotAvailable) -> None:
        """Say so where what cannot be caught up with is not unique by the primary key to be."""
        with self.connection.begin():
            waits = copier.copying.is_stricter and copier.entries(1).count
        if waits:
            columns = ", ".join(reversal.primary_key)
            told = f"rows that were written meanwhile are not unique by ({columns}): correct them"
            raise WorkFailed(table=copier.table, what="the primary key", reason=told) from error


def _after(done: int, total: int, told: executor.Told) -> executor.Told:
    """Return what tells of all blocks where it is told of one partition's."""
    return lambda some, of: told(done + some, total)


def put_aside(
    connection: Connection, schema: str, aside: str, is_verified: bool, drop_old: bool
) -> Iterator[str]:
    """Drop what was partitioned if that is wished and was verified; else tell how."""
    batch = executor.drop_aside_batch(schema, aside)
    if drop_old and is_verified:
        dropped = Step(f"{aside} is dropped", batch)
        executor.insist(
            lambda: executor.apply(connection, dropped.batch),
            connection,
            table=f"{schema}.{aside}",
            what=dropped.title,
        )
        return
    told = " (not compared, so not dropped)" if drop_old else ""
    drop = batch.statements[-1].sql
    yield f"its partitions stay as they were{told}; once you are sure: {drop}"
