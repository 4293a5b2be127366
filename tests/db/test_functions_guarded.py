"""What the SQL functions make sure of: what others have changed meanwhile, and who may do what."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import maintenance
from alembic_partitions.maintenance import Orders
from tests.databases import Roles
from tests.db.test_functions import call, gone_since, history, installed, refused
from tests.db.test_retention import mark
from tests.tables import declare, partitions, policy, quote, run, scalar

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
