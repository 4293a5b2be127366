"""The moment in which a partition gives way to its windows: when it may be, and the proof before it.

A transaction at REPEATABLE READ whose snapshot is older than the copy would not see the copied rows. So the
swap waits for those that were open when the copy came into step, before it keeps anybody waiting itself; what
has changed since then was changed in both by the same transactions.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, SplitFailed, WorkFailed
from alembic_partitions.plan import Group, Split
from alembic_partitions.sessions import pause

from .copying import CHANGED, Copier, Told
from .splitting import calm_batch, keep_out, promote_elements, swap_elements
from .statements import TRY_AGAIN, Statement, send, transaction

#: Seconds that the swap is tried for in one run.
PATIENCE = 30.0
#: How the applications are called that hold the locks of our runs: their transactions have no snapshot.
LOCK_HOLDERS = "alembic-partitions lock"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds
# Between tries of the swap, and how long each of them waits at least for a lock.
_PAUSES, _LEAST_WAIT_MS = (0.02, 0.1), 5
_NOT_PERMITTED = "42501"
#: Blocks that are read at a time.
CHUNK = 1 << 14


@dataclass(frozen=True, slots=True)
class Digest:
    """Rows, counted and added up."""

    rows: int = 0
    checksum: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, self.checksum + other.checksum)

    def __str__(self) -> str:
        return f"{self.rows:,} rows, checksum {self.checksum & (2**64 - 1):016x}"


def compare(copier: Copier, split: Split, told: Told = lambda done, total: None) -> Digest:
    """Compare the copy with its origin, as one snapshot shows both; note that they are the same.

    Rows that the log names in that snapshot are left out on both sides.

    :raises SplitFailed: they differ.
    """
    found: list[Digest] = []
    while not found:
        copier.copy(split.facts.rows)  # anew, where it was truncated or written anew meanwhile
        copier.catch_up()
        copier.insist(lambda: _compared(copier, split, told, found))
    before, after = found
    if before != after:
        raise SplitFailed(
            table=copier.table,
            problem=f"its copy is not what it is a copy of: {before} in, {after} out",
            remedy="Abort it with --abort, and report this",
        )
    copier.send(transaction(ddl.NoteVerified(copier.copying)))
    return after


def _compared(copier: Copier, split: Split, told: Told, found: list[Digest]) -> int:
    """Add both up into ``found``; or not, where the origin is another file by now."""
    connection, copying, pieces = copier.connection, copier.copying, list(split.pieces)
    before = after = Digest()
    with connection.begin():
        for statement in transaction(ddl.OneSnapshot(), ddl.Steady(), ddl.ShareOrigin(copying)).statements:
            send(connection, statement)
        now = catalog.read_progress(connection, *copying.state, copying.origin_oid)
        if now is None or not now.is_copied:
            return 0
        chunks = list(range(0, max(now.end_block, 1), CHUNK))
        total = len(chunks) + len(pieces)
        for number, begin in enumerate(chunks, start=1):
            end = begin + CHUNK if begin != chunks[-1] else None
            before += digest(connection, ddl.DigestBlocks(copying, begin, end))
            told(number, total)
        for number, piece in enumerate(pieces, start=len(chunks) + 1):
            after += digest(connection, ddl.DigestTable(copying, (split.schema, piece.name)))
            told(number, total)
    found[:] = [before, after]
    return 0


def digest(connection: Connection, element: ddl.Element) -> Digest:
    """Send what counts rows and adds them up."""
    rows, checksum = connection.exec_driver_sql(
        element.sql(), execution_options={"no_parameters": True}
    ).one()
    return Digest(int(rows), int(checksum))


def wait_for_older(copier: Copier, patience: float | None = None) -> None:
    """Wait for the transactions that may have a snapshot by now, so that all those that are to come see what
    has been copied.

    :raises LockNotAvailable: one does not end.
    """
    connection = copier.connection
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    wait = _FIRST_PAUSE
    with connection.begin():
        older = set(catalog.others_with_snapshots(connection, LOCK_HOLDERS))
    while older:
        pause(connection, wait)
        wait = min(wait * 2, _LONGEST_PAUSE)
        with connection.begin():
            others = catalog.others_with_snapshots(connection, LOCK_HOLDERS)
        older &= set(others)
        if older and time.monotonic() > deadline:
            told = "; ".join(others[one] for one in sorted(older))
            told += " is in a transaction that began before all rows were copied, and might miss some"
            raise LockNotAvailable(table=copier.table, reason=told)


def swap(copier: Copier, split: Split) -> None:
    """Put the windows in the place of the partition; the copy is in step.

    :raises LockNotAvailable: others did not let it in time; the next run goes on from here.
    :raises SplitFailed: what is there is not what it was.
    """
    deadline = time.monotonic() + PATIENCE
    wait_for_older(copier)
    with suppress(LockNotAvailable):  # then the swap says who is in the way
        copier.send(calm_batch(split))

    def again() -> None:
        if _renewed(copier, split):
            wait_for_older(copier, max(deadline - time.monotonic(), 0))

    def body() -> list[Statement] | None:
        return None if copier.entries(1).count else swap_elements(split)

    _insist(copier, split, body, "the swap", again, deadline)


def promote(copier: Copier, split: Split, group: Group) -> None:
    """Make the windows of a group partitions of the table itself; raises as :func:`swap` does."""
    elements = promote_elements(split, group)
    deadline = time.monotonic() + PATIENCE
    _insist(copier, split, lambda: elements, f"the windows of {group.name}", lambda: None, deadline)


def _insist(
    copier: Copier,
    split: Split,
    body: Callable[[], list[Statement] | None],
    what: str,
    again: Callable[[], None],
    deadline: float,
) -> None:
    """Send a transaction that keeps everybody out, until it is let in.

    Many short tries find a gap between the transactions of others where a few long ones make more of them
    wait; see :func:`.splitting.keep_out`.

    :param body: what it sends then; ``None`` gives this try up.
    :param again: called before another try.
    """
    connection = copier.connection
    keys_first = may_lock_keys = True
    while True:
        keys_first = may_lock_keys and not keys_first
        told = "some changes could not be made in the copy at once"
        try:
            if _attempt(connection, split, body, keys_first):
                return
        except DBAPIError as error:
            code = sqlstate(error)
            told = reason(error)
            if code == _NOT_PERMITTED and keys_first:
                may_lock_keys = False
            elif code == CHANGED and copier.progress().is_copied:
                remedy = "Abort it with --abort, and begin anew"
                raise SplitFailed(table=copier.table, problem=told, remedy=remedy) from error
            elif code not in (*TRY_AGAIN, CHANGED):
                raise WorkFailed(table=copier.table, what=what, reason=told) from error
        if time.monotonic() > deadline:
            raise LockNotAvailable(table=copier.table, reason=_holders(connection, split) or told)
        pause(connection, random.uniform(*_PAUSES))
        again()


def _attempt(
    connection: Connection, split: Split, body: Callable[[], list[Statement] | None], keys_first: bool
) -> bool:
    least = min(_LEAST_WAIT_MS, split.wait_ms)
    shorter = dataclasses.replace(split, wait_ms=random.randint(least, split.wait_ms))
    with connection.begin() as whole:
        for statement in keep_out(shorter, keys_first).statements:
            send(connection, statement)
        statements = body()
        if statements is None:
            whole.rollback()
            return False
        for statement in statements:
            send(connection, statement)
    return True


def _renewed(copier: Copier, split: Split) -> bool:
    """Bring the copy in step again where it is not; tell whether that was so."""
    connection = copier.connection
    if not copier.progress().is_copied:
        copier.copy(split.facts.rows)
    else:
        with connection.begin():
            if not copier.entries(1).count:
                return False
    copier.keep_in_step()
    return True


def _holders(connection: Connection, split: Split) -> str:
    relations = [split.source.oid, *([split.table.oid] if split.table.oid else [])]
    with connection.begin():
        return "; ".join(map(str, catalog.holders(connection, relations)))
