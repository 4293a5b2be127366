"""Evil names on a server that logs each statement: what it got is what was meant, and nothing else."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IdentifierError, StatementError

import alembic_partitions.operations  # noqa: F401  # an installed package needs no such line
from alembic_partitions import PartitionPolicy, adoption, cli, keep, maintenance, talk
from alembic_partitions.cli import door
from alembic_partitions.errors import PartitionError
from alembic_partitions.maintenance import Orders
from alembic_partitions.naming import is_text
from alembic_partitions.standing import survey
from tests.postgres import Server
from tests.tables import quote
from tests.torture.cases import Cases
from tests.torture.fuzz import Texts, evil_name, fields, fits, oddity
from tests.torture.statements import DRIVER, OURSELVES, Witness
from tests.torture.telling import setting, tell

SHARE = setting("TORTURE_CASES", 10_000) / 10_000
NOW = datetime.now(timezone.utc)
THEN, SOON, LATER = (f"{NOW + timedelta(days=days):%Y-%m-%d}" for days in (-9, 1, 2))

# What people attach by hand, what is left of old policies, and what no policy of ours would make.
BOUNDS = (
    *(
        "FROM (MINVALUE) TO ('2001-01-01')",
        "FROM ('-infinity') TO ('0044-03-15 BC')",
        "FROM (MINVALUE) TO (MAXVALUE)",
    ),
    *(
        "FROM ('0044-03-15 BC') TO ('0001-01-01')",
        "FROM ('2031-01-01') TO ('infinity')",
        "FROM ('infinity') TO (MAXVALUE)",
    ),
    *("FROM ('20000-01-01') TO ('30000-01-01')", "FROM ('2031-01-01') TO (MAXVALUE)", "DEFAULT", "DEFAULT"),
    f"FROM ('{SOON} 07:13:11.000001') TO ('{LATER} 01:00')",
    f"FROM ('{THEN}') TO ('{THEN} 18:00')",
)
COMMENTS = (
    *(
        "",
        "alembic_partitions: made by ensure",
        "alembic_partitions: detached {",
        "alembic_partitions: detaching {}",
    ),
    *(
        'alembic_partitions: detached {"parent": 7}',
        "alembic_partitions: draining []",
        "alembic_partitions: ",
    ),
)
KEYS: dict[str, Any] = {
    "timestamptz": sa.DateTime(timezone=True),
    "timestamp": sa.DateTime(),
    "date": sa.Date(),
    "bigint": sa.BigInteger(),
    "uuid": sa.Uuid(),
}
_OBJECTS = """
    SELECT 'table', n.nspname::text, c.relname::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_(toast|temp)' UNION ALL
    SELECT 'schema', nspname::text, '' FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)' UNION ALL
    SELECT 'role', rolname::text, rolsuper::text FROM pg_roles UNION ALL
    SELECT 'function', proname::text, md5(prosrc) FROM pg_proc WHERE oid > 16384 UNION ALL
    SELECT 'bird', x::text, '' FROM canary.bird UNION ALL
    SELECT 'managed', table_schema, table_name FROM partition_config"""


@dataclass
class Place:
    """The server, those who use it, and what is watched there."""

    server: Server
    admin: Engine
    engine: Engine
    witness: Witness
    cases: Cases
    calls: Counter[str] = field(default_factory=Counter)

    def run(self, *statements: str) -> bool:
        """Send statements as an administrator; tell whether PostgreSQL took them all."""
        try:
            with self.admin.connect() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        except DBAPIError:
            return False
        return True

    def objects(self) -> Counter[Any]:
        with self.admin.connect() as connection:
            return Counter(tuple(row) for row in connection.exec_driver_sql(_OBJECTS))

    @contextmanager
    def call(self, what: str, *others: type[BaseException]) -> Iterator[None]:
        self.calls[what] += not self.cases.in_twin
        with self.cases.ours(*others):
            yield

    def migrate(self, what: str, verb: Callable[[Any], object]) -> None:
        with self.call(what, IdentifierError, ArgumentError), self.engine.begin() as connection:
            verb(Operations(MigrationContext.configure(connection)))


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    server = Server(settings=Witness.settings())
    given = {"connect_args": {"application_name": OURSELVES}, "poolclass": NullPool}
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT", **given)
    place = Place(server, admin, create_engine(server.url), Witness(server), Cases())
    assert place.run("CREATE SCHEMA canary", "CREATE TABLE canary.bird AS SELECT 1 x", "CREATE ROLE canary")
    with place.witness.watching():
        place.migrate(
            "home", lambda op: op.create_partitioned_table("first", *_columns("at"), policy=_plain())
        )
        place.migrate("home", lambda op: op.drop_partitioned_table("first"))
        place.migrate("home", lambda op: op.create_partition_functions())
        yield place
    place.engine.dispose()
    with place.admin.connect() as connection:
        strangers = place.witness.strangers(connection)
    sent = sum(map(len, place.witness.sent.values()))
    told = {f"calls: {what}": count for what, count in place.calls.items()}
    tell(
        "evil names on a server that logs every statement",
        {
            "tables with evil names": sum(place.cases.played.values()),
            **told,
            "calls in all": sum(place.calls.values()),
            **{f"met {name}": count for name, count in place.cases.errors.most_common()},
            "statements in the server's log, byte for byte as sent": sent,
            "sessions": len(place.witness.sent),
            "statements in the log that nobody sent, or sent and not there": len(strangers),
            "statements held against their skeletons": place.cases.skeletons.checked,
            "skeletons that plain names give": len(place.cases.skeletons.known),
            "plain twins played to learn them": place.cases.twins,
        },
    )
    server.close()
    assert strangers == [], [(pid, one[:300]) for pid, one in strangers[:5]]
    assert DRIVER


def _plain() -> PartitionPolicy:
    return PartitionPolicy("at", premake=1)


def _columns(key: str, kind: Any = None, other: str = "A note") -> list[Any]:
    return [
        sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
        sa.Column(key, kind or sa.DateTime(timezone=True), nullable=False),
        sa.Column(other, sa.Text),
    ]


def test_a_table_with_evil_names_is_kept_as_one_with_plain_names(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[BaseException] = []

    def explain(error: BaseException, urls: Any) -> str:
        failures.append(error)
        return talk.explain(error, urls)

    monkeypatch.setattr(door, "explain", explain)
    for name in ("ALEMBIC_PARTITIONS_NOW", "ALEMBIC_PARTITIONS_SCHEMA", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def act(texts: Texts, said: list[str]) -> None:
        before = place.objects()
        place.witness.case.clear()
        schema, possible = texts.name("schema"), fits(texts.evil)
        role, owned = texts.name("role"), fits(texts.evil)
        schema = schema if possible and place.run(f"CREATE SCHEMA {quote(schema)}") else "A place"
        place.run(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        owned = owned and place.run(
            f"CREATE ROLE {quote(role)}", f"GRANT ALL ON SCHEMA {quote(schema)} TO {quote(role)}"
        )
        try:
            _kept(place, texts, schema, role if owned else None)
            _by_command(place, texts, failures)
        finally:
            said += place.witness.case
            place.engine.dispose()
            place.run(
                f"DROP SCHEMA IF EXISTS {quote(schema)} CASCADE", "TRUNCATE partition_config, partition_runs"
            )
            if owned:
                place.run(f"DROP OWNED BY {quote(role)}", f"DROP ROLE {quote(role)}")
        after = place.objects()
        assert before == after, (before - after, after - before)

    place.cases.play("tables", max(int(70 * SHARE), 1), act)


def _kept(place: Place, texts: Texts, schema: str, role: str | None) -> None:
    dice = texts.dice
    kind = dice.choice(list(KEYS))
    values = fields(dice, texts)
    key, table, other = values.pop("key"), texts.name("table"), texts.name("column") or "A note"
    values |= {"timezone": "Pacific/Auckland", "premake": dice.choice((1, 2))}
    values |= {"epoch": dice.choice(("s", "ms"))} if kind == "bigint" else {}
    hint, space = texts.text("2 days"), texts.name("space")
    values |= {"tablespace": space} if dice.random() < 0.1 else {}
    with place.call("PartitionPolicy"):
        policy = PartitionPolicy(key, **values)
        place.migrate(
            "op.create_partitioned_table",
            lambda op: op.create_partitioned_table(
                table,
                *_columns(key, KEYS[kind], other),
                policy=policy,
                schema=schema,
                comment=texts.own[0] if fits(texts.own[0]) else None,
            ),
        )
    if not fits(table):
        table = "A table"
    name = f"{quote(schema)}.{quote(table)}"
    if role is not None:
        place.run(f"ALTER TABLE {name} OWNER TO {quote(role)}")
    taken = {table}
    for _ in range(dice.randrange(4)):  # what others have made there
        part, bound, comment = (
            texts.name("part"),
            dice.choice(BOUNDS),
            dice.choice((*COMMENTS, evil_name(dice, 0))),
        )
        if fits(texts.evil) and texts.evil not in taken:
            taken.add(texts.evil)
            part = f"{quote(schema)}.{quote(part)}"
            under = " PARTITION BY RANGE (id)" if dice.random() < 0.1 else ""
            values_ = bound if bound == "DEFAULT" else f"FOR VALUES {bound}"
            place.run(f"CREATE TABLE {part} PARTITION OF {name} {values_}{under}")
            place.run(f"COMMENT ON TABLE {part} IS '{comment.replace(chr(39), chr(39) * 2)}'")
    column, given = (
        dice.choice(
            (
                "retention",
                "timezone",
                "premake",
                "grace",
                "tablespace",
                "storage_parameters",
                "partition_key",
                "archive_schema",
                "day_start",
                "max_ahead",
            )
        ),
        texts.text("2 days"),
    )
    if dice.random() < 0.4:  # what people write into the configuration
        with suppress(Exception), place.admin.connect() as connection:
            connection.execute(text(f"UPDATE partition_config SET {column} = :given"), {"given": given})
    _runs(place, texts, schema, table, hint)
    _insert(place, texts, schema, table, key, KEYS[kind])
    made = texts.text("2031-01-01")
    whole = {"existing_policy": policy} if "policy" in locals() else {}
    place.migrate(
        "op.create_partitions",
        lambda op: op.create_partitions(table, made, "2031-01-04", schema=schema, **whole),
    )
    place.migrate(
        "op.drop_partitions", lambda op: op.drop_partitions(table, made, "2031-01-04", schema=schema)
    )
    place.migrate(
        "op.alter_partition_policy",
        lambda op: op.alter_partition_policy(table, schema=schema, retention=hint),
    )
    index = texts.name("index") or "An index"
    place.migrate(
        "op.create_partitioned_index",
        lambda op: op.create_partitioned_index(index, table, [key], schema=schema),
    )
    with place.call("adopt's look"), place.engine.connect() as connection:
        adoption.look(connection, f"{schema}.{table}", {})
    _functions(place, texts, f"{schema}.{table}")
    place.migrate("op.drop_partitioned_table", lambda op: op.drop_partitioned_table(table, schema=schema))


def _runs(place: Place, texts: Texts, schema: str, table: str, hint: str) -> None:
    named, start = [texts.text(f"{schema}.{table}")], texts.text("2031-02-01")
    runs: dict[str, Callable[[Any], object]] = {
        "plan": maintenance.plan,
        "ensure": maintenance.ensure,
        "ensure of one": lambda c: maintenance.ensure(c, tables=named),
        "plan of a retention": lambda c: maintenance.plan(c, tables=[f"{schema}.{table}"], retention=hint),
        "status": maintenance.look,
        "health": survey,
        "dry run": maintenance.plan_maintain,
        "maintain": lambda c: maintenance.maintain(c, orders=Orders(trust_clock=True, analyze=False)),
        "plan of a repair": lambda c: maintenance.plan_repair(c, start=start, stop="2031-02-03"),
        "repair": lambda c: maintenance.repair(c, days=1),
        "history": maintenance.past_runs,
    }
    for what, run in runs.items():
        with place.call(what), place.engine.connect() as connection:
            run(connection)


def _insert(place: Place, texts: Texts, schema: str, table: str, key: str, kind: Any) -> None:
    """What an application sends through the hook meets what it would meet without it, or an error of ours."""
    dice = texts.dice
    if not all(map(is_text, (schema, table, key))):
        return  # psycopg2 would cut the application's statement at a zero byte, and send what is left
    values = [
        dice.choice(
            (oddity(dice), datetime.min, datetime.max, date.max, NOW, "infinity", "2026-04-05 24:00+14")
        )
        for _ in range(3)
    ]
    rows = sa.table(table, sa.column(key), schema=schema)
    keeping = create_engine(place.server.url)
    keep(keeping)
    for value in (*values, NOW):
        statement = sa.insert(rows).values({key: sa.bindparam("given", value)})
        with place.call("insert hook"):
            try:
                with keeping.begin() as connection:
                    connection.execute(statement)
            except PartitionError:
                raise
            except (StatementError, ValueError, OverflowError) as error:
                with pytest.raises(type(error)), place.engine.begin() as connection:
                    connection.execute(statement)
    keeping.dispose()


def _functions(place: Place, texts: Texts, table: str) -> None:
    given = texts.text(table)
    for query in (
        "SELECT * FROM list_partitions(:given)",
        "SELECT * FROM create_future_partitions(:given, 1)",
        "SELECT * FROM run_partition_maintenance(:given, true)",
        "SELECT * FROM run_partition_maintenance(:table, false)",
        "SELECT * FROM partition_health_summary()",
    ):
        with place.call("functions for psql"), place.engine.begin() as connection:
            try:
                connection.execute(text(query), {"given": given, "table": table})
            except (ValueError, DBAPIError) as error:  # the driver's own, of a text that is none
                if isinstance(error, DBAPIError) or fits(given[:20]):
                    raise


def _by_command(place: Place, texts: Texts, failures: list[BaseException]) -> None:
    dice = texts.dice
    address = place.server.url.render_as_string(hide_password=False)
    name = texts.text("A place.A table")
    for verb in dice.sample(
        ("plan", "ensure", "maintain", "status", "check", "history", "repair", "adopt", "split"), 3
    ):
        more = {
            "repair": ["--dry-run"],
            "maintain": ["--dry-run"],
            "adopt": ["--dry-run"],
            "split": ["--dry-run"],
        }
        extra = dice.choice(
            ([], ["--json"], ["--schema", texts.text("public")], ["--no-such", texts.text("x")])
        )
        out, err = io.StringIO(), io.StringIO()
        failures.clear()
        with place.call(f"alembic-partitions {verb}", CommandError, OSError):
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                cli.main([verb, "--url", address, "--table", name, *more.get(verb, []), *extra])
            assert ended.value.code in (0, 1, 2, 3), ended.value.code
            assert "Traceback" not in err.getvalue()
            for error in failures:
                raise error
