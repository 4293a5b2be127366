"""PostgreSQL as the oracle.

Its own time zone code and files say on which local date an instant lies, and its own partitioning says
which window takes a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from alembic_partitions.periods import Grid, KeyType, KeyValue, Window
from tests.zones import HOUR, SECOND, STEPS_BACK_ACROSS_MIDNIGHT, ZONES, grid, transitions, utc

# Transitions still to come may be known to pytz and not to the server: governments decide late.
KNOWN_UNTIL = utc("2025-01-01")

PROBES = (-24 * HOUR, -2 * HOUR, -HOUR / 2, -SECOND, 0 * SECOND, SECOND, HOUR / 2, 2 * HOUR, 24 * HOUR)

LOCAL = text(
    """
    SELECT zone, instant, instant AT TIME ZONE zone AS wall, (instant AT TIME ZONE zone)::date AS day
    FROM unnest(CAST(:zones AS text[]), CAST(:instants AS timestamptz[])) AS probe (zone, instant)
    """
)


def known_zones(connection: Connection) -> set[str]:
    """Return the zones that AT TIME ZONE reads as such.

    CET, EET, MET and WET are abbreviations to it, which go before names and have no summer time.
    """
    return {
        *connection.scalars(
            text("SELECT name FROM pg_timezone_names EXCEPT SELECT abbrev FROM pg_timezone_abbrevs")
        )
    }


def test_four_zones_mean_something_else_to_at_time_zone(connection: Connection) -> None:
    summer = utc("2024-07-01 13:37:11")
    for zone in ("CET", "EET", "MET", "WET"):
        assert zone not in known_zones(connection)
        [answer] = connection.execute(LOCAL, {"zones": [zone], "instants": [summer]})
        assert answer.wall == grid("day", zone, key_type="timestamp").key_at(summer) - HOUR


def probes(zones: set[str]) -> Iterator[tuple[str, datetime]]:
    """Yield instants around every transition of every fifth zone, and around some of each other."""
    for number, zone in enumerate(ZONES):
        if zone not in zones:
            continue
        whole = number % 5 == 0 or zone in STEPS_BACK_ACROSS_MIDNIGHT
        chosen = [change.instant for change in transitions(zone) if change.instant < KNOWN_UNTIL]
        for instant in chosen if whole else chosen[number % 4 :: 4]:
            yield from ((zone, instant + probe) for probe in PROBES)
        yield zone, utc("2024-11-22 13:37:11")


def test_the_session_is_not_in_utc(connection: Connection) -> None:
    assert connection.scalar(text("SHOW TimeZone")) != "UTC"


def test_postgresql_agrees_on_the_local_date_of_every_window(connection: Connection) -> None:
    zones = known_zones(connection)
    assert len(zones & set(ZONES)) > 0.98 * len(ZONES)
    asked = list(probes(zones))
    assert len(asked) > 40_000
    days: dict[str, Grid] = {}
    wrong: Counter[str] = Counter()
    other_files: Counter[str] = Counter()
    for start in range(0, len(asked), 20_000):
        some = asked[start : start + 20_000]
        answers = connection.execute(
            LOCAL, {"zones": [zone for zone, _ in some], "instants": [instant for _, instant in some]}
        )
        for zone, instant, wall, day in answers:
            windows = days.setdefault(zone, grid("day", zone))
            if windows.at(instant).suffix == f"{day:%Y_%m_%d}":
                continue
            # The server's files may be of another release than pytz's: then even the wall clocks differ.
            same = grid("day", zone, key_type="timestamp").key_at(instant) == wall
            (wrong if same else other_files)[zone] += 1
    # Only where the date steps back across midnight may a window hold another date, and then the next one's.
    assert wrong.keys() <= STEPS_BACK_ACROSS_MIDNIGHT.keys()
    assert wrong["America/St_Johns"] == 3 * STEPS_BACK_ACROSS_MIDNIGHT["America/St_Johns"]
    # PostgreSQL 15.5, of 2023, differs for one probe in 800; a server of today for none.
    assert sum(other_files.values()) <= len(asked) // 200, other_files


def test_a_window_of_st_johns_begins_with_the_first_midnight(connection: Connection) -> None:
    # The one disagreement, spelled out: an hour that PostgreSQL calls the 6th lies in the window of the 7th.
    window = grid("day", "America/St_Johns").at(utc("2010-11-07 03:30"))
    at_the_begin, in_the_repeated_hour = connection.execute(
        LOCAL,
        {"zones": ["America/St_Johns"] * 2, "instants": [window.begin, utc("2010-11-07 03:01")]},
    )
    assert at_the_begin.wall == datetime(2010, 11, 7)
    assert in_the_repeated_hour.day == date(2010, 11, 6)
    assert window.begin < utc("2010-11-07 03:01") < window.end


# -- a real table --------------------------------------------------------------------------------------

TYPES: dict[KeyType, str] = {
    "timestamptz": "timestamp with time zone",
    "timestamp": "timestamp without time zone",
    "date": "date",
}
DAYS = 400


def make_table(connection: Connection, windows: list[Window], key_type: KeyType) -> None:
    connection.execute(text(f"CREATE TABLE ledger (k {TYPES[key_type]} NOT NULL) PARTITION BY RANGE (k)"))
    # PostgreSQL itself refuses windows that overlap, and windows that are empty.
    statements = [
        f"CREATE TABLE ledger_{window.suffix} PARTITION OF ledger"
        f" FOR VALUES FROM ('{window.begin.isoformat()}') TO ('{window.end.isoformat()}')"
        for window in windows
    ]
    for start in range(0, len(statements), 100):
        connection.execute(text("; ".join(statements[start : start + 100]).replace(":", r"\:")))


def consecutive(windows: Grid, first: KeyValue) -> list[Window]:
    found = [windows.at(first)]
    while len(found) < DAYS:
        found.append(windows.after(found[-1]))
    return found


@pytest.mark.parametrize("key_type", ["timestamptz", "timestamp", "date"])
@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/New_York", "Australia/Lord_Howe"])
def test_a_row_of_every_hour_of_a_year_lands_in_its_local_day(
    connection: Connection, zone: str, key_type: KeyType
) -> None:
    windows = grid("day", zone, key_type=key_type)
    start = utc("2023-12-20 13:37:11")
    made = consecutive(windows, windows.key_at(start))
    make_table(connection, made, key_type)
    hours = [start + n * HOUR for n in range(24 * (DAYS - 2))]
    connection.execute(
        text(f"INSERT INTO ledger SELECT unnest(CAST(:keys AS {TYPES[key_type]}[]))"),
        {"keys": [windows.key_at(hour) for hour in hours]},
    )
    local_date = "(k AT TIME ZONE :zone)::date" if key_type == "timestamptz" else "k::date"
    astray = connection.execute(
        text(
            f"""
            SELECT k, tableoid::regclass::text AS partition
            FROM ledger
            WHERE CAST(:zone AS text) IS NOT NULL
              AND tableoid::regclass::text <> 'ledger_' || to_char({local_date}, 'YYYY_MM_DD')
            """
        ),
        {"zone": zone},
    ).all()
    assert astray == []
    counts = {
        row.partition: row.rows
        for row in connection.execute(
            text("SELECT tableoid::regclass::text AS partition, count(*) AS rows FROM ledger GROUP BY 1")
        )
    }
    assert sum(counts.values()) == len(hours)
    full = [name for window in made[1:] if (name := f"ledger_{window.suffix}") in counts]
    lengths = Counter(counts[name] for name in full[:-1])
    # One row an hour: the nights of the clock changes hold one fewer and one more (Lord Howe's are half an
    # hour shorter and longer).
    assert lengths[24] >= len(full) - 4
    assert set(lengths) <= {23, 24, 25}
    if zone != "Australia/Lord_Howe":
        assert (lengths[23], lengths[25]) == (1, 1)


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "Australia/Lord_Howe", "Pacific/Chatham"])
def test_first_and_last_value_of_every_hour_land_in_it(connection: Connection, zone: str) -> None:
    windows = grid("hour", zone)
    made = consecutive(windows, utc("2024-04-05 13:37:11"))[:72]
    made += consecutive(windows, utc("2024-09-27 13:37:11"))[:72]
    if zone == "Australia/Lord_Howe":
        made += consecutive(windows, utc("2024-10-04 13:37:11"))[:72]
    make_table(connection, made, "timestamptz")
    keys: list[datetime] = []
    for window in made:
        assert isinstance(window.begin, datetime)
        assert isinstance(window.end, datetime)
        keys += [window.begin, window.end - timedelta(microseconds=1)]
    connection.execute(text("INSERT INTO ledger SELECT unnest(CAST(:keys AS timestamptz[]))"), {"keys": keys})
    rows = connection.execute(
        text(
            """
            SELECT k, tableoid::regclass::text AS partition,
                   to_char(k AT TIME ZONE :zone, 'YYYY_MM_DD_HH24') AS hour
            FROM ledger
            """
        ),
        {"zone": zone},
    ).all()
    assert len(rows) == 2 * len(made)
    for row in rows:
        assert f"ledger_{windows.at(row.k).suffix}" == row.partition
        if windows.at(row.k).begin == utc("2024-04-06 13:15"):
            # Chatham's repeated quarter from 02:45 lies in the hour that it interrupts.
            assert (zone, row.partition) == ("Pacific/Chatham", "ledger_2024_04_07_03")
        else:
            assert row.partition.startswith(f"ledger_{row.hour}")


def test_a_value_outside_the_windows_has_no_partition(connection: Connection) -> None:
    windows = grid("day")
    made = consecutive(windows, utc("2026-03-01 13:37:11"))[:40]
    make_table(connection, made, "timestamptz")
    first, end = made[0].begin, made[-1].end
    assert isinstance(first, datetime)
    for key in (first - timedelta(microseconds=1), end):
        with pytest.raises(IntegrityError, match="no partition of relation"), connection.begin_nested():
            connection.execute(text("INSERT INTO ledger VALUES (:k)"), {"k": key})
