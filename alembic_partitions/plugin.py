"""The entry point that Alembic loads by itself (group ``alembic.plugins``).

Alembic imports this module while Alembic is still being imported, so nothing of Alembic is imported here
before :func:`setup` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: Plugin) -> None:
    """Register the operations ``op.create_partitioned_table`` and its kin."""
    from . import operations  # noqa: F401  # importing it is what registers


class _IterableModule(ModuleType):
    """Alembic 1.18.0 to 1.20.0 iterates over what an entry point loads, and dies where it cannot
    (sqlalchemy/alembic#1873): this module is a collection of itself."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _IterableModule
