"""A table that is partitioned already comes into our hands, and goes out of them: nothing of it changes.

Adopting writes its policy down, and that is all, but for marks where they are asked for. Windows follow with
the next run, from the end of what is covered on.
"""

from .looking import Adoptable, look, managed_place
from .taking import MARKED_OFFLINE, adopt, apply, batches, remark_on, unadopt

__all__ = [
    "MARKED_OFFLINE",
    "Adoptable",
    "adopt",
    "apply",
    "batches",
    "look",
    "managed_place",
    "remark_on",
    "unadopt",
]
