"""Partitions copied into one plain table: what is said of them that a copy of one table needs not."""

from __future__ import annotations

import json
from dataclasses import dataclass

from alembic_partitions.plan import MERGING_MARK, UNPARTITIONED_MARK, Merge, mark_of_merge

from .copying import WATCHING, OfCopying
from .elements import Element, do_block, qualified, quoted_text
from .splitting import CHANGED, NAMES_AS_BEFORE, PLAIN_NAMES, shape_of


@dataclass(eq=False)
class OfMerge(Element):
    """A statement of one merge."""

    merge: Merge

    @property
    def table(self) -> str:
        return qualified(*self.merge.goal)

    @property
    def plain(self) -> str:
        return qualified(*self.merge.plain)

    @property
    def log(self) -> str:
        return qualified(self.merge.schema, self.merge.log)

    @property
    def state(self) -> str:
        return qualified(self.merge.schema, self.merge.state)

    @property
    def shape(self) -> str:
        """The digest of what the plain table has got from the partitioned one."""
        oid = self.merge.table.oid
        return (
            f"{shape_of(self.table)} || md5((SELECT string_agg(concat_ws(' ', a.attname, a.attstorage,\n"
            "      a.attcompression, pg_get_expr(f.adbin, f.adrelid),\n"
            "      col_description(a.attrelid, a.attnum)), ',' ORDER BY a.attnum)\n"
            "    FROM pg_attribute a\n"
            "    LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum\n"
            f"    WHERE a.attrelid = {oid:d} AND a.attnum > 0 AND NOT a.attisdropped))"
        )


class MarkMerging(OfMerge):
    """The comment by which the next run finds a merge; and what the table looked like when it began."""

    def sql(self) -> str:
        told = quoted_text(json.dumps(mark_of_merge(self.merge), ensure_ascii=False))
        return do_block(
            f"DECLARE path text; told jsonb := {told};\nBEGIN\n{PLAIN_NAMES}"
            f"  told := told || jsonb_build_object('shape', {self.shape});\n{NAMES_AS_BEFORE}"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(self.plain)},\n"
            f"    {quoted_text(MERGING_MARK)} || told::text);\n"
        )


class CreateLeafState(OfCopying):
    """Make the table that holds how far the copy of each partition has come; what its rows are told by; and
    the trigger that writes its changes down, which is another one once it was detached in between."""

    def sql(self) -> str:
        return (
            f"CREATE TABLE {self.state} (source oid PRIMARY KEY, next_block bigint NOT NULL,"
            " end_block bigint NOT NULL, filenode oid NOT NULL, rows bigint NOT NULL DEFAULT 0,"
            " verified boolean NOT NULL DEFAULT false, watcher oid, bound text NOT NULL)"
        )


class LockFamily(OfMerge):
    """Have no partition come or go until the transaction ends; readers and writers go on."""

    def sql(self) -> str:
        return f"LOCK TABLE ONLY {self.table} IN SHARE UPDATE EXCLUSIVE MODE"


class RegardLeaves(OfMerge):
    """See which partitions there are now; under :class:`LockFamily`.

    The rows of one that is gone are taken away from the copy. One that is another file (emptied by TRUNCATE,
    or written anew by VACUUM FULL or CLUSTER), or was not one for a while, is copied from its beginning; so
    is one that is new, whose rows were not written down as they came.
    """

    def sql(self) -> str:
        return do_block(
            "DECLARE path text; s record; odd regclass;\nBEGIN\n"
            + PLAIN_NAMES
            + self._refuse_odd()
            + self._forget_left()
            + self._begin_new()
            + NAMES_AS_BEFORE
        )

    def _refuse_odd(self) -> str:
        return (
            "  SELECT c.oid INTO odd FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid\n"
            f"    LEFT JOIN pg_am m ON m.oid = c.relam WHERE i.inhparent = {self.merge.table.oid:d}\n"
            "    AND (c.relkind <> 'r' OR m.amname <> 'heap') LIMIT 1;\n"
            "  IF odd IS NOT NULL THEN\n"
            + CHANGED.format(why="concat('partition ', odd, ' is no plain table')")
        )

    def _forget_left(self) -> str:
        oid = self.merge.table.oid
        return (
            "  FOR s IN SELECT t.*, i.inhrelid IS NOT NULL AS stays\n"
            f"    FROM {self.state} t LEFT JOIN pg_inherits i\n"
            f"    ON i.inhrelid = t.source AND i.inhparent = {oid:d}\n"
            "  LOOP\n"
            f"    IF s.stays AND s.watcher IS NOT DISTINCT FROM {_watcher('s.source')} THEN\n"
            "      EXECUTE format('LOCK TABLE ONLY %s IN ACCESS SHARE MODE', s.source::regclass);\n"
            "      CONTINUE WHEN s.filenode = pg_relation_filenode(s.source);\n"
            "    END IF;\n"
            f"    EXECUTE format('DELETE FROM %s WHERE %s', {quoted_text(self.plain)}, s.bound);\n"
            f"    DELETE FROM {self.state} t WHERE t.source = s.source;\n"
            "  END LOOP;\n"
        )

    def _begin_new(self) -> str:
        # What a DEFAULT partition takes is less where others have come.
        return (
            f"  UPDATE {self.state} t SET bound = {_bound('t.source')}\n"
            f"    WHERE t.bound <> {_bound('t.source')};\n"
            f"  INSERT INTO {self.state} (source, next_block, end_block, filenode, watcher, bound)\n"
            "    SELECT i.inhrelid, 0,\n"
            "      pg_relation_size(i.inhrelid) / current_setting('block_size')::bigint,\n"
            f"      pg_relation_filenode(i.inhrelid), {_watcher('i.inhrelid')}, {_bound('i.inhrelid')}\n"
            f"    FROM pg_inherits i WHERE i.inhparent = {self.merge.table.oid:d}\n"
            f"    AND NOT EXISTS (SELECT FROM {self.state} t WHERE t.source = i.inhrelid);\n"
        )


def _watcher(partition: str) -> str:
    """Find the trigger by which changes of a partition are written down."""
    return f"(SELECT g.oid FROM pg_trigger g WHERE g.tgrelid = {partition} AND g.tgname = '{WATCHING}')"


def _bound(partition: str) -> str:
    """Tell which rows are of a partition."""
    return f"coalesce(pg_get_partition_constraintdef({partition}), 'true')"


class NoteAllVerified(OfMerge):
    """Note that the copy was compared, and is the same."""

    def sql(self) -> str:
        return f"UPDATE {self.state} SET verified = true"


@dataclass(eq=False)
class ConfirmMerge(OfMerge):
    """Make sure that the table and the triggers are what they were when the merge began.

    :param complete: right before the swap, all is copied and nothing waits in the log.
    """

    complete: bool = False

    def sql(self) -> str:
        oid = self.merge.table.oid
        mark = f"obj_description(to_regclass({quoted_text(self.plain)}), 'pg_class')"
        leaves = f"SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = {oid:d}"
        body = (
            f"DECLARE path text; told jsonb;\nBEGIN\n{PLAIN_NAMES}"
            f"  told := substr({mark}, {len(MERGING_MARK) + 1:d})::jsonb;\n"
            f"  IF to_regclass({quoted_text(self.table)}) IS DISTINCT FROM {oid:d}::oid::regclass\n"
            f"    OR told ->> 'shape' IS DISTINCT FROM {self.shape} THEN\n"
            + CHANGED.format(why=quoted_text("the table was altered"))
            + f"  IF EXISTS (SELECT FROM pg_class c WHERE (c.oid = {oid:d} OR c.oid IN ({leaves}))\n"
            "      AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled = 'A'\n"
            f"        AND t.tgname = {quoted_text(WATCHING)})) THEN\n"
            + CHANGED.format(why=quoted_text("triggers that write changes down were disabled or dropped"))
        )
        if self.complete:
            body += (
                f"  IF EXISTS (SELECT FROM {self.log})\n"
                f"    OR EXISTS (SELECT FROM {self.state} s WHERE s.source NOT IN ({leaves}))\n"
                f"    OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = {oid:d}\n"
                f"      AND (i.inhdetachpending OR NOT EXISTS (SELECT FROM {self.state} s\n"
                "        WHERE s.source = i.inhrelid AND s.next_block >= s.end_block\n"
                "        AND s.filenode = pg_relation_filenode(s.source)))) THEN\n"
                + CHANGED.format(why=quoted_text("the copy is not complete"))
            )
        return do_block(body + NAMES_AS_BEFORE)


@dataclass(eq=False)
class MarkUnpartitioned(OfMerge):
    """Say what the table was that a plain one has taken the place of."""

    is_verified: bool = False

    def sql(self) -> str:
        merge = self.merge
        told = {
            "table": [merge.schema, merge.table.name],
            "verified": self.is_verified,
            "foreign_keys": {key.name: key.definition for key in merge.table.foreign_keys},
        }
        text = quoted_text(json.dumps(told, ensure_ascii=False))
        return do_block(
            f"DECLARE told jsonb := {text};\nBEGIN\n"
            f"  told := told || jsonb_build_object('plain', {quoted_text(self.table)}::regclass::oid);\n"
            f"  EXECUTE format('COMMENT ON TABLE %s IS %L', {quoted_text(qualified(*merge.origin))},\n"
            f"    {quoted_text(UNPARTITIONED_MARK)} || told::text);\n"
        )
