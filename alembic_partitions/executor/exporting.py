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
from alembic_partitions.plan import Detached, DropDetached, Export, ExportDetached, told_again

from .removing import drop_batches, insist_on
from .statements import Batch, Statement, insist, send, transaction

# For writers of what is no partition any more: there should be none.
_LOCK_TIMEOUT_MS = 2_000
# Most file systems take names of 255 bytes; some room for what is put behind.
_LONGEST_NAME = 200


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
    copy = Statement(
        ddl.CopyOut(old.schema, old.name, old.columns).sql(),
        remark="the program counts the rows, writes this to the file, reads that back, and says so in the"
        " comment of the table",
    )
    return (transaction(*_opening(old), copy, lock_timeout_ms=_LOCK_TIMEOUT_MS),)


def export(connection: Connection, step: ExportDetached, folder: str) -> Export:
    """Write a detached partition to a file, read it back, note it in the mark.

    The file is called ``<database>.<schema>.<partition>.<when it was detached>.csv.gz``, and appears under
    its name only when it is whole. One that is there already is taken if it holds just these rows: a run that
    was cut off has written it.

    :param connection: not in a transaction.
    :raises ArchiveError: it cannot be written or read back, or another file has its name.
    """
    old = step.detached
    path = _path(connection, old, folder)
    name = f"{old.schema}.{old.name}"
    with connection.begin(), _told(name, path):
        for statement in transaction(*_opening(old), lock_timeout_ms=_LOCK_TIMEOUT_MS).statements:
            send(connection, statement)
        rows = catalog.count_rows(connection, old.schema, old.name)
        digest = _copied(connection, step, len) if path.exists() else None
        while path.exists() and not _holds(path, (rows, str(digest))):
            if old.export is None:
                raise ArchiveError(
                    table=name,
                    problem=f"{path} exists and holds something else",
                    remedy="Move that file away, or name another folder.",
                )
            path = _next(path)  # it has been changed since it was exported: both are kept
        if not path.exists():
            digest = _written(connection, step, path)
            if not _holds(path, (rows, digest)):
                raise ArchiveError(
                    table=name, problem=f"{path} cannot be read back", remedy="Look after that disk."
                )
        made = Export(str(path), rows, str(digest))
        _write_manifest(path, step, made)
        assert old.at is not None
        mark = ddl.MarkAgain(old.schema, old.name, told_again(step.table, old, made), old.at)
        send(connection, Statement(mark.sql()))
    return made


def drop_exported(connection: Connection, step: DropDetached, give_up_at: float | None = None) -> bool:
    """Drop a table if both its file and itself hold what was verified; return whether they do.

    :param connection: not in a transaction.
    :raises LockNotAvailable: the locks were not to be had.
    :raises WorkFailed: PostgreSQL refused.
    """
    old, made = step.detached, step.detached.export
    assert made is not None
    if not _holds(Path(made.path), (made.rows, made.sha256)):
        return False
    *keys, last = drop_batches(step)
    for batch in keys:
        insist_on(connection, batch, step, give_up_at)
    copy = ddl.CopyOut(old.schema, old.name, old.columns).sql()

    def attempt() -> int:
        with connection.begin():
            for statement in last.statements:
                if statement.sql != copy:
                    send(connection, statement)
                elif _copied(connection, step, len) != made.sha256:
                    return 0
        return 1

    return bool(
        insist(
            attempt,
            connection,
            table=str(step.table),
            what=f"Dropping {old.name}",
            relations=[old.oid],
            give_up_at=give_up_at,
        )
    )


def _opening(old: Detached) -> tuple[ddl.Element | Statement, ...]:
    where = old.schema, old.name
    lock = Statement(ddl.LockShared(*where).sql(), f"SHARE on {old.schema}.{old.name}, until it is written")
    return ddl.HoldStill(), lock, ddl.ConfirmDetached(*where, old.oid)


def _path(connection: Connection, old: Detached, folder: str) -> Path:
    parts = (connection.engine.url.database or "", old.home, old.partition)
    name = ".".join(quote(part, safe="").replace(".", "%2E") for part in parts)
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}_{hashlib.blake2s(name.encode(), digest_size=4).hexdigest()}"
    return Path(folder) / f"{name}.{old.at:%Y%m%dT%H%M%SZ}.csv.gz"


def _next(path: Path) -> Path:
    stem, _, number = path.name.removesuffix(".csv.gz").partition("-")
    return path.with_name(f"{stem}-{int(number or 1) + 1}.csv.gz")


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


def _copied(
    connection: Connection, step: ExportDetached | DropDetached, out: Callable[[bytes], object]
) -> str:
    digest = hashlib.sha256()

    def write(block: bytes) -> None:
        digest.update(block)
        out(block)

    old = step.detached
    try:
        copy_out(connection, ddl.CopyOut(old.schema, old.name, old.columns).sql(), write)
    except OSError:
        raise
    except Exception as error:  # each driver has its own here, unwrapped
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise WorkFailed(table=str(step.table), what=f"Exporting {old.name}", reason=told[0]) from error
    return digest.hexdigest()


def _holds(path: Path, wanted: tuple[int, str]) -> bool:
    try:
        return _read_back(path) == wanted
    except (OSError, EOFError, UnicodeError):  # gone, cut short, no file of ours
        return False


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
    """Say beside the file what it is, and how to read it: the table will be gone."""
    old = step.detached
    names = ", ".join(map(ddl.quote, old.columns))
    told = {
        "table": [step.table.schema, step.table.name],
        "partition": old.partition,
        "bound": old.bound,
        "rows": made.rows,
        "sha256 of the CSV": made.sha256,
        "to load it": f"COPY a_table ({names}) FROM STDIN WITH (FORMAT csv, HEADER true)",
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
    except OSError as error:
        raise ArchiveError(
            table=name,
            problem=f"{path}: {error.strerror or error}",
            remedy="Make room or mend the folder; the next run writes it anew.",
        ) from error
