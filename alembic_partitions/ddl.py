"""Every write: our two tables, and DDL elements quoted in the last step, by SQLAlchemy's preparer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

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
# A zone that PostgreSQL does not know makes AT TIME ZONE itself fail, so a wrong UPDATE is refused.
_ZONE = "('2000-01-01 00:00:00+00'::timestamptz AT TIME ZONE {0}) IS NOT NULL"
_WEEKDAYS = "('monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday')"

#: CHECK constraints of partition_config by column. The database itself refuses a wrong value.
_CHECKS = {
    "interval": "interval IN ('hour', 'day', 'week', 'month', 'quarter', 'year')",
    "every": "every BETWEEN 1 AND 1000 AND (interval <> 'hour' OR 24 % every = 0)",
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
    "storage_parameters": "jsonb_typeof(storage_parameters) = 'object'",
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
            "BEGIN EXECUTE ("
            f"SELECT format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', {child}, c.relname)"
            " FROM pg_index p JOIN pg_inherits i ON i.inhparent = p.indexrelid"
            " JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid"
            f" WHERE p.indrelid = {parent}::regclass AND p.indisreplident AND x.indrelid = {child}::regclass"
            "); "
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


# -- in a migration: the same text online and with --sql -------------------------------------------------


@dataclass(eq=False)
class EnsureOurTables(Element):
    """Make partition_config and partition_runs unless they are there; refuse somebody else's."""

    home: str | None

    def sql(self) -> str:
        schema = "current_schema()" if self.home is None else _literal(self.home)
        blocks = []
        for table, mark in ((config_table(self.home), CONFIG_MARK), (runs_table(self.home), RUNS_MARK)):
            create = str(CreateTable(table).compile(dialect=_DIALECT)).strip()
            blocks.append(
                "  SELECT c.oid INTO found FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
                f"  WHERE n.nspname = {schema} AND c.relname = {_literal(table.name)};\n"
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
class DropEmptyPartitions(Element):
    """Drop the partitions that carry one mark, as long as they are empty."""

    home: str | None
    name: str
    made_by: str

    def sql(self) -> str:
        parent, mark = _literal(_qualified(self.home, self.name)), _literal(PARTITION_MARK + self.made_by)
        return _do(
            "DECLARE part regclass; filled boolean;\nBEGIN\n"
            f"  FOR part IN SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = {parent}::regclass\n"
            f"    AND obj_description(i.inhrelid, 'pg_class') = {mark}\n"
            "  LOOP\n"
            # From here on nobody can write to it, so empty stays empty.
            "    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', part);\n"
            "    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part) INTO filled;\n"
            # A snapshot taken before the lock does not show what was written in between.
            "    filled := filled OR current_setting('transaction_isolation') <> 'read committed'\n"
            "      AND pg_relation_size(part) > 0;\n"
            "    IF filled THEN RAISE NOTICE 'partition % is not empty and stays', part;\n"
            "    ELSE EXECUTE format('DROP TABLE %s', part);\n"
            "    END IF;\n"
            "  END LOOP;\n"
        )
