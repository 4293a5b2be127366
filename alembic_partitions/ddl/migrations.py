"""What a migration sends: the same text online and with ``--sql``, where no statement can look before."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Text, literal_column
from sqlalchemy.schema import CreateColumn, CreateTable

from alembic_partitions.plan import (
    CONFIG_ADDED,
    CONFIG_MARK,
    KEPT_MARK,
    PARENT_LOCK_CLASS,
    PARTITION_MARK,
    RUNS_MARK,
)

from .elements import DIALECT, Element, do_block, is_distributed, qualified, quoted_text
from .partitions import (
    Attach,
    CreateLike,
    DropExclusions,
    MarkPartition,
    OfPartition,
    SetReplicaIndex,
)
from .tables import column_check, config_table, runs_table


def schema_of_name(name: str) -> ColumnElement[str]:
    """Return where a table's name without a schema leads when the statement runs; if nowhere, where a new one
    would go."""
    table = quoted_text(qualified(None, name))
    return literal_column(
        "coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE c.oid = to_regclass({table})), current_schema())",
        Text(),
    )


def _added(name: str) -> str:
    """Return what adds a column to an earlier version's partition_config. Where it is there, nothing is
    locked; where it is not, nobody waits for long: a dump may be reading the table for hours."""
    column = config_table(None).columns[name]
    adding = f"{CreateColumn(column).compile(dialect=DIALECT)} {column_check(name)}"
    return (
        "  IF found IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = found\n"
        f"      AND a.attname = {quoted_text(name)} AND NOT a.attisdropped) THEN\n"
        "    PERFORM set_config('lock_timeout', '2s', true);\n"
        f"    EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS %s', found::regclass,\n"
        f"      {quoted_text(adding)});\n"
        "    PERFORM set_config('lock_timeout', patience, true);\n"
        "  END IF;\n"
    )


@dataclass(eq=False)
class EnsureOurTables(Element):
    """Make partition_config and partition_runs unless they are there; refuse somebody else's."""

    home: str | None

    def sql(self) -> str:
        schema = "current_schema()" if self.home is None else quoted_text(self.home)
        blocks = []
        for table, mark in ((config_table(self.home), CONFIG_MARK), (runs_table(self.home), RUNS_MARK)):
            create = str(CreateTable(table).compile(dialect=DIALECT)).strip()
            told = quoted_text(mark)
            # Without a schema: ours where the search_path leads to it, else what stands in its first schema.
            ours = "false" if self.home else f"c.oid = to_regclass({quoted_text(table.name)})"
            blocks.append(
                "  SELECT c.oid INTO found FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
                f"  WHERE ({ours} AND obj_description(c.oid, 'pg_class') = {told})\n"
                f"  OR (n.nspname = {schema} AND c.relname = {quoted_text(table.name)})\n"
                f"  ORDER BY obj_description(c.oid, 'pg_class') = {told} DESC NULLS LAST LIMIT 1;\n"
                # One at a time: a second one waits for the first, and finds what it has made.
                f"  IF found IS NULL THEN\n    PERFORM pg_advisory_xact_lock({PARENT_LOCK_CLASS:d}, 0);\n"
                f"    found := (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
                f"      WHERE n.nspname = {schema} AND c.relname = {quoted_text(table.name)});\n"
                f"  END IF;\n"
                f"  IF found IS NULL THEN\n{create};\n"
                f"    COMMENT ON TABLE {qualified(self.home, table.name)} IS {told};\n"
                f"  ELSIF obj_description(found, 'pg_class') IS DISTINCT FROM {told} THEN\n"
                f"    RAISE EXCEPTION 'table {table.name} is not ours: set ALEMBIC_PARTITIONS_SCHEMA';\n"
                "  END IF;\n" + "".join(map(_added, CONFIG_ADDED if mark == CONFIG_MARK else ()))
            )
        declared = "DECLARE found oid; patience text := current_setting('lock_timeout');\n"
        return do_block(f"{declared}BEGIN\n" + "".join(blocks))


@dataclass(eq=False)
class DetachForeign(Element):
    """Detach the partitions that lack our mark, so that dropping the parent leaves them as tables."""

    home: str | None
    name: str

    def sql(self) -> str:
        parent = quoted_text(qualified(self.home, self.name))
        return do_block(
            "DECLARE part regclass; pending boolean;\nBEGIN\n"
            "  FOR part, pending IN SELECT i.inhrelid, i.inhdetachpending FROM pg_inherits i\n"
            f"    WHERE i.inhparent = to_regclass({parent})\n"
            "    AND NOT starts_with(coalesce(obj_description(i.inhrelid, 'pg_class'), ''),"
            f" {quoted_text(PARTITION_MARK)})\n"
            "  LOOP\n"
            f"    EXECUTE format('ALTER TABLE %s DETACH PARTITION %s', {parent}, part)\n"
            "      || CASE WHEN pending THEN ' FINALIZE' ELSE '' END;\n"
            # So that autogenerate does not propose to drop what was kept.
            "    IF obj_description(part, 'pg_class') IS NULL THEN\n"
            f"      EXECUTE format('COMMENT ON TABLE %s IS %L', part, {quoted_text(KEPT_MARK)});\n"
            "    END IF;\n"
            "  END LOOP;\n"
        )


@dataclass(eq=False)
class FreeSequences(Element):
    """Take the sequences that go with a table out of the defaults of others: LIKE copies the ``nextval()`` of
    a serial column, and a partition that was detached would keep its parent from being dropped."""

    home: str | None
    name: str

    def sql(self) -> str:
        parent = quoted_text(qualified(self.home, self.name))
        return do_block(
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
        parent, mark = (
            quoted_text(qualified(self.home, self.name)),
            quoted_text(PARTITION_MARK + self.made_by),
        )
        held = f"(pg_relation_size(part) > 0 OR {is_distributed('part')})"
        return do_block(
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
            "      EXECUTE format('SELECT EXISTS (SELECT 1 FROM %s)', part) INTO filled;\n"
            # A snapshot taken before the lock does not show what was written in between.
            "      filled := filled OR current_setting('transaction_isolation') <> 'read committed'\n"
            f"        AND {held};\n"
            f"    EXCEPTION WHEN insufficient_privilege THEN filled := {held};\n"
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


class CopyTraits(OfPartition):
    """What LIKE and ATTACH leave behind, found out when the statement runs: a script cannot look before."""

    def sql(self) -> str:
        child, parent = quoted_text(self.child), quoted_text(self.parent)
        return do_block(
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


class CreateUnseen(OfPartition):
    """All that makes one partition, in a block that does nothing where the partition stands already."""

    def sql(self) -> str:
        step = self.step
        elements = CreateLike(step), MarkPartition(step), DropExclusions(step), CopyTraits(step)
        statements = [*elements, Attach(step), SetReplicaIndex(step)]
        return do_block(
            "BEGIN\n"
            "IF NOT EXISTS (SELECT FROM pg_inherits i\n"
            f"               WHERE i.inhrelid = to_regclass({quoted_text(self.child)})\n"
            f"               AND i.inhparent = {quoted_text(self.parent)}::regclass) THEN\n"
            + "".join(f"{element.sql()};\n" for element in statements)
            + "END IF;\n"
        )
