"""A table that somebody else has partitioned: what it is, and what policy fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from alembic_partitions import catalog, maintenance
from alembic_partitions.catalog import Child, Shape
from alembic_partitions.errors import AdoptionRefused
from alembic_partitions.naming import check_text
from alembic_partitions.plan import (
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
from alembic_partitions.policy import PartitionPolicy

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

    @property
    def fits(self) -> bool:
        """Whether anything tells that the policy is the right one."""
        return bool(self.proposal.on_grid or (self.partman is not None and self.partman.size))


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
        key = partitioned(shape, f"{schema}.{plain}")
        children = catalog.read_children(connection, shape.oid)
        partman, unread = catalog.read_partman(connection, schema, plain)
        told = partman.fields if partman is not None else {}
        fields = {**told, **given}
        if shape.key_type in _INTEGERS:
            fields["epoch"] = fields.get("epoch") or _epoch(children)
            if fields["epoch"] is None:
                raise AdoptionRefused(
                    table=f"{schema}.{plain}",
                    problem=f"its bounds do not tell whether column {key!r}, of type {shape.key_type}, is a"
                    " time",
                    remedy="If it counts since 1970-01-01 UTC, say what: --epoch.",
                )
        table = described(connection, schema, plain, PartitionPolicy(key, epoch=fields.get("epoch")))
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


def managed_place(connection: Connection, name: str) -> tuple[str, str] | None:
    """Return the schema and name of a table, ``None`` where there is no such table."""
    with connection.begin():
        schema, plain = _place(connection, name)
        there = schema is not None and catalog.read_shape(connection, schema, plain) is not None
    return (schema, plain) if schema is not None and there else None


def _place(connection: Connection, name: str) -> tuple[str | None, str]:
    check_text("table", name)
    found = catalog.meant(connection, name).table_schema
    if found is None and "." in name:
        schema, _, plain = name.partition(".")
        return schema, plain
    return found, name


def partitioned(shape: Shape, table: str) -> str:
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


def described(connection: Connection, schema: str, name: str, policy: PartitionPolicy) -> ManagedTable:
    table = catalog.describe_table(connection, schema, name, policy)
    if table.problem is not None:
        problem = table.problem[1].removeprefix(f"{table}: ")
        raise AdoptionRefused(
            table=table, problem=problem, remedy="Correct the policy, or leave it as it is."
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
