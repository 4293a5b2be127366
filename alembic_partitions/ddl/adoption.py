"""What adopting a table writes: its row, and marks on partitions that somebody else has made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.sql.base import Executable

from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import PARTITION_MARK, PartmanSet

from .elements import DIALECT, Element, bound_literal, do_block, qualified, quoted_text

#: Who made a partition, says our mark on one that somebody else has made.
ADOPTED_MARK = f"{PARTITION_MARK}adopt"


@dataclass(eq=False)
class WrittenOut(Element):
    """A statement of SQLAlchemy's with its values in it, to be sent as it is printed."""

    statement: Executable

    def sql(self) -> str:
        compiled = self.statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
        return str(compiled)


@dataclass(eq=False)
class MarkAdopted(Element):
    """Mark the partitions with these bounds as ours, unless they bear a comment."""

    home: str | None
    name: str
    #: As PostgreSQL prints them under UTC and ISO.
    bounds: Iterable[str]

    def sql(self) -> str:
        # It puts quotes around some constants, and not around others.
        told = ", ".join(quoted_text(bound.replace("'", "")) for bound in self.bounds)
        return _for_each(
            self.home,
            self.name,
            "c.relkind IN ('r', 'p') AND NOT i.inhdetachpending AND d.description IS NULL\n"
            f"    AND replace(pg_get_expr(c.relpartbound, 0), '''', '') = ANY (ARRAY[{told}]::text[])",
            quoted_text(ADOPTED_MARK),
        )


@dataclass(eq=False)
class UnmarkAdopted(Element):
    """Take the marks away that adopting has set."""

    home: str | None
    name: str

    def sql(self) -> str:
        return _for_each(self.home, self.name, f"d.description = {quoted_text(ADOPTED_MARK)}", "NULL")


def partman_off(found: PartmanSet) -> str:
    """Return what takes a table out of pg_partman's hands."""
    return (
        f"UPDATE {qualified(found.schema, 'part_config')} SET automatic_maintenance = 'off'"
        f" WHERE parent_table = {quoted_text(found.parent)}"
    )


def printed_bounds(lower: KeyValue, upper: KeyValue, key_type: KeyType) -> str:
    """Write bounds as PostgreSQL prints them under UTC and ISO, but for quotes."""
    begin, end = bound_literal(lower, key_type), bound_literal(upper, key_type, upper=True)
    return f"FOR VALUES FROM ({begin}) TO ({end})"


def _for_each(home: str | None, name: str, condition: str, comment: str) -> str:
    parent = quoted_text(qualified(home, name))
    return do_block(
        "DECLARE part regclass; zone text := current_setting('TimeZone');\n"
        "  style text := current_setting('DateStyle');\nBEGIN\n"
        "  PERFORM set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true);\n"
        "  FOR part IN SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid\n"
        "    LEFT JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0\n"
        "      AND d.classoid = 'pg_class'::regclass\n"
        f"    WHERE i.inhparent = {parent}::regclass AND {condition}\n"
        "  LOOP\n"
        f"    EXECUTE format('COMMENT ON TABLE %s IS %s', part, {quoted_text(comment)});\n"
        "  END LOOP;\n"
        "  PERFORM set_config('TimeZone', zone, true), set_config('DateStyle', style, true);\n"
    )
