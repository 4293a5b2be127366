"""`alembic check` is quiet when nothing changed, whatever partitions there are and however a project is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import Rewriter
from alembic.autogenerate.api import AutogenContext
from alembic.config import Config
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine, MetaData, event

from alembic_partitions import PartitionPolicy, nz_racing_day
from alembic_partitions.ddl import config_table, runs_table
from alembic_partitions.errors import PolicyError
from tests.databases import Database, Databases, Roles
from tests.db.test_autogenerate import bring_about, configured, day, diffs, execute, key, models, propose
from tests.db.test_operations import half_detach
from tests.projects import Project
from tests.tables import NOW, partitions, run, scalar

pytestmark = pytest.mark.versions

EXAMPLE = Path(__file__).parents[2] / "examples" / "nz_racing"


@pytest.fixture(autouse=True)
def _odd_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALEMBIC_PARTITIONS_NOW", NOW.isoformat())


# -- what is never proposed for anything ----------------------------------------------------------------


def test_partitions_of_every_kind_are_left_out(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA other")
    wanted = MetaData()
    for schema in (None, "other"):
        models(day(), schema=schema).tables[f"{schema}.odds" if schema else "odds"].to_metadata(wanted)
    bring_about(engine, wanted)
    for name in ("odds", "other.odds"):
        run(
            engine,
            f"CREATE TABLE {name}_rest PARTITION OF {name} DEFAULT PARTITION BY LIST (id)",
            f"CREATE TABLE {name}_rest_of_rest PARTITION OF {name}_rest DEFAULT PARTITION BY LIST (id)",
            f"CREATE TABLE {name}_leaf PARTITION OF {name}_rest_of_rest FOR VALUES IN (7)",
            f"CREATE INDEX ON {name}_leaf (note)",
            f"ALTER TABLE {name}_leaf ADD CHECK (id > 0)",
            f"ALTER TABLE {name} DETACH PARTITION {name}_2026_04_04",
        )
    assert diffs(engine, wanted) == []
    here = MetaData()
    wanted.tables["odds"].to_metadata(here)
    assert diffs(engine, here, include_schemas=False) == []


def test_a_partition_half_detached_is_left_out(engine: Engine) -> None:
    bring_about(engine, models(day()))
    half_detach(engine, "odds", "odds_2026_04_04")
    assert diffs(engine, models(day())) == []


def test_our_tables_elsewhere_are_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(engine, "CREATE SCHEMA ops")
    monkeypatch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "ops")
    bring_about(engine, models(day()))
    monkeypatch.delenv("ALEMBIC_PARTITIONS_SCHEMA")
    assert diffs(engine, models(day())) == []  # found by their mark


def test_our_tables_read_as_models_are_left_out_before_and_after(engine: Engine) -> None:
    wanted = MetaData()
    runs_table(None).to_metadata(wanted).append_column(sa.Column("kept_by_hand", sa.Integer()))
    sa.Table(
        "partition_config",
        wanted,
        *(sa.Column(c.name, c.type, primary_key=c.primary_key) for c in list(config_table(None).c)[:4]),
    )
    assert diffs(engine, wanted) == []
    models(day()).tables["odds"].to_metadata(wanted)
    bring_about(engine, wanted)


def test_a_partition_that_was_kept_is_left_out(engine: Engine) -> None:
    bring_about(engine, models(day()))
    run(engine, "CREATE TABLE odds_rest PARTITION OF odds DEFAULT")
    bring_about(engine, MetaData())
    assert scalar(engine, "SELECT count(*) FROM odds_rest") == 0


@pytest.mark.parametrize("options", [{"version_table_schema": "meta"}, {}])
def test_what_was_declared_is_found_wherever_it_stands(engine: Engine, options: dict[str, str]) -> None:
    run(engine, "CREATE SCHEMA meta", "CREATE SCHEMA tenant")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "tenant")
        models(day(), name="theirs", schema="tenant").create_all(engine)
        patch.setenv("ALEMBIC_PARTITIONS_SCHEMA", "public")
        models(day()).create_all(engine)
    assert diffs(engine, models(day()), include_schemas=False, **options) == []
    up, down = propose(engine, MetaData(), include_schemas=False, **options)
    assert up == "op.drop_partitioned_table('odds')"
    assert "policy=PartitionPolicy('at', timezone='Pacific/Auckland', premake=2)" in down


def test_a_role_that_may_not_read_what_was_declared_is_told(engine: Engine, roles: Roles) -> None:
    bring_about(engine, models(day()))
    reader = sa.create_engine(roles.create("reader"))
    with pytest.raises(CommandError, match="GRANT SELECT ON partition_config"):
        diffs(reader, models(day()))
    reader.dispose()


@pytest.mark.parametrize(
    ("there", "model", "is_another"),
    [
        ("RANGE (date_trunc('day', at AT TIME ZONE 'UTC'))", "RANGE (date_trunc('day', at))", False),
        ("HASH ((note::text))", "RANGE (date_trunc('day', at))", True),
        ('RANGE ("Note", note)', 'range("Note",note)', False),
        ('RANGE ("Note")', "RANGE (note)", True),
        ("RANGE (at)", "RANGE (at, id)", True),
    ],
)
def test_a_bare_partition_by_is_compared_as_far_as_it_can_be(
    engine: Engine, there: str, model: str, is_another: bool
) -> None:
    run(engine, f'CREATE TABLE odds (id int, at timestamptz, note text, "Note" text) PARTITION BY {there}')
    wanted = MetaData()
    table = sa.Table("odds", wanted, sa.Column("id", sa.Integer), postgresql_partition_by=model)
    table.append_column(sa.Column("at", sa.DateTime(timezone=True)))
    for name in ("note", "Note"):
        table.append_column(sa.Column(name, sa.Text))
    assert [diff[0] for diff in diffs(engine, wanted)] == ["partition_remark"] * is_another


def test_partitions_of_tables_that_are_not_ours_are_left_out_too(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE theirs (id int, PRIMARY KEY (id)) PARTITION BY LIST (id)",
        "CREATE TABLE theirs_1 PARTITION OF theirs FOR VALUES IN (1)",
    )
    wanted = MetaData()
    sa.Table("theirs", wanted, sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False))
    assert diffs(engine, wanted) == []


def test_a_partition_that_is_a_model_of_its_own_is_compared_as_any_table(engine: Engine) -> None:
    wanted = models(day())
    bring_about(engine, wanted)
    models(name="odds_2026_04_05").tables["odds_2026_04_05"].to_metadata(wanted)
    assert diffs(engine, wanted) == []
    wanted.tables["odds_2026_04_05"].append_column(sa.Column("more", sa.Integer()))
    ((kind, _, table, column),) = diffs(engine, wanted)
    assert (kind, table, column.name) == ("add_column", "odds_2026_04_05", "more")


def test_partitions_are_left_out_before_anything_of_them_is_reflected(engine: Engine) -> None:
    """However many there are, the same number of statements, none of which names one."""
    bring_about(engine, models(day()))
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        statements.append(f"{statement} {parameters}")

    event.listen(engine, "before_cursor_execute", note)
    diffs(engine, models(day()))
    few = list(statements)
    event.remove(engine, "before_cursor_execute", note)
    execute(engine, 'op.create_partitions("odds", "2026-06-01", "2026-09-01")')
    statements.clear()
    event.listen(engine, "before_cursor_execute", note)
    assert diffs(engine, models(day())) == []
    event.remove(engine, "before_cursor_execute", note)
    assert len(statements) == len(few)
    assert "odds_2026" not in " ".join(statements)


def test_one_line_turns_it_off(engine: Engine) -> None:
    bring_about(engine, models(day()))
    off = ["alembic.autogenerate.*", "~alembic.autogenerate.partitions"]
    proposed = {
        diff[1].name
        for diff in diffs(engine, models(day()), autogenerate_plugins=off)
        if diff[0] == "remove_table"
    }
    assert proposed == {*partitions(engine), "partition_config", "partition_runs"}


def test_with_it_turned_off_a_revision_is_alembics_own_and_runs(engine: Engine) -> None:
    off = ["alembic.autogenerate.*", "~alembic.autogenerate.partitions"]
    up, down = propose(engine, models(day(), info={"theirs": 1}), autogenerate_plugins=off)
    assert "postgresql_partition_by='RANGE (at)'" in up
    assert "info={'theirs': 1}" in up
    assert "PartitionPolicy" not in up
    execute(engine, up)
    execute(engine, down)


# -- drift, and what is none ----------------------------------------------------------------------------


def test_an_operators_update_is_no_drift(engine: Engine) -> None:
    bring_about(engine, models(day()))
    run(engine, "UPDATE partition_config SET premake = 60, retention = '1 year', enabled = false")
    assert diffs(engine, models(day())) == []
    execute(engine, propose(engine, models(day(premake=4)))[0])
    assert scalar(engine, "SELECT premake FROM partition_config") == 4
    assert scalar(engine, "SELECT retention FROM partition_config") == "1 year"


def test_what_a_later_version_declared_is_no_drift(engine: Engine) -> None:
    bring_about(engine, models(day()))
    run(engine, """UPDATE partition_config SET declared = declared || '{"phase of the moon": "full"}'""")
    assert diffs(engine, models(day())) == []


def test_not_null_of_a_primary_key_is_never_proposed_away(engine: Engine) -> None:
    """The model knows nothing of the key that PostgreSQL needs in the primary key."""
    run(
        engine,
        "CREATE TABLE odds (id bigint, at timestamptz, note text, PRIMARY KEY (id, at))"
        " PARTITION BY RANGE (at)",
    )
    wanted = MetaData()
    table = sa.Table(
        "odds",
        wanted,
        sa.Column("id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.Column("note", sa.Text()),
        postgresql_partition_by="range ( at )",
    )
    assert diffs(engine, wanted) == []
    table.c.at.type = sa.Date()
    (((kind, *_),),) = diffs(engine, wanted)
    assert kind == "modify_type"
    table.c.at.type = sa.DateTime(timezone=True)
    table.c.note.nullable = False
    (((kind, *_),),) = diffs(engine, wanted)
    assert kind == "modify_nullable"


def test_the_downgrade_of_a_dropped_table_partitions_it_again(engine: Engine) -> None:
    run(engine, "CREATE TABLE theirs (id int PRIMARY KEY) PARTITION BY HASH (id)")
    up, down = propose(engine, MetaData())
    assert up == "op.drop_table('theirs')"
    assert "postgresql_partition_by='HASH (id)'" in down


# -- wrong models: an error that names the model and the remedy -----------------------------------------


def test_a_model_whose_primary_key_lacks_the_key_is_refused(engine: Engine) -> None:
    with pytest.raises(
        CommandError, match=r"primary key of 'odds' lacks the partition key 'at'.*add the key"
    ):
        propose(engine, models(day(), key("id")))


def test_a_model_with_a_nullable_key_is_refused(engine: Engine) -> None:
    wanted = models(day())
    wanted.tables["odds"].c.at.nullable = True
    with pytest.raises(CommandError, match=r"'at' of 'odds' is nullable.*nullable=False"):
        propose(engine, wanted)


def test_a_model_whose_partition_by_differs_from_its_policy_is_refused(engine: Engine) -> None:
    wanted = models(day())
    wanted.tables["odds"].dialect_options["postgresql"]["partition_by"] = "RANGE (id)"
    with pytest.raises(CommandError, match=r"model 'odds' has postgresql_partition_by='RANGE \(id\)'.*Leave"):
        propose(engine, wanted)
    with pytest.raises(PolicyError, match="partitioned already"):
        models(day(), postgresql_partition_by="RANGE (id)")
    with pytest.raises(PolicyError, match="partitioned already"):
        models(day(), PartitionPolicy("id"))


def test_a_spoiled_declaration_is_an_error_and_no_guess(engine: Engine) -> None:
    bring_about(engine, models(day()))
    run(engine, """UPDATE partition_config SET declared = declared || '{"interval": "fortnight"}'""")
    for wanted in (models(day()), MetaData()):
        with pytest.raises(CommandError, match="'interval': 'fortnight'"):
            propose(engine, wanted)


# -- a project's own settings keep working beside ours --------------------------------------------------


def test_include_name_and_include_object_are_asked_as_before(engine: Engine) -> None:
    run(engine, "CREATE TABLE legacy (id int)", "CREATE TABLE kept (id int)")
    wanted = models(day())
    asked: list[str | None] = []

    def include_name(name: str | None, type_: str, parents: Any) -> bool:
        asked.append(name)
        return name != "legacy"

    def include_object(thing: Any, name: str | None, type_: str, reflected: bool, other: Any) -> bool:
        return name != "kept"

    filters = {"include_name": include_name, "include_object": include_object}
    assert [diff[0] for diff in diffs(engine, wanted, **filters)] == ["add_partitioned_table"]
    bring = propose(engine, wanted, **filters)[0]
    execute(engine, bring)
    assert diffs(engine, wanted, **filters) == []
    assert "odds" in asked
    assert not any(str(name).startswith("odds_2026") for name in asked)

    def not_odds(thing: Any, name: str | None, *rest: Any) -> bool:
        return name not in ("odds", "kept")

    assert diffs(engine, models(day(premake=9)), **{**filters, "include_object": not_odds}) == []


def test_what_is_done_to_every_create_table_is_done_to_ours(engine: Engine) -> None:
    writer = Rewriter()

    @writer.rewrites(ops.CreateTableOp)
    def note_last(context: MigrationContext, revision: Any, operation: ops.CreateTableOp) -> Any:
        operation.columns = sorted(operation.columns, key=lambda item: getattr(item, "name", None) == "note")
        return operation

    @writer.rewrites(ops.DropTableOp)
    def never(context: MigrationContext, revision: Any, operation: ops.DropTableOp) -> Any:
        return []

    wanted = models(day(), sa.Column("kind", sa.Integer()))
    with engine.connect() as connection:
        context = configured(connection, wanted)
        script = ops.MigrationScript("1", ops.UpgradeOps([]), ops.DowngradeOps([]))
        from alembic.autogenerate import compare

        compare._populate_migration_script(AutogenContext(context, wanted), script)
        writer(context, "head", [script])
        assert script.upgrade_ops is not None
        assert script.downgrade_ops is not None
        (created,) = script.upgrade_ops.ops
        assert isinstance(created, ops.CreateTableOp)
        assert [c.name for c in created.columns if isinstance(c, sa.Column)] == ["id", "at", "kind", "note"]
        assert script.downgrade_ops.ops == []


# -- the command, on files --------------------------------------------------------------------------------

MODELS = """
import sqlalchemy as sa
from alembic_partitions import nz_racing_day

metadata = sa.MetaData()
sa.Table(
    "odds",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("note", sa.Text, index=True),
    sa.PrimaryKeyConstraint("id", "at"),
    nz_racing_day("at", premake={premake}),
)
sa.Table("plain", metadata, sa.Column("id", sa.Integer, primary_key=True))
"""


def with_models(project: Project, premake: int = 2) -> None:
    (project.folder / "models.py").write_text(MODELS.format(premake=premake))


def follows_models(project: Project) -> None:
    with_models(project)
    project.edit_env(
        "target_metadata = None",
        "import os, sys\nsys.path.insert(0, os.getcwd())\nimport models\ntarget_metadata = models.metadata",
    )


def revise(project: Project, message: str) -> str:
    """Let Alembic write a revision, and return it."""
    project.alembic("revision", "--autogenerate", "-m", message).succeeded()
    (path,) = (project.folder / "migrations" / "versions").glob(f"*_{message}.py")
    return path.read_text()


@pytest.mark.processes
@pytest.mark.parametrize(("template", "driver"), [("generic", "psycopg2"), ("async", "asyncpg")])
@pytest.mark.parametrize("batch", [False, True], ids=["plain", "batch"])
def test_revisions_are_written_run_and_leave_nothing_to_write(
    tmp_path: Path, database: Database, engine: Engine, template: str, driver: str, batch: bool
) -> None:
    project = Project.make(tmp_path, template, database.driver_url(driver))
    follows_models(project)
    if batch:
        text = project.env.read_text()
        project.env.write_text(
            text.replace(
                "target_metadata=target_metadata", "target_metadata=target_metadata, render_as_batch=True"
            )
        )
    first = revise(project, "first")
    assert "from alembic_partitions import PartitionPolicy" in first
    assert "op.create_partitioned_table('odds'," in first
    project.run("upgrade", "head").succeeded()
    project.alembic("check").succeeded()

    with_models(project, premake=4)
    assert "New upgrade operations detected" in project.alembic("check").err
    second = revise(project, "second")
    assert "    op.alter_partition_policy('odds', premake=4, existing_premake=2)" in second
    assert "batch_alter_table" not in second
    for direction in (("upgrade", "head"), ("downgrade", "-1"), ("upgrade", "head")):
        project.run(*direction).succeeded()
    project.alembic("check").succeeded()
    assert scalar(engine, "SELECT premake FROM partition_config") == 4
    project.alembic("upgrade", "head", "--sql").succeeded()
    project.alembic("downgrade", "head:base", "--sql").succeeded()
    project.alembic("stamp", "base").succeeded()
    project.alembic("stamp", "head").succeeded()
    project.run("downgrade", "base").succeeded()
    assert not partitions(engine)
    linted = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select=E4,E7,E9,F",
            "--ignore=F401",  # Alembic's template imports sqlalchemy in any case
            str(project.folder / "migrations" / "versions"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named ruff" not in linted.stderr:
        assert linted.returncode == 0, linted.stdout


@pytest.mark.processes
def test_a_version_table_in_a_schema_of_its_own(tmp_path: Path, database: Database, engine: Engine) -> None:
    run(engine, "CREATE SCHEMA meta")
    project = Project.make(tmp_path, "generic", database.url)
    follows_models(project)
    project.env.write_text(
        project.env.read_text().replace(
            "target_metadata=target_metadata", 'target_metadata=target_metadata, version_table_schema="meta"'
        )
    )
    revise(project, "first")
    project.run("upgrade", "head").succeeded()
    assert scalar(engine, "SELECT count(*) FROM meta.partition_config") == 1
    project.alembic("check").succeeded()


@pytest.mark.processes
def test_branches(tmp_path: Path, database: Database, engine: Engine) -> None:
    project = Project.make(tmp_path, "generic", database.url)
    follows_models(project)
    revise(project, "first")
    project.run("upgrade", "heads").succeeded()
    project.alembic("revision", "-m", "left").succeeded()
    project.alembic("revision", "-m", "right", "--splice", "--head", "base").succeeded()
    project.run("upgrade", "heads").succeeded()
    project.alembic("merge", "heads", "-m", "merged").succeeded()
    project.run("upgrade", "heads").succeeded()
    project.alembic("check").succeeded()


@pytest.mark.processes
def test_several_databases(tmp_path: Path, databases: Databases, database: Database, engine: Engine) -> None:
    other = databases.clone()
    project = Project.make(tmp_path, "multidb", database.url, other.url)
    with_models(project)
    project.edit_env(
        "target_metadata = {}",
        "import os, sys\nsys.path.insert(0, os.getcwd())\nimport models, sqlalchemy\n"
        'target_metadata = {"engine1": models.metadata, "engine2": sqlalchemy.MetaData()}',
    )
    first = revise(project, "first")
    assert first.count("op.create_partitioned_table(") == 1
    project.run("upgrade", "head").succeeded()
    project.alembic("check").succeeded()


def test_the_example_is_in_step_with_its_migrations(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url.render_as_string(hide_password=False))
    config = Config(str(EXAMPLE / "alembic.ini"))
    config.attributes["configure_logger"] = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.config.fileConfig", lambda *args, **kw: None)
        command.upgrade(config, "head")
        command.check(config)


@pytest.mark.processes
def test_flask_migrate(tmp_path: Path, database: Database, engine: Engine) -> None:
    pytest.importorskip("flask_migrate")
    app = tmp_path / "app.py"
    app.write_text(
        f"""
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from alembic_partitions import nz_racing_day

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = {database.url.render_as_string(hide_password=False)!r}
db = SQLAlchemy(app)
Migrate(app, db)


class Odds(db.Model):
    __tablename__ = "odds"
    __table_args__ = (nz_racing_day("at", premake=2),)
    id = db.Column(db.BigInteger, db.Identity(), primary_key=True)
    at = db.Column(db.DateTime(timezone=True), primary_key=True)
"""
    )

    def flask(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "app", "db", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    flask("init")
    flask("migrate", "-m", "first")
    flask("upgrade")
    assert len(partitions(engine)) == 4
    assert "No new upgrade operations detected" in flask("check")
    flask("downgrade")
    assert not partitions(engine)


def test_nz_racing_day_is_what_a_policy_of_it_renders_to() -> None:
    policy = nz_racing_day("at", premake=2)
    assert eval(repr(policy), {"PartitionPolicy": PartitionPolicy}) == policy
