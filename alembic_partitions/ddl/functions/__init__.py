"""Functions for people in psql: what the package answers and does, answered and done in the database.

They live in a schema with a mark in their comments, run with the rights of whoever calls them (a superuser
changes a table with those of its owner), and are text alone: no partition, no row and no configuration hangs
on them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from alembic_partitions.ddl.elements import Element, do_block, quote, quoted_text
from alembic_partitions.plan import (
    CONFIG_MARK,
    DETACHED_MARK,
    DETACHING_MARK,
    DRAINING_MARK,
    PARENT_LOCK_CLASS,
    PARTITION_MARK,
    RESTORED_MARK,
    SPLIT_GROUP_MARK,
    SPLITTING_MARK,
)

from . import (
    arithmetic,
    bounds,
    clocks,
    dropping,
    looking,
    making,
    owning,
    reading,
    removing,
    telling,
    tending,
)
from .routine import FUNCTION_MARK, Routine

__all__ = ["ROUTINES", "DropFunctions", "function_elements"]

ROUTINES: tuple[Routine, ...] = (
    *clocks.ROUTINES,
    *arithmetic.ROUTINES,
    *bounds.ROUTINES,
    *reading.ROUTINES,
    *owning.ROUTINES,
    *telling.ROUTINES,
    *making.ROUTINES,
    *removing.ROUTINES,
    *dropping.ROUTINES,
    *tending.ROUTINES,
    *looking.ROUTINES,
)

_LITERALS = {
    "DETACHED_MARK": quoted_text(DETACHED_MARK),
    "DETACHING_MARK": quoted_text(DETACHING_MARK),
    "DRAINING_MARK": quoted_text(DRAINING_MARK),
    "PARENT_LOCK_CLASS": f"{PARENT_LOCK_CLASS:d}",
    "PARTITION_MARK": quoted_text(PARTITION_MARK),
    "RESTORED_MARK": quoted_text(RESTORED_MARK),
    "SPLITTING_MARK": quoted_text(SPLITTING_MARK),
    "SPLIT_GROUP_MARK": quoted_text(SPLIT_GROUP_MARK),
}
# Stand for schemas whose names are known only when the statement runs: with --sql and without a schema.
_HOME, _CONFIG, _HOME_TEXT, _CONFIG_TEXT = "@home@", "@config@", "@home_text@", "@config_text@"
# Each call of ours in a body: no search_path leads to our schema, as others may have functions there, too.
_CALL = re.compile(r"(?<![\w.])(?=(?:_partition_\w+|list_partitions)\()")
# The names of schemas come into what it encloses, perhaps when nothing can look at them any more: longer
# than any name, so that none can hold it.
_TAG = "$the_body_of_a_function_for_psql_which_no_name_in_it_can_ever_close$"
_NAMES = ", ".join(quoted_text(routine.name) for routine in ROUTINES)


@dataclass(eq=False)
class _Placed(Element):
    """A statement about what lives in our schema."""

    #: Where the functions are, and where partition_config is; ``None``: where the search_path leads to it.
    schema: str | None
    home: str | None

    def template(self) -> str:
        """Return the statement with placeholders for the two schemas."""
        raise NotImplementedError

    def sql(self) -> str:
        text = self.template()
        if self.schema is not None and self.home is not None:
            found = {_HOME: quote(self.schema), _CONFIG: quote(self.home)}
            found |= {_HOME_TEXT: _literal(self.schema), _CONFIG_TEXT: _literal(self.home)}
            return re.sub("|".join(found), lambda match: found[match[0]], text)
        ours = (
            "(SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
            "    WHERE c.oid = to_regclass('partition_config')"
            f" AND obj_description(c.oid, 'pg_class') = {quoted_text(CONFIG_MARK)})"
        )
        home = f"coalesce({ours}, current_schema())" if self.home is None else quoted_text(self.home)
        schema = "home" if self.schema is None else quoted_text(self.schema)
        return do_block(
            f"DECLARE home text := {home};\nBEGIN\n"
            f"  EXECUTE replace(replace(replace(replace({_dollars(text)},\n"
            f"    {quoted_text(_HOME)}, quote_ident({schema})), {quoted_text(_CONFIG)}, quote_ident(home)),\n"
            f"    {quoted_text(_HOME_TEXT)}, quote_literal({schema})),\n"
            f"    {quoted_text(_CONFIG_TEXT)}, quote_literal(home));\n"
        )


@dataclass(eq=False)
class RefuseOthers(_Placed):
    """Refuse to replace a function or a view of somebody else's."""

    def template(self) -> str:
        return do_block(
            f"DECLARE other text; place text := {_HOME_TEXT};\nBEGIN\n"
            "  SELECT p.proname INTO other FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace\n"
            f"  WHERE n.nspname = place AND p.proname IN ({_NAMES})\n"
            f"  AND NOT {_marked('p.oid', 'pg_proc')};\n"
            "  IF other IS NULL THEN\n"
            "    SELECT c.relname INTO other FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
            f"    WHERE n.nspname = place AND c.relname = {quoted_text(looking.VIEW)}\n"
            f"    AND NOT {_marked('c.oid', 'pg_class')};\n"
            "  END IF;\n"
            "  IF other IS NOT NULL THEN\n"
            "    RAISE EXCEPTION '%.% stands there already and is not ours', place, other\n"
            "      USING ERRCODE = 'duplicate_object', HINT = 'Put ours elsewhere:"
            " op.create_partition_functions(schema=...).';\n"
            "  END IF;\n"
        )


@dataclass(eq=False)
class CreateFunction(_Placed):
    """One function; its body is checked when it first runs."""

    routine: Routine

    def template(self) -> str:
        body = re.sub(r"@([A-Z_]+)@", lambda match: _LITERALS[match[1]], self.routine.body)
        return self.routine.sql(_HOME, f"{_TAG}{_CALL.sub(f'{_HOME}.', body)}{_TAG}")


@dataclass(eq=False)
class MarkFunction(_Placed):
    """The comment that makes a function ours."""

    routine: Routine

    def template(self) -> str:
        types = ", ".join(
            argument.split(" DEFAULT ")[0].split(" ", 1)[1]
            for argument in self.routine.arguments.split(", ")
            if argument and not argument.startswith("OUT ")
        )
        return (
            f"COMMENT ON FUNCTION {_HOME}.{self.routine.name}({types}) IS {quoted_text(self.routine.comment)}"
        )


class CreateView(_Placed):
    """The view, whose rows are as its reader's rights let them be."""

    def template(self) -> str:
        return f"CREATE OR REPLACE VIEW {_HOME}.{looking.VIEW} AS SELECT * FROM {_HOME}._partition_metadata()"


class MarkView(_Placed):
    """The comment that makes the view ours."""

    def template(self) -> str:
        return (
            f"COMMENT ON VIEW {_HOME}.{looking.VIEW} IS {quoted_text(FUNCTION_MARK + looking.VIEW_COMMENT)}"
        )


class OpenView(_Placed):
    """Let everybody read the view, as everybody may call the functions: each sees what it has a right to."""

    def template(self) -> str:
        return f"GRANT SELECT ON {_HOME}.{looking.VIEW} TO PUBLIC"


class DropFunctions(_Placed):
    """Drop the view and every function of a schema that bears our mark; nothing else hangs on them."""

    def template(self) -> str:
        return do_block(
            f"DECLARE name text; place text := {_HOME_TEXT};\nBEGIN\n"
            "  FOR name IN SELECT c.oid::regclass\n"
            "    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace\n"
            f"    WHERE n.nspname = place AND c.relname = {quoted_text(looking.VIEW)}\n"
            f"    AND c.relkind = 'v' AND {_marked('c.oid', 'pg_class')}\n"
            "  LOOP EXECUTE 'DROP VIEW ' || name;\n  END LOOP;\n"
            "  FOR name IN SELECT p.oid::regprocedure\n"
            "    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace\n"
            f"    WHERE n.nspname = place AND {_marked('p.oid', 'pg_proc')}\n"
            "  LOOP EXECUTE 'DROP FUNCTION ' || name;\n  END LOOP;\n"
        )


def function_elements(schema: str | None, home: str | None) -> list[Element]:
    """Return what installs the functions, or brings those of an earlier version up to date.

    :param schema: where they go; ``None`` for ``home``.
    :param home: where partition_config is; ``None``: where the search_path leads to it when this runs.
    """
    place = schema if schema is not None else home, home
    elements: list[Element] = [RefuseOthers(*place)]
    for routine in ROUTINES:
        elements += [CreateFunction(*place, routine), MarkFunction(*place, routine)]
    return [*elements, CreateView(*place), MarkView(*place), OpenView(*place)]


def _dollars(body: str) -> str:
    """Write a text in dollar quotes that nothing inside can close."""
    tag = "$body$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"{tag}{body}{tag}"


def _marked(oid: str, catalog: str) -> str:
    """Write the condition that an object bears our mark."""
    return f"coalesce(starts_with(obj_description({oid}, '{catalog}'), {quoted_text(FUNCTION_MARK)}), false)"


def _literal(name: str) -> str:
    """Write a name as a text that closes no dollar quotes around it."""
    if "$" not in name:
        return quoted_text(name)
    return "E" + quoted_text(name.replace("\\", "\\\\")).replace("$", "\\x24")
