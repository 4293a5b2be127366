"""The command line. SQL and JSON go to stdout, talk to stderr; a failure is one line and an exit code.

Alembic and rich are imported by the commands that need them: a replica that finds nothing to do should
pay little more than plain Alembic costs.
"""

from . import (
    adopting,
    converting,
    keeping,
    looking,
    maintaining,
    migrating,
    repairing,
    running,
    serving,
    showing,
    splitting,
)
from .door import (
    CHECK_CRITICAL,
    CHECK_OK,
    CHECK_UNKNOWN,
    CHECK_WARNING,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    main,
)

__all__ = [
    "CHECK_CRITICAL",
    "CHECK_OK",
    "CHECK_UNKNOWN",
    "CHECK_WARNING",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_USAGE",
    "adopting",
    "converting",
    "keeping",
    "looking",
    "main",
    "maintaining",
    "migrating",
    "repairing",
    "running",
    "serving",
    "showing",
    "splitting",
]
