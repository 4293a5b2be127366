"""Rows on their way out of a DEFAULT partition, statement by statement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import DRAINING_MARK, ForeignKey, Trigger

from .elements import Element, OfTable, bound_literal, qualified, quote, quoted_text
from .partitions import OfPartition

#: Begins the statement that moves rows, and no other.
MOVING = "WITH moved AS ("


class SeeAllRows(Element):
    """Have a statement fail that row-level security would hide rows from."""

    def sql(self) -> str:
        return "SET LOCAL row_security = off"


class CheckConstraintsNow(Element):
    """Check what is deferred before ATTACH, which is refused while a check is outstanding."""

    def sql(self) -> str:
        return "SET CONSTRAINTS ALL IMMEDIATE"


@dataclass(eq=False)
class Silence(OfTable):
    """Keep a trigger from firing; SHARE ROW EXCLUSIVE on its table."""

    trigger: Trigger

    def sql(self) -> str:
        return f"ALTER TABLE ONLY {self.table} DISABLE TRIGGER {quote(self.trigger.name)}"


@dataclass(eq=False)
class Wake(OfTable):
    """Let a trigger fire again, as it did before."""

    trigger: Trigger

    def sql(self) -> str:
        always = "ALWAYS " if self.trigger.always else ""
        return f"ALTER TABLE ONLY {self.table} ENABLE {always}TRIGGER {quote(self.trigger.name)}"


@dataclass(eq=False)
class MoveRows(Element):
    """Move the rows of a stretch from one table to another, identity values included.

    With a limit it takes no row that another transaction has locked, so it waits for none.
    """

    origin: tuple[str, str]
    goal: tuple[str, str]
    columns: Sequence[str]
    key: str
    key_type: KeyType
    lower: KeyValue | None
    upper: KeyValue | None
    limit: int | None = None

    def sql(self) -> str:
        origin, goal = qualified(*self.origin), qualified(*self.goal)
        columns = ", ".join(str(quote(name)) for name in self.columns)
        if self.limit is not None:
            within = (
                f"ctid = ANY (ARRAY(SELECT ctid FROM ONLY {origin}"
                f" WHERE {self._stretch()} LIMIT {self.limit:d} FOR UPDATE SKIP LOCKED))"
            )
        else:
            within = self._stretch()
        return (
            f"{MOVING}DELETE FROM ONLY {origin} WHERE {within} RETURNING {columns})"
            f" INSERT INTO {goal} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM moved"
        )

    def _stretch(self) -> str:
        key = quote(self.key)
        ends = [(">=", self.lower), ("<", self.upper)]
        tests = [
            f"{key} {sign} {bound_literal(value, self.key_type, upper=sign == '<')}"
            for sign, value in ends
            if value is not None
        ]
        return " AND ".join(tests) or "true"


class MarkDraining(OfPartition):
    """The comment by which the next run finds a table that rows are gathered in."""

    def sql(self) -> str:
        step = self.step
        told = {
            "schema": step.table.schema,
            "table": step.table.name,
            "oid": step.table.oid,
            "lower": step.lower.isoformat(),
            "upper": step.upper.isoformat(),
        }
        return f"COMMENT ON TABLE {self.child} IS {quoted_text(DRAINING_MARK + json.dumps(told))}"


@dataclass(eq=False)
class Distribute(OfPartition):
    """Have Citus distribute a table as its parent is, shard beside shard, before rows go into it."""

    column: str

    def sql(self) -> str:
        child, parent = quoted_text(self.child), quoted_text(self.parent)
        column = quoted_text(self.column)
        return f"SELECT create_distributed_table({child}, {column}, colocate_with => {parent})"


@dataclass(eq=False)
class AddForeignKey(OfPartition):
    """Build the parent's foreign key on a table that is still empty: nobody deletes what rows in it will
    refer to, and ATTACH takes it over."""

    key: ForeignKey

    def sql(self) -> str:
        # The definition is PostgreSQL's own, with its names quoted.
        return f"ALTER TABLE {self.child} ADD CONSTRAINT {quote(self.key.name)} {self.key.definition}"
