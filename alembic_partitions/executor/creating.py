"""A plan as the SQL that runs, and the running of it: one transaction a partition, never a long wait.

What :func:`render` returns is what :func:`create_partition` sends, byte for byte.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Container, Iterable, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import reason, sqlstate, takes_scripts
from alembic_partitions.errors import LockNotAvailable, StepFailed
from alembic_partitions.plan import Coverage, CreatePartition, ManagedTable, Plan
from alembic_partitions.sessions import autocommit, pause

from .statements import LOCK_TIMEOUT_MS, TRY_AGAIN, UNREACHED, Batch, Statement, remark, send
from .statements import script as batches_script

#: Longest wait for another process that is making partitions of the same table; nobody queues behind it.
TURN_TIMEOUT_MS = 2_000
#: The application_name under which tables are analyzed; what holds a lock by that name gives way.
UPKEEP = "alembic-partitions upkeep"

#: Partitions in one message: one round trip instead of six for each.
AT_ONCE = 30

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25  # seconds
# A look so young, in seconds, is as good as another: a competitor may come between that and the message, too.
_FRESH = 0.1
# A competitor made it first (or something else stands there): duplicate table, object, key, overlap.
LOST_RACE = {"42P07", "42710", "23505", "42P17"}


def render(
    step: CreatePartition, user: str | None = None, turn_timeout_ms: int = TURN_TIMEOUT_MS
) -> tuple[Statement, ...]:
    """Return the statements that make one partition, between BEGIN and COMMIT."""
    elements = [*_taking_turns(step, turn_timeout_ms), *_making(step, user)]
    return _statements(step, elements)


def _taking_turns(step: CreatePartition, timeout_ms: int) -> list[ddl.Element]:
    assert step.table.oid is not None
    return [ddl.SetLockTimeout(timeout_ms), ddl.LockParent(step.table.oid)]


def _making(step: CreatePartition, user: str | None) -> list[ddl.Element]:
    return [
        *ddl.distribution(step.table.traits.distributed),
        ddl.SetLockTimeout(LOCK_TIMEOUT_MS),
        *ddl.partition_elements(step, user),
    ]


def _statements(step: CreatePartition, elements: Iterable[ddl.Element]) -> tuple[Statement, ...]:
    return tuple(
        Statement(element.sql(), attach_locks(step.table) if isinstance(element, ddl.Attach) else "")
        for element in elements
    )


def script(plan: Plan, user: str | None = None) -> str:
    """Return a plan as a script that psql runs, saying why each partition is made and whom it locks."""
    said = "".join(f"{remark(str(finding))}\n" for finding in plan.findings)
    return said + _script_of(plan.steps, user)


def _script_of(
    steps: Sequence[CreatePartition], user: str | None, turn_timeout_ms: int = TURN_TIMEOUT_MS
) -> str:
    return "".join(
        batches_script(
            [Batch(render(step, user, turn_timeout_ms))],
            f"{step.table.schema}.{step.name}: {step.reason.value}",
        )
        for step in steps
    )


def create_next(
    connection: Connection,
    steps: Sequence[CreatePartition],
    *,
    user: str | None = None,
    give_up_at: float | None = None,
    looked_at: float = -math.inf,
) -> list[tuple[CreatePartition, bool]]:
    """Make the first of some partitions of one table: as many as go in one message while nothing is in the
    way, or else one, as :func:`create_partition` does and raises.

    :param connection: not in a transaction.
    :param looked_at: ``time.monotonic()`` when their names were free and the parent stood.
    :return: those that stand now, and whether it was us who made them.
    """
    several = steps[:AT_ONCE]
    made = 0
    if len(several) > 1 and takes_scripts(connection) and not any(step.is_renamed for step in several):
        made = _at_once(connection, several, user, _turn_timeout(give_up_at), looked_at)
    if made:
        return [(step, True) for step in several[:made]]
    return [(steps[0], create_partition(connection, steps[0], user=user, give_up_at=give_up_at))]


def _turn_timeout(give_up_at: float | None) -> int:
    """Return how long to wait for our turn, in milliseconds."""
    if give_up_at is None:
        return TURN_TIMEOUT_MS
    left = int((give_up_at - time.monotonic()) * 1000)
    return min(max(left, LOCK_TIMEOUT_MS), TURN_TIMEOUT_MS)


def _at_once(
    connection: Connection,
    steps: Sequence[CreatePartition],
    user: str | None,
    turn_timeout_ms: int,
    looked_at: float,
) -> int:
    """Send partitions in one message, as :func:`script` prints them, each a transaction of its own.

    Return how many of the first have been made by us: it ends with the first that fails, for any reason.
    """
    table, names = steps[0].table, [step.name for step in steps]
    try:
        with autocommit(connection):
            if time.monotonic() > looked_at + _FRESH:
                stand, parent = catalog.standing(connection, table.schema, names, table.name)
                if stand or parent != table.oid:
                    return 0
            try:
                send(connection, Statement(_script_of(steps, user, turn_timeout_ms)))
            except DBAPIError:
                if not connection.invalidated:
                    send(connection, Statement(ddl.Rollback().sql()))
                raise
    except DBAPIError as error:
        if connection.invalidated:
            some = f"{names[0]}, or one of those up to {names[-1]},"
            raise StepFailed(table=str(table), partition=some, reason=reason(error)) from error
        return _made_before(connection, steps, error)
    return len(steps)


def _made_before(connection: Connection, steps: Sequence[CreatePartition], error: DBAPIError) -> int:
    """Return how many of the first were made before the one that failed.

    Where a competitor was faster, what stands may be his: the name that the server tells, in whatever
    language, is that of the first which is not ours. What he makes after another failure counts as ours.
    """
    table = steps[0].table
    with connection.begin():
        stand = {(p.name, p.lower, p.upper) for p in catalog.partitions_of(connection, table)}
    if sqlstate(error) in LOST_RACE:
        told = [step for step in steps if step.name in str(error.orig)]
        steps = steps[: steps.index(max(told, key=lambda step: len(step.name)))] if told else ()
    missing = (n for n, step in enumerate(steps) if (step.name, step.lower, step.upper) not in stand)
    return next(missing, len(steps))


def create_partition(
    connection: Connection,
    step: CreatePartition,
    *,
    user: str | None = None,
    give_up_at: float | None = None,
    grace: float = 0.0,
    callers: Collection[int] = (),
) -> bool:
    """Make one partition; return whether it was us, not a competitor, who made it.

    :param connection: not in a transaction; each try is one, committed.
    :param give_up_at: ``time.monotonic()`` after which there is no further try (default: 10 s from now).
    :param grace: seconds to wait longer where nobody but competitors for the same table is in the way.
    :param callers: backends that wait for us. When one of *them* holds what ATTACH needs, waiting is futile.
    :raises LockNotAvailable: the locks were not to be had; the error names who holds them.
    :raises StepFailed: PostgreSQL refused, or something else stands where the partition should.
    """
    deadline = time.monotonic() + 10 if give_up_at is None else give_up_at
    wait = _FIRST_PAUSE
    if callers:
        # Before we queue for our turn: the caller's locks are in the way of whoever has it, too.
        _refuse_if_hopeless(_holders(connection, step), step, callers)
    while True:
        try:
            return _attempt(connection, step, user, _turn_timeout(deadline + grace))
        except DBAPIError as error:
            code = sqlstate(error)
            if code in LOST_RACE:
                return _verified(connection, step, error)
            failed = StepFailed(table=str(step.table), partition=step.name, reason=reason(error))
            if code not in TRY_AGAIN:
                raise failed from error
        # At a midnight that many meet at once the window is there long before the last of them has its turn.
        if _made_meanwhile(connection, step):
            return False
        holders = _holders(connection, step)
        _refuse_if_hopeless(holders, step, callers)
        if any(holder.application == UPKEEP for holder in holders):
            with connection.begin():
                catalog.cancel_upkeep(connection, step.table.oid or 0, UPKEEP)
        # With nobody in the way but competitors, the window is a moment from being there.
        if time.monotonic() + wait > deadline + (0 if holders else grace):
            raise failed if code == UNREACHED else _not_available(holders, step)
        pause(connection, random.uniform(wait / 2, wait))
        wait = min(wait * 2, _LONGEST_PAUSE)


def _holders(connection: Connection, step: CreatePartition) -> list[catalog.Blocker]:
    with connection.begin():
        return catalog.blockers(connection, step.table.oid or 0)


def _refuse_if_hopeless(
    holders: list[catalog.Blocker], step: CreatePartition, callers: Container[int]
) -> None:
    if any(holder.pid in callers for holder in holders if holder.pid is not None):
        raise _not_available(holders, step)


def _not_available(holders: list[catalog.Blocker], step: CreatePartition) -> LockNotAvailable:
    told = "; ".join(map(str, holders)) or _nobody_here(step.table)
    return LockNotAvailable(table=str(step.table), reason=told)


def _nobody_here(table: ManagedTable) -> str:
    if table.traits.distributed:
        return (
            "another process is making partitions of it, or holds one of its shards on a worker"
            " (SELECT * FROM citus_locks)"
        )
    return "another process is making partitions of it"


def _attempt(connection: Connection, step: CreatePartition, user: str | None, turn_timeout_ms: int) -> bool:
    with connection.begin():
        for statement in _statements(step, _taking_turns(step, turn_timeout_ms)):
            send(connection, statement)
        # Ours is the turn now: a competitor may just have finished the same partition. Its usual name may be
        # taken because it had when ours was chosen.
        stands, parent = catalog.standing(connection, step.table.schema, [step.name], step.table.name)
        if parent != step.table.oid:
            raise StepFailed(
                table=str(step.table),
                partition=step.name,
                reason="the table was dropped or replaced meanwhile",
            )
        if (stands or step.is_renamed) and _covered(connection, step):
            return False
        for statement in _statements(step, _making(step, user)):
            send(connection, statement)
    return True


def _covered(connection: Connection, step: CreatePartition) -> bool:
    return Coverage.of(catalog.partitions_of(connection, step.table)).spans(step.lower, step.upper)


def _verified(connection: Connection, step: CreatePartition, error: DBAPIError) -> bool:
    """A lost race is success when the catalog shows the window covered."""
    if _made_meanwhile(connection, step):
        return False
    raise StepFailed(table=str(step.table), partition=step.name, reason=reason(error)) from error


def _made_meanwhile(connection: Connection, step: CreatePartition) -> bool:
    with connection.begin():
        return _covered(connection, step)


def attach_locks(table: ManagedTable) -> str:
    """Say which locks ATTACH takes that others could notice."""
    locks = [f"SHARE UPDATE EXCLUSIVE on {table}"]
    locks += [f"SHARE ROW EXCLUSIVE on {name} (foreign key)" for name in table.traits.key_tables]
    locks += [f"ACCESS EXCLUSIVE on {p.schema}.{p.name} (DEFAULT)" for p in table.partitions if p.is_default]
    return "; ".join([*locks, *shard_locks(table)])


def shard_locks(table: ManagedTable) -> list[str]:
    """Say which locks are taken on Citus' workers beside."""
    return ["the same on each of its shards, one after the other"] if table.traits.distributed else []
