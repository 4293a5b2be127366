"""Everything that hangs on a table, as values: what has to come along when its rows go to another one."""

from __future__ import annotations

from dataclasses import dataclass, field

Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class OwnColumn:
    """A column, as far as LIKE leaves something of it behind."""

    name: str
    type: str
    not_null: bool = False
    #: ``a`` ALWAYS, ``d`` BY DEFAULT, or empty.
    identity: str = ""
    generated: bool = False
    #: The sequence behind its identity.
    sequence: Name | None = None
    statistics: int | None = None
    #: ``ALTER COLUMN ... SET (...)``, such as ``n_distinct=-0.5``.
    options: tuple[str, ...] = ()
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class OwnIndex:
    """An index, and the constraint it stands behind."""

    schema: str
    name: str
    #: From USING on, as PostgreSQL writes it.
    body: str
    unique: bool = False
    valid: bool = True
    #: Key columns; ``None`` for an expression.
    columns: tuple[str | None, ...] = ()
    included: tuple[str, ...] = ()
    #: ``p`` PRIMARY KEY, ``u`` UNIQUE, ``x`` EXCLUDE, or ``None``.
    kind: str | None = None
    #: The constraint as PostgreSQL writes it.
    definition: str | None = None
    deferrable: bool = False
    deferred: bool = False
    comment: str | None = None
    #: The comment of the constraint.
    told: str | None = None
    tablespace: str | None = None
    #: An EXCLUDE constraint, or a key WITHOUT OVERLAPS.
    exclusion: bool = False
    options: tuple[str, ...] = ()
    #: The index of the partitioned table that it belongs to.
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A foreign key to another table."""

    name: str
    definition: str
    validated: bool
    comment: str | None
    refers_to: str


@dataclass(frozen=True, slots=True)
class OwnCheck:
    """A CHECK constraint."""

    name: str
    validated: bool
    inherited: bool
    comment: str | None
    definition: str


@dataclass(frozen=True, slots=True)
class OwnTrigger:
    """A trigger of a user's."""

    name: str
    definition: str
    #: ``O`` as usual, ``D`` disabled, ``R`` REPLICA, ``A`` ALWAYS.
    enabled: str
    comment: str | None
    for_each_row: bool
    before: bool
    transition_tables: bool


@dataclass(frozen=True, slots=True)
class OwnPolicy:
    """A policy of row-level security."""

    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class OwnStatistics:
    """An object of extended statistics."""

    schema: str
    name: str
    definition: str
    owner: str
    comment: str | None = None
    goal: int | None = None

    @property
    def covers(self) -> str:
        """What it is about, without its name."""
        return self.definition.partition(f"{self.name} ")[2].rpartition(" FROM ")[0]


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication that covers the table."""

    name: str
    #: Subscribers see rows under the name of the table, whichever partition they are in.
    via_root: bool
    #: Named in it, not FOR ALL TABLES or a schema.
    explicit: bool
    columns: tuple[str, ...] | None = None
    where: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """A view that reads the table."""

    schema: str
    name: str
    definition: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Belongings:
    """A table and everything that hangs on it. Two equal ones: nothing has changed in between."""

    oid: int
    schema: str
    name: str
    owner: str
    #: ``r`` table, ``p`` partitioned, ``v`` view...
    kind: str = "r"
    #: ``p`` permanent, ``u`` unlogged, ``t`` temporary
    persistence: str = "p"
    is_partition: bool = False
    inherits: bool = False
    has_heirs: bool = False
    of_type: bool = False
    has_rules: bool = False
    comment: str | None = None
    tablespace: str | None = None
    access_method: str | None = None
    options: tuple[str, ...] = ()
    #: ``d``, ``f``, ``n``, or ``i`` with the index of that name.
    replica_identity: str = "d"
    replica_index: str | None = None
    row_security: bool = False
    force_row_security: bool = False
    columns: tuple[OwnColumn, ...] = ()
    indexes: tuple[OwnIndex, ...] = ()
    foreign_keys: tuple[OwnKey, ...] = ()
    checks: tuple[OwnCheck, ...] = ()
    triggers: tuple[OwnTrigger, ...] = ()
    policies: tuple[OwnPolicy, ...] = ()
    statistics: tuple[OwnStatistics, ...] = ()
    #: Sequences that go with a column, as of ``serial``.
    sequences: tuple[tuple[str, Name], ...] = ()
    publications: tuple[Publication, ...] = ()
    views: tuple[Reader, ...] = ()
    #: Foreign keys of others that refer to it.
    incoming: tuple[str, ...] = ()
    #: What depends on it and cannot be pointed to another table, in PostgreSQL's words.
    bound: tuple[str, ...] = ()
    #: What this role lacks to put another table in its place.
    lacking: tuple[str, ...] = ()
    #: A subscription writes to it.
    is_subscribed: bool = False
    #: Citus keeps its rows in shards, on workers.
    is_distributed: bool = False
    #: Pages, and rows as last estimated.
    pages: int = field(default=0, compare=False)
    rows: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identities(self) -> tuple[OwnColumn, ...]:
        """The identity columns: one at most, as PostgreSQL has it, but nobody promises that."""
        return tuple(column for column in self.columns if column.identity)

    @property
    def primary_key(self) -> OwnIndex | None:
        """The index behind the primary key."""
        return next((index for index in self.indexes if index.kind == "p"), None)

    def column(self, name: str) -> OwnColumn | None:
        """Return the column of that name."""
        return next((column for column in self.columns if column.name == name), None)

    def check(self, name: str) -> OwnCheck | None:
        """Return the CHECK constraint of that name."""
        return next((check for check in self.checks if check.name == name), None)

    def is_indexed_by(self, key: str) -> bool:
        """Tell whether a valid index over all rows begins with a column."""
        return any(
            index.valid
            and index.columns[:1] == (key,)
            and " WHERE " not in index.body
            and "btree" in index.body
            for index in self.indexes
        )

    def index(self, name: str) -> OwnIndex | None:
        """Return the index of that name."""
        return next((index for index in self.indexes if index.name == name), None)
