"""Tables copied beside readers and writers: block by block, then whatever a log says has changed.

At the end the copy is kept in step: writers change it in the very transactions in which they change the
origin. Then any snapshot sees the same in both, and a copy that has foreign keys keeps nobody from deleting
what a row referred to that is deleted before.

The engine knows an origin, a target, a log that triggers on the origin write, and a table that holds how far
the copy has come: not what the rows are copied for. Each batch is one transaction, and the note of how far it
came is part of it, so a run that is killed goes on where it was.

Why nothing is lost and nothing is there twice: the log begins with a lock that waits for all writers, so a
row that it never names is in a block that was there then, and is copied once. A row that it names is taken
away from the copy and copied anew from one snapshot, the same that says which entries there are; whoever
changes it later writes a later entry. A row whose copy is refused, because another one that has changed since
still stands in its place, was changed itself after that one, so it is named after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import PartitionError, SplitFailed, WorkFailed
from alembic_partitions.sessions import pause

from .statements import LOCK_TIMEOUT_MS, Batch, Statement, insist, send, transaction

#: Seconds that the locks of one batch are tried for.
PATIENCE = 30.0
#: What it is answered with that a copy is not what it was taken for (object_not_in_prerequisite_state).
CHANGED = "55000"
#: Entries that may be left for a transaction that writers wait for, and how long its statements may take.
FEW = 500
STEP_TIMEOUT_MS = 5_000
#: How much longer than one lock it may take to lock a table with all its partitions.
MOST_WAITS = 3
# Entries that one transaction works off: at least, and where writers are fast. It does not rest in between.
_ENTRIES, _MOST_ENTRIES = 2_000, 50_000
# Seconds after which writers are faster than the catching up if less has not been left in between.
_OUTPACED = 120.0
_ROWS_OF_A_BLOCK = 100
# Refused by what has changed in between: the next try sees it.
_CHANGED_MEANWHILE = {"40001", "23503"}
_TRIES = 20

#: Told how much is done, and of how much.
Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to go: rows of a batch, seconds to rest after each, longest wait that others feel."""

    batch: int = 10_000
    rest: float = 0.0
    wait_ms: int = LOCK_TIMEOUT_MS


def watch_elements(copying: ddl.Copying, owner: str | None) -> list[ddl.Element | Statement]:
    """Return what has changes of the origin written down from the end of its transaction on.

    :param owner: whom the function is given to, if not whoever runs this.
    """
    locks = f"SHARE ROW EXCLUSIVE on {'.'.join(copying.origin)}: waits for its writers, and they for it"
    return [
        ddl.SetWatcher(copying),
        ddl.CloseWatcher(copying),
        *([ddl.OwnWatcher(copying, owner)] if owner is not None else []),
        Statement(ddl.Watch(copying).sql(), locks),
        ddl.WatchTruncate(copying),
        ddl.WatchAlways(copying),
        ddl.WatchAlways(copying, "_truncate"),
        ddl.BeginCopy(copying),
    ]


def unwatch_elements(copying: ddl.Copying) -> list[ddl.Element | Statement]:
    """Return what takes the triggers away again."""
    locks = f"ACCESS EXCLUSIVE on {'.'.join(copying.origin)}"
    return [
        Statement(ddl.Unwatch(copying).sql(), locks),
        ddl.Unwatch(copying, "_truncate"),
        ddl.DropWatcher(copying),
    ]


def blocks_batch(copying: ddl.Copying, begin: int, end: int) -> Batch:
    """Return the transaction that copies some blocks."""
    origin, target = ".".join(copying.origin), ".".join(copying.target)
    locks = f"ACCESS SHARE on {origin}, ROW EXCLUSIVE on {target}"
    return transaction(ddl.Steady(), Statement(ddl.CopyBlocks(copying, begin, end).sql(), locks))


def first_blocks(batch: int, rows: int, blocks: int) -> int:
    """Return how many blocks to begin with, by an estimate of all rows; 0 is a table never analyzed."""
    likely = rows or blocks * _ROWS_OF_A_BLOCK
    return max(1, min(batch * max(blocks, 1) // max(likely, 1), 1 << 16))


def changed_elements(copying: ddl.Copying, entries: catalog.Entries) -> list[ddl.Element]:
    """Return what brings the copy up to the last of some entries."""
    kinds = ddl.ForgetChanged, ddl.CopyChanged, ddl.ForgetEntries
    return [kind(copying, entries.last) for kind in kinds]


def changed_batch(copying: ddl.Copying, entries: catalog.Entries) -> Batch:
    """Return the transaction that does so, beside writers."""
    return transaction(ddl.OneSnapshot(), ddl.Steady(by_index=True), *changed_elements(copying, entries))


def step_batch(copying: ddl.Copying, wait_ms: int) -> Batch:
    """Return the transaction from which on the copy is kept in step; the log is emptied before its last
    statement."""
    stop = Statement(
        ddl.StopWriters(copying).sql(), f"SHARE ROW EXCLUSIVE on {'.'.join(copying.origin)}, for a moment"
    )
    bound = ddl.SetStatementTimeout(STEP_TIMEOUT_MS)
    # Of many partitions each would be waited for so long, while writers of the others wait.
    in_all = [] if copying.only else [ddl.SetStatementTimeout(MOST_WAITS * wait_ms)]
    last = ddl.SetWatcher(copying, in_step=True)
    return transaction(ddl.Steady(by_index=True), *in_all, stop, bound, last, lock_timeout_ms=wait_ms)


@dataclass
class Copier:
    """Copies, with writers at work."""

    connection: Connection
    copying: ddl.Copying
    #: What errors call it.
    what: str
    table: str
    pace: Pace = Pace()

    def progress(self) -> catalog.Progress:
        """Return how far it has come."""
        copying = self.copying
        with self.connection.begin():
            found = catalog.read_progress(self.connection, *copying.state, copying.origin_oid)
        if found is None:
            raise self.failed("what it had noted is gone", "Abort it, and begin anew")
        return found

    def confirm(self, batch: Batch) -> None:
        """Send what makes sure that a copy can go on.

        :raises SplitFailed: it cannot.
        """
        try:
            self.send(batch)
        except WorkFailed as failed:
            cause = failed.__cause__
            if isinstance(cause, DBAPIError) and sqlstate(cause) == CHANGED:
                raise self.failed(reason(cause), "Abort it with --abort, and begin anew") from failed
            raise

    def copy(self, rows: int, told: Told = lambda done, total: None) -> None:
        """Copy whatever blocks are left.

        :param rows: an estimate of all rows, to find how many blocks make a batch.
        """
        now = self.progress()
        if not now.is_same_file:
            self.begin_anew()
            now = self.progress()
        size = first_blocks(self.pace.batch, rows, now.end_block)
        while not now.is_copied:
            before = now
            self._copy_blocks(now.next_block, min(now.next_block + size, now.end_block))
            now = self.progress()
            if not now.is_same_file:
                self.begin_anew()
                now = self.progress()
            else:
                # What the estimate did not know, the last batch has shown.
                size = max(
                    1, min(size * self.pace.batch // max(now.rows - before.rows, 1), size * 2, 1 << 16)
                )
            told(min(now.next_block, now.end_block), now.end_block)
            self.rest()

    def _copy_blocks(self, begin: int, end: int) -> None:
        batch = blocks_batch(self.copying, begin, end)

        def attempt() -> int:
            with self.connection.begin() as whole:
                rows = [send(self.connection, statement) for statement in batch.statements]
                if rows[-1] != 1:  # the file is another one by now
                    whole.rollback()
                return rows[-1]

        self.insist(attempt)

    def begin_anew(self) -> None:
        """Begin with the first block: the origin is another file by now."""
        copying = self.copying
        anew = transaction(ddl.Steady(), ddl.ShareOrigin(copying), ddl.BeginAnew(copying))
        self.send(anew)

    def catch_up(self, few: int = FEW, told: Told = lambda done, total: None) -> None:
        """Work the log off until little is left.

        :raises SplitFailed: writers are faster.
        """
        least, since, done, limit = None, time.monotonic(), 0, max(self.pace.batch, _ENTRIES)
        while True:
            found = self.changes(limit)
            if found <= few:
                return
            done += found
            with self.connection.begin():
                left = catalog.waiting_entries(self.connection, *self.copying.log)
            told(done, done + left)
            if least is None or left < least:
                least, since = left, time.monotonic()
                continue
            limit = min(2 * limit, _MOST_ENTRIES)
            if time.monotonic() - since > _OUTPACED:
                raise self.failed(
                    f"changes are made faster than they can be caught up with, and {left} wait",
                    "Run it again at a quieter hour",
                )

    def changes(self, limit: int) -> int:
        """Bring the copy up to the oldest entries of the log; return how many there were."""
        copying = self.copying
        opening = transaction(ddl.OneSnapshot(), ddl.Steady(by_index=True))

        def attempt() -> int:
            with self.connection.begin():
                for statement in opening.statements:
                    send(self.connection, statement)
                found = self.entries(limit)
                if found.count:
                    for element in changed_elements(copying, found):
                        send(self.connection, Statement(element.sql()))
                return found.count

        for _ in range(_TRIES):
            try:
                return self.insist(attempt)
            except WorkFailed as failed:
                if not _changed_meanwhile(failed):
                    raise
                pause(self.connection, 0.05)
        return self.insist(attempt)

    def all_changes(self) -> None:
        """Bring the copy up to one snapshot, whatever is written meanwhile."""
        while self.changes(_MOST_ENTRIES) >= _MOST_ENTRIES:
            pass

    def keep_in_step(self) -> None:
        """Have writers change the copy themselves from now on; what the log still names is caught up with
        while they wait."""
        steps = step_batch(self.copying, self.pace.wait_ms).statements

        def attempt() -> int:
            with self.connection.begin() as whole:
                for statement in steps[:-1]:
                    send(self.connection, statement)
                found = self.entries(2 * FEW)
                if found.count >= 2 * FEW:
                    whole.rollback()
                    return 0
                changed = changed_elements(self.copying, found) if found.count else []
                for statement in (*(Statement(e.sql()) for e in changed), steps[-1]):
                    send(self.connection, statement)
                return 1

        while not self.insist(attempt):
            self.catch_up()

    def only_log(self) -> None:
        """Have writers write down what they change, and no more; nobody waits for that."""
        self.send(transaction(ddl.SetWatcher(self.copying)))

    def entries(self, limit: int) -> catalog.Entries:
        """Look at the oldest entries of the log; in a transaction."""
        copying = self.copying
        return catalog.read_entries(self.connection, *copying.log, copying.key, limit)

    def send(self, batch: Batch) -> int:
        """Send a transaction until its locks are had."""

        def attempt() -> int:
            with self.connection.begin():
                return sum(max(send(self.connection, statement), 0) for statement in batch.statements)

        return self.insist(attempt)

    def insist(self, attempt: Callable[[], int], relations: Sequence[int] = ()) -> int:
        """Try until locks are had; errors name this copy."""
        return insist(
            attempt,
            self.connection,
            table=self.table,
            what=self.what,
            relations=relations or [self.copying.origin_oid],
            give_up_at=time.monotonic() + PATIENCE,
        )

    def rest(self) -> None:
        """Let others have the disk."""
        if self.pace.rest:
            pause(self.connection, self.pace.rest)

    def failed(self, problem: str, remedy: str) -> PartitionError:
        """Return the error that says why it cannot go on."""
        return SplitFailed(table=self.table, problem=problem, remedy=remedy)


def _changed_meanwhile(failed: WorkFailed) -> bool:
    cause = failed.__cause__
    return isinstance(cause, DBAPIError) and sqlstate(cause) in _CHANGED_MEANWHILE
