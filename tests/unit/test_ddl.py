"""What is sent, as text: no database here."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg, psycopg, psycopg2
from sqlalchemy.schema import CreateTable

from alembic_partitions import PartitionPolicy, ddl, executor
from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import CreatePartition, ManagedTable, Partition, Plan, Reason, Traits
from tests.zones import utc

DIALECTS: list[sa.Dialect] = [
    psycopg2.dialect(),  # type: ignore[no-untyped-call]
    psycopg.dialect(),  # type: ignore[no-untyped-call]
    asyncpg.dialect(),  # type: ignore[no-untyped-call]
]

PLAIN = Traits()


def step(
    name: str = "odds_2026_04_05",
    *,
    table: str = "odds",
    schema: str = "racing",
    traits: Traits = PLAIN,
    made_by: str = "ensure",
    **fields: Any,
) -> CreatePartition:
    policy = PartitionPolicy("at", timezone="Pacific/Auckland", **fields)
    managed = ManagedTable(schema, table, policy, 4711, "timestamptz", traits)
    return CreatePartition(
        *(managed, name, utc("2026-04-04 11:00:00"), utc("2026-04-05 12:00:00"), Reason.CURRENT),
        made_by=made_by,
    )


def sql(making: CreatePartition, user: str | None = None) -> list[str]:
    return [element.sql() for element in ddl.partition_elements(making, user)]


# -- a plain partition ---------------------------------------------------------------------------------


def test_a_partition_is_made_alone_marked_and_attached() -> None:
    assert sql(step()) == [
        "CREATE TABLE racing.odds_2026_04_05 (LIKE racing.odds INCLUDING ALL EXCLUDING IDENTITY)",
        "COMMENT ON TABLE racing.odds_2026_04_05 IS 'alembic_partitions: made by ensure'",
        (
            "ALTER TABLE racing.odds ATTACH PARTITION racing.odds_2026_04_05"
            " FOR VALUES FROM ('2026-04-04 11:00:00+00') TO ('2026-04-05 12:00:00+00')"
        ),
    ]


def test_a_run_begins_with_its_turn_and_its_patience() -> None:
    statements = executor.render(step())
    assert [s.sql for s in statements[:3]] == [
        "SET LOCAL lock_timeout = '2000ms'",
        "SELECT pg_advisory_xact_lock(1634496609, 4711)",
        "SET LOCAL lock_timeout = '40ms'",
    ]
    assert [s.sql for s in statements[3:]] == sql(step())


def test_where_citus_has_distributed_the_table_workers_are_told_before_the_time_out_is_set() -> None:
    statements = executor.render(step(traits=Traits(distributed=True)))
    assert [s.sql for s in statements[:5]] == [
        "SET LOCAL lock_timeout = '2000ms'",
        "SELECT pg_advisory_xact_lock(1634496609, 4711)",
        "SET LOCAL citus.propagate_set_commands = 'local'",
        "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
        "SET LOCAL lock_timeout = '40ms'",
    ]
    assert [s.sql for s in statements[5:]] == sql(step())
    assert statements[-1].locks == (
        "SHARE UPDATE EXCLUSIVE on racing.odds; the same on each of its shards, one after the other"
    )


def test_a_plan_is_a_script_that_tells_why_and_whom_it_locks() -> None:
    making = step(traits=Traits(key_tables=("races", '"Entrants"')))
    text = executor.script(Plan(making.table, (making,)))
    assert text.startswith("-- racing.odds_2026_04_05: the current window\nBEGIN;\n")
    assert (
        "-- locks: SHARE UPDATE EXCLUSIVE on racing.odds; SHARE ROW EXCLUSIVE on races (foreign key);"
        ' SHARE ROW EXCLUSIVE on "Entrants" (foreign key)\n'
    ) in text
    assert text.endswith("+00');\nCOMMIT;\n")


def test_a_default_partition_is_named_among_the_locks() -> None:
    making = step()
    default = Partition(7, "racing", "odds_rest", None, None, is_default=True)
    making = dataclasses.replace(making, table=dataclasses.replace(making.table, partitions=(default,)))
    assert executor.render(making)[-1].locks.endswith("; ACCESS EXCLUSIVE on racing.odds_rest (DEFAULT)")


def test_an_empty_plan_is_an_empty_script() -> None:
    assert executor.script(Plan(step().table)) == ""


def test_an_oid_beyond_two_billion_wraps_as_postgresql_reads_it() -> None:
    assert ddl.LockParent(2**32 - 1).sql() == "SELECT pg_advisory_xact_lock(1634496609, -1)"
    assert ddl.LockParent(2**31).sql() == "SELECT pg_advisory_xact_lock(1634496609, -2147483648)"


# -- quoting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("odds", "odds"),
        ("Odds", '"Odds"'),
        ("order", '"order"'),
        ("user", '"user"'),
        ("odds history", '"odds history"'),
        ('od"ds', '"od""ds"'),
        ("od'ds", '"od\'ds"'),
        ("100%", '"100%"'),
        ("100%%s", '"100%%s"'),
        ("%(at)s", '"%(at)s"'),
        (":at", '":at"'),
        ("ōdds", '"ōdds"'),
        ("賽馬", '"賽馬"'),
        ("odds;--", '"odds;--"'),
        ("odds\\", '"odds\\"'),
        ("1odds", '"1odds"'),
        ("a.b", '"a.b"'),
    ],
)
def test_a_name_is_quoted_wherever_it_stands(name: str, quoted: str) -> None:
    texts = sql(step(name, table=name, schema=name, traits=Traits(owner=name), tablespace=name))
    assert texts[0] == (
        f"CREATE TABLE {quoted}.{quoted} (LIKE {quoted}.{quoted} INCLUDING ALL EXCLUDING IDENTITY)"
        f" TABLESPACE {quoted}"
    )
    assert texts[1].startswith(f"COMMENT ON TABLE {quoted}.{quoted} IS ")
    assert texts[2] == f"ALTER TABLE {quoted}.{quoted} OWNER TO {quoted}"
    assert texts[3].startswith(f"ALTER TABLE {quoted}.{quoted} ATTACH PARTITION {quoted}.{quoted} FOR VALUES")


def test_without_a_schema_nothing_is_qualified() -> None:
    assert sql(step(schema=""))[0].startswith("CREATE TABLE odds_2026_04_05 (LIKE odds INCLUDING")


@pytest.mark.parametrize(
    ("made_by", "written"),
    [("it's us", "it''s us"), ("100%", "100%"), ("back\\slash", "back\\slash"), ("ō'ō", "ō''ō")],
)
def test_who_made_it_is_a_quoted_literal(made_by: str, written: str) -> None:
    text = sql(step(made_by=made_by))[1]
    assert text == f"COMMENT ON TABLE racing.odds_2026_04_05 IS 'alembic_partitions: made by {written}'"


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.driver)
def test_percent_signs_are_doubled_for_drivers_that_halve_them_again(dialect: sa.Dialect) -> None:
    element = ddl.MarkPartition(step("100%"))
    compiled = str(element.compile(dialect=dialect))
    halved = compiled.replace("%%", "%") if dialect.paramstyle in ("pyformat", "format") else compiled
    assert halved == str(element) == element.sql()


# -- bounds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key_type", "value", "written"),
    [
        ("timestamptz", utc("2026-04-04 11:00:00"), "'2026-04-04 11:00:00+00'"),
        ("timestamptz", utc("2026-04-04 11:00:00.250000"), "'2026-04-04 11:00:00.250000+00'"),
        ("timestamptz", utc("0999-04-04 11:00:00"), "'0999-04-04 11:00:00+00'"),
        ("timestamp", datetime(2026, 4, 5, 2, 30), "'2026-04-05 02:30:00'"),
        ("date", date(2026, 4, 5), "'2026-04-05'"),
    ],
)
def test_a_bound_is_absolute_where_the_key_is(key_type: KeyType, value: KeyValue, written: str) -> None:
    assert ddl.bound_literal(value, key_type) == written


# -- what LIKE and ATTACH leave behind -----------------------------------------------------------------


def test_storage_parameters_and_tablespace_come_with_create_table() -> None:
    text = sql(
        step(storage_parameters={"fillfactor": 70, "toast.autovacuum_enabled": False}, tablespace="ssd")
    )
    assert text[0] == (
        "CREATE TABLE racing.odds_2026_04_05 (LIKE racing.odds INCLUDING ALL EXCLUDING IDENTITY)"
        " WITH (fillfactor = '70', toast.autovacuum_enabled = 'false') TABLESPACE ssd"
    )


def test_the_policys_tablespace_goes_before_the_parents() -> None:
    traits = Traits(tablespace="parents own")
    assert sql(step(traits=traits))[0].endswith(' TABLESPACE "parents own"')
    assert sql(step(traits=traits, tablespace="ssd"))[0].endswith(" TABLESPACE ssd")


def test_the_value_of_a_storage_parameter_is_a_literal() -> None:
    assert "WITH (a = 'x'') ; DROP')" in sql(step(storage_parameters={"a": "x') ; DROP"}))[0]


def test_the_access_method_of_the_parent_is_used() -> None:
    assert sql(step(traits=Traits(access_method="Heap2")))[0].endswith('IDENTITY) USING "Heap2"')


def test_the_owner_is_set_before_attach_and_only_where_it_is_another() -> None:
    making = step(traits=Traits(owner="Owner"))
    assert sql(making, "app")[2] == 'ALTER TABLE racing.odds_2026_04_05 OWNER TO "Owner"'
    assert "ATTACH" in sql(making, "app")[3]
    assert not any("OWNER" in text for text in sql(making, "Owner"))
    assert not any("OWNER" in text for text in sql(step(), "app"))


@pytest.mark.parametrize(("letter", "word"), [("f", "FULL"), ("n", "NOTHING")])
def test_replica_identity_comes_before_attach(letter: str, word: str) -> None:
    texts = sql(step(traits=Traits(replica_identity=letter)))
    assert texts[2] == f"ALTER TABLE racing.odds_2026_04_05 REPLICA IDENTITY {word}"
    assert "ATTACH" in texts[-1]


def test_replica_identity_by_index_comes_after_attach_which_makes_the_index() -> None:
    texts = sql(step("o'dds", traits=Traits(replica_identity="i")))
    assert "ATTACH" in texts[-2]
    assert "REPLICA IDENTITY USING INDEX" in texts[-1]
    assert "'racing.\"o''dds\"'" in texts[-1]


def test_the_default_replica_identity_needs_no_statement() -> None:
    assert len(sql(step(traits=Traits(replica_identity="d")))) == 3


def test_row_security_is_switched_on_before_rows_can_be_read() -> None:
    texts = sql(step(traits=Traits(row_security=True)))
    assert texts[2] == "ALTER TABLE racing.odds_2026_04_05 ENABLE ROW LEVEL SECURITY"
    assert "ATTACH" in texts[3]


def test_statistics_targets_are_carried_over_column_by_column() -> None:
    texts = sql(step(traits=Traits(statistics=(("price", 500), ("Näme", 0)))))
    assert texts[2] == "ALTER TABLE racing.odds_2026_04_05 ALTER COLUMN price SET STATISTICS 500"
    assert texts[3] == 'ALTER TABLE racing.odds_2026_04_05 ALTER COLUMN "Näme" SET STATISTICS 0'


# -- our own tables ------------------------------------------------------------------------------------

FIELDS = [f.name for f in dataclasses.fields(PartitionPolicy)]
WITHOUT_CHECK = {"key", "archive_schema", "tablespace", "enabled"}  # names, and a boolean


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_the_policy_is_a_column(field: str) -> None:
    assert ("partition_key" if field == "key" else field) in ddl.config_table(None).columns


@pytest.mark.parametrize("field", [f for f in FIELDS if f not in WITHOUT_CHECK])
def test_every_field_that_can_be_wrong_has_a_check(field: str) -> None:
    checks = {c.name for c in ddl.config_table(None).constraints if isinstance(c, sa.CheckConstraint)}
    assert f"partition_config_{field}_check" in checks
    assert f"CONSTRAINT partition_config_{field}_check CHECK (" in str(CreateTable(ddl.config_table("ops")))


def test_our_tables_are_made_where_they_are_wanted_once_and_with_our_mark() -> None:
    text = ddl.EnsureOurTables("Ops %").sql()
    assert text.count('CREATE TABLE "Ops %".partition_') == 2
    assert text.count("n.nspname = 'Ops %'") == 4
    assert (
        "COMMENT ON TABLE \"Ops %\".partition_config IS 'alembic_partitions: configuration, layout 1'" in text
    )
    assert text.count("RAISE EXCEPTION") == 2
    assert "current_schema()" in ddl.EnsureOurTables(None).sql()


def test_a_dollar_quote_cannot_be_closed_by_a_name() -> None:
    for element in (
        ddl.EnsureOurTables("$alembic_partitions$"),
        ddl.DetachForeign("$alembic_partitions$", "odds"),
        ddl.DropEmptyPartitions("racing", "$alembic_partitions$", "$alembic_partitions$"),
        ddl.SetReplicaIndex(step("$alembic_partitions$")),
    ):
        body = element.sql()
        tag = body.split()[1]
        assert body.startswith("DO $")
        assert body.endswith(f"END {tag}")
        assert body.count(tag) == 2
