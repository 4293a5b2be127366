"""What stands in the way of converting a table, each with its remedy. Pure.

Whatever could not be carried over is named here, before anything is changed: nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time

from alembic_partitions.errors import ConversionRefused
from alembic_partitions.periods import Grid, Period
from alembic_partitions.policy import PartitionPolicy

from .belongings import Belongings
from .conversion import UNTIL_CHECK, Ends, begun, key_index_of
from .horizon import key_near

_KINDS = {
    "v": "it is a view",
    "m": "it is a materialized view",
    "f": "it is a foreign table",
    "S": "it is a sequence",
    "c": "it is a type",
    "i": "it is an index",
    "I": "it is an index",
}
#: What stands for no time at all.
_ZERO = date(1970, 1, 1)


def refuse_kind(table: Belongings) -> None:
    """Refuse what is no plain table.

    :raises ConversionRefused: it is none.
    """
    _refuse(table, list(_kind(table)))


def refuse_loss(table: Belongings, policy: PartitionPolicy) -> None:
    """Refuse a table that would lose something on the way, naming all that stands in the way.

    :raises ConversionRefused: something does.
    """
    groups = _kind(table), _key(table, policy), _indexes(table, policy), _constraints(table), _others(table)
    _refuse(table, [problem for group in groups for problem in group])


def refuse_rows(table: Belongings, policy: PartitionPolicy, grid: Grid, ends: Ends, now: datetime) -> None:
    """Refuse rows that no window can hold.

    :raises ConversionRefused: there are some.
    """
    _refuse(table, list(_rows(policy, grid, ends, now)))


def _refuse(table: Belongings, problems: list[str]) -> None:
    if problems:
        raise ConversionRefused(table=str(table), problems="; ".join(problems))


def _kind(table: Belongings) -> Iterator[str]:
    if table.kind in _KINDS:
        yield f"{_KINDS[table.kind]}: name a plain table"
    if table.kind == "p":
        yield "it is partitioned already: take it over with op.adopt_partitioned_table()"
    if table.is_partition:
        yield "it is a partition of another table: name that one, or DETACH it first"
    elif table.kind == "r" and (table.inherits or table.has_heirs):
        yield "it is part of an inheritance tree, which no partitioned table can be: NO INHERIT"
    if table.of_type:
        yield "it is a table OF a type: ALTER TABLE ... NOT OF"
    if table.is_distributed and table.kind == "r":
        yield "Citus has distributed it: undistribute_table(), convert, and distribute it again"
    if table.persistence == "t":
        yield "it is temporary: name a permanent one"
    if table.persistence == "u":
        yield "it is UNLOGGED, which no partitioned table can be: ALTER TABLE ... SET LOGGED"


def _key(table: Belongings, policy: PartitionPolicy) -> Iterator[str]:
    key = table.column(policy.key)
    if key is None:
        columns = ", ".join(column.name for column in table.columns)
        yield f"it has no column {policy.key!r}: its columns are {columns}"
    elif key.generated:
        yield f"its key {policy.key!r} is generated, which nothing can be partitioned by: DROP EXPRESSION"
    elif key.identity:
        yield f"its key {policy.key!r} is an identity column, which tells no time: choose another one"


def _indexes(table: Belongings, policy: PartitionPolicy) -> Iterator[str]:
    wanted = key_index_of(table, policy)
    for index in table.indexes:
        ours = wanted is not None and index.name == wanted[0]
        if ours and wanted is not None and index.columns != wanted[1]:
            yield f"index {index.name!r} bears the name of the one that is to be built: rename it"
        if not ours and not index.valid:
            yield f"index {index.name!r} is not valid: REINDEX INDEX CONCURRENTLY, or drop it"
        if index.exclusion:
            what = "exclusion constraint" if index.kind == "x" else "key WITHOUT OVERLAPS"
            yield f"{what} {index.name!r} would hold within each partition alone: drop it"
        elif index.unique and index.kind != "p" and policy.key not in index.columns:
            what = "unique constraint" if index.kind == "u" else "unique index"
            yield (
                f"{what} {index.name!r} lacks the partition key {policy.key!r}, and would hold within each"
                " partition only (manual, section 5.12.2.3): drop it, or add the key to it"
            )


def _constraints(table: Belongings) -> Iterator[str]:
    for told in table.incoming:
        yield (
            f"foreign key {told} refers to it, and what it refers to will not be unique without the partition"
            " key: drop it; afterwards one that holds the key can be added"
        )
    for key in table.foreign_keys:
        if not key.validated:
            yield f"foreign key {key.name!r} is {_unproven(key.definition)}, or drop it"
    for check in table.checks:
        if check.name == UNTIL_CHECK:
            if begun(table) is None:
                yield f"CHECK {check.name!r} bears the name of the one that is to be added: rename it"
        elif not check.validated:
            yield f"constraint {check.name!r} is {_unproven(check.definition)}, or drop it"
        if not check.inherited:
            yield f"CHECK {check.name!r} is NO INHERIT, which no partitioned table can have: add it without"


def _unproven(definition: str) -> str:
    if definition.endswith("NOT ENFORCED"):
        return "NOT ENFORCED: ALTER CONSTRAINT ... ENFORCED"
    return "NOT VALID: VALIDATE CONSTRAINT"


def _others(table: Belongings) -> Iterator[str]:
    for lacking in table.lacking:
        yield f"this role lacks {lacking}: grant it, or convert as another role"
    if table.is_subscribed:
        yield (
            "a subscription writes to it, and would go on with its first partition alone: convert it before"
            " it is subscribed to"
        )
    for trigger in table.triggers:
        if trigger.for_each_row and trigger.transition_tables:
            yield (
                f"trigger {trigger.name!r} is FOR EACH ROW with transition tables, which no partition can"
                " have: make it FOR EACH STATEMENT"
            )
    for publication in table.publications:
        if not publication.via_root:
            yield (
                f"publication {publication.name!r} would send rows under the names of partitions, which"
                " subscribers do not have: ALTER PUBLICATION ... SET (publish_via_partition_root = true)"
            )
    if table.has_rules:
        yield "it has rewrite rules, which would not follow: replace them by triggers"
    for told in table.bound:
        yield f"{told} depends on it and cannot follow: drop it, convert, and create it again"


def _rows(policy: PartitionPolicy, grid: Grid, ends: Ends, now: datetime) -> Iterator[str]:
    key, newest = policy.key, ends.newest
    if ends.has_null:
        yield f"rows have NULL as {key!r}, which no window holds: UPDATE them to a time, or delete them"
    if ends.endless:
        span = f"from {ends.printed[0]} to {ends.printed[1]}"
        yield f"the values of {key!r} go {span}, beyond what a window can hold: correct those rows"
    if any(isinstance(end, date) and _day(end) == _ZERO for end in (ends.oldest, newest)):
        yield (
            f"rows have the time 0 ({_ZERO}) as {key!r}, which stands for no time at all: UPDATE them to a"
            " time, or delete them"
        )
    limit = key_near(grid, Period.parse(policy.max_ahead).after(now, policy.timezone))
    if newest is not None and newest > limit:
        yield (
            f"the newest row has {ends.printed[1]} as {key!r}, further ahead than max_ahead"
            f" ({policy.max_ahead}): correct it, or raise max_ahead"
        )


def _day(value: date) -> date | None:
    """Return the day that a value is the very begin of."""
    if not isinstance(value, datetime):
        return value
    return value.date() if value.time() == time.min else None
