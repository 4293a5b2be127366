"""Partitions copied into one plain table beside readers and writers, which then takes the table's name.

The copy is that of a split (see :mod:`.copying`), from many tables into one. Each partition is copied by its
blocks; what changes in any of them goes by one log, which a trigger on the partitioned table writes, as each
partition gets it with its ATTACH.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ClauseElement

from alembic_partitions import catalog, ddl
from alembic_partitions.ddl import carrying
from alembic_partitions.plan import Leaf, Merge, OwnIndex, Reversal, constrained_by_index

from . import copying as engine
from .converting import BESIDE_TIMEOUT_MS, Locked, Step
from .creating import TURN_TIMEOUT_MS
from .reverting import dress, hang, key_index_steps
from .splitting import SWAP_TIMEOUT_MS
from .statements import Batch, Statement, transaction


def copying_of(merge: Merge) -> ddl.Copying:
    """Return what is copied where."""
    return ddl.Copying(
        origin=merge.goal,
        origin_oid=merge.table.oid,
        target=merge.plain,
        log=(merge.schema, merge.log),
        state=(merge.schema, merge.state),
        # Gone by now, there is none to copy by, but the copy can be given up.
        key=merge.facts.identity[0].name if merge.facts.identity else "",
        columns=merge.facts.columns,
        compared=merge.facts.compared,
        identity=merge.facts.identity,
        only=False,
        is_stricter=_is_stricter(merge),
    )


def _is_stricter(merge: Merge) -> bool:
    known = {own for _, own in merge.built}
    return any(index.unique and index.name not in known for index in merge.heir.indexes)


def copying_of_leaf(merge: Merge, leaf: Leaf) -> ddl.Copying:
    """Return what is copied of one partition, by its blocks."""
    whole = copying_of(merge)
    return ddl.Copying(
        (leaf.schema, leaf.name),
        leaf.oid,
        whole.target,
        whole.log,
        whole.state,
        whole.key,
        whole.columns,
        whole.compared,
        whole.identity,
        is_stricter=whole.is_stricter,
    )


def _turn(merge: Merge, *elements: ddl.Element | Statement) -> Batch:
    """Return a transaction in which no partition comes or goes."""
    family = ddl.LockFamily(merge).sql()
    return transaction(
        ddl.LockParent(merge.table.oid),
        ddl.SetLockTimeout(BESIDE_TIMEOUT_MS),
        Statement(family, f"SHARE UPDATE EXCLUSIVE on {merge.table}, beside readers and writers"),
        ddl.SetLockTimeout(merge.wait_ms),
        *elements,
        lock_timeout_ms=TURN_TIMEOUT_MS,
    )


# -- the tables that a merge needs ----------------------------------------------------------------------


def prepare_step(merge: Merge, user: str | None) -> Step:
    """Return what makes the plain table, and has changes written down from its end on."""
    copying, owner = copying_of(merge), merge.table.owner
    log, state = copying.log, copying.state
    other = owner if owner != user else None
    given = [*((ddl.ChangeOwner(*name, other) for name in (merge.plain, log, state)) if other else ())]
    locks = f"SHARE ROW EXCLUSIVE on {merge.table} and its partitions: waits for writers, and they for it"
    return Step(
        f"a plain table for the rows of {merge.table}; from here on each change is logged",
        _turn(
            merge,
            *_plain_table(merge),
            ddl.CreateLog(copying),
            ddl.NumberLog(copying),
            ddl.MarkHelper(log),
            ddl.CreateLeafState(copying),
            ddl.MarkHelper(state),
            *given,
            ddl.SetWatcher(copying),
            ddl.CloseWatcher(copying),
            *([ddl.OwnWatcher(copying, other)] if other is not None else []),
            ddl.Steady(),
            ddl.SetStatementTimeout(engine.MOST_WAITS * merge.wait_ms),
            Statement(ddl.StopWriters(copying).sql(), locks),
            ddl.SetStatementTimeout(SWAP_TIMEOUT_MS),
            ddl.Watch(copying),
            ddl.WatchAlways(copying),
            ddl.RegardLeaves(merge),
        ),
    )


def _plain_table(merge: Merge) -> Iterator[ddl.Element]:
    table, plain = merge.table, merge.plain
    yield carrying.create_like(merge.goal, plain, None, table)
    if merge.options:
        yield carrying.set_options(plain, merge.options)
    yield from carrying.columns(plain, table.columns)
    built = dict(merge.built)
    for index in table.indexes:
        name = built[index.name]
        if index.kind is None or constrained_by_index(index):
            yield carrying.create_index(plain, index, name)
        else:
            yield carrying.add_constraint(plain, name, index.definition or "")
    yield ddl.MarkMerging(merge)


def settle_batch(merge: Merge) -> Batch:
    """Return what sees which partitions there are now."""
    return _turn(merge, ddl.Steady(), ddl.RegardLeaves(merge))


def confirm_batch(merge: Merge) -> Batch:
    """Return what makes sure that a merge which was cut off can go on."""
    return transaction(ddl.ConfirmMerge(merge))


def verified_batch(merge: Merge) -> Batch:
    """Return what notes that the copy was compared, and is the same."""
    return transaction(ddl.NoteAllVerified(merge))


# -- foreign keys: a copy that lags behind would keep writers from deleting what it still refers to ------


def foreign_key_steps(merge: Merge) -> Iterator[Step]:
    """Yield what gives the plain table the foreign keys that it still lacks."""
    mine = {key.name: key for key in merge.heir.foreign_keys}
    for key in merge.table.foreign_keys:
        if key.name not in mine:
            add = ddl.KeyNotValid(*merge.plain, key.name, key.definition)
            locks = f"SHARE ROW EXCLUSIVE on {key.refers_to} (foreign key)"
            added = transaction(Statement(add.sql(), locks), lock_timeout_ms=merge.wait_ms)
            yield Step(f"foreign key {key.name} for what is written from here on", added)
        if key.name not in mine or not mine[key.name].validated:
            check = ddl.ValidateKey(*merge.plain, key.name)
            checked = Statement(check.sql(), f"ROW SHARE on {key.refers_to} (foreign key)")
            batch = transaction(ddl.SetStatementTimeout(0), checked, lock_timeout_ms=merge.wait_ms)
            yield Step(f"foreign key {key.name} is checked", batch)


# -- the swap, and what follows -------------------------------------------------------------------------


def swap_step(
    merge: Merge, reversal: Reversal, forgotten: ClauseElement | None, user: str | None, is_verified: bool
) -> Step:
    """Return the transaction in which the plain table takes the name, and all that hangs on it."""
    table, goal, origin = merge.table, merge.goal, merge.origin
    beside = f"SHARE UPDATE EXCLUSIVE on {table} and its partitions, beside readers and writers"
    lock = ddl.LockAgainstAll(*goal, only=False)
    keys = "; ".join(f"ACCESS EXCLUSIVE on {key.refers_to} (foreign key)" for key in table.foreign_keys)
    helpers = [(merge.schema, merge.log), (merge.schema, merge.state)]
    batch = transaction(
        Statement(carrying.lock_beside(goal, only=False).sql(), beside),
        carrying.lock_beside(merge.plain),
        ddl.SetLockTimeout(merge.wait_ms),
        ddl.PlainNames(),
        ddl.SetStatementTimeout(engine.MOST_WAITS * merge.wait_ms),
        Statement(lock.sql(), f"ACCESS EXCLUSIVE on {table} and its partitions, until this transaction ends"),
        ddl.SetStatementTimeout(SWAP_TIMEOUT_MS),
        Locked(ddl.LockAgainstAll(*merge.plain).sql()),
        ddl.ConfirmMerge(merge, complete=True),
        *engine.unwatch_elements(copying_of(merge)),
        ddl.DropTables(helpers),
        *_stepped_aside(merge),
        *carrying.settle(merge.plain, goal),
        *hang(table, origin, goal),
        *(carrying.drop_default(origin, column) for column, _ in table.sequences),
        # Or its rows, which nobody sees any more, would keep others from being deleted.
        *(Statement(ddl.DropKey(*origin, key.name).sql(), keys) for key in table.foreign_keys),
        *_named(merge, reversal),
        *dress(table, goal, user),
        *(carrying.drop_not_null(goal, column) for column in reversal.nullable),
        ddl.MarkUnpartitioned(merge, is_verified),
        *([] if forgotten is None else [Statement(ddl.written(forgotten))]),
        lock_timeout_ms=BESIDE_TIMEOUT_MS,
    )
    return Step(f"the swap, once older transactions have ended: {merge.name} becomes {table}", batch)


def _stepped_aside(merge: Merge) -> Iterator[ddl.Element]:
    """The partitioned table gives up its name, and those of its indexes and statistics."""
    table, origin, renamed = merge.table, merge.origin, dict(merge.renamed)
    yield carrying.rename_table(merge.goal, merge.aside)
    for index in table.indexes:
        yield carrying.rename_index(origin, index, renamed[index.name])
    for statistics in table.statistics:
        yield carrying.rename_statistics((statistics.schema, statistics.name), renamed[statistics.name])


def _named(merge: Merge, reversal: Reversal) -> Iterator[ddl.Element]:
    """The indexes of the plain table take their names, and what constraints there were stand on them."""
    goal, built = merge.goal, dict(merge.built)
    for index in merge.table.indexes:
        own = built[index.name]
        if index.kind == "p" and reversal.key_index is not None:
            yield carrying.drop_index(merge.schema, own)
            yield carrying.constrain_by(goal, index.name, index, reversal.key_index)
        elif constrained_by_index(index):
            yield carrying.constrain_by(goal, index.name, index, own)
        else:
            yield carrying.rename_index(goal, _called(index, own), index.name)


def _called(index: OwnIndex, name: str) -> OwnIndex:
    return OwnIndex(index.schema, name, index.body, kind=index.kind)


def drop_aside_batch(schema: str, aside: str) -> Batch:
    """Return what drops the partitioned table that a plain one has taken the place of."""
    return transaction(ddl.LockAgainstAll(schema, aside, only=False), ddl.DropTable(schema, aside))


def abort_merge_step(merge: Merge) -> Step:
    """Return what takes a merge back that has not come to its swap."""
    copying = copying_of(merge)
    lock = ddl.LockAgainstAll(*merge.goal, only=False)
    locks = f"ACCESS EXCLUSIVE on {merge.table} and its partitions, for a moment"
    helpers = [copying.log, copying.state, copying.target]
    batch = _turn(
        merge,
        ddl.SetStatementTimeout(engine.MOST_WAITS * merge.wait_ms),
        Statement(lock.sql(), locks),
        ddl.SetStatementTimeout(SWAP_TIMEOUT_MS),
        *engine.unwatch_elements(copying),
        ddl.DropTables(helpers),
    )
    return Step(f"the table {merge.name} that rows were copied into", batch)


# -- as a script ----------------------------------------------------------------------------------------


def merge_steps(
    merge: Merge,
    reversal: Reversal,
    forgotten: ClauseElement | None,
    user: str | None,
    *,
    batch: int,
    verify: bool,
    drop_old: bool,
) -> Iterator[Step]:
    """Yield what is left to do; what is sent again and again once."""
    copying = copying_of(merge)
    if merge.target is None:
        yield prepare_step(merge, user)
    else:
        yield Step("what has come and gone since", settle_batch(merge))
    left = [leaf for leaf in merge.leaves if not leaf.is_copied]
    for leaf in left:
        blocks = engine.first_blocks(batch, leaf.rows, leaf.blocks)
        of_leaf = copying_of_leaf(merge, leaf)
        copied = engine.blocks_batch(of_leaf, leaf.next_block, leaf.next_block + blocks)
        yield Step(f"again until all {leaf.blocks} blocks of {leaf} are copied", copied)
    told = "again until the log is nearly empty; its last entry is as it is found"
    some = catalog.Entries(1, 1)
    yield Step(told, engine.changed_batch(copying, some))
    if verify and not (merge.target and merge.is_verified):
        digests = [ddl.DigestBlocks(copying_of_leaf(merge, leaf), 0, None) for leaf in merge.leaves]
        both = [*digests, ddl.DigestTable(copying, merge.plain)]
        compared = transaction(ddl.OneSnapshot(), ddl.Steady(), *both)
        yield Step("compared: the partitions add up to the same as the plain table", compared)
        yield Step("that is noted", verified_batch(merge))
    yield from key_index_steps(reversal)
    *opening, last = engine.step_batch(copying, merge.wait_ms).statements
    changed = (Statement(element.sql()) for element in engine.changed_elements(copying, some))
    told = "from here on writers change the copy, too; what the log names by then is caught up with"
    yield Step(told, Batch((*opening, *changed, last)))
    yield from foreign_key_steps(merge)
    yield swap_step(merge, reversal, forgotten, user, verify or merge.is_verified)
    if drop_old:
        yield Step("what was partitioned is dropped", drop_aside_batch(merge.schema, merge.aside))
