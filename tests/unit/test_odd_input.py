"""What no name, value or time of PostgreSQL's can be is refused in our words, before anything is sent."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

import alembic_partitions.operations  # noqa: F401  # an installed package needs no such line
from alembic_partitions import PartitionPolicy, PolicyError, ddl, maintenance, rows
from alembic_partitions.naming import fits

# A zero byte ends a string in C, a lone surrogate is what os.fsdecode() makes of bytes that are no text.
HOPELESS = pytest.mark.parametrize("name", ["a\0b", "x\udcff"], ids=ascii)
POLICY = PartitionPolicy("at", premake=1)

VERBS: dict[str, Callable[[Any, str, str | None], object]] = {
    "create_partitioned_table": lambda op, name, schema: op.create_partitioned_table(
        name, sa.Column("at", sa.DateTime(timezone=True), nullable=False), policy=POLICY, schema=schema
    ),
    "drop_partitioned_table": lambda op, name, schema: op.drop_partitioned_table(name, schema=schema),
    "alter_partition_policy": lambda op, name, schema: op.alter_partition_policy(
        name, schema=schema, retention="9 days"
    ),
    "create_partitions": lambda op, name, schema: op.create_partitions(
        name, "2026-04-05", "2026-04-09", schema=schema, existing_policy=POLICY
    ),
    "drop_partitions": lambda op, name, schema: op.drop_partitions(
        name, "2026-04-05", "2026-04-09", schema=schema
    ),
    "create_partitioned_index": lambda op, name, schema: op.create_partitioned_index(
        "ix", name, ["at"], schema=schema
    ),
    "adopt_partitioned_table": lambda op, name, schema: op.adopt_partitioned_table(
        name, POLICY, schema=schema, existing_key_type="timestamptz"
    ),
}


def unnamed_index(op: Any, name: str, schema: str | None) -> object:
    return op.create_partitioned_index(name, "odds", ["at"], schema=schema)


@pytest.mark.parametrize("verb", [*VERBS, "an index"])
def test_an_empty_name_is_refused_by_each_operation(verb: str) -> None:
    buffer = io.StringIO()
    op = Operations(
        MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer})
    )
    with pytest.raises(PolicyError, match="'' is no name"):
        VERBS.get(verb, unnamed_index)(op, "", None)
    assert buffer.getvalue() == ""


@HOPELESS
@pytest.mark.parametrize("verb", VERBS)
def test_a_name_that_is_no_text_is_refused_by_each_operation(verb: str, name: str) -> None:
    buffer = io.StringIO()
    op = Operations(
        MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer})
    )
    for table, schema in ((name, None), ("odds", name)):
        with pytest.raises(PolicyError, match="no text of PostgreSQL") as refusal:
            VERBS[verb](op, table, schema)
        str(refusal.value).encode()
    assert buffer.getvalue() == ""


@HOPELESS
def test_so_is_a_moment(name: str) -> None:
    op = Operations(MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True}))
    for verb in ("create_partitions", "drop_partitions"):
        with pytest.raises(PolicyError) as refusal:
            getattr(op, verb)("odds", f"2026-04-05{name}", "2026-04-09", existing_policy=POLICY)
        assert refusal.value.field == "start"


@HOPELESS
def test_a_column_may_not_be_called_so_either(name: str) -> None:
    table = sa.Table(
        "odds", sa.MetaData(), sa.Column("at", sa.DateTime(timezone=True), nullable=False), sa.Column(name)
    )
    with pytest.raises(PolicyError, match=r"field 'column'.*no text of PostgreSQL"):
        POLICY.check_table(table)


def test_a_name_that_ends_in_a_line_break_is_not_the_name_without_it() -> None:
    assert ddl.qualified("s\n", "x\n") == '"s\n"."x\n"'
    assert ddl.qualified("s", "x_1") == "s.x_1"


@HOPELESS
def test_such_a_name_does_not_fit(name: str) -> None:
    assert not fits(name)


@HOPELESS
def test_a_setting_that_is_no_text_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Any = None  # it is not even asked
    with pytest.raises(PolicyError, match="no text of PostgreSQL"):
        maintenance.config_schema(nobody, name)


@pytest.mark.parametrize(
    "value",
    [10**5000, "7\0", "\udcff"],
    ids=lambda value: ascii(value)[:9] if isinstance(value, str) else "10**5000",
)
def test_a_storage_parameter_that_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(PolicyError, match="storage parameters") as refusal:
        PartitionPolicy("at", storage_parameters={"fillfactor": value})
    assert refusal.value.field == "storage_parameters"


def test_a_number_that_python_does_not_write_is_refused_all_the_same() -> None:
    with pytest.raises(PolicyError, match="a int of that size is not a whole number from 0 to 10000"):
        PartitionPolicy("at", premake=10**5000)


def test_an_error_shows_the_begin_of_a_long_value() -> None:
    with pytest.raises(PolicyError) as refusal:
        PartitionPolicy("at", retention="9" * 100_000)
    assert len(str(refusal.value)) < 500


def test_a_naive_value_at_the_end_of_the_calendar_is_left_to_postgresql() -> None:
    connection: Any = SimpleNamespace(dialect=SimpleNamespace(driver="asyncpg"))
    assert rows.key_values([datetime.min], "timestamptz", connection) == []
