"""A plain table turned into its own first partition: three steps beside readers and writers, then a short
transaction that nobody can be beside.

What is sent is what was planned, from a reading of the table taken before; with the table locked it is read
once more, and if anything has changed since nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ClauseElement, Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, ddl
from alembic_partitions.ddl import carrying
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import LockNotAvailable, WorkFailed
from alembic_partitions.plan import (
    UNTIL_CHECK,
    Belongings,
    Conversion,
    CreatePartition,
    ManagedTable,
    Traits,
    left_index,
)

from .statements import LOCK_TIMEOUT_MS, TRY_AGAIN, Batch, Statement, alone, apply, insist, send, transaction

#: Seconds that the locks of the last step are tried for in one run.
PATIENCE = 60.0
#: Longest wait for a lock that nobody who reads or writes waits behind.
BESIDE_TIMEOUT_MS = 5_000
#: CONCURRENTLY waits for transactions that began before it, this long for each; nobody waits behind it, and
#: what has been built by then would be lost.
CONCURRENT_LOCK_TIMEOUT_MS = 6 * 3_600_000


_NOT_UNIQUE = "23505"


class Changed(Exception):
    """The table is not what it was when this was planned."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a conversion, which stands by itself: what comes before it stays done."""

    title: str
    batch: Batch


def conversion_steps(
    conversion: Conversion,
    windows: Sequence[CreatePartition],
    settled: ClauseElement,
    user: str | None = None,
) -> list[Step]:
    """Return what is left to do of a conversion, the swap last.

    :param windows: the first of the new windows, made in the swap.
    :param settled: what writes the policy down.
    :param user: the role that runs it.
    """
    where = str(conversion.table)
    steps = []
    if conversion.key_index is not None and conversion.index_is_broken:
        dropped = drop_index(conversion.table, conversion.key_index)
        steps.append(Step("drop what is left of a unique index that was cut off", dropped))
    if conversion.key_index is not None and not conversion.has_index:
        columns = ", ".join(conversion.primary_key)
        steps.append(Step(f"a unique index for the primary key ({columns}) to be", _indexed(conversion)))
    if conversion.is_stale:
        steps.append(Step("drop the CHECK of an earlier conversion", _unchecked(conversion.table)))
    if not conversion.is_checked:
        told = f"a CHECK that keeps rows from {conversion.until} on out of {where}; rows there are not read"
        steps.append(Step(told, _checked(conversion)))
    if not conversion.is_proven:
        steps.append(Step(f"the CHECK is proven: {where} is read through once", _proven(conversion)))
    return [*steps, Step(f"the swap: {where} becomes partitioned", swap(conversion, windows, settled, user))]


def our_tables(home: str) -> Step:
    """Return what makes partition_config and partition_runs, for a script."""
    return Step("the tables that policies and runs are kept in", transaction(ddl.EnsureOurTables(home)))


def abort_steps(table: Belongings) -> list[Step]:
    """Return what takes back what a conversion that was cut off has made."""
    steps, index = [], left_index(table)
    if table.check(UNTIL_CHECK) is not None:
        steps.append(Step(f"drop the CHECK {UNTIL_CHECK}", _unchecked(table)))
    if index is not None:
        steps.append(Step(f"drop the unique index {index}", drop_index(table, index)))
    return steps


def run_step(connection: Connection, tables: Sequence[Belongings], step: Step) -> None:
    """Take one step.

    :param connection: not in a transaction.
    :param tables: what the step was planned by, the table that it is about first.
    :raises LockNotAvailable: its locks were not to be had; who holds them is named.
    :raises WorkFailed: PostgreSQL refused.
    :raises Changed: with the table locked it is not what it was; nothing was done.
    """
    table, what = str(tables[0]), step.title
    if not step.batch.in_transaction:
        try:
            apply(connection, step.batch)
        except DBAPIError as error:
            if sqlstate(error) in TRY_AGAIN:
                told = reason(error) + _holders(connection, tables[0].oid)
                raise LockNotAvailable(table=table, reason=told) from error
            told = reason(error)
            if sqlstate(error) == _NOT_UNIQUE:
                told += ": several rows bear the same; to keep the key that is there say --primary-key"
            raise WorkFailed(table=table, what=what, reason=told) from error
        return
    insist(
        lambda: _attempt(connection, tables, step.batch),
        connection,
        table=table,
        what=what,
        relations=[table.oid for table in tables],
        give_up_at=time.monotonic() + PATIENCE,
    )


def _attempt(connection: Connection, tables: Sequence[Belongings], batch: Batch) -> int:
    with connection.begin():
        for statement in batch.statements:
            send(connection, statement)
            if isinstance(statement, Locked) and not as_planned(connection, tables):
                raise Changed
    return 0


def as_planned(connection: Connection, tables: Sequence[Belongings]) -> bool:
    """Tell whether tables are what they were; in a transaction, under ``ddl.PlainNames``."""
    return all(catalog.read_belongings(connection, t.schema, t.name) == t for t in tables)


def _holders(connection: Connection, oid: int) -> str:
    with connection.begin():
        told = "; ".join(map(str, catalog.holders(connection, [oid])))
    return f" ({told})" if told else ""


def exclusively(tables: Sequence[carrying.Name], *elements: ddl.Element | Statement) -> Batch:
    """Return a transaction that keeps everybody out of tables for a moment, once no VACUUM is in the way."""
    return transaction(
        *(
            Statement(
                carrying.lock_beside(table).sql(),
                f"SHARE UPDATE EXCLUSIVE on {'.'.join(table)}, beside readers and writers",
            )
            for table in tables
        ),
        ddl.SetLockTimeout(LOCK_TIMEOUT_MS),
        *elements,
        lock_timeout_ms=BESIDE_TIMEOUT_MS,
    )


def referred_first(table: Belongings) -> list[Statement]:
    """Return the locks on tables that a foreign key refers to. ATTACH and DROP take them later; but then
    whoever has written there and comes to write here would be in our way, and we in theirs."""
    return [
        Statement(ddl.LockReferred(name).sql(), f"ACCESS EXCLUSIVE on {name} (foreign key)")
        for name in dict.fromkeys(key.refers_to for key in table.foreign_keys)
    ]


class Locked(Statement):
    """The lock after which nothing can change any more."""


def _indexed(conversion: Conversion) -> Batch:
    table, before = conversion.table, conversion.table.primary_key
    assert conversion.key_index is not None
    assert before is not None
    element = carrying.build_unique_index(
        conversion.goal, conversion.key_index, conversion.primary_key, before.included, before.options
    )
    locks = f"SHARE UPDATE EXCLUSIVE on {table}, beside readers and writers; waits for older transactions"
    return alone(Statement(element.sql(), locks), lock_timeout_ms=CONCURRENT_LOCK_TIMEOUT_MS)


def drop_index(table: Belongings, index: str) -> Batch:
    """Return what drops an index beside readers and writers."""
    element = ddl.DropIndex(table.schema, index)
    locks = f"SHARE UPDATE EXCLUSIVE on {table}; waits for older transactions"
    return alone(Statement(element.sql(), locks), lock_timeout_ms=CONCURRENT_LOCK_TIMEOUT_MS)


def _checked(conversion: Conversion) -> Batch:
    locks = f"ACCESS EXCLUSIVE on {conversion.table}, for a moment: no row is read"
    goal = conversion.goal
    check = carrying.add_until(
        goal, UNTIL_CHECK, conversion.policy.key, conversion.until, conversion.key_type
    )
    comment = carrying.comment_on_constraint(goal, UNTIL_CHECK, conversion.told)
    return exclusively([goal], Statement(check.sql(), locks), comment)


def _unchecked(table: Belongings) -> Batch:
    locks = f"ACCESS EXCLUSIVE on {table}, for a moment"
    name = table.schema, table.name
    return exclusively([name], Statement(carrying.drop_constraint(name, UNTIL_CHECK).sql(), locks))


def _proven(conversion: Conversion) -> Batch:
    locks = f"SHARE UPDATE EXCLUSIVE on {conversion.table}, beside readers and writers"
    return transaction(
        ddl.SetStatementTimeout(0),
        Statement(carrying.validate(conversion.goal, UNTIL_CHECK).sql(), locks),
        lock_timeout_ms=BESIDE_TIMEOUT_MS,
    )


# -- the swap -------------------------------------------------------------------------------------------


def swap(
    conversion: Conversion, windows: Sequence[CreatePartition], settled: ClauseElement, user: str | None
) -> Batch:
    """Return the transaction in which the old table gives its name to a partitioned one and goes below it."""
    table, goal = conversion.table, conversion.goal
    lock = ddl.LockAgainstAll(table.schema, table.name)
    making = [element for step in windows for element in ddl.partition_elements(step, user)]
    return exclusively(
        [goal],
        ddl.PlainNames(),
        *referred_first(table),
        Locked(lock.sql(), f"ACCESS EXCLUSIVE on {table}, until the end of this transaction"),
        *_stepped_aside(conversion),
        *_parent(conversion, user),
        *_taken_over(conversion),
        *_attached(conversion),
        *(
            Statement(carrying.redefine_view(view).sql(), f"ACCESS EXCLUSIVE on {view.schema}.{view.name}")
            for view in table.views
        ),
        carrying.comment_on_table(conversion.origin, conversion.mark),
        *carrying.comments(goal, table),
        *making,
        Statement(ddl.written(settled)),
    )


def _stepped_aside(conversion: Conversion) -> Iterator[ddl.Element]:
    """The old table gives up its name, and its indexes theirs."""
    table, origin = conversion.table, conversion.origin
    key = table.column(conversion.policy.key)
    if key is not None and not key.not_null:  # first: PostgreSQL 18 names it after the table
        yield carrying.set_not_null(conversion.goal, key.name)
    yield carrying.rename_table(conversion.goal, conversion.first)
    for trigger in table.triggers:
        yield carrying.drop_trigger(origin, trigger)
    for policy in table.policies:
        yield carrying.drop_policy(origin, policy)
    if table.force_row_security:
        yield carrying.unforce_row_security(origin)
    renamed = dict(conversion.renamed)
    for index in table.indexes:
        if index.name == conversion.key_index:
            continue
        if index.kind == "p" and conversion.key_index is not None:
            yield carrying.drop_constraint(origin, index.name)
            yield carrying.constrain_by(origin, renamed[index.name], index, conversion.key_index)
            if table.replica_identity == "i" and table.replica_index == index.name:
                yield carrying.identify_by(origin, renamed[index.name])
        else:
            yield carrying.rename_index(origin, index, renamed[index.name])
    for statistics in table.statistics:
        yield carrying.rename_statistics((statistics.schema, statistics.name), renamed[statistics.name])


def _parent(conversion: Conversion, user: str | None) -> Iterator[ddl.Element]:
    """A partitioned table of the old name, with indexes of the old names."""
    table, goal = conversion.table, conversion.goal
    yield carrying.create_like(conversion.origin, goal, conversion.policy.key, table)
    yield carrying.drop_constraint(goal, UNTIL_CHECK)
    if table.owner != user:
        yield carrying.set_owner(goal, table.owner)
    yield from carrying.columns(goal, table.columns)
    for index in table.indexes:
        if index.name == conversion.key_index:
            continue
        if index.kind == "p" and conversion.primary_key:
            columns = conversion.primary_key
            yield carrying.add_constraint(goal, index.name, carrying.key_definition(index, columns))
        elif index.kind is not None:
            yield carrying.add_constraint(goal, index.name, carrying.key_definition(index))
        else:
            yield carrying.create_index(goal, index)
    for statistics in table.statistics:
        yield from carrying.create_statistics(statistics, user)
    yield from carrying.replica_identity(goal, table)


def _taken_over(conversion: Conversion) -> Iterator[ddl.Element | Statement]:
    """What hung on the old table hangs on the new one."""
    table, goal, origin = conversion.table, conversion.goal, conversion.origin
    for column in table.identities:
        yield carrying.move_identity(origin, goal, column)
    for name, sequence in table.sequences:
        yield carrying.own_sequence(sequence, goal, name)
    for key in table.foreign_keys:
        locks = f"SHARE ROW EXCLUSIVE on {key.refers_to} (foreign key)"
        yield Statement(carrying.add_constraint(goal, key.name, key.definition).sql(), locks)
    for trigger in table.triggers:
        yield from carrying.create_trigger(goal, trigger)
    for policy in table.policies:
        yield carrying.create_policy(goal, policy)
    if table.row_security or table.force_row_security:
        yield from carrying.row_security(goal, table.row_security, table.force_row_security)
    yield carrying.copy_privileges(origin, goal)
    for publication in table.publications:
        if publication.explicit:
            yield from carrying.publish(publication, origin, goal)


def _attached(conversion: Conversion) -> Iterator[ddl.Element | Statement]:
    """The old table becomes the first partition; its CHECK proves that, so no row is read."""
    attach = carrying.attach_until(conversion.goal, conversion.origin, conversion.until, conversion.key_type)
    keys = [f"ACCESS EXCLUSIVE on {key.refers_to} (foreign key)" for key in conversion.table.foreign_keys]
    yield Statement(attach.sql(), "; ".join(dict.fromkeys(keys)))
    yield carrying.drop_constraint(conversion.origin, UNTIL_CHECK)


def table_to_be(conversion: Conversion) -> ManagedTable:
    """Return the partitioned table as it will be, for planning its first windows."""
    table = conversion.table
    return ManagedTable(
        table.schema,
        table.name,
        conversion.policy,
        oid=0,
        key_type=conversion.key_type,
        traits=Traits(
            owner=table.owner,
            replica_identity=table.replica_identity,
            row_security=table.row_security,
            statistics=tuple((c.name, c.statistics) for c in table.columns if c.statistics is not None),
            access_method=table.access_method,
            tablespace=table.tablespace,
        ),
    )
