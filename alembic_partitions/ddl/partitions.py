"""A partition, statement by statement."""

from __future__ import annotations

from dataclasses import dataclass

from alembic_partitions.plan import PARENT_LOCK_CLASS, PARTITION_MARK, CreatePartition

from .elements import Element, bound_literal, do_block, qualified, quote, quoted_text


@dataclass(eq=False)
class SetLockTimeout(Element):
    """Bound the wait for each lock of this transaction."""

    milliseconds: int

    def sql(self) -> str:
        return f"SET LOCAL lock_timeout = '{self.milliseconds:d}ms'"


class TellWorkers(Element):
    """Have the settings of this transaction that follow hold on Citus' workers too: time-outs, above all."""

    def sql(self) -> str:
        return "SET LOCAL citus.propagate_set_commands = 'local'"


class OneShardAtATime(Element):
    """Have Citus change one shard after the other: with a foreign key to a reference table, and with names
    near 63 bytes, it refuses DDL in a transaction otherwise."""

    def sql(self) -> str:
        return "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"


def distribution(distributed: bool) -> list[Element]:
    """Return what a transaction that changes a table needs before its time-outs: nothing unless Citus has
    distributed it."""
    return [TellWorkers(), OneShardAtATime()] if distributed else []


class PlainNames(Element):
    """Have PostgreSQL write names with their schemas, and times under UTC and ISO, for this transaction."""

    def sql(self) -> str:
        settings = {"search_path": "pg_catalog", "TimeZone": "UTC", "DateStyle": "ISO, YMD"}
        calls = (f"set_config({quoted_text(n)}, {quoted_text(v)}, true)" for n, v in settings.items())
        return f"SELECT {', '.join(calls)}"


@dataclass(eq=False)
class SetBound(Element):
    """A time-out for the session: what runs in no transaction has no LOCAL one. 0 is none."""

    name: str
    milliseconds: int

    def sql(self) -> str:
        return f"SET {quote(self.name)} = '{self.milliseconds:d}ms'"


@dataclass(eq=False)
class SetApplication(Element):
    """The name under which others see this session."""

    name: str

    def sql(self) -> str:
        return f"SET application_name = {quoted_text(self.name)}"


@dataclass(eq=False)
class ResetBound(Element):
    """Back to what the session began with."""

    name: str

    def sql(self) -> str:
        return f"RESET {quote(self.name)}"


class Rollback(Element):
    """End a transaction that has failed, where its BEGIN was ours and not the driver's."""

    def sql(self) -> str:
        return "ROLLBACK"


@dataclass(eq=False)
class LockParent(Element):
    """One process at a time makes partitions of a parent; released with the transaction."""

    oid: int

    def sql(self) -> str:
        signed = self.oid - (1 << 32) if self.oid >= 1 << 31 else self.oid  # OIDs are unsigned
        return f"SELECT pg_advisory_xact_lock({PARENT_LOCK_CLASS:d}, {signed:d})"


@dataclass(eq=False)
class OfPartition(Element):
    """A statement of the making of one partition."""

    step: CreatePartition

    @property
    def child(self) -> str:
        return qualified(self.step.table.schema, self.step.name)

    @property
    def parent(self) -> str:
        return qualified(self.step.table.schema, self.step.table.name)


class CreateLike(OfPartition):
    """CREATE TABLE with everything of the parent but its identity columns, which stay the parent's.

    With identity ATTACH fails from PostgreSQL 17 on.
    """

    def sql(self) -> str:
        policy, traits = self.step.table.policy, self.step.table.traits
        tablespace = (policy and policy.tablespace) or traits.tablespace
        text = f"CREATE TABLE {self.child} (LIKE {self.parent} INCLUDING ALL EXCLUDING IDENTITY)"
        if traits.access_method is not None:
            text += f" USING {quote(traits.access_method)}"
        if policy is not None and policy.storage_parameters:
            options = (f"{name} = {quoted_text(value)}" for name, value in policy.storage_parameters.items())
            text += f" WITH ({', '.join(options)})"
        if tablespace is not None:
            text += f" TABLESPACE {quote(tablespace)}"
        return text


class MarkPartition(OfPartition):
    """The comment that says a partition is ours."""

    def sql(self) -> str:
        return f"COMMENT ON TABLE {self.child} IS {quoted_text(PARTITION_MARK + self.step.made_by)}"


@dataclass(eq=False)
class SetOwner(OfPartition):
    """Give a partition to the parent's owner, or the next migration's ADD COLUMN fails on it."""

    owner: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} OWNER TO {quote(self.owner)}"


class SetReplicaIdentity(OfPartition):
    """REPLICA IDENTITY FULL or NOTHING as the parent has it."""

    def sql(self) -> str:
        identity = {"f": "FULL", "n": "NOTHING"}[self.step.table.traits.replica_identity]
        return f"ALTER TABLE {self.child} REPLICA IDENTITY {identity}"


class SetReplicaIndex(OfPartition):
    """REPLICA IDENTITY USING INDEX: the child's index of the parent's, known once it is attached."""

    def sql(self) -> str:
        child, parent = quoted_text(self.child), quoted_text(self.parent)
        return do_block(
            "DECLARE name text;\nBEGIN\n"
            "  FOR name IN SELECT c.relname\n"
            "    FROM pg_index p JOIN pg_inherits i ON i.inhparent = p.indexrelid\n"
            "    JOIN pg_index x ON x.indexrelid = i.inhrelid JOIN pg_class c ON c.oid = x.indexrelid\n"
            f"    WHERE p.indrelid = {parent}::regclass AND p.indisreplident\n"
            f"    AND x.indrelid = {child}::regclass\n"
            f"  LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY USING INDEX %I', {child}, name);\n"
            "  END LOOP;\n"
        )


class EnableRowSecurity(OfPartition):
    """Row-level security without a policy: closed to direct access; the parent's policies rule through it."""

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} ENABLE ROW LEVEL SECURITY"


class DropExclusions(OfPartition):
    """Drop the exclusion constraints that LIKE copied: up to PostgreSQL 17 ATTACH does not recognise them as
    the parent's, and makes them a second time."""

    def sql(self) -> str:
        child = quoted_text(self.child)
        return do_block(
            "DECLARE name text;\nBEGIN\n"
            "  FOR name IN SELECT x.conname FROM pg_constraint x\n"
            f"    WHERE x.conrelid = {child}::regclass AND x.contype = 'x'\n"
            f"  LOOP EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', {child}, name);\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class SetStatistics(OfPartition):
    """A column's statistics target as the parent has it."""

    column: str
    goal: int

    def sql(self) -> str:
        return f"ALTER TABLE {self.child} ALTER COLUMN {quote(self.column)} SET STATISTICS {self.goal:d}"


class Attach(OfPartition):
    """ATTACH PARTITION: SHARE UPDATE EXCLUSIVE on the parent, which neither reads nor writes wait for."""

    def sql(self) -> str:
        key_type = self.step.table.grid.key_type
        lower = bound_literal(self.step.lower, key_type)
        upper = bound_literal(self.step.upper, key_type, upper=True)
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
