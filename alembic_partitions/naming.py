"""Names of partitions: readable, at most 63 bytes, and never two alike."""

from __future__ import annotations

import hashlib
from collections.abc import Container

from .errors import PolicyError

# PostgreSQL cuts identifiers at NAMEDATALEN - 1 *bytes*, silently (manual, section 4.1.1).
MAX_IDENTIFIER_BYTES = 63


def is_text(value: str) -> bool:
    """Tell whether PostgreSQL can be told ``value`` at all: it knows no zero byte and no lone surrogate."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def fits(identifier: str) -> bool:
    """Tell whether PostgreSQL keeps ``identifier`` whole."""
    return is_text(identifier) and len(identifier.encode()) <= MAX_IDENTIFIER_BYTES


def check_text(field: str, value: str | None) -> None:
    """Refuse a name that PostgreSQL cannot even be asked for.

    :raises PolicyError: it has a zero byte or a lone surrogate.
    """
    if value is not None and not is_text(value):
        raise PolicyError(
            field=field, problem=f"{value!a} is no text of PostgreSQL's", remedy="Correct the name."
        )


def check_name(field: str, value: str | None) -> None:
    """Refuse what is no name of a table or an index.

    :raises PolicyError: it is empty, or as :func:`check_text` has it.
    """
    if value == "":
        raise PolicyError(field=field, problem="'' is no name", remedy="Give it one.")
    check_text(field, value)


def partition_name(table: str, suffix: str, taken: Container[str] = ()) -> str:
    """Name the partition of ``table`` for the window called ``suffix``.

    ``{table}_{suffix}`` where that fits. Else the table's name is cut on a character boundary and a hash of
    the *whole* name takes the place of what was cut, so two long names with a common beginning differ.
    A name in ``taken`` (a detached partition left in place, a table of somebody else's) is stepped over:
    ``_2``, ``_3``... is appended.
    """
    name = _cut(table, f"_{suffix}")
    turn = 2
    while name in taken:
        name = _cut(table, f"_{suffix}_{turn}")
        turn += 1
    return name


def _cut(table: str, ending: str) -> str:
    if fits(table + ending):
        return table + ending
    digest = hashlib.blake2s(table.encode(), digest_size=4).hexdigest()
    ending = f"_{digest}{ending}"
    room = MAX_IDENTIFIER_BYTES - len(ending.encode())
    return table.encode()[:room].decode(errors="ignore") + ending


class Names:
    """New names, none of them like one that others have taken, nor like another."""

    def __init__(self, taken: Container[str]) -> None:
        self._taken, self._ours = taken, set[str]()

    def __contains__(self, name: object) -> bool:
        return name in self._ours or name in self._taken

    def new(self, base: str, suffix: str) -> str:
        """Return a name by :func:`partition_name`."""
        name = partition_name(base, suffix, self)
        self._ours.add(name)
        return name
