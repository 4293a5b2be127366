"""A partition that gives way to its windows, beside readers and writers.

The rows are copied into windows that nobody can see yet (see :mod:`.copying`), and changes are caught up
with. Then one short transaction puts the windows in the place of the partition, a group of them at a time as
one; and others, as short, make the windows of each group partitions of the table itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from alembic_partitions import ddl
from alembic_partitions.ddl import carrying
from alembic_partitions.plan import CreatePartition, Group, How, ManagedTable, Piece, Reason, Split

from . import copying as engine
from .converting import BESIDE_TIMEOUT_MS
from .creating import TURN_TIMEOUT_MS
from .statements import Batch, Statement, transaction

#: Longest statement of a transaction that keeps everybody out; each takes milliseconds.
SWAP_TIMEOUT_MS = 5_000
# Tables that one transaction drops at most, for the locks that it takes.
_MOST_DROPPED = 100
_SOME_TIME = datetime(2000, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class SplitStep:
    """One step of a split, as a script shows it."""

    title: str
    batch: Batch


def copying_of(split: Split) -> ddl.Copying:
    """Return what is copied where."""
    assert split.table.policy is not None
    return ddl.Copying(
        origin=(split.source.schema, split.source.name),
        origin_oid=split.source.oid,
        target=(split.schema, split.staging),
        log=(split.schema, split.log),
        state=(split.schema, split.state),
        key=split.table.policy.key,
        columns=split.facts.columns,
        compared=split.facts.compared,
        identity=split.facts.identity,
    )


def turn(split: Split, *elements: ddl.Element | Statement) -> Batch:
    """Return a transaction that begins when nobody else makes or removes partitions of the table."""
    assert split.table.oid is not None
    opening = [ddl.LockParent(split.table.oid), ddl.SetLockTimeout(split.wait_ms)]
    return transaction(*opening, *elements, lock_timeout_ms=TURN_TIMEOUT_MS)


# -- the tables that a split needs ----------------------------------------------------------------------


def prepare_batches(split: Split, user: str | None) -> Iterator[SplitStep]:
    """Yield what makes the windows to be, and has changes written down."""
    copying, owner = copying_of(split), split.table.traits.owner
    other = owner if owner != user else None
    log, state = (split.schema, split.log), (split.schema, split.state)
    helpers = [
        ddl.CreateStaging(split),
        ddl.MarkStaging(split),
        ddl.CreateLog(copying),
        ddl.NumberLog(copying),
        ddl.MarkHelper(log),
        ddl.CreateState(copying),
        ddl.MarkHelper(state),
    ]
    if other is not None:
        helpers += [ddl.ChangeOwner(*name, other) for name in ((split.schema, split.staging), log, state)]
    yield SplitStep(
        "tables to copy into, to log changes in, and to note progress in",
        turn(split, ddl.ConfirmSplit(split), *helpers),
    )
    for group in split.groups:
        first, last = group.pieces[0].name, group.pieces[-1].name
        yield SplitStep(f"windows {first} to {last}", transaction(*_group(split, group, user)))
    yield SplitStep("a VACUUM that is under way gives way", calm_batch(split))
    yield SplitStep(
        "from here on each change is logged",
        turn(split, ddl.ConfirmSplit(split), *engine.watch_elements(copying, other)),
    )


def _group(split: Split, group: Group, user: str | None) -> Iterator[ddl.Element]:
    key_type, schema = split.table.grid.key_type, split.schema
    yield ddl.CreateGroup(split, group.name)
    yield ddl.MarkGroup(schema, group.name)
    yield from _traits(split.table, group.name, user)
    bound = ddl.bound_of(group.lower, group.upper, key_type)
    yield ddl.Reattach(schema, group.name, ddl.qualified(schema, split.staging), bound)
    for piece in group.pieces:
        made = _step(split.table, piece.name)
        yield ddl.CreateLike(made)
        yield ddl.MarkWindow(schema, piece.name)
        if split.table.traits.exclusions:
            yield ddl.DropExclusions(made)
        yield from _traits(split.table, piece.name, user)
        yield _proof(split, piece)
        bound = ddl.bound_of(piece.lower, piece.upper, key_type)
        yield ddl.Reattach(schema, piece.name, ddl.qualified(schema, group.name), bound)


def _traits(table: ManagedTable, name: str, user: str | None) -> list[ddl.Element]:
    """What LIKE and ATTACH leave behind, for a table that is not to be attached to the parent yet."""
    of_its_making = (ddl.CreateLike, ddl.MarkPartition, ddl.DropExclusions, ddl.Attach, ddl.SetReplicaIndex)
    elements = ddl.partition_elements(_step(table, name), user)
    return [element for element in elements if not isinstance(element, of_its_making)]


def _step(table: ManagedTable, name: str) -> CreatePartition:
    """A partition by its name; its bounds are not asked for by what it is used for here."""
    nowhere = table.grid.key_at(_SOME_TIME)
    return CreatePartition(table, name, nowhere, nowhere, Reason.SPLIT)


def _proof(split: Split, piece: Piece) -> ddl.Element:
    """A CHECK of what the bounds will be, so that no ATTACH reads a row."""
    policy = split.table.policy
    assert policy is not None
    return ddl.ProveBound(
        split.schema, piece.name, policy.key, split.table.grid.key_type, piece.lower, piece.upper
    )


def confirm_batch(split: Split) -> Batch:
    """Return what makes sure that a split which was cut off can go on."""
    return transaction(ddl.ConfirmSplit(split, begun=True))


# -- foreign keys: windows get them once they are in step, or a copy that lags behind would keep writers from
# -- deleting what it still refers to


def key_batches(split: Split, has: Mapping[str, Mapping[str, bool]]) -> Iterator[SplitStep]:
    """Yield what gives each window the foreign keys of the table.

    :param has: the foreign keys that windows have, and whether each was checked.
    """
    tables = ", ".join(split.table.traits.key_tables)
    for piece in split.pieces:
        mine = has.get(piece.name, {})
        for key in split.facts.foreign_keys:
            if key.name not in mine:
                add = ddl.KeyNotValid(split.schema, piece.name, key.name, key.definition)
                locks = f"SHARE ROW EXCLUSIVE on {tables} (foreign key)"
                added = transaction(Statement(add.sql(), locks))
                yield SplitStep(f"foreign key {key.name} of {piece.name}", added)
            if not mine.get(key.name, False):
                check = ddl.ValidateKey(split.schema, piece.name, key.name)
                locks = f"ROW SHARE on {tables}"
                checked = transaction(ddl.SetStatementTimeout(0), Statement(check.sql(), locks))
                yield SplitStep(f"foreign key {key.name} of {piece.name} is checked", checked)


# -- the swap, and what follows -------------------------------------------------------------------------


def calm_batch(split: Split) -> Batch:
    """Return what an autovacuum of the partition gives way to. It does so for who waits longer than
    deadlock_timeout, which no lock that others queue behind is asked for; and does not come back at once."""
    source = split.source.schema, split.source.name
    locks = f"SHARE UPDATE EXCLUSIVE on {'.'.join(source)}, beside readers and writers"
    return transaction(
        Statement(carrying.lock_beside(source).sql(), locks), lock_timeout_ms=BESIDE_TIMEOUT_MS
    )


def keep_out(split: Split, keys_first: bool = False) -> Batch:
    """Return how a transaction begins that keeps everybody out of the table.

    With foreign keys it will need the tables that they refer to as well. Whoever has used one of these and
    waits for the table now is waited for in vain, and the other way round: so each is tried first in turn.
    """
    lock = ddl.LockAgainstAll(split.schema, split.table.name)
    parent = Statement(lock.sql(), f"ACCESS EXCLUSIVE on {split.table}, until the end of this transaction")
    referred = split.table.traits.key_tables if keys_first and split.facts.foreign_keys else ()
    return turn(
        split,
        ddl.Steady(),
        ddl.SetStatementTimeout(SWAP_TIMEOUT_MS),
        *(Statement(ddl.LockReferred(name).sql(), f"ACCESS EXCLUSIVE on {name}") for name in referred),
        parent,
    )


def swap_elements(split: Split) -> list[Statement]:
    """Return how the swap goes on once everybody is kept out, and nothing is left to catch up with."""
    copying, source = copying_of(split), split.source
    parent = ddl.qualified(split.schema, split.table.name)
    staging = ddl.qualified(split.schema, split.staging)
    keys = f"ACCESS EXCLUSIVE on {', '.join(split.table.traits.key_tables)} (foreign key)"
    keys = keys if split.facts.foreign_keys else ""
    where = source.schema, source.name
    lock = Statement(ddl.LockAgainstAll(*where).sql(), f"ACCESS EXCLUSIVE on {source.schema}.{source.name}")
    elements: list[ddl.Element | Statement] = [
        lock,
        ddl.ConfirmSplit(split, begun=True, complete=True),
        ddl.Detach(*where, parent, How.PLAIN),
        *engine.unwatch_elements(copying),
        # Or its rows, which nobody sees any more, would keep others from being deleted.
        *(Statement(ddl.DropKey(*where, name).sql(), keys) for name in split.facts.own_keys),
        ddl.MarkSplit(split),
        ddl.Rename(*where, split.kept_as),
    ]
    for group in split.groups:
        elements.append(ddl.Detach(split.schema, group.name, staging, How.PLAIN))
        bound = group.bound or ddl.bound_of(group.lower, group.upper, split.table.grid.key_type)
        elements.append(Statement(ddl.Reattach(split.schema, group.name, parent, bound).sql(), keys))
    return [e if isinstance(e, Statement) else Statement(e.sql()) for e in elements]


def promote_elements(split: Split, group: Group) -> list[Statement]:
    """Return how a group gives way to its windows once everybody is kept out.

    The group is dropped, not detached: from PostgreSQL 17 on DETACH fails there if the table has an identity
    column, which ATTACH has given to the group and not to its windows.
    """
    schema, table = split.schema, split.table
    parent, own = ddl.qualified(schema, table.name), ddl.qualified(schema, group.name)
    keys = f"ACCESS EXCLUSIVE on {', '.join(table.traits.key_tables)} (foreign key)"
    keys = keys if split.facts.foreign_keys else ""
    elements: list[ddl.Element | Statement] = [
        *(ddl.Detach(schema, piece.name, own, How.PLAIN) for piece in group.pieces),
        ddl.DropTable(schema, group.name),
    ]
    for piece in group.pieces:
        bound = piece.bound or ddl.bound_of(piece.lower, piece.upper, table.grid.key_type)
        if piece.is_outermost:
            elements.append(ddl.AttachUnlessEmpty(schema, piece.name, parent, bound))
            continue
        elements.append(Statement(ddl.Reattach(schema, piece.name, parent, bound).sql(), keys))
        elements.append(ddl.DropProof(schema, piece.name))
        if table.traits.replica_identity == "i":
            elements.append(ddl.SetReplicaIndex(_step(table, piece.name)))
    return [e if isinstance(e, Statement) else Statement(e.sql()) for e in elements]


def clean_batch(split: Split) -> Batch:
    """Return what drops the tables that are needed no longer."""
    names = [(split.schema, name) for name in (split.log, split.state, split.staging)]
    return transaction(ddl.DropTables(names))


def drop_old_batch(split: Split) -> Batch:
    """Return what drops the table that has been split."""
    old = split.source.schema, split.kept_as
    return transaction(ddl.LockAgainstAll(*old), ddl.DropTable(*old))


def abort_batches(split: Split) -> Iterator[SplitStep]:
    """Yield what takes a split back that has not come to its swap."""
    copying = copying_of(split)
    names = [(split.schema, name) for name in (split.log, split.state)]
    triggers = engine.unwatch_elements(copying) if split.is_watched else []
    yield SplitStep("changes are logged no longer", turn(split, *triggers, ddl.DropTables(names)))
    for group in split.groups:
        windows = [(split.schema, piece.name) for piece in group.pieces]
        for start in range(0, len(windows), _MOST_DROPPED):
            some = windows[start : start + _MOST_DROPPED]
            yield SplitStep(f"windows of {group.name}", transaction(ddl.DropTables(some)))
    last = [(split.schema, group.name) for group in split.groups] + [(split.schema, split.staging)]
    yield SplitStep("what they were gathered in", transaction(ddl.DropTables(last)))
