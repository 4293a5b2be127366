"""``python -m ladder_levels.feed``: what an exchange's stream says of a market, a JSON line a message.

Made up, and the same at every call; or, with ``--recording``, a stream that was recorded. Either may be moved
in time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

RUNNERS = (48672, 50213, 51188, 52907, 53330, 54419)
RUNGS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def published(message: Message) -> datetime:
    """Return when a message was published, to the millisecond."""
    return _EPOCH + timedelta(milliseconds=message["pt"])


def made_up(first: datetime, messages: int, every: timedelta) -> Iterator[Message]:
    """Yield messages of one market: in each, three rungs on both sides of some runners, or a traded price."""
    chance = Random(20170614)
    prices = {runner: chance.uniform(2, 20) for runner in RUNNERS}
    for number in range(messages):
        changes: list[Message] = []
        for runner in chance.sample(RUNNERS, chance.randint(1, 3)):
            prices[runner] = price = min(max(prices[runner] * chance.lognormvariate(0, 0.02), 1.2), 900)
            change: Message = {"id": runner}
            for side, step in (("batb", -0.05), ("batl", 0.05)):
                change[side] = [
                    [rung, round(price * (1 + step * (rung + 1)), 2), round(chance.uniform(2, 400), 2)]
                    for rung in range(RUNGS)
                ]
            if chance.random() < 0.4:
                change["ltp"] = round(price, 2)
            changes.append(change)
        at = (first + number * every - _EPOCH) // timedelta(milliseconds=1)
        yield {"op": "mcm", "pt": at, "mc": [{"id": "1.200000001", "rc": changes}]}


def recorded(path: Path) -> Iterator[Message]:
    """Yield the messages of a recording."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def moved(messages: Iterable[Message], first: datetime) -> Iterator[Message]:
    """Yield messages as they would be if the first one were published at ``first``."""
    shift: int | None = None
    for message in messages:
        if shift is None:
            shift = (first - published(message)) // timedelta(milliseconds=1)
        yield message | {"pt": message["pt"] + shift}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description="What a stream says of a market, a JSON line a message.")
    options.add_argument("--recording", type=Path, help="a recorded stream, in place of a made-up one")
    options.add_argument("--first", type=_instant, help="when the first message is published (default: now)")
    options.add_argument("--messages", type=int, default=120)
    options.add_argument("--every", type=float, default=0.5, metavar="SECONDS", help="of a made-up stream")
    wanted = options.parse_args(arguments)
    if wanted.recording is None:
        first = wanted.first or datetime.now(timezone.utc)
        told = made_up(first, wanted.messages, timedelta(seconds=wanted.every))
    else:
        told = recorded(wanted.recording)
        told = told if wanted.first is None else moved(told, wanted.first)
    for message in told:
        print(json.dumps(message))


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 reads no Z
    if instant.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no offset, such as Z")
    return instant


if __name__ == "__main__":
    main()
