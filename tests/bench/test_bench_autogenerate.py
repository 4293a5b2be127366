"""Budget: `alembic check` takes at most 1.3 times as long with 3,000 partitions as without, and is quiet.

The first lines are the comparison by itself, within a process. The last line is the same without the plugin,
once: what plain autogenerate takes, and proposes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, MetaData, create_engine, text

from alembic_partitions import PartitionPolicy
from tests.bench.measure import Row, Side, in_turns, setting, show
from tests.bench.record import RECORD
from tests.databases import Databases
from tests.projects import Project, finish

ROUNDS = setting("BENCH_ROUNDS", 9, quick=2)
PLAIN_TABLES = 30
MANY = setting("BENCH_CHILDREN", 3_000, quick=100)
CHILDREN = (0, MANY // 10, MANY)
BUDGET = 1.3
CHECKOUT = Path(__file__).resolve().parents[2]

# Older days, by SQL alone, committed now and then.
OLDER_DAYS = """
DO $$ DECLARE day date; BEGIN
  FOR n IN 2..{count} + 1 LOOP
    day := (now() AT TIME ZONE 'UTC')::date - n;
    EXECUTE format('CREATE TABLE events_%s PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                   to_char(day, 'YYYY_MM_DD'), day || ' 00:00+00', (day + 1) || ' 00:00+00');
    IF n % 100 = 0 THEN COMMIT; END IF;
  END LOOP;
END $$
"""


def application() -> MetaData:
    """Return some plain tables that refer to each other, and one by day with two indexes."""
    metadata = MetaData()
    for number in range(PLAIN_TABLES):
        parent: list[sa.Column[int]] = []
        if number:
            parent = [sa.Column("parent", sa.ForeignKey(f"plain_{number - 1}.id"))]
        sa.Table(
            f"plain_{number}",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(80), index=True),
            *parent,
        )
    sa.Table(
        "events",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("kind", sa.Text, index=True),
        sa.Index("ix_events_at_kind", "at", "kind"),
        PartitionPolicy("at", premake=0, lookback=1),
    )
    return metadata


@contextmanager
def filled(databases: Databases, children: int) -> Iterator[Engine]:
    database = databases.clone()
    engine = create_engine(database.url)
    application().create_all(engine)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if children:
            connection.execute(text(OLDER_DAYS.format(count=children)))
        connection.execute(text("VACUUM ANALYZE"))
    yield engine
    engine.dispose()
    databases.drop(database.name)


def check(engine: Engine, into: Side, **options: Any) -> int:
    """Compare as `alembic check` does; return how much was proposed."""
    metadata = application()
    with engine.connect() as connection, into.measured():
        context = MigrationContext.configure(connection, opts={"target_metadata": metadata, **options})
        proposed = compare_metadata(context, metadata)
    return len(proposed)


def project(folder: Path, engine: Engine) -> Project:
    """Make what `alembic init` makes, for the application above, at head."""
    made = Project.make(folder, "generic", engine.url)
    made.edit_env(
        "target_metadata = None",
        f"import sys\nsys.path.insert(0, {str(CHECKOUT)!r})\n"
        f"from {__name__} import application\ntarget_metadata = application()",
    )
    made.alembic("stamp", "head").succeeded()
    return made


def by_command(made: Project, into: Side) -> None:
    with into.measured():
        finish(made.start_alembic("check")).succeeded()


def test_autogenerate(databases: Databases, tmp_path: Path) -> None:
    with ExitStack() as stack:
        engines = {n: stack.enter_context(filled(databases, n)) for n in CHILDREN}
        proposed = {n: check(engine, Side()) for n, engine in engines.items()}

        def run(engine: Engine, into: Side) -> None:
            check(engine, into)

        found = in_turns({str(n): partial(run, engine) for n, engine in engines.items()}, ROUNDS)
        commands = {str(n): partial(by_command, project(tmp_path / str(n), engines[n])) for n in (0, MANY)}
        whole = in_turns(commands, ROUNDS)
        plain = Side()
        off = ["alembic.autogenerate.*", "~alembic.autogenerate.partitions"]
        by_plain = check(engines[MANY], plain, autogenerate_plugins=off)
    assert set(proposed.values()) == {0}
    rows = [
        Row(
            f"{n:,} partitions beside {PLAIN_TABLES} tables",
            found["0"],
            found[str(n)],
            None,
            (f"{proposed[n]}",),
        )
        for n in CHILDREN
    ]
    command = Row(f"{MANY:,}, the command as a whole", whole["0"], whole[str(MANY)], BUDGET, ("0",)).judged(
        f"alembic check with {MANY:,} partitions, beside none"
    )
    rows.append(command)
    rows.append(Row(f"{MANY:,}, without the plugin", found["0"], plain, None, (f"{by_plain:,}",)))
    RECORD.judge("the same: proposals", proposed[MANY], 0, "")
    show("alembic check", databases.describe(), rows, ("proposed",))
