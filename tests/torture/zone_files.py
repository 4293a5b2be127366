"""Releases of the time-zone database that nobody has made: clock changes, written as pytz reads them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytz

from alembic_partitions import periods
from tests.zones import Transition, transitions

_FIRST = datetime(1990, 1, 1, tzinfo=pytz.utc)


@dataclass(frozen=True)
class ZoneFile:
    """One zone as one release has it: its offset in 1990, and its clock changes from then on."""

    name: str
    begin: timedelta
    changes: tuple[Transition, ...]

    @classmethod
    def real(cls, name: str) -> ZoneFile:
        """Return what the installed pytz says of a zone."""
        begin = _FIRST.astimezone(pytz.timezone(name)).utcoffset()
        assert begin is not None
        return cls(name, begin, transitions(name))

    def changed(self, change: Callable[[Sequence[Transition]], Sequence[Transition]]) -> ZoneFile:
        """Return what a later release says of it."""
        return ZoneFile(self.name, self.begin, tuple(sorted(change(self.changes), key=lambda t: t.instant)))

    @property
    def content(self) -> bytes:
        """The file itself (RFC 8536, version 1)."""
        kinds = sorted({self.begin, *(change.after for change in self.changes)})
        usual = kinds[0]
        moments = [(_FIRST, self.begin), *((change.instant, change.after) for change in self.changes)]
        counts = (0, 0, 0, len(moments), len(kinds), len(b"LMT\0"))
        return b"".join(
            (
                struct.pack(">4sc15x6l", b"TZif", b"\0", *counts),
                *(struct.pack(">l", int(instant.timestamp())) for instant, _ in moments),
                bytes(kinds.index(offset) for _, offset in moments),
                *(struct.pack(">lBB", int(offset.total_seconds()), offset != usual, 0) for offset in kinds),
                b"LMT\0",
            )
        )


@contextmanager
def released(*zones: ZoneFile) -> Iterator[None]:
    """Let pytz have these files, as in a process that starts with another release installed."""
    files = {zone.name: zone.content for zone in zones}
    real = pytz.open_resource  # type: ignore[attr-defined]  # public, but not in the stubs

    def open_resource(name: str) -> Any:
        return io.BytesIO(files[name]) if name in files else real(name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pytz, "open_resource", open_resource)
        forget(files)
        try:
            yield
        finally:
            patched.undo()
            forget(files)


def forget(names: Any) -> None:
    """Forget what a process keeps of zones once it has read them."""
    known: dict[str, Any] = vars(pytz)["_tzinfo_cache"]
    for name in names:
        known.pop(name, None)
    for kept in vars(periods).values():
        if hasattr(kept, "cache_clear"):
            kept.cache_clear()
