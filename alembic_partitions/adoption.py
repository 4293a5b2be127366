"""A table that is partitioned already comes into our hands, and goes out of them: nothing of it changes.

Adopting writes its policy down, and that is all, but for marks where they are asked for. Windows follow with
the next run, from the end of what is covered on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from . import catalog, ddl, executor, maintenance
from .catalog import Child, Shape
from .compare import Remark
from .declare import Door, ensure_our_tables, forget, row_for
from .errors import AdoptionRefused, NotManagedError, WindowRangeError
from .executor import Batch, Statement
from .periods import Grid, KeyType, KeyValue
from .plan import (
    ManagedTable,
    PartmanSet,
    Plan,
    Proposal,
    guess_epoch,
    is_too_short,
    judge,
    plan_horizon,
    propose,
)
from .policy import PartitionPolicy

#: Windows before now that a script of --sql can mark: it cannot look which there are.
MARKED_OFFLINE = 1_000
# Each mark holds a lock until its transaction ends.
_MARKS_AT_ONCE = 200
_INTEGERS = ("integer", "bigint")
_OTHER_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence"}


@dataclass(frozen=True, slots=True)
class Adoptable:
    """A table that could be adopted, as it stands, and the policy that fits it."""

    #: With the policy proposed.
    table: ManagedTable
    proposal: Proposal
    #: What runs would make, once it is adopted.
    plan: Plan
    partition_by: str
    now: datetime
    #: Who looked.
    user: str
    nullable: bool = False
    partman: PartmanSet | None = None
    #: The policy that migrations declared, if it is ours already.
    declared: PartitionPolicy | None = None
    #: Whether rows are in its DEFAULT partition; ``None`` if that could not be told.
    stranded: bool | None = False
    children: Mapping[int, Child] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def look(connection: Connection, name: str, given: Mapping[str, Any]) -> Adoptable | None:
    """Look at a table, and find the policy that fits it; ``None`` where there is no such table.

    :param connection: not in a transaction.
    :param name: ``name`` or ``schema.name``.
    :param given: fields of the policy that are decided.
    :raises AdoptionRefused: it cannot be adopted.
    :raises PolicyError: a field that was given is wrong.
    """
    with connection.begin():
        catalog.only_reading(connection)
        schema, plain = _place(connection, name)
        shape = catalog.read_shape(connection, schema, plain) if schema else None
        if schema is None or shape is None:
            return None
        key = _partitioned(shape, f"{schema}.{plain}")
        children = catalog.read_children(connection, shape.oid)
        partman, unread = catalog.read_partman(connection, schema, plain)
        told = partman.fields if partman is not None else {}
        fields = {**told, **given}
        if shape.key_type in _INTEGERS:
            fields["epoch"] = fields.get("epoch") or _epoch(children)
        table = _described(connection, schema, plain, PartitionPolicy(key, epoch=fields.get("epoch")))
        assert table.key_type is not None
        notes = [f"part_config in schema {where} cannot be read by this role" for where in unread]
        if partman is not None and partman.untold:
            notes.append(
                f"pg_partman's retention {partman.untold!r} is none that can be ours: say --retention"
            )
        declared = catalog.partitioned_tables(connection)[schema, plain].policy
        if declared is not None and not given:
            proposal = judge(declared, table.key_type, table.partitions)
        else:
            proposal = propose(
                key,
                table.key_type,
                table.partitions,
                zones=catalog.session_zones(connection, shape.oid),
                size=partman.size if partman is not None else None,
                given=fields,
            )
        if "retention" not in given and is_too_short(proposal.policy):
            notes.append(f"pg_partman's retention {proposal.policy.retention!r} is shorter than a partition")
            proposal = dataclasses.replace(proposal, policy=proposal.policy.changed(retention=None))
        session = connection.execute(select(func.now(), func.current_user())).one()
        now = maintenance.clock(session[0])
        managed = dataclasses.replace(table, policy=proposal.policy)
        return Adoptable(
            managed,
            proposal,
            plan_horizon(managed, now),
            str(shape.partition_by),
            now,
            session[1],
            shape.nullable,
            partman,
            declared,
            _stranded(connection, managed),
            children,
            tuple(notes),
        )


def adopt(
    door: Door,
    schema: str | None,
    name: str,
    policy: PartitionPolicy,
    *,
    mark: bool = False,
    beside_partman: bool = False,
    key_type: KeyType | None = None,
) -> None:
    """Write the policy of a table that is partitioned already down; adopting it twice is fine.

    :param mark: mark the partitions ours that are windows of the policy and bear no comment: retention takes
        no others.
    :param beside_partman: even while pg_partman maintains it.
    :param key_type: what the key holds, which a script of --sql cannot look up.
    :raises AdoptionRefused: it is no table that this policy can be of, or another has it in hand.
    """
    connection = door.connection
    if connection is None:
        home, where = ensure_our_tables(door), _row_place(schema, name)
        door.execute(row_for(home, where, name, policy))
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
        door.execute(row_for(home, ddl.text_literal(there), name, policy))
    if mark and table.key_type is not None:
        windows = [(p.lower, p.upper) for p in judge(policy, table.key_type, table.partitions).on_grid]
        for chunk in _chunks([(a, b) for a, b in windows if a is not None and b is not None]):
            door.execute(ddl.MarkAdopted(there, name, chunk, table.key_type))


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


def _place(connection: Connection, name: str) -> tuple[str | None, str]:
    found = catalog.meant(connection, name).table_schema
    if found is None and "." in name:
        schema, _, plain = name.partition(".")
        return schema, plain
    return found, name


def _partitioned(shape: Shape, table: str) -> str:
    """Return the key of a table, or refuse it."""
    why = remedy = None
    if shape.kind in _OTHER_KINDS:
        why = f"it is {_OTHER_KINDS[shape.kind]}"
        remedy = "Name a table that is partitioned by RANGE."
    elif shape.kind != "p" and shape.has_children:
        why = "it is a parent by INHERITS, as partitions were made before PostgreSQL 10"
        remedy = "Create a new table with op.create_partitioned_table(), and move the rows."
    elif shape.kind != "p":
        why = "it is a plain table" if shape.kind == "r" else "it is no table"
        remedy = "Convert it: op.convert_to_partitioned()."
    elif shape.temporary:
        why, remedy = "it is temporary", "It goes with its session: there is nothing to keep."
    elif shape.is_partition:
        why, remedy = "it is itself a partition of another", "Adopt the table that it is a partition of."
    elif shape.strategy != "r" or shape.key is None:
        why = f"it is partitioned by {shape.partition_by}, not by RANGE over one column"
        remedy = "Create a new table with op.create_partitioned_table(), and move the rows."
    if why is not None:
        raise AdoptionRefused(table=table, problem=why, remedy=remedy)
    return str(shape.key)


def _described(connection: Connection, schema: str, name: str, policy: PartitionPolicy) -> ManagedTable:
    table = catalog.describe_table(connection, schema, name, policy)
    if table.problem is not None:
        problem = table.problem[1].removeprefix(f"{table}: ")
        raise AdoptionRefused(
            table=table, problem=problem, remedy="Correct the policy, or leave it as it is."
        )
    return table


def _checked(
    connection: Connection, schema: str, name: str, policy: PartitionPolicy, beside_partman: bool
) -> ManagedTable:
    shape = catalog.read_shape(connection, schema, name)
    if shape is None:
        raise AdoptionRefused(
            table=f"{schema}.{name}", problem="there is no such table", remedy="Correct its name, or schema=."
        )
    _partitioned(shape, f"{schema}.{name}")
    table = _described(connection, schema, name, policy)
    partman, _ = catalog.read_partman(connection, schema, name)
    if partman is not None and partman.maintained and not beside_partman:
        raise AdoptionRefused(
            table=table,
            problem="pg_partman maintains it, and two masters would make partitions in each other's way",
            remedy=f"Take it out of pg_partman's hands first: {ddl.partman_off(partman)};",
        )
    return table


def _epoch(children: Mapping[int, Child]) -> str | None:
    """Tell what integer bounds count, by their size."""
    digits = [
        part.strip("'")
        for child in children.values()
        for part in child.bound.removeprefix("FOR VALUES FROM (").removesuffix(")").split(") TO (")
    ]
    return guess_epoch([int(d) for d in digits if d.lstrip("-").isdecimal()])


def _stranded(connection: Connection, table: ManagedTable) -> bool | None:
    """Tell whether rows are in its DEFAULT partition; ``None`` if this role cannot."""
    if not table.has_default:
        return False
    figures = catalog.partition_figures(connection, [table], defaults=True)
    default = next(p for p in table.partitions if p.is_default)
    known = figures[default.oid].default_is if default.oid in figures else None
    if known == "readable":
        return default.oid in catalog.holding_rows(connection, [default])
    return False if known == "empty" else None


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
    for chunk in _chunks(windows):
        door.execute(ddl.MarkAdopted(schema, name, chunk, key_type))


def _backwards(grid: Grid, here: KeyValue, ahead: int) -> Any:
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


def _chunks(windows: Sequence[tuple[KeyValue, KeyValue]]) -> list[Sequence[tuple[KeyValue, KeyValue]]]:
    return [windows[n : n + _MARKS_AT_ONCE] for n in range(0, len(windows), _MARKS_AT_ONCE)]


def managed_place(connection: Connection, name: str) -> tuple[str, str] | None:
    """Return the schema and name of a table, ``None`` where there is no such table."""
    with connection.begin():
        schema, plain = _place(connection, name)
        there = schema is not None and catalog.read_shape(connection, schema, plain) is not None
    return (schema, plain) if schema is not None and there else None
