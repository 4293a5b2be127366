"""What both ways look at first, and a plan as it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from alembic_partitions import catalog, executor
from alembic_partitions.declare import Door
from alembic_partitions.drivers import reason, sqlstate
from alembic_partitions.errors import ConversionRefused, NoTableError
from alembic_partitions.executor.statements import remark, script
from alembic_partitions.plan import Belongings

#: Told of each step when it begins.
Told: TypeAlias = Callable[[str], None]

#: Seconds after which a transaction that holds the table counts as one that will go on holding it.
LONG = 60.0
#: Somebody else alters the table between our looks, each time anew: then we give up.
MOST_LOOKS = 5
_NOT_PERMITTED = "42501"


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What is left to do to convert one table; no steps where it is done."""

    table: str
    steps: tuple[executor.Step, ...] = ()
    notes: tuple[str, ...] = ()
    #: Who holds the table longer than the swap would wait.
    blockers: tuple[str, ...] = ()
    #: What the steps were planned by.
    unchanged: tuple[Belongings, ...] = field(default=(), repr=False)
    #: The name of the first partition.
    first: str | None = None
    #: Where rows are refused from until it is done, once that is so.
    until: str | None = None

    def sql(self) -> str:
        """Return the script: byte for byte what would be sent."""
        said = "".join(f"{remark(note)}\n" for note in (*self.notes, *self.blockers))
        return said + "".join(script([step.batch], step.title) for step in self.steps)


def door_to(connection: Connection, config_schema: str | None) -> Door:
    """Return the way in of a connection of our own."""
    return Door(connection.execute, connection, config_schema, remark=lambda text: None)


def read(connection: Connection, schema: str, table: str) -> Belongings:
    """Return a table as it is, in a transaction that is open.

    :raises NoTableError: there is none.
    """
    catalog.see_all_rows(connection)
    found = catalog.read_belongings(connection, schema, table)
    if found is None:
        raise NoTableError(table=f"{schema}.{table}")
    return found


@contextmanager
def readable(table: Belongings) -> Iterator[None]:
    """Say what to do where this role may not see all rows.

    :raises ConversionRefused: it may not.
    """
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) != _NOT_PERMITTED:
            raise
        told = f"{reason(error)}: grant SELECT on it, or run as a role that no row is hidden from"
        raise ConversionRefused(table=str(table), problems=told) from error


def long_holders(connection: Connection, table: Belongings) -> tuple[str, ...]:
    """Tell who holds the table for longer than a swap could wait."""
    held = catalog.holders(connection, [table.oid])
    return tuple(f"{holder}, for {holder.seconds:.0f} s" for holder in held if (holder.seconds or 0) > LONG)


def refuse_blocked(planned: ConversionPlan) -> None:
    """Refuse to begin what would have to wait for somebody who goes on and on.

    :raises ConversionRefused: there is somebody.
    """
    if planned.blockers:
        told = "; ".join(planned.blockers)
        raise ConversionRefused(
            table=planned.table,
            problems=f"the last step would wait for a long transaction: {told}. End it, or wait for its end",
        )
