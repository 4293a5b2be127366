"""Tables that somebody else has partitioned: proposed, adopted, continued exactly, let go again.

The sets below tests/data/partman were made by the real pg_partman; see the head of part_config.sql.
"""

from __future__ import annotations

import io
import json
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

from alembic_partitions import PartitionPolicy, adoption, cli, ddl, maintenance
from alembic_partitions.errors import AdoptionRefused, NotManagedError
from alembic_partitions.plan import PARTITION_MARK, Coverage
from tests.clock import Clock
from tests.databases import Database
from tests.db.test_autogenerate import diffs, execute, propose
from tests.tables import NOW, catalog, listening, operations, partitions, quote, rows, run, scalar, without
from tests.terminal import caller
from tests.zones import utc

pytestmark = pytest.mark.ends

RECORDED = Path(__file__).parents[1] / "data" / "partman"
OURS = ("partition_config", "partition_runs")
BERLIN = "Europe/Berlin"
DRIFTED = PartitionPolicy("at", timezone=BERLIN, premake=6)


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())
    monkeypatch.delenv("DATABASE_URL", raising=False)


def load(engine: Engine, *names: str) -> None:
    """Load sets as pg_partman had made them."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL TimeZone = 'UTC'")
        for name in names:
            script = (RECORDED / f"{name}.sql").read_text(encoding="utf-8")
            connection.exec_driver_sql(script, execution_options={"no_parameters": True})


def hand_over(engine: Engine, name: str) -> None:
    statement = (
        "UPDATE partman.part_config SET automatic_maintenance = 'off' WHERE parent_table = 'public.{}'"
    )
    run(engine, statement.format(name))


def by_hand(engine: Engine, name: str = "events", days: int = 4, zone: str = "UTC", more: str = "") -> None:
    """Partition a table by days as people do, around NOW; one day before them is off the grid."""
    table = quote(name)
    run(
        engine,
        f"CREATE TABLE {table} (id bigint, at timestamptz NOT NULL, note text) PARTITION BY RANGE (at)",
    )
    begin = f"2026-04-04 {0:02}:00:00+00"
    first = datetime.fromisoformat("2026-04-04")
    for n in range(days):
        day, after = (f"{first + timedelta(days=n + k):%Y-%m-%d} 00:00:00+00" for k in (0, 1))
        child = quote(f"{name}_{n}")
        run(engine, f"CREATE TABLE {child} PARTITION OF {table} FOR VALUES FROM ('{day}') TO ('{after}')")
    odd = quote(f"{name}_odd")
    run(
        engine,
        f"CREATE TABLE {odd} PARTITION OF {table} FOR VALUES FROM ('2026-04-03 07:00+00') TO ('{begin}')",
    )


def adopt(engine: Engine, name: str = "events", policy: PartitionPolicy | None = None, **kw: Any) -> None:
    with operations(engine) as op:
        op.adopt_partitioned_table(name, policy or PartitionPolicy("at", premake=5), **kw)


def ensure(engine: Engine) -> maintenance.Report:
    with engine.connect() as connection:
        return maintenance.ensure(connection)


def look(engine: Engine, name: str, **given: Any) -> adoption.Adoptable:
    with engine.connect() as connection:
        found = adoption.look(connection, name, given)
    assert found is not None
    return found


def comments(engine: Engine, parent: str = "events") -> dict[str, str]:
    found = rows(
        engine,
        "SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(quote_ident(:parent))"
        " AND obj_description(c.oid, 'pg_class') IS NOT NULL",
        parent=parent,
    )
    return dict(found)


@pytest.fixture
def call(database: Database) -> Any:
    return partial(caller(database), "adopt")


# -- pg_partman's own sets -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "on", "off", "gaps"),
    [
        ("daily_utc", PartitionPolicy("at", premake=4, retention="30 days"), 19, 0, 0),
        ("hourly_berlin", PartitionPolicy("at", interval="hour", premake=4), 9, 0, 1),
        (
            "monthly",
            PartitionPolicy(
                "at", interval="month", timezone=BERLIN, premake=3, retention="12 months", on_expiry="drop"
            ),
            *(10, 0, 0),
        ),
        (
            "weekly",
            PartitionPolicy("day", interval="week", timezone="America/St_Johns", premake=4),
            *(12, 0, 0),
        ),
        ("drifted", PartitionPolicy("at", timezone=BERLIN, premake=1), 159, 1, 1),
        ("epochs", PartitionPolicy("at_s", epoch="s", premake=3), 16, 0, 0),
    ],
)
def test_a_set_of_pg_partmans_is_read_adopted_and_carried_on(
    engine: Engine, call: Any, name: str, wanted: PartitionPolicy, on: int, off: int, gaps: int
) -> None:
    load(engine, "part_config", name)
    found = look(engine, name)
    assert found.proposal.policy == wanted
    assert (len(found.proposal.on_grid), len(found.proposal.off_grid)) == (on, off)
    told = json.loads(call("--table", name, "--json").out)[0]
    assert len(told["gaps"]) == gaps

    hand_over(engine, name)
    before = partitions(engine, name)
    done = call("--table", name, "--apply")
    assert done.code == cli.EXIT_OK, done.err
    assert set(before) <= set(partitions(engine, name))
    with engine.connect() as connection:
        (planned,) = maintenance.plan(connection)
        assert planned.plan.steps == ()
        assert not planned.plan.current_missing


def test_a_drifted_set_is_diagnosed_and_continued_exactly(engine: Engine, call: Any) -> None:
    load(engine, "part_config", "drifted")
    done = call("--table", "drifted")
    assert done.code == cli.EXIT_OK
    said = " ".join(done.out.split())
    assert (
        "drifted until 2026-03-28 its days begin at 00:00 in Europe/Berlin, from then on at 23:00 in UTC"
        in said
    )
    assert (
        "UPDATE partman.part_config SET automatic_maintenance = 'off' WHERE parent_table = 'public.drifted';"
        in said
    )
    assert [line[:6] for line in done.out.splitlines() if len(line) > 80] == ["UPDATE"]

    hand_over(engine, "drifted")
    adopt(engine, "drifted", DRIFTED)
    ensure(engine)
    table = look(engine, "drifted").table
    seam, end = utc("2026-04-06 23:00:00"), utc("2026-04-11 22:00:00")
    coverage = Coverage.of(table.partitions)
    assert coverage.spans(utc("2026-03-28 23:00:00"), end), "no gap from the drift on to the end"
    assert (seam, utc("2026-04-07 22:00:00")) in {(p.lower, p.upper) for p in table.partitions}

    # PostgreSQL itself has the last word: overlaps it refuses, and a row in a gap lands in DEFAULT.
    hours = int((end - utc("2026-04-05 00:00:00")) / timedelta(hours=1))
    run(
        engine,
        "INSERT INTO drifted SELECT '2026-04-05 00:30+00'::timestamptz + n * interval '1 hour'"
        f" FROM generate_series(0, {hours - 1}) n",
    )
    assert scalar(engine, "SELECT count(*) FROM drifted") == hours
    assert scalar(engine, "SELECT count(*) FROM drifted_default") == 0


def test_pg_partman_is_no_second_master(engine: Engine, call: Any) -> None:
    load(engine, "part_config", "daily_utc")
    done = call("--table", "daily_utc", "--apply")
    assert done.code == cli.EXIT_FAILED
    assert "pg_partman maintains it" in done.err
    assert "SET automatic_maintenance = 'off' WHERE parent_table = 'public.daily_utc';" in done.err
    with pytest.raises(AdoptionRefused, match="two masters"):
        adopt(engine, "daily_utc")
    assert scalar(engine, "SELECT to_regclass('partition_config')::text") is None, "nothing was changed"
    adopt(engine, "daily_utc", beside_partman=True)
    assert rows(engine, "SELECT table_name FROM partition_config") == [("daily_utc",)]


def test_a_part_config_that_is_not_pg_partmans_is_none(engine: Engine) -> None:
    by_hand(engine)
    run(engine, "CREATE TABLE part_config (parent_table text, premake int)")
    assert look(engine, "events").partman is None


def test_the_real_pg_partman_hands_over(engine: Engine, call: Any) -> None:
    if not scalar(engine, "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_partman'"):
        pytest.skip("needs pg_partman: Debian's postgresql-15-partman")
    run(
        engine,
        "CREATE SCHEMA partman",
        "CREATE EXTENSION pg_partman SCHEMA partman",
        "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at)",
    )
    is_old = scalar(engine, "SELECT extversion LIKE '4%' FROM pg_extension WHERE extname = 'pg_partman'")
    kind = "p_type => 'native', p_interval => 'daily'" if is_old else "p_interval => '1 day'"
    names = "p_parent_table => 'public.events', p_control => 'at'"
    run(engine, f"SET TimeZone = 'UTC'; SELECT partman.create_parent({names}, {kind})")
    assert call("--table", "events", "--apply").code == cli.EXIT_FAILED
    found = look(engine, "events")
    assert found.partman is not None
    run(engine, ddl.partman_off(found.partman))
    assert (found.proposal.policy, found.proposal.off_grid) == (PartitionPolicy("at", premake=4), ())
    adopt(engine, "events", found.proposal.policy)
    before = partitions(engine, "events")
    run(engine, "SELECT partman.run_maintenance()")
    assert partitions(engine, "events") == before, "it keeps its hands off"


# -- in a migration --------------------------------------------------------------------------------------


def test_what_a_migration_adopts_its_downgrade_lets_go_of_and_all_is_as_before(engine: Engine) -> None:
    by_hand(engine)
    run(engine, "COMMENT ON TABLE events_1 IS 'the day of the launch'")
    before = catalog(engine)
    adopt(engine, mark=True)
    mark = f"{PARTITION_MARK}adopt"
    assert comments(engine) == {
        "events_0": mark,
        "events_1": "the day of the launch",
        "events_2": mark,
        "events_3": mark,
    }, "neither one off the grid nor one with a comment of its own"
    adopt(engine, mark=True)  # once more is fine
    assert scalar(engine, "SELECT count(*) FROM partition_config") == 1
    with operations(engine) as op:
        op.unadopt_partitioned_table("events")
    assert without(catalog(engine), *OURS) == before
    with pytest.raises(NotManagedError), operations(engine) as op:
        op.unadopt_partitioned_table("events")


@pytest.mark.parametrize(
    ("key", "lower", "upper", "policy"),
    [
        ("date", "2026-04-05", "2026-04-06", {}),
        ("timestamp", "2026-04-05 00:00", "2026-04-06 00:00", {}),
        ("int", 1775347200, 1775433600, {"epoch": "s"}),
        ("bigint", 1775347200000, 1775433600000, {"epoch": "ms"}),
        ("uuid", "019d5af0-7000-%", "019d6016-cc00-%", {}),
        ("uuid", "019d5af0-7000-7%", "019d6016-cc00-7%", {}),
    ],
)
def test_marks_find_their_partitions_whatever_the_key(
    engine: Engine, key: str, lower: object, upper: object, policy: Any
) -> None:
    def bound(value: object) -> str:
        full = "7000-8000-000000000000" if str(value).endswith("-7%") else "0000-0000-000000000000"
        return str(value).replace("-7%", f"-{full}").replace("-%", f"-{full}")

    run(
        engine,
        f"CREATE TABLE events (at {key} NOT NULL) PARTITION BY RANGE (at)",
        f"CREATE TABLE day PARTITION OF events FOR VALUES FROM ('{bound(lower)}') TO ('{bound(upper)}')",
    )
    adopt(engine, policy=PartitionPolicy("at", **policy), mark=True)
    assert comments(engine) == {"day": f"{PARTITION_MARK}adopt"}


def test_adopting_makes_nothing_by_itself_and_what_runs_have_made_since_stays(engine: Engine) -> None:
    by_hand(engine)
    before = partitions(engine, "events")
    adopt(engine)
    assert partitions(engine, "events") == before
    made = ensure(engine).results[0].created
    assert made == ("events_2026_04_08", "events_2026_04_09", "events_2026_04_10")
    with operations(engine) as op:
        op.unadopt_partitioned_table("events")
    assert partitions(engine, "events") == sorted([*before, *made])
    assert set(comments(engine).values()) == {f"{PARTITION_MARK}ensure"}


def test_retention_takes_what_was_marked_and_nothing_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand(engine, "marked")
    by_hand(engine, "bare")
    policy = PartitionPolicy("at", premake=0, retention="1 day")
    adopt(engine, "marked", policy, mark=True)
    adopt(engine, "bare", policy)
    clock = Clock(monkeypatch)
    monkeypatch.delenv("ALEMBIC_PARTITIONS_NOW")
    clock.set(utc("2026-04-07 13:37:11"))
    with engine.connect() as connection:
        report = maintenance.maintain(connection)
    assert {r.table: r.detached for r in report.results} == {
        "public.bare": (),
        "public.marked": ("marked_0", "marked_1"),
    }


@pytest.mark.parametrize("schema", [None, 'Ö "dd"'])
def test_a_script_adopts_as_the_migration_does(engine: Engine, schema: str | None) -> None:
    name = "events" if schema is None else '50% "e"'
    if schema is not None:
        run(engine, f"CREATE SCHEMA {quote(schema)}")
    by_hand(engine, name)
    if schema is not None:
        run(engine, f"ALTER TABLE {quote(name)} SET SCHEMA {quote(schema)}")
    before = catalog(engine)

    def script(what: str, *arguments: Any, **kw: Any) -> str:
        out = io.StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},
            opts={"as_sql": True, "output_buffer": out, "literal_binds": True},
        )
        getattr(Operations(context), what)(name, *arguments, schema=schema, **kw)
        return out.getvalue()

    policy = PartitionPolicy("at", premake=5)
    run(engine, *_statements(script("adopt_partitioned_table", policy, mark=True)))
    assert (
        scalar(engine, "SELECT (table_schema, table_name, premake)::text FROM partition_config") is not None
    )
    assert len(rows(engine, "SELECT FROM pg_description WHERE description LIKE '%made by adopt'")) == 4
    adopt(engine, name, policy, schema=schema)  # it is found, and just as declared
    run(engine, *_statements(script("unadopt_partitioned_table")))
    assert without(catalog(engine), *OURS) == before


def _statements(script: str) -> list[str]:
    lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    return [part for part in lines.split(";\n\n") if part.strip()]


def test_autogenerate_proposes_to_adopt_and_tells_what_is_off_the_grid(engine: Engine) -> None:
    by_hand(engine)
    wanted = sa.MetaData()
    sa.Table(
        "events",
        wanted,
        sa.Column("id", sa.BigInteger()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("note", sa.Text()),
        PartitionPolicy("at", premake=5),
    )
    before = catalog(engine)
    up, down = propose(engine, wanted)
    assert {line[0] for line in up.splitlines()[:-1]} == {"#"}
    assert "1 of 5 partitions of public.events are no windows" in up
    assert up.splitlines()[-1] == "op.adopt_partitioned_table('events', PartitionPolicy('at', premake=5))"
    assert "op.unadopt_partitioned_table('events', existing_policy=PartitionPolicy('at', premake=5))" in down
    execute(engine, up)
    assert diffs(engine, wanted) == []
    execute(engine, down)
    assert without(catalog(engine), *OURS) == before


# -- refused ---------------------------------------------------------------------------------------------


NESTED = (
    "CREATE TABLE top (at date) PARTITION BY RANGE (at); CREATE TABLE events PARTITION OF top"
    " FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY RANGE (at)"
)
REFUSED = {
    "a view": ("CREATE VIEW events AS SELECT now() AS at", "it is a view"),
    "a kept view": ("CREATE MATERIALIZED VIEW events AS SELECT now() AS at", "a materialized view"),
    "a plain table": ("CREATE TABLE events (at timestamptz)", "it is a plain table.*convert_to_partitioned"),
    "inherited": (
        "CREATE TABLE events (at timestamptz); CREATE TABLE e1 () INHERITS (events)",
        "by INHERITS",
    ),
    "by list": ("CREATE TABLE events (at date) PARTITION BY LIST (at)", r"partitioned by LIST \(at\)"),
    "by hash": ("CREATE TABLE events (at date) PARTITION BY HASH (at)", r"partitioned by HASH \(at\)"),
    "two columns": ("CREATE TABLE events (at date, b int) PARTITION BY RANGE (at, b)", "over one column"),
    "an expression": ("CREATE TABLE events (at date) PARTITION BY RANGE ((at + 1))", "over one column"),
    "a text": ("CREATE TABLE events (at text) PARTITION BY RANGE (at)", "type text"),
    "another's partition": (NESTED, "itself a partition"),
}


@pytest.mark.parametrize(("made", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_adopted_is_refused_before_anything_is_changed(
    engine: Engine, call: Any, made: str, why: str
) -> None:
    run(engine, made)
    before = catalog(engine)
    with pytest.raises(AdoptionRefused, match=why):
        adopt(engine)
    for arguments in ((), ("--apply",)):
        done = call("--table", "events", *arguments)
        assert done.code == cli.EXIT_FAILED
        assert "Table public.events was not adopted" in done.err
        assert done.err.count("\n") == 1
    assert catalog(engine) == before


def test_a_table_that_is_not_there_a_policy_of_another_column_and_one_of_ours(
    engine: Engine, call: Any
) -> None:
    for arguments in ((), ("--apply",), ("--forget",)):
        assert call("--table", "events", *arguments).code == cli.EXIT_FAILED
    with pytest.raises(AdoptionRefused, match="there is no such table"):
        adopt(engine)
    by_hand(engine)
    with pytest.raises(AdoptionRefused, match="by column 'at', the policy by column 'id'"):
        adopt(engine, policy=PartitionPolicy("id", epoch="s"))
    adopt(engine)
    with pytest.raises(AdoptionRefused, match="it is ours already"):
        adopt(engine, policy=PartitionPolicy("at", premake=6))


def test_numbers_that_are_no_times_are_not_taken_for_them(engine: Engine, call: Any) -> None:
    run(engine, "CREATE TABLE ids (k bigint) PARTITION BY RANGE (k)")
    run(engine, "CREATE TABLE ids_1 PARTITION OF ids FOR VALUES FROM (0) TO (1000000)")
    done = call("--table", "ids", "--apply")
    assert done.code == cli.EXIT_FAILED
    assert "do not tell whether column 'k', of type bigint, is a time" in done.err


def test_a_policy_that_fits_nothing_is_taken_only_from_a_person(engine: Engine, call: Any) -> None:
    run(engine, "CREATE TABLE events (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
    odd = "FROM ('2026-04-01 03:07:41+00') TO ('2026-04-05 09:11+00')"
    run(engine, f"CREATE TABLE events_1 PARTITION OF events FOR VALUES {odd}")
    assert "no policy has these partitions for its windows: say which" in call("--table", "events").out
    assert "no policy has these" in call("--table", "events", "--apply").err
    done = call("--table", "events", "--apply", "--interval", "day", "--timezone", "UTC", "--premake", "1")
    assert done.code == cli.EXIT_OK, done.err
    assert partitions(engine, "events") == ["events_1", "events_2026_04_05_091100z", "events_2026_04_06"]


# -- from a terminal -------------------------------------------------------------------------------------


def test_a_proposal_is_told_in_80_columns_and_changes_nothing(engine: Engine, call: Any) -> None:
    by_hand(engine)
    run(
        engine,
        "CREATE TABLE events_rest PARTITION OF events DEFAULT",
        "INSERT INTO events (at) VALUES ('2020-01-01')",
    )
    before = catalog(engine)
    done = call("--table", "events")
    assert (done.code, done.err) == (cli.EXIT_OK, "")
    assert done.out == (
        "public.events, partitioned by RANGE (at)\n"
        "  partitions   5, 2026-04-03 07:00 to 2026-04-08 on the clocks of UTC\n"
        "  fits best    day, UTC: 4 of 5 are its windows\n"
        "  off the grid events_odd: 2026-04-03 07:00 to 2026-04-04\n"
        "  DEFAULT      events_rest, it holds rows: `repair` moves them to their windows\n"
        "  from here on 28 windows are missing: 2026-04-08 to 2026-05-06\n"
        "\n"
        "Then in a migration, or now with --apply:\n"
        "\n"
        "op.adopt_partitioned_table('events', PartitionPolicy('at'))\n"
    )
    assert catalog(engine) == before


def test_children_that_adopting_cannot_deal_with_are_told(engine: Engine, call: Any) -> None:
    by_hand(engine)
    next_day = "FROM ('2026-04-08 00:00Z') TO ('2026-04-09 00:00Z')"
    last = "FROM ('2026-04-09 00:00Z') TO ('2026-04-10 00:00Z')"
    run(
        engine,
        f"CREATE TABLE deep PARTITION OF events FOR VALUES {next_day} PARTITION BY LIST (note)",
        "CREATE FOREIGN DATA WRAPPER file_fdw",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        f"CREATE FOREIGN TABLE far PARTITION OF events FOR VALUES {last}"
        " SERVER files OPTIONS (filename '/x')",
        "ALTER TABLE events ALTER COLUMN at DROP NOT NULL",
        "COMMENT ON TABLE events_2 IS 'mine'",
    )
    said = call("--table", "events").out
    for told in (
        "children     1 partitioned in turn, which ours will not be\n",
        "children     1 foreign, which --mark leaves out\n",
        "comments     1 on the grid bear one, which stays: --mark leaves them out\n",
        "key          it may be NULL: such rows find a DEFAULT partition or none\n",
    ):
        assert told in said
    assert call("--table", "events", "--apply", "--mark", "--premake", "1").code == cli.EXIT_OK
    assert "far" not in comments(engine)
    assert comments(engine)["deep"].endswith("made by adopt")


def test_a_dry_run_prints_what_is_sent(engine: Engine, call: Any) -> None:
    by_hand(engine)
    before = catalog(engine)
    arguments = ("--table", "public.events", "--mark", "--premake", "3")
    printed = call(*arguments, "--dry-run").out
    assert catalog(engine) == before
    with listening(sa.engine.Engine) as sent:  # type: ignore[arg-type]
        done = call(*arguments, "--apply")
    assert done.code == cli.EXIT_OK, done.err
    assert "public.events: adopted, PartitionPolicy('at', premake=3)" in done.err
    position = 0
    for statement in sent.writes():
        if statement.startswith("SELECT"):
            continue
        assert f"{statement};\n" in printed[position:], statement
    assert "INSERT INTO public.partition_config" in printed
    assert any(s.startswith("INSERT INTO public.partition_config") for s in sent.statements)
    assert len(comments(engine)) == 5


def test_forgetting_drops_nothing_and_a_second_time_has_nothing_to_forget(engine: Engine, call: Any) -> None:
    by_hand(engine)
    before = catalog(engine)
    assert call("--table", "events", "--apply", "--mark", "--premake", "2").code == cli.EXIT_OK
    assert "adopted already" in call("--table", "events").out
    assert call("--table", "events", "--forget", "--dry-run").out.count("DELETE FROM") == 1
    assert call("--table", "events", "--forget").code == cli.EXIT_OK
    assert without(catalog(engine), *OURS) == before
    done = call("--table", "events", "--forget")
    assert done.code == cli.EXIT_FAILED
    assert "has no row in partition_config" in done.err


def test_the_options_that_do_not_go_together_are_a_usage_error(call: Any) -> None:
    for arguments in (("--forget", "--apply"), ("--mark",), ("--forget", "--every", "2")):
        assert call("--table", "events", *arguments).code == cli.EXIT_USAGE
