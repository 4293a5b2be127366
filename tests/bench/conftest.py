"""At the end of a run: the budgets in one table, and everything in files."""

from __future__ import annotations

import pytest

from tests.bench.record import RECORD


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RECORD.tables:
        RECORD.write()
        RECORD.summary()
