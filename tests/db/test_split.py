"""Split: a partition gives way to its windows, and nobody reads, writes or loses anything differently."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, event, text

from alembic_partitions import PartitionPolicy, maintenance
from alembic_partitions.catalog import shown_tables
from alembic_partitions.errors import NoPartitionError, SplitRefused
from alembic_partitions.executor import swapping
from alembic_partitions.maintenance import space
from alembic_partitions.plan import Finding, Refusal
from tests.clock import Clock
from tests.databases import OF_THIS_DATABASE, Database, Roles
from tests.ledger import LEVELS, Writer, at_work, differences, keep_ledger
from tests.tables import (
    NOW,
    catalog,
    columns,
    declare,
    listening,
    partitions,
    policy,
    quote,
    rows,
    run,
    scalar,
)
from tests.terminal import caller

pytestmark = pytest.mark.ends


@contextmanager
def when(engine: Engine, begins: str, act: Callable[[], object], skip: int = 0) -> Iterator[None]:
    """Act once, right before a statement is sent that begins like this; ``skip`` of them come first."""
    seen = 0

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal seen
        if statement.strip().startswith(begins):
            seen += 1
            if seen == skip + 1:
                act()

    event.listen(engine, "before_cursor_execute", look)
    yield
    event.remove(engine, "before_cursor_execute", look)
    assert seen > skip, "it never came to that"


def wide(
    engine: Engine,
    name: str = "odds",
    *items: Any,
    days: int = 5,
    per_day: int = 20,
    rules: PartitionPolicy | None = None,
    written: str = "at, note",
    values: str = "{at}, 'n' || i",
    schema: str = "public",
    key_type: str = "timestamptz",
) -> str:
    """Declare a table whose first partition is a plain one with all there was, as a conversion leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
        table = rules or policy(premake=1, lookback=0)
        declare(engine, name, table, *items, schema=None if schema == "public" else schema)
    parent, old = f"{quote(schema)}.{quote(name)}", f"{quote(schema)}.{quote(name + '_old')}"
    until = scalar(
        engine,
        "SELECT min(pg_get_expr(c.relpartbound, 0)) FROM pg_class c"
        " JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = CAST(:parent AS regclass)",
        parent=parent,
    )
    first = until.removeprefix("FOR VALUES FROM (").split(")")[0]
    run(
        engine,
        f"CREATE TABLE {old} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)",
        f"ALTER TABLE {parent} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ({first})",
        f"COMMENT ON TABLE {old} IS 'alembic_partitions: made by convert'",
    )
    at = f"({first}::{key_type} - interval '7 min' - i * interval '1 day' / {per_day})::{key_type}"
    run(
        engine,
        f"INSERT INTO {parent} ({written}) SELECT {values.format(at=at)}"
        f" FROM generate_series(0, {days * per_day - 1}) i",
    )
    return name + "_old"


def split(engine: Engine, table: str = "odds", **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.split(connection, table=table, **kw).results
    return result


def everything(engine: Engine, table: str = "odds") -> list[tuple[Any, ...]]:
    return rows(engine, f"SELECT t::text FROM {table} t ORDER BY 1")


def left_over(engine: Engine) -> list[str]:
    """Return the tables, functions and triggers that belong to a split and not to the result."""
    found = rows(
        engine,
        "SELECT c.relname FROM pg_class c JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0"
        " WHERE d.description ~ '^alembic_partitions: (splitting|helper|windows)'"
        " UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '_split_log'"
        " UNION ALL SELECT tgname FROM pg_trigger WHERE tgname ~ '^alembic_partitions'"
        " UNION ALL SELECT conname FROM pg_constraint WHERE conname ~ '^alembic_partitions'",
    )
    return [name for (name,) in found]


def test_a_partition_gives_way_to_its_windows(engine: Engine) -> None:
    wide(engine)
    before = everything(engine)
    result = split(engine, batch=17)
    assert result.error is None
    assert everything(engine) == before
    assert len(before) == 100
    assert result.moved == 100
    assert partitions(engine) == [*result.created, "odds_2026_04_05", "odds_2026_04_06"]
    assert result.created == tuple(
        f"odds_2026_0{month}_{day}" for month, day in [(3, 31), (4, "01"), (4, "02"), (4, "03"), (4, "04")]
    )
    assert left_over(engine) == []


def test_what_is_written_meanwhile_is_kept(engine: Engine, database: Database) -> None:
    wide(engine, per_day=600)
    keep_ledger(engine)
    crowd = create_engine(database.url, poolclass=NullPool)
    writers = [Writer(crowd, LEVELS[n % 3], n, "2026-04-04 12:00+00") for n in range(6)]
    with at_work(writers):
        time.sleep(0.3)
        result = split(engine, batch=150, pause=0.01)
        time.sleep(0.3)
    assert result.error is None, result.error
    assert differences(engine) == []
    assert left_over(engine) == []


# -- what it minds --------------------------------------------------------------------------------------


def test_windows_have_what_the_table_has(engine: Engine, roles: Roles) -> None:
    owner = roles.create("owner").username
    run(
        engine,
        f"GRANT ALL ON SCHEMA public TO {owner}",
        "CREATE TABLE sites (id int PRIMARY KEY)",
        "INSERT INTO sites SELECT generate_series(1, 9)",
        "CREATE COLLATION \"odd One\" (locale = 'C')",
    )
    name = 'odds "100%"'
    items = (
        sa.Column("id", sa.Text(collation="odd One"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("number", sa.BigInteger, sa.Identity(always=True)),
        sa.Column("note", sa.Text),
        sa.Column("twice", sa.BigInteger, sa.Computed("number * 2", persisted=True)),
        sa.Column("site", sa.Integer, sa.ForeignKey("sites.id", ondelete="SET NULL")),
        sa.PrimaryKeyConstraint("id", "at"),
        sa.UniqueConstraint("number", "at"),
        sa.CheckConstraint("number > 0", name="positive"),
    )
    wide(
        engine,
        name,
        *items,
        written="at, note, id, site",
        values="{at}, 'n' || i, 'Row' || i, 1 + i % 9",
    )
    table = quote(name)
    run(
        engine,
        f"CREATE INDEX by_note ON {table} (note)",
        f"ALTER TABLE {table} ALTER note SET STATISTICS 7",
        f"ALTER TABLE {table} REPLICA IDENTITY FULL",
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} OWNER TO {owner}",
        f"ALTER TABLE {quote(name + '_old')} OWNER TO {owner}",
    )
    keep, before = f"UPDATE {table} SET note = 'changed' WHERE id = 'Row7'", everything(engine, table)
    with when(engine, "WITH copied", lambda: run(engine, keep, f"DELETE FROM {table} WHERE id = 'Row8'")):
        result = split(engine, name, batch=30)
    assert result.error is None
    after = everything(engine, table)
    assert len(after) == len(before) - 1
    assert sum("changed" in row[0] for row in after) == 1
    with engine.connect() as connection:
        (plan,) = maintenance.plan_repair(connection, tables=[name])
    assert [mend for mend in plan.mends if mend.child.name in result.created] == []
    keys = rows(
        engine,
        "SELECT count(*), bool_and(conparentid <> 0 AND convalidated) FROM pg_constraint"
        " WHERE contype = 'f' AND conrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent ="
        " CAST(:parent AS regclass))",
        parent=table,
    )
    assert keys == [(len(partitions(engine, name)), True)]
    # What was split refers to nothing any more, so what it referred to can go.
    run(engine, "DELETE FROM sites")
    assert left_over(engine) == []


@pytest.mark.parametrize("key_type", ["timestamp", "date"])
def test_other_keys_and_another_schema(engine: Engine, key_type: str) -> None:
    run(engine, "CREATE SCHEMA elsewhere")
    of = sa.DateTime() if key_type == "timestamp" else sa.Date()
    items = columns("at", of)
    wide(engine, "odds", *items, schema="elsewhere", key_type=key_type)
    before = everything(engine, "elsewhere.odds")
    result = split(engine, "elsewhere.odds", batch=33)
    assert result.error is None
    assert everything(engine, "elsewhere.odds") == before
    assert len(result.created) >= 5
    assert left_over(engine) == []


def test_a_partition_in_the_middle_is_split_by_name(engine: Engine) -> None:
    wide(engine)
    split(engine)
    run(
        engine,
        "CREATE TABLE broad (LIKE odds INCLUDING ALL EXCLUDING IDENTITY)",
        "ALTER TABLE odds ATTACH PARTITION broad FOR VALUES FROM ('2026-03-01 06:00+00')"
        " TO ('2026-03-05 12:00+00')",
        "INSERT INTO odds (at) SELECT '2026-03-01 06:00+00'::timestamptz + i * interval '1 h'"
        " FROM generate_series(0, 101) i",
    )
    before = everything(engine)
    result = split(engine, partition="broad", drop_old=True)
    assert result.error is None
    assert everything(engine) == before
    assert result.created == (
        "odds_2026_03_01_060000z",
        "odds_2026_03_02",
        "odds_2026_03_03",
        "odds_2026_03_04",
        "odds_2026_03_05",
        "odds_2026_03_06",
    )
    assert scalar(engine, "SELECT to_regclass('broad_before_split')") is None


def test_no_attach_reads_a_row(engine: Engine) -> None:
    """PostgreSQL counts the rows that scans read; of transactions that keep everybody out there are none."""
    wide(engine, days=45, per_day=4)
    read = "SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables WHERE relname ~ '^odds_2'"
    before: list[int] = []
    counts: list[int] = []

    def count(connection: Any) -> int:
        cursor = connection.connection.cursor()
        cursor.execute(read)
        return int(cursor.fetchone()[0] or 0)

    def begin(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("LOCK TABLE ONLY public.odds IN"):
            before.append(count(connection))

    def end(connection: Any) -> None:
        if len(before) > len(counts):
            counts.append(count(connection) - before[-1])

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "commit", end)
    result = split(engine)
    assert result.error is None
    assert len(result.created) == 45
    assert counts == [0, 0, 0, 0]  # the swap, and three groups of windows


def test_what_is_printed_is_what_is_sent(engine: Engine) -> None:
    name = "100% of 'it'"
    wide(engine, name)
    with engine.connect() as connection:
        printed = maintenance.plan_split(connection, table=name, batch=30, drop_old=True).sql()
    with listening(engine) as sent:
        assert split(engine, name, batch=30, drop_old=True).error is None
    words = ("ALTER", "CREATE", "COMMENT", "LOCK", "DROP", "REVOKE", "DO ", "SET TRANSACTION")
    changes = [s for s in sent.statements if s.startswith(words)]
    lines = "\n" + printed
    assert [s for s in changes if f"\n{s};\n" not in lines] == []
    assert "-- locks: ACCESS EXCLUSIVE on public.100% of 'it'" in printed
    assert not printed.count("None")


# -- who is at work meanwhile ---------------------------------------------------------------------------


# Before a batch; before catching up, comparing, coming into step; before everybody is kept out.
MOMENTS = [
    ("WITH copied", 0),
    *(("SET TRANSACTION", n) for n in range(5)),
    ("LOCK TABLE ONLY public.odds ", 0),
]


@pytest.mark.parametrize(("at", "skip"), MOMENTS)
def test_truncate_empties_the_copy_as_well(engine: Engine, at: str, skip: int) -> None:
    wide(engine)
    new = "INSERT INTO odds (at, note) VALUES ('2026-04-01 12:00+00', 'new'), ('2026-04-03 12:00+00', 'new')"
    with when(engine, at, lambda: run(engine, "TRUNCATE odds", new), skip=skip):
        result = split(engine, batch=30)
    assert result.error is None
    assert scalar(engine, "SELECT string_agg(note, ',') FROM odds") == "new,new"
    assert left_over(engine) == []


def test_a_table_written_anew_is_copied_anew(engine: Engine) -> None:
    wide(engine, per_day=100)
    run(engine, "DELETE FROM odds WHERE id % 2 = 0", "UPDATE odds SET note = 'x' WHERE id < 30")
    before = everything(engine)
    with when(engine, "WITH copied", lambda: run(engine, "VACUUM FULL odds_old"), skip=1):
        result = split(engine, batch=10)
    assert result.error is None
    assert everything(engine) == before


def test_a_snapshot_from_before_is_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would find the rows in no table: they were copied after it was taken."""
    monkeypatch.setattr(swapping, "PATIENCE", 0.3)
    wide(engine)
    before = everything(engine)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(text("SELECT 1"))
        result = split(engine)
        assert result.error is not None
        assert "is in a transaction that began before" in result.error
        assert reader.scalar(text("SELECT count(*) FROM odds")) == 100
    assert partitions(engine)[-1] == "odds_old"
    run(engine, "UPDATE odds SET note = 'in between' WHERE id = 5")
    again = split(engine)
    assert again.error is None
    assert len(everything(engine)) == len(before)
    assert scalar(engine, "SELECT count(*) FROM odds WHERE note = 'in between'") == 1
    assert left_over(engine) == []


def test_one_who_uses_the_table_for_long_is_left_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swapping, "PATIENCE", 0.3)
    wide(engine)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM odds"))
        result = split(engine)
        assert result.error is not None
        assert "AccessShareLock on odds" in result.error
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND " + OF_THIS_DATABASE
        assert scalar(engine, waiting) == 0
    assert split(engine).error is None
    noted = rows(engine, "SELECT error IS NOT NULL FROM partition_runs WHERE action = 'split' ORDER BY id")
    assert noted == [(True,), (False,)]


def test_what_is_deleted_is_referred_to_no_longer(engine: Engine) -> None:
    """Also by the copy, which has its foreign keys by then; what is referred to can be deleted with it."""
    run(engine, "CREATE TABLE sites (id int PRIMARY KEY)", "INSERT INTO sites SELECT generate_series(1, 9)")
    key = sa.Column("site", sa.Integer, sa.ForeignKey("sites.id"))
    wide(engine, "odds", *columns(), key, written="at, note, site", values="{at}, 'n', 1 + i % 9")
    deleting = "DELETE FROM odds WHERE site = 3", "DELETE FROM sites WHERE id = 3"
    with when(engine, "SELECT l.virtualtransaction", lambda: run(engine, *deleting), skip=1):
        result = split(engine)
    assert result.error is None
    assert scalar(engine, "SELECT count(*) FROM odds WHERE site = 3") == 0
    assert scalar(engine, "SELECT count(*) FROM odds") == 89


# -- cut off --------------------------------------------------------------------------------------------


class Cut(Exception):
    """Where a run ends too early."""


def test_a_run_cut_off_anywhere_is_gone_on_with(engine: Engine) -> None:
    wide(engine, days=2, per_day=6, rules=policy(premake=0, lookback=0))
    before = everything(engine)
    number, cuts = 0, 0
    while True:
        number += 1
        count = 0

        def cut(connection: Any, cursor: Any, statement: str, *rest: Any, number: int = number) -> None:
            nonlocal count
            count += not statement.lstrip().startswith(("SELECT", "SET LOCAL", "SET ", "RESET"))
            if count == number:
                count += 1
                raise Cut

        event.listen(engine, "before_cursor_execute", cut)
        try:
            result = split(engine, batch=5)
        except Cut:
            result = None
            cuts += 1
        finally:
            event.remove(engine, "before_cursor_execute", cut)
        assert everything(engine) == before
        if result is not None and result.error is None:
            break
        assert number < 200
    assert cuts > 10
    assert everything(engine) == before
    assert left_over(engine) == []


def test_a_split_can_be_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(engine)
    dump = catalog(engine)
    monkeypatch.setattr(swapping, "PATIENCE", 0.0)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM odds"))
        assert split(engine).error is not None
    assert left_over(engine) != []
    with engine.connect() as connection:
        maintenance.abort_split(connection, table="odds")
    assert catalog(engine) == dump
    with engine.connect() as connection, pytest.raises(SplitRefused, match="no split of it is under way"):
        maintenance.abort_split(connection, table="odds")


def test_others_leave_alone_what_is_just_being_split(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(engine)
    run(engine, "UPDATE partition_config SET retention = '1 day', premake = 1, lookback = 3")
    clock = Clock(monkeypatch)
    clock.set(NOW + timedelta(days=10))
    told = Finding(Refusal.SPLITTING, "public.odds_old")

    def look() -> None:
        with engine.connect() as other:
            clock.set(NOW)
            (plan,) = maintenance.plan(other)
            assert told in plan.plan.findings
            assert Refusal.MISALIGNED not in {f.refusal for f in plan.plan.findings}
            clock.set(NOW + timedelta(days=10))
            (result,) = maintenance.maintain(other).results
            assert "odds_old" not in result.detached
            assert str(told) in result.findings

    monkeypatch.setattr(swapping, "PATIENCE", 0.0)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM odds"))
        assert split(engine).error is not None
    look()
    assert split(engine).error is None


def test_autogenerate_sees_nothing_of_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wide(engine)
    with engine.connect() as connection:
        before = shown_tables(connection)
    monkeypatch.setattr(swapping, "PATIENCE", 0.0)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM odds"))
        assert split(engine).error is not None
    with engine.connect() as connection:
        assert shown_tables(connection) == before
    assert split(engine).error is None
    with engine.connect() as connection:
        assert shown_tables(connection) == before


# -- refused --------------------------------------------------------------------------------------------

NOTHING = "suppress_redundant_updates_trigger()"
REFUSED = {
    "no identity": ("ALTER TABLE odds DROP CONSTRAINT odds_pkey", "no primary key"),
    "foreign key to it": (
        "CREATE TABLE refers (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES odds)",
        "foreign key refers_id_at_fkey on public.refers refers to the table",
    ),
    "rules": ("CREATE RULE odd AS ON DELETE TO odds_old DO INSTEAD NOTHING", "rewrite rules"),
    "not valid": ("ALTER TABLE odds_old ADD CHECK (id > 0) NOT VALID", "NOT VALID"),
    "view": ("CREATE VIEW readers AS SELECT * FROM odds_old", "public.readers reads the partition itself"),
    "trigger": (
        f"CREATE TRIGGER mine BEFORE INSERT ON odds_old FOR EACH ROW EXECUTE FUNCTION {NOTHING}",
        "trigger mine",
    ),
    "infinite": ("INSERT INTO odds (at) VALUES ('-infinity')", "-infinity"),
    "too many windows": ("INSERT INTO odds (at) VALUES ('1970-01-01')", "more than 10000"),
    "a DEFAULT with rows": (
        "CREATE TABLE rest PARTITION OF odds DEFAULT; INSERT INTO odds (at) VALUES ('2027-01-01')",
        "holds rows",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_with_reason_and_remedy(engine: Engine, why: str) -> None:
    wide(engine)
    statement, told = REFUSED[why]
    for part in statement.split("; "):
        run(engine, part)
    dump = catalog(engine)
    with pytest.raises(SplitRefused) as refused:
        split(engine)
    assert told in str(refused.value)
    assert catalog(engine) == dump


def test_a_disk_too_small_for_a_copy_is_told_beforehand(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide(engine, "odds")
    with engine.connect() as connection:
        free = space.free_bytes(connection)
        # Told on this machine to who may look into the server's folder, which not every user may.
        assert free is None or free > 0
    monkeypatch.setattr(space, "free_bytes", lambda connection: 1000)
    with pytest.raises(SplitRefused, match="and 1,000 are free on the server's disk"):
        split(engine)
    assert scalar(engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds_split%'") == 0
    if free is not None:
        monkeypatch.undo()
        assert split(engine).error is None


def test_there_must_be_something_to_split(engine: Engine) -> None:
    wide(engine)
    assert split(engine, drop_old=True).error is None
    with pytest.raises(SplitRefused, match="none of its partitions spans more than one window"):
        split(engine)
    with pytest.raises(NoPartitionError):
        split(engine, partition="nowhere")
    with pytest.raises(SplitRefused, match="within one window"):
        split(engine, partition="odds_2026_04_05")
    with pytest.raises(SplitRefused, match="compared"):
        split(engine, drop_old=True, verify=False)


def test_the_command_line(engine: Engine, database: Database) -> None:
    wide(engine)
    call = caller(database)
    shown = call("split", "--table", "odds", "--dry-run")
    assert "ATTACH PARTITION" in shown.out
    assert "of disk while it runs" in shown.err
    done = call("split", "--table", "odds", "--pause", "1ms", "--drop-old")
    assert done.code == 0, done.err
    assert "public.odds: 5 windows, 100 rows" in done.err
    assert "in and out" in done.err
    again = call("split", "--table", "odds")
    assert again.code == 1
    assert "There is nothing to split" in again.err
