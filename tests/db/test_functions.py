"""SQL functions for people in psql: put in and taken out, what they do, and what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import render_python_code
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import PartitionPolicy, maintenance
from alembic_partitions.drivers import sqlstate
from alembic_partitions.locks import one_run
from alembic_partitions.maintenance import Orders
from alembic_partitions.operations import CreatePartitionFunctionsOp, DropPartitionFunctionsOp
from tests.databases import Database, Databases, Roles
from tests.db.test_autogenerate import bring_about, day, diffs, models
from tests.db.test_offline import offline
from tests.db.test_operations import configured, half_detach
from tests.db.test_retention import detached, mark
from tests.projects import Project
from tests.tables import catalog, columns, declare, operations, partitions, policy, quote, rows, run, scalar

MINE = """
SELECT p.oid::regprocedure::text, p.prosrc, p.proconfig::text, p.provolatile,
       obj_description(p.oid, 'pg_proc')
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
"""
DOORS = {
    "analyze_partitions",
    "create_daily_partitions",
    "create_future_partitions",
    "drop_old_partitions",
    "list_partitions",
    "partition_health_summary",
    "run_partition_maintenance",
}


def installed(engine: Engine, **kw: Any) -> None:
    with operations(engine) as op:
        op.create_partition_functions(**kw)


def call(engine: Engine, query: str, **values: Any) -> list[tuple[Any, ...]]:
    """Call a function as psql does, committed."""
    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def refused(engine: Engine, query: str) -> tuple[str | None, str]:
    """Return SQLSTATE and message of what a call raises."""
    with pytest.raises(DBAPIError) as caught:
        call(engine, query)
    return sqlstate(caught.value), str(caught.value.orig)


def keeping(**fields: Any) -> PartitionPolicy:
    return policy(**{"retention": "3 days", **fields})


def history(engine: Engine, name: str = "odds", days: int = 8, **fields: Any) -> list[str]:
    """A table with a partition and rows a day; return its expired partitions, oldest first."""
    declare(engine, name, keeping(**fields))
    today = datetime.now(timezone.utc).date()
    with operations(engine) as op:
        op.create_partitions(name, today - timedelta(days=days), today)
    run(
        engine,
        f"INSERT INTO {quote(name)} (at)"
        f" SELECT generate_series(now() - interval '{days - 1} days', now(), '8 hours')",
    )
    with engine.connect() as connection:
        script = "".join(sql for _, sql in maintenance.plan_maintain(connection, tables=[name]))
    return [
        part for part in partitions(engine, name) if re.search(rf"DETACH PARTITION public\.{part}\b", script)
    ]


@contextmanager
def somebody(engine: Engine, *statements: str) -> Iterator[None]:
    other = create_engine(engine.url, poolclass=NullPool)
    with other.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        yield
    other.dispose()


# -- put in, and taken out -------------------------------------------------------------------------------


def test_they_come_and_go_and_nothing_else_does(database: Database, driver: str) -> None:
    engine = create_engine(database.driver_url(driver))
    history(engine)
    before = catalog(engine)
    held = rows(engine, "SELECT count(*), min(at), max(at) FROM odds")
    installed(engine)
    first = rows(engine, MINE)
    assert {name.split("(")[0] for name, *_ in first if not name.startswith("_")} == DOORS
    assert all(comment.startswith("alembic_partitions: for psql: ") for *_, comment in first)
    assert not [name for name, source, *_ in first if re.search(r"@\w+@", source)]
    run(engine, "GRANT EXECUTE ON FUNCTION list_partitions TO PUBLIC")
    installed(engine)  # an update is the same once more
    assert rows(engine, MINE) == first
    with operations(engine) as op:
        op.drop_partition_functions()
        op.drop_partition_functions()  # nothing there is nothing to drop
    assert catalog(engine) == before
    assert rows(engine, MINE) == []
    assert rows(engine, "SELECT count(*), min(at), max(at) FROM odds") == held
    engine.dispose()


@pytest.mark.parametrize("schema", [None, 'Ra"c%s$body$', "tools"])
def test_a_script_makes_what_the_migration_makes(
    engine: Engine, database: Database, databases: Databases, tmp_path: Path, schema: str | None
) -> None:
    project = Project.make(tmp_path, "generic", database.url)
    alembic = configured(project, database)
    project.add(
        f"op.create_partition_functions(schema={schema!r})", f"op.drop_partition_functions(schema={schema!r})"
    )
    places = [] if schema is None else [f"CREATE SCHEMA {quote(schema)}"]
    other = databases.clone()
    there = create_engine(other.url, poolclass=NullPool)
    run(there, *places)
    installed(there, schema=schema)
    wanted = rows(there, MINE)
    databases.drop(other.name)

    run(engine, *places, offline(alembic, "upgrade", "head"))
    assert rows(engine, MINE) == wanted
    where = f"{quote(schema)}." if schema else ""
    assert call(engine, f"SELECT * FROM {where}list_partitions()") == []
    assert call(engine, f"SELECT * FROM {where}partition_metadata") == []
    run(engine, offline(alembic, "downgrade", "head:base"))
    assert rows(engine, MINE) == []


@pytest.mark.parametrize("home", ['O"p%s', "$body$"])
def test_they_live_beside_the_configuration_wherever_that_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    run(engine, f"CREATE SCHEMA {quote(home)}", "CREATE SCHEMA tools")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", home)
    declare(engine)
    installed(engine)
    installed(engine, schema="tools")
    for place in (quote(home), "tools"):
        assert [row[1] for row in call(engine, f"SELECT * FROM {place}.partition_health_summary()")] == [
            "odds"
        ]
        assert len(call(engine, f"SELECT * FROM {place}.partition_metadata")) == 4
        call(engine, f"SELECT * FROM {place}.run_partition_maintenance(dry_run => false)")
    assert scalar(engine, f"SELECT count(*) FROM {quote(home)}.partition_runs WHERE action = 'maintain'") == 2
    with operations(engine) as op:
        op.drop_partition_functions(schema="tools")
    assert len(rows(engine, MINE)) > 40
    with operations(engine) as op:
        op.drop_partition_functions()
    assert rows(engine, MINE) == []


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE FUNCTION list_partitions(a int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE VIEW partition_metadata AS SELECT 1 AS one",
        "CREATE TABLE partition_metadata (one int)",
        (
            "CREATE FUNCTION list_partitions() RETURNS int LANGUAGE sql AS 'SELECT 1';"
            " COMMENT ON FUNCTION list_partitions() IS 'alembic_partitions: mine'"
        ),
    ],
)
def test_what_is_somebody_elses_is_neither_replaced_nor_dropped(engine: Engine, theirs: str) -> None:
    run(engine, theirs)
    before = catalog(engine), rows(engine, MINE)
    with pytest.raises(DBAPIError, match="stands there already and is not ours"):
        installed(engine)
    with operations(engine) as op:
        op.drop_partition_functions()
    assert (catalog(engine), rows(engine, MINE)) == before
    run(engine, "CREATE SCHEMA tools")
    installed(engine, schema="tools")


def test_autogenerate_proposes_nothing_because_of_them_and_writes_them_down(engine: Engine) -> None:
    wanted = models(day())
    bring_about(engine, wanted)
    assert diffs(engine, wanted) == []
    installed(engine)
    assert diffs(engine, wanted) == []
    made = UpgradeOps([CreatePartitionFunctionsOp(), CreatePartitionFunctionsOp("tools")])
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        code = render_python_code(made, migration_context=context)
        back = render_python_code(made.reverse(), migration_context=context)
    assert "op.create_partition_functions()\n" in code
    assert "op.create_partition_functions(schema='tools')" in code
    assert "op.drop_partition_functions(schema='tools')\n" in back
    assert isinstance(DropPartitionFunctionsOp("tools").reverse(), CreatePartitionFunctionsOp)
    assert made.as_diffs() == [("create_partition_functions", None), ("create_partition_functions", "tools")]


# -- made ------------------------------------------------------------------------------------------------


def test_a_partition_is_made_with_all_that_its_parent_has(engine: Engine) -> None:
    """Beside one that the package makes of a table like it."""
    rules = policy(premake=0, lookback=0, storage_parameters={"fillfactor": 70})
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)")
    for name in ("sql", "pyt"):
        race = sa.Column("race", sa.Integer, sa.ForeignKey("races.id", name="race"))
        declare(engine, name, rules, *columns(), race)
        run(
            engine,
            f"DROP TABLE {partitions(engine, name)[0]}",
            f"ALTER TABLE {name} ALTER note SET STATISTICS 7, ENABLE ROW LEVEL SECURITY",
            f"CREATE UNIQUE INDEX by_{name} ON {name} (at, id)",
            f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX by_{name}",
            f"CREATE POLICY everybody ON {name} USING (true)",
        )
    installed(engine)
    with engine.connect() as connection:
        assert maintenance.ensure(connection, tables=["pyt"]).failure is None
    (made,) = call(engine, "SELECT * FROM create_future_partitions('sql', 0)")
    assert made[3] == "created"
    found = {
        name: sorted(
            str(row).replace(name, "NAME")
            for part, dump in catalog(engine).items()
            if not part.startswith("configuration")
            for row in dump
            if str(row[1]).startswith(f"{name}_")
        )
        for name in ("sql", "pyt")
    }
    assert found["sql"] == found["pyt"]
    assert len(found["sql"]) > 8


def test_a_member_of_the_owner_makes_partitions_that_are_the_owners(engine: Engine, roles: Roles) -> None:
    owner, member = roles.create("owner"), roles.create("member")
    declare(engine)
    run(
        engine,
        f"GRANT {owner.username} TO {member.username}",
        f"ALTER TABLE odds OWNER TO {owner.username}",
        f"GRANT CREATE ON SCHEMA public TO {owner.username}",
        f"GRANT SELECT ON partition_config TO {member.username}",
    )
    installed(engine)
    theirs = create_engine(member, poolclass=NullPool)
    made = call(theirs, "SELECT partition_name, action FROM create_future_partitions('odds', 5)")
    assert [action for _, action in made] == ["created"] * 3
    owners = rows(
        engine,
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname = ANY (:n)",
        n=[n for n, _ in made],
    )
    assert owners == [(owner.username,)]
    assert rows(engine, "SELECT count(*) FROM partition_runs") == [(0,)], "it may not write there, and works"


def test_without_a_right_to_the_table_nothing_is_made_and_that_is_told(engine: Engine, roles: Roles) -> None:
    reader = roles.create("reader")
    history(engine)
    run(engine, f"GRANT SELECT ON partition_config TO {reader.username}")
    installed(engine)
    theirs = create_engine(reader, poolclass=NullPool)
    assert len(call(theirs, "SELECT * FROM list_partitions('odds')")) == len(partitions(engine))
    assert len(call(theirs, "SELECT * FROM partition_metadata")) == len(partitions(engine))
    assert [row[2] for row in call(theirs, "SELECT * FROM partition_health_summary()")] == ["CLEANUP_NEEDED"]
    before = partitions(engine)
    for query in (
        "create_future_partitions('odds', 9)",
        "drop_old_partitions('odds', dry_run => false)",
        "run_partition_maintenance(dry_run => false)",
    ):
        found = call(theirs, f"SELECT action, detail FROM {query}")
        assert [action for action, _ in found if action in ("created", "detached", "analyzed")] == []
        assert any(
            ("failed" in action and "permission denied" in told) or "must be owner" in told
            for action, told in found
        )
    assert partitions(engine) == before
    nobody = create_engine(roles.create("nobody"), poolclass=NullPool)
    assert refused(nobody, "SELECT * FROM list_partitions()")[1].startswith(
        "permission denied for table partition_config"
    )


SETTINGS = ("search_path", "TimeZone", "DateStyle", "lock_timeout")


def test_it_is_the_callers_settings_that_stay_and_ours_that_count(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=0, lookback=0))
    installed(engine)
    settings = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in SETTINGS))
    with engine.begin() as connection:
        for statement in (
            "CREATE TEMP TABLE partition_config (table_schema text)",
            (
                "CREATE FUNCTION pg_temp.now() RETURNS timestamptz LANGUAGE sql"
                " AS 'SELECT ''-infinity''::timestamptz'"
            ),
            "SET search_path = pg_temp, public",
            "SET TimeZone = 'Asia/Kathmandu'",
            "SET DateStyle = 'German'",
            "SET lock_timeout = '7s'",
        ):
            connection.exec_driver_sql(statement)
        before = connection.execute(settings).one()
        listed = connection.execute(text("SELECT range_from, range_to FROM list_partitions()")).all()
        connection.execute(text("SELECT * FROM create_future_partitions('odds', 2)"))
        connection.execute(text("SELECT * FROM run_partition_maintenance(dry_run => false)"))
        assert tuple(connection.execute(settings).one()) == tuple(before)
    assert all(end.endswith(":00:00+00") for row in listed for end in row)
    assert len(partitions(engine)) == 3
    with engine.connect() as connection:
        assert [item.plan.steps for item in maintenance.plan(connection)] == [()]


# -- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "state", "told"),
    [
        ("list_partitions('oods')", "42P01", "table oods has no row in partition_config"),
        ("create_future_partitions('public.oods', 1)", "42P01", "has no row in partition_config"),
        ("create_future_partitions('twice', 1)", "42P09", "there are 2 tables called twice"),
        ("create_future_partitions('odds', -1)", "22023", "windows is -1, not a number from 0 to 400"),
        ("create_future_partitions('odds', 2147483647)", "22023", "windows is 2147483647"),
        ("create_future_partitions('odds', NULL)", "22023", "windows is NULL"),
        ("create_future_partitions(NULL, 1)", "22004", "no table is named"),
        ("create_future_partitions('off', 1)", "55000", "the policy of table public.off is disabled"),
        ("create_future_partitions('gone', 1)", "55000", "does not fit its policy: the table does not exist"),
        ("analyze_partitions('oods')", "42P01", "has no row"),
        ("drop_old_partitions('oods', dry_run => false)", "42P01", "has no row"),
        ("drop_old_partitions('odds', 'soon', false)", "22023", "retention is 'soon', not a period"),
        (
            "drop_old_partitions('odds', '5 hours', false)",
            "22023",
            "a retention of 5 hours is shorter than one window",
        ),
        ("run_partition_maintenance('oods')", "42P01", "has no row"),
        ("run_partition_maintenance('off', false)", "55000", "is disabled"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_changed(
    refusing: Engine, query: str, state: str, told: str
) -> None:
    before = catalog(refusing)
    code, message = refused(refusing, f"SELECT * FROM {query}")
    assert code == state
    assert told in message
    assert "HINT" in message
    assert catalog(refusing) == before


@pytest.fixture(scope="module")
def refusing(module_database: Database) -> Iterator[Engine]:
    engine = create_engine(module_database.url, poolclass=NullPool)
    run(engine, "CREATE SCHEMA one", "CREATE SCHEMA two")
    for schema, name, rules in [
        (None, "odds", keeping()),
        ("one", "twice", policy()),
        ("two", "twice", policy()),
        (None, "off", policy(enabled=False)),
        (None, "gone", policy()),
    ]:
        declare(engine, name, rules, schema=schema)
    run(engine, "DROP TABLE gone")
    installed(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("target", ["two.twice", '"two"."twice"', "odds", "public.odds", '"odds"'])
def test_a_table_is_named_with_and_without_its_schema(refusing: Engine, target: str) -> None:
    found = call(refusing, "SELECT DISTINCT schema_name FROM list_partitions(:target)", target=target)
    assert found == [("two",)] if "two" in target else [("public",)]


def test_a_clock_that_is_rehearsed_needs_its_offset_and_removes_nothing(refusing: Engine) -> None:
    for query, now in (
        ("partition_health_summary()", "2026-04-05 13:37:11"),
        ("create_daily_partitions()", "2026-12-05"),  # no offset of five hours
    ):
        with refusing.begin() as connection:
            connection.execute(text(f"SET LOCAL alembic_partitions.now = '{now}'"))
            with pytest.raises(DBAPIError, match="which has no time or no offset"):
                connection.execute(text(f"SELECT * FROM {query}"))
    before = catalog(refusing)
    with refusing.begin() as connection:
        connection.execute(text("SET LOCAL alembic_partitions.now = '2031-04-05 13:37:11Z'"))
        would = connection.execute(text("SELECT action FROM drop_old_partitions('odds')")).scalars().all()
        assert "would detach" in would
        with pytest.raises(DBAPIError, match="nothing was removed: the clock is rehearsed"):
            connection.execute(text("SELECT * FROM drop_old_partitions('odds', dry_run => false)"))
    assert catalog(refusing) == before


# -- removed ---------------------------------------------------------------------------------------------


def test_what_retention_lets_go_is_detached_as_the_package_does_and_restored_by_it(engine: Engine) -> None:
    expired = history(engine)
    history(engine, "other")
    installed(engine)
    assert len(expired) >= 4
    count = scalar(engine, "SELECT count(*) FROM odds")
    before = catalog(engine)
    would = call(engine, "SELECT partition_name, action FROM drop_old_partitions('odds')")
    assert would == [*((name, "would detach") for name in expired), (None, "not done")]
    assert catalog(engine) == before, "a dry run"
    done = call(engine, "SELECT * FROM drop_old_partitions('odds', dry_run => false)")
    assert [(row[2], row[3]) for row in done] == [
        *((name, "detached") for name in expired),
        (None, "not done"),
    ]
    assert "by a plain DETACH" in done[0][4]
    assert "DETACH CONCURRENTLY" in done[-1][4]
    assert detached(engine) == [f"{name}_detached" for name in expired]
    with engine.connect() as connection:
        maintenance.maintain(connection, tables=["other"], orders=Orders(analyze=False))
    ours, theirs = (mark(engine, f"{name}{expired[0][4:]}_detached") for name in ("odds", "other"))
    for each in (ours, theirs):
        del each["oid"], each["of"], each["at"]
    assert ours == json.loads(json.dumps(theirs).replace("other", "odds"))
    with engine.connect() as connection:
        (plan,) = (
            sql
            for table, sql in maintenance.plan_maintain(
                connection, tables=["odds"], orders=Orders(analyze=False)
            )
        )
        assert plan == ""
        (back,) = maintenance.restore(connection, expired).results
    assert back.restored == tuple(expired)
    assert scalar(engine, "SELECT count(*) FROM odds") == count
    assert call(engine, "SELECT action FROM drop_old_partitions('odds')") == [], "its grace begins anew"


def test_what_is_not_ours_or_the_last_or_more_than_max_drops_stays(engine: Engine) -> None:
    expired = history(engine)
    run(engine, "UPDATE partition_config SET max_drops = 1", f"COMMENT ON TABLE {expired[0]} IS 'mine'")
    installed(engine)
    found = call(
        engine, "SELECT partition_name, action, detail FROM drop_old_partitions('odds', dry_run => false)"
    )
    assert [(name, action) for name, action, _ in found if name] == [(expired[1], "detached")]
    told = "\n".join(detail for *_, detail in found)
    assert f"{expired[0]}: without our mark, so it stays" in told
    assert "more wait: max_drops is 1" in told
    run(engine, "UPDATE partition_config SET max_drops = 10")
    for name in partitions(engine):
        if name not in expired:
            run(engine, f"DROP TABLE {name}")
    run(engine, f"COMMENT ON TABLE {expired[0]} IS 'alembic_partitions: made by ensure'")
    found = call(
        engine, "SELECT partition_name, action, detail FROM drop_old_partitions('odds', dry_run => false)"
    )
    assert partitions(engine) == [expired[-1]]
    assert f"{expired[-1]} is the last partition of its table" in found[0][2]


def test_a_table_with_a_default_partition_or_an_archive_is_seen_to_as_far_as_may_be(engine: Engine) -> None:
    expired = history(engine)
    history(engine, "kept", on_expiry="archive", archive_schema="public")
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    installed(engine)
    found = call(
        engine,
        "SELECT table_name, partition_name, action, detail FROM run_partition_maintenance(dry_run => false)",
    )
    assert [name for table, name, action, _ in found if (table, action) == ("odds", "detached")] == expired
    assert [told for table, _, action, told in found if (table, action) == ("kept", "skipped")] == [
        "on_expiry is archive: alembic-partitions maintain sees to it"
    ]


def test_a_detach_half_way_is_left_to_the_package(engine: Engine) -> None:
    expired = history(engine)
    installed(engine)
    half_detach(engine, "odds", expired[0])
    assert [row[:2] for row in call(engine, "SELECT status, reasons FROM partition_health_summary()")] == [
        ("DEGRADED", "a partition is stuck half-way through DETACH CONCURRENTLY")
    ]
    (found, _) = call(engine, "SELECT action, detail FROM drop_old_partitions('odds', dry_run => false)")
    assert found[0] == "skipped"
    assert "half-way" in found[1]


def gone_since(engine: Engine, name: str, days: int) -> None:
    """Have a detached partition be detached for so many days."""
    told = mark(engine, name)
    told["at"] = f"{datetime.now(timezone.utc) - timedelta(days=days):%Y-%m-%d %H:%M:%S.%f}Z"
    run(engine, f"COMMENT ON TABLE {name} IS $$alembic_partitions: detached {json.dumps(told)}$$")


def test_what_was_detached_is_dropped_once_its_grace_is_over_where_on_expiry_says_so(engine: Engine) -> None:
    expired = history(engine)
    installed(engine)
    call(engine, "SELECT * FROM drop_old_partitions('odds', dry_run => false)")
    ripe, young, renamed = (f"{name}_detached" for name in expired[:3])
    for name, days in ((ripe, 9), (young, 5), (renamed, 9)):
        gone_since(engine, name, days)
    run(engine, f"ALTER TABLE {renamed} RENAME TO mine")
    names = "SELECT partition_name, action, detail FROM"
    assert call(engine, f"{names} drop_old_partitions('odds')") == [], "on_expiry is detach"
    run(engine, "UPDATE partition_config SET on_expiry = 'drop'")
    found = call(engine, f"{names} drop_old_partitions('odds', dry_run => false)")
    assert [told for *_, told in found[:1]] == [
        "on_expiry has changed since it was detached, so its grace begins anew"
    ]
    assert mark(engine, ripe)["fate"] == "drop"
    gone_since(engine, ripe, 9)
    gone_since(engine, young, 5)
    with engine.connect() as connection:
        (script,) = (sql for _, sql in maintenance.plan_maintain(connection, orders=Orders(analyze=False)))
    assert f"DROP TABLE public.{ripe}" in script
    assert script.count("DROP TABLE") == 1
    (would, _) = call(engine, f"{names} drop_old_partitions('odds')")
    assert would[:2] == (ripe, "would drop")
    (done, *_) = call(engine, f"{names} run_partition_maintenance(dry_run => false) WHERE action = 'dropped'")
    assert done[:2] == (ripe, "dropped")
    assert detached(engine) == sorted(
        ["mine", *(f"{name}_detached" for name in expired[1:] if name != expired[2])]
    )
    with engine.connect() as connection:
        runs = maintenance.past_runs(connection).runs
    assert runs is not None
    assert (runs[0].dropped, runs[0].details["public.odds"]["dropped"]) == (1, [ripe])


def test_a_detached_partition_with_a_foreign_key_is_left_to_be_dropped_by_the_package(engine: Engine) -> None:
    (first, *_) = history(engine, on_expiry="drop")
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)", "ALTER TABLE odds ADD race int REFERENCES races")
    installed(engine)
    call(engine, "SELECT * FROM drop_old_partitions('odds', dry_run => false)")
    gone_since(engine, f"{first}_detached", 9)
    found = call(
        engine, "SELECT partition_name, action, detail FROM drop_old_partitions('odds', NULL, false)"
    )
    assert found[0][:2] == (f"{first}_detached", "skipped")
    assert "foreign keys" in found[0][2]
    assert f"{first}_detached" in detached(engine)


def test_one_run_at_a_time_removes_theirs_and_ours_alike(engine: Engine) -> None:
    history(engine)
    installed(engine)
    before = partitions(engine)
    with one_run(engine, "public"):
        for query in (
            "drop_old_partitions('odds', dry_run => false)",
            "run_partition_maintenance(NULL, false)",
        ):
            assert refused(engine, f"SELECT * FROM {query}")[0] == "55P03"
        assert call(engine, "SELECT action FROM drop_old_partitions('odds')")[0] == ("would detach",)
    assert partitions(engine) == before
    with engine.begin() as connection:
        connection.execute(text("SELECT * FROM drop_old_partitions('odds', dry_run => false)"))
        other = create_engine(engine.url, poolclass=NullPool)
        with pytest.raises(Exception, match="Another run"), one_run(other, "public", patience=0):
            pass


def test_after_a_long_time_without_a_run_somebody_must_trust_the_clock(engine: Engine) -> None:
    expired = history(engine)
    installed(engine)
    run(
        engine,
        "INSERT INTO partition_runs (started_at, action) VALUES (now() - interval '60 days', 'maintain')",
    )
    assert "trust_clock" in refused(engine, "SELECT * FROM drop_old_partitions('odds', dry_run => false)")[1]
    found = call(engine, "SELECT action, detail FROM run_partition_maintenance(dry_run => false)")
    assert any(action == "skipped" and "trust_clock" in told for action, told in found if told)
    run(engine, "DELETE FROM partition_runs WHERE started_at > now() - interval '1 day'")
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL alembic_partitions.trust_clock = on"))
        connection.execute(text("SELECT * FROM drop_old_partitions('odds', dry_run => false)"))
    assert detached(engine) == [f"{name}_detached" for name in expired]


def test_retention_of_a_table_that_keeps_everything_is_given_by_hand(engine: Engine) -> None:
    expired = history(engine)
    run(engine, "UPDATE partition_config SET retention = NULL")
    installed(engine)
    assert call(engine, "SELECT * FROM drop_old_partitions('odds', dry_run => false)") == []
    found = call(engine, "SELECT partition_name FROM drop_old_partitions('odds', '4 days', false)")
    assert [name for (name,) in found] == [*expired[:-1], None]


# -- runs ------------------------------------------------------------------------------------------------


def test_runs_are_written_down_as_the_packages_own(engine: Engine) -> None:
    expired = history(engine)
    run(engine, "CREATE TABLE plain (at timestamptz)")
    run(
        engine,
        'INSERT INTO partition_config SELECT (jsonb_populate_record(c, \'{"table_name": "plain"}\')).*'
        " FROM partition_config c",
    )
    installed(engine)
    call(engine, "SELECT * FROM create_future_partitions('odds', 4)")
    call(engine, "SELECT * FROM create_future_partitions('odds', 4)")  # no news
    found = call(engine, "SELECT table_name, action FROM run_partition_maintenance(dry_run => false)")
    assert ("plain", "failed") in found, "one bad table"
    assert ("odds", "detached") in found, "stops no other"
    with engine.connect() as connection:
        view = maintenance.past_runs(connection)
    assert view.runs is not None
    maintained, ensured = view.runs
    assert (ensured.action, ensured.created, ensured.error) == ("ensure", 2, None)
    assert len(ensured.details["public.odds"]["created"]) == 2
    assert (maintained.action, maintained.detached) == ("maintain", len(expired))
    assert maintained.details["public.odds"]["detached"] == expired
    assert (
        maintained.error
        == "public.plain: table public.plain does not fit its policy: it is not a partitioned table"
    )
    with engine.connect() as connection:
        failures = {str(item.table): item.failure for item in maintenance.look(connection).tables}
    assert failures["public.odds"] is None
    assert "does not fit its policy" in str(failures["public.plain"])
    health = dict(call(engine, "SELECT table_name, status FROM partition_health_summary()"))
    assert health == {"odds": "HEALTHY", "plain": "CRITICAL"}


def test_a_table_that_is_in_use_is_given_up_and_told_with_nothing_half_made(engine: Engine) -> None:
    history(engine)
    installed(engine)
    before = partitions(engine)
    with somebody(engine, "LOCK TABLE odds IN SHARE UPDATE EXCLUSIVE MODE"):
        (found,) = call(engine, "SELECT action, detail FROM create_future_partitions('odds', 4)")
        assert found == ("failed", "canceling statement due to lock timeout")
    assert partitions(engine) == before
    assert scalar(
        engine, "SELECT count(*) FROM pg_class WHERE relname LIKE 'odds_%' AND relkind = 'r'"
    ) == len(before)
    assert scalar(engine, "SELECT error FROM partition_runs").endswith(
        "canceling statement due to lock timeout"
    )


def test_statistics_are_kept_of_what_has_just_closed_or_of_everything(engine: Engine) -> None:
    history(engine, days=4, retention=None)
    installed(engine)
    everything = call(engine, "SELECT partition_name, action FROM analyze_partitions('odds')")
    assert {action for _, action in everything} == {"analyzed"}
    never = "SELECT count(*) FROM partition_metadata WHERE last_analyze IS NULL"
    assert scalar(engine, never) == 0
    assert scalar(
        engine, "SELECT sum(rows_estimate)::int = (SELECT count(*) FROM odds) FROM partition_metadata"
    )
    again = call(engine, "SELECT partition_name, action FROM run_partition_maintenance()")
    assert [row for row in again if "analyze" in row[1]] == [], "closed ones are analyzed once"


# -- how tables stand ------------------------------------------------------------------------------------


def test_health_says_what_is_to_be_done(engine: Engine) -> None:
    names = ["fine", "bare", "gap", "late", "strands", "none", "rest"]
    for name in names:
        declare(engine, name, policy(premake=10))
    installed(engine)
    today = scalar(engine, "SELECT (now() AT TIME ZONE 'Pacific/Auckland')::date")

    def drop(name: str, *days: int) -> None:
        run(engine, *(f"DROP TABLE {name}_{today + timedelta(days=n):%Y_%m_%d}" for n in days))

    drop("bare", 0)
    drop("gap", 5)
    drop("late", *range(4, 11))
    drop("none", *range(-1, 11))
    drop("strands", 7)
    run(
        engine,
        "CREATE TABLE strays PARTITION OF strands DEFAULT",
        "INSERT INTO strands (at) VALUES (now() - interval '9 days')",
        "CREATE TABLE calm PARTITION OF rest DEFAULT",
        "DROP TABLE " + f"rest_{today:%Y_%m_%d}",
    )
    found = {row[1]: row[2:] for row in call(engine, "SELECT * FROM partition_health_summary()")}
    assert {name: row[0] for name, row in found.items()} == {
        "fine": "HEALTHY",
        "bare": "CRITICAL",
        "gap": "DEGRADED",
        "late": "DEGRADED",
        "none": "NO_PARTITIONS",
        "strands": "DEGRADED",
        "rest": "DEGRADED",
    }
    assert found["bare"][9] == "no partition for rows that are written now"
    assert found["bare"][1] == 0
    assert found["strands"][7] is True
    assert found["fine"][4] > 0
    assert "strand in the DEFAULT partition" in found["rest"][9]


def test_partitions_are_listed_with_where_they_stand(engine: Engine) -> None:
    expired = history(engine)
    run(engine, "CREATE TABLE rest PARTITION OF odds DEFAULT")
    installed(engine)
    found = call(
        engine, "SELECT partition_name, range_from, range_to, bytes, state FROM list_partitions('odds')"
    )
    states = {name: state for name, *_, state in found}
    assert [name for name, state in states.items() if state == "expired"] == expired
    assert states["rest"] == "default, by hand"
    assert list(states.values()).count("today") == 1
    assert list(states) == [*partitions(engine)[:-1], "rest"]
    assert all(size > 0 for *_, size, _ in found[:-1])
    assert found[0][2] == found[1][1], "they touch"
    listed = call(
        engine, "SELECT partition_name, range_from FROM partition_metadata WHERE table_name = 'odds'"
    )
    assert sorted(map(str, listed)) == sorted(str((row[0], row[1])) for row in found)
