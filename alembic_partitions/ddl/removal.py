"""How a partition goes, and comes back: statement by statement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import DETACHED_MARK, DETACHING_MARK, MARKS, RESTORED_MARK, How

from .elements import Element, OfTable, bound_literal, do_block, quote, quoted_text

# The name of a CHECK that lives from one statement of ours to the next.
_PROOF = "alembic_partitions_bound"
_NOW = "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US\"Z\"')"
_UTC = "  PERFORM set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true);\n"
_CHANGED = (
    "    RAISE EXCEPTION '% is not what it was when this was planned', {name}\n"
    "      USING ERRCODE = 'object_not_in_prerequisite_state';\n"
)


_STILL = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "row_security": "off",  # an error, where rows would be hidden
    "synchronize_seqscans": "off",
    "max_parallel_workers_per_gather": "0",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}


@dataclass(eq=False)
class ConfirmPartition(OfTable):
    """Make sure, right before it goes, that a partition is the one that was planned for, and not the last."""

    oid: int
    parent_oid: int
    bound: str

    def sql(self) -> str:
        return do_block(
            f"BEGIN\n{_UTC}"
            "  IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid\n"
            f"      WHERE c.oid = {self.regclass} AND c.oid = {self.oid:d}\n"
            f"      AND i.inhparent = {self.parent_oid:d}\n"
            f"      AND pg_get_expr(c.relpartbound, 0) = {quoted_text(self.bound)}\n"
            f"      AND starts_with(obj_description(c.oid, 'pg_class'), {quoted_text(MARKS)}))\n"
            "  THEN\n" + _CHANGED.format(name=quoted_text(self.table)) + "  END IF;\n"
            "  IF NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid\n"
            f"      WHERE i.inhparent = {self.parent_oid:d} AND i.inhrelid <> {self.oid:d}\n"
            "      AND NOT i.inhdetachpending AND pg_get_expr(c.relpartbound, 0) <> 'DEFAULT')\n"
            "  THEN\n"
            f"    RAISE EXCEPTION '% is the last partition, and stays', {quoted_text(self.table)}\n"
            "      USING ERRCODE = 'object_not_in_prerequisite_state';\n"
            "  END IF;\n"
        )


@dataclass(eq=False)
class ConfirmDetached(OfTable):
    """Make sure that a table is the one that was detached, and no partition again."""

    oid: int

    def sql(self) -> str:
        return do_block(
            "BEGIN\n"
            "  IF NOT EXISTS (SELECT FROM pg_class c\n"
            f"      WHERE c.oid = {self.regclass} AND c.oid = {self.oid:d} AND NOT c.relispartition\n"
            f"      AND starts_with(obj_description(c.oid, 'pg_class'), {quoted_text(MARKS + 'detach')}))\n"
            "  THEN\n" + _CHANGED.format(name=quoted_text(self.table)) + "  END IF;\n"
        )


@dataclass(eq=False)
class Mark(OfTable):
    """Write down what a table was, as JSON in its comment."""

    told: Mapping[str, object]

    def comment(self, prefix: str, added: str) -> str:
        kept = quoted_text(json.dumps(self.told))
        return do_block(
            "BEGIN\n"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.table)},\n"
            f"    {quoted_text(prefix)} || ({kept}::jsonb || {added})::text);\n"
        )


class MarkDetaching(Mark):
    """Say that a partition is on its way out, what its comment was, and how the CHECK looks that DETACH
    CONCURRENTLY adds (manual, ALTER TABLE). One that is there already is the table's own, and stays, unless
    the DETACH has begun: then it is that one."""

    def sql(self) -> str:
        was = f"obj_description({self.regclass}, 'pg_class')"
        own = f"substr({was}, {len(DETACHING_MARK) + 1:d})::jsonb"
        bound = f"'CHECK (' || pg_get_partition_constraintdef({self.regclass}) || ')'"
        return do_block(
            f"DECLARE told jsonb := {quoted_text(json.dumps(self.told))};\nBEGIN\n{_UTC}"
            f"  told := told || jsonb_build_object('leaves', {bound}, 'was',\n"
            f"    CASE WHEN starts_with({was}, {quoted_text(DETACHING_MARK)})\n"
            f"      THEN {own} ->> 'was' ELSE {was} END,\n"
            "    'own', EXISTS (SELECT FROM pg_constraint x JOIN pg_inherits i ON i.inhrelid = x.conrelid\n"
            f"      WHERE x.conrelid = {self.regclass} AND x.contype = 'c' AND NOT i.inhdetachpending\n"
            f"      AND pg_get_constraintdef(x.oid) = {bound}));\n"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.table)},\n"
            f"    {quoted_text(DETACHING_MARK)} || told::text);\n"
        )


class MarkDetached(Mark):
    """Say what a table was, and that it is detached since now."""

    def sql(self) -> str:
        return self.comment(DETACHED_MARK, f"jsonb_build_object('at', {_NOW})")


@dataclass(eq=False)
class MarkAgain(Mark):
    """Say what a table was, and since when it has been detached."""

    at: datetime

    def sql(self) -> str:
        at = quoted_text(f"{self.at:%Y-%m-%d %H:%M:%S.%f}Z")
        return self.comment(DETACHED_MARK, f"jsonb_build_object('at', {at}::text)")


class MarkKept(OfTable):
    """Give a partition the comment back that it had before it was about to be detached."""

    def sql(self) -> str:
        told = f"obj_description({self.regclass}, 'pg_class')"
        was = f"substr({told}, {len(DETACHING_MARK) + 1:d})::jsonb ->> 'was'"
        return do_block(
            "BEGIN\n"
            f"  IF starts_with({told}, {quoted_text(DETACHING_MARK)}) THEN\n"
            f"    EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.table)}, {was});\n"
            "  END IF;\n"
        )


class MarkRestored(OfTable):
    """Say that a partition has come back, and when."""

    def sql(self) -> str:
        return do_block(
            "BEGIN\n"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.table)},\n"
            f"    {quoted_text(RESTORED_MARK)} || {_NOW});\n"
        )


@dataclass(eq=False)
class Detach(OfTable):
    """DETACH PARTITION, in one of its ways."""

    parent: str
    how: How

    def sql(self) -> str:
        return f"ALTER TABLE {self.parent} DETACH PARTITION {self.table}{self.how.value}"


class DropLeftCheck(OfTable):
    """Drop the CHECK that DETACH CONCURRENTLY leaves behind (manual, ALTER TABLE)."""

    def sql(self) -> str:
        return do_block(
            f"DECLARE name text; told text := obj_description({self.regclass}, 'pg_class'); mark jsonb;\n"
            f"BEGIN\n{_UTC}"
            f"  IF NOT starts_with(told, {quoted_text(DETACHING_MARK)}) THEN RETURN; END IF;\n"
            f"  mark := substr(told, {len(DETACHING_MARK) + 1:d})::jsonb;\n"
            "  IF (mark ->> 'own')::boolean THEN RETURN; END IF;\n"
            f"  FOR name IN SELECT x.conname FROM pg_constraint x WHERE x.conrelid = {self.regclass}\n"
            "    AND x.contype = 'c' AND pg_get_constraintdef(x.oid) = mark ->> 'leaves'\n"
            "  LOOP\n"
            f"    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', {quoted_text(self.table)}, name);\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class MakeRoom(OfTable):
    """Rename indexes of a table whose names are taken in the schema that it is about to move to."""

    to: str

    def sql(self) -> str:
        taken = f"n.nspname = {quoted_text(self.to)} AND o.relname = c.relname"
        return do_block(
            "DECLARE old record;\nBEGIN\n"
            "  FOR old IN SELECT c.oid::regclass::text AS name, c.relname\n"
            "    FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid\n"
            f"    WHERE x.indrelid = {self.regclass}\n"
            "    AND EXISTS (SELECT FROM pg_class o JOIN pg_namespace n ON n.oid = o.relnamespace\n"
            f"                WHERE {taken})\n"
            "  LOOP\n"
            "    EXECUTE format('ALTER INDEX %s RENAME TO %I', old.name,\n"
            # Within 63 bytes whatever the letters.
            "      left(old.relname, 12) || '_' || left(md5(old.relname || clock_timestamp()), 8));\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class Rename(OfTable):
    """Give a table another name."""

    to: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} RENAME TO {quote(self.to)}"


@dataclass(eq=False)
class SetSchema(OfTable):
    """Move a table to another schema."""

    to: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} SET SCHEMA {quote(self.to)}"


class LockShared(OfTable):
    """Have nobody write to a table; reading goes on."""

    def sql(self) -> str:
        return f"LOCK TABLE {self.table} IN SHARE MODE"


@dataclass(eq=False)
class DropKey(OfTable):
    """Drop a foreign key: ACCESS EXCLUSIVE on the table that it refers to, too."""

    key: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} DROP CONSTRAINT IF EXISTS {quote(self.key)}"


@dataclass(eq=False)
class ProveBound(OfTable):
    """A CHECK that says what the bound will: ATTACH, which has others wait, then does not read the table."""

    key: str
    key_type: KeyType
    lower: KeyValue | None
    upper: KeyValue | None

    def sql(self) -> str:
        key = quote(self.key)
        ends = [f"{key} IS NOT NULL"]
        ends += [f"{key} >= {bound_literal(self.lower, self.key_type)}"] if self.lower is not None else []
        if self.upper is not None:
            ends.append(f"{key} < {bound_literal(self.upper, self.key_type, upper=True)}")
        return f"ALTER TABLE {self.table} ADD CONSTRAINT {_PROOF} CHECK ({' AND '.join(ends)})"


class DropProof(OfTable):
    """Drop that CHECK again."""

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} DROP CONSTRAINT IF EXISTS {_PROOF}"


@dataclass(eq=False)
class Reattach(OfTable):
    """ATTACH PARTITION with the bound that a partition had."""

    parent: str
    bound: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.parent} ATTACH PARTITION {self.table} {self.bound}"


@dataclass(eq=False)
class CopyOut(OfTable):
    """Every row as CSV, generated columns left out: COPY ... FROM takes none."""

    columns: tuple[str, ...]

    def sql(self) -> str:
        names = ", ".join(map(quote, self.columns))
        return f"COPY (SELECT {names} FROM {self.table}) TO STDOUT WITH (FORMAT csv, HEADER true)"


class HoldStill(Element):
    """What a transaction needs that reads a table twice: each row, both times in the same order, as text
    that means the same in any session; and no time-out, as there may be many."""

    def sql(self) -> str:
        told = ", ".join(f"({quoted_text(k)}, {quoted_text(v)})" for k, v in _STILL.items())
        return (
            f"SELECT set_config(v.name, v.value, true) FROM (VALUES {told}) v (name, value)"
            " JOIN pg_settings s ON s.name = v.name"  # transaction_timeout: from PostgreSQL 17 on
        )
