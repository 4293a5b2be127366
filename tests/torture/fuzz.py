"""Names, policies and bounds as nobody means them: drawn, so that TORTURE_SEED brings them about again."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

import pytz

from alembic_partitions.periods import INTERVALS, WEEKDAYS, Grid, KeyType, KeyValue
from alembic_partitions.plan import Partition
from alembic_partitions.policy import PartitionPolicy

UTC = timezone.utc
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

# What gets out of quotes, comments, placeholders and markup, and what PostgreSQL takes for something else.
_EVIL = (
    *('x"; DROP TABLE canary.bird; --', "x'; DROP TABLE canary.bird; --", "$$; DROP TABLE canary.bird; $$"),
    *("$alembic_partitions$", "$alembic_partitions$; DROP TABLE canary.bird; $alembic_partitions_$", "$1"),
    *(
        "%s",
        "%(name)s",
        "%%",
        "100%",
        "%I",
        "%L",
        "{0}",
        "{problem}",
        "{",
        "}",
        ":name",
        ":x::int",
        "?",
        "@home@",
    ),
    *("@config_text@", "a.b", '"."', "\\", "\\'", "\\'; DROP TABLE canary.bird; --", "E'\\'", "a\nb", ";"),
    *(
        "\n; DROP TABLE canary.bird;\n--",
        "\r\nDROP TABLE canary.bird;--",
        "/*",
        "*/",
        "--",
        "/* x */",
        "''",
        '""',
    ),
    *("select", "user", "all", "default", "null", "true", "public"),
    *("pg_catalog", "partition_config", "odds_2026_04_05", "Ünïcödé", "日本語の表", "😀", "\u202e", "\ufeff"),
    *(
        "\u00a0",
        "\u2028",
        "\t",
        " ",
        " x ",
        "\x07",
        "\x1b[31mred",
        "\x7f",
        "[bold]x[/bold]",
        "[/]",
        "'",
        '"',
        "`",
    ),
    *(
        "x" * 63,
        "é" * 31 + "x",
        "日" * 21,
        "x" * 62 + '"',
        "name",
        "oid",
        "relname",
        "v",
        "i",
        "A",
        "ＡＢ",
        "ı",
    ),
)
# What no name of PostgreSQL's can be.
_NONE = ("", "\0", "a\0b", "\ud800", "x\udfff", "x" * 64, "é" * 32, "x" * 100_000, "日" * 22)
_PIECES = (*"\"'\\;%$-/*.,(){}[]:@\n\t ", "$$", "--", "aA", "é", "1", "x", "_", "DROP TABLE canary.bird")


def fits(name: str) -> bool:
    """Tell whether PostgreSQL can have the name at all."""
    try:
        return 0 < len(name.encode()) <= 63 and "\0" not in name
    except UnicodeEncodeError:
        return False


@dataclass
class Texts:
    """What people call things, and what they type: evil, or in a plain twin of the same case harmless.

    A plain name must be quoted too, so that no skeleton depends on that.
    """

    dice: random.Random
    plain: bool = False
    #: Whether names may be such as PostgreSQL cannot have.
    hopeless: bool = True
    own: list[str] = field(default_factory=list)
    #: What the last name is in the evil one of two twins: on it decide what both do.
    evil: str = ""

    def name(self, plain: str = "Thing") -> str:
        """Return a name of a table, a column, a schema..."""
        self.evil = evil_name(self.dice, 0.04 if self.hopeless else 0.0)
        name = f"A {plain} {len(self.own)}" if self.plain else self.evil
        self.own.append(name)
        return name

    def text(self, plain: str) -> str:
        """Return what somebody types where only ``plain`` or its like makes sense."""
        evil = evil_name(self.dice, 0.1)
        given = self.dice.random() < 0.5
        self.own.append(evil)
        return plain if self.plain or given else evil


def evil_name(dice: random.Random, hopeless: float) -> str:
    """Return a name."""
    chance = dice.random()
    if chance < hopeless:
        return dice.choice(_NONE)
    if chance < 0.6:
        return dice.choice(_EVIL)
    name = "".join(dice.choice(_PIECES + _EVIL[:12]) for _ in range(dice.randrange(1, 6)))
    name = name.encode()[:63].decode(errors="ignore")
    return name or "x"


class Odd:
    """An object that is nothing we know."""

    def __repr__(self) -> str:
        return "Odd()"


def oddity(dice: random.Random) -> Any:
    """Return any value at all."""
    return dice.choice(
        (
            *(None, True, False, 0, -1, 1, 2, 7, 24, 400, 10_000, 10_001, 2**31, 2**63, 10**30, -(10**30)),
            *(
                10**5000,
                0.5,
                1e400,
                math.nan,
                -math.inf,
                1j,
                b"x",
                b"\xff",
                "٣",
                "²",
                "1e3",
                "0x10",
                " 7 ",
                "7\n",
            ),
            *(
                (),
                [],
                [1],
                {},
                {"a": 1},
                {1: 2},
                {None: None},
                set(),
                object,
                Odd(),
                len,
                datetime.max,
                date.min,
            ),
            *(timedelta.max, "90 days", "٩ days", "90 dayss", "0 days", "-1 days", "1 day\n", "90  days"),
            *(
                "999999 years",
                "1000000 years",
                "1 Day",
                "1 day; DROP TABLE canary.bird",
                "00:00",
                "24:00",
                "٠٠:٠٠",
            ),
            *(
                "00:00\n",
                "23:59",
                "-1:00",
                "utc",
                "UTC",
                "UTC\0",
                "../../etc/passwd",
                "Pacific/Auckland",
                "posixrules",
            ),
            *("Monday", "monday", "day", "DAY", "drop", "archive", "ns", "s", evil_name(dice, 0.2)),
        )
    )


def fields(dice: random.Random, texts: Texts, wild: float = 0.0) -> dict[str, Any]:
    """Return the fields of a policy, each of them an oddity as often as told."""
    interval = dice.choice(INTERVALS)
    every = dice.choice((1, 1, 1, 2, 3, 4, 12) if interval == "hour" else (1, 1, 1, 2, 5, 13, 1000))
    found: dict[str, Any] = {
        "key": texts.name("key"),
        "interval": interval,
        "every": every,
        "timezone": dice.choice(pytz.all_timezones),
        "day_start": f"{dice.randrange(24):02}:{dice.randrange(60):02}",
        "week_start": dice.choice(WEEKDAYS),
        "premake": dice.choice((0, 1, 2, 5)),
        "lookback": dice.choice((0, 1, 3)),
        "retention": dice.choice(
            (None, None, "2 days", "5 weeks", "3 months", "2 years", "999999 years", "30 hours")
        ),
        "on_expiry": dice.choice(("detach", "drop")),
        "grace": dice.choice(("7 days", "1 hour", "999999 quarters")),
        "max_ahead": dice.choice(("366 days", "1 hour", "999999 years")),
        "max_behind": dice.choice((None, "5 days", "999999 years")),
        "max_create": dice.choice((1, 5, 400)),
        "max_drops": dice.choice((1, 10)),
        "column_timezone": dice.choice((None, "UTC", "Asia/Kathmandu")),
        "storage_parameters": dice.choice(({}, {}, {"fillfactor": 70}, {"autovacuum_enabled": False})),
        "enabled": dice.random() < 0.9,
    }
    for name in list(found):
        if name != "key" and dice.random() < 0.5:
            del found[name]
    for name in (*found, "epoch", "tablespace", "archive_schema", "storage_parameters", "_", "no_such", ""):
        if dice.random() < wild:
            found[name] = oddity(dice)
    if wild and dice.random() < 0.2:
        value: Any = dice.choice((evil_name(dice, 0.3), math.inf, Odd(), "70", 10**5000, None, {}))
        found["storage_parameters"] = {dice.choice((evil_name(dice, 0.3), "fillfactor", "a.b", 7)): value}
    return found


def moment(dice: random.Random) -> datetime:
    """Return an instant: mostly of these years, else any of the calendar's."""
    if dice.random() < 0.75:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=dice.randrange(-(10**8), 10**8))
    if dice.random() < 0.3:
        return dice.choice(
            (
                FIRST,
                LAST,
                LAST - timedelta(days=1),
                FIRST + timedelta(hours=20),
                datetime(1970, 1, 1, tzinfo=UTC),
            )
        )
    return FIRST + (LAST - FIRST) * dice.random()


def as_key(grid: Grid, instant: datetime) -> KeyValue:
    """Return an instant as a value of the key, whether or not a window can hold it."""
    naive = instant.replace(tzinfo=None)
    return {"timestamp": naive, "date": naive.date()}.get(grid.key_type, instant)


def partitions(dice: random.Random, grid: Grid, now: datetime, texts: Texts) -> tuple[Partition, ...]:
    """Return partitions such as people and older policies leave behind: in order, but else at odds."""
    around, cuts = as_key(grid, now), set[KeyValue]()
    for _ in range(dice.randrange(9)):
        try:
            if dice.random() < 0.5:
                window = grid.at(grid.key_at(now + timedelta(days=dice.uniform(-9, 9))))
                cuts |= {window.begin, window.end}
            else:
                step = timedelta(days=dice.choice((1, 7, 400, 10**6)) * dice.uniform(-1, 1))
                cuts.add(around + (timedelta(days=step.days) if grid.key_type == "date" else step))
        except (OverflowError, ValueError):
            cuts.add(as_key(grid, dice.choice((FIRST, LAST))))
    ordered = sorted(cuts)
    edges: list[KeyValue | None] = [*([None] if dice.random() < 0.2 else []), *ordered]
    edges += [None] if dice.random() < 0.2 and edges and edges[-1] is not None else []
    found, schema = [], texts.name("schema")
    marks = (None, "", "alembic_partitions: made by ensure", "alembic_partitions: detaching {")
    for number in range(len(edges) - 1):
        mark = dice.choice(marks)
        name, pending = texts.name("part"), dice.random() < 0.06
        if dice.random() < 0.7 and (edges[number], edges[number + 1]) != (None, None):
            found.append(
                Partition(number + 9, schema, name, edges[number], edges[number + 1], False, pending, mark)
            )
    name = texts.name("default")
    if dice.random() < 0.2:
        found.append(Partition(8, schema, name, None, None, True))
    dice.shuffle(found)
    return tuple(found)


KEY_TYPES: tuple[KeyType, ...] = (
    *("timestamptz", "timestamptz", "timestamp", "date", "epoch_s", "epoch_s_int4", "epoch_ms", "epoch_us"),
    *("epoch_ns", "uuidv7", "uuidv7_full"),
)


def fitting(policy: PartitionPolicy, dice: random.Random) -> tuple[PartitionPolicy, KeyType]:
    """Return a policy with the type of a key, and the unit that goes with it, whether or not they fit."""
    key_type = dice.choice(KEY_TYPES)
    if key_type.startswith("epoch_") and dice.random() < 0.9:
        return policy.changed(epoch=key_type.split("_")[1]), key_type
    return policy, key_type
