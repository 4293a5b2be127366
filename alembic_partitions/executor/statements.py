"""Statements as they are sent, and the sending of them: bounded waits, then another try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, WorkFailed
from alembic_partitions.sessions import autocommit, pause

#: Longest wait for a lock that others queue behind (a table at the other end of a foreign key).
LOCK_TIMEOUT_MS = 40

#: What a server says itself, on a session that lives, where one of Citus' workers was not to be reached.
UNREACHED = "08006"
# The lock was not had in time (ours, or the role's statement_timeout), or a deadlock was broken: try again.
TRY_AGAIN = {"55P03", "57014", "40P01", UNREACHED}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as it is sent, with the locks it takes that others could notice."""

    sql: str
    locks: str = ""
    #: What a script says beside it.
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Statements that belong together: one transaction, or each by itself where PostgreSQL allows none."""

    statements: tuple[Statement, ...]
    in_transaction: bool = True
    #: Sent after the others, come what may.
    closing: tuple[Statement, ...] = ()

    def sql(self) -> str:
        """Return the batch as psql runs it."""
        lines = ["BEGIN;"] if self.in_transaction else []
        for statement in (*self.statements, *self.closing):
            lines += [remark(f"locks: {statement.locks}")] if statement.locks else []
            lines += [remark(statement.remark)] if statement.remark else []
            lines.append(f"{statement.sql};")
        lines += ["COMMIT;"] if self.in_transaction else []
        return "".join(f"{line}\n" for line in lines)


def remark(text: str) -> str:
    """Return a comment of one line: names come from the catalog, and a line break in one would end it."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"-- {text}"


def transaction(
    *elements: ddl.Element | Statement,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
    distributed: bool = False,
) -> Batch:
    """Return a transaction that waits for no lock longer than its time-out.

    :param distributed: whether Citus has distributed what it changes.
    """
    opening = [*ddl.distribution(distributed), ddl.SetLockTimeout(lock_timeout_ms)]
    return Batch(tuple(e if isinstance(e, Statement) else Statement(e.sql()) for e in (*opening, *elements)))


def alone(
    *elements: ddl.Element | Statement,
    lock_timeout_ms: int,
    statement_timeout_ms: int = 0,
    reset: Collection[str] = (),
) -> Batch:
    """Return statements that PostgreSQL runs in no transaction, with bounds that hold for the session."""
    bounds = {"lock_timeout": lock_timeout_ms, "statement_timeout": statement_timeout_ms}
    opening = [ddl.SetBound(name, milliseconds) for name, milliseconds in bounds.items()]
    return Batch(
        tuple(e if isinstance(e, Statement) else Statement(e.sql()) for e in (*opening, *elements)),
        in_transaction=False,
        closing=tuple(Statement(ddl.ResetBound(name).sql()) for name in (*bounds, *reset)),
    )


def send(connection: Connection, statement: Statement) -> int:
    """Send one statement; return how many rows it touched."""
    # Without parameters the driver leaves "%" alone, so what was printed is what is sent.
    return connection.exec_driver_sql(statement.sql, execution_options={"no_parameters": True}).rowcount


def apply(connection: Connection, batch: Batch) -> int:
    """Send a batch once; return how many rows its statements touched in all.

    :param connection: not in a transaction.
    """
    if batch.in_transaction:
        with connection.begin():
            return sum(max(send(connection, statement), 0) for statement in batch.statements)
    with autocommit(connection):
        try:
            return sum(max(send(connection, statement), 0) for statement in batch.statements)
        finally:
            if not connection.invalidated:  # one that has died holds no settings
                for statement in batch.closing:
                    with suppress(SQLAlchemyError):
                        send(connection, statement)


def insist(
    attempt: Callable[[], int],
    connection: Connection,
    *,
    table: str,
    what: str,
    relations: Collection[int] = (),
    give_up_at: float | None = None,
) -> int:
    """Call ``attempt`` until its locks are had; each wait is short, and nobody queues behind us in between.

    :param relations: the OIDs whose holders are named if they are not.
    :param give_up_at: ``time.monotonic()`` after which there is no further try (default: 10 s from now).
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused.
    """
    deadline = time.monotonic() + 10 if give_up_at is None else give_up_at
    wait = _FIRST_PAUSE
    while True:
        try:
            return attempt()
        except DBAPIError as error:
            is_late = time.monotonic() + wait > deadline
            if sqlstate(error) not in TRY_AGAIN or (is_late and sqlstate(error) == UNREACHED):
                raise WorkFailed(table=table, what=what, reason=reason(error)) from error
            if is_late:
                told = _told(connection, relations) or reason(error)
                raise LockNotAvailable(table=table, reason=told) from error
        pause(connection, random.uniform(wait / 2, wait))
        wait = min(wait * 2, _LONGEST_PAUSE)


def script(batches: Iterable[Batch], why: str = "") -> str:
    """Return batches as one script, saying why."""
    return (f"{remark(why)}\n" if why else "") + "".join(batch.sql() for batch in batches)


def _told(connection: Connection, relations: Collection[int]) -> str:
    with connection.begin():
        return "; ".join(map(str, catalog.holders(connection, relations)))
