"""Every error the package raises.

One root, :class:`PartitionError`. The docstring of a class is its message: it says what happened and
what to do next. The values it was filled with stay on the exception as attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


class PartitionError(Exception):
    """Something about a partitioned table needs your attention."""

    def __init__(self, **data: object) -> None:
        self.data: Mapping[str, object] = data
        self.__dict__.update(data)
        # Under ``python -OO`` there are no docstrings; the class name and the data still tell the story.
        template = inspect.cleandoc(type(self).__doc__ or "") if type(self).__doc__ else ""
        message = (
            " ".join(template.format_map(data).split()) if template else f"{type(self).__name__}: {data}"
        )
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.data))


def _rebuild(cls: type[PartitionError], data: dict[str, object]) -> PartitionError:
    return cls(**data)


class PolicyError(PartitionError, ValueError):
    """Partition policy, field {field!r}: {problem}. {remedy}"""

    field: str
    problem: str
    remedy: str


class WindowRangeError(PartitionError, ValueError):
    """No partition window can hold {value}: {problem}. Use a fixed-offset zone such as "UTC" for
    dates that far away, or correct the value."""

    value: object
    problem: str


class ConfigurationError(PartitionError):
    """The table partition_config {problem}. {remedy}"""

    problem: str
    remedy: str


class NotCoordinatorError(PartitionError):
    """This server is a worker of a Citus cluster, and tables are changed on its coordinator alone. Connect to
    the coordinator: --url, DATABASE_URL, ddl_url=. Nothing was done."""


class NotManagedError(PartitionError, LookupError):
    """Table {table} has no row in partition_config, so there is no policy to act on. Declare it in a
    migration with op.create_partitioned_table() or op.adopt_partitioned_table(), or correct the name."""

    table: str


class AdoptionRefused(PartitionError):
    """Table {table} was not adopted: {problem}. Nothing was changed. {remedy}"""

    table: str
    problem: str
    remedy: str


class NoPartitionError(PartitionError, LookupError):
    """{name} is no partition of a table that is managed. Look at what there is with
    "alembic-partitions status --partitions"; nothing was done."""

    name: str


class NotDetachedError(PartitionError, LookupError):
    """{name} is no partition that has been detached, or its table is gone. Look at what there is with
    "alembic-partitions restore --dry-run"; nothing was restored."""

    name: str


class KeyOutsideLimits(PartitionError, ValueError):
    """Refused to make a partition of {table} for key {value}: it is {problem} (policy field {field!r},
    now {limit}). Correct the row, raise the field with op.alter_partition_policy() or
    UPDATE partition_config, or make the windows on purpose with op.create_partitions()."""

    table: str
    value: object
    problem: str
    field: str
    limit: object


class PartitionPending(PartitionError):
    """Partition {window} of {table} is not there for this transaction: {reason}. Roll it back and run it
    again; {progress}."""

    table: str
    window: str
    reason: str
    progress: str


class IndexRefused(PartitionError, ValueError):
    """Index {index} on {table}: {problem}. {remedy}"""

    index: str
    table: str
    problem: str
    remedy: str


class RepairRangeError(PartitionError, ValueError):
    """The range to repair is wrong: {problem}. {remedy}"""

    problem: str
    remedy: str


class StepFailed(PartitionError):
    """Making partition {partition} of {table} failed: {reason}. Nothing of it was left behind; the next
    run tries again."""

    table: str
    partition: str
    reason: str


class LockNotAvailable(PartitionError):
    """Locks that partitions of {table} need were not to be had: {reason}. The next run tries again."""

    table: str
    reason: str


class WorkFailed(PartitionError):
    """{what} of {table} failed: {reason}. No row is lost; the next run carries on from there."""

    table: str
    what: str
    reason: str


class NoTableError(PartitionError, LookupError):
    """There is no table {table}. Correct the name, or write it as schema.table."""

    table: str


class ConversionRefused(PartitionError, ValueError):
    """Table {table} cannot be converted: {problems}. Nothing was changed."""

    table: str
    problems: str


class SplitRefused(PartitionError, ValueError):
    """Partition {table} is not split: {problem}. {remedy}. Nothing was changed."""

    table: str
    problem: str
    remedy: str


class SplitFailed(PartitionError):
    """The split of {table} cannot go on: {problem}. Readers and writers see no difference, and no row is
    lost. {remedy}."""

    table: str
    problem: str
    remedy: str


class UnpartitionFailed(PartitionError):
    """Table {table} cannot be made plain for now: {problem}. Readers and writers see no difference, and no
    row is lost. {remedy}."""

    table: str
    problem: str
    remedy: str


class ArchiveError(PartitionError):
    """{table} was not archived: {problem}. Nothing was dropped. {remedy}"""

    table: str
    problem: str
    remedy: str


class ExtraMissing(PartitionError, ImportError):
    """{what} needs {package}, which is not installed. Run: pip install "alembic-partitions[{extra}]"."""

    what: str
    package: str
    extra: str


class RunUnderWay(PartitionError):
    """Another run over the partitions of database {database} has been under way for more than {seconds:g} s
    ({holder}). Nothing was done here. Wait for it to end, then run the command again."""

    database: str
    seconds: float
    holder: str


class UpgradeLockTimeout(PartitionError):
    """Another process has held the migration lock of database {database} for more than {seconds:g} s
    ({holder}). Nothing was migrated here. Wait for it, or raise --lock-timeout
    (ALEMBIC_PARTITIONS_LOCK_TIMEOUT)."""

    database: str
    seconds: float
    holder: str


class UpgradeLockLost(PartitionError):
    """The session that held the migration lock of database {database} ended before the migration was
    committed, so another process may have started the same one. This migration was rolled back: run the
    command again."""

    database: str


class CoverageMissing(PartitionError):
    """The migration is done, but inserts would fail now: no partition for the current window of
    {tables}. {reason}. Run "alembic-partitions ensure" once the cause is gone."""

    tables: str
    reason: str


class SettingError(PartitionError, ValueError):
    """Setting {name} is {value!r}, which is not {expected}. Correct it."""

    name: str
    value: str
    expected: str
