"""How a partition key that is no time writes instants down: integers that count since 1970, and UUIDv7s.

Pure. Inside the package a key is an instant, whatever its column holds; it becomes an integer or a UUID where
it is sent, and an instant where it is read. Windows begin on whole seconds, so their bounds are exact.

A UUIDv7 begins with 48 bits of milliseconds; PostgreSQL compares bytewise. The bound of an instant is the
least UUID of its millisecond, the rest zero. In some tables bounds carry the version and variant of a UUIDv7
(``7000-8000-000000000000``), or the version alone. They divide UUIDv7s alike, but zeros beside them would
overlap. There (``uuidv7_full``) our lower bounds carry them and our upper ones do not, which overlaps neither
kind; between the two no UUIDv7 has room.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from .periods import KeyType

#: What PostgreSQL calls the types of keys.
SQL_TYPES: Mapping[KeyType, str] = {
    "timestamptz": "timestamptz",
    "timestamp": "timestamp",
    "date": "date",
    "epoch_s": "bigint",
    "epoch_s_int4": "integer",
    "epoch_ms": "bigint",
    "epoch_us": "bigint",
    "epoch_ns": "bigint",
    "uuidv7": "uuid",
    "uuidv7_full": "uuid",
}
#: How many of what a key counts make a second; a UUIDv7 counts milliseconds.
TICKS: Mapping[KeyType, int] = {
    "epoch_s": 1,
    "epoch_s_int4": 1,
    "epoch_ms": 1_000,
    "epoch_us": 1_000_000,
    "epoch_ns": 1_000_000_000,
    "uuidv7": 1_000,
    "uuidv7_full": 1_000,
}

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FIRST, _LAST = (end.replace(tzinfo=timezone.utc) for end in (datetime.min, datetime.max))
_TICK = timedelta(microseconds=1)
_SECOND = 1_000_000
_INT8 = 1 << 63
_UUID_MILLISECONDS = 1 << 48
_REST_BITS = 80
# What may follow the milliseconds in the bound of an instant: nothing, the version, the version and variant.
_FULL = 0x7000_8000_0000_0000_0000
_PLAIN_RESTS = (0, 0x7000_0000_0000_0000_0000, _FULL)
_HAS_VERSION = re.compile(r"-7000-[08]000-0{12}'")
_CANONICAL = len("019d5826-5380-7000-8000-000000000000")
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")


def is_encoded(key_type: KeyType) -> bool:
    """Tell whether a key is an integer or a UUID that stands for an instant."""
    return key_type in TICKS


def bound_text(value: datetime, key_type: KeyType, upper: bool = False) -> str:
    """Write an instant as the bound of an encoded key; beyond what the key can hold, as its first or last."""
    number = (value - _EPOCH) // _TICK * TICKS[key_type] // _SECOND
    if SQL_TYPES[key_type] != "uuid":
        return str(max(-_INT8, min(number, _INT8 - 1)))
    rest = _FULL if key_type == "uuidv7_full" and not upper else 0
    return str(UUID(int=max(0, min(number, _UUID_MILLISECONDS - 1)) << _REST_BITS | rest))


def bound_value(text: str, key_type: KeyType, upper: bool) -> datetime | None:
    """Read a bound of an encoded key; beyond the years 1 to 9999 it is open.

    What a datetime cannot hold is rounded away from what the bound keeps in: nothing is planned over it.
    """
    if SQL_TYPES[key_type] == "uuid":
        whole = UUID(text).int
        number, rest = whole >> _REST_BITS, whole & ((1 << _REST_BITS) - 1)
        number += upper and rest not in _PLAIN_RESTS
    else:
        number = int(text)
    instant = _instant(number, key_type, upper)
    if instant is not None:
        return instant
    if (number < 0) is not upper:
        return None
    return _FIRST if number < 0 else _LAST  # an empty stretch at that end of the calendar


def has_version(printed: str) -> bool:
    """Tell whether a bound as PostgreSQL prints it carries the version of a UUIDv7, and nothing more."""
    return _HAS_VERSION.search(printed) is not None


def row_value(value: Any, key_type: KeyType) -> datetime | None:
    """Return the instant that a row's value of an encoded key stands for, ``None`` where that is not certain.

    Of a UUID of another version, too, the first 48 bits decide. What lies off the calendar is its end.
    """
    number: int | None = None
    with suppress(ValueError, TypeError, AttributeError):
        if SQL_TYPES[key_type] == "uuid":
            number = (value if isinstance(value, UUID) else UUID(value)).int >> _REST_BITS
        elif isinstance(value, str):
            number = int(value) if _INTEGER.fullmatch(value) else None
        elif not isinstance(value, bool):
            number = operator.index(value)
    if number is None:
        return None
    return tick_instant(number, key_type)


def tick_instant(ticks: int, key_type: KeyType) -> datetime:
    """Return the instant of what an encoded key counts; of what lies off the calendar, its end."""
    return _instant(ticks, key_type) or (_FIRST if ticks < 0 else _LAST)


def ends(values: Collection[Any], key_type: KeyType) -> tuple[datetime, datetime] | None:
    """Return the first and the last instant of many values, where these compare as they are."""
    if SQL_TYPES[key_type] == "uuid":
        with suppress(TypeError):  # UUIDs are not texts
            texts = [str.lower(value) for value in values]
            values = texts if {len(value) for value in texts} == {_CANONICAL} else ()
    try:
        low, high = min(values), max(values)
    except (TypeError, ValueError):  # of several kinds, or not to be compared
        return None
    if isinstance(low, str) and SQL_TYPES[key_type] != "uuid":
        return None
    first, last = row_value(low, key_type), row_value(high, key_type)
    return None if first is None or last is None else (first, last)


def doubt(key_type: KeyType) -> str:
    """Return what to mind where a key lies far off: it may be no such key at all."""
    if SQL_TYPES[key_type] == "uuid":
        return " by its first 48 bits, so perhaps no UUIDv7"
    if is_encoded(key_type):
        unit = key_type.split("_")[1]
        return f" when read as {unit} since 1970, so perhaps counted in another unit"
    return ""


def _instant(number: int, key_type: KeyType, up: bool = False) -> datetime | None:
    """Return the instant of so many ticks, ``None`` where the calendar has none."""
    microseconds = number * _SECOND // TICKS[key_type] if not up else -(-number * _SECOND // TICKS[key_type])
    with suppress(OverflowError):
        return _EPOCH + timedelta(microseconds=microseconds)
    return None
