"""Migration cases: the models now, the models wanted, and what Alembic writes to get from one to the other.

Each case is rendered, compared, and run both ways on a real server; after each way `alembic check` is clean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from textwrap import dedent, indent
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.operations import Operations
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData

import alembic_partitions
from alembic_partitions import PartitionPolicy, nz_racing_day
from tests.tables import NOW, Dump, catalog, partitions, run, without

pytestmark = pytest.mark.versions

OURS = ("partition_config", "partition_runs")

Items = list[Any]


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


def day(**fields: Any) -> PartitionPolicy:
    return nz_racing_day("at", **{"premake": 2, **fields})


def models(*items: Any, name: str = "odds", schema: str | None = None, **kw: Any) -> MetaData:
    """Return models: one table of an id, an instant and a note, with more on it."""
    metadata = MetaData()
    sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text()),
        *([] if any(isinstance(item, sa.PrimaryKeyConstraint) for item in items) else [key()]),
        *items,
        schema=schema,
        **kw,
    )
    return metadata


def referred_to() -> MetaData:
    """Return models that refer to the partitioned one: a plain one, a partitioned one, and itself."""
    metadata = models(
        day(),
        sa.Column("earlier", sa.BigInteger()),
        sa.Column("earlier_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["earlier", "earlier_at"], ["odds.id", "odds.at"], name="odds_earlier"),
    )
    for name, policy in (("bet", []), ("tick", [day()])):
        sa.Table(
            name,
            metadata,
            sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.ForeignKeyConstraint(["id", "at"], ["odds.id", "odds.at"], name=f"{name}_odds"),
            *policy,
        )
    return metadata


def key(*names: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*(names or ("id", "at")), name="odds_pkey")


def nothing() -> MetaData:
    return MetaData()


def configured(connection: sa.Connection, metadata: MetaData, **options: Any) -> MigrationContext:
    opts = {"target_metadata": metadata, "include_schemas": True, **options}
    return MigrationContext.configure(connection, opts=opts)


def written(context: MigrationContext, script: MigrationScript) -> tuple[str, str]:
    """Return the bodies that Alembic writes, without its opening and closing line."""
    found = []
    for operations in (script.upgrade_ops, script.downgrade_ops):
        assert operations is not None
        code = render_python_code(operations, migration_context=context)
        found.append("\n".join(dedent(f"    {code}").splitlines()[1:-1]))
    return found[0], found[1]


def execute(engine: Engine, code: str) -> None:
    """Run the body of a migration."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        scope = {"sa": sa, **vars(alembic_partitions), "op": Operations(context)}
        with context.begin_transaction():
            exec(f"def migrate():\n{indent(code, '    ')}\nmigrate()", scope)  # what Alembic does


def propose(engine: Engine, metadata: MetaData, **options: Any) -> tuple[str, str]:
    with engine.connect() as connection:
        context = configured(connection, metadata, **options)
        return written(context, produce_migrations(context, metadata))


def diffs(engine: Engine, metadata: MetaData, **options: Any) -> list[Any]:
    """Return what `alembic check` complains about."""
    with engine.connect() as connection:
        found = compare_metadata(configured(connection, metadata, **options), metadata)
    assert isinstance(found, list)
    return found


def bring_about(engine: Engine, metadata: MetaData) -> None:
    execute(engine, propose(engine, metadata)[0])
    assert diffs(engine, metadata) == []


def comparable(engine: Engine) -> Dump:
    """Return the catalog: columns by name, as one that is dropped and added again comes last."""
    found = catalog(engine)
    found["columns"] = sorted(((*row[:2], None, *row[3:]) for row in found["columns"]), key=str)
    return found


@dataclass
class Case:
    now: Callable[[], MetaData]
    wanted: Callable[[], MetaData]
    up: str
    down: str


CREATE = """
    op.create_partitioned_table('odds',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=False), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('note', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('id', 'at', name='odds_pkey'),
    policy=PartitionPolicy('at', timezone='Pacific/Auckland', premake=2)
    )
"""
# As PostgreSQL tells it back, for the way down.
RECREATE = """
    op.create_partitioned_table('odds',
    sa.Column('id', sa.BIGINT(), sa.Identity(always=False, start=1, increment=1, minvalue=1, maxvalue=9223372036854775807, cycle=False, cache=1), autoincrement=True, nullable=False),
    sa.Column('at', postgresql.TIMESTAMP(timezone=True), autoincrement=False, nullable=False),
    sa.Column('note', sa.TEXT(), autoincrement=False, nullable=True),
    sa.PrimaryKeyConstraint('id', 'at', name=op.f('odds_pkey')),
    policy=PartitionPolicy('at', timezone='Pacific/Auckland', premake=2)
    )
"""  # noqa: E501
PASS = "pass"

IN_PUBLIC = CREATE.replace("    policy=", "    schema='public',\n    policy=")

CASES = {
    "a new model that names the default schema": Case(
        nothing,
        lambda: models(day(), sa.Index("by_note", "note", postgresql_concurrently=True), schema="public"),
        IN_PUBLIC + "    op.create_index('by_note', 'odds', ['note'], unique=False, schema='public')",
        "    op.drop_index('by_note', table_name='odds', schema='public')\n"
        "    op.drop_partitioned_table('odds', schema='public')",
    ),
    "a new model": Case(nothing, lambda: models(day()), CREATE, "    op.drop_partitioned_table('odds')"),
    "a new model with all that hangs on it": Case(
        nothing,
        lambda: models(
            day(retention="90 days", storage_parameters={"fillfactor": 70}),
            sa.Column("kind", sa.String(9), server_default="it's", index=True, comment="in %"),
            sa.CheckConstraint("id > 0", name="positive"),
            sa.UniqueConstraint("at", "kind", name="once"),
            sa.Index("by_note", "note", postgresql_where=sa.text("note <> ''")),
            comment="100%",
        ),
        """
    op.create_partitioned_table('odds',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=False), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('note', sa.Text(), nullable=True),
    sa.Column('kind', sa.String(length=9), server_default="it's", nullable=True, comment='in %'),
    sa.CheckConstraint('id > 0', name='positive'),
    sa.PrimaryKeyConstraint('id', 'at', name='odds_pkey'),
    sa.UniqueConstraint('at', 'kind', name='once'),
    comment='100%',
    policy=PartitionPolicy('at', timezone='Pacific/Auckland', premake=2, retention='90 days', storage_parameters={'fillfactor': '70'})
    )
    op.create_index('by_note', 'odds', ['note'], unique=False, postgresql_where=sa.text("note <> ''"))
    op.create_index(op.f('ix_odds_kind'), 'odds', ['kind'], unique=False)
""",  # noqa: E501
        """
    op.drop_index(op.f('ix_odds_kind'), table_name='odds')
    op.drop_index('by_note', table_name='odds', postgresql_where=sa.text("note <> ''"))
    op.drop_partitioned_table('odds')
""",
    ),
    "a new model in another schema": Case(
        nothing,
        lambda: models(day(), name="Größe", schema="My App"),
        CREATE.replace("'odds'", "'Größe'", 1).replace("    policy=", "    schema='My App',\n    policy="),
        "    op.drop_partitioned_table('Größe', schema='My App')",
    ),
    "a model removed": Case(
        lambda: models(day()), nothing, "    op.drop_partitioned_table('odds')", RECREATE
    ),
    "a policy changed": Case(
        lambda: models(day()),
        lambda: models(day(premake=4, retention="90 days")),
        "    op.alter_partition_policy('odds', premake=4, retention='90 days', existing_premake=2,"
        " existing_retention=None)",
        "    op.alter_partition_policy('odds', premake=2, retention=None, existing_premake=4,"
        " existing_retention='90 days')",
    ),
    "a policy changed in another schema": Case(
        lambda: models(day(), schema="My App"),
        lambda: models(day(on_expiry="drop"), schema="My App"),
        "op.alter_partition_policy('odds', on_expiry='drop', existing_on_expiry='detach', schema='My App')",
        "op.alter_partition_policy('odds', on_expiry='detach', existing_on_expiry='drop', schema='My App')",
    ),
    "a column, an index and a constraint more": Case(
        lambda: models(day()),
        lambda: models(
            day(),
            sa.Column("kind", sa.Integer(), index=True),
            sa.UniqueConstraint("at", "note", name="once"),
        ),
        """
    op.add_column('odds', sa.Column('kind', sa.Integer(), nullable=True))
    op.create_index(op.f('ix_odds_kind'), 'odds', ['kind'], unique=False)
    op.create_unique_constraint('once', 'odds', ['at', 'note'])
""",
        """
    op.drop_constraint('once', 'odds', type_='unique')
    op.drop_index(op.f('ix_odds_kind'), table_name='odds')
    op.drop_column('odds', 'kind')
""",
    ),
    "a column of another type": Case(
        lambda: models(day(), sa.Column("kind", sa.Integer())),
        lambda: models(day(), sa.Column("kind", sa.BigInteger())),
        """
    op.alter_column('odds', 'kind',
               existing_type=sa.INTEGER(),
               type_=sa.BigInteger(),
               existing_nullable=True)
""",
        """
    op.alter_column('odds', 'kind',
               existing_type=sa.BigInteger(),
               type_=sa.INTEGER(),
               existing_nullable=True)
""",
    ),
    "nothing": Case(lambda: models(day()), lambda: models(day()), PASS, PASS),
    "an index that asks to be built concurrently, on a table that is there": Case(
        lambda: models(day()),
        lambda: models(day(), sa.Index("by_note", "note", postgresql_concurrently=True)),
        "    op.create_partitioned_index('by_note', 'odds', ['note'], unique=False)",
        "    op.drop_partitioned_index('by_note', table_name='odds')",
    ),
    "an index that asks to be built concurrently, on a new table": Case(
        nothing,
        lambda: models(day(), sa.Index("by_note", "note", postgresql_concurrently=True)),
        CREATE + "    op.create_index('by_note', 'odds', ['note'], unique=False)",
        "    op.drop_index('by_note', table_name='odds')\n    op.drop_partitioned_table('odds')",
    ),
}


def body(text: str) -> str:
    return dedent(text).strip("\n").replace("\n\n", "\n")


@pytest.mark.parametrize("wanted", [nothing, lambda: models(day())], ids=["all removed", "some removed"])
def test_foreign_keys_to_a_partitioned_table_are_one_each(
    engine: Engine, wanted: Callable[[], MetaData]
) -> None:
    """PostgreSQL makes one for each partition beside, which come and go with these."""
    bring_about(engine, referred_to())
    assert diffs(engine, referred_to()) == []
    before = comparable(engine)
    up, down = propose(engine, wanted())
    assert "odds_2026" not in up + down
    if wanted is not nothing:  # which of several tables Alembic drops first is a matter of hashes
        down = down.replace("postgresql.TIMESTAMP", "sa.TIMESTAMP")
        execute(engine, up)
        assert diffs(engine, wanted()) == []
        execute(engine, down)
        assert declared_by_us(comparable(engine)) == declared_by_us(before)


def declared_by_us(dump: Dump) -> Dump:
    """Leave out what PostgreSQL makes for each partition, and numbers as it comes."""
    return {name: [row for row in found if "odds_2026" not in str(row)] for name, found in dump.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_written_and_both_ways_of_it(engine: Engine, case: Case) -> None:
    run(engine, 'CREATE SCHEMA "My App"')
    bring_about(engine, case.now())
    before = comparable(engine)

    up, down = propose(engine, case.wanted())
    assert up == body(case.up)
    assert down == body(case.down)
    down = down.replace("postgresql.TIMESTAMP", "sa.TIMESTAMP")

    execute(engine, up)
    assert diffs(engine, case.wanted()) == []
    after = comparable(engine)
    execute(engine, down)
    assert diffs(engine, case.now()) == []
    again = comparable(engine)
    if "partition_config" not in str(before):  # our two tables stay
        before, again = without(before, *OURS), without(again, *OURS)
    assert again == before
    execute(engine, up)
    assert diffs(engine, case.wanted()) == []
    assert comparable(engine) == after


# -- what cannot be altered in place: a comment, and nothing that runs ----------------------------------


REMARKS = {
    "another key": (
        lambda: models(
            day(), sa.Column("seen", sa.DateTime(timezone=True), nullable=False), key("id", "at", "seen")
        ),
        lambda: models(
            nz_racing_day("seen", premake=2),
            sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
            key("id", "at", "seen"),
        ),
        "odds is partitioned by RANGE (at); its model by RANGE (seen).",
        "create a new table",
    ),
    "another interval and zone": (
        lambda: models(day()),
        lambda: models(PartitionPolicy("at", interval="week")),
        "interval 'day' -> 'week', timezone 'Pacific/Auckland' -> 'UTC', premake 2 -> 8.",
        "op.alter_partition_policy('odds', interval='week', timezone='UTC', premake=8, existing_interval=",
    ),
    "a plain table whose model gained a policy": (
        models,
        lambda: models(day()),
        "odds is a plain table; its model is partitioned by RANGE (at).",
        "existing_primary_key=['id', 'at'])",
    ),
    "a model that lost its policy": (
        lambda: models(day()),
        models,
        "odds is partitioned by RANGE (at) and managed; its model has no policy.",
        "Put the PartitionPolicy back",
    ),
    "a model whose bare PARTITION BY differs": (
        lambda: models(day()),
        lambda: models(postgresql_partition_by="LIST (note)"),
        "odds is partitioned by RANGE (at); its model is partitioned by LIST (note).",
        "PostgreSQL cannot change that in place.",
    ),
    "a plain table whose model gained a bare PARTITION BY": (
        models,
        lambda: models(postgresql_partition_by="RANGE (at)"),
        "odds is a plain table; its model is partitioned by RANGE (at).",
        "PostgreSQL cannot change that in place.",
    ),
}


def told(code: str) -> str:
    """Return what the comments of a migration say, as running text."""
    lines = [line.strip() for line in code.splitlines()]
    assert all(line.startswith("#") for line in lines[:-1]), code
    assert lines[-1] == "pass"  # comments alone are no body
    return " ".join(line.removeprefix("# ") for line in lines[:-1])


@pytest.mark.parametrize(("now", "wanted", "problem", "remedy"), REMARKS.values(), ids=REMARKS.keys())
def test_what_cannot_be_altered_in_place_is_a_remark_with_the_remedy(
    engine: Engine, now: Callable[[], MetaData], wanted: Callable[[], MetaData], problem: str, remedy: str
) -> None:
    bring_about(engine, now())
    before = catalog(engine)
    up, down = propose(engine, wanted())
    said = told(up)
    assert said.startswith("alembic_partitions: ")
    assert problem in said
    assert remedy.lower() in said.lower()
    if any(f"# op.{line}" in up for line in ("alter", "convert", "unpartition")):
        assert "commented out above" in told(down)
    else:
        assert down == PASS
    execute(engine, up)
    execute(engine, down)
    assert catalog(engine) == before
    (left,) = diffs(engine, wanted())  # until somebody has decided, `alembic check` says so
    assert left[0] == "partition_remark"


LISTED = "CREATE TABLE odds (id bigint, at timestamptz, note text, CONSTRAINT odds_pkey PRIMARY KEY (id, at))"


@pytest.mark.parametrize(
    ("by", "problem"),
    [
        ("LIST (at)", "partitioned by LIST (at); its model by RANGE (at)"),
        ("HASH (id)", "partitioned by HASH (id); its model by RANGE (at)"),
    ],
)
def test_a_table_partitioned_by_other_means_is_remarked_on(engine: Engine, by: str, problem: str) -> None:
    run(engine, f"{LISTED} PARTITION BY {by}")
    wanted = models(day())
    wanted.tables["odds"].c.id.identity = None
    said = told("\n".join(line for line in propose(engine, wanted)[0].splitlines() if "op." not in line))
    assert problem in said


def test_a_plain_table_is_converted_by_the_remarks_line_and_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")  # by a rehearsed clock nothing is converted
    bring_about(engine, models())
    partitioned = models(day())
    up, down = (
        next(line.strip("# ") for line in remark.splitlines() if "op." in line)
        for remark in propose(engine, partitioned)
    )
    assert up.startswith("op.convert_to_partitioned('odds'")
    execute(engine, up)
    assert diffs(engine, partitioned) == []
    assert propose(engine, models())[0].splitlines()[-2].startswith("# op.unpartition_table('odds'")
    execute(engine, down)
    assert diffs(engine, models()) == []


def test_the_remarks_line_taken_in_applies_from_now_on_and_back(engine: Engine) -> None:
    bring_about(engine, models(day()))
    weekly = models(PartitionPolicy("at", interval="week", timezone="Pacific/Auckland", premake=2))
    before = catalog(engine)
    up, down = (
        next(line.strip("# ") for line in remark.splitlines() if "alter_partition_policy" in line)
        for remark in propose(engine, weekly)
    )
    execute(engine, up)
    assert diffs(engine, weekly) == []
    execute(engine, down)
    assert diffs(engine, models(day())) == []
    assert catalog(engine) == before
    execute(engine, up)
    with engine.connect() as connection:
        (plan,) = alembic_partitions.maintenance.plan(connection)
        assert "4 partitions [2026-04-03 11:00:00+00:00, 2026-04-07 12:00:00+00:00)" in plan.sql()
        assert (
            "they are on another grid, an earlier policy's perhaps; new windows begin where they end"
            in plan.sql()
        )
    with engine.connect() as connection:
        alembic_partitions.maintenance.ensure(connection)
    assert partitions(engine) == [
        "odds_2026_03_23",
        "odds_2026_03_30",
        "odds_2026_04_04",
        "odds_2026_04_05",
        "odds_2026_04_06",
        "odds_2026_04_07",
        "odds_2026_04_07_120000z",
        "odds_2026_04_13",
    ]
