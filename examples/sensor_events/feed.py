"""``python -m sensor_events.feed --days 3``: what a small fleet says on some days, a JSON line an event.

Made up, and the same at every call: an event that is delivered twice is the same event.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

DEVICES = (
    *(("harbour", f"buoy-{number:02}") for number in range(1, 5)),
    *(("orchard", f"soil-{number:02}") for number in range(1, 9)),
)
EVERY = timedelta(minutes=30)
_A_DAY = timedelta(days=1) // EVERY
_EPOCH = date(2026, 1, 1)


def events_on(day: date) -> Iterator[dict[str, Any]]:
    """Yield each device's readings of a UTC day, and that it was started when its day begins."""
    midnight = datetime.combine(day, time(), timezone.utc)
    for number, (tenant, device) in enumerate(DEVICES):
        for turn in range(_A_DAY):
            sequence = (day - _EPOCH).days * _A_DAY + turn
            reading = {"celsius": 12 + (sequence * 7 + number * 3) % 90 / 10, "battery": 100 - turn}
            yield {
                "tenant_id": tenant,
                "device_id": device,
                "sequence": sequence,
                "event_type": "reading" if turn else "started",
                "occurred_at": (midnight + turn * EVERY + timedelta(seconds=9 * number + 4)).isoformat(),
                "payload": reading if turn else {"firmware": "4.1.7"},
            }


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description="What a small fleet says, a JSON line an event.")
    today = datetime.now(timezone.utc).date()
    options.add_argument("--first", type=date.fromisoformat, default=today, help="UTC day (default: today)")
    options.add_argument("--days", type=int, default=1)
    wanted = options.parse_args(arguments)
    for number in range(wanted.days):
        for event in events_on(wanted.first + timedelta(days=number)):
            print(json.dumps(event))


if __name__ == "__main__":
    main()
