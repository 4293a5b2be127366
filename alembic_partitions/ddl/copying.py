"""Rows copied beside writers: block by block, and whatever changes meanwhile by way of a log.

The log holds who changed, not what: a row that is named there is taken away from the copy and copied anew as
it is now. So it matters neither how often a row is named nor by whom; and what a transaction has not yet
committed is named once it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from alembic_partitions.plan import SPLIT_HELPER_MARK, Identified

from .elements import Element, do_block, dollar_quoted, qualified, quote, quoted_text

#: A table: its schema and its name.
Name: TypeAlias = "tuple[str, str]"

#: Begins the names of the triggers that write the log.
WATCHING = "alembic_partitions_watch"
#: Numbers the entries of a log.
ENTRY = "alembic_partitions_entry"

_CALM = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    "row_security": "off",  # an error, where rows would be hidden
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "extra_float_digits": "1",
}
# Few rows are looked up in large tables that may not have been analyzed yet.
_BY_INDEX = {
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "constraint_exclusion": "partition",
    "jit": "off",
}


@dataclass(frozen=True, slots=True)
class Copying:
    """What is copied where: the names that the statements below have in common."""

    origin: Name
    origin_oid: int
    target: Name
    log: Name
    state: Name
    key: str
    #: What is written, and what is compared: generated columns, too.
    columns: tuple[str, ...]
    compared: tuple[str, ...]
    identity: tuple[Identified, ...]
    #: The origin itself, not its partitions.
    only: bool = True
    #: The copy has a unique index that the origin has not: what it refuses stays in the log.
    is_stricter: bool = False

    @property
    def names(self) -> str:
        return _list(self.columns)

    @property
    def told_by(self) -> str:
        return _list([column.name for column in self.identity])

    def same(self, left: str, right: str) -> str:
        """Compare the identities of two rows by the operators of the index."""
        return " AND ".join(
            f"{left}.{quote(column.name)} {column.equals} {right}.{quote(column.name)}"
            for column in self.identity
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(str(quote(name)) for name in names)


@dataclass(eq=False)
class OfCopying(Element):
    """A statement of one copy."""

    copying: Copying

    @property
    def origin(self) -> str:
        return qualified(*self.copying.origin)

    @property
    def all_of_it(self) -> str:
        return self.origin if not self.copying.only else f"ONLY {self.origin}"

    @property
    def goal(self) -> str:
        return qualified(*self.copying.target)

    @property
    def log(self) -> str:
        return qualified(*self.copying.log)

    @property
    def state(self) -> str:
        return qualified(*self.copying.state)

    @property
    def key_name(self) -> str:
        return str(quote(self.copying.key))


@dataclass(eq=False)
class Steady(Element):
    """What a transaction of a copy needs: time, all rows, and times that are written alike."""

    by_index: bool = False

    def sql(self) -> str:
        settings = {**_CALM, **(_BY_INDEX if self.by_index else {})}
        told = ", ".join(f"({quoted_text(k)}, {quoted_text(v)})" for k, v in settings.items())
        return (
            f"SELECT set_config(v.name, v.value, true) FROM (VALUES {told}) v (name, value)"
            " JOIN pg_settings s ON s.name = v.name"  # transaction_timeout: from PostgreSQL 17 on
        )


class OneSnapshot(Element):
    """Have all statements of a transaction see the same."""

    def sql(self) -> str:
        return "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


class CreateLog(OfCopying):
    """Make the log: types and collations are those of the columns."""

    def sql(self) -> str:
        return (
            f"CREATE TABLE {self.log} AS SELECT {self.copying.told_by} FROM ONLY {self.origin} WITH NO DATA"
        )


class NumberLog(OfCopying):
    """Number the entries of the log in the order in which they are written."""

    def sql(self) -> str:
        return f"ALTER TABLE {self.log} ADD COLUMN {ENTRY} bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


class CreateState(OfCopying):
    """Make the table that holds how far the copy has come."""

    def sql(self) -> str:
        return (
            f"CREATE TABLE {self.state} (source oid PRIMARY KEY, next_block bigint NOT NULL,"
            " end_block bigint NOT NULL, filenode oid NOT NULL, rows bigint NOT NULL DEFAULT 0,"
            " verified boolean NOT NULL DEFAULT false)"
        )


@dataclass(eq=False)
class MarkHelper(Element):
    """The comment by which others leave a helper alone."""

    name: Name

    def sql(self) -> str:
        return f"COMMENT ON TABLE {qualified(*self.name)} IS {quoted_text(SPLIT_HELPER_MARK)}"


@dataclass(eq=False)
class SetWatcher(OfCopying):
    """The trigger function, which runs as the table's owner: writers need no right on what it writes to.

    It writes down who was changed. ``in_step`` has it change the copy as well, in the writer's own
    transaction, so that whoever sees the change in the one sees it in the other; and write down only what
    could not be changed there, because the copy was not, or not yet, what it should be.
    """

    in_step: bool = False

    def sql(self) -> str:
        body = self._in_step() if self.in_step else self._logging()
        # What the columns of a table call, its CHECKs for one, is found as in this session.
        settings = "SET search_path FROM CURRENT SET plan_cache_mode = force_custom_plan"
        return (
            f"CREATE OR REPLACE FUNCTION {self.log}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            f" {settings} AS {dollar_quoted(body)}"
        )

    def _logging(self) -> str:
        # Whether an identity has changed is told by its bytes: any operator might be a type's own.
        same = f"ROW({self._identity('OLD')}), ROW({self._identity('NEW')})"
        return (
            "BEGIN\n"
            f"  IF TG_OP = 'TRUNCATE' THEN\n    INSERT INTO {self.log} DEFAULT VALUES;\n"
            f"  ELSIF TG_OP = 'INSERT' THEN\n    {self._write('NEW')}"
            f"  ELSIF TG_OP = 'DELETE' THEN\n    {self._write('OLD')}"
            f"  ELSE\n    {self._write('OLD')}"
            f"    IF pg_catalog.record_image_ne({same}) THEN\n      {self._write('NEW')}    END IF;\n"
            "  END IF;\n  RETURN NULL;\n"
        )

    def _in_step(self) -> str:
        values = ", ".join(f"NEW.{quote(name)}" for name in self.copying.columns)
        missed = "    GET DIAGNOSTICS count = ROW_COUNT;\n    IF count <> 1 THEN\n      {}    END IF;\n"
        return (
            "DECLARE count bigint;\nBEGIN\n"
            f"  IF TG_OP = 'TRUNCATE' THEN\n    INSERT INTO {self.log} DEFAULT VALUES;\n    RETURN NULL;\n"
            "  END IF;\n  IF TG_OP <> 'INSERT' THEN\n"
            f"    DELETE FROM {self.goal} AS c WHERE {self.copying.same('c', 'OLD')};\n"
            f"{missed.format(self._write('OLD'))}"
            "  END IF;\n  IF TG_OP <> 'DELETE' THEN\n"
            f"    INSERT INTO {self.goal} ({self.copying.names}) OVERRIDING SYSTEM VALUE\n"
            f"      VALUES ({values}) ON CONFLICT DO NOTHING;\n"
            f"{missed.format(self._write('NEW'))}"
            "  END IF;\n  RETURN NULL;\n"
        )

    def _identity(self, row: str) -> str:
        return ", ".join(f"{row}.{quote(column.name)}" for column in self.copying.identity)

    def _write(self, row: str) -> str:
        return f"INSERT INTO {self.log} ({self.copying.told_by}) VALUES ({self._identity(row)});\n"


class CloseWatcher(OfCopying):
    """Let nobody else make a trigger of it."""

    def sql(self) -> str:
        return f"REVOKE ALL ON FUNCTION {self.log}() FROM PUBLIC"


@dataclass(eq=False)
class OwnWatcher(OfCopying):
    """Give the trigger function to the table's owner."""

    owner: str

    def sql(self) -> str:
        return f"ALTER FUNCTION {self.log}() OWNER TO {quote(self.owner)}"


class DropWatcher(OfCopying):
    """Drop the trigger function."""

    def sql(self) -> str:
        return f"DROP FUNCTION IF EXISTS {self.log}()"


class Watch(OfCopying):
    """Have every change of a row written down from the end of this transaction on."""

    def sql(self) -> str:
        return (
            f"CREATE TRIGGER {WATCHING} AFTER INSERT OR UPDATE OR DELETE ON {self.origin}"
            f" FOR EACH ROW EXECUTE FUNCTION {self.log}()"
        )


class WatchTruncate(OfCopying):
    """Have a TRUNCATE written down."""

    def sql(self) -> str:
        return (
            f"CREATE TRIGGER {WATCHING}_truncate AFTER TRUNCATE ON {self.origin}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {self.log}()"
        )


@dataclass(eq=False)
class WatchAlways(OfCopying):
    """Have a trigger fire for what replication applies, too."""

    ending: str = ""

    def sql(self) -> str:
        return f"ALTER TABLE {self.origin} ENABLE ALWAYS TRIGGER {WATCHING}{self.ending}"


@dataclass(eq=False)
class Unwatch(OfCopying):
    """Drop a trigger."""

    ending: str = ""

    def sql(self) -> str:
        return f"DROP TRIGGER IF EXISTS {WATCHING}{self.ending} ON {self.origin}"


class BeginCopy(OfCopying):
    """Note how far the blocks reach: what is written from now on is in the log."""

    def sql(self) -> str:
        return (
            f"INSERT INTO {self.state} (source, next_block, end_block, filenode)"
            f" SELECT {self.copying.origin_oid:d}, 0, pg_relation_size({self.copying.origin_oid:d})"
            " / current_setting('block_size')::bigint,"
            f" pg_relation_filenode({self.copying.origin_oid:d})"
        )


class StopWriters(OfCopying):
    """Have nobody write to the origin until the transaction ends; reading goes on."""

    def sql(self) -> str:
        return f"LOCK TABLE {self.all_of_it} IN SHARE ROW EXCLUSIVE MODE"


@dataclass(eq=False)
class ShareOrigin(OfCopying):
    """Have the origin stay the file that it is until the transaction ends."""

    def sql(self) -> str:
        return f"LOCK TABLE ONLY {self.origin} IN ACCESS SHARE MODE"


class BeginAnew(OfCopying):
    """The origin is another file: emptied by TRUNCATE, or written anew by CLUSTER or VACUUM FULL. Begin with
    its first block; what was truncated is taken away from the copy as well."""

    def sql(self) -> str:
        return do_block(
            "BEGIN\n"
            f"  IF EXISTS (SELECT FROM {self.log} WHERE {self.key_name} IS NULL) THEN\n"
            f"    TRUNCATE {self.goal};\n"
            f"    DELETE FROM {self.log} WHERE {self.key_name} IS NULL;\n"
            "  END IF;\n"
            f"  UPDATE {self.state} SET next_block = 0, rows = 0, verified = false,\n"
            f"    end_block = pg_relation_size({self.copying.origin_oid:d})"
            " / current_setting('block_size')::bigint,\n"
            f"    filenode = pg_relation_filenode({self.copying.origin_oid:d})\n"
            f"  WHERE source = {self.copying.origin_oid:d};\n"
        )


@dataclass(eq=False)
class CopyBlocks(OfCopying):
    """Copy the rows of some blocks, and note that. A row that is there already was changed since, and stays
    as the log says. Touches no row where another run has gone on, or the origin is another file by now.

    A copy that is stricter is brought to them by way of the log, which keeps what it refuses.
    """

    begin: int
    end: int

    def sql(self) -> str:
        where = f"WHERE ctid >= '({self.begin:d},0)' AND ctid < '({self.end:d},0)'"
        into = f"INSERT INTO {self.goal} ({self.copying.names}) OVERRIDING SYSTEM VALUE"
        copied = f"{into} SELECT {self.copying.names} FROM ONLY {self.origin} {where} ON CONFLICT DO NOTHING"
        if self.copying.is_stricter:
            told = f"INSERT INTO {self.log} ({self.copying.told_by}) SELECT {self.copying.told_by}"
            copied = f"{told} FROM ONLY {self.origin} {where}"
        return (
            f"WITH copied AS ({copied} RETURNING 1) UPDATE {self.state} SET next_block = {self.end:d},"
            " rows = rows + (SELECT count(*) FROM copied)"
            f" WHERE source = {self.copying.origin_oid:d} AND next_block = {self.begin:d}"
            f" AND filenode = pg_relation_filenode({self.copying.origin_oid:d})"
        )


@dataclass(eq=False)
class OfEntries(OfCopying):
    """What is done about the entries up to one."""

    last: int

    @property
    def entries(self) -> str:
        return f"{ENTRY} <= {self.last:d} AND {self.key_name} IS NOT NULL"


class ForgetChanged(OfEntries):
    """Take away from the copy whatever the log names: row by row, so that of many windows only the one is
    planned for, and locked, that a row is in."""

    def sql(self) -> str:
        return do_block(
            "DECLARE changed record;\nBEGIN\n"
            "  PERFORM set_config('plan_cache_mode', 'force_custom_plan', true);\n"
            f"  FOR changed IN SELECT DISTINCT {self.copying.told_by} FROM {self.log}\n"
            f"    WHERE {self.entries}\n"
            f"  LOOP DELETE FROM {self.goal} AS c WHERE {self.copying.same('c', 'changed')};\n"
            "  END LOOP;\n"
        )


class CopyChanged(OfEntries):
    """Copy what the log names as it is now, if it still is."""

    def sql(self) -> str:
        selected = ", ".join(f"s.{quote(name)}" for name in self.copying.columns)
        return (
            f"INSERT INTO {self.goal} ({self.copying.names}) OVERRIDING SYSTEM VALUE"
            f" SELECT {selected} FROM (SELECT DISTINCT {self.copying.told_by} FROM {self.log}"
            f" WHERE {self.entries}) AS l JOIN {self.all_of_it} AS s ON {self.copying.same('s', 'l')}"
            " ON CONFLICT DO NOTHING"
        )


class ForgetEntries(OfEntries):
    """Take the entries out of the log; but for rows that a stricter copy has refused."""

    def sql(self) -> str:
        if not self.copying.is_stricter:
            return f"DELETE FROM {self.log} WHERE {self.entries}"
        return (
            f"DELETE FROM {self.log} AS l WHERE {self.entries} AND (NOT EXISTS"
            f" (SELECT FROM {self.all_of_it} AS s WHERE {self.copying.same('s', 'l')})"
            f" OR EXISTS (SELECT FROM {self.goal} AS c WHERE {self.copying.same('c', 'l')}))"
        )


@dataclass(eq=False)
class NoteVerified(OfCopying):
    """Note that the copy was compared, and is the same."""

    def sql(self) -> str:
        return f"UPDATE {self.state} SET verified = true WHERE source = {self.copying.origin_oid:d}"


class OfDigest(OfCopying):
    """Count rows and add up what they hash to, whatever their order; those that the log names are left out:
    they are copied anew."""

    def digest(self, relation: str, where: str = "") -> str:
        compared = ", ".join(f"s.{quote(name)}" for name in self.copying.compared)
        named = f"l.{self.key_name} IS NOT NULL AND {self.copying.same('s', 'l')}"
        return (
            f"SELECT count(*) AS rows, CAST(coalesce(sum(hashtextextended(CAST(ROW({compared}) AS text), 0)),"
            f" 0) AS text) AS digest FROM {relation} AS s WHERE {where}NOT EXISTS"
            f" (SELECT FROM {self.log} AS l WHERE {named})"
        )


@dataclass(eq=False)
class DigestBlocks(OfDigest):
    """Of some blocks of the origin; without an end of all that follow."""

    begin: int
    end: int | None

    def sql(self) -> str:
        end = f"s.ctid < '({self.end:d},0)' AND " if self.end is not None else ""
        return self.digest(f"ONLY {self.origin}", f"s.ctid >= '({self.begin:d},0)' AND {end}")


@dataclass(eq=False)
class DigestTable(OfDigest):
    """Of one table of the copy."""

    name: Name

    def sql(self) -> str:
        return self.digest(f"ONLY {qualified(*self.name)}")
