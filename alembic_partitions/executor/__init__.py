"""Plans as the SQL that runs, and the running of it: small transactions, never a long wait."""

from .creating import create_partition, render, script
from .statements import Statement

__all__ = ["Statement", "create_partition", "render", "script"]
