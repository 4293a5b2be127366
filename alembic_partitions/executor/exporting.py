"""A detached partition as a compressed CSV file, verified before anything may be dropped for it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection

from alembic_partitions import catalog, ddl
from alembic_partitions.drivers import copy_out
from alembic_partitions.errors import ArchiveError, WorkFailed
from alembic_partitions.plan import Export, ExportDetached, told_of

from .statements import Batch, Statement, send, transaction

# For writers of what is no partition any more: there should be none.
_LOCK_TIMEOUT_MS = 2_000


def check_folder(folder: str | None) -> str | None:
    """Tell why nothing can be exported to a folder, or return ``None``."""
    if folder is None:
        return "neither archive_schema nor a folder (--archive-to, ALEMBIC_PARTITIONS_ARCHIVE) says where to"
    if not Path(folder).is_dir():
        return f"there is no folder {folder!r}"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"folder {folder!r} cannot be written to"


def export_batches(step: ExportDetached) -> tuple[Batch, ...]:
    """Return what is sent for an export: it reads, and notes down where the rows are."""
    old = step.detached
    return (transaction(ddl.HoldStill(), ddl.CopyOut(old.schema, old.name)),)


def export(connection: Connection, step: ExportDetached, folder: str) -> Export:
    """Write a detached partition to ``<schema>.<partition>.csv.gz``, read it back, note it in the mark.

    The file appears under its name only when it is whole. One that is there already is taken if it holds
    just these rows: a run that was cut off has written it.

    :param connection: not in a transaction.
    :raises ArchiveError: it cannot be written or read back, or another file has its name.
    """
    old = step.detached
    path = Path(folder) / f"{quote(old.home, safe='')}.{quote(old.partition, safe='')}.csv.gz"
    name = f"{old.schema}.{old.name}"
    with connection.begin(), _told(name, path):
        _lock(connection, step)
        rows = catalog.count_rows(connection, old.schema, old.name)
        digest = _taken(connection, step, path) if path.exists() else _written(connection, step, path)
        found, found_digest = _read_back(path)
        if (found, found_digest) != (rows, digest):
            raise ArchiveError(
                table=name,
                problem=f"{path} holds {found} rows where the table has {rows}, or other ones",
                remedy="Remove that file and run again.",
            )
        made = Export(str(path), rows, digest)
        _write_manifest(path, step, made)
        kept = told_of(step.table, old.partition, old.home, old.bound, made)
        assert old.at is not None
        mark = ddl.MarkExported(old.schema, old.name, kept, f"{old.at:%Y-%m-%d %H:%M:%S.%f}Z")
        send(connection, Statement(mark.sql()))
    return made


def verify(step_name: str, made: Export) -> None:
    """Make sure that an export still is what it was.

    :raises ArchiveError: it is not.
    """
    path = Path(made.path)
    with _told(step_name, path):
        if _read_back(path) != (made.rows, made.sha256):
            raise ArchiveError(
                table=step_name,
                problem=f"its export {path} has changed since it was verified",
                remedy="Bring the file back, or move it away to have it written anew.",
            )


def _lock(connection: Connection, step: ExportDetached) -> None:
    old = step.detached
    opening = ddl.SetLockTimeout(_LOCK_TIMEOUT_MS), ddl.HoldStill(), ddl.LockShared(old.schema, old.name)
    for element in opening:
        send(connection, Statement(element.sql()))
    send(connection, Statement(ddl.ConfirmDetached(old.schema, old.name, old.oid).sql()))


def _written(connection: Connection, step: ExportDetached, path: Path) -> str:
    unfinished = path.with_name(path.name + ".part")
    try:
        # No name and no time inside: the same rows make the same file.
        with unfinished.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            digest = _copied(connection, step, packed.write)
        _settle(unfinished)
        unfinished.replace(path)
        _settle(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return digest


def _taken(connection: Connection, step: ExportDetached, path: Path) -> str:
    digest = _copied(connection, step, len)
    with suppress(OSError, EOFError, UnicodeError):
        if _read_back(path)[1] == digest:
            return digest
    raise ArchiveError(
        table=f"{step.detached.schema}.{step.detached.name}",
        problem=f"{path} exists and holds something else",
        remedy="Move that file away, or name another folder.",
    )


def _copied(connection: Connection, step: ExportDetached, out: Callable[[bytes], object]) -> str:
    digest = hashlib.sha256()

    def write(block: bytes) -> None:
        digest.update(block)
        out(block)

    old = step.detached
    try:
        copy_out(connection, ddl.CopyOut(old.schema, old.name).sql(), write)
    except OSError:
        raise
    except Exception as error:  # each driver has its own here, unwrapped
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkFailed(table=str(step.table), what=f"Exporting {old.name}", reason=told[0]) from error
    return digest.hexdigest()


def _read_back(path: Path) -> tuple[int, str]:
    """Return how many records a file holds, and the digest of what it unpacks to."""
    digest, lines, quoted = hashlib.sha256(), 0, False
    with gzip.open(path, "rb") as packed:
        for line in packed:
            digest.update(line)
            # A line break within quotes belongs to a value.
            quoted ^= line.count(b'"') % 2 == 1
            lines += not quoted
    return max(lines - 1, 0), digest.hexdigest()


def _write_manifest(path: Path, step: ExportDetached, made: Export) -> None:
    """Say beside the file what it is: the table will be gone."""
    old = step.detached
    told = {
        "table": [step.table.schema, step.table.name],
        "partition": old.partition,
        "bound": old.bound,
        "rows": made.rows,
        "sha256 of the CSV": made.sha256,
    }
    path.with_name(f"{path.name.removesuffix('.csv.gz')}.json").write_text(json.dumps(told, indent=2) + "\n")


def _settle(path: Path) -> None:
    """Have a file or a folder on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, UnicodeError) as error:
        raise ArchiveError(
            table=name,
            problem=f"{path}: {getattr(error, 'strerror', None) or error}",
            remedy="Make room or mend the folder; the next run writes it anew.",
        ) from error
