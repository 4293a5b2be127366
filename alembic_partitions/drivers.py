"""What psycopg2, psycopg 3 and asyncpg call by different names, told without a round trip."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

_CLASS = re.compile(r"^<class '[^']*'>:\s*")
# A peer that is gone is noticed in a minute: where we wait for it, and where it does not take what we send.
_KEPT_ALIVE = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_ROW_FIELDS = ("schema_name", "table_name", "constraint_name")


def connect_arguments(driver: str, given: Collection[str], connect_timeout: float) -> dict[str, int]:
    """Return what lets a driver give up a host that does not answer, or does so no more.

    asyncpg has nothing for the latter.

    :param given: options that somebody has set already.
    :param connect_timeout: seconds that connecting may take.
    """
    seconds = max(2, round(connect_timeout))
    options = {"timeout": seconds} if driver == "asyncpg" else {"connect_timeout": seconds, **_KEPT_ALIVE}
    return {name: value for name, value in options.items() if name not in given}


def takes_scripts(connection: Connection) -> bool:
    """Tell whether a driver sends several statements as one message; asyncpg prepares each by itself."""
    raw: Any = connection.connection.dbapi_connection
    return hasattr(raw, "get_backend_pid") or hasattr(raw, "info")


def session_parameter(connection: Connection, name: str) -> str | None:
    """Return a setting that PostgreSQL reports by itself, such as ``TimeZone``."""
    raw: Any = connection.connection.dbapi_connection
    if hasattr(raw, "get_parameter_status"):  # psycopg2
        status = raw.get_parameter_status(name)
    elif hasattr(raw, "info"):  # psycopg 3
        status = raw.info.parameter_status(name)
    else:  # asyncpg, behind SQLAlchemy's adapter
        status = getattr(raw.driver_connection.get_settings(), name, None)
    return None if status is None else str(status)


def backend_pid(connection: Connection) -> int:
    """Return the server process that serves a connection, also while its transaction is aborted."""
    raw: Any = connection.connection.dbapi_connection
    if hasattr(raw, "get_backend_pid"):  # psycopg2
        return int(raw.get_backend_pid())
    if hasattr(raw, "info"):  # psycopg 3
        return int(raw.info.backend_pid)
    return int(raw.driver_connection.get_server_pid())


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of a database error."""
    return sqlstate_of(error.orig)


def sqlstate_of(error: object) -> str | None:
    """Return the SQLSTATE of a driver's own error."""
    for name in ("sqlstate", "pgcode"):
        code = getattr(error, name, None)
        if code:
            return str(code)
    return None


def reason(error: DBAPIError) -> str:
    """Return the first line that the server or driver said: no statement, no parameters."""
    # SQLAlchemy's adapter of asyncpg puts the driver's own class in front.
    lines = _CLASS.sub("", str(error.orig)).strip().splitlines() or [type(error.orig).__name__]
    return lines[0]


def told_of_row(error: BaseException) -> Mapping[str, str | None]:
    """Return what the server said of a failing row: schema, table, constraint, the detail with its key."""
    diag: Any = getattr(error, "diag", None)
    if diag is not None:
        return {name: getattr(diag, name, None) for name in _ROW_FIELDS} | {"detail": diag.message_detail}
    # asyncpg's own error, or the one behind SQLAlchemy's adapter
    cause = error if hasattr(error, "schema_name") else error.__cause__
    return {name: getattr(cause, name, None) for name in (*_ROW_FIELDS, "detail")}


def copy_out(connection: Connection, statement: str, write: Callable[[bytes], object]) -> None:
    """Send a COPY ... TO STDOUT, and hand on what comes.

    :param connection: in a transaction. What the driver or the server raises is the driver's own error.
    """
    raw: Any = connection.connection.dbapi_connection
    own: Any = connection.connection.driver_connection
    if hasattr(raw, "get_backend_pid"):  # psycopg2
        with raw.cursor() as cursor:
            cursor.copy_expert(statement, _Writer(write))
    elif not connection.dialect.is_async:  # psycopg 3
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            for block in copy:
                write(bytes(block))
    elif hasattr(own, "info"):  # psycopg 3, in an event loop
        await_only(_copy_out_async(own, statement, write))
    else:  # asyncpg puts the COPY around a query itself
        query = statement.removeprefix("COPY ").rpartition(" TO STDOUT")[0]

        async def output(block: bytes) -> None:
            write(block)

        await_only(own.copy_from_query(query, output=output, format="csv", header=True))


class _Writer:
    """As much of a file as psycopg2 asks for."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, block: bytes | str) -> int:
        self._write(block.encode() if isinstance(block, str) else block)
        return len(block)


async def _copy_out_async(own: Any, statement: str, write: Callable[[bytes], object]) -> None:
    async with own.cursor() as cursor, cursor.copy(statement) as copy:
        async for block in copy:
            write(bytes(block))
