"""What visitors of two small sites do in a month, as the service takes it; the same at every call."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

SITES = ("shop.example", "blog.example")
PLANS = ("free", "free", "pro")


def visits(first: datetime, last: datetime, number: int) -> list[dict[str, Any]]:
    """Return so many events, evenly from ``first`` until before ``last``; every fifth signs up."""
    apart: timedelta = (last - first) / number
    return [_visit(first + turn * apart, turn) for turn in range(number)]


def _visit(at: datetime, turn: int) -> dict[str, Any]:
    event: dict[str, Any] = {
        "occurredAt": at.isoformat(),
        "siteId": SITES[turn % len(SITES)],
        "visitorId": f"v{turn % 97}",
        "eventType": "page_view",
        "path": f"/articles/{turn % 13}",
        "properties": {"plan": PLANS[turn % len(PLANS)], "campaign": f"c{turn % 11}"},
    }
    if turn % 5 == 0:
        event |= {"eventType": "signup", "goal": "signup", "value": 9.5}
    return event
