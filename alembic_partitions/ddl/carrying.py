"""What hangs on a table, taken off one and hung on another under the first one's name.

Definitions are PostgreSQL's own (``pg_get_...def``), read while the name still meant the first table, with
every name in them quoted and under its schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alembic_partitions.periods import KeyType, KeyValue
from alembic_partitions.plan import (
    Belongings,
    OwnColumn,
    OwnIndex,
    OwnPolicy,
    OwnStatistics,
    OwnTrigger,
    Publication,
    Reader,
)

from .elements import Element, bound_literal, do_block, qualified, quote, quoted_text

Name = tuple[str, str]

_ENABLED = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}
_IDENTITY = {"a": "ALWAYS", "d": "BY DEFAULT"}


@dataclass(eq=False)
class Words(Element):
    """One statement, written down."""

    text: str

    def sql(self) -> str:
        return self.text


def rename_table(table: Name, name: str) -> Element:
    """Rename a table."""
    return Words(f"ALTER TABLE {qualified(*table)} RENAME TO {quote(name)}")


def rename_index(table: Name, index: OwnIndex, name: str) -> Element:
    """Rename an index, and with it the constraint that it stands behind."""
    if index.kind is not None:
        return Words(
            f"ALTER TABLE {qualified(*table)} RENAME CONSTRAINT {quote(index.name)} TO {quote(name)}"
        )
    return Words(f"ALTER INDEX {qualified(table[0], index.name)} RENAME TO {quote(name)}")


def create_statistics(statistics: OwnStatistics, user: str | None) -> Iterable[Element]:
    """Create an object of extended statistics as it was."""
    yield Words(statistics.definition)
    name = qualified(statistics.schema, statistics.name)
    if statistics.goal is not None:
        yield Words(f"ALTER STATISTICS {name} SET STATISTICS {statistics.goal:d}")
    if statistics.comment is not None:
        yield Words(f"COMMENT ON STATISTICS {name} IS {quoted_text(statistics.comment)}")
    if statistics.owner != user:
        yield Words(f"ALTER STATISTICS {name} OWNER TO {quote(statistics.owner)}")


def rename_statistics(statistics: Name, name: str) -> Element:
    """Rename an object of extended statistics."""
    return Words(f"ALTER STATISTICS {qualified(*statistics)} RENAME TO {quote(name)}")


def create_like(origin: Name, goal: Name, key: str | None, belongings: Belongings) -> Element:
    """Create a table with the columns, defaults and CHECKs of another one, partitioned by ``key`` if there is
    one: no identity, no index, no statistics, which are hung on it under their own names."""
    text = (
        f"CREATE TABLE {qualified(*goal)} (LIKE {qualified(*origin)} INCLUDING ALL EXCLUDING IDENTITY"
        " EXCLUDING INDEXES EXCLUDING STATISTICS)"
    )
    text += f" PARTITION BY RANGE ({quote(key)})" if key is not None else ""
    if belongings.access_method is not None:
        text += f" USING {quote(belongings.access_method)}"
    return Words(text + (f" TABLESPACE {quote(belongings.tablespace)}" if belongings.tablespace else ""))


def set_options(table: Name, options: Iterable[str]) -> Element:
    """Set storage parameters."""
    return Words(f"ALTER TABLE {qualified(*table)} SET ({_options(options)})")


def drop_default(table: Name, column: str) -> Element:
    """Give a column no default."""
    return Words(f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column)} DROP DEFAULT")


def set_owner(table: Name, owner: str) -> Element:
    """Give a table to a role."""
    return Words(f"ALTER TABLE {qualified(*table)} OWNER TO {quote(owner)}")


def detach(parent: Name, child: Name) -> Element:
    """Detach a partition."""
    return Words(f"ALTER TABLE {qualified(*parent)} DETACH PARTITION {qualified(*child)}")


def settle(table: Name, goal: Name) -> Iterable[Element]:
    """Move a table to another schema and name."""
    if table[0] != goal[0]:
        yield Words(f"ALTER TABLE {qualified(*table)} SET SCHEMA {quote(goal[0])}")
    yield rename_table((goal[0], table[1]), goal[1])


def lock_beside(table: Name, only: bool = True) -> Element:
    """Keep VACUUM and other DDL away, and nobody who reads or writes. An autovacuum that is under way gives
    way to whoever waits for this longer than deadlock_timeout, which no ACCESS EXCLUSIVE lock may be asked
    for."""
    what = f"{'ONLY ' if only else ''}{qualified(*table)}"
    return Words(f"LOCK TABLE {what} IN SHARE UPDATE EXCLUSIVE MODE")


def confirm_empty(parent: int, kept: int, name: str) -> Element:
    """Make sure that all the rows of a table are in one partition."""
    return Words(
        do_block(
            "DECLARE part regclass; filled boolean;\nBEGIN\n"
            "  PERFORM set_config('row_security', 'off', true);\n"
            f"  FOR part IN SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = {parent:d}\n"
            f"    AND i.inhrelid <> {kept:d}\n"
            "  LOOP\n"
            "    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', part) INTO filled;\n"
            "    IF filled THEN\n"
            f"      RAISE EXCEPTION '% holds rows now, beside the one that was to become %', part,"
            f" {quoted_text(name)}\n"
            "        USING ERRCODE = 'object_not_in_prerequisite_state';\n"
            "    END IF;\n"
            "  END LOOP;\n"
        )
    )


def drop_not_null(table: Name, column: str) -> Element:
    """Allow NULL."""
    return Words(f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column)} DROP NOT NULL")


def drop_statistics(statistics: Name) -> Element:
    """Drop an object of extended statistics."""
    return Words(f"DROP STATISTICS {qualified(*statistics)}")


def set_not_null(table: Name, column: str) -> Element:
    """Forbid NULL; PostgreSQL reads no row where a valid CHECK says so already (manual, ALTER TABLE)."""
    return Words(f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column)} SET NOT NULL")


def drop_constraint(table: Name, name: str) -> Element:
    """Drop a constraint."""
    return Words(f"ALTER TABLE {qualified(*table)} DROP CONSTRAINT {quote(name)}")


def add_constraint(table: Name, name: str, definition: str) -> Element:
    """Add a constraint as PostgreSQL writes it."""
    return Words(f"ALTER TABLE {qualified(*table)} ADD CONSTRAINT {quote(name)} {definition}")


def add_until(table: Name, name: str, key: str, until: KeyValue, key_type: KeyType) -> Element:
    """Keep rows from a key on out, from now on; it proves to ATTACH what the first partition holds."""
    bound = bound_literal(until, key_type, upper=True)
    test = f"{quote(key)} IS NOT NULL AND {quote(key)} < {bound}"
    return Words(f"ALTER TABLE {qualified(*table)} ADD CONSTRAINT {quote(name)} CHECK ({test}) NOT VALID")


def validate(table: Name, name: str) -> Element:
    """Read a table through, beside readers and writers, to prove a constraint."""
    return Words(f"ALTER TABLE {qualified(*table)} VALIDATE CONSTRAINT {quote(name)}")


def comment_on_constraint(table: Name, name: str, text: str) -> Element:
    """Comment on a constraint."""
    return Words(f"COMMENT ON CONSTRAINT {quote(name)} ON {qualified(*table)} IS {quoted_text(text)}")


def attach_until(parent: Name, child: Name, until: KeyValue, key_type: KeyType) -> Element:
    """Attach a table for everything before a key."""
    return Words(
        f"ALTER TABLE {qualified(*parent)} ATTACH PARTITION {qualified(*child)}"
        f" FOR VALUES FROM (MINVALUE) TO ({bound_literal(until, key_type, upper=True)})"
    )


def constrain_by(table: Name, name: str, index: OwnIndex, built: str) -> Element:
    """Make an index that stands the one behind a constraint, which gives it its name."""
    what = "UNIQUE" if index.kind == "u" else "PRIMARY KEY"
    text = f"ALTER TABLE {qualified(*table)} ADD CONSTRAINT {quote(name)} {what} USING INDEX {quote(built)}"
    return Words(text + _deferral(index))


def key_definition(index: OwnIndex, columns: Sequence[str] | None = None) -> str:
    """Write a key as it was, or over other columns than it had.

    PostgreSQL's own text of a constraint leaves its index's options out.
    """
    if columns is None:
        text = (index.definition or "").removesuffix(_deferral(index))
    else:
        text = f"PRIMARY KEY ({', '.join(str(quote(name)) for name in columns)})"
        if index.included:
            text += f" INCLUDE ({', '.join(str(quote(name)) for name in index.included)})"
    return text + _with(index.options) + _deferral(index)


def _with(options: Sequence[str]) -> str:
    return f" WITH ({_options(options)})" if options else ""


def _deferral(index: OwnIndex) -> str:
    if not index.deferrable:
        return ""
    return " DEFERRABLE" + (" INITIALLY DEFERRED" if index.deferred else "")


def create_index(table: Name, index: OwnIndex, name: str | None = None) -> Element:
    """Create an index as another one is defined, under its name if no other is told."""
    unique = "UNIQUE " if index.unique else ""
    return Words(f"CREATE {unique}INDEX {quote(name or index.name)} ON {qualified(*table)} {index.body}")


def drop_index(schema: str, name: str) -> Element:
    """Drop an index, in a transaction."""
    return Words(f"DROP INDEX {qualified(schema, name)}")


def build_unique_index(
    table: Name,
    name: str,
    columns: Sequence[str],
    included: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Element:
    """CREATE UNIQUE INDEX CONCURRENTLY: readers and writers go on."""
    text = (
        f"CREATE UNIQUE INDEX CONCURRENTLY {quote(name)} ON {qualified(*table)}"
        f" ({', '.join(str(quote(column)) for column in columns)})"
    )
    text += f" INCLUDE ({', '.join(str(quote(column)) for column in included)})" if included else ""
    return Words(text + _with(options))


def comment_on_column(table: Name, column: OwnColumn) -> Element:
    """Comment on a column, or take its comment away."""
    text = "NULL" if column.comment is None else quoted_text(column.comment)
    return Words(f"COMMENT ON COLUMN {qualified(*table)}.{quote(column.name)} IS {text}")


def comment_on_table(table: Name, text: str | None) -> Element:
    """Comment on a table, or take its comment away."""
    return Words(f"COMMENT ON TABLE {qualified(*table)} IS {'NULL' if text is None else quoted_text(text)}")


def comments(table: Name, belongings: Belongings, itself: bool = True) -> Iterable[Element]:
    """Say again what comments said of the table and of what LIKE leaves behind."""
    on = qualified(*table)
    told = [(f"TABLE {on}", belongings.comment if itself else None)]
    for index in belongings.indexes:
        told.append((f"INDEX {qualified(index.schema, index.name)}", index.comment))
        told.append((f"CONSTRAINT {quote(index.name)} ON {on}", index.told))
    told += [(f"CONSTRAINT {quote(key.name)} ON {on}", key.comment) for key in belongings.foreign_keys]
    told += [(f"TRIGGER {quote(trigger.name)} ON {on}", trigger.comment) for trigger in belongings.triggers]
    told += [(f"POLICY {quote(policy.name)} ON {on}", policy.comment) for policy in belongings.policies]
    return [Words(f"COMMENT ON {what} IS {quoted_text(text)}") for what, text in told if text is not None]


def columns(table: Name, columns: Iterable[OwnColumn]) -> Iterable[Element]:
    """Set statistics targets and options of columns."""
    for column in columns:
        alter = f"ALTER TABLE {qualified(*table)} ALTER COLUMN {quote(column.name)}"
        if column.statistics is not None:
            yield Words(f"{alter} SET STATISTICS {column.statistics:d}")
        if column.options:
            yield Words(f"{alter} SET ({_options(column.options)})")


def _options(options: Iterable[str]) -> str:
    pairs = (option.partition("=") for option in options)
    return ", ".join(f"{quote(name)} = {quoted_text(value)}" for name, _, value in pairs)


def move_identity(origin: Name, goal: Name, column: OwnColumn) -> Element:
    """Take the identity off a column and give it to the other table's, its sequence going on where it was,
    under its name, with its grants.

    PostgreSQL drops the sequence with the identity, so it is made anew.
    """
    assert column.sequence is not None
    sequence, name = qualified(*column.sequence), quote(column.name)
    return Words(
        do_block(
            "DECLARE s pg_sequence; at bigint; called boolean; granted aclitem[]; own oid; told text;\n"
            "  g record;\nBEGIN\n"
            f"  SELECT * INTO s FROM pg_sequence WHERE seqrelid = {quoted_text(sequence)}::regclass;\n"
            "  SELECT c.relacl, c.relowner, obj_description(c.oid, 'pg_class') INTO granted, own, told\n"
            "    FROM pg_class c WHERE c.oid = s.seqrelid;\n"
            f"  SELECT last_value, is_called INTO at, called FROM {sequence};\n"
            f"  ALTER TABLE {qualified(*origin)} ALTER COLUMN {name} DROP IDENTITY;\n"
            f"  EXECUTE format('ALTER TABLE %s ALTER COLUMN %s ADD GENERATED {_IDENTITY[column.identity]}"
            " AS IDENTITY (SEQUENCE NAME %s START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s'\n"
            "    || CASE WHEN s.seqcycle THEN ' CYCLE)' ELSE ')' END,\n"
            f"    {quoted_text(qualified(*goal))}, {quoted_text(name)}, {quoted_text(sequence)},\n"
            "    s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache);\n"
            f"  PERFORM setval({quoted_text(sequence)}, at, called);\n"
            f"  EXECUTE format('COMMENT ON SEQUENCE %s IS %L', {quoted_text(sequence)}, told);\n"
            "  FOR g IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a\n"
            f"    WHERE c.oid = {quoted_text(sequence)}::regclass AND a.grantee <> c.relowner\n"
            "  LOOP\n"
            f"    EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %s', {quoted_text(sequence)},\n"
            "      CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END);\n"
            "  END LOOP;\n"
            "  FOR g IN SELECT a.grantee, a.privilege_type, a.is_grantable FROM aclexplode(granted) a\n"
            "    WHERE a.grantee <> own\n"
            "  LOOP\n"
            "    EXECUTE format('GRANT %s ON SEQUENCE %s TO %s', g.privilege_type,\n"
            f"      {quoted_text(sequence)},\n"
            "      CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END)\n"
            "      || CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END;\n"
            "  END LOOP;\n"
        )
    )


def own_sequence(sequence: Name, table: Name, column: str) -> Element:
    """Let a sequence, as of ``serial``, go with a column of the other table."""
    return Words(f"ALTER SEQUENCE {qualified(*sequence)} OWNED BY {qualified(*table)}.{quote(column)}")


def drop_trigger(table: Name, trigger: OwnTrigger) -> Element:
    """Drop a trigger."""
    return Words(f"DROP TRIGGER {quote(trigger.name)} ON {qualified(*table)}")


def create_trigger(table: Name, trigger: OwnTrigger) -> Iterable[Element]:
    """Create a trigger as it was, firing when it did."""
    yield Words(trigger.definition)
    if trigger.enabled in _ENABLED:
        yield Words(
            f"ALTER TABLE {qualified(*table)} {_ENABLED[trigger.enabled]} TRIGGER {quote(trigger.name)}"
        )


def drop_policy(table: Name, policy: OwnPolicy) -> Element:
    """Drop a policy of row-level security."""
    return Words(f"DROP POLICY {quote(policy.name)} ON {qualified(*table)}")


def create_policy(table: Name, policy: OwnPolicy) -> Element:
    """Create a policy of row-level security as it was."""
    roles = ", ".join(str(quote(role)) for role in policy.roles) or "PUBLIC"
    text = (
        f"CREATE POLICY {quote(policy.name)} ON {qualified(*table)}"
        f" AS {'PERMISSIVE' if policy.permissive else 'RESTRICTIVE'} FOR {policy.command} TO {roles}"
    )
    text += f" USING ({policy.using})" if policy.using is not None else ""
    return Words(text + (f" WITH CHECK ({policy.check})" if policy.check is not None else ""))


def row_security(table: Name, enabled: bool, forced: bool) -> Iterable[Element]:
    """Switch row-level security on or off, for the owner too where it is forced."""
    on = f"ALTER TABLE {qualified(*table)}"
    yield Words(f"{on} {'ENABLE' if enabled else 'DISABLE'} ROW LEVEL SECURITY")
    if forced:
        yield Words(f"{on} FORCE ROW LEVEL SECURITY")


def unforce_row_security(table: Name) -> Element:
    """Let the owner past row-level security again."""
    return Words(f"ALTER TABLE {qualified(*table)} NO FORCE ROW LEVEL SECURITY")


def copy_privileges(origin: Name, goal: Name) -> Element:
    """Grant on one table exactly what is granted on another, columns included; what default privileges have
    granted is taken back."""
    to = ("CASE {0}.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid({0}.grantee)) END").format(
        "g"
    )
    first, second = quoted_text(qualified(*origin)), quoted_text(qualified(*goal))
    return Words(
        do_block(
            "DECLARE g record;\nBEGIN\n"
            "  FOR g IN SELECT DISTINCT a.grantee FROM pg_class c, aclexplode(c.relacl) a\n"
            f"    WHERE c.oid = {second}::regclass AND a.grantee <> c.relowner\n"
            f"  LOOP\n    EXECUTE format('REVOKE ALL ON %s FROM %s', {second}, {to});\n  END LOOP;\n"
            f"  IF (SELECT c.relacl IS NOT NULL FROM pg_class c WHERE c.oid = {first}::regclass) THEN\n"
            f"    EXECUTE format('REVOKE ALL ON %s FROM %I', {second},\n"
            f"      (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = {second}::regclass));\n"
            "  END IF;\n"
            "  FOR g IN SELECT a.grantee, a.privilege_type, a.is_grantable, NULL AS attname\n"
            f"      FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = {first}::regclass\n"
            "    UNION ALL SELECT a.grantee, a.privilege_type, a.is_grantable, t.attname\n"
            f"      FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = {first}::regclass\n"
            "      AND t.attnum > 0 AND NOT t.attisdropped\n"
            "  LOOP\n"
            "    EXECUTE format('GRANT %s%s ON %s TO %s%s', g.privilege_type,\n"
            "      CASE WHEN g.attname IS NULL THEN '' ELSE format(' (%I)', g.attname) END,\n"
            f"      {second}, {to},\n"
            "      CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);\n"
            "  END LOOP;\n"
        )
    )


def identify_by(table: Name, index: str) -> Element:
    """Have subscribers tell rows by an index."""
    return Words(f"ALTER TABLE {qualified(*table)} REPLICA IDENTITY USING INDEX {quote(index)}")


def replica_identity(table: Name, belongings: Belongings) -> Iterable[Element]:
    """Set the replica identity where it is not the usual one."""
    told = {"f": "FULL", "n": "NOTHING"}.get(belongings.replica_identity)
    if belongings.replica_identity == "i" and belongings.replica_index is not None:
        told = f"USING INDEX {quote(belongings.replica_index)}"
    if told is not None:
        yield Words(f"ALTER TABLE {qualified(*table)} REPLICA IDENTITY {told}")


def publish(publication: Publication, origin: Name, goal: Name) -> Iterable[Element]:
    """Have a publication cover the other table in place of the first."""
    name = quote(publication.name)
    text = f"ALTER PUBLICATION {name} ADD TABLE {qualified(*goal)}"
    if publication.columns is not None:
        text += f" ({', '.join(str(quote(column)) for column in publication.columns)})"
    text += f" WHERE ({publication.where})" if publication.where is not None else ""
    yield Words(f"ALTER PUBLICATION {name} DROP TABLE {qualified(*origin)}")
    yield Words(text)


def redefine_view(view: Reader) -> Element:
    """Have a view read the table that bears the old name now; owner, grants and who reads the view stay."""
    options = f" WITH ({_options(view.options)})" if view.options else ""
    return Words(
        f"CREATE OR REPLACE VIEW {qualified(view.schema, view.name)}{options} AS\n"
        + view.definition.strip().removesuffix(";")
    )
