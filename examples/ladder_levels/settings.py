"""Where the database is, and as whom: three roles, one for each kind of work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import URL, make_url


class SettingsError(Exception):
    """Something is not set. The message says what, and what for."""


def migration_url() -> URL:
    """Return DATABASE_URL, for migrations alone: whoever may create a schema."""
    url = make_url(os.environ.get("DATABASE_URL", "postgresql://localhost/exchange"))
    return url if "+" in url.drivername else url.set(drivername="postgresql+psycopg2")


@dataclass(frozen=True)
class Settings:
    """What the recorder runs with."""

    stream: URL
    """The stream writer, who inserts and reads."""
    partitions: URL
    """The partition role, who owns the table."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read ``POSTGRES_*``.

        :raises SettingsError: one of the four that name the roles is missing, or both roles are one.
        """
        partition = _role(environment, "POSTGRES_PARTITION")
        stream = _role(environment, "POSTGRES")
        if partition[0] == stream[0]:
            raise SettingsError(
                f"POSTGRES_PARTITION_USER and POSTGRES_USER are both {stream[0]}: the stream writer is to"
                " have INSERT and SELECT alone. Make a role for the partitions: see roles.sql."
            )
        return cls(_url(environment, *stream), _url(environment, *partition))


_WHOSE = {
    "POSTGRES": "They are the stream writer's.",
    "POSTGRES_PARTITION": "Both are required: the partition role owns the table, and the stream writer's"
    " credentials are never taken in place of its own.",
}


def _role(environment: Mapping[str, str], prefix: str) -> tuple[str, str]:
    names = (f"{prefix}_USER", f"{prefix}_PASSWORD")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise SettingsError(f"{' and '.join(missing)} {verb} not set. {_WHOSE[prefix]} See roles.sql.")
    return environment[names[0]], environment[names[1]]


def _url(environment: Mapping[str, str], user: str, password: str) -> URL:
    host = environment.get("POSTGRES_HOST", "localhost")
    folder = host.startswith("/")  # with a socket in it: no host that a URL can hold
    return URL.create(
        "postgresql+asyncpg",
        user,
        password,
        None if folder else host,
        int(environment.get("POSTGRES_PORT", "5432")),
        environment.get("POSTGRES_DB", "exchange"),
        {"host": host} if folder else {},
    )
