"""A partition that gives way to its windows, statement by statement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import (
    PARTITION_MARK,
    SPLIT_GROUP_MARK,
    SPLIT_MARK,
    SPLITTING_MARK,
    Split,
)

from .copying import WATCHING
from .elements import Element, OfTable, bound_literal, do_block, qualified, quote, quoted_text
from .removal import DropProof

CHANGED = "    RAISE EXCEPTION '%', {why} USING ERRCODE = 'object_not_in_prerequisite_state';\n  END IF;\n"


def bound_of(lower: KeyValue | None, upper: KeyValue | None, key_type: KeyType) -> str:
    """Write FOR VALUES FROM ... TO ...; ``None`` is MINVALUE or MAXVALUE."""
    first = "MINVALUE" if lower is None else bound_literal(lower, key_type)
    last = "MAXVALUE" if upper is None else bound_literal(upper, key_type, upper=True)
    return f"FOR VALUES FROM ({first}) TO ({last})"


def shape_of(table: str) -> str:
    """Digest what a copy must have like a table: columns, constraints, indexes."""
    parent = f"to_regclass({quoted_text(table)})"
    return (
        "md5(concat_ws(E'\\n',\n"
        "    (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),\n"
        "       a.attnotnull, a.attgenerated, a.attcollation, a.attidentity), ',' ORDER BY a.attnum)\n"
        f"     FROM pg_attribute a WHERE a.attrelid = {parent} AND a.attnum > 0\n"
        "     AND NOT a.attisdropped),\n"
        "    (SELECT string_agg(concat_ws(' ', k.conname, pg_get_constraintdef(k.oid)), ','\n"
        f"       ORDER BY k.conname) FROM pg_constraint k WHERE k.conrelid = {parent}\n"
        "     AND k.contype IN ('p', 'u', 'x', 'c', 'f')),\n"
        "    (SELECT string_agg(pg_get_indexdef(x.indexrelid), ',' ORDER BY x.indexrelid)\n"
        f"     FROM pg_index x WHERE x.indrelid = {parent})))"
    )


@dataclass(eq=False)
class OfSplit(Element):
    """A statement of one split."""

    split: Split

    @property
    def parent(self) -> str:
        return qualified(self.split.schema, self.split.table.name)

    @property
    def staging(self) -> str:
        return qualified(self.split.schema, self.split.staging)

    @property
    def source(self) -> str:
        return qualified(self.split.source.schema, self.split.source.name)

    @property
    def by_range(self) -> str:
        assert self.split.table.policy is not None
        return f"PARTITION BY RANGE ({quote(self.split.table.policy.key)})"

    @property
    def shape(self) -> str:
        """The digest of what a window must have like the table: columns, constraints, indexes."""
        return shape_of(self.parent)


PLAIN_NAMES = (
    "  PERFORM set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO, YMD', true);\n"
    "  path := current_setting('search_path');\n"
    "  PERFORM set_config('search_path', 'pg_catalog', true);\n"
)
NAMES_AS_BEFORE = "  PERFORM set_config('search_path', path, true);\n"


class CreateStaging(OfSplit):
    """Make the table that routes rows to the windows to be. It has no index and no constraint of its own."""

    def sql(self) -> str:
        return f"CREATE TABLE {self.staging} (LIKE {self.parent} INCLUDING GENERATED) {self.by_range}"


class MarkStaging(OfSplit):
    """The comment by which the next run finds a split; and what the table looked like when it began."""

    def sql(self) -> str:
        split = self.split
        told = {
            "of": split.table.oid,
            "table": [split.table.schema, split.table.name],
            "oid": split.source.oid,
            "partition": [split.source.schema, split.source.name],
            "bound": split.source.bound,
            "kept_as": split.kept_as,
            "log": split.log,
            "state": split.state,
        }
        return do_block(
            f"DECLARE path text; told jsonb := {quoted_text(json.dumps(told))};\nBEGIN\n{PLAIN_NAMES}"
            f"  told := told || jsonb_build_object('shape', {self.shape});\n{NAMES_AS_BEFORE}"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.staging)},\n"
            f"    {quoted_text(SPLITTING_MARK)} || told::text);\n"
        )


@dataclass(eq=False)
class CreateGroup(OfSplit):
    """Make a table for a group of windows, with all that they will have."""

    name: str

    def sql(self) -> str:
        group = qualified(self.split.schema, self.name)
        return f"CREATE TABLE {group} (LIKE {self.parent} INCLUDING ALL EXCLUDING IDENTITY) {self.by_range}"


class MarkGroup(OfTable):
    """The comment that says what a group is."""

    def sql(self) -> str:
        return f"COMMENT ON TABLE {self.table} IS {quoted_text(SPLIT_GROUP_MARK)}"


class MarkWindow(OfTable):
    """The comment that says that a partition is ours."""

    def sql(self) -> str:
        return f"COMMENT ON TABLE {self.table} IS {quoted_text(PARTITION_MARK + 'split')}"


@dataclass(eq=False)
class KeyNotValid(OfTable):
    """The parent's foreign key, for what is written from now on."""

    key: str
    definition: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} ADD CONSTRAINT {quote(self.key)} {self.definition} NOT VALID"


@dataclass(eq=False)
class ValidateKey(OfTable):
    """Check a foreign key for what was there before."""

    key: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} VALIDATE CONSTRAINT {quote(self.key)}"


@dataclass(eq=False)
class LockReferred(Element):
    """Keep everybody out of a table that a foreign key refers to, written as the catalog writes it."""

    name: str

    def sql(self) -> str:
        return f"LOCK TABLE {self.name} IN ACCESS EXCLUSIVE MODE"


@dataclass(eq=False)
class ConfirmSplit(OfSplit):
    """Make sure that all is what it was when the split began.

    :param begun: look at the table and the triggers, too.
    :param complete: right before the swap, the copy is complete and nothing waits in the log.
    """

    begun: bool = False
    complete: bool = False

    def sql(self) -> str:
        split = self.split
        log, state = (qualified(split.schema, name) for name in (split.log, split.state))
        oid = split.source.oid
        mark = f"obj_description(to_regclass({quoted_text(self.staging)}), 'pg_class')"
        body = (
            f"DECLARE path text; told jsonb;\nBEGIN\n{PLAIN_NAMES}"
            f"  told := substr({mark}, {len(SPLITTING_MARK) + 1:d})::jsonb;\n"
            "  IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid\n"
            f"      WHERE c.oid = to_regclass({quoted_text(self.source)}) AND c.oid = {oid:d}\n"
            f"      AND i.inhparent = to_regclass({quoted_text(self.parent)})\n"
            f"      AND i.inhparent = {split.table.oid or 0:d} AND NOT i.inhdetachpending\n"
            f"      AND pg_get_expr(c.relpartbound, 0) = {quoted_text(split.source.bound)})\n"
            "  THEN\n" + CHANGED.format(why=quoted_text("the partition is not what it was"))
        )
        if self.begun:
            body += (
                f"  IF told ->> 'shape' IS DISTINCT FROM {self.shape} THEN\n"
                + CHANGED.format(why=quoted_text("the table was altered"))
                + f"  IF (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = {oid:d}\n"
                f"      AND t.tgenabled = 'A' AND starts_with(t.tgname, {quoted_text(WATCHING)})) <> 2 THEN\n"
                + CHANGED.format(why=quoted_text("its triggers of the split were disabled or dropped"))
            )
        if self.complete:
            body += (
                f"  IF EXISTS (SELECT FROM {log}) OR NOT EXISTS (SELECT FROM {state} s\n"
                f"      WHERE s.source = {oid:d} AND s.next_block >= s.end_block\n"
                "      AND s.filenode = pg_relation_filenode(s.source)) THEN\n"
                + CHANGED.format(why=quoted_text("the copy is not complete"))
            )
        return do_block(body + NAMES_AS_BEFORE)


class MarkSplit(OfSplit):
    """Say what the table was that has been split, and the foreign keys that it had."""

    def sql(self) -> str:
        split = self.split
        told = {
            "of": split.table.oid,
            "table": [split.table.schema, split.table.name],
            "partition": split.source.name,
            "bound": split.source.bound,
            "foreign_keys": {key.name: key.definition for key in split.facts.foreign_keys},
        }
        return f"COMMENT ON TABLE {self.source} IS {quoted_text(SPLIT_MARK + json.dumps(told))}"


@dataclass(eq=False)
class AttachUnlessEmpty(OfTable):
    """Attach the outermost window if it holds rows, or drop it."""

    parent: str
    bound: str

    def sql(self) -> str:
        attach = f"ALTER TABLE {self.parent} ATTACH PARTITION {self.table} {self.bound}"
        return do_block(
            f"BEGIN\n  IF EXISTS (SELECT FROM {self.table}) THEN\n    {attach};\n"
            f"    {DropProof(self.schema, self.name).sql()};\n"
            f"  ELSE\n    DROP TABLE {self.table};\n  END IF;\n"
        )


@dataclass(eq=False)
class DropTables(Element):
    """Drop tables that nobody but a split has used."""

    names: Sequence[tuple[str, str]]

    def sql(self) -> str:
        return f"DROP TABLE IF EXISTS {', '.join(qualified(*name) for name in self.names)}"
