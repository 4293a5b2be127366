"""Connections cut and locks not had, at each statement of a run: nothing is lost, nothing stuck.

Each request of a run (a statement, or several in one text) is met with

- the connection cut before it is sent, or when it is done and before its answer: the unknown outcome;
- its server process killed at some moment while it runs;
- 55P03, 57014 and 40P01 in its stead, inside a text of several statements for each of them;
- locks that another session holds for a moment on all that it may need.

Each request meets TORTURE_HARMS (1) of the first, the second and the last, drawn, and each statement as many
of the third; 99 makes it all there are, for half an hour. Only
TORTURE_REQUESTS of a verb's requests, drawn, meet any (0: all of them): 5 makes it a matter of seconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions.drivers import sqlstate
from alembic_partitions.errors import PartitionError
from tests.clock import Clock
from tests.databases import Database, Databases
from tests.tables import NOW, Dump, catalog, scalar
from tests.torture.telling import SEED, draws, setting, tell
from tests.torture.verbs import VERBS, Lived, Verb, rows_of
from tests.torture.wire import Harm, Request, Wire, wire

WIDE = Console(width=150)
HARMS, REQUESTS = setting("TORTURE_HARMS", 1), setting("TORTURE_REQUESTS", 0)
#: Never to be seen in anything that is raised, logged, reported or written down.
SECRET = "tell-nobody-4711"
CODES = ("55P03", "57014", "40P01")
OBSERVER = "observer"
HELD = 0.12  # seconds; three times as long as our statements wait for a lock
LONGEST_KILL = 0.004  # seconds into a request
#: No run takes longer, whatever happens to it.
PATIENCE = 30.0
# What the server never answers with an error.
NEVER_FAIL = ("ROLLBACK", "BEGIN")
CHANGE_NOTHING = ("SELECT", "SHOW", "SET", "RESET", "BEGIN", "SAVEPOINT", "ROLLBACK")


#: How a run ends that raises nothing.
DONE, REPORTED = "done", "reported"

#: What a database holds: its catalog, and the rows of its users.
Found: TypeAlias = tuple[Dump, list[str]]


@dataclass
class Stage:
    """A database that is made afresh for each run, and an administrator beside it."""

    databases: Databases
    admin: Connection
    name: str
    url: Any = None
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.url = self.databases.server.set(database=self.name)
        observed = self.url.update_query_dict({"application_name": OBSERVER})
        self.engine = create_engine(observed, pool_size=1, max_overflow=0)

    @property
    def direct(self) -> Database:
        return Database(self.url, self.databases.version)

    def through(self, door: Wire) -> Database:
        url = self.url.set(host="127.0.0.1", port=door.port, password=SECRET)
        return Database(url, self.databases.version)

    def fresh(self, world: str) -> None:
        self.engine.dispose()
        self.databases.drop(self.name)
        self.databases.clone(world, self.name)

    def kill(self, pid: int) -> None:
        self.admin.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    def hold(self) -> None:
        """Take what nobody holds of the tables there are, and let go after a moment."""
        connection = create_engine(self.url, poolclass=NullPool).connect()
        for table in ("odds", "meetings", "odds_rest", "orders"):
            with suppress(DBAPIError), connection.begin_nested():
                connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE NOWAIT"))

        def let_go() -> None:
            time.sleep(HELD)
            connection.close()

        threading.Thread(target=let_go, daemon=True).start()

    def nobody_is_left(self) -> bool:
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = :name AND application_name <> :observer"
        )
        for number in range(100):  # who was cut off is gone as soon as its server process notices
            if not self.admin.scalar(query, {"name": self.name, "observer": OBSERVER}):
                return True
            time.sleep(0.01 if number < 20 else 0.05)
        return False

    def dump(self) -> Found:
        return catalog(self.engine), rows_of(self.engine)

    def written_down(self) -> str:
        if scalar(self.engine, "SELECT to_regclass('partition_runs')") is None:
            return ""
        return str(scalar(self.engine, "SELECT string_agg(r::text, E'\n') FROM partition_runs r"))


@dataclass
class World:
    """What a verb finds, and what there is after a run that nothing happened to."""

    name: str
    rows: list[str]
    after: Found = field(default_factory=lambda: ({}, []))


@dataclass
class Tale:
    """What became of one verb."""

    requests: int = 0
    statements: int = 0
    injections: int = 0
    #: Harm that came to nothing: this run did not get as far.
    unmet: int = 0
    #: How often another run was needed.
    healed: int = 0
    longest: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def stage(databases: Databases) -> Iterator[Stage]:
    name = databases.clone().name
    with databases.admin() as admin:
        yield Stage(databases, admin, name)
    databases.drop(name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    clock.set(NOW)
    return clock


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Note down everything that is logged, by anybody, as it would be shown."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    root, ear = logging.getLogger(), Ear()
    level = root.level
    root.addHandler(ear)
    root.setLevel(logging.INFO)
    try:
        yield said
    finally:
        root.removeHandler(ear)
        root.setLevel(level)


def harms(requests: list[Request], dice: random.Random) -> list[Harm]:
    """Return what is done to a run, one thing at a time."""
    some = dice.sample(requests, min(REQUESTS or len(requests), len(requests)))
    found = []
    for request in sorted(some, key=lambda request: request.number):
        for possible in _harms_of(request, dice):
            found += dice.sample(possible, min(HARMS, len(possible)))
    return found


def _harms_of(request: Request, dice: random.Random) -> list[list[Harm]]:
    """Return what may be done to a request, and to each of its statements."""
    number, statements = request.number, request.statements
    found = [Harm("cut before", number)]
    if request.opens:
        return [found]
    if not all(statement.upper().startswith(CHANGE_NOTHING) for statement in statements):
        found.append(Harm("cut after", number))  # else it is one and the same
    found += [Harm("killed", number, after=dice.uniform(0, LONGEST_KILL)), Harm("held", number)]
    return [found] + [
        [Harm(code, number, piece) for code in CODES]
        for piece, statement in enumerate(statements)
        if not statement.upper().startswith(NEVER_FAIL)
    ]


def live(verb: Verb, database: Database) -> tuple[Lived, Exception | None]:
    own: set[int] = set()
    value, raised = None, None
    try:
        value = verb.live(database, own)
    except Exception as error:  # judged by the caller
        raised = error
    return Lived(value, frozenset(own)), raised


def told_of(error: Exception | None, lived: Lived) -> str:
    """Return the class of an outcome."""
    if error is None:
        return REPORTED if lived.failure else DONE
    code = sqlstate(error) if isinstance(error, DBAPIError) else None
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def judge(verb: Verb, door: Wire, lived: Lived, error: Exception | None) -> None:
    """Only errors of ours come up, or the driver's where it was the user's own statement."""
    if error is None or isinstance(error, PartitionError):
        return
    hit = door.met
    first = door.requests[1].pid if len(door.requests) > 1 else None  # the user's connects before ours does
    users_own = hit is not None and (hit.opens or hit.pid in {first, *lived.own})
    assert isinstance(error, DBAPIError) or (hit is not None and hit.opens), "an error of nobody's"
    assert verb.asks_the_database or users_own, "the user's own statement was not hit"


def differences(found: Found, expected: Found) -> list[str]:
    """Return what there is and should not be, and what should be and is not."""
    told = []
    for part in {**found[0], **expected[0]}:
        here, there = map(set, (found[0].get(part, ()), expected[0].get(part, ())))
        told += [f"too much: {row}" for row in here - there] + [f"missing: {row}" for row in there - here]
    return told + [f"rows: {found[1]} instead of {expected[1]}"] * (found[1] != expected[1])


def suffer(verb: Verb, stage: Stage, door: Wire, world: World, harm: Harm, tale: Tale) -> None:
    """Run with harm done, and if need be once without: nothing is lost, told or left; all is well then."""
    stage.fresh(world.name)
    door.arm(harm)
    begun = time.monotonic()
    with overheard() as said:
        lived, error = live(verb, stage.through(door))
    took = time.monotonic() - begun
    tale.injections += 1
    tale.unmet += door.met is None
    tale.longest = max(tale.longest, took)
    tale.outcomes[told_of(error, lived)] += 1
    assert took < PATIENCE
    judge(verb, door, lived, error)
    assert stage.nobody_is_left(), "a session is left"
    shown = "".join(traceback.format_exception(error)) + repr(error) if error else ""
    for where in ("\n".join(said), shown, repr(lived.value), stage.written_down()):
        assert SECRET not in where, where
    found = stage.dump()
    lost = [row for row in world.rows if row not in found[1]]
    assert lost == [] or (verb.drops and lost == world.rows), lost
    if error is None and not lived.failure:
        assert found[1] == world.after[1], "it was done, as was told"
        assert not verb.tells_all or differences(found, world.after) == [], "all was done, as was told"
    if found != world.after:
        door.arm(None)
        again, trouble = live(verb, stage.direct)
        assert trouble is None, trouble
        assert not again.failure, again.failure
        tale.healed += 1
        assert stage.nobody_is_left()
        assert differences(stage.dump(), world.after) == []


@pytest.fixture(scope="module")
def tales() -> Iterator[dict[str, Tale]]:
    """Told as one table, after the last verb."""
    tales: dict[str, Tale] = {}
    begun = time.monotonic()
    yield tales
    table = Table(title=f"Faults at each statement (TORTURE_SEED={SEED})", title_justify="left")
    for name in ("verb", "requests", "statements", "harm", "healed", "longest", "done", "reported", "raised"):
        table.add_column(
            name, justify="left" if name in ("verb", "raised") else "right", no_wrap=name == "verb"
        )
    total = Counter[str]()
    for name, tale in tales.items():
        raised = [
            (what, count) for what, count in tale.outcomes.most_common() if what not in (DONE, REPORTED)
        ]
        figures = (tale.requests, tale.statements, tale.injections, tale.healed)
        table.add_row(
            name,
            *map(str, figures),
            f"{tale.longest:.2f} s",
            *(str(tale.outcomes[what]) for what in (DONE, REPORTED)),
            ", ".join(f"{count} {what}" for what, count in raised),
        )
        total.update(tale.outcomes)
    WIDE.print()
    WIDE.print(table)
    told = {"harm done": total.total(), **total, "another run needed": sum(t.healed for t in tales.values())}
    told["not met, as the run was shorter"] = sum(t.unmet for t in tales.values())
    tell("Faults at each statement", {**told, "seconds": round(time.monotonic() - begun)})


def test_harm_is_done_between_the_statements_of_one_text(stage: Stage, databases: Databases) -> None:
    several = "BEGIN; CREATE TABLE one (it text DEFAULT 'a;b'); CREATE TABLE other (); COMMIT"
    with wire(databases.server, stage.kill, stage.hold) as door:
        engine = create_engine(stage.through(door).url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        for what, piece, there in (
            ("55P03", 1, 0),
            ("55P03", 3, 0),
            ("cut before", 0, 0),
            ("cut after", 0, 2),
        ):
            with engine.connect() as connection:
                door.arm(Harm(what, 1, piece))
                with pytest.raises(DBAPIError) as caught:
                    connection.exec_driver_sql(several)
            assert door.met is not None
            assert door.met.statements == several.split("; ")
            assert (sqlstate(caught.value) or "cut") in what
            found = scalar(stage.engine, "SELECT count(*) FROM pg_class WHERE relname IN ('one', 'other')")
            assert found == there


@pytest.mark.parametrize("name", VERBS)
def test_harm_done_to_each_statement_leaves_nothing_behind(
    name: str, stage: Stage, databases: Databases, clock: Clock, tmp_path: Path, tales: dict[str, Tale]
) -> None:
    verb, dice, made = VERBS[name](clock, tmp_path), draws(f"faults {name}"), databases.clone()
    engine = create_engine(made.url, poolclass=NullPool)
    verb.prepare(engine)
    world = World(made.name, rows_of(engine))
    with wire(databases.server, stage.kill, stage.hold) as door:
        stage.fresh(world.name)
        door.arm(None)
        lived, error = live(verb, stage.through(door))
        assert error is None, error
        assert not lived.failure, lived.failure
        world.after, requests = stage.dump(), door.requests
        statements = sum(len(r.statements) for r in requests if not r.opens)
        tale = tales[verb.name] = Tale(len(requests), statements)
        assert tale.requests > 4
        for harm in harms(requests, dice):
            try:
                suffer(verb, stage, door, world, harm, tale)
            except Exception as failed:
                where = f"{verb.name}: {harm}, {door.met or requests[harm.number - 1]}"
                raise AssertionError(f"{where}: {failed}") from failed
    databases.drop(world.name)
