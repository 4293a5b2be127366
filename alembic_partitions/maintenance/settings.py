"""What a run goes by: the clock, and where our two tables are."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from alembic_partitions import catalog
from alembic_partitions.errors import ConfigurationError, SettingError
from alembic_partitions.naming import check_text
from alembic_partitions.periods import iso_time

if TYPE_CHECKING:  # a web process does not pay for Alembic
    from alembic.runtime.migration import MigrationContext

NOW_VARIABLE = "ALEMBIC_PARTITIONS_NOW"
SCHEMA_VARIABLE = "ALEMBIC_PARTITIONS_SCHEMA"
#: The same in alembic.ini, or in the [tool.alembic] of a pyproject.toml.
SCHEMA_OPTION = "alembic_partitions_schema"


def clock(database_now: datetime) -> datetime:
    """Return the instant to work at: the database's, or the one an operator rehearses."""
    rehearsed = os.environ.get(NOW_VARIABLE)
    return database_now if not rehearsed else parse_instant(rehearsed)


def parse_instant(text: str) -> datetime:
    """Read ``ALEMBIC_PARTITIONS_NOW``: an ISO 8601 instant with its offset.

    :raises SettingError: it is none.
    """
    with suppress(ValueError, OverflowError):  # no time at all, or one with no room left for its offset
        instant = iso_time(text)
        if instant.tzinfo is not None:
            return instant.astimezone(timezone.utc)
    raise SettingError(
        name=NOW_VARIABLE,
        value=text,
        expected="an ISO 8601 instant with its offset, such as 2026-04-05T13:37:11+12:00",
    )


def config_home(migration: MigrationContext) -> str | None:
    """Return where a migration's partition_config belongs: as told, else beside alembic_version.

    ``None`` stands for the default schema of the migration's connection.
    """
    told = os.environ.get(SCHEMA_VARIABLE)
    check_text(SCHEMA_VARIABLE, told)
    if not told and migration.config is not None:
        told = migration.config.get_alembic_option(SCHEMA_OPTION)
    return told or migration.version_table_schema


def config_schema(connection: Connection, schema: str | None) -> str | None:
    """Return where partition_config lives: as told, as the environment says, or by our mark.

    :raises PolicyError: no name of PostgreSQL's can be like that.
    :raises ConfigurationError: it is not where it was told to be, but elsewhere; or see
        :func:`catalog.find_config`.
    """
    told = schema or os.environ.get(SCHEMA_VARIABLE) or None
    check_text("schema", told)
    found = catalog.find_config(connection, told, bounded=True)
    elsewhere = catalog.config_schemas(connection) if found is None else []
    if elsewhere:
        raise ConfigurationError(
            problem=f"is not in schema {told!r}, but in " + " and ".join(map(repr, elsewhere)),
            remedy=f"Correct schema= or {SCHEMA_VARIABLE}, or leave it out.",
        )
    return found
