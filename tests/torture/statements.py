"""What a statement is made of, whatever names and values stand in it; and what a server was sent.

A statement's skeleton is its tokens without what each name and each literal says. However a table is called,
the verbs send the skeletons that they send for plain names: a name that gets out of its quotes leaves tokens
of its own.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Engine, event

from tests.postgres import Server

Skeleton: TypeAlias = "tuple[str, ...]"

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|--[^\n]*)
    | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
    | (?P<literal>[eE]'(?:[^'\\]|\\.|'')*' | (?:[bBxX]|[uU]&)?'(?:[^']|'')*' | \d[\w.]*)
    | (?P<name>"(?:[^"]|"")*")
    | (?P<word>[^\W\d][\w$]*)
    | (?P<sign>::|.)
    """,
    re.VERBOSE | re.DOTALL,
)
#: What stands for any quoted name, and for any literal: no word can be like them.
NAME, LITERAL = "<name>", "<value>"
_VALUES = {"null", "true", "false"}


def tokens(sql: str) -> Iterator[str]:
    """Yield the tokens: with NAME and LITERAL for what can be anything; of what dollars quote, too."""
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        assert match is not None
        at, kind = match.end(), match.lastgroup
        if kind == "dollar":
            end = sql.find(match[0], at)
            assert end >= 0, f"{match[0]} is never closed: {sql!r}"
            yield "$("
            yield from tokens(sql[at:end])
            yield "$)"
            at = end + len(match[0])
        elif kind == "literal":
            yield LITERAL
        elif kind == "name":
            yield NAME
        elif kind == "word":
            word = match[0].lower()
            yield LITERAL if word in _VALUES else word
        elif kind == "sign":
            yield match[0]


def statements(script: str) -> list[list[str]]:
    """Return the statements of a script as tokens, the empty ones left out."""
    found: list[list[str]] = [[]]
    depth = 0
    for token in tokens(script):
        depth += (token == "$(") - (token == "$)")
        if token == ";" and depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    return [some for some in found if some]


@dataclass
class Skeletons:
    """The skeletons that plain names give: known once a plain twin of a case has been seen."""

    known: set[Skeleton] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    checked: int = 0
    _seen: set[str] = field(default_factory=set)

    def learn(self, script: str) -> None:
        """Take what plain names gave; these are such as must be quoted, so a word is none of them."""
        for some in statements(script):
            self.words.update(token for token in some if _is_word(token))
            self.known.add(folded(some))

    def knows(self, script: str, own: Collection[str]) -> bool:
        """Tell whether a script has known statements only.

        :param own: its case's own names: bare ones may be words of ours as well.
        """
        if script in self._seen:
            self.checked += 1
            return True
        if self.strange(script, own):
            return False
        self._seen.add(script)
        return True

    def strange(self, script: str, own: Collection[str]) -> list[list[str]]:
        """Return the statements of a script that are not known."""
        bare = {name for name in own if name in self.words}
        return [some for some in statements(script) if not self._knows(some, bare)]

    def _knows(self, some: list[str], bare: set[str]) -> bool:
        self.checked += 1
        shown = [NAME if _is_word(token) and token not in self.words else token for token in some]
        if folded(shown) in self.known:
            return True
        if not bare:
            return False
        blurred = folded([NAME if token in bare else token for token in shown])
        return any(
            folded([NAME if token in bare else token for token in one]) == blurred for one in self.known
        )


def _is_word(token: str) -> bool:
    return token[0].isalpha() or token[0] == "_"


def folded(some: Collection[str]) -> Skeleton:
    """Fold what is as long as what there is to say: lists of names and values, casts, signs of numbers."""
    found: list[str] = []
    for token in some:
        found.append(token)
        while _fold(found):
            pass
    return tuple(found)


def _fold(found: list[str]) -> bool:
    last = found[-1]
    if len(found) < 3 or not (last in (LITERAL, NAME, ")", "]") or found[-2] == "::"):
        return False
    if (
        found[-3:-1] == [LITERAL, "::"]
        or (last in (LITERAL, NAME) and found[-3:-1] == [last, ","])
        or found[-3:] == [NAME, ".", NAME]
    ):  # how a driver writes a value's type down
        del found[-2:]
    elif last == LITERAL and found[-2] == "-" and found[-3] in ("=", "(", ","):
        del found[-2]
    elif last == "]" and found[-2] == "[":
        found[-3:] = [LITERAL]
    elif found[-4:] == ["array", "[", LITERAL, "]"]:
        found[-4:] = [LITERAL]
    elif last == ")":
        return _fold_group(found)
    else:
        return False
    return True


def _fold_group(found: list[str]) -> bool:
    """Fold ``(v, i), (v, i)``."""
    depth = 0
    for begin in range(len(found) - 1, -1, -1):
        depth += (found[begin] == ")") - (found[begin] == "(")
        if depth == 0:
            group = found[begin:]
            size = len(group)
            if begin > size and found[begin - 1] == "," and found[begin - 1 - size : begin - 1] == group:
                del found[begin - 1 :]
                return True
            return False
    return False


# -- what a server was sent ----------------------------------------------------------------------------

#: What psycopg2 and SQLAlchemy send by themselves as they open, begin and end.
DRIVER = {
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "select pg_catalog.version()",
    "select current_schema()",
    "show standard_conforming_strings",
    "show transaction isolation level",
    "SET default_transaction_isolation TO DEFAULT",
    "BEGIN ISOLATION LEVEL READ COMMITTED",
}
_HSTORE = "WHERE typname = 'hstore'"  # psycopg2 looks whether it is there
#: The name under which a torture's own preparations are made.
OURSELVES = "torture"


@dataclass
class Witness:
    """What SQLAlchemy gave to the driver, and what the server says that it got, session by session."""

    server: Server
    sent: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    #: Of the case that is under way.
    case: list[str] = field(default_factory=list)

    @staticmethod
    def settings() -> dict[str, str]:
        """Return what a server is started with, to log each statement as JSON."""
        return {
            "logging_collector": "on",
            "log_destination": "'jsonlog'",
            "log_directory": "'log'",
            "log_filename": "'torture'",
            "log_rotation_age": "0",
            "log_rotation_size": "0",
            "log_statement": "'all'",
            "log_min_error_statement": "error",
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to every engine of this process."""
        event.listen(Engine, "after_cursor_execute", self._after)
        event.listen(Engine, "handle_error", self._failed)
        try:
            yield
        finally:
            event.remove(Engine, "after_cursor_execute", self._after)
            event.remove(Engine, "handle_error", self._failed)

    def _after(self, connection: Any, cursor: Any, *rest: Any) -> None:
        self._note(cursor)

    def _failed(self, context: Any) -> None:
        execution = context.execution_context
        self._note(None if execution is None else execution.cursor)

    def _note(self, cursor: Any) -> None:
        if cursor is None or getattr(cursor, "query", None) is None:
            return  # refused before it was sent
        dsn = cursor.connection.info
        if dsn.dsn_parameters.get("application_name") == OURSELVES:
            return
        said = cursor.query.decode()
        self.sent[dsn.backend_pid].append(said)
        self.case.append(said)

    def logged(self, admin: Any) -> dict[int, list[str]]:
        """Return what the server's log says it got, by backend."""
        end = f"the end {time.monotonic_ns()}"
        admin.exec_driver_sql(f"SELECT '{end}'")
        path = Path(self.server.data, "log", "torture.json")
        deadline = time.monotonic() + 30
        while end not in path.read_text(errors="replace"):
            assert time.monotonic() < deadline, "the server logs no statements"
            time.sleep(0.1)
        found: dict[int, list[str]] = defaultdict(list)
        for line in path.read_text().split("\n"):
            if not line:
                continue
            entry = json.loads(line)
            if entry.get("application_name") == OURSELVES or entry.get("backend_type") != "client backend":
                continue
            said = found[entry["pid"]]
            message = entry["message"]
            if entry["error_severity"] == "LOG" and message.startswith("statement: "):
                said.append(message.removeprefix("statement: "))
            elif "statement" in entry and entry["error_severity"] in ("ERROR", "FATAL"):
                # One that could not even be parsed is told of here alone.
                said += [entry["statement"]] if said[-1:] != [entry["statement"]] else []
        return found

    def strangers(self, admin: Any) -> list[tuple[int, str]]:
        """Return what the server got and nobody here sent, or what was sent and never came there."""
        found = []
        logged = self.logged(admin)
        for pid in {**logged, **self.sent}:
            left = Counter(logged.get(pid, ()))
            left.subtract(Counter(self.sent.get(pid, ())))
            found += [
                (pid, one)
                for one, count in left.items()
                if count and one not in DRIVER and _HSTORE not in one
            ]
        return found
