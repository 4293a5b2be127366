"""The newest price of each selection, in Redis. Nothing is lost with it, and nothing fails without it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from redis import Redis, RedisError

logger = logging.getLogger(__name__)

#: Seconds that a price is believed; refresh_odds writes it anew before.
TTL = 120


class Cache:
    """Prices by selection, as they are sent to a client."""

    def __init__(self, url: str) -> None:
        # Connects when it is first used: in a worker, not in the Gunicorn master that forks it.
        self._redis = Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)

    def ping(self) -> None:
        """Raise what is wrong, for /readyz."""
        self._redis.ping()

    def get(self, selection: int) -> dict[str, Any] | None:
        try:
            held = self._redis.get(_key(selection))
        except RedisError as error:
            logger.warning("Redis was not asked for %s: %s", selection, error)
            return None
        return None if held is None else dict(json.loads(held))

    def put(self, prices: Iterable[dict[str, Any]]) -> None:
        """Write prices; raise :class:`redis.RedisError` where that fails."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for price in prices:
                pipeline.set(_key(price["selectionId"]), json.dumps(price), ex=TTL)
            pipeline.execute()

    def try_to_put(self, price: dict[str, Any]) -> None:
        try:
            self.put([price])
        except RedisError as error:
            logger.warning("Redis did not take %s: %s", price["selectionId"], error)

    def forget(self, selection: int) -> None:
        try:
            self._redis.delete(_key(selection))
        except RedisError as error:  # what it holds is old in TTL seconds at the latest
            logger.warning("Redis was not told of %s: %s", selection, error)


def _key(selection: int) -> str:
    return f"odds:{selection}"
