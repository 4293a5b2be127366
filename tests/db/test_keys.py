"""Tables whose key is an integer that counts since 1970, or a UUIDv7: all goes as it does for a time."""

from __future__ import annotations

import io
import random
import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from alembic_partitions import KeyOutsideLimits, PartitionPending, PartitionPolicy, keys, maintenance
from alembic_partitions.maintenance import Orders, looking
from alembic_partitions.periods import KeyType
from tests import apps
from tests.apps import App, days_from_now, rows_by_partition, running
from tests.clock import Clock
from tests.databases import Database
from tests.db.test_autogenerate import body, diffs, execute, propose
from tests.db.test_status_cli import call
from tests.tables import NOW, columns, declare, instants, operations, partitions, policy, rows, run, scalar
from tests.zones import local, utc

pytestmark = pytest.mark.ends

FAR = 100  # days ahead, far beyond premake
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
AUCKLAND = local("Pacific/Auckland")


@dataclass(frozen=True)
class Kind:
    """A kind of key: its column, the policy's unit, and what rows and bounds hold for an instant."""

    column: Any
    epoch: Any
    key_type: KeyType
    value: Callable[[datetime], Any]
    bound: Callable[[datetime], str]

    def policy(self, **fields: Any) -> PartitionPolicy:
        return policy(epoch=self.epoch, **fields)

    def declare(self, engine: Engine, name: str = "odds", **fields: Any) -> None:
        declare(engine, name, self.policy(**fields), *columns(key_type=self.column))


def counting(column: Any, epoch: str, ticks: int) -> Kind:
    def value(instant: datetime) -> int:
        return (instant - EPOCH) // timedelta(microseconds=1) * ticks // 1_000_000

    key_type: Any = "epoch_s_int4" if isinstance(column, sa.Integer) and ticks == 1 else f"epoch_{epoch}"
    return Kind(column, epoch, key_type, value, lambda instant: str(value(instant)))


def uuid7(instant: datetime) -> uuid.UUID:
    """Make a UUIDv7 as RFC 9562 says."""
    milliseconds = (instant - EPOCH) // timedelta(milliseconds=1)
    bits = milliseconds << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    return uuid.UUID(int=bits)


def least(instant: datetime, rest: str = "0000-0000-000000000000") -> str:
    digits = f"{(instant - EPOCH) // timedelta(milliseconds=1):012x}"
    return f"{digits[:8]}-{digits[8:]}-{rest}"


KINDS = {
    "seconds in an integer": counting(sa.Integer(), "s", 1),
    "milliseconds": counting(sa.BigInteger(), "ms", 1_000),
    "microseconds": counting(sa.BigInteger(), "us", 1_000_000),
    "nanoseconds": counting(sa.BigInteger(), "ns", 1_000_000_000),
    "UUIDv7": Kind(sa.Uuid(), None, "uuidv7", uuid7, least),
}
EACH = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
SOME = {name: KINDS[name] for name in ("seconds in an integer", "milliseconds", "UUIDv7")}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    monkeypatch.setattr(looking, "clock", lambda database_now: NOW)
    return clock


def moments(first: str, last: str, step: timedelta = timedelta(hours=8)) -> list[datetime]:
    found, moment = [], utc(first)
    while moment < utc(last):
        found.append(moment)
        moment += step
    return found


def write(engine: Engine, kind: Kind, instants: list[datetime], name: str = "odds") -> None:
    table = sa.table(name, sa.column("at", kind.column), sa.column("note"))
    with engine.begin() as connection:
        values = [{"at": kind.value(instant), "note": instant.isoformat()} for instant in instants]
        connection.execute(table.insert(), values)


def where_rows_lie(engine: Engine, name: str = "odds") -> dict[datetime, str]:
    found = rows(engine, f"SELECT note, tableoid::regclass::text FROM {name}")
    return {datetime.fromisoformat(note): partition for note, partition in found}


def day_of(instant: datetime) -> str:
    return f"odds_{instant.astimezone(AUCKLAND):%Y_%m_%d}"


def repair(engine: Engine, **kw: Any) -> maintenance.TableResult:
    with engine.connect() as connection:
        (result,) = maintenance.repair(connection, **kw).results
    return result


# -- one table's life ----------------------------------------------------------------------------------


@EACH
def test_rows_lie_in_the_partition_of_their_local_day_until_retention_takes_it(
    engine: Engine, clock: Clock, kind: Kind
) -> None:
    kind.declare(engine, retention="3 days")
    midnights = ["03 11", "04 11", "05 12", "06 12", "07 12"]  # 5 April has 25 hours
    edges = [kind.bound(utc(f"2026-04-{day}:00:00")) for day in midnights]
    assert sorted(instants(engine)) == list(pairwise(edges))
    with operations(engine) as op:
        op.create_partitions("odds", date(2026, 3, 30), date(2026, 4, 4))
    seen = moments("2026-03-29 12:00:00", "2026-04-05 01:00:00")
    # The last instant of a day and the first of the next.
    seen += [utc("2026-04-04 10:59:59"), utc("2026-04-04 11:00:00"), utc("2026-04-05 12:00:00")]
    write(engine, kind, seen)
    assert where_rows_lie(engine) == {moment: day_of(moment) for moment in seen}

    with engine.connect() as connection:
        assert maintenance.ensure(connection).created == 0
        (view,) = maintenance.look(connection, rows=True).tables
    assert not view.plan.steps
    assert not view.plan.findings
    assert view.rows is not None
    ours = {part.name: view.rows[part.oid] for part in view.table.partitions}
    assert (ours[day_of(NOW)].count, ours[day_of(NOW)].newest) == (3, utc("2026-04-04 20:00:00"))
    assert ours["odds_2026_03_30"].oldest == utc("2026-03-29 12:00:00")

    with engine.connect() as connection:
        (kept,) = maintenance.maintain(connection, orders=Orders(analyze=False)).results
        assert kept.error is None
        assert kept.detached == ("odds_2026_03_30", "odds_2026_03_31", "odds_2026_04_01")
        (back,) = maintenance.restore(connection).results
    assert back.error is None
    assert len(back.restored) == 3
    assert where_rows_lie(engine) == {moment: day_of(moment) for moment in seen}


@EACH
@pytest.mark.parametrize("batch", [10_000, 2], ids=["at once", "gathered"])
def test_rows_in_default_move_to_their_windows_and_a_test_row_proves_it(
    engine: Engine, clock: Clock, kind: Kind, batch: int
) -> None:
    kind.declare(engine)
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    seen = moments("2026-03-19 11:00:00", "2026-03-21 11:00:00", timedelta(hours=5, seconds=0.25))
    beyond = [utc("2035-01-01 00:00:00")]
    write(engine, kind, seen + beyond)
    result = repair(engine, batch=batch)
    assert result.error is None
    assert result.moved == len(seen)
    assert result.created == ("odds_2026_03_20", "odds_2026_03_21")
    assert result.proof is not None
    assert "goes to public.odds_2026_04_05" in result.proof
    assert where_rows_lie(engine) == {moment: day_of(moment) for moment in seen} | {beyond[0]: "odds_rest"}
    (left,) = [told for told in result.findings if "odds_rest, 1 from" in told]
    assert kind.bound(beyond[0])[:9] in left


# -- the insert hook -----------------------------------------------------------------------------------


def later(days: float) -> datetime:
    """An instant in whole seconds, which every kind can hold."""
    return days_from_now(FAR + days).replace(microsecond=0)


def model_of(kind: Kind) -> Any:
    """A model whose key is made by Python where none is given."""

    class Base(DeclarativeBase):
        pass

    class Odds(Base):
        __tablename__ = "odds"
        id = mapped_column(sa.BigInteger, sa.Identity(), primary_key=True)
        at = mapped_column(kind.column, primary_key=True, default=lambda: kind.value(later(0)))
        note = mapped_column(sa.Text)

    return Odds


@pytest.fixture(params=SOME)
def kind(request: pytest.FixtureRequest) -> Kind:
    return SOME[request.param]


@pytest.fixture
def app(database: Database, any_driver: str, engine: Engine, kind: Kind) -> Iterator[App]:
    rules = PartitionPolicy("at", timezone="Pacific/Auckland", premake=2, epoch=kind.epoch)
    apps.declare(engine, "odds", rules, key_type=kind.column)
    # It is none of these keys' business.
    run(engine, f"ALTER DATABASE {database.name} SET DateStyle = 'German'")
    with running(database, any_driver) as app:
        yield app


def test_each_way_to_send_a_row_finds_its_partition(app: App, engine: Engine, kind: Kind) -> None:
    model = model_of(kind)
    table = model.__table__

    def send(session: Session) -> None:
        session.add(model())  # the default, evaluated on the way
        session.flush()
        session.add_all([model(at=kind.value(later(day))) for day in (2, 4)])
        session.flush()
        session.execute(sa.insert(model), [{"at": kind.value(later(day))} for day in (6, 8)])
        session.execute(table.insert(), [{"note": "a default, many times"}] * 2)
        many = [{"at": kind.value(later(day)), "note": None} for day in (10, 12)]
        session.connection().execute(table.insert().values(many))

    app.session(send)
    days = [day_of(later(day)) for day in range(0, 14, 2)]
    assert rows_by_partition(engine, "odds") == {days[0]: 3, **dict.fromkeys(days[1:], 1)}


def test_a_key_that_does_not_show_is_answered_with_a_retry(app: App, engine: Engine, kind: Kind) -> None:
    value = kind.value(later(0))
    key = f"CAST('{value}' AS {'uuid' if kind.epoch is None else 'bigint'})"

    def send(session: Session) -> None:
        session.execute(text(f"INSERT INTO odds (at) VALUES ({key})"))

    with pytest.raises(PartitionPending, match=f"{later(0).astimezone(AUCKLAND):%Y_%m_%d}"):
        app.session(send)
    app.session(send)
    assert rows_by_partition(engine, "odds") == {day_of(later(0)): 1}


def test_a_key_that_counts_something_else_is_refused_with_what_to_look_at(app: App, kind: Kind) -> None:
    table = sa.table("odds", sa.column("at", kind.column))
    far: dict[Any, tuple[Any, str]] = {
        "s": (2_100_000_000, "read as s since 1970"),
        "ms": (kind.value(later(0)), "read as ms since 1970"),
        None: (uuid.UUID("6ba7b810-9dad-41d1-80b4-00c04fd430c8"), "perhaps no UUIDv7"),
    }
    value, told = far[kind.epoch]
    value = value * 1_000_000 if kind.epoch == "ms" else value  # nanoseconds
    with pytest.raises(KeyOutsideLimits, match=told) as refusal:
        app.connection(lambda connection: connection.execute(table.insert().values(at=value)))
    assert refusal.value.field == "max_ahead"


def test_a_uuid_as_text_is_seen_whatever_the_driver(
    database: Database, any_driver: str, engine: Engine
) -> None:
    kind, texts = KINDS["UUIDv7"], sa.Uuid(as_uuid=False)
    rules = PartitionPolicy("at", timezone="Pacific/Auckland", premake=2)
    apps.declare(engine, "odds", rules, key_type=texts)
    table = sa.table("odds", sa.column("at", texts))
    values = [str(kind.value(later(0))), str(kind.value(later(2))).upper()]
    with running(database, any_driver) as app:
        app.connection(lambda c: c.execute(table.insert(), [{"at": value} for value in values]))
    assert rows_by_partition(engine, "odds") == {day_of(later(0)): 1, day_of(later(2)): 1}


@pytest.mark.pg(">= 18")
def test_postgresqls_own_uuidv7_finds_the_horizon(database: Database, engine: Engine) -> None:
    rules = PartitionPolicy("at", timezone="Pacific/Auckland", premake=2)
    apps.declare(engine, "odds", rules, key_type=sa.Uuid())
    run(engine, "ALTER TABLE odds ALTER COLUMN at SET DEFAULT uuidv7()")
    with running(database, "psycopg") as app:
        near = text("INSERT INTO odds (note) SELECT 'n' FROM generate_series(1, 9)")
        app.connection(lambda c: c.execute(near))
        far = text(f"INSERT INTO odds (at) VALUES (uuidv7(interval '{FAR} days'))")
        with pytest.raises(PartitionPending):
            app.connection(lambda c: c.execute(far))
    found = rows(engine, "SELECT uuid_extract_timestamp(at), tableoid::regclass::text FROM odds")
    assert found == [(moment, day_of(moment)) for moment, _ in found]
    assert len(found) == 9


# -- migrations ----------------------------------------------------------------------------------------


@pytest.fixture
def _rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


@pytest.mark.usefixtures("_rehearsed")
def test_autogenerate_writes_the_unit_and_finds_no_difference_afterwards(engine: Engine) -> None:
    def models(epoch: Any) -> sa.MetaData:
        metadata = sa.MetaData()
        for name, column, unit in (("ticks", sa.BigInteger(), epoch), ("bets", sa.Uuid(), None)):
            rules = PartitionPolicy("at", premake=2, epoch=unit)
            sa.Table(name, metadata, sa.Column("at", column, primary_key=True, autoincrement=False), rules)
        return metadata

    upgrade, downgrade = propose(engine, models("ms"))
    assert "policy=PartitionPolicy('at', premake=2, epoch='ms')" in upgrade
    execute(engine, upgrade)
    assert diffs(engine, models("ms")) == []
    assert len(partitions(engine, "bets")) == len(partitions(engine, "ticks")) == 4
    changed, _ = propose(engine, models("us"))
    assert "# op.alter_partition_policy('ticks', epoch='us', existing_epoch='ms')" in changed
    assert "epoch 'ms' -> 'us'" in body(changed)
    execute(engine, downgrade)
    assert partitions(engine, "bets") == partitions(engine, "ticks") == []


@pytest.mark.usefixtures("_rehearsed")
def test_a_printed_script_makes_what_the_migration_makes(engine: Engine) -> None:
    wanted = {"ticks": KINDS["nanoseconds"], "bets": KINDS["UUIDv7"]}

    def migrate(op: Any, suffix: str) -> None:
        for name, kind in wanted.items():
            rules = kind.policy()
            op.create_partitioned_table(name + suffix, *columns(key_type=kind.column), policy=rules)
            existing = {} if kind.epoch else {"existing_key_type": kind.key_type}
            day = date(2026, 3, 1), date(2026, 3, 2)
            op.create_partitions(name + suffix, *day, existing_policy=rules, **existing)

    with operations(engine) as op:
        migrate(op, "")
    script = io.StringIO()
    options = {"as_sql": True, "output_buffer": script, "literal_binds": True}
    migrate(Operations(MigrationContext.configure(dialect_name="postgresql", opts=options)), "_printed")
    raw = engine.raw_connection()
    raw.cursor().execute(script.getvalue())
    raw.commit()
    raw.close()
    for name in wanted:
        assert sorted(instants(engine, name)) == sorted(instants(engine, f"{name}_printed"))
        assert len(instants(engine, name)) == 5


@pytest.mark.usefixtures("_rehearsed")
def test_an_operator_sees_and_repairs_such_tables_by_dates(engine: Engine, database: Database) -> None:
    for name, kind in (("bets", KINDS["UUIDv7"]), ("ticks", KINDS["microseconds"])):
        kind.declare(engine, name)
    assert call("check", database.url).code == 0
    done = call("repair", database.url, "--from", "2026-03-28", "--to", "2026-03-29")
    assert done.code == 0
    told = call("status", database.url, "--partitions", "--rows", "--json")
    for table in told.json["tables"] if isinstance(told.json, dict) else told.json:
        first = table["partitions"][0]
        assert first["from"] == "2026-03-27T11:00:00+00:00"
        assert table["covered_until"] == "2026-04-07T12:00:00+00:00"
    told = call("plan", database.url)
    assert told.code == 0


def test_an_integer_ends_in_2038_and_this_is_said_before_anything_fails(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS["seconds in an integer"]
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", "2038-01-17T13:37:11+00:00")
    kind.declare(engine, timezone="UTC")
    with engine.connect() as connection:
        (planned,) = maintenance.plan(connection)
    assert not planned.plan.steps
    (finding,) = planned.plan.findings
    assert "2038-01-19 03:14:07" in str(finding)
    assert partitions(engine)[-1] == "odds_2038_01_18"


# -- partition_config of an earlier version ------------------------------------------------------------


def test_a_partition_config_without_the_column_works_and_the_next_declaration_adds_it(
    engine: Engine, clock: Clock
) -> None:
    declare(engine)
    run(engine, "ALTER TABLE partition_config DROP COLUMN epoch")
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection).results
    assert result.error is None
    KINDS["milliseconds"].declare(engine, "ticks")
    assert rows(engine, "SELECT table_name, epoch FROM partition_config ORDER BY 1") == [
        ("odds", None),
        ("ticks", "ms"),
    ]
    with pytest.raises(sa.exc.DBAPIError, match="partition_config_epoch_check"):
        run(engine, "UPDATE partition_config SET epoch = 'minutes'")
    with engine.connect() as reader:
        # Where it is there, nobody who reads is waited for.
        reader.execute(text("SELECT FROM partition_config"))
        with operations(engine) as op:
            op.get_bind().execute(text("SET LOCAL lock_timeout = '1ms'"))
            op.create_partitioned_table("bets", *columns(key_type=sa.Uuid()), policy=policy())
    assert len(partitions(engine, "bets")) == 4


# -- bounds that others have made ----------------------------------------------------------------------

HANDMADE = {
    "pg_partman's": "0000-0000-000000000000",
    "with the version": "7000-0000-000000000000",
    "with version and variant": "7000-8000-000000000000",
}


@pytest.mark.parametrize("rest", HANDMADE.values(), ids=HANDMADE.keys())
def test_bounds_of_uuids_are_continued_whatever_stands_after_the_milliseconds(
    engine: Engine, clock: Clock, rest: str
) -> None:
    first, today, tomorrow, last = (
        utc(f"2026-04-{day}:00:00") for day in ("03 11", "04 11", "05 12", "06 12")
    )
    run(engine, "CREATE TABLE odds (id bigint NOT NULL, at uuid NOT NULL, note text) PARTITION BY RANGE (at)")
    bounds = (
        f"PARTITION OF odds FOR VALUES FROM ('{least(lower, rest)}') TO ('{least(upper, rest)}')"
        for lower, upper in ((first, today), (tomorrow, last))
    )
    run(engine, *(f"CREATE TABLE theirs_{number} {told}" for number, told in enumerate(bounds)))
    items = sa.Column("id", sa.BigInteger, nullable=False), sa.Column("at", sa.Uuid(), nullable=False)
    declare(engine, "odds", policy(), *items, if_not_exists=True)
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection).results
        (planned,) = maintenance.plan(connection)
    assert result.error is None
    assert not planned.plan.steps
    assert not planned.plan.findings
    assert partitions(engine) == ["odds_2026_04_05", "odds_2026_04_07", "theirs_0", "theirs_1"]
    # The least and the greatest UUIDv7 on either side of each bound.
    edges = (first, today, tomorrow, last)
    seen = [least(edge, "7000-8000-000000000000") for edge in edges]
    seen += [least(edge - timedelta(milliseconds=1), "7fff-bfff-ffffffffffff") for edge in edges[1:]]
    run(engine, *(f"INSERT INTO odds (id, at) VALUES (1, '{value}')" for value in seen))


def test_a_bound_that_no_instant_has_is_planned_around(engine: Engine, clock: Clock) -> None:
    odd = utc("2026-04-05 01:00:00")
    declare(engine, "odds", policy(premake=0, lookback=0), *columns(key_type=sa.Uuid()))
    run(
        engine,
        "DROP TABLE odds_2026_04_05",
        f"CREATE TABLE theirs PARTITION OF odds FOR VALUES FROM ('{least(utc('2026-04-04 11:00:00'))}')"
        f" TO ('{least(odd, '1234-5678-9abcdef01234')}')",
    )
    with engine.connect() as connection:
        (result,) = maintenance.ensure(connection).results
    assert result.error is None
    assert result.created == ("odds_2026_04_05_010000_001000z",)


# -- PostgreSQL as the oracle --------------------------------------------------------------------------


def test_instants_are_written_as_postgresql_counts_them(engine: Engine) -> None:
    chance = random.Random(20260405)
    seen = [EPOCH + timedelta(seconds=chance.randint(-2_000_000_000, 4_000_000_000)) for _ in range(200)]
    seen += [instant.replace(microsecond=chance.randint(0, 999_999)) for instant in seen]
    for key_type, ticks in keys.TICKS.items():
        counted = f"floor(extract(epoch FROM t) * {ticks})::bigint"
        if key_type.startswith("uuid"):
            shown = [instant for instant in seen if instant >= EPOCH]
            expression = f"(lpad(to_hex({counted}), 12, '0') || '{'0' * 20}')::uuid::text"
        else:
            shown, expression = seen, f"({counted})::text"
        found = scalar(
            engine,
            f"SELECT array_agg({expression} ORDER BY n) FROM unnest(CAST(:seen AS timestamptz[]))"
            " WITH ORDINALITY u (t, n)",
            seen=shown,
        )
        assert [keys.bound_text(instant, key_type, upper=True) for instant in shown] == found


@pytest.mark.pg(">= 18")
def test_uuids_are_read_as_postgresql_reads_them(engine: Engine) -> None:
    found = rows(
        engine,
        "SELECT u, uuid_extract_timestamp(u) FROM (SELECT uuidv7(make_interval(days => n)) AS u"
        " FROM generate_series(-15000, 15000, 37) n) made",
    )
    assert [keys.row_value(made, "uuidv7") for made, _ in found] == [read for _, read in found]
