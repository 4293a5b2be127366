"""What goes, as scripts that psql runs."""

from __future__ import annotations

from alembic_partitions.plan import (
    DetachPartition,
    DropDetached,
    ExportDetached,
    MoveDetached,
    Removal,
    Retention,
)

from .exporting import export_batches
from .removing import detach_batches, drop_batches, move_batches, restore_batches
from .statements import Batch, script


def removal_script(retention: Retention) -> str:
    """Return what retention, or restore, does to a table: byte for byte what is sent, and why."""
    lines = [f"-- {finding}\n" for finding in retention.findings]
    lines += [script(_batches(step), _why(step)) for step in retention.steps]
    return "".join(lines)


def _batches(step: Removal) -> tuple[Batch, ...]:
    if isinstance(step, DetachPartition):
        return detach_batches(step)
    if isinstance(step, MoveDetached):
        return move_batches(step)
    if isinstance(step, ExportDetached):
        return export_batches(step)
    if isinstance(step, DropDetached):
        return drop_batches(step)
    return restore_batches(step)


def _why(step: Removal) -> str:
    if isinstance(step, DetachPartition):
        part = step.partition
        return f"detach {part.schema}.{part.name} [{part.lower}, {part.upper}): {step.reason.value}"
    old = step.detached
    told = f"{old.schema}.{old.name} [{old.lower}, {old.upper})"
    if isinstance(step, MoveDetached):
        return f"move {told} to schema {step.archive_schema}: {step.reason.value}"
    if isinstance(step, ExportDetached):
        return f"export {told} to a file, and verify it: {step.reason.value}"
    if isinstance(step, DropDetached):
        return f"drop {told}: {step.reason.value}"
    return f"restore {told} as {step.table.schema}.{step.name}"
