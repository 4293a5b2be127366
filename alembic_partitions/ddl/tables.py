"""Our two tables. The database itself refuses a wrong value."""

from __future__ import annotations

from functools import lru_cache

import pytz
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    Time,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB

_PERIOD = "~ '^[1-9][0-9]{0,5} (hour|day|week|month|quarter|year)s?$'"
# A zone that PostgreSQL does not know makes AT TIME ZONE itself fail. It knows more than IANA's, though:
# abbreviations (NZST) and POSIX rules (UTC+5), which have no history and are refused by their looks.
_ZONE = (
    "({0} ~ '^[A-Z][A-Za-z_]+(/[A-Z][A-Za-z0-9_+-]*)+$' OR {0} IN ("
    + ", ".join(f"'{name}'" for name in pytz.all_timezones if "/" not in name)
    + ")) AND ('2000-01-01 00:00:00+00'::timestamptz AT TIME ZONE {0}) IS NOT NULL"
)
_NAME = "octet_length({0}) BETWEEN 1 AND 63"
_WEEKDAYS = "('monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday')"

#: CHECK constraints of partition_config by column. The database itself refuses a wrong value.
_CHECKS = {
    "interval": "interval IN ('hour', 'day', 'week', 'month', 'quarter', 'year')",
    # mod(), as a "%" is doubled on its way through some drivers, and with --sql stays so.
    "every": "every BETWEEN 1 AND 1000 AND (interval <> 'hour' OR mod(24, every) = 0)",
    "timezone": _ZONE.format("timezone"),
    "day_start": "day_start = date_trunc('minute', day_start::interval)::time",
    "week_start": f"week_start IN {_WEEKDAYS}",
    "premake": "premake BETWEEN 0 AND 10000",
    "lookback": "lookback BETWEEN 0 AND 10000",
    "retention": f"retention {_PERIOD}",
    "on_expiry": "on_expiry IN ('detach', 'drop', 'archive')",
    "grace": f"grace {_PERIOD}",
    "max_ahead": f"max_ahead {_PERIOD}",
    "max_behind": f"max_behind {_PERIOD}",
    "max_create": "max_create BETWEEN 1 AND 10000",
    "max_drops": "max_drops BETWEEN 1 AND 10000",
    "column_timezone": "column_timezone IS NULL OR " + _ZONE.format("column_timezone"),
    "epoch": "epoch IN ('s', 'ms', 'us', 'ns')",
    "partition_key": _NAME.format("partition_key"),
    "archive_schema": _NAME.format("archive_schema"),
    "tablespace": _NAME.format("tablespace"),
    "storage_parameters": "jsonb_typeof(storage_parameters) = 'object' AND NOT jsonb_path_exists("
    "storage_parameters, 'strict $.* ? (@.type() like_regex \"^(array|object|null)$\")')",
}


def column_check(name: str) -> str:
    """Return the CHECK constraint of a column, as it stands in DDL."""
    return f"CONSTRAINT partition_config_{name}_check CHECK ({_CHECKS[name]})"


def config_table(schema: str | None) -> Table:
    """Return partition_config: the values in force, editable by SQL, and beside them what was declared."""
    return Table(
        "partition_config",
        MetaData(),
        Column("table_schema", Text, primary_key=True),
        Column("table_name", Text, primary_key=True),
        Column("partition_key", Text, nullable=False),
        Column("interval", Text, nullable=False),
        Column("every", Integer, nullable=False),
        Column("timezone", Text, nullable=False),
        Column("day_start", Time, nullable=False),
        Column("week_start", Text, nullable=False),
        Column("premake", Integer, nullable=False),
        Column("lookback", Integer, nullable=False),
        Column("retention", Text),
        Column("on_expiry", Text, nullable=False),
        Column("grace", Text, nullable=False),
        Column("max_ahead", Text, nullable=False),
        Column("max_behind", Text),
        Column("max_create", Integer, nullable=False),
        Column("max_drops", Integer, nullable=False),
        Column("column_timezone", Text),
        Column("epoch", Text),
        Column("archive_schema", Text),
        Column("tablespace", Text),
        Column("storage_parameters", JSONB, nullable=False),
        Column("enabled", Boolean, nullable=False),
        Column("declared", JSONB, nullable=False),
        *(CheckConstraint(text, name=f"partition_config_{name}_check") for name, text in _CHECKS.items()),
        schema=schema,
    )


@lru_cache(maxsize=64)
def runs_table(schema: str | None) -> Table:
    """Return partition_runs: one row a run that changed something or failed."""
    return Table(
        "partition_runs",
        MetaData(),
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("started_at", DateTime(timezone=True), nullable=False),
        Column("finished_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
        Column("action", Text, nullable=False),
        Column("run_by", Text, nullable=False, server_default=func.current_user()),
        Column("application", Text, server_default=func.current_setting("application_name")),
        Column("created", Integer, nullable=False, server_default="0"),
        Column("detached", Integer, nullable=False, server_default="0"),
        Column("dropped", Integer, nullable=False, server_default="0"),
        Column("archived", Integer, nullable=False, server_default="0"),
        Column("moved", BigInteger, nullable=False, server_default="0"),
        Column("error", Text),
        Column("details", JSONB),
        schema=schema,
    )
