"""A declaration on its way into the database: a row of partition_config, and the first windows.

Two doors lead here, Alembic's operations and SQLAlchemy's ``create_all()``. What they differ in is a
:class:`Door`: how a statement is sent, and whether there is a database to ask (with ``--sql`` there is none).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import ColumnElement, Connection, Executable, func, select

from . import catalog, ddl, maintenance
from .errors import ConfigurationError, NotManagedError, PolicyError
from .periods import KeyType
from .plan import ManagedTable, Plan, plan_horizon
from .policy import PartitionPolicy

#: Windows made inside the caller's own transaction, whose locks add up; the horizon follows after it.
FIRST_WINDOWS = 40


@dataclass(frozen=True, slots=True)
class Door:
    """Where a declaration comes in.

    ``connection`` is ``None`` where SQL is only printed. ``told`` is the schema that partition_config was
    told to live in, if any. ``remark`` puts a comment into a printed script.
    """

    execute: Callable[[Executable], Any]
    connection: Connection | None
    told: str | None
    remark: Callable[[str], None]

    @property
    def home(self) -> str | None:
        """The schema of our two tables; online always one, offline ``None`` for the default one."""
        if self.told is not None or self.connection is None:
            return self.told
        meant = catalog.meant(self.connection)
        return str(meant.config_schema or _existing(meant.default_schema))

    def schema_of(self, schema: str | None, name: str | None = None) -> str | None:
        """Return the schema of a table that exists, or (without ``name``) of one to be made; offline as
        given."""
        if schema is not None or self.connection is None:
            return schema
        meant = catalog.meant(self.connection, name or "")
        return str((name and meant.table_schema) or _existing(meant.default_schema))


def ensure_our_tables(door: Door) -> str | None:
    """Make partition_config and partition_runs unless they are there; return their schema.

    :raises ConfigurationError: a partition_config that is not ours is in the way; nothing was sent.
    """
    home = door.home
    if door.connection is not None and catalog.find_config(door.connection, home) is None:
        _refuse_place(door, door.connection, str(home))
    door.execute(ddl.EnsureOurTables(home))
    return home


def declare(
    door: Door, home: str | None, schema: str | None, name: str, policy: PartitionPolicy, key_type: KeyType
) -> None:
    """Write the policy of a table that has just been created down, and make its first windows."""
    upsert = ddl.declare_policy(home, _schema(door.schema_of(schema)), name, policy)
    door.execute(upsert)
    run_steps(door, _first_windows(door, schema, name, policy, key_type))


def free_others(door: Door, schema: str | None, name: str) -> None:
    """Let go of what is not ours before a table is dropped: it stays, and is in nobody's way."""
    door.execute(ddl.DetachForeign(schema, name))
    door.execute(ddl.FreeSequences(schema, name))


def forget(door: Door, home: str | None, schema: str | None, name: str) -> None:
    """Delete the policy of a table."""
    config = ddl.config_table(home)
    door.execute(config.delete().where(ddl.row_of(config, schema, name)))


def managed(door: Door, connection: Connection, schema: str | None, name: str) -> ManagedTable:
    """Read one managed table in the middle of somebody's transaction, whose settings stay as they are.

    :raises NotManagedError: it has no policy.
    """
    wanted = f"{door.schema_of(schema, name)}.{name}"
    found = catalog.find_config(connection, door.home)
    if found is not None:
        with catalog.utc_settings(connection):
            snapshot = catalog.read_snapshot(connection, found, {wanted})
        for table in snapshot.tables:
            return table
    raise NotManagedError(table=wanted)


def run_steps(door: Door, planned: Plan) -> None:
    """Make the partitions of a plan in the caller's own transaction."""
    if door.connection is None:
        for step in planned.steps:
            door.execute(ddl.CreateUnseen(step))
        return
    # A migration may run as a mere member of the owner.
    user = door.connection.scalar(select(func.current_user()))
    if planned.steps:
        for element in ddl.distribution(planned.table.traits.distributed):
            door.execute(element)
    for step in planned.steps:
        for element in ddl.partition_elements(step, user):
            door.execute(element)


def _first_windows(
    door: Door, schema: str | None, name: str, policy: PartitionPolicy, key_type: KeyType
) -> Plan:
    first = policy.changed(premake=min(policy.premake, FIRST_WINDOWS - 2), lookback=min(policy.lookback, 1))
    connection = door.connection
    if connection is None:
        now = maintenance.clock(datetime.now(timezone.utc))
        door.remark(
            f"-- alembic_partitions: first windows as of {now:%Y-%m-%d %H:%M:%S}+00, from this host's clock"
            f" or {maintenance.NOW_VARIABLE}; the horizon follows with the first online run\n"
        )
        return plan_horizon(ManagedTable(schema or "", name, first, oid=0, key_type=key_type), now)
    now = maintenance.clock(connection.execute(select(func.now())).scalar_one())
    found = catalog.describe_table(connection, str(door.schema_of(schema)), name, first)
    if found.problem is not None:  # with if_not_exists, a table of another make
        raise PolicyError(field="key", problem=found.problem[1], remedy="Correct the policy or the table.")

    def make(taken: Container[str]) -> Plan:
        return plan_horizon(found, now, taken)

    return maintenance.with_free_names(connection, make)


def _refuse_place(door: Door, connection: Connection, home: str) -> None:
    """Refuse to make a partition_config where there is no schema, or by mistake a second one."""
    if not catalog.schema_exists(connection, home):
        raise ConfigurationError(
            problem=f"has no place: there is no schema {home!r}",
            remedy=f"Create it, or correct {maintenance.SCHEMA_VARIABLE} or what else names it.",
        )
    elsewhere = catalog.config_schemas(connection)
    # Tenants each have their own, and say so by their search_path.
    if elsewhere and door.told is None and home == "public":
        raise ConfigurationError(
            problem=f"is there already, in schema {' and '.join(map(repr, elsewhere))}",
            remedy=f"Set {maintenance.SCHEMA_VARIABLE} (or alembic_partitions_schema in alembic.ini) to that"
            " schema; or to 'public', to keep a second one there.",
        )


def _schema(schema: str | None) -> ColumnElement[str]:
    return func.current_schema() if schema is None else ddl.text_literal(schema)


def _existing(schema: str | None) -> str:
    if schema is None:
        raise PolicyError(
            field="schema",
            problem="search_path names no schema that exists, so there is no place for the table",
            remedy="Pass schema=, or set search_path.",
        )
    return schema
