"""The policy: what it refuses and how it says so, as data, and on a table."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from datetime import time
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeEngine

from alembic_partitions import PartitionError, PartitionPolicy, PolicyError, nz_racing_day
from alembic_partitions.periods import INTERVALS, WEEKDAYS, KeyType
from alembic_partitions.policy import INFO_KEY, policy_of
from tests.zones import ZONES

# -- fields that are wrong -----------------------------------------------------------------------------

PERIODS = ["90", 90, "", "0 days", "three months", "90 days ", "1 fortnight", ["90 days"], "-1 days", True]

BAD: dict[str, list[object]] = {
    "key": ["", None, 7, "k" * 64, "ā" * 32, "a\0b", "\ud800"],
    "interval": ["minute", "days", "DAY", None, 1, [], ""],
    "every": [0, -1, 1001, 1.0, "2", True, None],
    "timezone": ["Auckland", "pacific/auckland", "", None, 12, [], "NZDT", "+13:00"],
    "day_start": ["24:00", "6:00", "06:00:00", "06:60", "", None, 6, time(6), "06:00\n"],
    "week_start": ["Monday", "mon", 0, None, ""],
    "premake": [-1, 10_001, 1.5, "30", True],
    "lookback": [-1, 10_001, None, "1", False],
    "retention": PERIODS,
    "on_expiry": ["delete", "DROP", None, ""],
    "grace": [*PERIODS, None],
    "max_ahead": [*PERIODS, None],
    "max_behind": PERIODS,
    "max_create": [0, 10_001, None, "400", True],
    "max_drops": [0, -1, None, 1.0],
    "column_timezone": ["Auckland", "", 12, []],
    "epoch": ["", "m", "seconds", 1, []],
    "archive_schema": ["", 7, "s" * 64],
    "tablespace": ["", 7, "s" * 64],
    "storage_parameters": ["fillfactor=70", ["a"], {"fill factor": 70}, {1: 2}, {"a": None}, {"A": 1}],
    "enabled": [None, 1, "yes"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values], ids=ascii
)
def test_a_wrong_field_is_refused_by_name_with_a_remedy(field: str, value: object) -> None:
    fields: dict[str, Any] = {"key": "event_timestamp", field: value}
    with pytest.raises(PolicyError) as refusal:
        PartitionPolicy(**fields)
    assert refusal.value.field == field
    assert refusal.value.remedy.startswith("Give ")
    assert f"field {field!r}" in str(refusal.value)
    assert refusal.value.remedy in str(refusal.value)
    assert isinstance(refusal.value, (PartitionError, ValueError))


def test_every_field_has_a_wrong_value_here() -> None:
    assert list(BAD) == [field.name for field in dataclasses.fields(PartitionPolicy)]


@pytest.mark.parametrize("every", [5, 7, 9, 10, 11, 13, 25, 48])
def test_hours_that_do_not_divide_a_day_are_refused(every: int) -> None:
    with pytest.raises(PolicyError, match=r"'every': .*divides 24") as refusal:
        PartitionPolicy("k", interval="hour", every=every)
    assert refusal.value.field == "every"
    assert PartitionPolicy("k", interval="day", every=every).every == every


def test_the_error_of_a_refusal_travels_between_processes() -> None:
    with pytest.raises(PolicyError) as refusal:
        PartitionPolicy("k", timezone="Auckland")
    again = pickle.loads(pickle.dumps(refusal.value))
    assert (str(again), again.field) == (str(refusal.value), "timezone")
    assert "'Auckland' is not an IANA time zone" in str(again)


def test_an_unknown_field_is_refused_and_the_known_ones_are_listed() -> None:
    message = r"'retain': there is no such field. Fields are archive_schema, .*timezone"
    with pytest.raises(PolicyError, match=message):
        PartitionPolicy.from_dict({"key": "k", "retain": "90 days"})
    with pytest.raises(PolicyError, match=message):
        PartitionPolicy("k").changed(retain="90 days")


def test_a_dict_without_a_key_is_refused() -> None:
    with pytest.raises(PolicyError, match="'key': it is missing"):
        PartitionPolicy.from_dict({"interval": "day"})


def test_fields_but_the_key_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        PartitionPolicy("k", "day")  # type: ignore[call-arg]


# -- defaults ------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert PartitionPolicy("event_timestamp").to_dict() == {
        "key": "event_timestamp",
        "interval": "day",
        "every": 1,
        "timezone": "UTC",
        "day_start": "00:00",
        "week_start": "monday",
        "premake": 30,
        "lookback": 1,
        "retention": None,
        "on_expiry": "detach",
        "grace": "7 days",
        "max_ahead": "366 days",
        "max_behind": None,
        "max_create": 400,
        "max_drops": 10,
        "column_timezone": None,
        "epoch": None,
        "archive_schema": None,
        "tablespace": None,
        "storage_parameters": {},
        "enabled": True,
    }


@pytest.mark.parametrize(
    ("interval", "premake"),
    [("hour", 48), ("day", 30), ("week", 8), ("month", 6), ("quarter", 4), ("year", 2)],
)
def test_premake_follows_the_interval(interval: Any, premake: int) -> None:
    assert PartitionPolicy("k", interval=interval).premake == premake
    assert PartitionPolicy("k", interval=interval, premake=0).premake == 0


def test_nz_racing_day_is_the_day_of_auckland() -> None:
    racing = nz_racing_day("event_timestamp", premake=30, retention="90 days")
    assert racing == PartitionPolicy(
        "event_timestamp", timezone="Pacific/Auckland", premake=30, retention="90 days"
    )


@pytest.mark.parametrize(
    "fields", [{"timezone": "UTC"}, {"interval": "day"}, {"every": 1}, {"day_start": "06:00"}], ids=str
)
def test_nz_racing_day_decides_the_day_itself(fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"nz_racing_day\(\) decides it. Use PartitionPolicy") as refusal:
        nz_racing_day("event_timestamp", **fields)
    assert [refusal.value.field] == list(fields)


def test_nz_racing_day_refuses_what_no_policy_knows() -> None:
    with pytest.raises(PolicyError, match="there is no such field"):
        nz_racing_day("event_timestamp", retain="90 days")


# -- as a value ----------------------------------------------------------------------------------------

UNITS = st.sampled_from([*INTERVALS, *(f"{interval}s" for interval in INTERVALS)])
PERIOD = st.builds("{} {}".format, st.integers(1, 999_999), UNITS)
NAME = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15)


@st.composite
def policies(draw: st.DrawFn) -> PartitionPolicy:
    interval = draw(st.sampled_from(INTERVALS))
    every = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]) if interval == "hour" else st.integers(1, 1000)
    optional: dict[str, st.SearchStrategy[Any]] = {
        "every": every,
        "timezone": st.sampled_from(ZONES),
        "day_start": st.times().map("{:%H:%M}".format),
        "week_start": st.sampled_from(WEEKDAYS),
        "premake": st.none() | st.integers(0, 10_000),
        "lookback": st.integers(0, 10_000),
        "retention": st.none() | PERIOD,
        "on_expiry": st.sampled_from(["detach", "drop", "archive"]),
        "grace": PERIOD,
        "max_ahead": PERIOD,
        "max_behind": st.none() | PERIOD,
        "max_create": st.integers(1, 10_000),
        "max_drops": st.integers(1, 10_000),
        "column_timezone": st.none() | st.sampled_from(ZONES),
        "epoch": st.sampled_from([None, "s", "ms", "us", "ns"]),
        "archive_schema": st.none() | NAME,
        "tablespace": st.none() | NAME,
        "storage_parameters": st.dictionaries(
            st.from_regex(r"[a-z_][a-z0-9_]{0,9}(\.[a-z_][a-z0-9_]{0,9})?", fullmatch=True),
            st.text(max_size=5) | st.integers() | st.booleans(),
            max_size=3,
        ),
        "enabled": st.booleans(),
    }
    fields = draw(st.fixed_dictionaries({}, optional=optional))
    return PartitionPolicy(draw(NAME), interval=interval, **fields)


@given(policies())
def test_a_policy_survives_a_dict_json_pickle_copy_and_its_own_repr(policy: PartitionPolicy) -> None:
    assert PartitionPolicy.from_dict(policy.to_dict()) == policy
    assert PartitionPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert copy.deepcopy(policy) == policy
    assert eval(repr(policy)) == policy
    assert hash(PartitionPolicy.from_dict(policy.to_dict())) == hash(policy)


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(PartitionPolicy("k")) == "PartitionPolicy('k')"
    assert repr(PartitionPolicy("k", interval="hour", premake=48)) == "PartitionPolicy('k', interval='hour')"
    assert (
        repr(nz_racing_day("event_timestamp", premake=7, retention="90 days"))
        == "PartitionPolicy('event_timestamp', timezone='Pacific/Auckland', premake=7, retention='90 days')"
    )


def test_a_policy_is_frozen() -> None:
    policy = PartitionPolicy("k", storage_parameters={"fillfactor": "70"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.premake = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.storage_parameters["fillfactor"] = "100"  # type: ignore[index]
    with pytest.raises(TypeError):
        policy.to_dict()["storage_parameters"].update(1)
    assert policy.to_dict()["storage_parameters"] is not policy.storage_parameters


def test_equal_policies_are_one_in_a_set() -> None:
    one, same, other = PartitionPolicy("k"), PartitionPolicy("k", premake=30), nz_racing_day("k")
    assert len({one, same, other}) == 2


def test_what_was_given_does_not_change_a_policy_later() -> None:
    given_parameters = {"fillfactor": "70"}
    policy = PartitionPolicy("k", storage_parameters=given_parameters)
    given_parameters["fillfactor"] = "100"
    assert policy.storage_parameters == {"fillfactor": "70"}


@pytest.mark.parametrize(
    ("value", "text"), [(70, "70"), ("70", "70"), (0.5, "0.5"), (True, "true"), (False, "false")]
)
def test_storage_parameters_are_kept_as_text(value: Any, text: str) -> None:
    policy = PartitionPolicy("k", storage_parameters={"toast.autovacuum_enabled": value})
    assert policy.storage_parameters == {"toast.autovacuum_enabled": text}


def test_changed_gives_another_policy_checked_anew() -> None:
    policy = nz_racing_day("k")
    assert policy.changed(retention="90 days") == nz_racing_day("k", retention="90 days")
    assert policy == nz_racing_day("k")
    with pytest.raises(PolicyError, match="'retention'"):
        policy.changed(retention="some days")


# -- as windows ----------------------------------------------------------------------------------------


def test_the_grid_has_the_policys_fields() -> None:
    policy = PartitionPolicy("k", interval="week", every=2, day_start="06:30", week_start="sunday")
    grid = policy.grid("timestamptz")
    assert (grid.interval, grid.every, grid.timezone, grid.day_start, grid.week_start) == (
        *("week", 2, "UTC"),
        *(time(6, 30), 6),
    )
    assert (grid.key_type, grid.column_timezone) == ("timestamptz", "UTC")
    assert nz_racing_day("k").grid("timestamp").column_timezone == "Pacific/Auckland"
    assert nz_racing_day("k", column_timezone="UTC").grid("timestamp").column_timezone == "UTC"


def test_hours_cannot_divide_dates() -> None:
    with pytest.raises(PolicyError, match="'interval': hours cannot divide the date column 'race_date_nz'"):
        PartitionPolicy("race_date_nz", interval="hour").grid("date")


def test_hours_over_naive_values_need_a_zone_without_clock_changes() -> None:
    auckland = PartitionPolicy("k", interval="hour", timezone="Pacific/Auckland")
    with pytest.raises(PolicyError, match="cannot tell the repeated hour of Pacific/Auckland") as refusal:
        auckland.grid("timestamp")
    assert refusal.value.field == "column_timezone"
    assert auckland.changed(column_timezone="UTC").grid("timestamp").column_timezone == "UTC"
    assert auckland.grid("timestamptz").interval == "hour"


# -- on a table ----------------------------------------------------------------------------------------


def table(*items: Any, name: str = "odds_history", **options: Any) -> sa.Table:
    return sa.Table(name, sa.MetaData(), *items, **options)


def key(name: str = "event_timestamp", kind: Any = None, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind or sa.DateTime(timezone=True), **{"nullable": False, **options})


def create_text(of: sa.Table, dialect: sa.Dialect | None = None) -> str:
    return str(CreateTable(of).compile(dialect=dialect or postgresql.dialect()))  # type: ignore[no-untyped-call]


def partition_clause(text: str) -> str:
    return text[text.index("PARTITION BY") :].strip()


def test_on_a_table() -> None:
    policy = nz_racing_day("event_timestamp")
    odds = table(sa.Column("id", sa.BigInteger), key(), policy)
    assert policy_of(odds) is policy
    assert odds.info[INFO_KEY] is policy
    assert partition_clause(create_text(odds)) == "PARTITION BY RANGE (event_timestamp)"


def test_before_the_columns_is_as_good() -> None:
    odds = table(nz_racing_day("event_timestamp"), key())
    assert policy_of(odds) == nz_racing_day("event_timestamp")


def test_a_table_without_a_policy() -> None:
    assert policy_of(table(key())) is None
    assert policy_of(table(key(), info={INFO_KEY: "something else"})) is None
    assert "PARTITION BY" not in create_text(table(key()))


def test_on_a_declarative_model() -> None:
    class Base(DeclarativeBase):
        pass

    class OddsHistory(Base):
        __tablename__ = "odds_history"
        __table_args__ = (nz_racing_day("event_timestamp"), {"schema": "racing"})
        id: Mapped[int] = mapped_column(primary_key=True)
        event_timestamp: Mapped[Any] = mapped_column(sa.DateTime(timezone=True), primary_key=True)

    assert policy_of(Base.metadata.tables["racing.odds_history"]) == nz_racing_day("event_timestamp")
    assert OddsHistory.__table__.fullname in "racing.odds_history"  # type: ignore[attr-defined]


def test_on_a_mixin_that_many_models_share() -> None:
    class Base(DeclarativeBase):
        pass

    by_racing_day = nz_racing_day("event_timestamp")

    class History:
        __table_args__ = (by_racing_day,)
        id: Mapped[int] = mapped_column(primary_key=True)
        event_timestamp: Mapped[Any] = mapped_column(sa.DateTime(timezone=True), primary_key=True)

    class Odds(History, Base):
        __tablename__ = "odds"

    class MoneyFlow(History, Base):
        __tablename__ = "moneyflow"

    assert {name: policy_of(found) for name, found in Base.metadata.tables.items()} == {
        "odds": by_racing_day,
        "moneyflow": by_racing_day,
    }


def test_to_metadata_takes_the_policy_along() -> None:
    odds = table(key(), nz_racing_day("event_timestamp"))
    other = odds.to_metadata(sa.MetaData(), schema="racing")
    assert policy_of(other) == nz_racing_day("event_timestamp")
    assert create_text(other).replace("racing.", "") == create_text(odds)
    assert policy_of(other.to_metadata(sa.MetaData())) == policy_of(odds)


def test_metadata_with_a_policy_can_be_pickled_and_so_can_the_policy() -> None:
    odds = table(key(), nz_racing_day("event_timestamp"))
    again = pickle.loads(pickle.dumps(odds.metadata)).tables["odds_history"]
    policy = policy_of(odds)
    assert policy_of(again) == policy == pickle.loads(pickle.dumps(policy))
    assert create_text(again) == create_text(odds)
    assert copy.deepcopy(policy) == policy


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("event_timestamp", "RANGE (event_timestamp)"),
        ("eventTime", 'RANGE ("eventTime")'),
        ("event time", 'RANGE ("event time")'),
        ("order", 'RANGE ("order")'),
        ('a"b', 'RANGE ("a""b")'),
        ("zeitpunkt_ä", 'RANGE ("zeitpunkt_ä")'),
        ("k); DROP TABLE x; --", 'RANGE ("k); DROP TABLE x; --")'),
    ],
)
def test_the_key_is_quoted_where_it_must_be(name: str, clause: str) -> None:
    policy = PartitionPolicy(name)
    assert policy.partition_by == clause
    assert partition_clause(create_text(table(key(name), policy))) == f"PARTITION BY {clause}"


@pytest.mark.parametrize("dialect", [psycopg.dialect, asyncpg.dialect])
def test_a_percent_sign_in_the_key_is_written_as_each_driver_wants_it(dialect: Any) -> None:
    text = create_text(table(key("odds%")), dialect())
    column = next(line.split()[0] for line in text.splitlines() if "TIMESTAMP" in line)
    clause = PartitionPolicy("odds%").partition_by_for(dialect().identifier_preparer)
    assert clause == f"RANGE ({column})"


def test_two_policies_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"'odds_history' is partitioned already, by PartitionPolicy\("):
        table(key("k"), PartitionPolicy("k"), PartitionPolicy("k", interval="month"))


def test_another_postgresql_partition_by_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"partitioned already, by postgresql_partition_by='LIST \(k\)'"):
        table(key("k"), PartitionPolicy("k"), postgresql_partition_by="LIST (k)")


def test_the_same_postgresql_partition_by_is_fine() -> None:
    odds = table(key("k"), PartitionPolicy("k"), postgresql_partition_by="RANGE (k)")
    assert create_text(odds).count("PARTITION BY") == 1


def test_on_a_column_it_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"a policy belongs to a table\. Put it into __table_args__"):
        sa.Column("k", sa.DateTime, PartitionPolicy("k"))


# -- check_table ---------------------------------------------------------------------------------------


class Epoch(sa.types.TypeDecorator[Any]):
    impl = sa.DateTime(timezone=True)
    cache_ok = True


class ByDialect(sa.types.TypeDecorator[Any]):
    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.Date() if dialect.name == "postgresql" else sa.String())


class HandMade(sa.types.UserDefinedType[Any]):
    cache_ok = True

    def __init__(self, spelling: str) -> None:
        self.spelling = spelling

    def get_col_spec(self, **kw: Any) -> str:
        return self.spelling


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (sa.DateTime(timezone=True), "timestamptz"),
        (sa.TIMESTAMP(timezone=True), "timestamptz"),
        (postgresql.TIMESTAMP(timezone=True, precision=3), "timestamptz"),
        (sa.DateTime(), "timestamp"),
        (sa.TIMESTAMP(), "timestamp"),
        (postgresql.TIMESTAMP(precision=0), "timestamp"),
        (sa.Date(), "date"),
        (sa.String().with_variant(sa.DateTime(timezone=True), "postgresql"), "timestamptz"),
        (Epoch(), "timestamptz"),
        (ByDialect(), "date"),
        (HandMade("TIMESTAMPTZ"), "timestamptz"),
        (HandMade("timestamp with time zone"), "timestamptz"),
    ],
    ids=repr,
)
def test_the_type_of_the_key(kind: Any, expected: KeyType) -> None:
    policy = PartitionPolicy("k")
    assert policy.check_table(table(key("k", kind), policy)) == expected


def test_a_key_with_another_name_in_the_model() -> None:
    class Base(DeclarativeBase):
        pass

    class Odds(Base):
        __tablename__ = "odds"
        __table_args__ = (PartitionPolicy("event_timestamp"),)
        at: Mapped[Any] = mapped_column("event_timestamp", sa.DateTime(timezone=True), primary_key=True)

    assert PartitionPolicy("event_timestamp").check_table(Base.metadata.tables["odds"]) == "timestamptz"
    assert Odds.at.key == "at"


def test_a_table_that_is_right_passes() -> None:
    odds = table(
        sa.Column("id", sa.BigInteger, sa.Identity()),
        key(),
        sa.Column("entrant_id", sa.Integer),
        sa.PrimaryKeyConstraint("id", "event_timestamp"),
        sa.UniqueConstraint("entrant_id", "event_timestamp"),
        sa.Index("by_entrant", "entrant_id", sa.text("event_timestamp DESC")),
        sa.Index("one_each", "entrant_id", "event_timestamp", unique=True),
        sa.CheckConstraint("entrant_id > 0"),
        nz_racing_day("event_timestamp"),
    )
    assert nz_racing_day("event_timestamp").check_table(odds) == "timestamptz"


ENTRANT = "entrant_id"

REFUSALS: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "no such column": (
        (key("created_at"),),
        "table 'racing.odds' has no column 'k'",
        "Its columns are created_at.",
    ),
    "a text key": (
        (key("k", sa.String()),),
        "column 'k' of 'racing.odds' is of type varchar",
        "timestamptz",
    ),
    "a time of day": (
        (key("k", sa.Time(timezone=True)),),
        "is of type time with time zone",
        "timestamptz, timestamp or date",
    ),
    "an integer key": (
        (key("k", sa.BigInteger()),),
        "of type bigint, and nothing says what it counts",
        'epoch="s", "ms", "us" or "ns"',
    ),
    "a key of two bytes": ((key("k", sa.SmallInteger()),), "is of type smallint", "a bigint or integer"),
    "a numeric key": ((key("k", sa.Numeric()),), "is of type numeric", "a bigint or integer"),
    "a UUID as text": ((key("k", sa.Uuid(native_uuid=False)),), "is of type char(32)", "a UUIDv7"),
    "a range of dates": ((key("k", postgresql.DATERANGE()),), "is of type daterange", "date column"),
    "a key without a type": ((key("k", sa.types.NullType()),), "is of type NullType()", "date column"),
    "a nullable key": (
        (key("k", nullable=True),),
        "is nullable, and a row without it fits no window",
        "nullable=False",
    ),
    "a primary key without it": (
        (sa.Column("id", sa.Integer, primary_key=True), key("k")),
        "the primary key of 'racing.odds' lacks the partition key 'k'",
        "add the key to it",
    ),
    "a unique constraint without it": (
        (key("k"), sa.Column(ENTRANT, sa.Integer), sa.UniqueConstraint(ENTRANT)),
        "the unique constraint of 'racing.odds' lacks the partition key 'k'",
        "add the key to it",
    ),
    "a unique column": (
        (key("k"), sa.Column(ENTRANT, sa.Integer, unique=True)),
        "the unique constraint of 'racing.odds' lacks",
        "add the key to it",
    ),
    "a unique index without it": (
        (key("k"), sa.Column(ENTRANT, sa.Integer), sa.Index("once", ENTRANT, unique=True)),
        "the unique index 'once' of 'racing.odds' lacks the partition key 'k'",
        "add the key to it",
    ),
    "a unique, indexed column": (
        (key("k"), sa.Column(ENTRANT, sa.Integer, unique=True, index=True)),
        "the unique index 'ix_racing_odds_entrant_id' of 'racing.odds' lacks",
        "add the key to it",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_table_that_cannot_be_partitioned_so_is_refused(case: str) -> None:
    items, problem, remedy = REFUSALS[case]
    policy = PartitionPolicy("k")
    odds = table(*items, policy, name="odds", schema="racing")
    with pytest.raises(PolicyError) as refusal:
        policy.check_table(odds)
    assert refusal.value.field == ("epoch" if case == "an integer key" else "key")
    assert problem in str(refusal.value)
    assert remedy in refusal.value.remedy


@pytest.mark.parametrize("name", ["t" * 64, "ā" * 32])
def test_a_table_name_that_postgresql_would_cut_is_refused(name: str) -> None:
    policy = PartitionPolicy("k")
    with pytest.raises(PolicyError, match=r"is longer than the 63 bytes PostgreSQL keeps\. Shorten it"):
        policy.check_table(table(key("k"), policy, name=name))
    assert policy.check_table(table(key("k"), name="t" * 63)) == "timestamptz"


@pytest.mark.parametrize(
    ("kind", "epoch", "key_type"),
    [
        (sa.BigInteger(), "s", "epoch_s"),
        (sa.BigInteger(), "ns", "epoch_ns"),
        (sa.Integer(), "s", "epoch_s_int4"),
        (sa.Uuid(), None, "uuidv7"),
        (sa.Uuid(as_uuid=False), None, "uuidv7"),
        (sa.String().with_variant(postgresql.UUID(), "postgresql"), None, "uuidv7"),
    ],
    ids=repr,
)
def test_what_a_key_holds_is_told_by_its_column_and_its_unit(kind: Any, epoch: Any, key_type: str) -> None:
    policy = PartitionPolicy("k", epoch=epoch)
    assert policy.check_table(table(key("k", kind), policy)) == key_type


@pytest.mark.parametrize(
    ("kind", "epoch", "problem"),
    [
        (sa.Integer(), "ms", "an integer of four bytes, too short for ms"),
        (sa.Uuid(), "ms", "is no integer, so it counts nothing"),
        (sa.DateTime(timezone=True), "s", "is no integer, so it counts nothing"),
    ],
    ids=repr,
)
def test_a_unit_that_does_not_fit_its_column_is_refused(kind: Any, epoch: Any, problem: str) -> None:
    policy = PartitionPolicy("k", epoch=epoch)
    with pytest.raises(PolicyError, match=problem) as refusal:
        policy.check_table(table(key("k", kind), policy))
    assert refusal.value.field == "epoch"


def test_check_table_knows_what_the_type_of_the_key_forbids() -> None:
    hours = PartitionPolicy("k", interval="hour", timezone="Pacific/Auckland")
    for kind, field in ((sa.Date(), "interval"), (sa.DateTime(), "column_timezone")):
        with pytest.raises(PolicyError) as refusal:
            hours.check_table(table(key("k", kind), hours))
        assert refusal.value.field == field
