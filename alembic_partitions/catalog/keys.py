"""The partition key in a query, whatever its column holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnClause,
    ColumnElement,
    Date,
    DateTime,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT

from alembic_partitions import keys
from alembic_partitions.periods import KeyType, KeyValue

# For an integer of four bytes, too: what it is compared with may be more than it can hold.
_TYPES: Mapping[str, Any] = {
    "timestamptz": DateTime(timezone=True),
    "timestamp": DateTime(),
    "date": Date(),
    "bigint": BigInteger(),
    "integer": BigInteger(),
    "uuid": Uuid(),
}


def key_column(name: str, key_type: KeyType) -> ColumnClause[Any]:
    """Return the column of a key."""
    return column(name, _TYPES[keys.SQL_TYPES[key_type]])


def key_literal(value: KeyValue, key_type: KeyType, upper: bool = False) -> ColumnElement[Any]:
    """Return a key value as a parameter."""
    text_value = bindparam(None, _written(value, key_type, upper), type_=Text(), unique=True)
    return cast(cast(text_value, Text()), _TYPES[keys.SQL_TYPES[key_type]])


def key_array(values: Sequence[KeyValue], key_type: KeyType) -> ColumnElement[Any]:
    """Return key values as one parameter."""
    texts = [_written(value, key_type) for value in values]
    parameter = bindparam(None, texts, type_=ARRAY(Text()), unique=True)
    return cast(cast(parameter, ARRAY(Text())), ARRAY(_TYPES[keys.SQL_TYPES[key_type]]))


def _written(value: KeyValue, key_type: KeyType, upper: bool = False) -> str:
    # As text: each driver has its own idea of the year 1.
    if isinstance(value, datetime) and keys.is_encoded(key_type):
        return keys.bound_text(value, key_type, upper)
    return value.isoformat()


def printed_ends(key: ColumnElement[Any], key_type: KeyType) -> tuple[ColumnElement[str], ColumnElement[str]]:
    """Return the least and the greatest key of some rows, as PostgreSQL prints them."""
    if keys.SQL_TYPES[key_type] == "uuid":  # min(uuid) comes with PostgreSQL 18; as texts they sort alike
        key = cast(key, Text()).collate("C")
    return cast(func.min(key), Text()), cast(func.max(key), Text())


def ticks_of(key: ColumnElement[Any], key_type: KeyType) -> ColumnElement[int]:
    """Return what an encoded key counts: of a UUID, the milliseconds."""
    if keys.SQL_TYPES[key_type] != "uuid":
        return key
    printed = cast(key, Text())
    digits = func.concat("x0000", func.substr(printed, 1, 8), func.substr(printed, 10, 4))
    return cast(cast(digits, BIT(64)), BigInteger())
