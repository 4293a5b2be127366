"""An index on all partitions: built beside readers and writers, picked up where it was cut off, dropped."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from alembic_partitions.errors import IndexRefused, LockNotAvailable, WorkFailed
from alembic_partitions.operations import CreatePartitionedIndexOp, DropPartitionedIndexOp
from tests.databases import Database, Roles
from tests.db.test_autogenerate import day, diffs, models, propose
from tests.db.test_children import FIRST, fail_to_index, repair, valid, well
from tests.db.test_drain import wait_until, waits_for_a_lock
from tests.projects import Project
from tests.tables import NOW, declare, listening, operations, partitions, policy, rows, run, scalar

pytestmark = pytest.mark.ends

HARD_NAME = 'in"dex ON "odds" %s :x'
ANOTHER_DAY = "INSERT INTO odds (at, note) VALUES ('2026-04-04 00:00:00+00', 'open')"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@contextmanager
def migrating(target: Engine | Connection, **options: Any) -> Iterator[Any]:
    """Open what a migration calls ``op``, in Alembic's own transaction."""
    if isinstance(target, Engine):
        with target.connect() as connection, migrating(connection, **options) as op:
            yield op
        return
    context = MigrationContext.configure(target, opts=options)
    with context.begin_transaction():
        yield Operations(context)


def create(engine: Engine, name: str = "by_note", columns: Any = ("note",), **kw: Any) -> None:
    with migrating(engine) as op:
        op.create_partitioned_index(name, kw.pop("table", "odds"), list(columns), **kw)


def drop(engine: Engine, name: str = "by_note", **kw: Any) -> None:
    with migrating(engine) as op:
        op.drop_partitioned_index(name, kw.pop("table", "odds"), **kw)


def indexes(engine: Engine) -> list[tuple[Any, ...]]:
    """Return the indexes of the table and its partitions but for the primary key's, and which are valid."""
    return rows(
        engine,
        "SELECT c.relname, x.indisvalid FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid"
        " JOIN pg_class t ON t.oid = x.indrelid"
        " WHERE NOT x.indisprimary AND starts_with(t.relname, 'odds') ORDER BY 1",
    )


def parts(engine: Engine, index: str = "by_note") -> list[str]:
    """Return the partitions whose valid index is attached to that one."""
    found = rows(
        engine,
        "SELECT t.relname FROM pg_inherits h JOIN pg_index x ON x.indexrelid = h.inhrelid"
        " JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class p ON p.oid = h.inhparent"
        " WHERE p.relname = :index AND x.indisvalid ORDER BY 1",
        index=index,
    )
    return [name for (name,) in found]


# -- built ------------------------------------------------------------------------------------------------


def test_every_kind_of_index_is_built_as_alembic_itself_would_define_it(engine: Engine) -> None:
    run(engine, 'CREATE SCHEMA "My App"')
    declare(engine, "odds", None, schema="My App")
    kinds: list[tuple[str, list[Any], dict[str, Any]]] = [
        (HARD_NAME, [text("lower(note) DESC"), "at"], {"postgresql_where": text("note <> 'a % b'")}),
        ("covering", ["note"], {"postgresql_include": ["id"], "postgresql_with": {"fillfactor": 70}}),
        ("once", ["at", "note"], {"unique": True, "postgresql_nulls_not_distinct": True}),
        ("like", ["note"], {"postgresql_ops": {"note": "text_pattern_ops"}}),
        ("blocks", ["at"], {"postgresql_using": "brin"}),
        ("ü" * 40, [sa.func.coalesce(sa.column("note"), "100 %")], {}),
    ]
    with listening(cast("Any", Engine)) as sent:  # ours are other connections than the migration's
        for name, columns, kw in kinds:
            create(engine, name, columns, schema="My App", **kw)
    built = [s for s in sent.statements if s.startswith("CREATE") and "CONCURRENTLY" in s]
    assert len(built) == 4 * len(kinds)
    with migrating(engine) as op:
        for number, (_, columns, kw) in enumerate(kinds):
            op.create_index(f"plain{number}", "odds", columns, schema="My App", **kw)
    definitions = rows(
        engine,
        "SELECT substr(d, strpos(d, ' USING ')), x.indisunique, x.indisvalid, x.indnullsnotdistinct,"
        " t.relname, count(*)"
        " FROM pg_index x JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid,"
        " replace(pg_get_indexdef(x.indexrelid), quote_ident(i.relname), 'name') d"
        " WHERE starts_with(t.relname, 'odds') AND NOT x.indisprimary GROUP BY 1, 2, 3, 4, 5",
    )
    assert len(definitions) == 5 * len(kinds)
    assert {(row[2], row[-1]) for row in definitions} == {(True, 2)}


def test_partitions_that_are_partitioned_themselves_and_those_of_others_are_indexed_too(
    engine: Engine,
) -> None:
    declare(engine)
    run(
        engine,
        "CREATE TABLE theirs PARTITION OF odds FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')",
        "CREATE TABLE deep PARTITION OF odds FOR VALUES FROM ('2021-01-01') TO ('2021-01-02')"
        " PARTITION BY HASH (id)",
        "CREATE TABLE deep_1 PARTITION OF deep FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
        "CREATE TABLE deep_2 PARTITION OF deep FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        " PARTITION BY LIST (id)",
    )
    create(engine)
    assert valid(engine, "by_note")
    assert parts(engine) == ["deep", *partitions(engine)[1:-1], "theirs"]
    assert rows(engine, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []
    with pytest.raises(IndexRefused, match=r"key, and of that of public.deep it lacks id"):
        create(engine, "once", ["at", "note"], unique=True)
    drop(engine)
    assert indexes(engine) == []


def test_an_index_lies_in_its_tablespace_at_every_depth(engine: Engine) -> None:
    declare(engine)
    run(
        engine,
        "CREATE TABLE deep PARTITION OF odds FOR VALUES FROM ('2021-01-01') TO ('2021-01-02')"
        " PARTITION BY HASH (id)",
        "CREATE TABLE deep_1 PARTITION OF deep FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    place = f"%'{scalar(engine, 'SELECT current_database()')}"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET allow_in_place_tablespaces = on"))
        connection.exec_driver_sql(f"""CREATE TABLESPACE "{place.replace("%", "%%")}" LOCATION ''""")
    try:
        create(engine, postgresql_tablespace=place)
        found = rows(
            engine,
            "SELECT spcname, count(*) FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace"
            " WHERE relkind IN ('i', 'I') AND c.relname !~ '^pg_' GROUP BY 1",
        )
        assert found == [(place, 1 + 1 + 1 + 4)]
        drop(engine)
    finally:
        run(engine, f'DROP TABLESPACE "{place}"')


def test_a_table_without_partitions_has_its_index_at_once(engine: Engine) -> None:
    run(engine, "CREATE TABLE odds (at date, note text) PARTITION BY RANGE (at)")
    create(engine)
    assert valid(engine, "by_note")
    create(engine)


def test_a_partition_made_meanwhile_is_covered(engine: Engine) -> None:
    declare(engine)
    seen: list[str] = []

    def meanwhile(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "CONCURRENTLY" in statement:
            seen.append(statement)
            if len(seen) == 1:
                with operations(engine) as op:
                    op.create_partitions("odds", "2026-05-01", "2026-05-02")
            if len(seen) == 2:
                attach = "ALTER TABLE odds ATTACH PARTITION theirs FOR VALUES FROM ('2020-01-01') TO "
                run(engine, "CREATE TABLE theirs (LIKE odds)", f"{attach} ('2020-01-02')")

    event.listen(Engine, "before_cursor_execute", meanwhile)
    try:
        create(engine)
    finally:
        event.remove(Engine, "before_cursor_execute", meanwhile)
    assert valid(engine, "by_note")
    assert parts(engine) == partitions(engine)
    assert {"odds_2026_05_01", "theirs"} <= set(partitions(engine))


def test_writers_write_on_while_the_build_waits_for_an_older_one(engine: Engine) -> None:
    declare(engine)
    events: list[str] = []
    older: list[Connection] = []

    def begin(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "CONCURRENTLY" in statement and not older:
            older.append(engine.connect())
            older[0].execute(text(ANOTHER_DAY))

    def build() -> None:
        create(engine)
        events.append("built")

    event.listen(Engine, "before_cursor_execute", begin)
    builder = threading.Thread(target=build)
    try:
        builder.start()
        wait_until(lambda: waits_for_a_lock(engine))
        run(engine, "SET lock_timeout = '1s'", ANOTHER_DAY, "UPDATE odds SET note = 'more'")
        events.append("written")
    finally:
        event.remove(Engine, "before_cursor_execute", begin)
        events.append("older one done")
        older[0].commit()
        older[0].close()
        builder.join()
    assert events == ["written", "older one done", "built"]
    assert parts(engine) == partitions(engine)


def test_a_writer_who_stays_keeps_the_index_from_beginning_and_nobody_else_from_writing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alembic_partitions.executor.indexing.PATIENCE", 0.1)
    declare(engine)
    with engine.begin() as writer:
        writer.execute(text("SET LOCAL application_name = 'long import'"))
        writer.execute(text(ANOTHER_DAY))
        with pytest.raises(LockNotAvailable, match="long import"):
            create(engine)
        run(engine, ANOTHER_DAY)
        assert indexes(engine) == []
    create(engine)
    assert valid(engine, "by_note")


def test_roles_and_search_path_of_the_migration_are_those_of_the_index(engine: Engine, roles: Roles) -> None:
    owner = roles.create("owner").username
    run(engine, f"CREATE SCHEMA tenant AUTHORIZATION {owner}")
    with engine.connect() as connection:
        connection.execute(text(f"SET ROLE {owner}"))
        connection.execute(text("SET search_path = tenant"))
        connection.execute(text("CREATE TABLE odds (at date, note text) PARTITION BY RANGE (at)"))
        connection.execute(text("CREATE TABLE odds_all PARTITION OF odds DEFAULT"))
        connection.execute(text("CREATE FUNCTION loud(text) RETURNS text IMMUTABLE RETURN upper($1)"))
        connection.commit()
        with migrating(connection) as op:
            op.create_partitioned_index("by_note", "odds", [text("loud(note)")])
    found = rows(
        engine,
        "SELECT n.nspname, pg_get_userbyid(i.relowner), indisvalid FROM pg_index"
        " JOIN pg_class i ON i.oid = indexrelid JOIN pg_namespace n ON n.oid = i.relnamespace"
        " WHERE indrelid = 'tenant.odds'::regclass",
    )
    assert found == [("tenant", owner, True)]


# -- cut off ----------------------------------------------------------------------------------------------


class CutOffError(BaseException):
    """Nobody catches it: the connection is closed, as if the process were gone."""


def cut_off(engine: Engine, number: int, **kw: Any) -> bool:
    """Build an index until its n-th statement; return whether there was one."""
    sent = 0

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal sent
        if statement.startswith(("CREATE", "ALTER", "DROP", "REINDEX")):
            sent += 1
            if sent == number:
                raise CutOffError

    event.listen(Engine, "before_cursor_execute", count)
    try:
        create(engine, **kw)
    except CutOffError:
        return True
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    return False


@pytest.mark.parametrize("finish", ["again", "repair"])
def test_cut_off_before_any_statement_it_is_finished_afterwards(engine: Engine, finish: str) -> None:
    declare(engine, rules=policy(premake=0))
    number = 1
    while cut_off(engine, number):
        if finish == "repair" and number > 1:  # before that there is nothing to finish
            assert repair(engine).error is None
        else:
            create(engine)
        assert valid(engine, "by_note")
        assert parts(engine) == partitions(engine)
        assert len(indexes(engine)) == 1 + len(partitions(engine))
        drop(engine)
        assert indexes(engine) == []
        number += 1
    assert number == 1 + 1 + 2 * len(partitions(engine))
    assert valid(engine, "by_note")


@pytest.mark.parametrize("finish", ["again", "repair", "drop"])
def test_what_was_left_half_built_is_built_anew_or_dropped(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, finish: str
) -> None:
    declare(engine)
    monkeypatch.setattr("alembic_partitions.executor.mending.UNHURRIED_LOCK_TIMEOUT_MS", 50)
    with engine.connect() as reader:
        reader.execution_options(isolation_level="REPEATABLE READ").execute(text("SELECT count(*) FROM odds"))
        with pytest.raises(WorkFailed, match="mending partition odds_2026"):
            create(engine)
    monkeypatch.setattr("alembic_partitions.executor.mending.UNHURRIED_LOCK_TIMEOUT_MS", 5_000)
    left = [name for name, is_valid in indexes(engine) if not is_valid]
    assert len(left) == 2, "the table's, and one half built"
    if finish == "drop":
        drop(engine)
        assert indexes(engine) == []
        return
    if finish == "repair":
        assert repair(engine).error is None
    else:
        create(engine)
    assert valid(engine, "by_note")
    assert [ok for _, ok in indexes(engine)] == [True] * 5
    assert well(engine)


def test_an_index_that_was_attached_invalid_is_rebuilt(engine: Engine) -> None:
    declare(engine)
    _, second, *_, last = partitions(engine)
    fail_to_index(engine, f"CREATE INDEX CONCURRENTLY half ON {FIRST} (note)")
    run(
        engine,
        "CREATE INDEX by_note ON ONLY odds (note)",
        f"CREATE INDEX kept ON {second} (note)",
        f"CREATE INDEX theirs ON {last} (note)",
    )
    run(engine, "ALTER INDEX by_note ATTACH PARTITION half", "ALTER INDEX by_note ATTACH PARTITION theirs")
    create(engine)
    assert valid(engine, "by_note")
    assert parts(engine) == partitions(engine)
    assert {"kept", "half", "theirs"} <= {name for name, _ in indexes(engine)}
    assert len(indexes(engine)) == 5, "what stood already is attached, not built twice"


def test_an_index_whose_last_part_was_mended_by_hand_is_made_valid(engine: Engine) -> None:
    declare(engine, rules=policy(premake=0))
    fail_to_index(engine, f"CREATE INDEX CONCURRENTLY half ON {FIRST} (note)")
    _, second = partitions(engine)
    run(
        engine,
        "CREATE INDEX by_note ON ONLY odds (note)",
        f"CREATE INDEX kept ON {second} (note)",
        "ALTER INDEX by_note ATTACH PARTITION kept",
        "ALTER INDEX by_note ATTACH PARTITION half",
        "REINDEX INDEX CONCURRENTLY half",
    )
    assert not valid(engine, "by_note")
    try:
        create(engine)
    except WorkFailed as error:  # older minor releases do not look again
        assert "still invalid though each partition has" in str(error)  # noqa: PT017
    else:
        assert valid(engine, "by_note")


def test_values_that_are_not_unique_are_told_and_built_once_they_are(engine: Engine) -> None:
    declare(engine)
    run(engine, ANOTHER_DAY, ANOTHER_DAY)
    with pytest.raises(WorkFailed, match="could not create unique index"):
        create(engine, "once", ["at", "note"], unique=True)
    run(engine, "DELETE FROM odds WHERE id = 1")
    create(engine, "once", ["at", "note"], unique=True)
    assert valid(engine, "once")


# -- refused ----------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_changed(engine: Engine) -> None:
    declare(engine)
    run(engine, "CREATE TABLE plain (note text)", "CREATE TABLE taken ()", "CREATE INDEX other ON odds (at)")
    before = indexes(engine)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("there is no such table", {"table": "nowhere"}),
        ("the table is not partitioned", {"table": "plain"}),
        ("lacks at", {"columns": ["note"], "unique": True}),
        ("must include all", {"columns": [text("lower(note)")], "unique": True}),
        ("something else has that name", {"name": "taken"}),
        ("another definition", {"name": "other"}),
        ("another definition", {"name": "other", "columns": ["at"], "unique": True}),
        ("another definition", {"name": "other", "columns": ["at"], "postgresql_using": "brin"}),
        ('column "nothing" does not exist', {"columns": ["nothing"]}),
        ('column "nothing" does not exist', {"name": "other", "columns": ["nothing"]}),
    ]
    for told, kw in cases:
        with pytest.raises(IndexRefused, match=told):
            create(engine, **kw)
    for told, kw in (
        ("none of that name", {"name": "nowhere"}),
        ("none of that name", {"name": "taken"}),
        ("none of that name", {"table": "plain", "name": "other"}),
        ("the constraint odds_pkey", {"name": "odds_pkey"}),
        ("a partition of", {"table": FIRST, "name": f"{FIRST}_at_idx"}),
    ):
        with pytest.raises(IndexRefused, match=told):
            drop(engine, **kw)
    nameless = sa.MetaData(naming_convention={"uq": "unique"})
    with migrating(engine, target_metadata=nameless) as op, pytest.raises(IndexRefused, match="has no name"):
        op.create_partitioned_index(None, "odds", ["note"])
    drop(engine, "nowhere", if_exists=True)
    assert indexes(engine) == before


def test_a_foreign_table_among_the_partitions_is_told_of(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE odds (at date, note text) PARTITION BY RANGE (at)",
        "CREATE FOREIGN DATA WRAPPER nothing",
        "CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing",
        "CREATE FOREIGN TABLE far PARTITION OF odds FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')"
        " SERVER nowhere",
    )
    with pytest.raises(IndexRefused, match=r"public\.far is a foreign table"):
        create(engine)
    create(engine, concurrently=False)
    assert valid(engine, "by_note")


def test_in_a_transaction_of_env_pys_own_it_is_refused_and_a_plain_one_made(engine: Engine) -> None:
    declare(engine)
    with operations(engine) as op:
        with pytest.raises(IndexRefused, match=r"pass concurrently=False"):
            op.create_partitioned_index("by_note", "odds", ["note"])
        op.create_partitioned_index("by_note", "odds", ["note"], concurrently=False)
        with pytest.raises(IndexRefused, match=r"pass concurrently=False"):
            op.drop_partitioned_index("by_note", "odds")
    assert valid(engine, "by_note")
    with operations(engine) as op:
        op.drop_partitioned_index("by_note", "odds", concurrently=False)
    assert indexes(engine) == []


def test_in_an_autocommit_block_it_is_at_home(engine: Engine) -> None:
    declare(engine)
    with migrating(engine) as op, op.get_context().autocommit_block():
        op.create_partitioned_index("by_note", "odds", ["note"])
        assert valid(engine, "by_note")


# -- undone -----------------------------------------------------------------------------------------------


def invoke(engine: Engine, operation: MigrateOperation) -> None:
    with migrating(engine) as op:
        op.invoke(operation)


def test_both_ways_and_back(engine: Engine) -> None:
    declare(engine)
    there = CreatePartitionedIndexOp(
        HARD_NAME, "odds", ["note", "at"], unique=True, postgresql_where=text("id > 5")
    )
    back = there.reverse()
    again = back.reverse()
    definition = "SELECT pg_get_indexdef(oid) FROM pg_class WHERE relname = :name"
    invoke(engine, there)
    before = scalar(engine, definition, name=HARD_NAME)
    invoke(engine, back)
    assert indexes(engine) == []
    invoke(engine, again)
    assert before is not None
    assert scalar(engine, definition, name=HARD_NAME) == before
    told = DropPartitionedIndexOp("by_note", "odds")
    with pytest.raises(ValueError, match="needs existing_columns="):
        told.reverse()


def test_a_drop_gives_up_soon_and_keeps_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alembic_partitions.executor.indexing.PATIENCE", 0.1)
    declare(engine)
    create(engine)
    with engine.begin() as reader:
        reader.execute(text("SET LOCAL application_name = 'slow report'"))
        reader.execute(text(f"SELECT FROM {FIRST}"))
        with pytest.raises(LockNotAvailable, match="slow report"):
            drop(engine)
        run(engine, ANOTHER_DAY)
    assert parts(engine) == partitions(engine)
    drop(engine)
    assert indexes(engine) == []


# -- printed, compared, deployed --------------------------------------------------------------------------


def test_printed_it_is_a_plain_one_and_says_so(engine: Engine) -> None:
    declare(engine)
    output = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output}
    )
    op: Any = Operations(context)
    op.create_partitioned_index("by_note", "odds", ["note"], postgresql_where=text("note <> 'a%'"))
    printed = output.getvalue()
    assert "-- alembic_partitions: a plain CREATE INDEX for 'by_note'" in printed
    run(engine, printed)
    assert valid(engine, "by_note")
    op.drop_partitioned_index("by_note", "odds")
    printed = output.getvalue().removeprefix(printed)
    assert "-- alembic_partitions: a plain DROP INDEX for 'by_note'" in printed
    run(engine, printed)
    assert indexes(engine) == []


def test_an_index_that_changes_is_dropped_and_made_anew_both_ways(engine: Engine) -> None:
    def wanted(*columns: str) -> sa.MetaData:
        return models(day(), sa.Index("by_note", *columns, postgresql_concurrently=True))

    declare(engine, "odds", day())
    create(engine)
    assert diffs(engine, wanted("note")) == []
    up, down = propose(engine, wanted("note", "id"))
    assert up.splitlines() == [
        "op.drop_partitioned_index(op.f('by_note'), table_name='odds')",
        "op.create_partitioned_index('by_note', 'odds', ['note', 'id'], unique=False)",
    ]
    assert [line.partition("(")[0].strip() for line in down.splitlines()] == [
        "op.drop_partitioned_index",
        "op.create_partitioned_index",
    ]


def test_an_index_that_is_half_done_is_no_equal_one(engine: Engine) -> None:
    declare(engine, "odds", day())
    wanted = models(day(), sa.Index("by_note", "note"))
    assert cut_off(engine, 3)
    up, down = propose(engine, wanted)
    assert "# alembic_partitions: the index by_note is invalid" in up
    assert "repair" in up
    assert down.strip() == "pass"
    assert diffs(engine, wanted) != []
    assert repair(engine).error is None
    assert diffs(engine, wanted) == []


def test_an_async_migration_builds_it_too(engine: Engine, database: Database) -> None:
    declare(engine, rules=policy(premake=0))

    def migrate(connection: Connection) -> None:
        with migrating(connection) as op:
            op.execute("CREATE TABLE before ()")
            op.create_partitioned_index("by_note", "odds", ["note"])
            op.create_partitioned_index("by_at", "odds", [text("(note || '%')"), "at"])
            op.drop_partitioned_index("by_at", "odds")

    async def main() -> None:
        other = create_async_engine(database.driver_url("asyncpg"), poolclass=NullPool)
        async with other.connect() as connection:
            await connection.run_sync(migrate)
        await other.dispose()

    asyncio.run(main())
    assert parts(engine) == partitions(engine)
    assert len(indexes(engine)) == 1 + len(partitions(engine))
    assert scalar(engine, "SELECT to_regclass('before') IS NOT NULL")


@pytest.mark.processes
def test_several_migrations_of_one_upgrade_build_one_each(
    tmp_path: Path, database: Database, engine: Engine
) -> None:
    """Under the migration lock, which another connection holds."""
    project = Project.make(tmp_path, "generic", database.url)
    project.add(
        """
        op.create_partitioned_table(
            "odds",
            sa.Column("at", sa.DateTime(timezone=True), nullable=False),
            sa.Column("note", sa.Text),
            policy=PartitionPolicy("at", premake=3),
        )
        """,
        'op.drop_partitioned_table("odds")',
    )
    for name in ("by_note", "by_time"):
        project.add(
            f'op.create_partitioned_index("{name}", "odds", ["note", "at"])',
            f'op.drop_partitioned_index("{name}", "odds")',
        )
    project.run("upgrade", "head").succeeded()
    assert parts(engine) == parts(engine, "by_time") == partitions(engine)
    assert scalar(engine, "SELECT version_num FROM alembic_version") == project.revisions[-1]
    project.run("downgrade", project.revisions[0]).succeeded()
    assert indexes(engine) == []
