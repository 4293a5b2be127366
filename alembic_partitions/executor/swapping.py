"""The moment in which a partition gives way to its windows: when it may be, and the proof before it.

A transaction at REPEATABLE READ whose snapshot is older than the copy would not see the copied rows. So the
swap waits for those that were open when all had been caught up with, before it keeps anybody waiting itself.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, SplitFailed, WorkFailed
from alembic_partitions.plan import Split
from alembic_partitions.sessions import pause

from .copying import CHANGED, FEW, Copier, Told, changed_elements
from .splitting import swap_elements, swap_opening
from .statements import TRY_AGAIN, Statement, send, transaction

#: Seconds that the swap is tried for in one run.
PATIENCE = 30.0
#: How the applications are called that hold the locks of our runs: their transactions have no snapshot.
LOCK_HOLDERS = "alembic-partitions lock"

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5  # seconds
# Blocks that are read at a time.
_CHUNK = 1 << 14


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
    connection, copying = copier.connection, copier.copying
    blocks = copier.progress().end_block
    chunks = list(range(0, max(blocks, 1), _CHUNK))
    pieces = list(split.pieces)
    total = len(chunks) + len(pieces)
    both: list[Digest] = []

    def attempt() -> int:
        before = after = Digest()
        with connection.begin():
            for statement in transaction(ddl.OneSnapshot(), ddl.Steady()).statements:
                send(connection, statement)
            for number, begin in enumerate(chunks):
                end = begin + _CHUNK if begin != chunks[-1] else None
                before += _digest(connection, ddl.DigestBlocks(copying, begin, end))
                told(number + 1, total)
            for number, piece in enumerate(pieces):
                after += _digest(connection, ddl.DigestTable(copying, (split.schema, piece.name)))
                told(len(chunks) + number + 1, total)
        both[:] = [before, after]
        return 0

    copier.insist(attempt)
    before, after = both
    if before != after:
        raise SplitFailed(
            table=copier.table,
            problem=f"its copy is not what it is a copy of: {before} in, {after} out",
            remedy="Abort it with --abort, and report this",
        )
    copier.send(transaction(ddl.NoteVerified(copying)))
    return after


def _digest(connection: Connection, element: ddl.Element) -> Digest:
    rows, checksum = connection.exec_driver_sql(
        element.sql(), execution_options={"no_parameters": True}
    ).one()
    return Digest(int(rows), int(checksum))


def swap(copier: Copier, split: Split) -> None:
    """Put the windows in the place of the partition.

    :raises LockNotAvailable: others did not let it in time; the next run goes on from here.
    :raises SplitFailed: what is there is not what it was.
    """
    connection = copier.connection
    deadline, wait = time.monotonic() + PATIENCE, _FIRST_PAUSE
    copier.catch_up()
    with connection.begin():
        older = set(catalog.others_with_snapshots(connection, LOCK_HOLDERS))
    while True:
        copier.catch_up()
        with connection.begin():
            open_ = catalog.others_with_snapshots(connection, LOCK_HOLDERS)
        older &= set(open_)
        told = "; ".join(f"{open_[one]} has been in a transaction for long" for one in sorted(older))
        if not older:
            try:
                if _attempt(copier, split):
                    return
                told = "too many changes at once"
            except DBAPIError as error:
                code = sqlstate(error)
                if code == CHANGED and not copier.progress().is_copied:
                    copier.copy(split.facts.rows)
                elif code == CHANGED:
                    raise SplitFailed(
                        table=copier.table,
                        problem=reason(error),
                        remedy="Abort it with --abort, and begin anew",
                    ) from error
                elif code not in TRY_AGAIN:
                    raise WorkFailed(table=copier.table, what="the swap", reason=reason(error)) from error
                told = _holders(connection, split) or reason(error)
        if time.monotonic() + wait > deadline:
            raise LockNotAvailable(table=copier.table, reason=told)
        pause(connection, random.uniform(wait / 2, wait))
        wait = min(wait * 2, _LONGEST_PAUSE)


def _attempt(copier: Copier, split: Split) -> bool:
    """Swap, unless more has changed than everybody can wait for."""
    connection = copier.connection
    with connection.begin() as whole:
        for statement in swap_opening(split).statements:
            send(connection, statement)
        found = copier.entries(2 * FEW)
        if found.count >= 2 * FEW:
            whole.rollback()
            return False
        changed = changed_elements(copier.copying, found) if found.count else []
        for statement in (*(Statement(e.sql()) for e in changed), *swap_elements(split)):
            send(connection, statement)
    return True


def _holders(connection: Connection, split: Split) -> str:
    relations = [split.source.oid, *([split.table.oid] if split.table.oid else [])]
    with connection.begin():
        return "; ".join(map(str, catalog.holders(connection, relations)))
