"""Every write: our two tables, and DDL elements quoted in the last step, by SQLAlchemy's preparer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytz
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Time,
    func,
    literal,
    literal_column,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from .periods import KeyType, KeyValue
from .plan import CONFIG_MARK, PARENT_LOCK_CLASS, PARTITION_MARK, RUNS_MARK, CreatePartition

_PERIOD = "~ '^[1-9][0-9]{0,5} (hour|day|week|month|quarter|year)s?$'"
# A zone that PostgreSQL does not know makes AT TIME ZONE itself fail. It knows more than IANA's, though:
# abbreviations (NZST) and POSIX rules (UTC+5), which have no history and are refused by their looks.
_ZONE = (
    "({0} ~ '^[A-Z][A-Za-z_]+(/[A-Z][A-Za-z0-9_+-]*)+$' OR {0} IN ("
    + ", ".join(f"'{name}'" for name in pytz.all_timezones if "/" not in name)
    + ")) AND ('2000-01-01 00:00:00+00'::timestamptz AT TIME ZONE {0}) IS NOT NULL"
)
_NAME = "octet_length({0}) BETWEEN 1 AND 63"
_WEEKDAYS = "('monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday')"

#: CHECK constraints of partition_config by column. The database itself refuses a wrong value.
_CHECKS = {
    "interval": "interval IN ('hour', 'day', 'week', 'month', 'quarter', 'year')",
    # mod(), as a "%" is doubled on its way through some drivers, and with --sql stays so.
    "every": "every BETWEEN 1 AND 1000 AND (interval <> 'hour' OR mod(24, every) = 0)",
    "timezone": _ZONE.format("timezone"),
    "day_start": "day_start = date_trunc('minute', day_start::interval)::time",
    "week_start": f"week_start IN {_WEEKDAYS}",
    "premake": "premake BETWEEN 0 AND 10000",
    "lookback": "lookback BETWEEN 0 AND 10000",
    "retention": f"retention {_PERIOD}",
    "on_expiry": "on_expiry IN ('detach', 'drop', 'archive')",
    "grace": f"grace {_PERIOD}",
    "max_ahead": f"max_ahead {_PERIOD}",
    "max_behind": f"max_behind {_PERIOD}",
    "max_create": "max_create BETWEEN 1 AND 10000",
    "max_drops": "max_drops BETWEEN 1 AND 10000",
    "column_timezone": "column_timezone IS NULL OR " + _ZONE.format("column_timezone"),
    "partition_key": _NAME.format("partition_key"),
    "archive_schema": _NAME.format("archive_schema"),
    "tablespace": _NAME.format("tablespace"),
    "storage_parameters": "jsonb_typeof(storage_parameters) = 'object' AND NOT jsonb_path_exists("
    "storage_parameters, 'strict $.* ? (@.type() like_regex \"^(array|object|null)$\")')",
}


def config_table(schema: str | None) -> Table:
    """Return partition_config: the values in force, editable by SQL, and beside them what was declared."""
    return Table(
        "partition_config",
        MetaData(),
        Column("table_schema", Text, primary_key=True),
        Column("table_name", Text, primary_key=True),
        Column("partition_key", Text, nullable=False),
        Column("interval", Text, nullable=False),
        Column("every", Integer, nullable=False),
        Column("timezone", Text, nullable=False),
        Column("day_start", Time, nullable=False),
        Column("week_start", Text, nullable=False),
        Column("premake", Integer, nullable=False),
        Column("lookback", Integer, nullable=False),
        Column("retention", Text),
        Column("on_expiry", Text, nullable=False),
        Column("grace", Text, nullable=False),
        Column("max_ahead", Text, nullable=False),
        Column("max_behind", Text),
        Column("max_create", Integer, nullable=False),
        Column("max_drops", Integer, nullable=False),
        Column("column_timezone", Text),
        Column("archive_schema", Text),
        Column("tablespace", Text),
        Column("storage_parameters", JSONB, nullable=False),
        Column("enabled", Boolean, nullable=False),
        Column("declared", JSONB, nullable=False),
        *(CheckConstraint(text, name=f"partition_config_{name}_check") for name, text in _CHECKS.items()),
        schema=schema,
    )


def runs_table(schema: str | None) -> Table:
    """Return partition_runs: one row a run that changed something or failed."""
    return Table(
        "partition_runs",
        MetaData(),
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("started_at", DateTime(timezone=True), nullable=False),
        Column("finished_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
        Column("action", Text, nullable=False),
        Column("run_by", Text, nullable=False, server_default=func.current_user()),
        Column("application", Text, server_default=func.current_setting("application_name")),
        Column("created", Integer, nullable=False, server_default="0"),
        Column("detached", Integer, nullable=False, server_default="0"),
        Column("dropped", Integer, nullable=False, server_default="0"),
        Column("error", Text),
        schema=schema,
    )


# -- a partition, statement by statement ----------------------------------------------------------------

# Statements are written without a driver's placeholders, so "%" stays as it is: what is printed is what is
# sent. standard_conforming_strings is on since PostgreSQL 9.1.
_DIALECT = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
_DIALECT._backslash_escapes = False  # noqa: SLF001
_quote = _DIALECT.identifier_preparer.quote


class Element(ExecutableDDLElement):
    """One statement. ``str(element)`` is what the server gets."""

    inherit_cache = False

    def sql(self) -> str:
        """Return the statement, quoted."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.sql()


@compiles(Element, "postgresql")
def _compile(element: Element, compiler: DDLCompiler, **kw: Any) -> str:
    # Drivers with %-placeholders halve each "%%" again on the way out.
    doubled: bool = compiler.preparer._double_percents  # noqa: SLF001
    return element.sql().replace("%", "%%") if doubled else element.sql()


def _literal(value: str) -> str:
    return str(literal(value, String()).compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


def text_literal(value: str) -> ColumnElement[str]:
    """Write a text into a statement. With --sql SQLAlchemy 2.0 would double each backslash: it cannot ask the
    server for standard_conforming_strings, and takes the answer of PostgreSQL 9.0."""
    return literal_column(_literal(value), Text())


def _qualified(schema: str | None, name: str) -> str:
    return f"{_quote(schema)}.{_quote(name)}" if schema else str(_quote(name))


def _do(block: str) -> str:
    """Run a PL/pgSQL block, in dollar quotes that no name inside can close."""
    tag = "$alembic_partitions$"
    while tag in block:
        tag = f"{tag[:-1]}_$"
    return f"DO {tag}\n{block}END {tag}"


def bound_literal(value: KeyValue, key_type: KeyType) -> str:
    """Write a bound: an absolute instant (``+00``) for timestamptz, so no session's TimeZone can move it."""
    if not isinstance(value, datetime):
        return _literal(value.isoformat())
    text = value.replace(tzinfo=None).isoformat(sep=" ")
    return _literal(f"{text}+00" if key_type == "timestamptz" else text)


@dataclass(eq=False)
class SetLockTimeout(Element):
    """Bound the wait for each lock of this transaction."""

    milliseconds: int

    def sql(self) -> str:
        return f"SET LOCAL lock_timeout = '{self.milliseconds:d}ms'"


@dataclass(eq=False)
class LockParent(Element):
    """One process at a time makes partitions of a parent; released with the transaction."""

    oid: int

    def sql(self) -> str:
        signed = self.oid - (1 << 32) if self.oid >= 1 << 31 else self.oid  # OIDs are unsigned
        return f"SELECT pg_advisory_xact_lock({PARENT_LOCK_CLASS:d}, {signed:d})"


@dataclass(eq=False)
class _OfPartition(Element):
    """A statement of the making of one partition."""

    step: CreatePartition

    @property
    def child(self) -> str:
        return _qualified(self.step.table.schema, self.step.name)

    @property
    def parent(self) -> str:
        return _qualified(self.step.table.schema, self.step.table.name)


class CreateLike(_OfPartition):
    """CREATE TABLE with everything of the parent but its identity columns, which stay the parent's.

    With identity ATTACH fails from PostgreSQL 17 on.
    """

    def sql(self) -> str:
        policy, traits = self.step.table.policy, self.step.table.traits
        tablespace = (policy and policy.tablespace) or traits.tablespace
        text = f"CREATE TABLE {self.child} (LIKE {self.parent} INCLUDING ALL EXCLUDING IDENTITY)"
        if traits.access_method is not None:
            text += f" USING {_quote(traits.access_method)}"
        if policy is not None and policy.storage_parameters:
            options = (f"{name} = {_literal(value)}" for name, value in policy.storage_parameters.items())
            text += f" WITH ({', '.join(options)})"
        if tablespace is not None:
            text += f" TABLESPACE {_quote(tablespace)}"
        return text


class MarkPartition(_OfPartition):
    """The comment that says a partition is ours."""

    def sql(self) -> str:
        return f"COMMENT ON TABLE {self.child} IS {_literal(PARTITION_MARK + self.step.made_by)}"


@dataclass(eq=False)
class SetOwner(_OfPartition):
    """Give a partition to the parent's owner, or the next migration's ADD COLUMN fails on it."""

    owner: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} OWNER TO {_quote(self.owner)}"


class SetReplicaIdentity(_OfPartition):
    """REPLICA IDENTITY FULL or NOTHING as the parent has it."""

    def sql(self) -> str:
        identity = {"f": "FULL", "n": "NOTHING"}[self.step.table.traits.replica_identity]
        return f"ALTER TABLE {self.child} REPLICA IDENTITY {identity}"


class SetReplicaIndex(_OfPartition):
    """REPLICA IDENTITY USING INDEX: the child's index of the parent's, known once it is attached."""

    def sql(self) -> str:
        child, parent = _literal(self.child), _literal(self.parent)
        return _do(
            "DECLARE name text;\nBEGIN\n"
            "  FOR name IN SELECT c.relname\n"
            "    FROM pg_index p JOIN pg_inherits i ON i.inhparent = p.indexrelid\n"
            "    JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid\n"
            f"    WHERE p.indrelid = {parent}::regclass AND p.indisreplident\n"
            f"    AND x.indrelid = {child}::regclass\n"
            f"  LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', {child}, name);\n"
            "  END LOOP;\n"
        )


class EnableRowSecurity(_OfPartition):
    """Row-level security without a policy: closed to direct access; the parent's policies rule through it."""

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} ENABLE ROW LEVEL SECURITY"


class DropExclusions(_OfPartition):
    """Drop the exclusion constraints that LIKE copied: up to PostgreSQL 17 ATTACH does not recognise them as
    the parent's, and makes them a second time."""

    def sql(self) -> str:
        child = _literal(self.child)
        return _do(
            "DECLARE name text;\nBEGIN\n"
            "  FOR name IN SELECT x.conname FROM pg_constraint x\n"
            f"    WHERE x.conrelid = {child}::regclass AND x.contype = 'x'\n"
            f"  LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', {child}, name);\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class SetStatistics(_OfPartition):
    """A column's statistics target as the parent has it."""

    column: str
    goal: int

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} ALTER COLUMN {_quote(self.column)} SET STATISTICS {self.goal:d}"


class Attach(_OfPartition):
    """ATTACH PARTITION: SHARE UPDATE EXCLUSIVE on the parent, which neither reads nor writes wait for."""

    def sql(self) -> str:
        key_type = self.step.table.grid.key_type
        lower, upper = (bound_literal(value, key_type) for value in (self.step.lower, self.step.upper))
        return (
            f"ALTER TABLE {self.parent} ATTACH PARTITION {self.child} FOR VALUES FROM ({lower}) TO ({upper})"
        )


def partition_elements(step: CreatePartition, user: str | None = None) -> list[Element]:
    """Return what makes one partition, in order: the child alone, everything it needs, then ATTACH.

    :param user: the role that runs it; the owner is set where it is another.
    """
    traits = step.table.traits
    elements: list[Element] = [CreateLike(step), MarkPartition(step)]
    if traits.exclusions:
        elements.append(DropExclusions(step))
    if traits.replica_identity in ("f", "n"):
        elements.append(SetReplicaIdentity(step))
    if traits.row_security:
        elements.append(EnableRowSecurity(step))
    elements += [SetStatistics(step, name, goal) for name, goal in traits.statistics]
    if traits.owner is not None and traits.owner != user:
        elements.append(SetOwner(step, traits.owner))
    elements.append(Attach(step))
    if traits.replica_identity == "i":
        elements.append(SetReplicaIndex(step))
    return elements


class CopyTraits(_OfPartition):
    """What LIKE and ATTACH leave behind, found out when the statement runs: a script cannot look before."""

    def sql(self) -> str:
        child, parent = _literal(self.child), _literal(self.parent)
        return _do(
            "DECLARE p record; name text; goal int;\nBEGIN\n"
            "  SELECT pg_get_userbyid(c.relowner) AS owner, c.relrowsecurity AS secured,\n"
            "    m.amname, s.spcname, CASE WHEN c.relreplident = 'f' THEN 'FULL'\n"
            "      WHEN c.relreplident = 'n' OR c.relreplident = 'i'\n"
            "      AND NOT EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisreplident)\n"
            "      THEN 'NOTHING' END AS identity INTO p\n"
            "  FROM pg_class c LEFT JOIN pg_am m ON m.oid = c.relam\n"
            "  LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace\n"
            f"  WHERE c.oid = {parent}::regclass;\n"
            "  IF p.secured THEN\n"
            f"    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', {child});\n"
            "  END IF;\n"
            "  IF p.identity IS NOT NULL THEN\n"
            f"    EXECUTE format('ALTER TABLE %s REPLICA IDENTITY %s', {child}, p.identity);\n"
            "  END IF;\n"
            "  IF p.amname IS NOT NULL THEN\n"
            f"    EXECUTE format('ALTER TABLE %s SET ACCESS METHOD %I', {child}, p.amname);\n"
            "  END IF;\n"
            f"  IF p.spcname IS NOT NULL AND {self._has_no_tablespace} THEN\n"
            f"    EXECUTE format('ALTER TABLE %s SET TABLESPACE %I', {child}, p.spcname);\n"
            "  END IF;\n"
            "  FOR name, goal IN SELECT a.attname, a.attstattarget FROM pg_attribute a\n"
            f"    WHERE a.attrelid = {parent}::regclass AND a.attnum > 0 AND NOT a.attisdropped\n"
            "    AND a.attstattarget >= 0\n"
            "  LOOP\n"
            f"    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET STATISTICS %s', {child}, name, goal);\n"
            "  END LOOP;\n"
            "  IF p.owner <> current_user THEN\n"
            f"    EXECUTE format('ALTER TABLE %s OWNER TO %I', {child}, p.owner);\n"
            "  END IF;\n"
        )

    @property
    def _has_no_tablespace(self) -> str:
        policy = self.step.table.policy
        return "false" if policy is not None and policy.tablespace is not None else "true"


class CreateUnseen(_OfPartition):
    """All that makes one partition, in a block that does nothing where the partition stands already."""

    def sql(self) -> str:
        step = self.step
        elements = CreateLike(step), MarkPartition(step), DropExclusions(step), CopyTraits(step)
        statements = [*elements, Attach(step), SetReplicaIndex(step)]
        return _do(
            "BEGIN\n"
            "IF NOT EXISTS (SELECT FROM pg_inherits i\n"
            f"               WHERE i.inhrelid = to_regclass({_literal(self.child)})\n"
            f"               AND i.inhparent = {_literal(self.parent)}::regclass) THEN\n"
            + "".join(f"{element.sql()};\n" for element in statements)
            + "END IF;\n"
        )


# -- in a migration: the same text online and with --sql -------------------------------------------------


def schema_of_name(name: str) -> ColumnElement[str]:
    """Return where a table's name without a schema leads when the statement runs; if nowhere, where a new one
    would go."""
    table = _literal(_qualified(None, name))
    return literal_column(
        "coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.oid = to_regclass({table})), current_schema())",
        Text(),
    )


@dataclass(eq=False)
class EnsureOurTables(Element):
    """Make partition_config and partition_runs unless they are there; refuse somebody else's."""

    home: str | None

    def sql(self) -> str:
        schema = "current_schema()" if self.home is None else _literal(self.home)
        blocks = []
        for table, mark in ((config_table(self.home), CONFIG_MARK), (runs_table(self.home), RUNS_MARK)):
            create = str(CreateTable(table).compile(dialect=_DIALECT)).strip()
            # Without a schema: ours where the search_path leads to it, else what stands in its first schema.
            ours = "false" if self.home else f"c.oid = to_regclass({_literal(table.name)})"
            blocks.append(
                "  SELECT c.oid INTO found FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
                f"  WHERE ({ours} AND obj_description(c.oid, 'pg_class') = {_literal(mark)})\n"
                f"  OR (n.nspname = {schema} AND c.relname = {_literal(table.name)})\n"
                f"  ORDER BY obj_description(c.oid, 'pg_class') = {_literal(mark)} DESC NULLS LAST LIMIT 1;\n"
                f"  IF found IS NULL THEN\n{create};\n"
                f"    COMMENT ON TABLE {_qualified(self.home, table.name)} IS {_literal(mark)};\n"
                f"  ELSIF obj_description(found, 'pg_class') IS DISTINCT FROM {_literal(mark)} THEN\n"
                f"    RAISE EXCEPTION 'table {table.name} is not ours: set ALEMBIC_PARTITIONS_SCHEMA';\n"
                "  END IF;\n"
            )
        return _do("DECLARE found oid;\nBEGIN\n" + "".join(blocks))


@dataclass(eq=False)
class DetachForeign(Element):
    """Detach the partitions that lack our mark, so that dropping the parent leaves them as tables."""

    home: str | None
    name: str

    def sql(self) -> str:
        parent = _literal(_qualified(self.home, self.name))
        return _do(
            "DECLARE part regclass; pending boolean;\nBEGIN\n"
            "  FOR part, pending IN SELECT i.inhrelid, i.inhdetachpending FROM pg_inherits i\n"
            f"    WHERE i.inhparent = to_regclass({parent})\n"
            "    AND NOT starts_with(coalesce(obj_description(i.inhrelid, 'pg_class'), ''),"
            f" {_literal(PARTITION_MARK)})\n"
            "  LOOP\n"
            f"    EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', {parent}, part)\n"
            "      || CASE WHEN pending THEN ' FINALIZE' ELSE '' END;\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class FreeSequences(Element):
    """Take the sequences that go with a table out of the defaults of others: LIKE copies the ``nextval()`` of
    a serial column, and a partition that was detached would keep its parent from being dropped."""

    home: str | None
    name: str

    def sql(self) -> str:
        parent = _literal(_qualified(self.home, self.name))
        return _do(
            "DECLARE other regclass; name text;\nBEGIN\n"
            "  FOR other, name IN SELECT a.attrelid, a.attname\n"
            "    FROM pg_depend o\n"
            "    JOIN pg_depend u ON u.refclassid = 'pg_class'::regclass AND u.refobjid = o.objid\n"
            "      AND u.classid = 'pg_attrdef'::regclass\n"
            "    JOIN pg_attrdef d ON d.oid = u.objid\n"
            "    JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum\n"
            "    WHERE o.classid = 'pg_class'::regclass AND o.refclassid = 'pg_class'::regclass\n"
            f"    AND o.deptype = 'a' AND o.refobjid = to_regclass({parent})\n"
            f"    AND a.attrelid <> to_regclass({parent})\n"
            "    AND NOT EXISTS (SELECT FROM pg_partition_ancestors(a.attrelid) p\n"
            f"                    WHERE p.relid = to_regclass({parent}))\n"
            "  LOOP\n"
            "    EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', other, name);\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class DropEmptyPartitions(Element):
    """Drop the partitions that carry one mark, as long as they are empty."""

    home: str | None
    name: str
    made_by: str

    def sql(self) -> str:
        parent, mark = _literal(_qualified(self.home, self.name)), _literal(PARTITION_MARK + self.made_by)
        return _do(
            "DECLARE part regclass; pending boolean; filled boolean;\n"
            "  security text := current_setting('row_security');\nBEGIN\n"
            # Rows that a policy hides are rows all the same; then the look fails, and does not lie.
            "  PERFORM set_config('row_security', 'off', true);\n"
            "  FOR part, pending IN SELECT i.inhrelid, i.inhdetachpending FROM pg_inherits i\n"
            f"    WHERE i.inhparent = {parent}::regclass\n"
            f"    AND obj_description(i.inhrelid, 'pg_class') = {mark}\n"
            "  LOOP\n"
            # From here on nobody can write to it, so empty stays empty.
            "    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', part);\n"
            "    BEGIN\n"
            "      EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part) INTO filled;\n"
            # A snapshot taken before the lock does not show what was written in between.
            "      filled := filled OR current_setting('transaction_isolation') <> 'read committed'\n"
            "        AND pg_relation_size(part) > 0;\n"
            "    EXCEPTION WHEN insufficient_privilege THEN filled := pg_relation_size(part) > 0;\n"
            "    END;\n"
            "    IF filled THEN RAISE NOTICE 'partition % is not empty and stays', part;\n"
            "    ELSE\n"
            # Detached first: a foreign key that refers to the parent would keep it from being dropped.
            f"      EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', {parent}, part)\n"
            "        || CASE WHEN pending THEN ' FINALIZE' ELSE '' END;\n"
            "      EXECUTE format('DROP TABLE %s', part);\n"
            "    END IF;\n"
            "  END LOOP;\n"
            "  PERFORM set_config('row_security', security, true);\n"
        )
