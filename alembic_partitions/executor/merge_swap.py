"""The moment in which a plain table takes the place of a partitioned one, and the proof before it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, PartitionError, UnpartitionFailed, WorkFailed
from alembic_partitions.plan import Belongings, Merge
from alembic_partitions.sessions import pause

from .converting import Changed, Locked, Step, as_planned
from .copying import CHANGED, Copier, Told
from .merging import copying_of, copying_of_leaf
from .statements import TRY_AGAIN, send, transaction
from .swapping import CHUNK, Digest, digest, wait_for_older

#: Seconds that the swap is tried for in one run.
MERGE_PATIENCE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds


class Unsettled(Exception):
    """A partition is not what it was when its copy began: look again."""


@dataclass
class MergeCopier(Copier):
    """Copies from all partitions."""

    def failed(self, problem: str, remedy: str) -> PartitionError:
        return UnpartitionFailed(table=self.table, problem=problem, remedy=remedy)


@dataclass
class LeafCopier(MergeCopier):
    """Copies the blocks of one partition, which may come and go meanwhile."""

    def begin_anew(self) -> None:
        raise Unsettled

    def progress(self) -> catalog.Progress:
        with self.connection.begin():
            found = catalog.read_progress(self.connection, *self.copying.state, self.copying.origin_oid)
        if found is None:
            raise Unsettled
        return found


def is_settled(connection: Connection, merge: Merge) -> bool:
    """Tell whether all the partitions that there are now are copied, and no others; in a transaction."""
    state = merge.schema, merge.state
    leaves = catalog.read_leaves(connection, merge.table, state)
    done = all(leaf.is_copied and not leaf.detach_pending for leaf in leaves)
    return done and not catalog.left_leaves(connection, leaves, state)


def compare_merged(
    copier: Copier, merge: Merge, told: Told = lambda done, total: None
) -> tuple[Digest, Digest] | None:
    """Add up the partitions and the plain table, as one snapshot shows both; ``None`` where a partition came,
    went or was emptied meanwhile, so that they cannot be compared.

    Rows that the log names in that snapshot are left out on both sides.
    """
    connection = copier.connection
    both: list[Digest] = []

    def attempt() -> int:
        before = Digest()
        with connection.begin():
            for statement in transaction(ddl.OneSnapshot(), ddl.Steady()).statements:
                send(connection, statement)
            if not is_settled(connection, merge):
                return 0
            leaves = catalog.read_leaves(connection, merge.table, (merge.schema, merge.state))
            total = len(leaves) + 1
            for number, leaf in enumerate(leaves, start=1):
                copying = copying_of_leaf(merge, leaf)
                for begin in range(0, max(leaf.blocks, 1), CHUNK):
                    end = begin + CHUNK if begin + CHUNK < leaf.blocks else None
                    before += digest(connection, ddl.DigestBlocks(copying, begin, end))
                told(number, total)
            after = digest(connection, ddl.DigestTable(copying_of(merge), merge.plain))
            told(total, total)
        with connection.begin():
            if is_settled(connection, merge):
                both.extend((before, after))
        return 0

    copier.insist(attempt)
    return (both[0], both[1]) if both else None


def swap_merged(
    copier: Copier,
    merge: Merge,
    tables: Sequence[Belongings],
    step: Step,
    renew: Callable[[], bool],
) -> None:
    """Put the plain table in the place of the partitioned one; the copy is in step.

    :param tables: what the step was planned by.
    :param renew: brings the copy in step again where it is not; tells whether that was so.
    :raises LockNotAvailable: others did not let it in time; the next run goes on from here.
    :raises Changed: the tables are not what they were.
    """
    connection = copier.connection
    deadline, wait = time.monotonic() + MERGE_PATIENCE, _FIRST_PAUSE
    wait_for_older(copier)
    while True:
        told = "some changes could not be made in the copy at once"
        try:
            if _attempt(copier, merge, tables, step):
                return
        except DBAPIError as error:
            code = sqlstate(error)
            if code == CHANGED:
                raise copier.failed(reason(error), "Abort it with --abort, and begin anew") from error
            if code not in TRY_AGAIN:
                raise WorkFailed(table=copier.table, what="the swap", reason=reason(error)) from error
            told = _holders(connection, tables) or reason(error)
        if time.monotonic() + wait > deadline:
            raise LockNotAvailable(table=copier.table, reason=told)
        pause(connection, random.uniform(wait / 2, wait))
        wait = min(wait * 2, _LONGEST_PAUSE)
        if renew():
            wait_for_older(copier, max(deadline - time.monotonic(), 0))


def _attempt(copier: Copier, merge: Merge, tables: Sequence[Belongings], step: Step) -> bool:
    """Swap, unless something is left to do of the copy."""
    connection = copier.connection
    with connection.begin() as whole:
        for statement in step.batch.statements:
            send(connection, statement)
            if not isinstance(statement, Locked):
                continue
            if copier.entries(1).count or not is_settled(connection, merge):
                whole.rollback()
                return False
            if not as_planned(connection, tables):
                raise Changed
    return True


def _holders(connection: Connection, tables: Sequence[Belongings]) -> str:
    with connection.begin():
        return "; ".join(map(str, catalog.holders(connection, [table.oid for table in tables])))
