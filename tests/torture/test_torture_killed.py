"""Promise 9 by the hundred: workers killed and the server stopped at random moments, beside writers.

TORTURE_ROUNDS=12 runs in seconds.
"""

from __future__ import annotations

import faulthandler
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alembic_partitions.maintenance import NOW_VARIABLE
from tests.postgres import Server, ServerError
from tests.projects import Project
from tests.torture.killing import pick
from tests.torture.telling import draws, setting, tell
from tests.torture.world import PATIENCE, VERBS, WRITERS, Run, World

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")

ROUNDS = setting("TORTURE_ROUNDS", 200)
FAULTS = KILLED, STOPPED = "the worker is killed", "the server is stopped"
#: What is also run by a new interpreter: on a rehearsed day, when nothing may be removed or moved.
ANEW = ("ensure", "upgrade")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that has written down what it acknowledged."""
    try:
        server = Server(settings={"synchronous_commit": "on", "full_page_writes": "on"})
    except ServerError as error:
        pytest.skip(f"needs a server of its own: {error}")
    yield server
    server.close()


def test_killed_and_stopped_at_random_moments(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NOW_VARIABLE, raising=False)
    begun = time.monotonic()
    project = Project.make(tmp_path / "project", "generic", server.url)
    world = World(server, tmp_path, project)
    try:
        told = through(world)
    finally:
        world.end()
    log = server.log.read_text(errors="replace")
    assert "deadlock detected" not in log
    tell("killed and stopped at random moments", {**told, "seconds": round(time.monotonic() - begun)})


@dataclass
class Struck:
    """What there is to tell of the faults so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    hits: int = 0
    changed: int = 0
    writers: int = 0


def through(world: World) -> dict[str, object]:
    """Go through all rounds; return what there is to tell."""
    dice, struck, heals = draws("killed"), Struck(), list[float]()
    world.begin()
    takes = {(verb, False): math.inf for verb in VERBS} | {(verb, True): math.inf for verb in ANEW}
    for verb, new in [*takes] * 2:  # undisturbed
        world.prepare(verb, 4)
        takes[verb, new] = min(takes[verb, new], Run(world, verb, new).succeeds())
        world.check(verb)
    plan = zip(pick(dice, ROUNDS, *VERBS), pick(dice, ROUNDS, *FAULTS), strict=True)
    for number, (verb, fault) in enumerate(plan):
        faulthandler.dump_traceback_later(
            4 * PATIENCE, exit=True
        )  # in place of pytest's, which is for it all
        world.prepare(verb, dice.randrange(2, 7))
        new = dice.random() < 0.1 and verb in ANEW
        spot, victim = dice.random(), dice.choice([None, None, *range(WRITERS)])
        try:
            hit = strike(struck, Run(world, verb, new), fault, spot * takes[verb, new], victim)
            takes[verb, new] *= 1.05 if hit else 0.75  # the machine is not as busy all the time
            heals.append(Run(world, verb, new).succeeds())
            world.check(verb)
        except BaseException as error:
            where = f"round {number} of {ROUNDS}, {verb}, {fault} at {spot:.2f} of {takes[verb, new]:.2f} s"
            raise AssertionError(f"{where}; new interpreter: {new}") from error
    faulthandler.cancel_dump_traceback_later()
    assert struck.hits > ROUNDS / 2, "most faults must hit work that is under way"
    assert struck.changed > ROUNDS / 5, "many must hit work that has changed something"
    assert world.ledger.acknowledged > ROUNDS, "the writers wrote"
    assert world.ledger.pending < world.ledger.acknowledged, "the writers were put off"
    return {
        "rounds": ROUNDS,
        **dict(sorted(struck.kinds.items())),
        "while work was under way": struck.hits,
        "of them after its first change": struck.changed,
        "writers killed beside": struck.writers,
        "a run takes about (seconds)": ", ".join(
            f"{verb}{' anew' * new} {took:.2f}" for (verb, new), took in takes.items()
        ),
        "rows sent by writers": len(world.ledger.sent),
        "acknowledged": world.ledger.acknowledged,
        "sent with unknown outcome": world.ledger.unknown,
        "told to run again (PartitionPending)": world.ledger.pending,
        "rows there at the end": world.checked,
        "rows lost, twice": "0, 0",
        "runs that healed": len(heals),
        "median, longest (seconds)": f"{statistics.median(heals):.2f}, {max(heals):.2f}",
    }


def strike(struck: Struck, doomed: Run, fault: str, after: float, victim: int | None) -> bool:
    """Let a fault come so many seconds after a run's first statement; return whether it was still under way.

    A writer may be killed beside.
    """
    world = doomed.world
    doomed.wait_for_work()
    time.sleep(max(doomed.begun + after - time.monotonic(), 0))
    hit = doomed.is_alive()
    if fault == KILLED:
        doomed.kill()
        if victim is not None:
            world.writers[victim].kill()
            struck.writers += 1
    else:
        world.shared.outages.value += 1
        world.server.stop("immediate")
    struck.kinds[f"{doomed.verb}: {fault}"] += 1
    struck.hits += hit
    struck.changed += hit and world.shared.changes.value > 0
    if fault == STOPPED:
        world.server.start()
        world.shared.outages.value += 1
        assert world.server.url == world.engine.url, "somebody took the server's port meanwhile"
    doomed.end()
    if fault == STOPPED:
        assert "Traceback" not in doomed.said.read_text()
    elif victim is not None:
        world.writers[victim].join()
        world.write(victim)
    return hit
