"""What a torture runs: each verb in a small world of its own, through a door, with any driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine

from alembic_partitions import PartitionPolicy, deploy, maintenance
from alembic_partitions.drivers import backend_pid
from alembic_partitions.maintenance import Report
from tests.apps import App
from tests.clock import Clock
from tests.databases import Database
from tests.projects import Project
from tests.tables import NOW, columns, declare, operations, policy, run, scalar

ENV = """
import sqlalchemy as sa
from alembic import context

engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=sa.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
FIRST = """
op.create_table("meetings", sa.Column("id", sa.Integer, primary_key=True))
op.create_partitioned_table(
    "odds",
    sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("note", sa.Text),
    sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id")),
    sa.PrimaryKeyConstraint("id", "at"),
    policy=PartitionPolicy("at", timezone="Pacific/Auckland", premake=0, lookback=0),
)
"""
SECOND = """
op.alter_partition_policy("odds", premake=2, existing_premake=0)
op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True))
"""

ODDS = sa.table("odds", sa.column("id"), sa.column("at", sa.DateTime(timezone=True)), sa.column("note"))
#: Rows of one transaction: one inside coverage, one that needs a partition.
ROWS = [
    {"id": 1001, "at": NOW, "note": "covered"},
    {"id": 1002, "at": NOW + timedelta(days=5), "note": "not covered"},
]


@dataclass
class Lived:
    """What a run left: what it returned, and which server processes were the user's own."""

    value: Any = None
    own: frozenset[int] = frozenset()

    @property
    def failure(self) -> str | None:
        """What it says it failed over; None is a promise that all was done."""
        if isinstance(self.value, Report):
            unfinished = [r.table for r in self.value.results if r.horizon_short and not r.error]
            return self.value.failure or ("not all windows" if unfinished else None)
        return getattr(self.value, "error", None)


@dataclass
class Verb:
    """One verb: what it finds, what it does through an engine, and what a user does after trouble."""

    name: str
    prepare: Callable[[Engine], None]
    live: Callable[[Database, set[int]], Any]
    #: Whether an error may come up that is not ours, though the user's own connection was not hit.
    asks_the_database: bool = True
    #: Whether all is done where nothing is said to have failed; else the next look does the rest.
    tells_all: bool = True
    #: Whether rows go on purpose.
    drops: bool = False


def small(**fields: Any) -> PartitionPolicy:
    return policy(**{"retention": "3 days", "premake": 0, "lookback": 0, "grace": "1 day", **fields})


def begin(engine: Engine, rules: PartitionPolicy) -> None:
    """A table with a foreign key: today's partition, and one that has expired, with two rows in it."""
    run(engine, "CREATE TABLE meetings (id int PRIMARY KEY)", "INSERT INTO meetings VALUES (1)")
    key = sa.Column("meeting", sa.Integer, sa.ForeignKey("meetings.id"), server_default="1")
    declare(engine, "odds", rules, *columns(), key)
    with operations(engine) as op:
        op.create_partitions("odds", date(2026, 4, 1), date(2026, 4, 2))
    run(
        engine,
        "INSERT INTO odds (at, note) SELECT t, t::text FROM"
        " generate_series(timestamptz '2026-04-01 01:00+13', '2026-04-01 20:00+13', '12 hours') t",
    )


def on_a_connection(action: Callable[[Connection], Report]) -> Callable[[Database, set[int]], Report]:
    def live(database: Database, own: set[int]) -> Report:
        engine = create_engine(database.url, poolclass=NullPool)
        with engine.connect() as connection:
            own.add(backend_pid(connection))
            return action(connection)

    return live


def lacking(engine: Engine) -> None:
    begin(engine, small(premake=1))
    run(engine, "DROP TABLE odds_2026_04_05", "DROP TABLE odds_2026_04_06")


def beside_default(engine: Engine) -> None:
    begin(engine, small())
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")


def detached(clock: Clock) -> Callable[[Engine], None]:
    def prepare(engine: Engine) -> None:
        begin(engine, small(on_expiry="drop"))
        clock.forward(days=-2)
        run(engine, "UPDATE partition_config SET retention = '1 day'")
        with engine.connect() as connection:
            assert maintenance.maintain(connection).count("detached") == 1
        clock.forward(days=2)
        run(engine, "UPDATE partition_config SET retention = '3 days'")

    return prepare


def stranded(engine: Engine) -> None:
    """A window of two rows, which moves at once, and one of six, which is gathered in batches of three."""
    begin(engine, small(retention=None))
    run(
        engine,
        "CREATE TABLE odds_rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at, note) SELECT t, t::text FROM"
        " generate_series('2026-03-20 01:00+13'::timestamptz, '2026-03-20 20:00+13', '12 hours') t",
        "INSERT INTO odds (at, note) SELECT t, t::text FROM"
        " generate_series('2026-03-22 01:00+13'::timestamptz, '2026-03-22 22:00+13', '4 hours') t",
    )


def inserting(driver: str) -> Callable[[Database, set[int]], None]:
    """Write both rows in one transaction, unless they are there: after an unknown outcome one looks first."""

    def live(database: Database, own: set[int]) -> None:
        def work(connection: Connection) -> None:
            own.add(backend_pid(connection))
            if not connection.scalar(sa.select(sa.func.count()).select_from(ODDS).where(ODDS.c.id > 1000)):
                for row in ROWS:
                    connection.execute(ODDS.insert(), row)

        app = App(database, driver)
        try:
            app.connection(work)
        finally:
            app.close()

    return live


def connecting(database: Database, own: set[int]) -> None:
    app = App(database, "psycopg2")
    try:
        app.connection(lambda connection: own.add(backend_pid(connection)))
    finally:
        app.close()


def looking(database: Database, own: set[int]) -> Any:
    app = App(database, "psycopg2")
    try:
        return app.health()
    finally:
        app.close()


def migrating(folder: Path) -> tuple[Callable[[Engine], None], Callable[[Database, set[int]], None]]:
    """A project whose first migration makes the table, and whose second wants a longer horizon."""
    project = Project.make(folder, "generic", sa.make_url("postgresql://nowhere/at_all"))
    project.env.write_text(ENV)
    first = project.add(FIRST, "pass")
    project.add(SECOND, "pass")

    def upgrade(url: URL, to: str) -> None:
        config = Config(folder / "alembic.ini")
        config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False))
        with deploy.guarding(lock_timeout=5):
            command.upgrade(config, to)

    def live(database: Database, own: set[int]) -> None:
        upgrade(database.url, "head")

    return lambda engine: upgrade(engine.url, first), live


def _maintain(name: str, prepare: Callable[[Engine], None], drops: bool = False) -> Verb:
    return Verb(name, prepare, on_a_connection(maintenance.maintain), drops=drops)


def _hook(driver: str) -> Callable[[Clock, Path], Verb]:
    name = f"insert hook, {driver}"
    return lambda *_: Verb(name, lambda engine: begin(engine, small()), inserting(driver), False, False)


def _upgrade(clock: Clock, folder: Path) -> Verb:
    at_first, upgrade = migrating(folder)
    return Verb("upgrade", at_first, upgrade, tells_all=False)


#: What makes a verb, which may want a folder.
VERBS: Mapping[str, Callable[[Clock, Path], Verb]] = {
    "ensure": lambda *_: Verb("ensure", lacking, on_a_connection(maintenance.ensure)),
    "detach": lambda *_: _maintain("maintain: detach", lambda engine: begin(engine, small())),
    "detach beside DEFAULT": lambda *_: _maintain("maintain: detach beside DEFAULT", beside_default),
    "drop": lambda clock, _: _maintain("maintain: drop", detached(clock), drops=True),
    "drain": lambda *_: Verb(
        "repair: drain DEFAULT", stranded, on_a_connection(lambda c: maintenance.repair(c, batch=3))
    ),
    "insert, psycopg2": _hook("psycopg2"),
    "insert, psycopg": _hook("psycopg"),
    "insert, asyncpg": _hook("asyncpg"),
    "connect": lambda *_: Verb("connect hook", lacking, connecting, False, False),
    "upgrade": _upgrade,
    "health": lambda *_: Verb("health", lacking, looking, False, False),
}


def rows_of(engine: Engine) -> list[str]:
    """Every row of the users', wherever it is: below the parent, detached, on its way."""
    names = scalar(
        engine,
        "SELECT string_agg(format('SELECT to_jsonb(t)::text r FROM ONLY %s t', c.oid::regclass),"
        " ' UNION ALL ') FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
        " AND c.relname LIKE 'odds%'",
    )
    return sorted(scalar(engine, f"SELECT coalesce(array_agg(r ORDER BY r), '{{}}') FROM ({names}) rows"))
