"""What leaves for an archive, and what comes back: by schema, by file, and never without proof."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine

from alembic_partitions import maintenance
from alembic_partitions.errors import NotDetachedError
from alembic_partitions.executor import exporting
from alembic_partitions.maintenance import Report, TableResult
from tests.clock import Clock
from tests.databases import Database, Roles
from tests.db.test_retention import KEPT, PAST, detached, history, keeping, mark, result
from tests.tables import NOW, columns, declare, operations, partitions, rows, run, scalar

pytestmark = pytest.mark.ends


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "archive of odds"
    folder.mkdir()
    return folder


def restore(engine: Engine, *names: str, **kw: Any) -> Report:
    with engine.connect() as connection:
        return maintenance.restore(connection, names, **kw)


def restored(engine: Engine, *names: str) -> TableResult:
    (found,) = restore(engine, *names).results
    return found


def content(engine: Engine, table: str = "odds") -> list[tuple[Any, ...]]:
    return rows(engine, f"SELECT * FROM {table} ORDER BY id")


# A schema.


def test_partitions_move_to_the_archive_schema_with_their_rows_and_stay(engine: Engine, clock: Clock) -> None:
    run(engine, 'CREATE SCHEMA "old Stuff"')
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old Stuff", grace="1 day"))
    told = result(engine)
    assert told.error is None
    assert told.archived == tuple(f"old Stuff.{name}" for name in PAST)
    assert scalar(engine, f'SELECT count(*) FROM "old Stuff".{PAST[1]}') == 3
    clock.forward(days=400)
    result(engine)  # after so long the clock is in doubt; the run after that one is not
    told = result(engine)
    assert told.dropped == ()
    assert scalar(engine, f'SELECT count(*) FROM "old Stuff".{PAST[1]}') == 3


def test_without_its_schema_nothing_is_detached_and_the_next_run_carries_on(engine: Engine) -> None:
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old"))
    told = result(engine)
    assert told.detached == ()
    assert "there is no schema 'old': create it, or correct archive_schema" in str(told.error)
    assert partitions(engine) == PAST + KEPT
    run(engine, "CREATE SCHEMA old")
    assert len(result(engine).archived) == 3


def test_a_name_that_is_taken_in_the_archive_is_stepped_over(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA old", f"CREATE TABLE old.{PAST[0]} (somebody_elses int)")
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old"))
    assert result(engine).archived[0] == f"old.{PAST[0]}_archived"


def test_what_was_detached_under_another_policy_follows(engine: Engine) -> None:
    history(engine)
    result(engine)
    run(engine, "CREATE SCHEMA old", "UPDATE partition_config SET on_expiry='archive', archive_schema='old'")
    assert result(engine).archived == tuple(f"old.{name}" for name in PAST)


# A file.


def file(engine: Engine, partition: str, ending: str = "csv.gz") -> str:
    return f"{engine.url.database}.public.{partition}.{NOW:%Y%m%dT%H%M%SZ}.{ending}"


def archived(engine: Engine, folder: Path) -> TableResult:
    return result(engine, archive_to=str(folder))


def test_partitions_are_exported_verified_and_dropped_only_after_their_grace(
    engine: Engine, folder: Path, clock: Clock
) -> None:
    history(engine, rules=keeping(on_expiry="archive", grace="1 day"))
    run(engine, f'UPDATE {PAST[0]} SET note = $$two\nlines, "quoted" and a %\r$$')
    wanted = content(engine, PAST[0])
    told = archived(engine, folder)
    assert told.error is None
    assert told.archived == tuple(f"{folder}/{file(engine, name)}" for name in PAST)
    noted = mark(engine, f"{PAST[0]}_detached")["export"]
    unpacked = gzip.decompress(Path(noted["path"]).read_bytes())
    assert noted == {
        "path": f"{folder}/{file(engine, PAST[0])}",
        "rows": 3,
        "sha256": hashlib.sha256(unpacked).hexdigest(),
    }
    manifest = json.loads((folder / file(engine, PAST[0], "json")).read_text())
    assert (manifest["table"], manifest["partition"], manifest["rows"]) == (["public", "odds"], PAST[0], 3)
    # PostgreSQL itself reads it back as the same rows.
    run(engine, f"CREATE TABLE again (LIKE {PAST[0]}_detached)")
    with engine.begin() as connection, gzip.open(noted["path"]) as packed:
        cursor = connection.connection.cursor()
        cursor.copy_expert("COPY again FROM STDIN WITH (FORMAT csv, HEADER true)", packed)
    assert content(engine, "again") == wanted
    assert archived(engine, folder).archived == (), "once is enough"
    clock.forward(days=1, minutes=1)
    assert archived(engine, folder).dropped[0] == f"{PAST[0]}_detached"


@pytest.mark.parametrize("harm", ["changed", "cut short", "gone"])
def test_an_export_that_is_not_what_it_was_keeps_its_table(
    engine: Engine, folder: Path, clock: Clock, harm: str
) -> None:
    history(engine, rules=keeping(on_expiry="archive", grace="1 day"))
    archived(engine, folder)
    mark_before = mark(engine, f"{PAST[0]}_detached")
    path = folder / file(engine, PAST[0])
    if harm == "gone":
        path.unlink()
    elif harm == "changed":
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"9,2026-03-30,x\n"))
    else:
        path.write_bytes(path.read_bytes()[:-9])
    clock.forward(days=1, minutes=1)
    told = archived(engine, folder)
    assert told.error is None
    assert set(told.dropped) == {f"{name}_detached" for name in PAST[1:]}
    assert any("exported anew, and dropped by a later run" in finding for finding in told.findings)
    assert f"{PAST[0]}_detached" in detached(engine)
    assert archived(engine, folder).dropped == (f"{PAST[0]}_detached",)
    export = mark_before["export"]
    assert isinstance(export, dict)
    kept = {hashlib.sha256(gzip.decompress(p.read_bytes())).hexdigest() for p in whole(folder)}
    assert export["sha256"] in kept


def whole(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*.csv.gz"):
        try:
            gzip.decompress(path.read_bytes())
        except EOFError:
            continue
        found.append(path)
    return found


def test_a_row_that_was_written_after_the_export_is_not_dropped_without_it(
    engine: Engine, folder: Path, clock: Clock
) -> None:
    history(engine, rules=keeping(on_expiry="archive", grace="1 day"))
    archived(engine, folder)
    run(engine, f"INSERT INTO {PAST[0]}_detached (id, at, note) VALUES (99, '2026-03-30 12:00+13', 'late')")
    clock.forward(days=1, minutes=1)
    assert f"{PAST[0]}_detached" not in archived(engine, folder).dropped
    assert f"{PAST[0]}_detached" in archived(engine, folder).dropped
    kept = [gzip.decompress(path.read_bytes()) for path in sorted(folder.glob(f"*{PAST[0]}*.csv.gz"))]
    assert [b"late" in content for content in kept] == [True, False]


@pytest.mark.parametrize("where", ["nowhere", "missing", "a file"])
def test_a_folder_that_cannot_be_used_detaches_nothing(engine: Engine, tmp_path: Path, where: str) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    place = {"nowhere": None, "missing": tmp_path / "no", "a file": tmp_path / "file"}[where]
    if where == "a file":
        (tmp_path / "file").touch()
    told = result(engine, archive_to=place and str(place))
    assert told.detached == ()
    assert ("neither archive_schema nor a folder" if where == "nowhere" else "there is no folder") in str(
        told.error
    )
    assert partitions(engine) == PAST + KEPT


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_detaches_nothing(engine: Engine, folder: Path) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    folder.chmod(0o500)
    assert "cannot be written to" in str(archived(engine, folder).error)
    assert partitions(engine) == PAST + KEPT


def test_the_folder_may_come_from_the_environment(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_ARCHIVE", str(folder))
    history(engine, rules=keeping(on_expiry="archive"))
    assert len(result(engine).archived) == 3


def test_a_disk_that_fills_leaves_no_half_file_and_the_next_run_carries_on(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    history(engine, rules=keeping(on_expiry="archive", grace="1 day"))

    def full(connection: Any, statement: str, write: Any) -> None:
        write(b"id,at,note\n")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "copy_out", full)
        told = archived(engine, folder)
    assert "No space left on device" in str(told.error)
    assert "Make room" in str(told.error)
    assert list(folder.iterdir()) == []
    assert len(detached(engine)) == 3
    clock.forward(days=2)
    told = archived(engine, folder)
    assert (told.error, told.dropped) == (None, ())
    assert len(told.archived) == 5, "and those of the two days since"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_device_that_is_full(engine: Engine, folder: Path) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    (folder / file(engine, PAST[0], "csv.gz.part")).symlink_to("/dev/full")
    told = archived(engine, folder)
    assert "No space left on device" in str(told.error)
    assert not (folder / file(engine, PAST[0])).exists()
    assert len(told.archived) == 2, "one bad file stops no other"
    assert archived(engine, folder).archived == (f"{folder}/{file(engine, PAST[0])}",)


def test_a_file_of_somebody_elses_is_not_written_over(engine: Engine, folder: Path) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    path = folder / file(engine, PAST[0])
    path.write_bytes(gzip.compress(b"precious\n"))
    told = archived(engine, folder)
    assert "exists and holds something else" in str(told.error)
    assert gzip.decompress(path.read_bytes()) == b"precious\n"
    path.unlink()
    assert archived(engine, folder).archived == (str(path),)


def test_a_file_that_a_killed_run_had_written_is_taken(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history(engine, rules=keeping(on_expiry="archive"))

    def killed(*anything: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "_write_manifest", killed)
        with pytest.raises(SystemExit):
            archived(engine, folder)
    assert [path.name for path in folder.iterdir()] == [file(engine, PAST[0])]
    assert len(archived(engine, folder).archived) == 3


def test_rows_that_row_security_would_hide_are_no_reason_to_drop(
    engine: Engine, folder: Path, roles: Roles
) -> None:
    owner = roles.create("owner")
    run(engine, f"GRANT ALL ON SCHEMA public TO {owner.username}")
    history(engine, rules=keeping(on_expiry="archive"))
    run(
        engine,
        *(f"ALTER TABLE {name} OWNER TO {owner.username}" for name in ["odds", *PAST, *KEPT]),
        f"ALTER TABLE {PAST[0]} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {PAST[0]} FORCE ROW LEVEL SECURITY",
        f"GRANT ALL ON partition_config, partition_runs TO {owner.username}",
    )
    theirs = create_engine(owner, poolclass=NullPool)
    told = archived(theirs, folder)
    assert "row-level security" in str(told.error)
    assert told.dropped == ()
    theirs.dispose()


def test_any_driver_exports_the_same_bytes(database: Database, any_driver: str, folder: Path) -> None:
    import asyncio

    from sqlalchemy.ext.asyncio import create_async_engine

    plain = create_engine(database.url, poolclass=NullPool)
    history(plain, rules=keeping(on_expiry="archive"))
    url = database.driver_url(any_driver)
    orders = maintenance.Orders(archive_to=str(folder), analyze=False)

    def work(connection: sa.Connection) -> TableResult:
        (found,) = maintenance.maintain(connection, orders=orders).results
        return found

    async def go() -> TableResult:
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            return await connection.run_sync(work)

    if any_driver == "psycopg2":
        engine = create_engine(url, poolclass=NullPool)
        with engine.connect() as connection:
            told = work(connection)
    else:  # psycopg 3 has an event loop of its own kind, too
        told = asyncio.run(go())
    assert (told.error, len(told.archived)) == (None, 3)
    lines = gzip.decompress((folder / file(plain, PAST[0])).read_bytes()).decode().splitlines()
    assert lines[0] == "id,at,note"
    assert lines[1] == "1,2026-03-29 12:00:00+00,"
    assert len(lines) == 4
    plain.dispose()


# The way back.


def test_what_was_detached_comes_back_as_it_was(engine: Engine) -> None:
    history(engine)
    before = content(engine)
    result(engine)
    told = restored(engine)
    assert (told.error, told.restored) == (None, tuple(PAST))
    assert partitions(engine) == PAST + KEPT
    assert content(engine) == before
    left = (
        "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c'"
        " AND conrelid::regclass::text LIKE 'odds%'"
    )
    assert rows(engine, left) == []
    assert scalar(engine, "SELECT count(*) FROM partition_runs WHERE action = 'restore'") == 1


def test_by_either_name_and_only_that_one(engine: Engine) -> None:
    history(engine)
    result(engine)
    assert restored(engine, PAST[1]).restored == (PAST[1],)
    assert restored(engine, f"{PAST[0]}_detached").restored == (PAST[0],)
    assert detached(engine) == [f"{PAST[2]}_detached"]


def test_from_the_archive_schema_too(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA old")
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old"))
    before = content(engine)
    result(engine)
    assert restored(engine).restored == tuple(PAST)
    assert content(engine) == before


def test_and_after_an_export_as_long_as_the_table_is_there(engine: Engine, folder: Path) -> None:
    history(engine, rules=keeping(on_expiry="archive"))
    before = content(engine)
    archived(engine, folder)
    assert restored(engine).error is None
    assert content(engine) == before


def test_retention_leaves_it_alone_for_another_grace(engine: Engine, clock: Clock) -> None:
    history(engine, rules=keeping(grace="2 days"))
    result(engine)
    restored(engine)
    clock.forward(days=1)
    assert set(result(engine).detached) & set(PAST) == set()
    clock.forward(days=1, minutes=1)
    assert set(PAST) <= set(result(engine).detached)


def test_an_unknown_name_restores_nothing(engine: Engine) -> None:
    history(engine)
    result(engine)
    with pytest.raises(NotDetachedError, match="odds_2019"):
        restore(engine, PAST[0], "odds_2019")
    assert partitions(engine) == KEPT


def test_a_place_that_is_taken_is_told_with_the_remedy(engine: Engine) -> None:
    history(engine)
    result(engine)
    run(
        engine,
        "CREATE TABLE other PARTITION OF odds"
        " FOR VALUES FROM ('2026-03-30 00:00+13') TO ('2026-03-30 05:00+13')",
    )
    told = restored(engine)
    assert told.restored == tuple(PAST[1:])
    assert f"{PAST[0]}_detached, by public.other: its place is taken" in str(told.error)


def test_rows_that_do_not_belong_there_any_more_are_refused_and_the_next_try_passes(engine: Engine) -> None:
    history(engine)
    result(engine)
    run(engine, f"INSERT INTO {PAST[0]}_detached (id, at) VALUES (999, '2020-01-01')")
    told = restored(engine, PAST[0])
    assert "alembic_partitions_bound" in str(told.error)
    assert PAST[0] not in partitions(engine)
    run(engine, f"DELETE FROM {PAST[0]}_detached WHERE id = 999")
    assert restored(engine, PAST[0]).error is None


def test_indexes_that_the_parent_has_been_given_since_are_built(engine: Engine) -> None:
    history(engine)
    result(engine)
    run(engine, "CREATE INDEX by_note ON odds (note)")
    restored(engine, PAST[0])
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = CAST(:name AS regclass)"
    assert scalar(engine, indexes, name=PAST[0]) == 2
    assert scalar(engine, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_note'::regclass")


def test_identity_defaults_and_keys_come_back_too(engine: Engine) -> None:
    run(engine, "CREATE TABLE meetings (id int PRIMARY KEY)", "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"), server_default="1")
    history(engine, "odds", keeping(), *columns(), key)
    result(engine)
    assert restored(engine).error is None
    run(engine, "INSERT INTO odds (at) VALUES ('2026-03-30 13:00+13')")
    with pytest.raises(sa.exc.IntegrityError, match="foreign key"):
        run(engine, f"INSERT INTO {PAST[0]} (id, at, meeting) VALUES (77, '2026-03-30 13:00+13', 9)")


def test_nothing_detached_is_nothing_to_restore(engine: Engine) -> None:
    declare(engine)
    assert restore(engine).results == ()


# What a critical reader found.


def test_indexes_whose_names_are_taken_in_the_archive_are_in_nobodys_way(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA old", "CREATE SCHEMA other")
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old"))
    declare(engine, "odds", keeping(on_expiry="archive", archive_schema="old"), schema="other")
    with operations(engine) as op:
        op.create_partitions("odds", date(2026, 3, 30), date(2026, 4, 1), schema="other")
    with engine.connect() as connection:
        told = maintenance.maintain(connection, orders=maintenance.Orders(analyze=False)).results
    assert [found.error for found in told] == [None, None]
    assert sorted(len(found.archived) for found in told) == [2, 3]


def test_what_was_archived_comes_back_from_a_policy_that_drops(engine: Engine, clock: Clock) -> None:
    run(engine, "CREATE SCHEMA old")
    history(engine, rules=keeping(on_expiry="archive", archive_schema="old", grace="1 day"))
    result(engine)
    run(engine, "UPDATE partition_config SET on_expiry = 'drop'")
    clock.forward(days=30)
    assert not {f"old.{name}" for name in PAST} & set(result(engine).dropped)
    assert scalar(engine, f"SELECT count(*) FROM old.{PAST[0]}") == 3


def test_generated_columns_are_left_out_so_that_the_file_can_be_loaded(engine: Engine, folder: Path) -> None:
    doubled = sa.Column("twice", sa.BigInteger, sa.Computed("id * 2", persisted=True))
    history(engine, "odds", keeping(on_expiry="archive"), *columns(), doubled)
    assert archived(engine, folder).error is None
    lines = gzip.decompress((folder / file(engine, PAST[0])).read_bytes()).decode().splitlines()
    assert lines[0] == "id,at,note"
    manifest = json.loads((folder / file(engine, PAST[0], "json")).read_text())
    assert manifest["to load it"] == "COPY a_table (id, at, note) FROM STDIN WITH (FORMAT csv, HEADER true)"


def test_a_file_name_is_never_too_long(engine: Engine, folder: Path) -> None:
    name = "ставки_и_коэффициенты_по_дням"
    history(engine, name, keeping(on_expiry="archive"))
    told = archived(engine, folder)
    assert (told.error, len(told.archived)) == (None, 3)


def test_one_of_several_that_cannot_come_back_stops_no_other(engine: Engine) -> None:
    history(engine)
    result(engine)
    run(engine, f"ALTER TABLE {PAST[0]}_detached DROP COLUMN note")
    told = restored(engine)
    assert told.restored == tuple(PAST[1:])
    assert 'missing column "note"' in str(told.error)
    proofs = "SELECT count(*) FROM pg_constraint WHERE conname = 'alembic_partitions_bound'"
    assert scalar(engine, proofs) == 0


def test_each_returns_to_the_schema_that_it_came_from(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA parts")
    history(engine)
    run(engine, f"ALTER TABLE {PAST[0]} SET SCHEMA parts")
    assert result(engine).error is None
    assert restored(engine).error is None
    assert scalar(engine, f"SELECT count(*) FROM parts.{PAST[0]}") == 3


def test_a_role_with_a_short_statement_timeout_restores_and_exports_all_the_same(
    engine: Engine, folder: Path, roles: Roles
) -> None:
    owner = roles.create("owner")
    history(engine, rules=keeping(on_expiry="archive"))
    run(
        engine,
        f"GRANT ALL ON SCHEMA public TO {owner.username}",
        *(f"ALTER TABLE {name} OWNER TO {owner.username}" for name in ["odds", *PAST, *KEPT]),
        f"GRANT ALL ON partition_config, partition_runs TO {owner.username}",
        "INSERT INTO odds (at, note) SELECT '2026-03-30 01:00+13', repeat('x', 300) FROM"
        " generate_series(1, 60000)",
        f"ALTER ROLE {owner.username} SET statement_timeout = '100ms'",
        f"ALTER ROLE {owner.username} SET idle_in_transaction_session_timeout = '100ms'",
    )
    theirs = create_engine(owner, poolclass=NullPool)
    told = archived(theirs, folder)
    assert (told.error, len(told.archived)) == (None, 3)
    assert restored(theirs).error is None
    theirs.dispose()
