"""The entry point that Alembic loads by itself (group ``alembic.plugins``).

Alembic imports this module while Alembic is still being imported, so nothing of Alembic is imported here
before :func:`setup` runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.runtime.plugins import Plugin


def setup(plugin: Plugin) -> None:
    """Register the operations ``op.create_partitioned_table`` and its kin, and take part in autogenerate."""
    from alembic.util import DispatchPriority

    from . import operations  # noqa: F401  # importing it is what registers

    for comparator, target, priority in (
        ("begin", "schema", DispatchPriority.FIRST),
        ("compare_table", "table", DispatchPriority.MEDIUM),
        ("end", "schema", DispatchPriority.LAST),
    ):
        plugin.add_autogenerate_comparator(
            _later(comparator), target, "partitions", qualifier="postgresql", priority=priority
        )


def _later(comparator: str) -> Callable[..., Any]:
    """Return a comparator that loads its module when it is called: most commands compare nothing, and Alembic
    is only half there now."""

    def compare(*arguments: Any) -> Any:
        from . import autogenerate

        return getattr(autogenerate, comparator)(*arguments)

    return compare


class _IterableModule(ModuleType):
    """Alembic 1.18.0 to 1.20.0 iterates over what an entry point loads, and dies where it cannot
    (sqlalchemy/alembic#1873): this module is a collection of itself."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _IterableModule
