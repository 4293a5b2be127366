"""A policy on its way into partition_config, each value such that ``--sql`` can print it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ClauseElement, ColumnElement, Table, Time, and_, cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert

from alembic_partitions.policy import BY_HAND, PartitionPolicy

from .elements import DIALECT, text_literal
from .migrations import schema_of_name
from .tables import config_table


def declare_policy(
    home: str | None, schema: ColumnElement[str], name: str, policy: PartitionPolicy, by_hand: bool = False
) -> Insert:
    """Return what writes the policy of a table down, in force and declared, whatever stood there before.

    :param by_hand: no migration declares it, so its model need not know of it.
    """
    values = columns_of(policy.to_dict())
    declared = as_json(policy.to_dict() | ({BY_HAND: True} if by_hand else {}))
    target = (
        insert(config_table(home))
        .inline()
        .values(table_schema=schema, table_name=text_literal(name), declared=declared, **values)
    )
    return target.on_conflict_do_update(
        index_elements=["table_schema", "table_name"],
        set_={name: target.excluded[name] for name in (*values, "declared")},
    )


def row_of(config: Table, schema: str | None, name: str) -> ColumnElement[bool]:
    """Return the condition that finds a table's row."""
    return and_(
        config.c.table_schema == (schema_of_name(name) if schema is None else text_literal(schema)),
        config.c.table_name == text_literal(name),
    )


def columns_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return policy fields as columns of partition_config, each a value that --sql can print."""
    columns: dict[str, Any] = {
        "partition_key" if name == "key" else name: text_literal(value) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    if "day_start" in columns:
        columns["day_start"] = cast(columns["day_start"], Time())
    if "storage_parameters" in columns:
        columns["storage_parameters"] = as_json(columns["storage_parameters"])
    return columns


def as_json(value: Mapping[str, Any]) -> ColumnElement[Any]:
    """Return a mapping as a jsonb value that --sql can print."""
    return cast(text_literal(json.dumps(value)), JSONB())


def written(statement: ClauseElement) -> str:
    """Return a statement as one text, its values written into it."""
    return str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
