"""What a model wants + what the database has -> what it takes. Pure: one answer, whoever asks.

Autogenerate makes operations of the differences, ``create_all()`` carries them out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Table

from .errors import PolicyError
from .periods import KeyType
from .policy import BY_HAND, PartitionPolicy, policy_of

#: Fields that decide where windows begin and end.
_GRID_FIELDS = {"interval", "every", "timezone", "day_start", "week_start", "column_timezone", "epoch"}


@dataclass(frozen=True, slots=True)
class Relation:
    """A table of the database, as far as partitioning goes.

    ``partition_by`` is PostgreSQL's own text, ``None`` for a plain table; ``key`` its only column, ``None``
    where there are several or an expression; ``declared`` what migrations declared, ``None`` for a table
    without a policy.
    """

    partition_by: str | None = None
    strategy: str | None = None
    key: str | None = None
    primary_key: frozenset[str] = frozenset()
    has_partitions: bool = False
    declared: Mapping[str, Any] | None = None
    #: Of which not every partition has its part.
    invalid_indexes: frozenset[str] = frozenset()

    @property
    def policy(self) -> PartitionPolicy | None:
        """The policy that migrations declared; fields of a later version of this package are left out.

        :raises PolicyError: somebody has spoiled it.
        """
        if self.declared is None:
            return None
        known = {item.name for item in dataclasses.fields(PartitionPolicy)}
        return PartitionPolicy.from_dict({k: v for k, v in self.declared.items() if k in known})


@dataclass(frozen=True, slots=True)
class Declare:
    """The table is to be created, with this policy over a key of this type."""

    policy: PartitionPolicy
    key_type: KeyType


@dataclass(frozen=True, slots=True)
class Adopt:
    """The table is there, partitioned by the key of this policy, by other means than ours."""

    policy: PartitionPolicy


@dataclass(frozen=True, slots=True)
class Alter:
    """Fields of the policy have changed: new values, and those before."""

    changes: Mapping[str, Any]
    existing: Mapping[str, Any]

    def reverse(self) -> Alter:
        """Return what undoes it."""
        return Alter(self.existing, self.changes)


@dataclass(frozen=True, slots=True)
class Convert:
    """The table is a plain one."""

    policy: PartitionPolicy
    #: The primary key that it has.
    primary_key: tuple[str, ...] = ()

    def reverse(self) -> Unpartition:
        """Return what undoes it."""
        return Unpartition(self.policy, self.primary_key)


@dataclass(frozen=True, slots=True)
class Unpartition:
    """The table is partitioned by a policy of ours."""

    policy: PartitionPolicy
    #: The primary key that it is to have; empty leaves that to what it had before.
    primary_key: tuple[str, ...] = ()

    def reverse(self) -> Convert:
        """Return what undoes it."""
        return Convert(self.policy, self.primary_key)


@dataclass(frozen=True, slots=True)
class Remark:
    """What no operation may do by itself: what is different, what to do, and the operation that would, if a
    person decides so."""

    problem: str
    remedy: str
    line: Alter | Convert | Unpartition | None = None


# A PARTITION BY of columns alone.
_NAME = r'"((?:[^"]|"")+)"|(\w+)'
_PLAIN = re.compile(rf"\s*(?P<by>\w+)\s*\(\s*(?P<on>(?:{_NAME})(?:\s*,\s*(?:{_NAME}))*)\s*\)\s*")

Difference: TypeAlias = "Declare | Adopt | Alter | Remark"


def compare(table: Table, found: Relation | None) -> list[Difference]:
    """Return what it takes to have a model's partitioning in the database.

    :param found: what is there, ``None`` where there is no such table.
    :raises PolicyError: the model's policy does not fit its table, or differs from its own
        ``postgresql_partition_by``.
    """
    policy = policy_of(table)
    if policy is None:
        return _without_policy(table, found)
    key_type = _check(table, policy)
    if found is None:
        return [Declare(policy, key_type)]
    if found.partition_by is None:
        return [
            Remark(
                f"{table.fullname} is a plain table; its model is partitioned by {policy.partition_by}.",
                "It can be converted while it is used, without copying its rows, by a migration of its"
                " own. Then take this line in:",
                Convert(policy),
            )
        ]
    if found.strategy != "r" or found.key != policy.key:
        return [
            Remark(
                f"{table.fullname} is partitioned by {found.partition_by}; its model by"
                f" {policy.partition_by}.",
                "PostgreSQL cannot change that in place. Create a new table with"
                " op.create_partitioned_table(), move the rows, and swap the names.",
            )
        ]
    before = found.policy
    if before is None:
        return [Adopt(policy)]
    return _changes(table, before, policy, found.has_partitions)


def _check(table: Table, policy: PartitionPolicy) -> KeyType:
    said = table.dialect_options["postgresql"]["partition_by"]
    if said != policy.partition_by:
        raise PolicyError(
            field="key",
            problem=f"model {table.fullname!r} has postgresql_partition_by={said!r}, and a policy that says"
            f" {policy.partition_by!r}",
            remedy="Leave postgresql_partition_by out: the policy sets it.",
        )
    return policy.check_table(table)


def _changes(
    table: Table, before: PartitionPolicy, after: PartitionPolicy, has_partitions: bool
) -> list[Difference]:
    old, new = before.to_dict(), after.to_dict()
    changed = {name for name in new if new[name] != old[name]}
    if not changed:
        return []
    grid = changed & _GRID_FIELDS if has_partitions else set()
    if "interval" in grid:
        grid |= changed & {"premake"}  # counted in windows: its default follows the interval
    differences: list[Difference] = []
    if changed - grid:
        differences.append(_alter(old, new, changed - grid))
    if grid:
        told = ", ".join(f"{name} {old[name]!r} -> {new[name]!r}" for name in _in_order(grid))
        differences.append(
            Remark(
                f"{table.fullname} has partitions, and its model wants others: {told}.",
                "Partitions that exist cannot be altered in place. If the change is to apply from now on"
                " (they stay, and new windows begin where the covered range ends), take this line in:",
                _alter(old, new, grid),
            )
        )
    return differences


def _alter(old: Mapping[str, Any], new: Mapping[str, Any], names: set[str]) -> Alter:
    ordered = _in_order(names)
    return Alter({name: new[name] for name in ordered}, {name: old[name] for name in ordered})


def _in_order(names: set[str]) -> list[str]:
    return [item.name for item in dataclasses.fields(PartitionPolicy) if item.name in names]


def _without_policy(table: Table, found: Relation | None) -> list[Difference]:
    said = table.dialect_options["postgresql"]["partition_by"]
    if found is None:
        return []
    if said is None and found.declared is not None and not found.declared.get(BY_HAND):
        return [
            Remark(
                f"{table.fullname} is partitioned by {found.partition_by} and managed; its model has no"
                " policy.",
                "Put the PartitionPolicy back into its model. Or, if it is to be plain again, take this"
                " line in, in a migration of its own:",
                Unpartition(found.policy) if found.policy else None,
            )
        ]
    if said is not None and _differ(said, found.partition_by):
        there = f"partitioned by {found.partition_by}" if found.partition_by else "a plain table"
        return [
            Remark(
                f"{table.fullname} is {there}; its model is partitioned by {said}.",
                "PostgreSQL cannot change that in place. Create a new table, move the rows, and swap the"
                " names.",
            )
        ]
    return []


def _differ(said: str, there: str | None) -> bool:
    """Tell whether a model's own PARTITION BY is another than the database's, as far as that can be told.

    PostgreSQL prints expressions in words of its own: of those the strategy alone is compared.
    """
    if there is None:
        return True
    ours, theirs = _PLAIN.fullmatch(said), _PLAIN.fullmatch(there)
    if ours is None or theirs is None:
        return said.split("(", maxsplit=1)[0].strip().lower() != there.split("(")[0].strip().lower()
    return ours["by"].lower() != theirs["by"].lower() or _names(ours["on"]) != _names(theirs["on"])


def _names(columns: str) -> list[str]:
    return [quoted or plain.lower() for quoted, plain in re.findall(_NAME, columns)]
