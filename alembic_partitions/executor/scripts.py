"""What goes, as scripts that psql runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from alembic_partitions.plan import (
    ChangeFate,
    DetachPartition,
    DropDetached,
    ExportDetached,
    KeepPartition,
    MoveDetached,
    Removal,
    Retention,
)

from .exporting import export_batches
from .removing import BATCHES
from .statements import Batch, remark, script

_BATCHES: Mapping[type, Callable[[Any], tuple[Batch, ...]]] = {**BATCHES, ExportDetached: export_batches}


def removal_script(retention: Retention) -> str:
    """Return what retention, or restore, does to a table: byte for byte what is sent, and why."""
    lines = [f"{remark(str(finding))}\n" for finding in retention.findings]
    lines += [script(_BATCHES[type(step)](step), _why(step)) for step in retention.steps]
    return "".join(lines)


def _why(step: Removal) -> str:
    if isinstance(step, (DetachPartition, KeepPartition)):
        part = step.partition
        doing = "detach" if isinstance(step, DetachPartition) else "do not detach"
        back = "; then attach it again" if isinstance(step, DetachPartition) and step.reattach else ""
        return f"{doing} {part.schema}.{part.name} [{part.lower}, {part.upper}): {step.reason.value}{back}"
    old = step.detached
    told = f"{old.schema}.{old.name} [{old.lower}, {old.upper})"
    if isinstance(step, MoveDetached):
        return f"move {told} to schema {step.archive_schema}: {step.reason.value}"
    if isinstance(step, ExportDetached):
        return f"export {told} to a file, and verify it: {step.reason.value}"
    if isinstance(step, ChangeFate):
        return f"mark {told}: {step.reason.value}"
    if isinstance(step, DropDetached):
        return f"drop {told}: {step.reason.value}"
    return f"restore {told} as {old.home}.{step.name}"
