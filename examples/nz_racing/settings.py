"""Where the database is: for the migrations, the ingest and the plans alike."""

from __future__ import annotations

import os
from configparser import ConfigParser
from pathlib import Path

from sqlalchemy import URL, make_url


def database_url() -> URL:
    """Return DATABASE_URL, else the URL in alembic.ini; without a driver it means psycopg2."""
    ini = ConfigParser()
    ini.read(Path(__file__).with_name("alembic.ini"))
    url = make_url(os.environ.get("DATABASE_URL") or ini.get("alembic", "sqlalchemy.url", raw=True))
    return url if "+" in url.drivername else url.set(drivername="postgresql+psycopg2")
