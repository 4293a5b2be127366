"""Where the database is: for the migrations and the recorder alike."""

from __future__ import annotations

import os

from sqlalchemy import URL, make_url


def database_url() -> URL:
    """Return DATABASE_URL; without a driver it means psycopg2."""
    url = make_url(os.environ.get("DATABASE_URL", "postgresql://localhost/sensor_events"))
    return url if "+" in url.drivername else url.set(drivername="postgresql+psycopg2")
