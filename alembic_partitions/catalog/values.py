"""Rows of the catalog as values of ours."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import pytz
from sqlalchemy.engine import Row

from alembic_partitions import keys
from alembic_partitions.errors import PolicyError
from alembic_partitions.periods import KeyType, KeyValue, iso_time
from alembic_partitions.plan import Belongings, ManagedTable, Partition, Refusal, Traits
from alembic_partitions.policy import PartitionPolicy

_BOUND = re.compile(r"FOR VALUES FROM \((?P<lower>.*)\) TO \((?P<upper>.*)\)")


def managed_table(row: Row[Any], fields: Sequence[str]) -> ManagedTable:
    """Return a row of partition_config with what the catalog says of its table."""
    mapping = row._mapping
    values = {name: mapping["partition_key" if name == "key" else name] for name in fields}
    if isinstance(values["storage_parameters"], str):  # asyncpg hands out jsonb as text without a type
        values["storage_parameters"] = json.loads(values["storage_parameters"])
    values["day_start"] = f"{values['day_start']:%H:%M}"
    try:
        policy = PartitionPolicy.from_dict(values)
    except PolicyError as error:
        return ManagedTable(row.table_schema, row.table_name, problem=(Refusal.UNFIT, str(error)))
    if row.oid is None:
        where = f"{row.table_schema}.{row.table_name}"
        return ManagedTable(row.table_schema, row.table_name, policy, problem=(Refusal.NO_TABLE, where))
    return fitted(row, policy)


def fitted(row: Row[Any], policy: PartitionPolicy) -> ManagedTable:
    """Hold a table against its policy: what cannot be worked on says why."""
    found = ManagedTable(row.schema, row.name, policy, oid=row.oid)
    if row.kind != "p":
        why = "it is not a partitioned table"
    elif row.strategy != "r":
        why = f"it is partitioned by {'LIST' if row.strategy == 'l' else 'HASH'}, not by RANGE"
    elif row.natts != 1 or row.key != policy.key:
        by = "an expression" if row.key is None else f"column {row.key!r}" + (" and more" * (row.natts > 1))
        why = f"it is partitioned by {by}, the policy by column {policy.key!r}"
    else:
        try:
            key_type = policy.key_type_of(row.type)
            policy.grid(key_type)
        except PolicyError as error:
            why = str(error)
        else:
            return dataclasses.replace(found, key_type=key_type, traits=_traits(row), precision=row.precision)
    return dataclasses.replace(found, problem=(Refusal.UNFIT, f"{row.schema}.{row.name}: {why}"))


def _traits(row: Row[Any]) -> Traits:
    return Traits(
        owner=row.owner,
        replica_identity=row.replica_identity,
        row_security=row.row_security,
        statistics=tuple((name, target) for name, target in json.loads(row.statistics or "[]")),
        access_method=row.access_method,
        tablespace=row.tablespace_of_parent,
        exclusions=row.exclusions,
        key_tables=tuple(json.loads(row.key_tables or "[]")),
        distributed=row.distributed,
    )


def value_of(printed: str, key_type: KeyType) -> KeyValue | None:
    """Read a key as PostgreSQL prints it under UTC and ISO; ``None`` beyond Python's years 1 to 9999."""
    if keys.is_encoded(key_type):
        return keys.row_value(printed, key_type)
    ends = _value(printed, key_type, upper=False), _value(printed, key_type, upper=True)
    return ends[0] if ends[0] == ends[1] else None


def key_type_of(table: Belongings, policy: PartitionPolicy) -> KeyType:
    """Return the type of the key that a policy would partition a plain table by.

    :raises PolicyError: it is of another type, or the policy does not fit it.
    """
    key = table.column(policy.key)
    assert key is not None  # refused before
    key_type = policy.key_type_of(re.sub(r"\(\d\)", "", key.type), str(table))
    policy.grid(key_type)
    return key_type


class Child(NamedTuple):
    """A partition as a row of the catalog."""

    oid: int
    schema: str
    name: str
    bound: str
    detach_pending: bool


def partition_of(row: Row[Any] | Child, key_type: KeyType | None) -> Partition:
    """Return a partition with its bounds as key values."""
    if row.bound == "DEFAULT":
        return Partition(row.oid, row.schema, row.name, None, None, True, row.detach_pending)
    assert key_type is not None
    lower, upper = bounds_of(row.bound, key_type)
    return Partition(row.oid, row.schema, row.name, lower, upper, False, row.detach_pending)


@lru_cache(maxsize=8192)  # many tables have the same windows
def bounds_of(printed: str, key_type: KeyType) -> tuple[KeyValue | None, KeyValue | None]:
    """Read FOR VALUES FROM ... TO ... as PostgreSQL prints it under UTC and ISO."""
    match = _BOUND.fullmatch(printed)
    if match is None:  # RANGE over one column, or fitted() refused
        raise ValueError(printed)
    return _value(match["lower"], key_type, upper=False), _value(match["upper"], key_type, upper=True)


def _value(printed: str, key_type: KeyType, upper: bool) -> KeyValue | None:
    """Read a bound as PostgreSQL prints it under UTC and ISO; beyond Python's years 1 to 9999 it is open."""
    digits = printed.strip("'")
    if keys.is_encoded(key_type) and printed not in ("MINVALUE", "MAXVALUE"):
        return keys.bound_value(digits, key_type, upper)
    early = printed == "MINVALUE" or digits == "-infinity" or digits.endswith(" BC")
    late = printed == "MAXVALUE" or digits == "infinity" or digits.find("-", 1) > 4
    if early or late:
        if early != upper:
            return None
        end = datetime.min if early else datetime.max  # an empty stretch at that end of the calendar
        zoned = end if key_type == "timestamp" else end.replace(tzinfo=pytz.utc)
        return end.date() if key_type == "date" else zoned
    if key_type == "date":
        return date.fromisoformat(digits)
    value = iso_time(digits)
    if (value.tzinfo is None) is (key_type == "timestamptz"):
        raise ValueError(f"{printed} is no {key_type}")
    return value.astimezone(pytz.utc) if key_type == "timestamptz" else value
