"""Writing a policy down for a table that is there, and forgetting it. Nothing of the table changes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection

from alembic_partitions import catalog, ddl, executor, maintenance
from alembic_partitions.compare import Remark
from alembic_partitions.declare import Door, ensure_our_tables, forget
from alembic_partitions.errors import AdoptionRefused, NotManagedError, WindowRangeError
from alembic_partitions.executor import Batch, Statement
from alembic_partitions.periods import Grid, KeyType, KeyValue
from alembic_partitions.plan import (
    ManagedTable,
    judge,
)
from alembic_partitions.policy import PartitionPolicy

from .looking import described, partitioned

T = TypeVar("T")

#: Windows before now that a script of --sql can mark: it cannot look which there are.
MARKED_OFFLINE = 1_000
# Each mark holds a lock until its transaction ends.
_MARKS_AT_ONCE = 200


def adopt(
    door: Door,
    schema: str | None,
    name: str,
    policy: PartitionPolicy,
    *,
    mark: bool = False,
    beside_partman: bool = False,
    key_type: KeyType | None = None,
    by_hand: bool = False,
) -> None:
    """Write the policy of a table that is partitioned already down; adopting it twice is fine.

    :param mark: mark the partitions ours that are windows of the policy and bear no comment: retention takes
        no others.
    :param beside_partman: even while pg_partman maintains it.
    :param key_type: what the key holds, which a script of --sql cannot look up.
    :param by_hand: in no migration, so the table's model need not know of it.
    :raises AdoptionRefused: it is no table that this policy can be of, or another has it in hand.
    """
    connection = door.connection
    if connection is None:
        home, where = ensure_our_tables(door), _row_place(schema, name)
        door.execute(ddl.declare_policy(home, where, name, policy, by_hand))
        if mark:
            _mark_unseen(door, schema, name, policy, key_type or policy.usual_key_type)
        return
    there = str(door.schema_of(schema, name))
    table = _checked(connection, there, name, policy, beside_partman)
    declared = catalog.partitioned_tables(connection)[there, name].policy
    if declared not in (None, policy):
        raise AdoptionRefused(
            table=table,
            problem=f"it is ours already, by {declared!r}",
            remedy="Change that with op.alter_partition_policy(), or un-adopt it first.",
        )
    home = ensure_our_tables(door)
    if declared is None:
        door.execute(ddl.declare_policy(home, ddl.text_literal(there), name, policy, by_hand))
    if mark and table.key_type is not None:
        on_grid = {part.oid for part in judge(policy, table.key_type, table.partitions).on_grid}
        with catalog.utc_settings(connection):
            children = catalog.read_children(connection, int(table.oid or 0))
        for chunk in _chunks([child.bound for oid, child in children.items() if oid in on_grid]):
            door.execute(ddl.MarkAdopted(there, name, chunk))


def unadopt(door: Door, schema: str | None, name: str) -> None:
    """Forget the policy of a table, and take the marks away that adopting it has set; nothing is dropped.

    :raises NotManagedError: it has none.
    """
    there, connection = door.schema_of(schema, name), door.connection
    if connection is not None:
        found = catalog.partitioned_tables(connection).get((there, name))
        if found is None or found.declared is None:
            raise NotManagedError(table=f"{there}.{name}")
    home = ensure_our_tables(door)
    door.execute(ddl.UnmarkAdopted(there, name))
    forget(door, home, there, name)


def batches(connection: Connection, schema: str | None, work: Any) -> list[Batch]:
    """Return what ``work``, given a door, would send: each statement that marks in a transaction of its own.

    :param connection: not in a transaction.
    :param schema: where partition_config is, or is to be.
    """
    sent: list[Any] = []
    told = schema or os.environ.get(maintenance.SCHEMA_VARIABLE) or None
    with connection.begin():
        work(Door(sent.append, connection, told, lambda text: None))
    elements = [s if isinstance(s, ddl.Element) else ddl.WrittenOut(s) for s in sent]
    marks = [
        executor.transaction(Statement(e.sql(), "SHARE UPDATE EXCLUSIVE on the partitions that it marks"))
        for e in elements
        if isinstance(e, ddl.MarkAdopted)
    ]
    rest = [e for e in elements if not isinstance(e, ddl.MarkAdopted)]
    return [executor.transaction(*rest), *marks]


def apply(connection: Connection, found: Sequence[Batch], table: str) -> None:
    """Send batches, each until its locks are had."""
    for batch in found:
        executor.insist(
            lambda batch=batch: executor.apply(connection, batch),  # type: ignore[misc]
            connection,
            table=table,
            what="writing the policy down",
        )


def remark_on(
    connection: Connection, schema: str | None, name: str, policy: PartitionPolicy
) -> Remark | None:
    """Tell what lies off the grid of a model's policy, in a table that it would adopt."""
    there = schema or str(catalog.meant(connection, name).table_schema)
    table = catalog.describe_table(connection, there, name, policy)
    if table.problem is not None or table.key_type is None:
        return None
    judged = judge(policy, table.key_type, table.partitions)
    off = sum(len(era.partitions) for era in judged.off_grid)
    if not off:
        return None
    return Remark(
        f"{off} of {off + len(judged.on_grid)} partitions of {table} are no windows of its model's policy.",
        "They may stay, and new windows begin where they end. To see which, and what policy fits them best:"
        f" alembic-partitions adopt --table {name}",
    )


def _checked(
    connection: Connection, schema: str, name: str, policy: PartitionPolicy, beside_partman: bool
) -> ManagedTable:
    shape = catalog.read_shape(connection, schema, name)
    if shape is None:
        raise AdoptionRefused(
            table=f"{schema}.{name}", problem="there is no such table", remedy="Correct its name, or schema=."
        )
    partitioned(shape, f"{schema}.{name}")
    table = described(connection, schema, name, policy)
    partman, _ = catalog.read_partman(connection, schema, name)
    if partman is not None and partman.maintained and not beside_partman:
        raise AdoptionRefused(
            table=table,
            problem="pg_partman maintains it, and two masters would make partitions in each other's way",
            remedy=f"Take it out of pg_partman's hands first: {ddl.partman_off(partman)};",
        )
    return table


def _row_place(schema: str | None, name: str) -> ColumnElement[str]:
    return ddl.schema_of_name(name) if schema is None else ddl.text_literal(schema)


def _mark_unseen(
    door: Door, schema: str | None, name: str, policy: PartitionPolicy, key_type: KeyType
) -> None:
    grid = policy.grid(key_type)
    now = maintenance.clock(datetime.now(timezone.utc))
    windows = list(
        islice(_backwards(grid, grid.key_at(now), policy.premake), MARKED_OFFLINE + policy.premake)
    )
    door.remark(
        f"-- alembic_partitions: of the partitions from {windows[-1][0]} to {windows[0][1]} those that are"
        f" windows are marked; others with `alembic-partitions adopt --table {name} --apply --mark`\n"
    )
    for chunk in _chunks([ddl.printed_bounds(begin, end, key_type) for begin, end in windows]):
        door.execute(ddl.MarkAdopted(schema, name, chunk))


def _backwards(grid: Grid, here: KeyValue, ahead: int) -> Iterator[tuple[KeyValue, KeyValue]]:
    """Yield windows from some after ``here`` on, the newest first, as far as the calendar goes."""
    try:
        window = grid.at(here)
        for _ in range(ahead):
            window = grid.after(window)
        while True:
            yield window.begin, window.end
            window = grid.before(window)
    except WindowRangeError:
        return


def _chunks(found: Sequence[T]) -> list[Sequence[T]]:
    return [found[n : n + _MARKS_AT_ONCE] for n in range(0, len(found), _MARKS_AT_ONCE)]
