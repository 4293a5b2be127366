"""A fuzzed case, played; and its plain twin, played to learn what statements it may send."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError

from alembic_partitions.drivers import sqlstate
from alembic_partitions.errors import PartitionError
from tests.torture.fuzz import Texts
from tests.torture.statements import Skeletons
from tests.torture.telling import SEED

#: Plays a case with the names and texts given, and notes the scripts that it sends.
Act: TypeAlias = Callable[[Texts, "list[str]"], None]

#: So many plain cases are played at most to learn what a fuzzed one may send.
PLAIN_TWINS = 6

_SYNTAX = {"42601", "42602", "22P02", "22021", "42P02", "22P05"}


@dataclass
class Cases:
    """What was played, and what it met."""

    skeletons: Skeletons = field(default_factory=Skeletons)
    played: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    twins: int = 0
    in_twin: bool = False

    def play(self, kind: str, count: int, act: Act, *, hopeless: bool = True) -> None:
        """Play so many cases; TORTURE_CASE plays that number alone."""
        only = os.environ.get("TORTURE_CASE")
        for number in [int(only)] if only else range(count):
            self._play(kind, number, act, hopeless)

    def _play(self, kind: str, number: int, act: Act, hopeless: bool) -> None:
        told = f"TORTURE_SEED={SEED} TORTURE_CASE={number} ({kind})"
        fuzzed = Texts(random.Random(f"{SEED} {kind} {number}"), hopeless=hopeless)
        said = list[str]()
        self.played[kind] += 1
        try:
            with self.ours():
                act(fuzzed, said)
        except Exception as error:
            names = [name[:80] for name in fuzzed.own]
            raise AssertionError(
                f"{told}: {type(error).__name__}: {str(error)[:500]!r}; {names!a}"
            ) from error
        unknown = [one for one in said if not self.skeletons.knows(one, fuzzed.own)]
        if not unknown:
            return
        # What stands there depends on the names as well: two alike, or one that PostgreSQL does not take. So
        # plain twins of other cases may have to tell.
        for attempt in range(PLAIN_TWINS):
            for one in self._twin(act, random.Random(f"{SEED} {kind} {number + 1_000_000 * attempt}")):
                self.skeletons.learn(one)
            unknown = [one for one in unknown if not self.skeletons.knows(one, fuzzed.own)]
            if not unknown:
                return
        strange = [some for one in unknown for some in self.skeletons.strange(one, fuzzed.own)]
        assert strange == [], (
            f"{told}: not ours: {' '.join(strange[0])[:1500]!a}; {[n[:80] for n in fuzzed.own]!a}"
        )

    def _twin(self, act: Act, dice: random.Random) -> list[str]:
        self.twins += 1
        learned = list[str]()
        self.in_twin = True
        try:
            with suppress(PartitionError, DBAPIError):
                act(Texts(dice, plain=True), learned)
        finally:
            self.in_twin = False
        return learned

    @contextmanager
    def ours(self, *others: type[BaseException]) -> Iterator[None]:
        """Let pass what a user may meet: errors of ours, what PostgreSQL refuses, and ``others``."""
        try:
            yield
        except PartitionError as error:
            self._note(type(error).__name__)
        except DBAPIError as error:
            code = sqlstate(error)
            if code is None or code in _SYNTAX:
                raise
            self._note(f"PostgreSQL's {code}")
        except others as error:
            self._note(type(error).__name__)

    def _note(self, what: str) -> None:
        if not self.in_twin:
            self.errors[what] += 1
