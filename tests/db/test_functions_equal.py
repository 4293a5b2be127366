"""What the SQL functions answer and do is what the package does: over zones, keys, intervals and days."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, NullPool, create_engine, text

from alembic_partitions import catalog, keys, maintenance
from alembic_partitions.errors import WindowRangeError
from alembic_partitions.health import TableHealth
from alembic_partitions.maintenance import retaining
from alembic_partitions.naming import partition_name
from alembic_partitions.periods import Grid, Interval, KeyType, KeyValue
from alembic_partitions.plan import DetachPartition
from alembic_partitions.standing import survey
from tests.databases import Database
from tests.db.test_periods_oracle import KNOWN_UNTIL, known_zones
from tests.tables import columns, declare, operations, policy, run
from tests.zones import HOUR, ZONES, grid, transitions, utc

pytestmark = pytest.mark.ends

# Each with nights on which its clocks change; the server's files may not know what is decided lately.
NIGHTS = {
    "Pacific/Auckland": [
        "2026-04-04 14:30",
        "2026-09-26 13:37:11",
        "2027-04-03 13:59:59",
        "2027-09-25 14:00",
    ],
    "America/St_Johns": ["2010-11-07 02:30", "2010-11-07 03:01", "2010-03-14 03:31", "2026-11-01 04:30"],
    "Europe/Berlin": ["2026-03-29 00:59:59", "2026-10-25 00:30", "2026-10-25 01:30", "2025-12-31 23:00"],
    "Asia/Kathmandu": ["2026-04-05 01:37:11", "2024-02-28 18:15"],
    "Pacific/Apia": ["2011-12-29 20:00", "2011-12-30 10:00", "2012-01-01 09:59:59"],
    "America/Havana": ["2013-11-03 04:30", "2013-11-03 05:30", "2013-03-10 05:00", "2024-11-03 04:59:59"],
    "UTC": ["2026-04-05 01:37:11", "2028-02-29 23:59:59"],
}
INTERVALS: list[tuple[Interval, int]] = [
    *(("hour", 1), ("hour", 6), ("day", 1), ("day", 3), ("week", 1), ("week", 2)),
    *(("month", 1), ("month", 5), ("quarter", 1), ("year", 1)),
]
KEYS: list[KeyType] = ["timestamptz", "timestamp", "date", "epoch_s", "epoch_ns", "uuidv7"]

WINDOWS = text("""
SELECT w.lower, w.upper, w.suffix
FROM unnest(CAST(:tables AS text[]), CAST(:days AS timestamptz[])) WITH ORDINALITY x (t, day, n),
     LATERAL _partition_window(t::jsonb, _partition_key_at(t::jsonb, day AT TIME ZONE 'UTC')) w
ORDER BY n
""")


@pytest.fixture(scope="module")
def engine(module_database: Database) -> Iterator[Engine]:
    engine = create_engine(module_database.url, poolclass=NullPool)
    with operations(engine) as op:
        op.create_partition_functions()
    yield engine
    engine.dispose()


# -- windows ---------------------------------------------------------------------------------------------


def grids(zone: str, chance: random.Random) -> Iterator[Grid]:
    for key_type in KEYS:
        for interval, every in INTERVALS:
            naive = chance.choice([None, "UTC"]) if key_type == "timestamp" else None
            if interval == "hour" and (key_type == "date" or (key_type == "timestamp" and naive is None)):
                continue
            yield grid(
                interval,
                zone,
                every=every,
                day_start=chance.choice(["00:00", "06:30"]),
                week_start=chance.randrange(7),
                key_type=key_type,
                column_timezone=naive,
            )


def told(windows: Grid) -> str:
    """A table as the functions hand it on."""
    return json.dumps(
        {
            "interval": windows.interval,
            "every": windows.every,
            "timezone": windows.timezone,
            "day_start": windows.day_start.isoformat(),
            "week_offset": (3 - windows.week_start) % 7,
            "key_type": windows.key_type,
            "column_timezone": windows.column_timezone,
            "zones": {
                z: z != "UTC" for z in (windows.timezone, windows.column_timezone)
            },  # of those after 2037
        }
    )


def naive(value: KeyValue) -> datetime:
    """A key as the functions hold it."""
    return value.replace(tzinfo=None) if isinstance(value, datetime) else datetime.combine(value, time())


def expected(windows: Grid, instant: datetime) -> tuple[Any, ...]:
    try:
        window = windows.at(windows.key_at(instant))
    except WindowRangeError:
        return None, None, None
    return naive(window.begin), naive(window.end), window.suffix


def differences(engine: Engine, asked: list[tuple[Grid, datetime]]) -> list[Any]:
    with engine.connect() as connection:
        found = connection.execute(
            WINDOWS, {"tables": [told(g) for g, _ in asked], "days": [day for _, day in asked]}
        ).all()
    wanted = [expected(windows, instant) for windows, instant in asked]
    assert len(found) == len(wanted)
    return [(a, w, tuple(f)) for a, w, f in zip(asked, wanted, found, strict=True) if w != tuple(f)]


@pytest.mark.parametrize("zone", NIGHTS)
def test_windows_are_the_same_on_the_nights_that_matter(engine: Engine, zone: str) -> None:
    nights = [utc(night) for night in NIGHTS[zone]]
    asked = [(windows, night) for windows in grids(zone, random.Random(zone)) for night in nights]
    if zone == "America/Havana":  # its clocks of 2026 are known to one of the two alone
        asked = [(windows, night) for windows, night in asked if windows.interval in ("hour", "day", "week")]
    assert len(asked) > 70
    assert differences(engine, asked) == []


def test_windows_are_the_same_around_transitions_of_every_zone(engine: Engine) -> None:
    with engine.connect() as connection:
        known = known_zones(connection) | {"CET", "EET", "MET", "WET"}
    asked = []
    for zone in ZONES:
        changes = [c.instant for c in transitions(zone) if utc("1996-01-01") < c.instant < KNOWN_UNTIL]
        if zone not in known or not changes:
            continue
        chance = random.Random(zone)
        some = [windows for windows in grids(zone, chance) if windows.interval in ("hour", "day", "week")]
        asked += [
            (windows, chance.choice(changes) + chance.choice([-25, -1, -0.5, 0, 0.5, 1, 24]) * HOUR)
            for windows in chance.sample(some, 6)
        ]
    assert len(asked) > 1_500
    other = differences(engine, asked)
    # The server's files may be of another release than pytz's: Vostok, Choibalsan, Casey and Cancun in 15.x.
    assert len({windows.timezone for (windows, _), _, _ in other}) <= 6, other[:3]


def test_what_no_window_can_hold_has_none_in_sql_either(engine: Engine) -> None:
    far = [
        (grid("day", "Pacific/Auckland"), utc("2037-12-31 13:37:11")),
        (grid("day", "Pacific/Auckland"), utc("2039-07-01 13:37:11")),
        (grid("year", "Europe/Berlin"), utc("2038-07-01 13:37:11")),
        (grid("day", "UTC"), utc("2039-07-01 13:37:11")),
        (grid("day", "UTC", key_type="epoch_s_int4"), utc("2038-01-19 01:00:00")),
        (grid("month", "UTC", key_type="uuidv7"), utc("1969-07-01 13:37:11")),
        (grid("week", "UTC", key_type="epoch_ns"), utc("2262-04-11 13:37:11")),
    ]
    assert differences(engine, far) == []
    assert sum(expected(windows, day)[0] is None for windows, day in far) == 6


@pytest.mark.parametrize("key_type", ["epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "uuidv7", "uuidv7_full"])
def test_encoded_bounds_are_read_and_written_alike(engine: Engine, key_type: KeyType) -> None:
    moments = [utc("2026-04-04 14:00"), utc("1970-01-01"), utc("2261-12-31 23:59:59")]
    with engine.connect() as connection:
        for moment in moments:
            for upper in (False, True):
                written = connection.scalar(
                    text("SELECT _partition_literal(:key, :type, :upper)"),
                    {"key": naive(moment), "type": key_type, "upper": upper},
                )
                assert written == keys.bound_text(moment, key_type, upper)
                odd = [written, str(int(written) + 1) if "-" not in written[1:] else written[:-1] + "7"]
                for printed in odd:
                    read = connection.scalar(
                        text("SELECT _partition_value(:printed, :type, :upper)"),
                        {"printed": f"'{printed}'", "type": key_type, "upper": upper},
                    )
                    found = keys.bound_value(printed, key_type, upper)
                    assert found is not None
                    assert read == naive(found)


def test_long_names_are_cut_alike(engine: Engine) -> None:
    names = ["odds", "x" * 53, "x" * 54, "ö" * 31, "a%b" * 20, 'q"' * 27, "日" * 21]
    with engine.connect() as connection:
        for name in names:
            for taken in ([], [partition_name(name, "2026_04_05")]):
                found = connection.scalar(
                    text("SELECT _partition_name(:name, '2026_04_05', CAST(:taken AS text[]), 'public')"),
                    {"name": name, "taken": taken},
                )
                assert found == partition_name(name, "2026_04_05", taken)


# -- tables ----------------------------------------------------------------------------------------------

DAYS = [
    utc("2026-04-03 13:37:11"),
    utc("2026-04-04 13:59:59"),
    utc("2026-04-13 12:00:00"),
    utc("2027-04-03 14:00:00"),
]
_TYPES: dict[str, Any] = {
    "timestamptz": sa.DateTime(timezone=True),
    "timestamp": sa.DateTime(),
    "date": sa.Date(),
    "bigint": sa.BigInteger(),
    "uuid": sa.Uuid(),
}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "nz": ("timestamptz", {"retention": "3 days", "lookback": 5}),
    "hours": (
        "timestamptz",
        {"interval": "hour", "every": 6, "timezone": "Europe/Berlin", "retention": "2 days"},
    ),
    "weeks": ("timestamp", {"interval": "week", "week_start": "sunday", "retention": "3 weeks"}),
    "dates": ("date", {"timezone": "America/St_Johns", "retention": "1 week"}),
    "epochs": ("bigint", {"epoch": "ms", "timezone": "Asia/Kathmandu", "retention": "2 days"}),
    "uuids": ("uuid", {"interval": "month", "timezone": "UTC", "retention": "1 month", "max_drops": 1}),
    "days_once": ("timestamptz", {"interval": "month", "retention": "1 month"}),
    "early": ("timestamptz", {"day_start": "06:30", "every": 2, "timezone": "America/Havana"}),
    "off": ("timestamptz", {"enabled": False}),
    'a%s "T" of a name that is longer than sixty-three bytes in all': (
        "timestamptz",
        {"retention": "2 days"},
    ),
}


def twins(engine: Engine) -> None:
    """Each table twice: one for the package, one for the functions."""
    run(engine, "CREATE SCHEMA py", 'CREATE SCHEMA "Sql %s"')
    for schema in ("py", "Sql %s"):
        for name, (key, fields) in TABLES.items():
            declare(engine, name[:63], policy(**fields), *columns("at", _TYPES[key]), schema=schema)


def damage(engine: Engine) -> None:
    """What people do to partitions: a gap, a mark that is gone, bounds of their own, a DEFAULT partition."""
    for schema in ("py", "Sql %s"):
        run(
            engine,
            f'SET search_path = "{schema}"; DROP TABLE nz_2026_04_05',
            f'SET search_path = "{schema}"; COMMENT ON TABLE nz_2026_04_02 IS NULL',
            f'SET search_path = "{schema}"; CREATE TABLE old PARTITION OF nz'
            " FOR VALUES FROM (MINVALUE) TO ('2026-03-01 07:00+00')",
            f'SET search_path = "{schema}"; CREATE TABLE odd PARTITION OF nz'
            " FOR VALUES FROM ('2026-04-09 07:00+00') TO ('2026-04-10 07:00:00.5+00')",
            f'SET search_path = "{schema}"; CREATE TABLE rest PARTITION OF dates DEFAULT',
            f'SET search_path = "{schema}"; DROP TABLE days_once_2026_03; CREATE TABLE march'
            " PARTITION OF days_once FOR VALUES FROM ('2026-03-03 11:00+00') TO ('2026-03-31 11:00+00')",
        )


def rehearse(monkeypatch: pytest.MonkeyPatch, day: datetime) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", day.isoformat())


def ask(engine: Engine, day: datetime, query: str, **values: Any) -> list[Any]:
    with engine.begin() as connection:
        connection.execute(
            text("SELECT set_config('alembic_partitions.now', :now, true)"), {"now": day.isoformat()}
        )
        return list(connection.execute(text(query), values))


def shape(engine: Engine, schema: str) -> set[tuple[Any, ...]]:
    """Partitions of a schema: names, bounds, comments, owners."""
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
        found = connection.execute(
            text(
                "SELECT p.relname, c.relname, pg_get_expr(c.relpartbound, 0),"
                " obj_description(c.oid, 'pg_class'), c.relowner,"
                " (SELECT count(*) FROM pg_index x WHERE x.indrelid = c.oid)"
                " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " JOIN pg_class p ON p.oid = i.inhparent"
                " JOIN pg_namespace n ON n.oid = p.relnamespace WHERE n.nspname = :schema AND p.relkind = 'p'"
            ),
            {"schema": schema},
        )
        return {tuple(row) for row in found}


def to_make(engine: Engine, schema: str) -> set[tuple[str, str]]:
    with engine.connect() as connection:
        return {
            (plan.plan.table.name, step.name)
            for plan in maintenance.plan(connection)
            if plan.plan.table.schema == schema
            for step in plan.plan.steps
        }


def to_detach(engine: Engine, day: datetime, schema: str) -> set[tuple[str, str, str]]:
    with engine.connect() as connection:
        with connection.begin():
            snapshot = catalog.read_snapshot(connection, "public")
            tables = [table for table in snapshot.tables if table.schema == schema]
            planned = retaining.plan_tables(connection, tables, retaining.Moment(day))
        return {
            (item.retention.table.name, step.partition.name, step.name)
            for item in planned
            for step in item.retention.steps
            if isinstance(step, DetachPartition)
        }


def judged(engine: Engine) -> dict[str, TableHealth]:
    with engine.connect() as connection:
        return {table.table: table for table in survey(connection).tables}


def compare_health(engine: Engine, day: datetime) -> None:
    python = judged(engine)
    found = ask(engine, day, "SELECT * FROM partition_health_summary()")
    assert len(found) == len(python)
    for row in found:
        there = python[f"{row.schema_name}.{row.table_name}"]
        assert row.status == there.state.value, (day, row, there)
        assert there.runway is not None
        assert float(row.runway_days) == pytest.approx(there.runway, abs=0.006)
        assert (row.gaps, row.partitions) == (len(there.gaps), there.partitions), (day, row, there)
        assert row.stranded == there.stranded
        if there.enabled:
            assert row.pending_retention == len(there.due), (day, row, there)


def test_tables_are_kept_alike_from_day_to_day(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rehearse(monkeypatch, DAYS[0])
    twins(engine)
    assert shape(engine, "py") == shape(engine, "Sql %s")
    seen = set[str]()
    for day in DAYS:
        rehearse(monkeypatch, day)
        if day == DAYS[1]:
            damage(engine)
        compare_health(engine, day)
        would = ask(engine, day, "SELECT * FROM run_partition_maintenance()")
        for schema in ("py", "Sql %s"):
            mine = [row for row in would if row.schema_name == schema]
            made = {(row.table_name, row.partition_name) for row in mine if row.action == "would create"}
            assert made == to_make(engine, schema), day
            gone = {
                (row.table_name, row.partition_name, row.detail.split(", as ")[1].split(", by a plain")[0])
                for row in mine
                if row.action == "would detach"
            }
            assert gone == to_detach(engine, day, schema), day
            seen |= {name for name, *_ in gone}
        # The one half by the package, the other by the functions.
        with engine.connect() as connection:
            names = [f"py.{name[:63]}" for name in TABLES]
            report = maintenance.ensure(connection, tables=names)
        assert report.failure is None
        done = ask(
            engine,
            day,
            "SELECT o.* FROM partition_config c,"
            " run_partition_maintenance(c.table_schema || '.' || c.table_name, false) o"
            " WHERE c.table_schema = 'Sql %s' AND c.enabled",
        )
        assert not [row for row in done if row.action == "failed"]
        assert shape(engine, "py") == shape(engine, "Sql %s"), day
        assert to_make(engine, "Sql %s") == set()
        assert ask(engine, day, "SELECT * FROM create_daily_partitions()") == []
    compare_health(engine, DAYS[-1])
    assert seen >= {"nz", "hours", "weeks", "dates", "epochs", "uuids"}
