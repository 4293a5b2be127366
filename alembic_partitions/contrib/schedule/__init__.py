"""The schedule behind ``keeper.start()``: each run once across all processes.

``rhythm`` tells when a run is due, ``runs`` whether it was done, and does it; ``beating`` is the scheduler's.
"""

from .rhythm import rhythm
from .runs import OnRun
from .scheduling import Schedule, Watching, start

__all__ = ["OnRun", "Schedule", "Watching", "rhythm", "start"]
