"""The policy of a partitioned table, and how it hangs on a :class:`sqlalchemy.Table`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import time
from typing import Any, Literal, TypeAlias, get_args

import pytz
from sqlalchemy import Column, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import PrimaryKeyConstraint, SchemaItem
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.sql.compiler import IdentifierPreparer
from sqlalchemy.util import immutabledict

from .errors import PolicyError
from .naming import check_name, check_text, fits, is_text
from .periods import INTERVALS, WEEKDAYS, Grid, Interval, KeyType, Period, changes_clocks

OnExpiry: TypeAlias = Literal["detach", "drop", "archive"]
Epoch: TypeAlias = Literal["s", "ms", "us", "ns"]

#: Windows that stand ready after the current one, unless the policy says otherwise.
DEFAULT_PREMAKE: Mapping[Interval, int] = {
    "hour": 48,
    "day": 30,
    "week": 8,
    "month": 6,
    "quarter": 4,
    "year": 2,
}
#: In what was declared of a table: no migration did, so a model that says nothing of partitions is right.
BY_HAND = "by_hand"
#: Where the policy of a table is kept in ``Table.info``.
INFO_KEY = "alembic_partitions"

_MAX_WINDOWS = 10_000
# Characters of a value that an error shows.
_LONGEST_SHOWN = 200
_KEY_TYPES: Mapping[str, KeyType] = {
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "date": "date",
    "uuid": "uuidv7",
}
_EPOCHS: Mapping[Epoch, KeyType] = {"s": "epoch_s", "ms": "epoch_ms", "us": "epoch_us", "ns": "epoch_ns"}
_PREPARER = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
_STORAGE_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")


@dataclass(frozen=True, repr=False)
class PartitionPolicy(SchemaItem):
    """How a table is partitioned by time, and how its partitions are kept.

    Give it to ``__table_args__`` of a model, to a ``Table``, or as ``policy=`` to
    ``op.create_partitioned_table``. It is frozen and checked when it is made.

    :param key: name of the partition key: a ``timestamptz``, ``timestamp`` or ``date`` column, a ``bigint``
        or ``integer`` one that counts since 1970-01-01 UTC (see ``epoch``), or a ``uuid`` one of UUIDv7s.
    :param epoch: what an integer key counts: ``s``, ``ms``, ``us`` or ``ns``; ``None`` for any other key.
    :param interval: length of a window: ``hour day week month quarter year``.
    :param every: how many intervals make a window. Hours restart each day, so ``every`` divides 24.
    :param timezone: IANA zone in whose local time windows begin.
    :param day_start: wall-clock time, ``"HH:MM"``, at which a day (and so a week, month...) begins.
    :param week_start: the weekday on which a week begins.
    :param premake: windows kept ready after the current one (default by interval: 48 hours, 30 days, 8
        weeks, 6 months, 4 quarters, 2 years).
    :param lookback: windows kept ready before the current one.
    :param retention: how long rows are kept, ``"90 days"``, ``"12 months"``; ``None`` keeps everything.
    :param on_expiry: what becomes of an expired partition: ``detach``, ``drop`` or ``archive``.
    :param grace: how long a detached partition is kept before it is dropped.
    :param max_ahead: how far after now a row may make a partition by itself.
    :param max_behind: how far before now; ``None`` reaches as far as ``retention``, or without limit.
    :param max_create: how many windows one statement may make.
    :param max_drops: how many partitions one maintenance run may remove.
    :param column_timezone: for a ``timestamp`` key, the zone its naive values are written in
        (default: ``timezone``). Under a day it must be a zone without clock changes.
    :param archive_schema: where ``archive`` moves partitions.
    :param tablespace: where new partitions are stored.
    :param storage_parameters: ``WITH (...)`` of new partitions, such as ``{"fillfactor": 70}``.
    :param enabled: ``False`` leaves the table alone in every run.
    :raises PolicyError: a field is wrong; the error names it and says what to do.
    """

    __visit_name__ = "alembic_partition_policy"

    key: str
    _: dataclasses.KW_ONLY
    interval: Interval = "day"
    every: int = 1
    timezone: str = "UTC"
    day_start: str = "00:00"
    week_start: str = "monday"
    premake: int = None  # type: ignore[assignment]  # None asks for the interval's default
    lookback: int = 1
    retention: str | None = None
    on_expiry: OnExpiry = "detach"
    grace: str = "7 days"
    max_ahead: str = "366 days"
    max_behind: str | None = None
    max_create: int = 400
    max_drops: int = 10
    column_timezone: str | None = None
    epoch: Epoch | None = None
    archive_schema: str | None = None
    tablespace: str | None = None
    storage_parameters: Mapping[str, str] = field(default_factory=immutabledict, hash=False)
    enabled: bool = True

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(self, name, getattr(self, name)))

    # -- as data ---------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as a plain dict of JSON values, every field named."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**values, "storage_parameters": dict(self.storage_parameters)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PartitionPolicy:
        """Make a policy from what :meth:`to_dict` returned; fields left out take their defaults."""
        _refuse_unknown(values)
        if "key" not in values:
            raise PolicyError(field="key", problem="it is missing", remedy="Name the partition key.")
        return cls(**values)

    def changed(self, **fields: Any) -> PartitionPolicy:
        """Return the policy with some fields changed, checked anew."""
        _refuse_unknown(fields)
        return dataclasses.replace(self, **fields)

    def __repr__(self) -> str:
        defaults = PartitionPolicy(self.key, interval=self.interval).to_dict() | {"interval": "day"}
        given = (f"{k}={v!r}" for k, v in self.to_dict().items() if v != defaults[k])
        return f"PartitionPolicy({', '.join([repr(self.key), *given])})"

    # -- as windows ------------------------------------------------------------------------------------

    def key_type_of(self, sql_type: str, table: str = "") -> KeyType:
        """Return what a key of that type holds.

        :param sql_type: as PostgreSQL calls it, such as ``timestamp with time zone``.
        :param table: whose key it is, for the error.
        :raises PolicyError: it holds no time, or an integer of which ``epoch`` does not tell what it counts.
        """
        told = f"column {self.key!r}{table and f' of {table!r}'} is of type {sql_type}"
        if sql_type not in ("bigint", "integer"):
            if sql_type in _KEY_TYPES:
                return _KEY_TYPES[sql_type]
            raise PolicyError(
                field="key",
                problem=told,
                remedy="Partition by a timestamptz, timestamp or date column, by a bigint or integer that"
                " counts since 1970 (epoch=), or by a uuid that is a UUIDv7.",
            )
        if self.epoch is None:
            raise PolicyError(
                field="epoch",
                problem=f"{told}, and nothing says what it counts",
                remedy='Give its unit since 1970-01-01 UTC: epoch="s", "ms", "us" or "ns".',
            )
        if sql_type == "integer":
            return "epoch_s_int4"
        return _EPOCHS[self.epoch]

    @property
    def usual_key_type(self) -> KeyType:
        """What the key holds, as far as that shows without its column."""
        return "timestamptz" if self.epoch is None else _EPOCHS[self.epoch]

    def grid(self, key_type: KeyType) -> Grid:
        """Return the windows over a key of that type.

        :raises PolicyError: the interval, ``column_timezone`` or ``epoch`` does not fit the type of the key.
        """
        if self.epoch is not None and not key_type.startswith("epoch_"):
            raise PolicyError(
                field="epoch",
                problem=f"column {self.key!r} is no integer, so it counts nothing",
                remedy="Leave epoch out.",
            )
        if key_type == "epoch_s_int4" and self.epoch not in (None, "s"):
            raise PolicyError(
                field="epoch",
                problem=f"column {self.key!r} is an integer of four bytes, too short for {self.epoch}",
                remedy='Make it a bigint, or count seconds: epoch="s".',
            )
        column_timezone = self.column_timezone or self.timezone
        if key_type == "date" and self.interval == "hour":
            raise PolicyError(
                field="interval",
                problem=f"hours cannot divide the date column {self.key!r}",
                remedy='Use interval="day" or longer, or a timestamptz key.',
            )
        if key_type == "timestamp" and self.interval == "hour" and changes_clocks(column_timezone):
            raise PolicyError(
                field="column_timezone",
                problem=f"the naive values of {self.key!r} cannot tell the repeated hour of "
                f"{column_timezone}",
                remedy='Write them in a zone without clock changes (column_timezone="UTC"), '
                "or use timestamptz.",
            )
        hour, minute = map(int, self.day_start.split(":"))
        return Grid(
            interval=self.interval,
            every=self.every,
            timezone=self.timezone,
            day_start=time(hour, minute),
            week_start=WEEKDAYS.index(self.week_start),
            key_type=key_type,
            column_timezone=column_timezone,
        )

    # -- on a table ------------------------------------------------------------------------------------

    @property
    def partition_by(self) -> str:
        """The text after PARTITION BY, with the key quoted where PostgreSQL needs it."""
        return self.partition_by_for(_PREPARER)

    def partition_by_for(self, preparer: IdentifierPreparer) -> str:
        """Return the text after PARTITION BY for one driver, whose placeholders may double a "%"."""
        return f"RANGE ({preparer.quote(self.key)})"

    def _set_parent(self, parent: SchemaEventTarget, **kw: Any) -> None:
        if not isinstance(parent, Table):
            raise PolicyError(
                field="key", problem="a policy belongs to a table", remedy="Put it into __table_args__."
            )
        options = parent.dialect_options["postgresql"]
        if parent.info.get(INFO_KEY) == self:
            return  # extend_existing: the same declaration once more
        if INFO_KEY in parent.info or options["partition_by"] not in (None, self.partition_by):
            other = parent.info.get(INFO_KEY) or f"postgresql_partition_by={options['partition_by']!r}"
            raise PolicyError(
                field="key",
                problem=f"table {parent.fullname!r} is partitioned already, by {other}",
                remedy="Keep one of the two.",
            )
        parent.info[INFO_KEY] = self
        options["partition_by"] = self.partition_by

    def check_table(self, table: Table) -> KeyType:
        """Check that ``table`` can be partitioned by this policy, and return the type of its key.

        :raises PolicyError: the key is not a column, is nullable, is of a type that has no time, or is
            missing from the primary key or a unique constraint (PostgreSQL manual, section 5.12.2.3).
        """
        name = table.fullname
        check_text("schema", table.schema)
        check_name("table", table.name)
        for any_column in table.columns:
            check_text("column", any_column.name)
        if not fits(table.name):
            raise PolicyError(
                field="key",
                problem=f"the table name {table.name!r} is longer than the 63 bytes PostgreSQL keeps",
                remedy="Shorten it.",
            )
        column = next((c for c in table.columns if c.name == self.key), None)
        if column is None:
            raise PolicyError(
                field="key",
                problem=f"table {name!r} has no column {self.key!r}",
                remedy=f"Its columns are {', '.join(c.name for c in table.columns)}.",
            )
        key_type = self.key_type_of(_sql_type(column), name)
        if column.nullable:
            raise PolicyError(
                field="key",
                problem=f"column {self.key!r} of {name!r} is nullable, and a row without it fits no window",
                remedy="Declare it with nullable=False.",
            )
        for constraint in table.constraints:
            if not isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint)):
                continue
            if constraint.columns and column not in set(constraint.columns):
                kind = "primary key" if isinstance(constraint, PrimaryKeyConstraint) else "unique constraint"
                raise PolicyError(
                    field="key",
                    problem=f"the {kind} of {name!r} lacks the partition key {self.key!r}",
                    remedy="PostgreSQL keeps uniqueness within a partition only: add the key to it.",
                )
        for index in table.indexes:
            told = all(isinstance(expression, Column) for expression in index.expressions)
            if index.unique and told and column not in set(index.columns):
                raise PolicyError(
                    field="key",
                    problem=f"the unique index {index.name!r} of {name!r} lacks the partition key "
                    f"{self.key!r}",
                    remedy="PostgreSQL keeps uniqueness within a partition only: add the key to it.",
                )
        self.grid(key_type)
        return key_type


def nz_racing_day(key: str, **fields: Any) -> PartitionPolicy:
    """Return the policy of New Zealand's racing day: ``Pacific/Auckland``, midnight to midnight local.

    :param key: name of the partition key.
    :param fields: other fields of :class:`PartitionPolicy`, such as ``premake`` and ``retention``.
    :raises PolicyError: a field is wrong, or one that the racing day decides is given.
    """
    fixed = {"interval": "day", "every": 1, "timezone": "Pacific/Auckland", "day_start": "00:00"}
    for name in fixed.keys() & fields.keys():
        raise PolicyError(
            field=name, problem="nz_racing_day() decides it", remedy="Use PartitionPolicy() for another day."
        )
    _refuse_unknown(fields)
    return PartitionPolicy(key, **fixed, **fields)  # type: ignore[arg-type]


def policy_of(table: Table) -> PartitionPolicy | None:
    """Return the policy that hangs on a table, if there is one."""
    policy = table.info.get(INFO_KEY)
    return policy if isinstance(policy, PartitionPolicy) else None


def _sql_type(column: Column[Any]) -> str:
    """Return what PostgreSQL calls the type of a column; of what cannot be a key, what SQLAlchemy does."""
    # The compiled type sees through TypeDecorator, variants and dialect types alike.
    try:
        text = column.type.compile(dialect=postgresql.dialect()).upper()  # type: ignore[no-untyped-call]
    except CompileError:  # no type at all
        return repr(column.type)
    if text.startswith("TIMESTAMP"):
        zoned = text.endswith("WITH TIME ZONE") or "TZ" in text
        return f"timestamp {'with' if zoned else 'without'} time zone"
    return str(text).lower()


# -- checks: each returns the value to keep, or raises --------------------------------------------------

_Check: TypeAlias = Callable[[PartitionPolicy, str, Any], Any]


def _refuse(field: str, value: object, expected: str) -> PolicyError:
    return PolicyError(field=field, problem=f"{_shown(value)} is not {expected}", remedy=f"Give {expected}.")


def _shown(value: object) -> str:
    """Write a value down for an error, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return f"a {type(value).__name__} of that size"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _refuse_unknown(fields: Mapping[str, Any]) -> None:
    known = {item.name for item in dataclasses.fields(PartitionPolicy)}
    for name in fields.keys() - known:
        raise PolicyError(
            field=name, problem="there is no such field", remedy=f"Fields are {', '.join(sorted(known))}."
        )


def _identifier(policy: PartitionPolicy, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or not fits(value):
        raise _refuse(name, value, "a name of 1 to 63 bytes")
    return value


def _one_of(*choices: str) -> _Check:
    def check(policy: PartitionPolicy, name: str, value: Any) -> str:
        if value not in choices:
            raise _refuse(name, value, "one of " + ", ".join(choices))
        return str(value)

    return check


def _whole(least: int, most: int) -> _Check:
    def check(policy: PartitionPolicy, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _refuse(name, value, f"a whole number from {least} to {most}")
        return value

    return check


def _every(policy: PartitionPolicy, name: str, value: Any) -> int:
    count: int = _whole(1, 1000)(policy, name, value)
    if policy.interval == "hour" and 24 % count:
        raise _refuse(name, value, "a number of hours that divides 24")
    return count


def _premake(policy: PartitionPolicy, name: str, value: Any) -> int:
    default = DEFAULT_PREMAKE[policy.interval]
    count: int = _whole(0, _MAX_WINDOWS)(policy, name, default if value is None else value)
    return count


def _timezone(policy: PartitionPolicy, name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in pytz.all_timezones_set:
        raise _refuse(name, value, 'an IANA time zone such as "UTC" or "Pacific/Auckland"')
    return str(value)


def _day_start(policy: PartitionPolicy, name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise _refuse(name, value, 'a wall-clock time from "00:00" to "23:59"')
    return value


def _period(policy: PartitionPolicy, name: str, value: Any) -> str:
    try:
        Period.parse(value)
    except (ValueError, TypeError):
        raise _refuse(name, value, 'a period such as "90 days" or "12 months"') from None
    return str(value)


def _storage_parameters(policy: PartitionPolicy, name: str, value: Any) -> Mapping[str, str]:
    items = value.items() if isinstance(value, Mapping) else None
    expected = 'a mapping of storage parameters such as {"fillfactor": 70}'
    if items is None or not all(
        isinstance(k, str) and _STORAGE_PARAMETER.fullmatch(k) and isinstance(v, (str, int, float))
        for k, v in items
    ):
        raise _refuse(name, value, expected)
    try:
        texts = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in items}
    except ValueError:  # Python writes no whole number of more than 4300 digits
        raise _refuse(name, value, expected) from None
    if not all(map(is_text, texts.values())):
        raise _refuse(name, value, expected)
    return immutabledict(texts)


def _flag(policy: PartitionPolicy, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "True or False")
    return value


def _optional(check: _Check) -> _Check:
    return lambda policy, name, value: None if value is None else check(policy, name, value)


_CHECKS: Mapping[str, _Check] = {
    "key": _identifier,
    "interval": _one_of(*INTERVALS),
    "every": _every,
    "timezone": _timezone,
    "day_start": _day_start,
    "week_start": _one_of(*WEEKDAYS),
    "premake": _premake,
    "lookback": _whole(0, _MAX_WINDOWS),
    "retention": _optional(_period),
    "on_expiry": _one_of(*get_args(OnExpiry)),
    "grace": _period,
    "max_ahead": _period,
    "max_behind": _optional(_period),
    "max_create": _whole(1, _MAX_WINDOWS),
    "max_drops": _whole(1, _MAX_WINDOWS),
    "column_timezone": _optional(_timezone),
    "epoch": _optional(_one_of(*get_args(Epoch))),
    "archive_schema": _optional(_identifier),
    "tablespace": _optional(_identifier),
    "storage_parameters": _storage_parameters,
    "enabled": _flag,
}
