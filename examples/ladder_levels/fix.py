"""``python -m ladder_levels.fix``: the one-off fix, as the partition role.

Makes what is missing from 30 days back to 30 ahead, moves rows out of a DEFAULT partition if there is one,
and sends a test row through the table, rolled back. With ``--dry-run`` it prints the SQL. Running it again is
safe.
"""

from __future__ import annotations

import sys

from alembic_partitions.cli import main as alembic_partitions

from .provisioner import TABLE
from .settings import Settings, SettingsError


def main(arguments: list[str]) -> None:
    try:
        url = Settings.read().partitions.render_as_string(hide_password=False)
    except SettingsError as error:
        sys.exit(f"ladder_levels: {error}")
    alembic_partitions(["repair", "--url", url, "--table", TABLE, "--days", "30", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
