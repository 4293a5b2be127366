"""ANALYZE and VACUUM."""

from __future__ import annotations

from dataclasses import dataclass

from .elements import Element, qualified


@dataclass(eq=False)
class Analyze(Element):
    """ANALYZE. ``only`` leaves the partitions of a parent out, which PostgreSQL can from 18 on."""

    schema: str
    name: str
    only: bool = False

    def sql(self) -> str:
        return f"ANALYZE {'ONLY ' if self.only else ''}{qualified(self.schema, self.name)}"


@dataclass(eq=False)
class Vacuum(Element):
    """VACUUM with ANALYZE: SHARE UPDATE EXCLUSIVE on this one table."""

    schema: str
    name: str

    def sql(self) -> str:
        return f"VACUUM (ANALYZE, SKIP_LOCKED) {qualified(self.schema, self.name)}"
