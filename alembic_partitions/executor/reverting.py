"""A partitioned table made plain: the partition that holds all its rows takes its name, and all that hangs
on it."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ClauseElement

from alembic_partitions import ddl
from alembic_partitions.ddl import carrying
from alembic_partitions.plan import Belongings, Reversal

from .converting import CONCURRENT_LOCK_TIMEOUT_MS, Locked, Step, drop_index, exclusively, referred_first
from .statements import Batch, Statement, alone


def reversal_steps(reversal: Reversal, forgotten: ClauseElement | None, user: str | None) -> list[Step]:
    """Return what is left to do, the swap last.

    :param forgotten: what deletes the policy, where there is one.
    :param user: the role that runs it.
    """
    swap = Step(f"the swap: {reversal.heir} becomes {reversal.table}", _swap(reversal, forgotten, user))
    return [*key_index_steps(reversal), swap]


def key_index_steps(reversal: Reversal) -> Iterator[Step]:
    """Yield what builds the unique index for the primary key to be, if one has to be built."""
    if reversal.key_index is not None and reversal.index_is_broken:
        dropped = drop_index(reversal.heir, reversal.key_index)
        yield Step("drop what is left of a unique index that was cut off", dropped)
    if reversal.key_index is not None and not reversal.has_index:
        columns = ", ".join(reversal.primary_key)
        yield Step(f"a unique index for the primary key ({columns}) to be", _indexed(reversal))


def _indexed(reversal: Reversal) -> Batch:
    assert reversal.key_index is not None
    before = reversal.table.primary_key
    assert before is not None
    index = carrying.build_unique_index(
        reversal.partition, reversal.key_index, reversal.primary_key, before.included, before.options
    )
    locks = f"SHARE UPDATE EXCLUSIVE on {reversal.heir}, beside readers and writers"
    return alone(Statement(index.sql(), locks), lock_timeout_ms=CONCURRENT_LOCK_TIMEOUT_MS)


def _swap(reversal: Reversal, forgotten: ClauseElement | None, user: str | None) -> Batch:
    table, goal, origin = reversal.table, reversal.goal, reversal.origin
    lock = ddl.LockAgainstAll(table.schema, table.name, only=False)
    detach = carrying.detach(goal, reversal.partition)
    drop = ddl.DropTable(*origin)
    keys = "; ".join(f"ACCESS EXCLUSIVE on {key.refers_to} (foreign key)" for key in table.foreign_keys)
    return exclusively(
        [goal, reversal.partition],
        ddl.PlainNames(),
        *referred_first(table),
        Locked(lock.sql(), f"ACCESS EXCLUSIVE on {table} and its partitions, until this transaction ends"),
        carrying.confirm_empty(table.oid, reversal.heir.oid, str(table)),
        Statement(detach.sql(), keys),
        carrying.rename_table(goal, reversal.aside),
        *carrying.settle(reversal.partition, goal),
        *_alike(reversal, user),
        *hang(table, origin, goal),
        Statement(drop.sql(), keys),
        *_named(reversal),
        *dress(table, goal, user),
        *(carrying.drop_not_null(goal, column) for column in reversal.nullable),
        *([] if forgotten is None else [Statement(ddl.written(forgotten))]),
    )


def _alike(reversal: Reversal, user: str | None) -> Iterator[ddl.Element]:
    """What was changed of the table alone since the heir was its partition."""
    table, heir, goal = reversal.table, reversal.heir, reversal.goal
    if heir.owner != table.owner or table.owner != user:
        yield carrying.set_owner(goal, table.owner)
    own = {column.name: column for column in heir.columns}
    changed = [c for c in table.columns if c.name in own and c.options != own[c.name].options]
    yield from carrying.columns(goal, changed)
    for column in table.columns:
        if column.name in own and column.comment != own[column.name].comment:
            yield carrying.comment_on_column(goal, column)
    for policy in heir.policies:
        yield carrying.drop_policy(goal, policy)


def hang(table: Belongings, origin: carrying.Name, goal: carrying.Name) -> Iterator[ddl.Element | Statement]:
    """Hang on ``goal``, which bears the table's name by now, what would go with ``origin`` otherwise."""
    for column in table.identities:
        yield carrying.move_identity(origin, goal, column)
    for name, sequence in table.sequences:
        yield carrying.own_sequence(sequence, goal, name)
    for view in table.views:
        yield Statement(carrying.redefine_view(view).sql(), f"ACCESS EXCLUSIVE on {view.schema}.{view.name}")
    for publication in table.publications:
        if publication.explicit:
            yield from carrying.publish(publication, origin, goal)
    yield carrying.copy_privileges(origin, goal)


def dress(table: Belongings, goal: carrying.Name, user: str | None) -> Iterator[ddl.Element]:
    """Give ``goal`` what goes by the table's name alone, once nothing else bears these names."""
    for statistics in table.statistics:
        yield from carrying.create_statistics(statistics, user)
    for trigger in table.triggers:
        yield from carrying.create_trigger(goal, trigger)
    for policy in table.policies:
        yield carrying.create_policy(goal, policy)
    yield from carrying.row_security(goal, table.row_security, table.force_row_security)
    yield from carrying.replica_identity(goal, table)
    yield carrying.comment_on_table(goal, table.comment)
    yield from carrying.comments(goal, table, itself=False)


def _named(reversal: Reversal) -> Iterator[ddl.Element]:
    """The heir's indexes take the names of the table's, its statistics give way to the table's."""
    goal = reversal.goal
    twins = {statistics.covers for statistics in reversal.table.statistics}
    for statistics in reversal.heir.statistics:
        if statistics.covers in twins:
            yield carrying.drop_statistics((statistics.schema, statistics.name))
    for index in reversal.heir.indexes:
        if index.parent is None:
            continue
        if index.kind == "p" and reversal.key_index is not None:
            yield carrying.drop_constraint(goal, index.name)
            yield carrying.constrain_by(goal, index.parent, index, reversal.key_index)
        elif index.name != index.parent:
            yield carrying.rename_index(goal, index, index.parent)
