"""The partition-key values that a statement is about to send, read from SQLAlchemy's execution context.

Only values that are certain are returned. An expression (``literal + interval``), a server default,
``text()``, ``INSERT ... SELECT`` show nothing here; for those the horizon serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from typing import Any

import pytz
from sqlalchemy import BindParameter, Connection, Insert, TableClause, Update
from sqlalchemy.engine.interfaces import ExecutionContext

from .drivers import session_parameter
from .periods import KeyType, KeyValue, iso_time


@dataclass(slots=True)
class Reading:
    """How to read a compiled INSERT or UPDATE: its table, and by key column where the values stand.

    Worked out once a compiled statement, which SQLAlchemy keeps and runs again with other values.
    """

    table: TableClause
    statement: Insert | Update
    columns: dict[str, tuple[list[str], Callable[[Any], Any] | None]] = field(default_factory=dict)


def reading_of(context: ExecutionContext) -> Reading | None:
    """Return how to read what is about to be sent, or ``None`` where it writes no rows that can be seen."""
    compiled = context.compiled
    if compiled is None:
        return None
    known: Reading | None = compiled.__dict__.get(_READING, _UNREAD)
    if known is _UNREAD:
        statement = getattr(compiled.compile_state, "statement", None)
        known = None
        if isinstance(statement, (Insert, Update)) and isinstance(statement.table, TableClause):
            known = Reading(statement.table, statement)
        setattr(compiled, _READING, known)
    return known


def schema_of(context: ExecutionContext, table: TableClause) -> str | None:
    """Return the schema that a table's name means, after translation."""
    translation = context.execution_options.get("schema_translate_map")
    own: str | None = table.schema
    return translation.get(own, own) if translation else own


def values_of(context: ExecutionContext, reading: Reading, key: str) -> list[Any]:
    """Return what the rows of a statement carry in column ``key``, as the driver will get it."""
    if key not in reading.columns:
        names = _bind_names(reading.statement, key)
        # What the execution context itself applies; a TypeDecorator's conversion is among them.
        processors = context.compiled._bind_processors  # type: ignore[union-attr]  # noqa: SLF001
        reading.columns[key] = names, processors.get(names[0]) if names else None
    names, process = reading.columns[key]
    rows: Sequence[dict[str, Any]] = context.compiled_parameters  # type: ignore[attr-defined]
    values = [row[name] for name in names for row in rows if name in row]
    if process is not None:
        values = [process(value) for value in values]
    return [value for value in values if value is not None] if None in values else values


_READING = "_alembic_partitions_reading"
_UNREAD: Any = object()


def _bind_names(statement: Insert | Update, key: str) -> list[str]:
    """Return under which names a column's values stand among the compiled parameters."""
    column = next((c for c in statement.table.columns if c.name == key), None)
    if column is None or (isinstance(statement, Insert) and statement.select is not None):
        return []
    rows = sum(map(len, getattr(statement, "_multi_values", ())))
    if rows:
        # A Python-side default of the first row goes by the plain name.
        return [column.key, *(f"{column.key}_m{index}" for index in range(rows))]
    given = dict(statement._values or {})  # noqa: SLF001  # no public way to ask what .values() was given
    given.update(getattr(statement, "_ordered_values", None) or ())
    # Given by column (the ORM's is an annotated copy), or by name.
    expression = next(
        (v for c, v in given.items() if getattr(c, "key", c) in (column.key, column.name)), None
    )
    if expression is None:
        return [column.key]
    if isinstance(expression, BindParameter):
        # A plain value stands under the column's name, a bindparam() of the user's under its own.
        return [column.key if expression.unique else expression.key]
    return []  # an expression: what the server makes of it is not known here


# -- from what the driver gets to what PostgreSQL makes of it -------------------------------------------


def key_values(values: Iterable[Any], key_type: KeyType, connection: Connection) -> list[KeyValue]:
    """Return the key values that PostgreSQL will store, doing as the driver in use does.

    A naive datetime for a ``timestamptz`` is read in the session's zone by psycopg, in the host's by asyncpg.
    An aware one for a ``timestamp`` or ``date`` is converted to the session's zone by psycopg. What cannot be
    known for certain is left out.
    """
    asyncpg = connection.dialect.driver == "asyncpg"
    zone: list[tzinfo | None] = []

    def session_zone() -> tzinfo | None:
        if not zone:
            zone.append(_session_zone(connection))
        return zone[0]

    convert = _ASYNCPG if asyncpg else _PSYCOPG
    found = []
    for value in values:
        with suppress(
            OverflowError
        ):  # at the ends of the calendar there is no room for another zone's clocks
            found.append(convert[key_type](_parsed(value), session_zone))
    return [value for value in found if value is not None]


def rounded(value: KeyValue, precision: int | None) -> KeyValue:
    """Return what a column that keeps ``precision`` digits of the second makes of a value.

    The nearest; of two, the one further from 2000-01-01, where PostgreSQL counts from.
    """
    if precision is None or not isinstance(value, datetime):
        return value
    zero, unit = datetime(2000, 1, 1, tzinfo=value.tzinfo), 10 ** (6 - precision)
    ticks = (value - zero) // timedelta(microseconds=1)
    nearest = (abs(ticks) + unit // 2) // unit * unit
    with suppress(OverflowError):
        return zero + timedelta(microseconds=nearest if ticks >= 0 else -nearest)
    return value


_Zone = Callable[[], "tzinfo | None"]


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return iso_time(value)
    except ValueError:
        return None


def _instant(value: Any, session_zone: _Zone) -> KeyValue | None:
    if isinstance(value, datetime):
        return value.astimezone(pytz.utc) if value.tzinfo else _localized(value, session_zone())
    if isinstance(value, date):
        return _localized(datetime.combine(value, datetime.min.time()), session_zone())
    return None


def _naive(value: Any, session_zone: _Zone) -> KeyValue | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value
        zone = session_zone()
        return None if zone is None else value.astimezone(zone).replace(tzinfo=None)
    return datetime.combine(value, datetime.min.time()) if isinstance(value, date) else None


def _date(value: Any, session_zone: _Zone) -> KeyValue | None:
    naive = _naive(value, session_zone)
    return naive.date() if isinstance(naive, datetime) else naive


def _host_instant(value: Any, session_zone: _Zone) -> KeyValue | None:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, datetime.min.time())
    return value.astimezone(pytz.utc) if isinstance(value, datetime) else None


def _as_written(value: Any, session_zone: _Zone) -> KeyValue | None:
    if isinstance(value, datetime):
        return value if value.tzinfo is None else None  # asyncpg refuses an aware one
    return datetime.combine(value, datetime.min.time()) if isinstance(value, date) else None


def _date_as_written(value: Any, session_zone: _Zone) -> KeyValue | None:
    return value.date() if isinstance(value, datetime) else value if isinstance(value, date) else None


_PSYCOPG = {"timestamptz": _instant, "timestamp": _naive, "date": _date}
_ASYNCPG = {"timestamptz": _host_instant, "timestamp": _as_written, "date": _date_as_written}


def _localized(value: datetime, zone: tzinfo | None) -> datetime | None:
    if zone is None:
        return None
    if isinstance(zone, pytz.tzinfo.BaseTzInfo):
        # PostgreSQL takes the standard-time offset where a local time happens twice or not at all.
        return zone.localize(value, is_dst=False).astimezone(pytz.utc)
    return value.replace(tzinfo=zone).astimezone(pytz.utc)


def _session_zone(connection: Connection) -> tzinfo | None:
    try:
        return pytz.timezone(session_parameter(connection, "TimeZone") or "")
    except pytz.UnknownTimeZoneError:
        return None
