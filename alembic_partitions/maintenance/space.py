"""Room on the server's disk, where that can be told: SQL has no word for it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Connection

from alembic_partitions import catalog

# The third line of postmaster.pid; the server's own clock may have been read a moment later.
_STARTED_LINE, _CLOSE = 2, 5


def free_bytes(connection: Connection) -> int | None:
    """Return what is free on the disk of a server on this machine.

    ``None`` where that is not to be told: by a role that may not see settings, from another machine, or who
    may not look into its folder.
    """
    folder, started = catalog.read_place(connection)
    if folder is None:
        return None
    with suppress(OSError, ValueError, IndexError):
        # A folder of that name on another machine is another folder.
        told = int((Path(folder) / "postmaster.pid").read_text().splitlines()[_STARTED_LINE])
        if abs(told - started) <= _CLOSE:
            return shutil.disk_usage(folder).free
    return None


def lacking_room(connection: Connection, needed: int) -> str | None:
    """Return why there is no room for a copy; ``None`` where there is, or nobody can tell.

    :param needed: bytes that it will take.
    :param connection: not in a transaction.
    """
    with connection.begin():
        free = free_bytes(connection)
    if free is None or free >= needed:
        return None
    return f"a copy needs {needed:,} bytes, and {free:,} are free on the server's disk"
