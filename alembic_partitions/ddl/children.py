"""What puts a partition right that differs from its parent."""

from __future__ import annotations

from dataclasses import dataclass

from alembic_partitions.plan import Constraint

from .elements import Element, OfTable, qualified, quote, quoted_text


@dataclass(eq=False)
class ChangeOwner(OfTable):
    """Give a partition to the parent's owner."""

    owner: str

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} OWNER TO {quote(self.owner)}"


class SecureRows(OfTable):
    """Row-level security without a policy: closed to direct access."""

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} ENABLE ROW LEVEL SECURITY"


@dataclass(eq=False)
class ChangeStatistics(OfTable):
    """A column's statistics target; -1 is the server's own."""

    column: str
    goal: int

    def sql(self) -> str:
        return f"ALTER TABLE {self.table} ALTER COLUMN {quote(self.column)} SET STATISTICS {self.goal:d}"


@dataclass(eq=False)
class ChangeReplicaIdentity(OfTable):
    """REPLICA IDENTITY: DEFAULT, FULL, NOTHING, or an index of the table's own."""

    identity: str
    index: bool = False

    def sql(self) -> str:
        identity = f"USING INDEX {quote(self.identity)}" if self.index else self.identity
        return f"ALTER TABLE {self.table} REPLICA IDENTITY {identity}"


@dataclass(eq=False)
class BuildIndex(OfTable):
    """CREATE INDEX CONCURRENTLY: readers and writers go on; or ON ONLY, which builds nothing."""

    index: str
    #: As PostgreSQL writes it, from USING on.
    body: str
    unique: bool
    #: For a partition that is partitioned itself.
    only: bool = False

    def sql(self) -> str:
        how = "UNIQUE INDEX" if self.unique else "INDEX"
        if self.only:
            return f"CREATE {how} {quote(self.index)} ON ONLY {self.table} {self.body}"
        return f"CREATE {how} CONCURRENTLY {quote(self.index)} ON {self.table} {self.body}"


@dataclass(eq=False)
class SetTablespace(Element):
    """Where an index goes that is built next: PostgreSQL leaves it out of what it writes from USING on."""

    tablespace: str
    #: For this transaction alone.
    local: bool

    def sql(self) -> str:
        return f"SET {'LOCAL ' if self.local else ''}default_tablespace = {quoted_text(self.tablespace)}"


class RebuildIndex(OfTable):
    """REINDEX INDEX CONCURRENTLY; ``name`` is the index's."""

    def sql(self) -> str:
        return f"REINDEX INDEX CONCURRENTLY {self.table}"


class DropIndex(OfTable):
    """DROP INDEX CONCURRENTLY; ``name`` is the index's."""

    def sql(self) -> str:
        return f"DROP INDEX CONCURRENTLY IF EXISTS {self.table}"


@dataclass(eq=False)
class ConstrainByIndex(OfTable):
    """Make an index that stands the one behind a constraint, which takes its name."""

    index: str
    constraint: Constraint

    def sql(self) -> str:
        kind = {"p": "PRIMARY KEY", "u": "UNIQUE"}[self.constraint.kind]
        name = quote(self.index)
        text = f"ALTER TABLE {self.table} ADD CONSTRAINT {name} {kind} USING INDEX {name}"
        if self.constraint.deferrable:
            text += " DEFERRABLE" + (" INITIALLY DEFERRED" if self.constraint.deferred else "")
        return text


@dataclass(eq=False)
class AttachIndex(Element):
    """Attach a partition's index to the parent's, which is valid once none is missing."""

    parent: tuple[str, str]
    child: tuple[str, str]

    def sql(self) -> str:
        return f"ALTER INDEX {qualified(*self.parent)} ATTACH PARTITION {qualified(*self.child)}"
