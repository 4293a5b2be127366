"""A function as it is declared: its text is the same in every database but for where it lives."""

from __future__ import annotations

from dataclasses import dataclass

from alembic_partitions.plan import MARKS

#: Begins the comments that make functions and the view ours; what they are for follows.
FUNCTION_MARK = f"{MARKS}for psql: "


@dataclass(frozen=True, slots=True)
class Routine:
    """One PL/pgSQL function.

    In its body ``@DETACHED_MARK@`` and its like stand for literals that the package knows too, ``@config@``
    for the schema of our two tables. It calls the others without a schema: they get theirs as it is made.
    Its search_path leads to the catalog alone.
    """

    name: str
    arguments: str
    returns: str
    body: str
    #: What psql's ``\\df+`` says of it.
    about: str
    volatile: bool = False
    #: It prints or reads times as text, or waits for locks: settings of its own while it runs.
    door: bool = False

    @property
    def comment(self) -> str:
        """The comment that makes it ours."""
        return FUNCTION_MARK + self.about

    def sql(self, home: str, body: str) -> str:
        """Return the statement that makes it.

        :param home: its schema, quoted.
        :param body: in dollar quotes.
        """
        settings = ["SET search_path = pg_catalog, pg_temp"]
        if self.door:
            settings += ["SET TimeZone = 'UTC'", "SET DateStyle = 'ISO, YMD'", "SET lock_timeout = '2s'"]
        return (
            f"CREATE OR REPLACE FUNCTION {home}.{self.name}({self.arguments})\n"
            f"RETURNS {self.returns}\nLANGUAGE plpgsql {'VOLATILE' if self.volatile else 'STABLE'}\n"
            + "".join(f"{setting}\n" for setting in settings)
            + f"AS {body}"
        )
