"""A split as a script: every statement that is sent, and what is sent again and again once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alembic_partitions import catalog, ddl
from alembic_partitions.plan import Split

from .copying import blocks_batch, changed_batch, changed_elements, first_blocks, step_batch
from .splitting import (
    SplitStep,
    calm_batch,
    clean_batch,
    confirm_batch,
    copying_of,
    drop_old_batch,
    keep_out,
    key_batches,
    prepare_batches,
    promote_elements,
    swap_elements,
)
from .statements import Batch, Statement, transaction

# What stands for the entries that will be found.
_FIRST = catalog.Entries(1, 1)


def split_steps(split: Split, user: str, batch: int, verify: bool, drop_old: bool) -> Iterator[SplitStep]:
    """Yield what is left to do of a split."""
    if not (split.is_watched or split.is_swapped):
        yield from prepare_batches(split, user)
    if not split.is_swapped:
        yield from _copied(split, batch, verify)
        told = "from here on writers change the copy, too; what the log names by then is caught up with"
        yield SplitStep(told, _step(split))
        yield from key_batches(split, {})
        yield SplitStep(
            "a VACUUM that is under way gives way, once older transactions have ended", calm_batch(split)
        )
        yield SplitStep("the swap", _swap(split))
    for group in split.groups:
        yield SplitStep(
            f"the windows of {group.name} become partitions", _kept_out(split, promote_elements(split, group))
        )
    if drop_old:
        yield SplitStep("what was split is dropped", drop_old_batch(split))
    yield SplitStep("cleaning up", clean_batch(split))


def _copied(split: Split, batch: int, verify: bool) -> Iterator[SplitStep]:
    copying, facts = copying_of(split), split.facts
    blocks = min(first_blocks(batch, facts.rows, facts.blocks), max(facts.blocks, 1))
    yield SplitStep("all is as it was when the split began", confirm_batch(split))
    told = f"again until all {facts.blocks} blocks are copied; rows that change meanwhile are in the log"
    yield SplitStep(told, blocks_batch(copying, 0, blocks))
    told = "again until the log is nearly empty; which entry is the last is as it is found"
    yield SplitStep(told, changed_batch(copying, _FIRST))
    if verify:
        digests = [ddl.DigestBlocks(copying, 0, None)]
        windows = (ddl.DigestTable(copying, (split.schema, piece.name)) for piece in split.pieces)
        told = "compared: both add up to the same; a large table is read in several parts"
        opening = ddl.OneSnapshot(), ddl.Steady(), ddl.ShareOrigin(copying)
        yield SplitStep(told, transaction(*opening, *digests, *windows))
        yield SplitStep("that is noted", transaction(ddl.NoteVerified(copying)))


def _step(split: Split) -> Batch:
    copying = copying_of(split)
    *opening, last = step_batch(copying, split.wait_ms).statements
    changed = (Statement(e.sql()) for e in changed_elements(copying, _FIRST))
    return Batch((*opening, *changed, last))


def _swap(split: Split) -> Batch:
    return _kept_out(split, swap_elements(split))


def _kept_out(split: Split, elements: Sequence[Statement]) -> Batch:
    return Batch((*keep_out(split).statements, *elements))
