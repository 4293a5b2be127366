"""What the environment says: for the migrations and the service alike."""

from __future__ import annotations

import os

from sqlalchemy import URL, make_url

_YES = {"true", "1", "yes", "on"}
_NO = {"false", "0", "no", "off", ""}


def database_url(driver: str = "psycopg2") -> URL:
    """Return DATABASE_URL for a driver: the migrations' psycopg2, or the service's asyncpg."""
    url = make_url(os.environ.get("DATABASE_URL", "postgresql://localhost/web_analytics"))
    return url.set(drivername=f"postgresql+{driver}")


def ddl_url() -> str | None:
    """Return PARTITION_DATABASE_URL, of the role that owns the tables; without it the service's own does."""
    return os.environ.get("PARTITION_DATABASE_URL") or None


def token() -> str:
    """Return PARTITION_API_TOKEN, that whoever calls /api has to show."""
    return os.environ.get("PARTITION_API_TOKEN", "")


def maintains() -> bool:
    """Tell whether ENABLE_PARTITION_MAINTENANCE has this process run the maintenance; unset it is not."""
    value = os.environ.get("ENABLE_PARTITION_MAINTENANCE", "").strip().lower()
    if value not in _YES | _NO:
        raise ValueError(f"ENABLE_PARTITION_MAINTENANCE is true or false, not {value!r}")
    return value in _YES


def maintained_every() -> str:
    """Return PARTITION_MAINTENANCE_EVERY, as "12h" or "30 min"."""
    return os.environ.get("PARTITION_MAINTENANCE_EVERY", "12h")
