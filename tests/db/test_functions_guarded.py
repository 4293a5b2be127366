"""What the SQL functions make sure of: what others have changed meanwhile, and who may do what."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import maintenance
from alembic_partitions.maintenance import Orders
from alembic_partitions.standing import survey
from tests.databases import Roles
from tests.db.test_functions import call, gone_since, history, installed, refused, somebody
from tests.db.test_retention import mark
from tests.tables import columns, declare, operations, partitions, policy, quote, rows, run, scalar

REMOVE = "SELECT partition_name, action, detail FROM drop_old_partitions('odds', dry_run => false)"


# -- what others have changed meanwhile ------------------------------------------------------------------


def test_a_partition_that_has_other_bounds_by_now_stays(engine: Engine) -> None:
    """Somebody gives it a new range between the plan and the DETACH, which waits for his lock."""
    (first, *_) = history(engine, on_expiry="drop")
    installed(engine)
    with engine.connect() as connection:
        connection.execute(text("SET TimeZone = 'UTC'"))
        planned = connection.execute(
            text("SELECT t::text, due[0]::text FROM _partition_tables('odds') t, _partition_due(t)")
        ).one()
        detach = text("SELECT _partition_detach(CAST(:t AS jsonb), CAST(:part AS jsonb), 'gone')")
        told = {"t": planned[0], "part": planned[1]}
        attempt = connection.begin_nested()
        connection.execute(detach, told)
        attempt.rollback()
        connection.execute(text(f"ALTER TABLE odds DETACH PARTITION {first}; TRUNCATE {first}"))
        new = "FOR VALUES FROM ('2038-01-01 00:00+00') TO ('2038-01-02 00:00+00')"
        connection.execute(text(f"ALTER TABLE odds ATTACH PARTITION {first} {new}"))
        with pytest.raises(DBAPIError, match="is not what it was when this was planned"):
            connection.execute(detach, told)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_that_sees_an_old_state_removes_nothing(engine: Engine, level: str) -> None:
    (first, *_) = history(engine, on_expiry="drop")
    installed(engine)
    theirs = create_engine(engine.url, poolclass=NullPool, isolation_level=level)
    for query in (REMOVE, "SELECT * FROM run_partition_maintenance(dry_run => false)"):
        state, told = refused(theirs, query)
        assert state == "55000"
        assert f"a transaction that is {level} does not see" in told
        assert "HINT" in told
    assert call(theirs, "SELECT action FROM run_partition_maintenance()"), "a dry run changes nothing"
    assert first in partitions(engine)


def test_what_was_attached_again_or_marked_anew_is_not_dropped(engine: Engine) -> None:
    (first, *_) = history(engine, on_expiry="drop")
    installed(engine)
    call(engine, REMOVE)
    gone_since(engine, f"{first}_detached", 9)
    old = json.dumps(mark(engine, f"{first}_detached"))
    still = "SELECT _partition_still(to_regclass(:name), :name, CAST(:told AS jsonb), 'ACCESS EXCLUSIVE')"
    call(engine, still, name=f"public.{first}_detached", told=old)
    gone_since(engine, f"{first}_detached", 8)
    with pytest.raises(DBAPIError, match="is not what it was"):
        call(engine, still, name=f"public.{first}_detached", told=old)


# -- whose it is -----------------------------------------------------------------------------------------


def test_a_role_whose_name_needs_quotes_removes_too(engine: Engine, roles: Roles) -> None:
    (first, *_) = history(engine)
    installed(engine)
    admin = roles.create("admin", "SUPERUSER")
    odd = f'{admin.username} Ad"min'
    run(engine, f"ALTER ROLE {admin.username} RENAME TO {quote(odd)}")
    theirs = create_engine(engine.url, poolclass=NullPool)
    with theirs.begin() as connection:
        connection.execute(text(f"SET LOCAL ROLE {quote(odd)}"))
        found = connection.execute(text(REMOVE)).all()
        assert found[0][:2] == (first, "detached")
        assert connection.execute(text(REMOVE)).all() == []


def out_of_a_dump(engine: Engine, name: str, **oids: int) -> None:
    """Give a detached table's mark OIDs of another database, as pg_restore does."""
    told = json.dumps(mark(engine, name) | {"oid": 1, **oids})
    run(engine, f"COMMENT ON TABLE {name} IS $$alembic_partitions: detached {told}$$")


def test_what_came_out_of_a_dump_is_its_tables_by_name_and_no_others(engine: Engine) -> None:
    """The OID of its table in the old database is another table's in this one."""
    expired = history(engine, on_expiry="drop")
    declare(engine, "other", policy(retention="3 days", on_expiry="drop", grace="1 day"))
    run(engine, "UPDATE partition_config SET grace = '1 day'")
    installed(engine)
    call(engine, REMOVE)
    others = scalar(engine, "SELECT 'other'::regclass::oid::bigint")
    for name in expired[:2]:
        gone_since(engine, f"{name}_detached", 9)
        out_of_a_dump(engine, f"{name}_detached", of=others)
    would = call(
        engine,
        "SELECT table_name, partition_name FROM run_partition_maintenance() WHERE action = 'would drop'",
    )
    assert would == [("odds", f"{name}_detached") for name in expired[:2]]
    with engine.connect() as connection:
        done = maintenance.maintain(connection, orders=Orders(analyze=False)).results
    assert {(r.table, r.dropped) for r in done} == {
        ("public.odds", tuple(f"{name}_detached" for name in expired[:2])),
        ("public.other", ()),
    }


# -- who else has functions in the schema ----------------------------------------------------------------


def test_functions_of_others_beside_ours_are_never_called(engine: Engine) -> None:
    """What takes exactly the arguments of a call goes before what takes any number of any."""
    history(engine, on_expiry="drop")
    mallory = "LANGUAGE plpgsql AS $$ BEGIN RAISE 'mallory'; END $$"
    for name, most in (("concat", 6), ("format", 4), ("concat_ws", 4), ("jsonb_build_object", 6)):
        for count in range(1, most + 1):
            takes = ", ".join(["text"] * count)
            run(engine, f"CREATE FUNCTION {name}({takes}) RETURNS text {mallory}")
    run(
        engine,
        f"CREATE FUNCTION joined(text, int) RETURNS text {mallory}",
        "CREATE OPERATOR || (LEFTARG = text, RIGHTARG = int, FUNCTION = joined)",
    )
    installed(engine)
    found = [
        call(engine, f"SELECT * FROM {door}")
        for door in (
            "partition_health_summary()",
            "create_future_partitions('odds', 4)",
            "create_daily_partitions()",
            "list_partitions()",
            "partition_metadata",
            "analyze_partitions('odds')",
            "drop_old_partitions('odds', '5 days', false)",
            "run_partition_maintenance(dry_run => false)",
        )
    ]
    assert "mallory" not in str(found)
    paths = (
        "SELECT DISTINCT proconfig[1] FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        " AND proname LIKE '%partition%'"
    )
    assert rows(engine, paths) == [("search_path=pg_catalog, pg_temp",)]
    with operations(engine) as op:
        op.drop_partition_functions()
    assert rows(engine, paths) == []


# -- zones -----------------------------------------------------------------------------------------------


def test_a_zone_that_only_looks_like_one_is_critical_and_makes_nothing(engine: Engine) -> None:
    """AT TIME ZONE takes them all."""
    declare(engine, "odds", policy())
    declare(engine, "stamped", policy(column_timezone="UTC"), *columns("at", sa.DateTime()))
    installed(engine)
    for zone in ("Pacific/AUCKLAND", "Pacific/Aucklnd13", "Etc/GMT+15"):
        run(
            engine,
            f"UPDATE partition_config SET timezone = '{zone}' WHERE table_name = 'odds'",
            f"UPDATE partition_config SET column_timezone = '{zone}' WHERE table_name = 'stamped'",
        )
        told = f"'{zone}' is not the exact name of a time zone"
        found = call(engine, "SELECT table_name, status, reasons FROM partition_health_summary()")
        assert found == [("odds", "CRITICAL", told), ("stamped", "CRITICAL", told)]
        state, message = refused(engine, "SELECT * FROM create_future_partitions('odds', 9)")
        assert (state, told in message) == ("55000", True)
    with engine.connect() as connection:
        assert {item.state.value for item in survey(connection).tables} == {"CRITICAL"}


def test_the_clocks_of_a_zone_are_looked_through_once_a_call(engine: Engine) -> None:
    declare(engine, "odds", policy(timezone="UTC"))
    declare(engine, "other", policy(timezone="UTC"))
    installed(engine)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL track_functions = 'pl'"))
        connection.execute(text("SET LOCAL alembic_partitions.now = '2039-04-05 13:37:11Z'"))
        made = connection.execute(text("SELECT action FROM create_daily_partitions()")).scalars().all()
        assert made == ["created"] * 8
        calls = text("SELECT calls FROM pg_stat_xact_user_functions WHERE funcname = :name")
        assert connection.scalar(calls, {"name": "_partition_changes_clocks"}) == 1


def test_a_superuser_works_on_a_table_with_its_owners_rights(engine: Engine, roles: Roles) -> None:
    """Its index and its CHECK call a function of the owner's as soon as there is a new partition."""
    owner = roles.create("own").username
    expired = history(engine, on_expiry="drop")
    ours = [f"ALTER TABLE {name} OWNER TO {owner}" for name in ["odds", *partitions(engine)]]
    run(engine, *ours, "CREATE SCHEMA tools", f"GRANT CREATE ON SCHEMA public TO {owner}")
    run(
        engine,
        f"SET SESSION AUTHORIZATION {owner}; CREATE TABLE put_off (by name);"
        # They try to become the superuser again, at once and at COMMIT.
        f" CREATE FUNCTION rise() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM set_config('role', 'none', true); EXCEPTION WHEN OTHERS THEN NULL; END $$;"
        " CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.deed();"
        " RETURN NULL; END $$;"
        " CREATE CONSTRAINT TRIGGER late AFTER INSERT ON put_off DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        " EXECUTE FUNCTION late();"
        " CREATE FUNCTION deed() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM public.rise();"
        " IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN RAISE 'a superuser'; END IF;"
        " END $$;"
        " CREATE FUNCTION delay() RETURNS void LANGUAGE sql AS"
        " $$ INSERT INTO public.put_off VALUES (current_user) $$;"
        " CREATE FUNCTION sly(bigint) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM public.deed(); BEGIN PERFORM public.delay();"
        " EXCEPTION WHEN insufficient_privilege THEN NULL; END; RETURN true; END $$;"
        " CREATE INDEX ON odds ((id > 0 AND public.sly(1))); ALTER TABLE odds ADD CHECK (public.sly(1))",
        "RESET SESSION AUTHORIZATION",
    )
    run(engine, "CREATE TABLE races (id int PRIMARY KEY)", "ALTER TABLE odds ADD race int REFERENCES races")
    installed(engine, schema="tools")  # where the owner may do nothing
    create = text("SELECT action, detail FROM tools.create_future_partitions('odds', 4)")
    with engine.begin() as connection:
        made = connection.execute(create).all()
        assert [action for action, _ in made] == ["created"] * 2, made
        gone = connection.execute(text(REMOVE.replace("drop_old", "tools.drop_old"))).all()
        assert [row[:2] for row in gone[:-1]] == [(name, "detached") for name in expired]
        assert connection.scalar(text("SELECT current_user")) == engine.url.username
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname LIKE 'odds%'"
    assert rows(engine, owners) == [(owner,)]
    assert rows(engine, "SELECT DISTINCT by FROM put_off") == [(owner,)], "both ways were tried"
    run(engine, f"ALTER TABLE {expired[0]}_detached DROP race", f"DROP TABLE {partitions(engine)[-1]}")
    gone_since(engine, f"{expired[0]}_detached", 9)
    dropped = call(
        engine, "SELECT partition_name, action FROM tools.drop_old_partitions('odds', NULL, false)"
    )
    assert (f"{expired[0]}_detached", "dropped") in dropped
    run(engine, f"REVOKE CREATE ON SCHEMA public FROM {owner}")
    ((action, told),) = call(engine, str(create))
    assert action == "failed"
    assert told.endswith(f"may not create there: GRANT USAGE, CREATE ON SCHEMA public TO {owner}")


# -- who waits for whom ----------------------------------------------------------------------------------


def test_a_table_that_another_run_is_at_is_left_to_it_and_no_failure(engine: Engine) -> None:
    history(engine)
    installed(engine)
    before = partitions(engine)
    with somebody(engine, "SELECT * FROM create_future_partitions('odds', 4)"):
        found = call(engine, "SELECT action, detail FROM run_partition_maintenance(dry_run => false)")
    assert [row for row in found if row[0] in ("failed", "created", "detached")] == []
    assert found.count(("skipped", "another run is at it")) == 1
    assert partitions(engine) == before
    assert rows(engine, "SELECT error FROM partition_runs") == [(None,)]


def test_locks_that_others_feel_are_told_and_come_after_what_takes_long(engine: Engine) -> None:
    history(engine, retention=None)
    run(
        engine,
        "CREATE TABLE races (id int PRIMARY KEY)",
        "ALTER TABLE odds ADD race int REFERENCES races",
        "CREATE TABLE rest PARTITION OF odds DEFAULT",
        "UPDATE partition_config SET premake = 5",
    )
    installed(engine)
    held = text(
        "SELECT DISTINCT relation::regclass::text, mode FROM pg_locks WHERE pid = pg_backend_pid()"
        " AND relation IN ('races'::regclass, 'rest'::regclass, 'odds'::regclass)"
    )
    with engine.begin() as connection:
        cursor = connection.connection.cursor()  # whose notices nobody takes away
        cursor.execute("SELECT action FROM run_partition_maintenance(NULL, false)")
        actions = [action for (action,) in cursor.fetchall() if action != "not done"]
        told = [notice.strip() for notice in cursor.connection.notices]
        assert actions == sorted(actions), "analyzed, then created"
        assert set(actions) == {"analyzed", "created"}
        locks = {tuple(row) for row in connection.execute(held)}
    assert ("races", "ShareRowExclusiveLock") in locks
    assert ("rest", "AccessExclusiveLock") in locks
    assert ("odds", "AccessExclusiveLock") not in locks
    races, rest = (
        f"NOTICE:  {lock} until this transaction ends"
        for lock in (
            "SHARE ROW EXCLUSIVE on public.races: nobody writes there",
            "ACCESS EXCLUSIVE on public.rest (DEFAULT): nobody reads all of table public.odds",
        )
    )
    assert told == [races, rest]
