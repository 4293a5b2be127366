"""Databases for the tests: one template a run, cloned in milliseconds for every test."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

SYNC_DRIVERS = ("psycopg2", "psycopg")
ALL_DRIVERS = (*SYNC_DRIVERS, "asyncpg")

TIME_ZONE = "America/St_Johns"


OF_THIS_DATABASE = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
"""For pg_locks, which tells of the whole server: other tests run on it at the same time."""


def locks_referrers(server_version: int) -> bool:
    """Tell whether ATTACH locks the tables that refer to the parent: from 15.9, 16.5 and 17.1 on."""
    return server_version >= {15: 150009, 16: 160005, 17: 170001}.get(server_version // 10000, 0)


@dataclass(frozen=True)
class Database:
    """One test's own database."""

    url: URL
    server_version: int
    """As PostgreSQL counts: 180006 is 18.6."""

    @property
    def name(self) -> str:
        assert self.url.database is not None
        return self.url.database

    def driver_url(self, driver: str) -> URL:
        """Return the address for "psycopg2", "psycopg" or "asyncpg"."""
        return self.url.set(drivername=f"postgresql+{driver}")


class Databases:
    """Makes and drops databases on one server, all of them below one prefix."""

    def __init__(self, server: URL, prefix: str | None = None) -> None:
        self.server = server.set(drivername="postgresql+psycopg2")
        self.prefix = prefix or f"ap_{secrets.token_hex(4)}"
        self._template = f"{self.prefix}_template"
        self._engine: Engine = create_engine(self.server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._version: int | None = None

    @classmethod
    def at(cls, address: str) -> Databases:
        """Take a plain DATABASE_URL, whatever driver it names."""
        return cls(make_url(re.sub(r"^postgres:", "postgresql:", address)))

    @property
    def version(self) -> int:
        if self._version is None:
            with self.admin() as connection:
                self._version = int(connection.scalar(text("SHOW server_version_num")) or 0)
        return self._version

    def describe(self) -> str:
        with self.admin() as connection:
            return str(connection.scalar(text("SHOW server_version")))

    @contextmanager
    def admin(self) -> Iterator[Connection]:
        """Open a connection outside every test database, in autocommit."""
        with self._engine.connect() as connection:
            yield connection

    def alive(self) -> bool:
        for pause in (0, 1):
            time.sleep(pause)
            with suppress(OperationalError), self.admin() as connection:
                return connection.scalar(text("SELECT true")) is True
        return False

    def make_template(self) -> None:
        with self.admin() as connection:
            connection.execute(text(f"CREATE DATABASE {self._template} TEMPLATE template0 ENCODING 'UTF8'"))

    def clone(self, of: str | None = None, name: str | None = None) -> Database:
        """Make a database: an empty one, or a copy of one that nobody is connected to."""
        name, template = name or f"{self.prefix}_{secrets.token_hex(5)}", of or self._template
        with self.admin() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy"))
            if connection.scalar(text("SHOW TimeZone")) != TIME_ZONE:
                connection.execute(text(f"ALTER DATABASE {name} SET TimeZone = '{TIME_ZONE}'"))
        return Database(self.server.set(database=name), self.version)

    def drop(self, name: str) -> None:
        """Drop a database whoever is connected to it, and the roles named after it (`Roles`)."""
        with self.admin() as connection:
            try:
                connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            except DBAPIError:
                self._forget_prepared(name)
                connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
            roles = connection.scalars(
                text("SELECT quote_ident(rolname) FROM pg_roles WHERE starts_with(rolname, :prefix)"),
                {"prefix": f"{name}_"},
            ).all()
            for role in roles:
                connection.execute(text(f"DROP ROLE {role}"))

    def drop_all(self) -> None:
        """Drop whatever this run left, the template included."""
        with self.admin() as connection:
            names = connection.scalars(
                text("SELECT datname FROM pg_database WHERE starts_with(datname, :prefix)"),
                {"prefix": f"{self.prefix}_"},
            ).all()
        for name in names:
            self.drop(name)

    def close(self) -> None:
        self._engine.dispose()

    def _forget_prepared(self, name: str) -> None:
        engine = create_engine(
            self.server.set(database=name), poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            prepared = connection.scalars(
                text("SELECT quote_literal(gid) FROM pg_prepared_xacts WHERE database = current_database()")
            ).all()
            for transaction in prepared:
                connection.execute(text(f"ROLLBACK PREPARED {transaction}"))
        engine.dispose()


@dataclass(frozen=True)
class Roles:
    """Makes login roles that go with the test's database. Our own server asks for no password."""

    databases: Databases
    database: Database

    def create(self, name: str, options: str = "", password: str = "open sesame") -> URL:
        """Create `<database>_<name>` with CREATE ROLE's `options`; return that role's address."""
        role = f"{self.database.name}_{name}"
        with self.databases.admin() as connection:
            connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{password}' {options}"))
        return self.database.url.set(username=role, password=password)
