"""A day of the test's own choosing, on which things may be removed: an operator's rehearsal may not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from alembic_partitions import maintenance
from alembic_partitions.ddl import removal
from alembic_partitions.maintenance import creating, ensuring, maintaining, repairing, retaining
from tests.tables import NOW


@dataclass
class Clock:
    """What the package takes for now, on the server too where it notes when a partition was detached."""

    monkeypatch: pytest.MonkeyPatch
    now: datetime = NOW
    #: Whether the server's release decides how partitions are detached.
    as_the_server_is: bool = False

    def set(self, now: datetime) -> None:
        self.now = now
        stamp = f"'{now:%Y-%m-%d %H:%M:%S.%f}Z'"
        self.monkeypatch.setattr(removal, "_NOW", stamp)
        if not self.as_the_server_is:
            self.monkeypatch.setattr(retaining, "detaches_safely", lambda version: True)
        for module in (maintenance, creating, ensuring, maintaining, repairing):
            self.monkeypatch.setattr(module, "clock", lambda real: self.now)

    def forward(self, **by: float) -> None:
        self.set(self.now + timedelta(**by))
