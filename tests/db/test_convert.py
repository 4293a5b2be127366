"""A plain table becomes partitioned, and plain again: nothing of it is lost, whoever is at work meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from alembic_partitions import PartitionPolicy, conversion, maintenance
from alembic_partitions.conversion import (
    ConversionPlan,
    convert,
    plan_convert,
    plan_unpartition,
    unpartition,
)
from alembic_partitions.errors import (
    ConversionRefused,
    LockNotAvailable,
    NoTableError,
    PolicyError,
    RunUnderWay,
    WorkFailed,
)
from alembic_partitions.executor import converting
from alembic_partitions.locks import one_conversion
from alembic_partitions.maintenance import Report, ensuring
from alembic_partitions.operations import ConvertToPartitionedOp, UnpartitionTableOp
from tests.databases import OF_THIS_DATABASE, Database, Roles
from tests.db.test_partitioned_index import migrating
from tests.postgres import locate
from tests.tables import NOW, Sent, instants, listening, partitions, policy, quote, rows, run, scalar

pytestmark = pytest.mark.ends

PLAIN = (
    """CREATE TABLE odds (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at timestamptz NOT NULL, note text)""",
    """INSERT INTO odds (at, note) SELECT timestamptz '2026-04-05 01:37:11+00' - i * interval '7 hours',
        'n' || i FROM generate_series(0, 99) i""",
)
#: Seven days after now is on the twelfth; the window after that begins on the thirteenth in Auckland.
UNTIL = "2026-04-12 12:00:00+00"
FIRST = "odds_until_2026_04_13"

# One of everything that can hang on a table.
RICH = (
    "CREATE TABLE venues (id int PRIMARY KEY, name text)",
    "INSERT INTO venues SELECT i, 'v' || i FROM generate_series(1, 5) i",
    """CREATE TABLE odds (
        id bigint GENERATED ALWAYS AS IDENTITY (START WITH 7 INCREMENT BY 3 CACHE 1), gone int,
        at timestamptz, venue int REFERENCES venues ON DELETE CASCADE, n serial,
        kind text DEFAULT 'x' NOT NULL, amount numeric CHECK (amount >= 0),
        twice numeric GENERATED ALWAYS AS (amount * 2) STORED, note text COLLATE "C",
        CONSTRAINT "the key" PRIMARY KEY (id), CONSTRAINT apart UNIQUE (venue, at, n) DEFERRABLE)
        WITH (fillfactor = 80)""",
    "ALTER TABLE odds DROP gone",
    "COMMENT ON TABLE odds IS 'all that is offered'",
    "COMMENT ON COLUMN odds.kind IS 'which'",
    "COMMENT ON CONSTRAINT \"the key\" ON odds IS 'the one'",
    "CREATE INDEX odds_at ON odds (at)",
    "COMMENT ON INDEX odds_at IS 'by time'",
    "CREATE INDEX odds_lower ON odds (lower(note)) WHERE kind = 'x'",
    """CREATE INDEX odds_later ON odds (at) INCLUDE (note) WITH (fillfactor = 60)
        WHERE at > '2026-01-01 00:00:00-02:30'""",
    "CREATE STATISTICS odds_st (ndistinct) ON venue, kind FROM odds",
    "ALTER TABLE odds ALTER kind SET STATISTICS 500",
    "ALTER TABLE odds ALTER venue SET (n_distinct = -0.5)",
    """CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN NEW.note := coalesce(NEW.note, 'filled'); RETURN NEW; END$$""",
    "CREATE TRIGGER fill BEFORE INSERT ON odds FOR EACH ROW EXECUTE FUNCTION fill()",
    "CREATE TRIGGER off AFTER UPDATE ON odds FOR EACH STATEMENT EXECUTE FUNCTION fill()",
    "ALTER TABLE odds DISABLE TRIGGER off",
    "COMMENT ON TRIGGER off ON odds IS 'not now'",
    "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON odds AS RESTRICTIVE FOR SELECT TO {reader} USING (venue < 4)",
    "CREATE POLICY everybody ON odds USING (true) WITH CHECK (kind <> 'bad')",
    "GRANT SELECT, INSERT ON odds TO {reader} WITH GRANT OPTION",
    "GRANT SELECT (id, at) ON odds TO PUBLIC",
    "GRANT USAGE ON SEQUENCE odds_n_seq TO {reader}",
    "GRANT SELECT ON SEQUENCE odds_id_seq TO {reader}",
    """CREATE VIEW recent WITH (security_barrier = true) AS SELECT o.id, o.at, v.name FROM odds o
        JOIN venues v ON v.id = o.venue WHERE o.at > '2026-01-01'""",
    "GRANT SELECT ON recent TO {reader}",
    "CREATE VIEW how_many AS SELECT count(*) FROM recent",
    """INSERT INTO odds (at, venue, amount, note) SELECT timestamptz '2026-04-05 01:37:11+00'
        - i * interval '1 hour', 1 + i % 5, i, 'n' || i FROM generate_series(1, 300) i""",
)


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock, and not by ALEMBIC_PARTITIONS_NOW: nothing is converted by a rehearsed one."""
    for module in (maintenance, ensuring):
        monkeypatch.setattr(module, "clock", lambda database_now: NOW)
    monkeypatch.setattr(converting, "PATIENCE", 3.0)


@pytest.fixture
def plain(engine: Engine) -> Engine:
    run(engine, *PLAIN)
    return engine


@pytest.fixture
def rich(engine: Engine, roles: Roles) -> Engine:
    reader = str(roles.create("reader").username)
    run(engine, *(statement.replace("{reader}", reader) for statement in RICH))
    return engine


def to_partitioned(
    engine: Engine, table: str = "odds", rules: PartitionPolicy | None = None, **kw: Any
) -> Report:
    with engine.connect() as connection:
        return convert(connection, table, rules or policy(), **kw)


def to_plain(engine: Engine, table: str = "odds", **kw: Any) -> Report:
    with engine.connect() as connection:
        return unpartition(connection, table, **kw)


def planned(
    engine: Engine, table: str = "odds", rules: PartitionPolicy | None = None, **kw: Any
) -> ConversionPlan:
    with engine.connect() as connection:
        return plan_convert(connection, table, rules or policy(), **kw)


def refusal(engine: Engine, table: str = "odds", rules: PartitionPolicy | None = None, **kw: Any) -> str:
    with pytest.raises(ConversionRefused) as caught, listening(engine) as sent:
        to_partitioned(engine, table, rules, **kw)
    assert not [s for s in altering(sent) if "partition_config" not in s], (
        "refused before anything is changed"
    )
    return str(caught.value)


def altering(sent: Sent) -> list[str]:
    words = "CREATE", "ALTER", "DROP", "DO", "COMMENT", "LOCK", "INSERT", "DELETE", "GRANT"
    return [statement for statement in sent.statements if statement.startswith(words)]


def content(engine: Engine, table: str = "odds") -> list[tuple[Any, ...]]:
    return rows(engine, f"SELECT t::text FROM {table} t ORDER BY 1")


def schema_of(database: Database) -> list[str]:
    """Return what pg_dump writes, without our own two tables."""
    program = locate() / "pg_dump"
    if not program.is_file():
        pytest.skip("this PostgreSQL comes without pg_dump")
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run(
        [program, "--schema-only", "-T", "partition_config", "-T", "partition_runs", url],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\"))]
    return [line for line in lines if "partition_runs" not in line]


# -- everything comes along -----------------------------------------------------------------------------


def test_rows_stay_and_new_windows_take_over(plain: Engine) -> None:
    before, file = content(plain), scalar(plain, "SELECT pg_relation_filenode('odds')")
    (result,) = to_partitioned(plain).results
    assert result.error is None
    assert result.created == (FIRST,)
    assert content(plain) == before
    assert scalar(plain, f"SELECT pg_relation_filenode('{FIRST}')") == file, "no row was copied"
    assert partitions(plain) == ["odds_2026_04_13", "odds_2026_04_14", FIRST]
    placed = "INSERT INTO odds (at) VALUES (:at) RETURNING tableoid::regclass::text, id"
    with plain.begin() as connection:
        where = [
            connection.execute(text(placed), {"at": at}).one()
            for at in ("1999-12-31", "2026-04-12 11:59:59.999999+00", UNTIL)
        ]
    assert where == [(FIRST, 101), (FIRST, 102), ("odds_2026_04_13", 103)]
    assert rows(plain, "SELECT action, error FROM partition_runs") == [("convert", None)]
    assert to_partitioned(plain).results[0].created == (), "done is done"


def test_whatever_hangs_on_the_table_comes_along(rich: Engine, database: Database) -> None:
    before, dumped = content(rich), schema_of(database)
    to_partitioned(rich)
    assert content(rich) == before
    after = [line for line in schema_of(database) if "odds_2026_04_1" not in line]
    assert [line for line in dumped if line not in after] == [
        "    at timestamp with time zone,",
        '    ADD CONSTRAINT "the key" PRIMARY KEY (id);',
        *(line for line in dumped if line.startswith("CREATE INDEX")),
    ], "the key may not be NULL and is part of the primary key; indexes are ON ONLY the table"
    # Of columns the names tell of their table, from PostgreSQL 18 on; else they are listed once more.
    of_partitions = FIRST, "_until_2026_04_13", "CONSTRAINT odds_", "nextval("
    gained = (line for line in after if line not in dumped)
    assert [*dict.fromkeys(line for line in gained if not any(of in line for of in of_partitions))] == [
        "    at timestamp with time zone NOT NULL,",
        "PARTITION BY RANGE (at);",
        '    ADD CONSTRAINT "the key" PRIMARY KEY (id, at);',
        *(line.replace(" ON ", " ON ONLY ", 1) for line in dumped if line.startswith("CREATE INDEX")),
        "ALTER TABLE public.odds",  # not ONLY: a foreign key
    ]


def test_the_way_back_leads_where_it_began(rich: Engine, database: Database) -> None:
    before, dumped = content(rich), schema_of(database)
    to_partitioned(rich)
    to_plain(rich)
    assert schema_of(database) == dumped
    assert content(rich) == before
    assert scalar(rich, "SELECT count(*) FROM partition_config") == 0
    run(rich, "INSERT INTO odds (at, venue) VALUES (now(), 1)")
    assert scalar(rich, "SELECT max(id) FROM odds") == 7 + 300 * 3, "the sequence went on where it was"
    assert rows(rich, "SELECT action FROM partition_runs ORDER BY id") == [("convert",), ("unpartition",)]


@pytest.mark.parametrize("serial", [False, True], ids=["identity", "serial"])
def test_numbers_go_on_on_both_ways(engine: Engine, serial: bool) -> None:
    kind = "bigserial" if serial else "bigint GENERATED BY DEFAULT AS IDENTITY"
    run(
        engine,
        f"CREATE TABLE odds (id {kind}, at date NOT NULL)",
        "INSERT INTO odds (at) SELECT '2026-04-01'",
    )
    to_partitioned(engine)
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-02')")
    to_plain(engine)
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-03')")
    assert rows(engine, "SELECT id FROM odds ORDER BY at") == [(1,), (2,), (3,)]
    assert scalar(engine, "SELECT pg_get_serial_sequence('odds', 'id')") == "public.odds_id_seq"


@pytest.mark.parametrize(
    ("key_type", "until"),
    [("timestamptz", UNTIL), ("timestamp(3)", "2026-04-13 00:00:00"), ("date", "2026-04-13")],
)
def test_names_of_any_kind_in_any_schema(engine: Engine, key_type: str, until: str) -> None:
    name, key = 'ev"ents % of :it' + "é" * 20, 'the "key" %s'
    table = f'"an other".{quote(name)}'
    run(
        engine,
        'CREATE SCHEMA "an other"',
        f"CREATE TABLE {table} ({quote(key)} {key_type}, n int, UNIQUE (n, {quote(key)}))",
        f"CREATE INDEX {quote('in' + name)} ON {table} ({quote(key)})",
        f'CREATE VIEW "an other"."re%ad" AS SELECT * FROM {table} WHERE n <> 7',
        f"INSERT INTO {table} VALUES ('2026-04-03', 1), ('2026-03-03', 2)",
    )
    rules = policy(key)
    printed = planned(engine, name, rules, schema="an other").sql()
    with listening(engine) as sent:
        to_partitioned(engine, name, rules, schema="an other")
    once = {line.removesuffix(";") for line in printed.splitlines()}
    made = [s for s in altering(sent) if "partition_runs" not in s and "by ensure" not in s]
    swapped = made[
        : next(n for n, s in enumerate(made) if s.startswith("INSERT INTO public.partition_config")) + 1
    ]
    assert [s for s in swapped if s.splitlines()[0] not in once] == [], "what is printed is what is sent"
    bounds = (
        "SELECT pg_get_expr(relpartbound, 0) FROM pg_class WHERE relname LIKE '%until%' AND relkind = 'r'"
    )
    bound = scalar(engine, f"SET TimeZone = 'UTC'; {bounds}")
    assert bound == f"FOR VALUES FROM (MINVALUE) TO ('{until}')"
    assert scalar(engine, 'SELECT sum(n) FROM "an other"."re%ad"') == 3
    to_plain(engine, name, schema="an other")
    assert scalar(engine, 'SELECT sum(n) FROM "an other"."re%ad"') == 3


KEYS = {
    "bigint": (
        "ms",
        "(extract(epoch FROM timestamptz '2026-04-01 00:00+00') * 1000)::bigint + i",
        "1775995200000",
    ),
    "integer": ("s", "extract(epoch FROM timestamptz '2026-04-01 00:00+00')::int + i", "1775995200"),
    "uuid": (
        None,
        "('019d4614-e400-7000-8000-' || lpad(i::text, 12, '0'))::uuid",
        "019d8190-2200-0000-0000-000000000000",
    ),
}


@pytest.mark.parametrize("key_type", KEYS)
def test_keys_that_are_no_times(engine: Engine, key_type: str) -> None:
    epoch, value, until = KEYS[key_type]
    run(
        engine,
        f"CREATE TABLE odds (id bigint PRIMARY KEY, at {key_type} NOT NULL)",
        f"INSERT INTO odds SELECT i, {value} FROM generate_series(1, 9) i",
    )
    if epoch is not None:
        with pytest.raises(PolicyError, match="epoch="):
            to_partitioned(engine)
    to_partitioned(engine, rules=policy(epoch=epoch))
    assert ("MINVALUE", until) in instants(engine)
    assert scalar(engine, f"SELECT count(*) FROM {FIRST}") == 9
    to_plain(engine)
    assert scalar(engine, "SELECT count(*) FROM odds") == 9


@pytest.mark.parametrize(
    ("value", "told"),
    [("0", "rows have the time 0"), ("9223372036854775807", "further ahead than max_ahead")],
)
def test_numbers_that_are_no_times_are_refused(engine: Engine, value: str, told: str) -> None:
    run(engine, "CREATE TABLE odds (at bigint NOT NULL)", f"INSERT INTO odds VALUES ({value})")
    assert told in refusal(engine, rules=policy(epoch="ms"))


def test_publications_follow_where_subscribers_see_one_table(plain: Engine) -> None:
    run(
        plain,
        """CREATE PUBLICATION one FOR TABLE odds (id, at) WHERE (id > 3)
            WITH (publish_via_partition_root = true)""",
        "CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true)",
        "ALTER TABLE odds REPLICA IDENTITY FULL",
    )
    listed = "SELECT pubname, tablename, attnames, rowfilter FROM pg_publication_tables ORDER BY 1"
    before = rows(plain, listed)
    to_partitioned(plain)
    assert [row for row in rows(plain, listed) if row[0] == "one"] == [
        row for row in before if row[0] == "one"
    ]
    assert scalar(plain, "SELECT relreplident::text FROM pg_class WHERE relname = 'odds'") == "f"
    to_plain(plain)
    assert [row for row in rows(plain, listed) if row[1] == "odds"] == before


def test_a_member_of_the_owner_is_enough(plain: Engine, database: Database, roles: Roles) -> None:
    owner = str(roles.create("owner").username)
    url = roles.create("ddl", f"IN ROLE {owner}")
    run(
        plain,
        "CREATE VIEW recent AS SELECT at FROM odds",
        "CREATE STATISTICS st ON id, note FROM odds",
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        *(f"ALTER {what} OWNER TO {owner}" for what in ("TABLE odds", "VIEW recent", "STATISTICS st")),
    )
    ddl = create_engine(url, poolclass=NullPool)
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname ~ '^(odds|recent)'"
    for work in (to_partitioned, to_plain):
        work(ddl)
        assert rows(plain, owners) == [(owner,)]
        assert (
            scalar(plain, "SELECT pg_get_userbyid(stxowner) FROM pg_statistic_ext WHERE stxname = 'st'")
            == owner
        )


def test_a_name_that_is_taken_is_stepped_over(plain: Engine) -> None:
    run(
        plain,
        f"CREATE TABLE {FIRST} ()",
        "CREATE TABLE odds_2026_04_13 ()",
        "CREATE INDEX odds_at ON odds (at)",
    )
    to_partitioned(plain)
    assert partitions(plain) == ["odds_2026_04_13_2", "odds_2026_04_14", f"{FIRST}_2"]
    to_plain(plain)
    assert rows(plain, "SELECT indexname FROM pg_indexes WHERE tablename = 'odds' ORDER BY 1") == [
        ("odds_at",),
        ("odds_pkey",),
    ]


def test_what_is_told_beforehand(plain: Engine) -> None:
    run(
        plain,
        "ALTER TABLE odds SET (fillfactor = 70)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER f BEFORE UPDATE ON odds FOR EACH ROW EXECUTE FUNCTION f()",
    )
    notes = planned(plain).notes
    assert [note.split(" ")[:3] for note in notes] == [
        ["the", "primary", "key"],
        ["fillfactor=70", "stays", "with"],
        ["trigger", "f", "must"],
    ]
    assert to_partitioned(plain).results[0].findings[:3] == notes


# -- refused before anything is changed -----------------------------------------------------------------

REFUSALS: dict[str, tuple[tuple[str, ...], str]] = {
    "a view": (("CREATE VIEW t AS SELECT now() AS at",), "it is a view"),
    "a materialized view": (
        ("CREATE MATERIALIZED VIEW t AS SELECT now() AS at",),
        "it is a materialized view",
    ),
    "an index": (("CREATE TABLE x (at date)", "CREATE INDEX t ON x (at)"), "it is an index"),
    "a foreign table": (
        (
            "CREATE FOREIGN DATA WRAPPER w",
            "CREATE SERVER s FOREIGN DATA WRAPPER w",
            "CREATE FOREIGN TABLE t (at date) SERVER s",
        ),
        "it is a foreign table",
    ),
    "partitioned otherwise": (
        ("CREATE TABLE t (at date) PARTITION BY LIST (at)",),
        "adopt_partitioned_table",
    ),
    "a partition": (
        ("CREATE TABLE x (at date) PARTITION BY LIST (at)", "CREATE TABLE t PARTITION OF x DEFAULT"),
        "DETACH it first",
    ),
    "an heir": (("CREATE TABLE x (at date)", "CREATE TABLE t () INHERITS (x)"), "NO INHERIT"),
    "inherited": (("CREATE TABLE t (at date)", "CREATE TABLE x () INHERITS (t)"), "NO INHERIT"),
    "unlogged": (("CREATE UNLOGGED TABLE t (at date)",), "SET LOGGED"),
    "of a type": (("CREATE TYPE x AS (at date)", "CREATE TABLE t OF x"), "NOT OF"),
    "without the column": (("CREATE TABLE t (att date, n int)",), "its columns are att, n"),
    "a generated key": (
        ("CREATE TABLE t (a date, at date GENERATED ALWAYS AS (a) STORED)",),
        "DROP EXPRESSION",
    ),
    "referred to": (
        ("CREATE TABLE t (id int PRIMARY KEY, at date)", "CREATE TABLE x (t int CONSTRAINT fk REFERENCES t)"),
        "public.x (fk) refers to it",
    ),
    "referring to itself": (
        ("CREATE TABLE t (id int PRIMARY KEY, at date, up int REFERENCES t)",),
        "public.t (t_up_fkey) refers to it",
    ),
    "unique without the key": (
        ("CREATE TABLE t (at date, n int UNIQUE)",),
        "unique constraint 't_n_key' lacks",
    ),
    "a unique index without": (
        ("CREATE TABLE t (at date, n int)", "CREATE UNIQUE INDEX u ON t ((n + 1))"),
        "unique index 'u' lacks the partition key 'at'",
    ),
    "an exclusion": (("CREATE TABLE t (at date, EXCLUDE (at WITH =))",), "within each partition alone"),
    "a CHECK that is not valid": (
        ("CREATE TABLE t (at date, n int)", "ALTER TABLE t ADD CONSTRAINT c CHECK (n > 0) NOT VALID"),
        "constraint 'c' is NOT VALID: VALIDATE CONSTRAINT",
    ),
    "NO INHERIT": (
        ("CREATE TABLE t (at date CONSTRAINT c CHECK (at > '1999-01-01') NO INHERIT)",),
        "NO INHERIT",
    ),
    "a foreign key that is not valid": (
        (
            "CREATE TABLE x (n int PRIMARY KEY)",
            "CREATE TABLE t (at date, n int)",
            "ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (n) REFERENCES x NOT VALID",
        ),
        "foreign key 'f' is NOT VALID",
    ),
    "a trigger with transition tables": (
        (
            "CREATE TABLE t (at date)",
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER f AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH ROW EXECUTE FUNCTION f()",
        ),
        "make it FOR EACH STATEMENT",
    ),
    "rules": (
        ("CREATE TABLE t (at date)", "CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING"),
        "replace them by triggers",
    ),
    "a materialized view that reads it": (
        ("CREATE TABLE t (at date)", "CREATE MATERIALIZED VIEW m AS SELECT * FROM t"),
        "materialized view public.m depends on it",
    ),
    "a function of its rows": (
        ("CREATE TABLE t (at date)", "CREATE FUNCTION f(t) RETURNS int LANGUAGE sql AS 'SELECT 1'"),
        "function public.f(public.t) depends on it",
    ),
    "a policy elsewhere": (
        (
            "CREATE TABLE t (at date)",
            "CREATE TABLE x (n int)",
            "CREATE POLICY p ON x USING (EXISTS (SELECT FROM t))",
        ),
        "policy p on table public.x depends on it",
    ),
    "a view grouped by its key": (
        (
            "CREATE TABLE t (id int PRIMARY KEY, at date)",
            "CREATE VIEW v AS SELECT id, at FROM t GROUP BY id",
        ),
        "view public.v depends on",
    ),
    "published by partitions": (
        ("CREATE TABLE t (at date)", "CREATE PUBLICATION p FOR TABLE t"),
        "publish_via_partition_root",
    ),
    "a view with a rule that writes": (
        (
            "CREATE TABLE t (at date)",
            "CREATE VIEW v AS SELECT * FROM t",
            "CREATE RULE r AS ON INSERT TO v DO INSTEAD INSERT INTO t VALUES (NEW.at)",
        ),
        "rule r on view public.v depends on it",
    ),
    "a default from its identity's sequence": (
        (
            "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, at date)",
            "CREATE TABLE x (n int DEFAULT nextval('t_id_seq'))",
        ),
        "default value for column n of table public.x depends on it",
    ),
    "a CHECK of our name": (
        ("CREATE TABLE t (at date CONSTRAINT alembic_partitions_until CHECK (at > 'epoch'))",),
        "bears the name of the one that is to be added: rename it",
    ),
    "no moment to begin at": (("CREATE TABLE t (at date)",), "until 'soon' is no moment"),
    "NULL": (("CREATE TABLE t (at date)", "INSERT INTO t VALUES (NULL)"), "rows have NULL as 'at'"),
    "infinity": (("CREATE TABLE t (at date)", "INSERT INTO t VALUES ('infinity')"), "go from infinity to"),
    "before Christ": (("CREATE TABLE t (at date)", "INSERT INTO t VALUES ('0044-03-15 BC')"), "go from 0044"),
    "the time 0": (
        ("CREATE TABLE t (at timestamptz)", "INSERT INTO t VALUES (to_timestamp(0)), ('2026-01-01')"),
        "rows have the time 0 (1970-01-01)",
    ),
    "far ahead": (
        ("CREATE TABLE t (at date)", "INSERT INTO t VALUES ('2036-04-05')"),
        "further ahead than max_ahead",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_would_be_lost_is_refused_with_its_remedy(engine: Engine, case: str) -> None:
    statements, told = REFUSALS[case]
    run(engine, *statements)
    assert told in refusal(engine, "t", until="soon" if "moment" in case else None)


@pytest.mark.pg(">= 18")
@pytest.mark.parametrize(
    ("constraint", "told"),
    [
        ("CHECK (n > 0) NOT ENFORCED", "NOT ENFORCED: ALTER CONSTRAINT ... ENFORCED"),
        ("NOT NULL n NOT VALID", "NOT VALID: VALIDATE CONSTRAINT"),
    ],
)
def test_what_is_not_proven_is_refused_by_its_name(engine: Engine, constraint: str, told: str) -> None:
    run(engine, "CREATE TABLE t (at date, n int)", f"ALTER TABLE t ADD CONSTRAINT c {constraint}")
    assert f"constraint 'c' is {told}" in refusal(engine, "t")


def test_what_a_subscription_writes_to_is_refused(plain: Engine) -> None:
    """Its worker would go on with the first partition alone, and what is beyond would never arrive."""
    run(
        plain,
        "CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE)",
    )
    with plain.begin() as connection:  # what a subscription that connects writes down
        connection.exec_driver_sql("SET LOCAL allow_system_table_mods = on")
        connection.exec_driver_sql(
            "INSERT INTO pg_subscription_rel SELECT oid, 'odds'::regclass, 'r', NULL FROM pg_subscription"
            " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    try:
        assert "a subscription writes to it" in refusal(plain)
    finally:
        run(plain, "DROP SUBSCRIPTION s")
    to_partitioned(plain)


def test_what_the_role_lacks_is_told_beforehand(plain: Engine, roles: Roles) -> None:
    owner, other = (str(roles.create(name).username) for name in ("owner", "other"))
    role = roles.create("ddl", f"IN ROLE {owner}")
    run(
        plain,
        "CREATE TABLE venues (id int PRIMARY KEY)",
        "ALTER TABLE odds ADD venue int CONSTRAINT fk REFERENCES venues",
        "CREATE VIEW recent AS SELECT at FROM odds",
        f"ALTER VIEW recent OWNER TO {other}",
        f"ALTER TABLE odds OWNER TO {owner}",
    )
    with pytest.raises(ConversionRefused) as caught:
        to_partitioned(create_engine(role, poolclass=NullPool))
    assert f"lacks CREATE on schema public, it or {owner}: grant it" in str(caught.value)
    assert f"lacks membership in {other}, who owns view public.recent" in str(caught.value)
    assert "lacks REFERENCES on public.venues" in str(caught.value)


def test_what_is_hidden_from_the_role_is_refused(plain: Engine, roles: Roles) -> None:
    owner = str(roles.create("owner").username)
    role = roles.create("ddl", f"IN ROLE {owner}")
    run(
        plain,
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        f"ALTER TABLE odds OWNER TO {owner}",
        "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE odds FORCE ROW LEVEL SECURITY",
    )
    with pytest.raises(ConversionRefused, match="run as a role that no row is hidden from"):
        to_partitioned(create_engine(role, poolclass=NullPool))


def test_small_things_come_along_too(engine: Engine, database: Database, roles: Roles) -> None:
    reader = str(roles.create("reader").username)
    run(
        engine,
        'CREATE TABLE odds (id int GENERATED ALWAYS AS IDENTITY, at date NOT NULL, n int, "lateral" text,'
        " PRIMARY KEY (id) INCLUDE (n) WITH (fillfactor = 70), UNIQUE (at, n) WITH (fillfactor = 60))",
        "COMMENT ON SEQUENCE odds_id_seq IS 'numbers'",
        "CREATE SEQUENCE another OWNED BY odds.id",
        "CREATE STATISTICS st ON at, n FROM odds",
        "ALTER STATISTICS st SET STATISTICS 444",
        "COMMENT ON STATISTICS st IS 'both'",
        'CREATE INDEX words ON odds ("lateral")',
        f"ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO {reader}",
    )
    before = schema_of(database)
    to_partitioned(engine)
    lines = schema_of(database)
    for told in (
        "PRIMARY KEY (id, at) INCLUDE (n) WITH (fillfactor='70');",
        "UNIQUE (at, n) WITH (fillfactor='60');",
        "COMMENT ON SEQUENCE public.odds_id_seq IS 'numbers';",
        "ALTER SEQUENCE public.another OWNED BY public.odds.id;",
        "ALTER STATISTICS public.st SET STATISTICS 444;",
        "COMMENT ON STATISTICS public.st IS 'both';",
    ):
        assert any(told in line for line in lines), told
    run(engine, "COMMENT ON COLUMN odds.n IS 'said since'")
    to_plain(engine)
    assert [line for line in schema_of(database) if "said since" not in line] == before


def test_subscribers_tell_rows_by_the_same_index(plain: Engine) -> None:
    run(plain, "ALTER TABLE odds REPLICA IDENTITY USING INDEX odds_pkey")
    identities = (
        "SELECT c.relname, i.relname FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid"
        " JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indisreplident ORDER BY 1"
    )
    to_partitioned(plain)
    assert len(rows(plain, identities)) == 1 + len(partitions(plain))
    to_plain(plain)
    assert rows(plain, identities) == [("odds", "odds_pkey")]


def test_who_has_written_what_it_refers_to_lets_the_swap_in(plain: Engine) -> None:
    """A writer takes the table referred to first, then this one: the swap takes them in that order, too."""
    run(
        plain,
        "CREATE TABLE venues (id int PRIMARY KEY)",
        "ALTER TABLE odds ADD venue int CONSTRAINT fk REFERENCES venues",
    )
    swap = planned(plain).steps[-1].batch
    locks = [s.sql for s in swap.statements if s.sql.startswith("LOCK TABLE") and "ACCESS" in s.sql]
    assert locks == [
        "LOCK TABLE public.venues IN ACCESS EXCLUSIVE MODE",
        "LOCK TABLE ONLY public.odds IN ACCESS EXCLUSIVE MODE",
    ]


def test_all_that_stands_in_the_way_is_named_at_once(engine: Engine) -> None:
    run(engine, "CREATE UNLOGGED TABLE t (at date, n int UNIQUE)")
    told = refusal(engine, "t")
    assert "SET LOGGED" in told
    assert "t_n_key" in told
    assert told.endswith("Nothing was changed.")


@pytest.mark.parametrize("until", ["2026-04-05", "2026-04-04"])
def test_a_first_window_before_rows_that_exist_is_refused(plain: Engine, until: str) -> None:
    assert "before" in refusal(plain, until=until)
    (result,) = to_partitioned(plain, until="2026-04-06T15:00").results
    assert result.created[0] == "odds_until_2026_04_06"


def test_a_key_of_another_type_is_refused(engine: Engine) -> None:
    run(engine, "CREATE TABLE t (at text)")
    with pytest.raises(PolicyError, match="of type text"):
        to_partitioned(engine, "t")


def test_a_table_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(NoTableError, match=r"There is no table public\.t"):
        to_partitioned(engine, "t")


def test_a_temporary_table_is_not_seen_from_outside(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE t (at date)")
        connection.commit()
        with pytest.raises(ConversionRefused, match="it is temporary"):
            convert(connection, "t", policy())


def test_a_rehearsed_clock_converts_nothing(plain: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
    assert "unset ALEMBIC_PARTITIONS_NOW" in refusal(plain)
    assert planned(plain).steps


def test_another_policy_than_the_one_in_force_is_refused(plain: Engine) -> None:
    to_partitioned(plain)
    assert "op.alter_partition_policy()" in refusal(plain, rules=policy(interval="week"))


# -- beside others --------------------------------------------------------------------------------------


@contextmanager
def meanwhile(engine: Engine, begins: str, act: Callable[[], None], number: int = 1) -> Iterator[None]:
    """Act right before the n-th statement that begins so."""
    count = 0

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal count
        if statement.startswith(begins):
            count += 1
            if count == number:
                act()

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", look)
    assert count >= number


def test_what_is_changed_between_the_look_and_the_lock_comes_along(plain: Engine) -> None:
    # The first such lock is the CHECK's, the second the swap's.
    with meanwhile(plain, BESIDE, lambda: run(plain, "CREATE INDEX late ON odds (note)"), number=2):
        to_partitioned(plain)
    assert scalar(plain, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'late'::regclass") == 3


LOCK = "LOCK TABLE ONLY public.odds IN ACCESS"
BESIDE = "LOCK TABLE ONLY public.odds IN SHARE UPDATE"
STEPS = (
    "CREATE UNIQUE",
    "ALTER TABLE public.odds ADD CONSTRAINT alembic_partitions_until",
    "ALTER TABLE public.odds VALIDATE",
)


def test_rows_written_at_each_step_stay(plain: Engine) -> None:
    written: list[str] = []

    def write(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        # Not between LOCK and COMMIT, where nobody can.
        if statement.startswith(STEPS):
            with other.begin() as sql:
                sql.exec_driver_sql("INSERT INTO odds (at, note) VALUES ('2026-04-07', 'new')")
                sql.exec_driver_sql("UPDATE odds SET note = note || '!' WHERE id = 5")
            written.append(statement)

    other = create_engine(plain.url, poolclass=NullPool)
    event.listen(plain, "before_cursor_execute", write)
    to_partitioned(plain)
    assert len(written) == 3
    assert scalar(plain, "SELECT count(*) FROM odds WHERE note = 'new'") == 3
    assert scalar(plain, "SELECT note FROM odds WHERE id = 5") == "n4!!!"


def test_a_reader_who_does_not_end_is_named_and_nobody_waits_behind(plain: Engine) -> None:
    with plain.connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM odds")
        with pytest.raises(LockNotAvailable, match="holds AccessShareLock on odds"):
            to_partitioned(plain)
    step = planned(plain).steps
    assert [s.title.split(":")[0] for s in step][-1] == "the swap"
    (result,) = to_partitioned(plain).results
    assert result.created[0] == FIRST, "the next run goes on"


def test_a_transaction_that_goes_on_and_on_is_refused_up_front(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.reading, "LONG", 0.0)
    with plain.connect() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM odds")
        assert "long transaction: process" in refusal(plain)
        assert "holds AccessShareLock" in planned(plain).sql()


def test_one_process_converts_a_table_at_a_time(plain: Engine) -> None:
    with one_conversion(plain, "public.odds"), pytest.raises(RunUnderWay):
        to_partitioned(plain)
    with one_conversion(plain, "public.other"):
        to_partitioned(plain)


def test_two_at_once_convert_once(plain: Engine) -> None:
    failed: list[Exception] = []

    def one() -> None:
        try:
            to_partitioned(plain)
        except RunUnderWay:
            pass
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(partitions(plain)) == 3
    assert scalar(plain, "SELECT count(*) FROM odds") == 100


# -- cut off at any statement ---------------------------------------------------------------------------


class Cut(Exception):
    """The run ends here."""


def cut_off(engine: Engine, number: int, work: Callable[[Engine], Any]) -> bool:
    """Run until the n-th statement; tell whether there was one."""
    count = 0

    def look(connection: Any, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Cut

    other = create_engine(engine.url, poolclass=NullPool)
    event.listen(other, "before_cursor_execute", look)
    try:
        work(other)
    except Cut:
        return True
    return False


def up_to_the_swap(engine: Engine) -> None:
    def cut() -> None:
        raise Cut

    with suppress(Cut), meanwhile(engine, LOCK, cut):
        to_partitioned(engine)


@pytest.mark.long
def test_cut_off_anywhere_it_goes_on_and_back(plain: Engine, database: Database) -> None:
    """Each run is cut off one statement later than the one before, on the way there and on the way back."""
    before = content(plain)
    for work, ends in ((to_partitioned, partitions), (to_plain, lambda engine: not partitions(engine))):
        number = 1
        while cut_off(plain, number, work):
            assert content(plain) == before
            number += 1 if number < 40 else 7
        assert ends(plain)
        assert content(plain) == before
    left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND "
    assert scalar(plain, left + OF_THIS_DATABASE) == 0
    assert scalar(plain, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def test_an_index_that_was_cut_off_is_built_anew(plain: Engine) -> None:
    run(plain, "INSERT INTO odds (at) VALUES ('2026-04-01')")
    with plain.connect() as reader:
        reader.exec_driver_sql("BEGIN ISOLATION LEVEL REPEATABLE READ")
        reader.exec_driver_sql("SELECT 1 FROM pg_class")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(converting, "CONCURRENT_LOCK_TIMEOUT_MS", 100)
            with pytest.raises(LockNotAvailable):
                to_partitioned(plain)
    assert rows(plain, "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid") == [
        ("odds_pkey_with_at",)
    ]
    assert "drop what is left" in planned(plain).steps[0].title
    to_partitioned(plain)
    assert scalar(plain, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == 0


def test_a_conversion_can_be_given_up(plain: Engine, database: Database) -> None:
    before = schema_of(database)
    up_to_the_swap(plain)
    with plain.connect() as connection:
        assert len(conversion.abort_conversion(connection, "odds")) == 2
        assert conversion.abort_conversion(connection, "odds") == ()
    assert schema_of(database) == before


def test_a_check_whose_time_is_almost_over_is_made_anew(
    plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_to_the_swap(plain)
    assert len(planned(plain).steps) == 1, "all but the swap is done"
    later = NOW.replace(day=12)
    for module in (maintenance, ensuring):
        monkeypatch.setattr(module, "clock", lambda database_now: later)
    (result,) = to_partitioned(plain).results
    assert result.created[0] == "odds_until_2026_04_20"


# -- and back -------------------------------------------------------------------------------------------


def test_rows_that_are_not_unique_any_more_keep_the_old_key(plain: Engine) -> None:
    to_partitioned(plain)
    run(plain, "INSERT INTO odds (id, at) OVERRIDING SYSTEM VALUE VALUES (1, '2026-03-03')")
    with pytest.raises(WorkFailed, match="could not create unique index"):
        to_plain(plain)
    assert scalar(plain, "SELECT count(*) FROM odds") == 101
    to_plain(plain, primary_key=["id", "at"])
    assert (
        scalar(
            plain,
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid ="
            " 'odds'::regclass",
        )
        == "PRIMARY KEY (id, at)"
    )


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("CREATE TABLE x (id bigint, at timestamptz, FOREIGN KEY (id, at) REFERENCES odds)", "refers to it"),
        ("CREATE MATERIALIZED VIEW m AS SELECT * FROM odds", "materialized view public.m depends on it"),
        ("SELECT 1", "primary_key names nothing"),
    ],
)
def test_undoing_refuses_what_it_would_lose(plain: Engine, statement: str, told: str) -> None:
    to_partitioned(plain)
    run(plain, statement)
    with pytest.raises(ConversionRefused, match=told):
        to_plain(plain, primary_key=["nothing"] if statement == "SELECT 1" else None)
    assert partitions(plain)


def test_a_plain_table_has_nothing_to_undo(plain: Engine) -> None:
    (result,) = to_plain(plain).results
    assert result.findings == ("it is a plain table already",)
    with plain.connect() as connection:
        assert plan_unpartition(connection, "odds").steps == ()
    run(plain, "CREATE VIEW v AS SELECT 1")
    with pytest.raises(ConversionRefused, match="it is not partitioned"):
        to_plain(plain, "v")


# -- in a migration -------------------------------------------------------------------------------------


def test_in_a_migration_and_its_reverse(plain: Engine, database: Database) -> None:
    before = schema_of(database)
    there = ConvertToPartitionedOp("odds", policy(), existing_primary_key=["id"])
    with migrating(plain) as op:
        op.execute("UPDATE odds SET note = 'touched' WHERE id = 1")  # holds the table until it is committed
        op.convert_to_partitioned("odds", policy())
        op.execute("UPDATE odds SET note = note || ' twice' WHERE id = 1")
    assert scalar(plain, "SELECT note FROM odds WHERE id = 1") == "touched twice"
    assert len(partitions(plain)) == 3
    with migrating(plain) as op:
        op.invoke(there.reverse())
    assert schema_of(database) == before
    again = there.reverse().reverse()
    assert isinstance(again, ConvertToPartitionedOp)
    assert (again.policy, again.existing_primary_key) == (there.policy, ["id"])
    with pytest.raises(ValueError, match="needs existing_policy="):
        UnpartitionTableOp("odds").reverse()


def test_with_asyncpg(plain: Engine, database: Database) -> None:
    engine = create_async_engine(database.driver_url("asyncpg"), poolclass=NullPool)
    made = []

    async def there_and_back() -> None:
        async with engine.connect() as connection:
            await connection.run_sync(lambda sync: convert(sync, "odds", policy()))
            made.extend(partitions(plain))
            await connection.run_sync(lambda sync: unpartition(sync, "odds"))
        await engine.dispose()

    asyncio.run(there_and_back())
    assert len(made) == 3
    assert not partitions(plain)


def test_a_transaction_of_env_py_is_left_alone(plain: Engine) -> None:
    with plain.begin() as connection:
        op = Operations(MigrationContext.configure(connection))
        with pytest.raises(ConversionRefused, match=r"context.begin_transaction\(\)"):
            op.convert_to_partitioned("odds", policy())  # type: ignore[attr-defined]


def test_a_script_says_where_it_can_be_had(plain: Engine) -> None:
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True})
    with pytest.raises(ConversionRefused, match="alembic-partitions convert --table odds --dry-run"):
        Operations(context).convert_to_partitioned("odds", policy())  # type: ignore[attr-defined]
