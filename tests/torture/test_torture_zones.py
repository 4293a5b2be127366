"""A new time-zone database moves boundaries under partitions that exist, with rows in them.

Each change is lived through from the evening before to months later: by processes with the new files, by
replicas that still have the old ones, and on a server whose own files never change at all.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, text

from alembic_partitions import PartitionPolicy, cli, keep, maintenance
from alembic_partitions.catalog.values import bounds_of, value_of
from alembic_partitions.health import Level
from alembic_partitions.maintenance import Orders, looking
from alembic_partitions.periods import Grid, KeyType, KeyValue
from alembic_partitions.plan import Coverage, Partition, cutoff
from alembic_partitions.standing import survey
from tests.clock import Clock
from tests.databases import Database
from tests.tables import columns, declare, rows
from tests.torture.telling import draws, setting, tell
from tests.torture.zone_files import ZoneFile, released
from tests.zones import Transition, utc

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TICK = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: Hours since the release at which the world is looked at: TORTURE_ZONE_STEPS takes the first few of them.
STEPS = (0, 7, 26, 75, 16 * 24 + 5, 60 * 24, 160 * 24, 400 * 24)
#: So many of them replicas with the old files live through as well.
OLD_REPLICAS = 2


# -- what may change -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What a release changes, and from which instant on."""

    old: ZoneFile
    new: ZoneFile
    moment: datetime


def from_then_on(zone: str, moment: str, change: Callable[[Transition], Sequence[Transition]]) -> Change:
    """Each clock change of a zone from then on is another, or none."""
    old, since = ZoneFile.real(zone), utc(moment)

    def changed(known: Sequence[Transition]) -> list[Transition]:
        return [new for one in known for new in ([one] if one.instant < since else change(one))]

    return Change(old, old.changed(changed), min(t.instant for t in old.changes if t.instant >= since))


def shifted(zone: str, moment: str, *, to: timedelta, back: str | None = None) -> Change:
    """The offset of a zone is another from an instant on, until it goes back."""
    old, since = ZoneFile.real(zone), utc(moment)
    before = old.changes[-1].after if old.changes else old.begin
    new = [Transition(since, before, to)] + ([Transition(utc(back), to, before)] if back else [])
    return Change(old, old.changed(lambda known: [*known, *new]), since)


CHANGES = {
    "summer time is given up": from_then_on("Pacific/Auckland", "2026-09-01 00:00:00", lambda t: ()),
    "summer time for good": from_then_on("Pacific/Auckland", "2026-04-01 00:00:00", lambda t: ()),
    "summer time begins three weeks later": from_then_on(
        "Pacific/Auckland",
        "2026-09-01 00:00:00",
        lambda t: (Transition(t.instant + 21 * DAY, t.before, t.after),),
    ),
    "summer time ends four weeks earlier": from_then_on(
        "America/Santiago",
        "2026-08-15 00:00:00",
        lambda t: (Transition(t.instant - 28 * DAY, t.before, t.after),),
    ),
    "summer time where there was none": shifted(
        "Asia/Tokyo", "2026-05-02 15:00:00", to=10 * HOUR, back="2026-10-24 14:00:00"
    ),
    "half an hour": shifted("Asia/Kolkata", "2026-05-10 18:30:00", to=6 * HOUR),
    "a day is left out": shifted("Pacific/Pago_Pago", "2026-04-30 11:00:00", to=13 * HOUR),
    "a day comes twice": shifted("Pacific/Apia", "2026-04-29 11:00:00", to=-11 * HOUR),
}


# -- whose boundaries move -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """A table: its key, and what its policy says beside the zone."""

    column: Any
    key_type: KeyType
    fields: dict[str, Any]

    def policy(self, zone: str) -> PartitionPolicy:
        return PartitionPolicy(
            "at", timezone=zone, lookback=3, max_ahead="800 days", max_drops=10_000, **self.fields
        )

    def value(self, key: KeyValue) -> Any:
        """Return what a row holds for a key."""
        if self.key_type == "epoch_ms":
            assert isinstance(key, datetime)
            return (key - EPOCH) // TICK
        if self.key_type == "uuidv7":
            assert isinstance(key, datetime)
            return UUID(int=((key - EPOCH) // TICK) << 80 | 7 << 76 | 2 << 62)
        return key


_INSTANT = sa.DateTime(timezone=True)
TABLES = {
    "hours": Kept(_INSTANT, "timestamptz", {"interval": "hour", "premake": 8, "retention": "9 hours"}),
    "shifts": Kept(
        _INSTANT, "timestamptz", {"interval": "hour", "every": 6, "premake": 6, "retention": "2 days"}
    ),
    "days": Kept(_INSTANT, "timestamptz", {"premake": 6, "retention": "3 days"}),
    "mornings": Kept(
        sa.BigInteger,
        "epoch_ms",
        {"premake": 5, "retention": "3 days", "epoch": "ms", "day_start": "06:00", "every": 2},
    ),
    "naive": Kept(sa.DateTime, "timestamp", {"premake": 5, "retention": "4 days", "column_timezone": "UTC"}),
    "ids": Kept(sa.Uuid, "uuidv7", {"premake": 5, "retention": "3 days"}),
    "weeks": Kept(_INSTANT, "timestamptz", {"interval": "week", "premake": 3, "retention": "2 weeks"}),
    "months": Kept(_INSTANT, "timestamptz", {"interval": "month", "premake": 2, "retention": "1 month"}),
}


# -- living through it ---------------------------------------------------------------------------------


@dataclass
class World:
    """One database in which a change is lived through."""

    engine: Engine
    app: Engine
    clock: Clock
    change: Change
    keeper: Any
    found: Counter[str]
    ledger: dict[str, set[KeyValue]] = field(default_factory=lambda: {name: set() for name in TABLES})
    #: Every bound that was made by the old files.
    old_bounds: dict[str, set[KeyValue]] = field(default_factory=lambda: {name: set() for name in TABLES})

    def grid(self, name: str) -> Grid:
        return TABLES[name].policy(self.change.old.name).grid(TABLES[name].key_type)

    def cutoffs(self) -> dict[str, KeyValue]:
        """Return what is older than its retention, by the files in use."""
        found = {}
        for name, kept in TABLES.items():
            found[name] = cutoff(kept.policy(self.change.old.name), self.grid(name), self.clock.now)
        return {name: oldest for name, oldest in found.items() if oldest is not None}

    def partitions(self) -> dict[str, list[Partition]]:
        query = """
            SELECT p.relname, c.oid, c.relname, pg_get_expr(c.relpartbound, c.oid)
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
            WHERE p.relkind = 'p' AND NOT i.inhdetachpending"""
        found: dict[str, list[Partition]] = {name: [] for name in TABLES}
        with self.engine.connect() as connection:
            connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
            for parent, oid, name, bound in connection.execute(text(query)):
                lower, upper = bounds_of(bound, TABLES[parent].key_type)
                found[parent].append(Partition(oid, "public", name, lower, upper))
        return {name: sorted(parts, key=lambda p: str(p.lower)) for name, parts in found.items()}

    def write(self, name: str, keys: Sequence[KeyValue]) -> None:
        """Insert as an application does, with the hooks on its engine."""
        kept = TABLES[name]
        table = sa.table(name, sa.column("at", kept.column))
        with self.app.begin() as connection:
            connection.execute(sa.insert(table), [{"at": kept.value(key)} for key in keys])
        self.ledger[name] |= set(keys)
        self.found["rows inserted, each of them accepted"] += len(keys)

    def live(self, name: str) -> set[KeyValue]:
        with self.engine.connect() as connection:
            connection.execute(text("SET LOCAL TimeZone = 'UTC'"))
            found = connection.execute(text(f"SELECT at::text FROM {name}")).scalars()
            values = (value_of(printed, TABLES[name].key_type) for printed in found)
            return {value for value in values if value is not None}

    # -- one look at the world ------------------------------------------------------------------------

    def ensure(self) -> maintenance.Report:
        with self.engine.connect() as connection:
            report = maintenance.ensure(connection)
        assert report.failure is None, report.failure
        return report

    def settles(self) -> None:
        """Whoever has made the horizon has nothing left to do, and says where the grid is left."""
        with self.engine.connect() as connection:
            plans = maintenance.plan(connection)
        assert [str(step) for item in plans for step in item.plan.steps] == []
        assert self.ensure().created == 0
        self.found["looks at which the plan was empty"] += len(plans)

    def tiles(self, parts: dict[str, list[Partition]]) -> None:
        """No gap from the current window to the horizon's end; PostgreSQL itself lets nothing overlap."""
        for name, found in parts.items():
            grid = self.grid(name)
            window = grid.at(grid.key_at(self.clock.now))
            begin = window.begin
            for _ in range(TABLES[name].policy(self.change.old.name).premake):
                window = grid.after(window)
            assert Coverage.of(found).spans(begin, window.end), (name, self.clock.now)

    def on_grid(self, name: str, part: Partition) -> bool:
        assert part.lower is not None
        window = self.grid(name).at(part.lower)
        return (window.begin, window.end) == (part.lower, part.upper)

    def judged(self, parts: dict[str, list[Partition]]) -> None:
        """Inserts are safe, and every partition off the grid within the horizon is reported."""
        with self.engine.connect() as connection:
            health = survey(connection)
        code, told = checked(self.engine)
        assert (health.ok, health.level, code, told["level"]) == (True, Level.OK, 0, "OK"), (health, told)
        for table in health.tables:
            name = table.table.removeprefix("public.")
            grid = self.grid(name)
            window = grid.at(grid.key_at(self.clock.now))
            end = window.begin
            for _ in range(TABLES[name].policy(self.change.old.name).premake + 1):
                end = grid.at(end).end
            odd = [
                p
                for p in parts[name]
                if window.begin < p.upper and p.lower < end and not self.on_grid(name, p)  # type: ignore[operator]
            ]
            if odd:
                assert table.misaligned, (name, odd)
                self.found["reports of partitions off the grid"] += len(table.misaligned)
            elif not any(not self.on_grid(name, p) for p in parts[name]):
                assert table.misaligned == (), table.misaligned


def checked(engine: Engine) -> tuple[int, Any]:
    """Run `check` in this process."""
    out, err = io.StringIO(), io.StringIO()
    address = engine.url.render_as_string(hide_password=False)
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        cli.main(["check", "--json", "--warn-days", "0", "--url", address])
    assert isinstance(ended.value.code, int)
    return ended.value.code, json.loads(out.getvalue())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(looking, "clock", lambda real: clock.now)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW", raising=False)
    return clock


FOUND = Counter[str]()


@pytest.fixture(scope="module", autouse=True)
def _told() -> Iterator[None]:
    yield
    tell("a new time-zone database", dict(FOUND))


@pytest.mark.parametrize("what", CHANGES)
def test_a_release_moves_boundaries_and_no_insert_and_no_row_is_lost(
    database: Database, clock: Clock, what: str
) -> None:
    change, dice = CHANGES[what], draws(f"zones {what}")
    late = dice.random() < 0.5  # a release is often out only when its change has already come
    eve = change.moment - 10 * HOUR - timedelta(minutes=dice.randrange(60), seconds=11)
    known = change.moment + (27 * HOUR if late else -7 * HOUR) + timedelta(seconds=dice.randrange(3600))
    # The server's own files disagree with one of the two releases all the time, as sessions there may show.
    engine = create_engine(database.url, connect_args={"options": f"-c TimeZone={change.old.name}"})
    app = create_engine(database.url, connect_args={"options": f"-c TimeZone={change.old.name}"})
    clock.set(eve)
    with released(change.old):
        for name, kept in TABLES.items():
            declare(engine, name, kept.policy(change.old.name), *columns(key_type=kept.column))
        world = World(engine, app, clock, change, keep(app), FOUND)
        world.ensure()
        for moment in (eve, *([known - HOUR] if late else [])):
            clock.set(moment)
            world.ensure()
            for name in TABLES:
                grid = world.grid(name)
                window = grid.at(grid.key_at(moment))
                for _ in range(TABLES[name].fields["premake"] + dice.randrange(1, 4)):
                    window = grid.after(window)
                far = grid.after(window)  # an island beyond the horizon
                edges = [edge for p in world.partitions()[name] for edge in (p.lower, p.upper - TICK)]  # type: ignore[operator]
                world.write(name, [*edges, grid.key_at(moment), far.begin, far.end - TICK])  # type: ignore[list-item]
            world.tiles(world.partitions())
            world.settles()
        for name, parts in world.partitions().items():
            world.old_bounds[name] = {bound for p in parts for bound in (p.lower, p.upper)}  # type: ignore[misc]
    FOUND["changes lived through"] += 1
    FOUND["of those, released when it had come"] += late
    for number, hours in enumerate(STEPS[: setting("TORTURE_ZONE_STEPS", len(STEPS))]):
        _live(world, known + hours * HOUR, old_replica=number < OLD_REPLICAS, dice=dice)
    if setting("TORTURE_ZONE_STEPS", len(STEPS)) >= len(STEPS):
        with released(change.new):
            for name, parts in world.partitions().items():
                assert [p.name for p in parts if not world.on_grid(name, p)] == [], "grown out"
    app.dispose()
    engine.dispose()


def _live(world: World, now: datetime, old_replica: bool, dice: Any) -> None:
    world.clock.set(now)
    FOUND["moments"] += 1
    before = {name: {(p.lower, p.upper) for p in parts} for name, parts in world.partitions().items()}
    with released(world.change.old):
        old_cutoffs = world.cutoffs()
        old_edges = {name: _edges(world, name, now) for name in TABLES}
        if old_replica:
            world.ensure()
            world.settles()
            for name, there in world.partitions().items():
                made = [p for p in there if (p.lower, p.upper) not in before[name]]
                world.old_bounds[name] |= {bound for p in made for bound in (p.lower, p.upper)}  # type: ignore[misc]
    with released(world.change.new):
        _insert(world, now, old_cutoffs, old_edges, dice)
        report = world.ensure()
        FOUND["partitions made by the new files"] += report.created
        parts = world.partitions()
        world.tiles(parts)
        _made_well(world, before, parts)
        world.judged(parts)
        _maintained(world, parts, old_cutoffs)
        world.tiles(world.partitions())
        world.settles()


def _edges(world: World, name: str, now: datetime) -> list[KeyValue]:
    """Return where some windows begin around now, by the files in use."""
    grid = world.grid(name)
    window = grid.before(grid.at(grid.key_at(now)))
    found = [window.begin]
    for _ in range(TABLES[name].policy(world.change.old.name).premake + 4):
        found.append(window.end)
        window = grid.after(window)
    return found


def _insert(
    world: World,
    now: datetime,
    old_cutoffs: dict[str, KeyValue],
    old_edges: dict[str, list[KeyValue]],
    dice: Any,
) -> None:
    """Rows at the edges of both grids, before anybody has looked at the horizon, and far beyond it."""
    oldest = world.cutoffs()
    for name in TABLES:
        edges = {
            *dice.sample(old_edges[name], 4),
            *dice.sample(_edges(world, name, now), 4),
            world.grid(name).key_at(now),
        }
        keys = {edge + shift for edge in edges for shift in (-TICK, 0 * TICK, TICK)}
        world.write(name, [key for key in keys if key >= max(oldest[name], old_cutoffs[name])])


def _made_well(
    world: World,
    before: dict[str, set[tuple[KeyValue | None, KeyValue | None]]],
    parts: dict[str, list[Partition]],
) -> None:
    """What the new files have made is a window of theirs, or what an older partition leaves of one."""
    for name, found in parts.items():
        grid, old = world.grid(name), world.old_bounds[name]
        for part in found:
            assert part.lower is not None
            assert part.upper is not None
            if (part.lower, part.upper) in before[name] or {part.lower, part.upper} <= old:
                continue
            window = grid.at(part.lower)
            assert part.lower == window.begin or part.lower in old, (name, part)
            assert part.upper == window.end or (part.upper < window.end and part.upper in old), (name, part)
        for here, there in pairwise(found):
            assert here.upper <= there.lower, (name, here, there)  # type: ignore[operator]


def _maintained(world: World, parts: dict[str, list[Partition]], old_cutoffs: dict[str, KeyValue]) -> None:
    """Retention takes no row that is not expired; off the grid, not by the old files either."""
    with world.engine.connect() as connection:
        report = maintenance.maintain(connection, orders=Orders(analyze=False, trust_clock=True))
    assert report.failure is None, report.failure
    oldest = world.cutoffs()
    for result in report.results:
        name = result.table.removeprefix("public.")
        gone = world.ledger[name] - world.live(name)
        for part in parts[name]:
            if part.name not in result.detached:
                continue
            FOUND["partitions that retention took"] += 1
            fits = world.on_grid(name, part)
            FOUND["of those, off the grid"] += not fits
            for key in gone:
                if part.lower <= key < part.upper:  # type: ignore[operator]
                    assert key < oldest[name], (name, part, key, oldest[name])
                    assert fits or key < old_cutoffs[name], (name, part, key, old_cutoffs[name])
                    FOUND["rows in windows of the new grid that the old files would keep"] += (
                        key >= old_cutoffs[name]
                    )
        held = [p for p in parts[name] if p.name in result.detached]
        strayed = [key for key in gone if not any(p.lower <= key < p.upper for p in held)]  # type: ignore[operator]
        assert strayed == [], (name, strayed)
        world.ledger[name] -= gone
        FOUND["rows checked after retention"] += len(world.ledger[name])


@pytest.mark.parametrize("what", ["summer time is given up", "half an hour"])
def test_naive_values_that_the_server_reads_by_other_files_are_stored_at_the_second_try_at_most(
    database: Database, clock: Clock, what: str
) -> None:
    """pytz says what the session's zone makes of a naive value; the server's files say otherwise."""
    from alembic_partitions import PartitionPending

    change = CHANGES[what]
    zone = change.old.name
    engine = create_engine(database.url)
    app = create_engine(database.url, connect_args={"options": f"-c TimeZone={zone}"})
    clock.set(change.moment - 40 * DAY)
    with released(change.new):
        policy = PartitionPolicy("at", timezone=zone, interval="hour", premake=1)
        declare(engine, "ticks", policy, *columns())
        keep(app)
        table = sa.table("ticks", sa.column("at", sa.DateTime))
        for number in range(setting("TORTURE_NAIVE", 40)):
            naive = change.moment.replace(tzinfo=None) + (2 * number + 1) * 6 * HOUR
            for attempt in (1, 2):
                try:
                    with app.begin() as connection:
                        connection.execute(sa.insert(table), [{"at": naive}])
                    break
                except PartitionPending:
                    FOUND["naive values sent again (PartitionPending)"] += 1
                    assert attempt == 1
        stored = rows(engine, "SELECT count(*) FROM ticks")[0][0]
        assert stored == setting("TORTURE_NAIVE", 40)
        FOUND["naive values stored"] += stored
    app.dispose()
    engine.dispose()
