"""A partition of ours beside one that CREATE TABLE ... PARTITION OF makes: nothing of the parent is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from alembic_partitions import maintenance
from tests.databases import Roles
from tests.tables import NOW, columns, declare, partitions, policy, quote, rows, run, scalar

OURS = "odds_2026_04_05"
THEIRS = "odds_2027_01_01"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


def prepared(engine: Engine, *changes: str, rules: Any = None, items: Any = (), **kw: Any) -> None:
    """Declare a table without partitions, and change it as other migrations do."""
    declare(engine, "odds", rules or policy(premake=0, lookback=0), *items, **kw)
    run(engine, f"DROP TABLE {OURS}", *changes)


def made(engine: Engine) -> None:
    """Let ensure make our partition, and PostgreSQL one of its own."""
    with engine.connect() as connection:
        report = maintenance.ensure(connection)
    assert [result.error for result in report.results if result.error] == []
    assert partitions(engine) == [OURS]
    run(
        engine,
        f"CREATE TABLE {THEIRS} PARTITION OF odds FOR VALUES FROM ('2027-01-01+00') TO ('2027-01-02+00')",
    )


SHAPE = {
    "columns": """
        SELECT attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
               attislocal, attinhcount, attcollation::regcollation::text, attstorage, attcompression,
               attstattarget, pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = CAST(:child AS regclass) AND attnum > 0 AND NOT attisdropped""",
    "constraints": """
        SELECT conname, contype, pg_get_constraintdef(c.oid), convalidated, conislocal, coninhcount,
               connoinherit AND contype IN ('c', 'n'), condeferrable, condeferred,
               (SELECT p.conname FROM pg_constraint p WHERE p.oid = c.conparentid)
        FROM pg_constraint c WHERE conrelid = CAST(:child AS regclass)""",
    "referenced by": """
        SELECT conrelid::regclass::text, pg_get_constraintdef(c.oid), convalidated
        FROM pg_constraint c WHERE confrelid = CAST(:child AS regclass)""",
    "indexes": """
        SELECT pg_get_indexdef(x.indexrelid), indisvalid, indisunique, indisprimary, indisreplident,
               (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = x.indexrelid)
        FROM pg_index x WHERE indrelid = CAST(:child AS regclass)""",
    "triggers": """
        SELECT tgname, tgenabled, tgtype, tgfoid::regproc::text
        FROM pg_trigger WHERE tgrelid = CAST(:child AS regclass) AND NOT tgisinternal""",
    "relation": """
        SELECT relkind, relpersistence, pg_get_userbyid(relowner), relreplident, relispartition, relam,
               reltablespace, relhastriggers, relchecks, relnatts
        FROM pg_class WHERE oid = CAST(:child AS regclass)""",
}


def shape(engine: Engine, child: str) -> dict[str, list[str]]:
    """Return what a partition is, its own name taken out of every name and definition."""
    return {
        part: sorted(str(row).replace(child, "CHILD") for row in rows(engine, query, child=quote(child)))
        for part, query in SHAPE.items()
    }


def alike(engine: Engine) -> None:
    made(engine)
    assert shape(engine, OURS) == shape(engine, THEIRS)


# -- exactly as PARTITION OF does ----------------------------------------------------------------------

AS_THEIRS: dict[str, list[str]] = {
    "nothing special": [],
    "an identity that is always generated": ["ALTER TABLE odds ALTER id SET GENERATED ALWAYS"],
    "a generated column": ["ALTER TABLE odds ADD twice text GENERATED ALWAYS AS (note || note) STORED"],
    "defaults": [
        "CREATE SEQUENCE tickets",
        "ALTER TABLE odds ADD ticket bigint NOT NULL DEFAULT nextval('tickets')",
        "ALTER TABLE odds ALTER note SET DEFAULT '100%'",
    ],
    "collations, domains and arrays": [
        "CREATE DOMAIN price AS numeric CHECK (VALUE > 0)",
        'ALTER TABLE odds ADD p price, ADD q price[] NOT NULL, ADD c text COLLATE "C"',
    ],
    "a dropped column": ["ALTER TABLE odds ADD gone int, ADD kept int", "ALTER TABLE odds DROP gone"],
    "storage and compression": [
        "ALTER TABLE odds ALTER note SET STORAGE EXTERNAL, ALTER note SET COMPRESSION pglz"
    ],
    "checks": [
        "ALTER TABLE odds ADD CONSTRAINT short CHECK (length(note) < 100)",
        "ALTER TABLE odds ADD CONSTRAINT later CHECK (note <> '') NOT VALID",
    ],
    "a unique constraint, deferrable": [
        "ALTER TABLE odds ADD CONSTRAINT only_one UNIQUE (note, at) DEFERRABLE INITIALLY DEFERRED"
    ],
    "nulls that are not distinct": ["ALTER TABLE odds ADD UNIQUE NULLS NOT DISTINCT (note, at)"],
    "a foreign key": [
        "CREATE TABLE races (id int PRIMARY KEY)",
        "ALTER TABLE odds ADD race int REFERENCES races ON DELETE CASCADE DEFERRABLE",
    ],
    "a foreign key by several columns": [
        "CREATE TABLE races (a int, b int, PRIMARY KEY (a, b))",
        "ALTER TABLE odds ADD a int, ADD b int, ADD FOREIGN KEY (a, b) REFERENCES races MATCH FULL",
    ],
    "a foreign key that refers to it": [
        "CREATE TABLE bets (a bigint, b timestamptz, FOREIGN KEY (a, b) REFERENCES odds (id, at))",
    ],
    "indexes partial, by expression, descending and covering": [
        "CREATE INDEX ON odds (note) WHERE id > 7",
        "CREATE INDEX ON odds (lower(note), at DESC NULLS LAST)",
        "CREATE INDEX ON odds (note text_pattern_ops) INCLUDE (id) WITH (fillfactor = 70)",
        "CREATE INDEX ON odds USING brin (at)",
        "CREATE INDEX ON odds USING hash (note)",
    ],
    "indexes twice the same": ["CREATE INDEX one ON odds (note)", "CREATE INDEX two ON odds (note)"],
    "an index on the parent only": ["CREATE INDEX only_here ON ONLY odds (note)"],
    "row triggers": [
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "CREATE TRIGGER t AFTER INSERT ON odds FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE TRIGGER s BEFORE UPDATE OF note ON odds FOR EACH ROW WHEN (OLD.id > 7) EXECUTE FUNCTION f()",
        "CREATE TRIGGER never AFTER DELETE ON odds FOR EACH ROW EXECUTE FUNCTION f()",
        "ALTER TABLE odds DISABLE TRIGGER never",
    ],
}


@pytest.mark.parametrize("changes", AS_THEIRS.values(), ids=AS_THEIRS.keys())
def test_our_partition_is_what_partition_of_makes(engine: Engine, changes: list[str]) -> None:
    prepared(engine, *changes)
    alike(engine)


@pytest.mark.pg(">= 18")
def test_virtual_columns_and_constraints_that_are_not_enforced_are_as_theirs(engine: Engine) -> None:
    prepared(
        engine,
        "ALTER TABLE odds ADD twice text GENERATED ALWAYS AS (note || note) VIRTUAL",
        "ALTER TABLE odds ADD CONSTRAINT hope CHECK (note <> '') NOT ENFORCED",
        "ALTER TABLE odds ADD must int CONSTRAINT it_must NOT NULL",
    )
    alike(engine)


@pytest.mark.pg(">= 17")
def test_an_exclusion_constraint_is_as_theirs(engine: Engine) -> None:
    try:
        run(engine, "CREATE EXTENSION btree_gist")
    except DBAPIError as error:
        pytest.skip(f"needs btree_gist: {error.orig}")
    prepared(engine, "ALTER TABLE odds ADD EXCLUDE USING gist (at WITH =, note WITH <>) DEFERRABLE")
    alike(engine)


def test_extended_statistics_become_the_partitions_own(engine: Engine) -> None:
    # PARTITION OF makes none, so the planner would know less of a partition of theirs.
    prepared(engine, "CREATE STATISTICS together (dependencies) ON id, note FROM odds")
    made(engine)
    found = "SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = CAST(:name AS regclass)"
    assert (scalar(engine, found, name=OURS), scalar(engine, found, name=THEIRS)) == (1, 0)


def test_comments_of_columns_come_along_and_the_tables_is_our_mark(engine: Engine) -> None:
    prepared(engine, "COMMENT ON COLUMN odds.note IS 'it''s 100%'", "COMMENT ON TABLE odds IS 'odds'")
    made(engine)
    assert scalar(engine, f"SELECT col_description('{OURS}'::regclass, 3)") == "it's 100%"
    assert (
        scalar(engine, f"SELECT obj_description('{OURS}'::regclass)") == "alembic_partitions: made by ensure"
    )


def test_rows_and_their_identities_come_from_the_parent(engine: Engine) -> None:
    prepared(engine)
    made(engine)
    run(engine, "INSERT INTO odds (at) VALUES ('2026-04-05 13:37:11+12'), ('2027-01-01 13:37:11+00')")
    assert rows(engine, "SELECT id, tableoid::regclass::text FROM odds ORDER BY id") == [
        (1, OURS),
        (2, THEIRS),
    ]


# -- what LIKE and ATTACH leave behind -----------------------------------------------------------------


def test_the_statistics_targets_are_the_parents(engine: Engine) -> None:
    targets = {"id": 9999, "note": 7, "100%": 0}
    prepared(
        engine,
        'ALTER TABLE odds ADD "100%" int',
        *(f'ALTER TABLE odds ALTER "{name}" SET STATISTICS {goal}' for name, goal in targets.items()),
    )
    made(engine)
    found = rows(
        engine, f"SELECT attname, attstattarget FROM pg_attribute WHERE attrelid = '{OURS}'::regclass"
    )
    assert {
        name: goal for name, goal in found if goal is not None and goal >= 0 and name in targets
    } == targets


@pytest.mark.parametrize(("identity", "letter"), [("FULL", "f"), ("NOTHING", "n"), ("DEFAULT", "d")])
def test_the_replica_identity_is_the_parents(engine: Engine, identity: str, letter: str) -> None:
    prepared(engine, f"ALTER TABLE odds REPLICA IDENTITY {identity}")
    made(engine)
    assert scalar(engine, f"SELECT relreplident FROM pg_class WHERE relname = '{OURS}'") == letter


def test_a_replica_identity_by_index_is_the_partitions_index_of_it(engine: Engine) -> None:
    prepared(
        engine,
        "ALTER TABLE odds ALTER note SET NOT NULL",
        'CREATE UNIQUE INDEX "it\'s %s" ON odds (note, at)',
        'ALTER TABLE odds REPLICA IDENTITY USING INDEX "it\'s %s"',
    )
    made(engine)
    assert rows(
        engine,
        "SELECT c.relreplident, pg_get_indexdef(x.indexrelid) FROM pg_class c"
        f" JOIN pg_index x ON x.indrelid = c.oid WHERE c.relname = '{OURS}' AND x.indisreplident",
    ) == [("i", f"CREATE UNIQUE INDEX {OURS}_note_at_idx ON public.{OURS} USING btree (note, at)")]


def test_a_replica_identity_whose_index_was_dropped_is_nothing(engine: Engine) -> None:
    prepared(
        engine,
        "ALTER TABLE odds ALTER note SET NOT NULL",
        "CREATE UNIQUE INDEX u ON odds (note, at)",
        "ALTER TABLE odds REPLICA IDENTITY USING INDEX u",
        "DROP INDEX u",
    )
    made(engine)
    assert scalar(engine, f"SELECT relreplident FROM pg_class WHERE relname = '{OURS}'") == "n"


def test_row_security_closes_the_partition_and_the_parents_policies_rule(
    engine: Engine, roles: Roles
) -> None:
    app = roles.create("app")
    prepared(
        engine,
        "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON odds USING (note = 'mine') WITH CHECK (true)",
        f"GRANT SELECT, INSERT ON odds TO {app.username}",
    )
    made(engine)
    run(
        engine,
        f"GRANT SELECT ON {OURS} TO {app.username}",
        "INSERT INTO odds (at, note) SELECT '2026-04-05 13:37:11+12', unnest(ARRAY['mine', 'hers'])",
    )
    client = create_engine(app, poolclass=NullPool)
    assert scalar(client, "SELECT count(*) FROM odds") == 1
    assert scalar(client, f"SELECT count(*) FROM {OURS}") == 0
    assert scalar(engine, f"SELECT relrowsecurity FROM pg_class WHERE relname = '{OURS}'") is True


def test_without_row_security_on_the_parent_the_partition_has_none(engine: Engine) -> None:
    prepared(engine)
    made(engine)
    assert scalar(engine, f"SELECT relrowsecurity FROM pg_class WHERE relname = '{OURS}'") is False


def test_a_role_that_may_insert_into_the_parent_needs_nothing_on_the_partition(
    engine: Engine, roles: Roles
) -> None:
    app = roles.create("app")
    prepared(engine, f"GRANT INSERT, SELECT ON odds TO {app.username}")
    made(engine)
    client = create_engine(app, poolclass=NullPool)
    with client.begin() as connection:
        connection.execute(text("INSERT INTO odds (at) VALUES ('2026-04-05 13:37:11+12')"))
        assert connection.scalar(text("SELECT count(*) FROM odds")) == 1
    with pytest.raises(ProgrammingError, match="permission denied"):
        scalar(client, f"SELECT count(*) FROM {OURS}")


# -- the owner -----------------------------------------------------------------------------------------


def owned(engine: Engine, roles: Roles) -> tuple[Engine, Engine]:
    """Give the table to an owner, and return the owner's engine and that of a mere member of it."""
    owner, member = roles.create("owner"), roles.create("ddl")
    prepared(
        engine,
        f"GRANT {owner.username} TO {member.username}",
        f"GRANT CREATE ON SCHEMA public TO {owner.username}",
        f"GRANT SELECT ON partition_config TO {member.username}, {owner.username}",
        f"GRANT INSERT ON partition_runs TO {member.username}, {owner.username}",
        f"ALTER TABLE odds OWNER TO {owner.username}",
    )
    return create_engine(owner, poolclass=NullPool), create_engine(member, poolclass=NullPool)


def test_a_partition_made_by_a_member_belongs_to_the_owner_whose_migrations_go_on(
    engine: Engine, roles: Roles
) -> None:
    owner, member = owned(engine, roles)
    made(member)
    assert scalar(engine, f"SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = '{OURS}'") == (
        owner.url.username
    )
    run(engine, f"DROP TABLE {THEIRS}")  # made without a thought of the owner
    run(owner, "ALTER TABLE odds ADD COLUMN added int", "CREATE INDEX ON odds (added)", "DROP TABLE odds")


def test_the_owner_itself_sends_no_statement_for_it(engine: Engine, roles: Roles) -> None:
    owner, member = owned(engine, roles)
    for client, expected in ((owner, 0), (member, 1)):
        with client.connect() as connection:
            (planned,) = maintenance.plan(connection)
        assert planned.sql().count("OWNER TO") == expected


def test_a_superuser_makes_partitions_that_the_owner_owns(engine: Engine, roles: Roles) -> None:
    owner, _ = owned(engine, roles)
    made(engine)
    assert scalar(engine, f"SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = '{OURS}'") == (
        owner.url.username
    )


# -- where and how rows are stored ---------------------------------------------------------------------


def test_storage_parameters_are_the_policys(engine: Engine) -> None:
    rules = policy(
        premake=0,
        lookback=0,
        storage_parameters={"fillfactor": 70, "autovacuum_enabled": False, "toast.vacuum_truncate": "false"},
    )
    prepared(engine, rules=rules)
    made(engine)
    assert rows(
        engine,
        "SELECT c.reloptions, t.reloptions FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid"
        f" WHERE c.relname = '{OURS}'",
    ) == [(["fillfactor=70", "autovacuum_enabled=false"], ["vacuum_truncate=false"])]


@pytest.mark.pg(">= 17")
@pytest.mark.parametrize("method", ["heap_too", "Heap 100%"])
def test_the_access_method_is_the_parents(engine: Engine, method: str) -> None:
    prepared(
        engine,
        f'CREATE ACCESS METHOD "{method}" TYPE TABLE HANDLER heap_tableam_handler',
        f'ALTER TABLE odds SET ACCESS METHOD "{method}"',
    )
    alike(engine)
    found = "SELECT amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.relname = :name"
    assert scalar(engine, found, name=OURS) == method


@pytest.fixture
def tablespaces(engine: Engine) -> list[str]:
    """Two tablespaces, in folders that the server itself makes beside its data."""
    if os.environ.get("DATABASE_URL"):
        pytest.skip("makes folders beside the data of the server, which is somebody else's")
    home = Path(str(scalar(engine, "SHOW data_directory"))).parent
    names = [f"{word} {engine.url.database}" for word in ("Fast 100%", "slow")]
    for number, name in enumerate(names):
        folder = home / f"{engine.url.database}_{number}"
        run(engine, f"COPY (SELECT) TO PROGRAM 'mkdir {folder}'")
        run(engine, f"CREATE TABLESPACE {quote(name)} LOCATION '{folder}'")
    return names  # they go with the server


def test_the_tablespace_is_the_policys_or_the_parents(engine: Engine, tablespaces: list[str]) -> None:
    fast, slow = tablespaces
    space = (
        "SELECT spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = reltablespace WHERE relname = :name"
    )
    prepared(engine, f"ALTER TABLE odds SET TABLESPACE {quote(fast)}")
    alike(engine)
    assert scalar(engine, space, name=OURS) == fast
    run(engine, f"DROP TABLE {OURS}", "DROP TABLE " + THEIRS)
    run(engine, f"UPDATE partition_config SET tablespace = '{slow}'")
    made(engine)
    assert scalar(engine, space, name=OURS) == slow
    assert scalar(engine, space, name=THEIRS) == fast


def test_several_traits_at_once(engine: Engine) -> None:
    prepared(
        engine,
        "ALTER TABLE odds REPLICA IDENTITY FULL",
        "ALTER TABLE odds ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE odds ALTER note SET STATISTICS 7",
        items=[*columns(), sa.Column("price", sa.Numeric, index=True)],
    )
    made(engine)
    assert rows(
        engine,
        "SELECT relreplident, relrowsecurity, attstattarget FROM pg_class c"
        f" JOIN pg_attribute a ON attrelid = c.oid WHERE relname = '{OURS}' AND attname = 'note'",
    ) == [("f", True, 7)]
