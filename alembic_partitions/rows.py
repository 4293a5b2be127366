"""The partition-key values that a statement is about to send, read from SQLAlchemy's execution context.

Only values that are certain are returned. An expression (``literal + interval``), a server default,
``text()``, ``INSERT ... SELECT`` show nothing here; for those the horizon serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Any

import pytz
from sqlalchemy import BindParameter, ColumnClause, Connection, Dialect, Insert, TableClause, Update
from sqlalchemy.engine.interfaces import ExecutionContext

from . import keys
from .drivers import session_parameter
from .periods import KeyType, KeyValue, iso_time


@dataclass(slots=True)
class Reading:
    """How to read a compiled INSERT or UPDATE: its table, and by key column where the values stand.

    Worked out once a compiled statement, which SQLAlchemy keeps and runs again with other values.
    """

    table: TableClause
    statement: Insert | Update
    columns: dict[str, list[tuple[str, Callable[[Any], Any] | None]]] = field(default_factory=dict)


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


def schema_of(options: Mapping[str, Any], dialect: Dialect, table: TableClause) -> str | None:
    """Return the schema that a table's name means under some execution options."""
    translation = options.get("schema_translate_map")
    own: str | None = table.schema
    if not translation or own not in translation:
        return own
    # Translated to nothing, SQLAlchemy writes the schema that was the default when it first connected.
    return translation[own] or dialect.default_schema_name


def values_of(context: ExecutionContext, reading: Reading, key: str) -> list[Any]:
    """Return what the rows of a statement carry in column ``key``, as the driver will get it."""
    if key not in reading.columns:
        compiled: Any = context.compiled
        # What the execution context itself applies; a TypeDecorator's conversion is among them.
        processors = compiled._bind_processors  # noqa: SLF001
        names = _bind_names(compiled, reading.statement, key)
        reading.columns[key] = [(name, processors.get(name)) for name in names]
    rows: Sequence[dict[str, Any]] = context.compiled_parameters  # type: ignore[attr-defined]
    found: list[Any] = []
    for name, process in reading.columns[key]:
        values = [row[name] for row in rows if name in row]
        found += values if process is None else map(process, values)
    return [value for value in found if value is not None] if None in found else found


def is_rewritten(column: ColumnClause[Any], dialect: Dialect) -> bool:
    """Tell whether the column's type wraps its values in SQL (``bind_expression``), and so changes them."""
    return bool(column.type.dialect_impl(dialect)._has_bind_expression)  # noqa: SLF001


_READING = "_alembic_partitions_reading"
_UNREAD: Any = object()


def _bind_names(compiled: Any, statement: Insert | Update, key: str) -> list[str]:
    """Return under which names a column's values stand among the compiled parameters."""
    column: Any = next((c for c in statement.table.columns if c.name == key), None)
    if column is None or is_rewritten(column, compiled.dialect):
        return []
    if isinstance(statement, Insert) and statement.select is not None:
        return []
    rows = [row for some in getattr(statement, "_multi_values", ()) for row in some]
    if rows:
        given = (_given(row, column) for row in rows if isinstance(row, dict))
        own = (compiled.bind_names.get(value) for value in given if isinstance(value, BindParameter))
        # A Python-side default of the first row goes by the plain name.
        usual = (column.key, *(f"{column.key}_m{index}" for index in range(len(rows))))
        return [*dict.fromkeys((*usual, *filter(None, own)))]
    values = dict(statement._values or {})  # noqa: SLF001  # no public way to ask what .values() was given
    values.update(getattr(statement, "_ordered_values", None) or ())
    expression = _given(values, column)
    if expression is None:
        # An UPDATE may have a bind of that name elsewhere, in its WHERE.
        is_set = column.key in (compiled.column_keys or ()) or column in compiled.update_prefetch
        return [column.key] if isinstance(statement, Insert) or is_set else []
    if isinstance(expression, BindParameter):
        # A plain value stands under the column's name, a bindparam() of the user's under its own.
        return [column.key if expression.unique else expression.key]
    return []  # an expression: what the server makes of it is not known here


def _given(values: Mapping[Any, Any], column: Any) -> Any:
    """Return what was given for a column: by the column (the ORM's is an annotated copy), or by its name."""
    return next((v for c, v in values.items() if getattr(c, "key", c) in (column.key, column.name)), None)


# -- from what the driver gets to what PostgreSQL makes of it -------------------------------------------


def key_values(
    values: Iterable[Any],
    key_type: KeyType,
    connection: Connection,
    host_zone: Callable[[], tzinfo] | None = None,
) -> list[KeyValue]:
    """Return the key values that PostgreSQL will store, doing as the driver in use does.

    A naive datetime for a ``timestamptz`` is read in the session's zone by psycopg, in the host's by asyncpg.
    An aware one for a ``timestamp`` or ``date`` is converted to the session's zone by psycopg. What cannot be
    known for certain is left out.

    :param host_zone: returns the offset that the host's clock has now, by which asyncpg reads a date.
    """
    if keys.is_encoded(key_type):
        instants = (keys.row_value(value, key_type) for value in values)
        return [instant for instant in instants if instant is not None]
    asyncpg = connection.dialect.driver == "asyncpg"
    zone: list[tzinfo | None] = []

    def session_zone() -> tzinfo | None:
        if not zone:
            zone.append(_session_zone(connection))
        return zone[0]

    convert = _ASYNCPG if asyncpg else _PSYCOPG
    found = []
    for value in values:
        # At the ends of the calendar there is no room for another zone's clocks; of the host's own, Python
        # says so by ValueError.
        with suppress(OverflowError, ValueError):
            parsed = _parsed(value, key_type)
            if asyncpg and key_type == "timestamptz" and type(parsed) is date and host_zone is not None:
                parsed = datetime.combine(parsed, time(), host_zone())
            found.append(convert[key_type](parsed, session_zone))
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


def _parsed(value: Any, key_type: KeyType) -> Any:
    if not isinstance(value, str):
        return value
    try:
        parsed = iso_time(value)
    except ValueError:
        return None
    # The offset of a literal for a naive key is dropped (manual, section 8.5.1.3).
    return parsed if key_type == "timestamptz" else parsed.replace(tzinfo=None)


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
