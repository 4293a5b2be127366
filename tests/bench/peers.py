"""Others at the same work, each by the interface that its documentation shows.

Every side has tables of its own, named alike, by UTC day, in a database of its own; what one of them needs
beyond that is here. A peer that is not installed is named in the report, with the reason.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from sqlalchemy import Engine, create_engine, text

from alembic_partitions import maintenance
from tests.bench.measure import Side
from tests.bench.record import RECORD
from tests.databases import Databases
from tests.postgres import Server
from tests.tables import run

Work: TypeAlias = Callable[[], None]
"""Bring every table to its horizon."""

#: pg_partman comes as a package of the distribution, for one release of PostgreSQL.
PARTMAN_PROGRAMS = Path("/usr/lib/postgresql/15/bin")
PARTMAN_FILES = Path("/usr/share/postgresql/15/extension/pg_partman.control")
PARTMAN_PACKAGE = "postgresql-15-partman"

#: Seconds after which one round of a side is enough, and larger sizes are not tried.
PATIENCE = 10

LABELS = itertools.count()


# How many of the days wanted has each table? What one would ask by hand.
WANTED_OF_EACH = text("""
SELECT i.inhparent, count(*)
FROM unnest(CAST(:tables AS text[])) t CROSS JOIN generate_series(0, :days) n
JOIN pg_class c
  ON c.relname = CAST(t || to_char((now() AT TIME ZONE 'UTC')::date + n, '_YYYY_MM_DD') AS name)
JOIN pg_inherits i ON i.inhrelid = c.oid
GROUP BY 1
""")


@dataclass(frozen=True)
class Peer:
    """Somebody else: `prepare(engine, tables, days)` returns what brings the tables to their horizon."""

    name: str
    prepare: Callable[[Engine, Sequence[str], int], Work]
    commits: str


def ours(engine: Engine, days: int) -> Work:
    """Set the horizon of tables that are declared, and return what makes it."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE partition_config SET premake = :days, lookback = 0"), {"days": days})

    def work() -> None:
        with engine.connect() as connection:
            report = maintenance.ensure(connection)
        assert not any(result.error or result.horizon_short for result in report.results)

    return work


def by_hand(engine: Engine, tables: Sequence[str], days: Iterable[int]) -> Work:
    """Write down LIKE and ATTACH for some days from today, as one batch: what one would paste into psql."""
    today = datetime.now(timezone.utc).date()
    statements = []
    for table in tables:
        for number in days:
            day, next_day = today + timedelta(days=number), today + timedelta(days=number + 1)
            child, bounds = f"{table}_{day:%Y_%m_%d}", f"FROM ('{day} 00:00+00') TO ('{next_day} 00:00+00')"
            statements += [
                f"CREATE TABLE {child} (LIKE {table} INCLUDING ALL EXCLUDING IDENTITY)",
                f"ALTER TABLE {table} ATTACH PARTITION {child} FOR VALUES {bounds}",
            ]
    batch = ";\n".join(statements)

    def work() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(batch)

    return work


def look_by_hand(engine: Engine, tables: Sequence[str], days: int) -> Work:
    """Count, in one query, how many of the days wanted each table has."""

    def work() -> None:
        with engine.begin() as connection:
            found = connection.execute(WANTED_OF_EACH, {"tables": list(tables), "days": days}).all()
        assert [count for _, count in found] == [days + 1] * len(tables)

    return work


def partsmith(engine: Engine, tables: Sequence[str], days: int) -> Work:
    """Its README's quick start, in the sync spelling; nothing is to be detached, so it need not look."""
    from pg_partsmith import PartitionGranularity, TablePartitionConfig
    from pg_partsmith.sync import PartitionToolkit

    maintainer = PartitionToolkit.from_engine(engine).maintainer
    configs = [
        TablePartitionConfig(
            schema="public",
            table_name=table,
            partition_column="at",
            granularity=PartitionGranularity.DAY,
            create_ahead_count=days + 1,  # the current one among them
            retention_count=100_000,
        )
        for table in tables
    ]

    def work() -> None:
        for config in configs:
            result = maintainer.run_maintenance_safe(config, skip_detach=True, skip_drop=True)
            assert result.error is None, result.error
            assert not result.issues, result.issues

    return work


def psqlextra(engine: Engine, tables: Sequence[str], days: int) -> Work:
    """`manage.py pgpartition --yes --skip-delete`, for models of the tables."""
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connections, models

    url = engine.url
    address = {
        "ENGINE": "psqlextra.backend",
        "NAME": url.database,
        "USER": url.username,
        "PASSWORD": url.password or "",
        "HOST": url.host,
        "PORT": url.port,
    }
    if not settings.configured:
        settings.configure(
            DATABASES={"default": address},
            INSTALLED_APPS=["django.contrib.postgres", "psqlextra"],
            USE_TZ=True,
            TIME_ZONE="UTC",
        )
        django.setup()
    from psqlextra.models import PostgresPartitionedModel
    from psqlextra.partitioning import PostgresPartitioningManager, partition_by_current_time
    from psqlextra.types import PostgresPartitioningMethod

    label = f"bench_{next(LABELS)}"  # Django knows each model once

    def model(table: str) -> Any:
        meta = type("Meta", (), {"app_label": label, "db_table": table, "managed": False})
        partitioned = type(
            "PartitioningMeta", (), {"method": PostgresPartitioningMethod.RANGE, "key": ["at"]}
        )
        return type(
            table,
            (PostgresPartitionedModel,),
            {
                "__module__": __name__,
                "Meta": meta,
                "PartitioningMeta": partitioned,
                "at": models.DateTimeField(),
            },
        )

    manager = PostgresPartitioningManager(
        [
            # It knows partitions by their names alone: these are ours.
            partition_by_current_time(model=model(table), days=1, count=days + 1, name_format="%Y_%m_%d")
            for table in tables
        ]
    )

    def connected() -> None:
        """Have Django's one connection lead to this side's database, as it does in a process of its own."""
        if connections["default"].settings_dict["NAME"] != address["NAME"]:
            connections["default"].close()
            del connections["default"]
            connections.databases["default"] = connections.configure_settings({"default": address})["default"]

    def work() -> None:
        connected()
        settings.PSQLEXTRA_PARTITIONING_MANAGER = manager
        with redirect_stdout(io.StringIO()):
            call_command("pgpartition", yes=True, skip_delete=True)

    return work


def partman(engine: Engine, tables: Sequence[str], days: int) -> Work:
    """`create_parent` for each table, then `run_maintenance_proc` again and again, as its how-to says."""
    run(engine, "CREATE SCHEMA partman", "CREATE EXTENSION pg_partman SCHEMA partman")
    for table in tables:
        # From today on; it makes a DEFAULT partition besides.
        run(
            engine,
            f"SELECT partman.create_parent('public.{table}', 'at', 'native', 'daily', p_premake := 1,"
            " p_start_partition := current_date::text)",
        )
    # Else it makes nothing while the tables are empty.
    run(engine, f"UPDATE partman.part_config SET premake = {days}, infinite_time_partitions = true")

    def work() -> None:
        run(engine, "CALL partman.run_maintenance_proc()")

    return work


PARTSMITH = Peer("pg-partsmith", partsmith, "each partition")
PSQLEXTRA = Peer("django-postgres-extra", psqlextra, "each table")
PARTMAN = Peer("pg_partman", partman, "each table")


def installed() -> list[Peer]:
    """Return the peers that run on any server; write down which are missing."""
    found = []
    for peer, module in ((PARTSMITH, "pg_partsmith"), (PSQLEXTRA, "psqlextra")):
        if find_spec(module):
            found.append(peer)
        else:
            RECORD.missing[peer.name] = "not installed here: `tox -e bench` does it, on Python 3.11 and later"
    return found


def patient(earlier: Mapping[str, Side]) -> list[Peer]:
    """Return the peers that did not take too long at a smaller size."""
    return [p for p in installed() if p.name not in earlier or earlier[p.name].median < PATIENCE]


def untried(earlier: Mapping[str, Side], size: str) -> dict[str, str]:
    """Tell why the others are not tried."""
    tried = {peer.name for peer in patient(earlier)}
    return {
        peer.name: f"not tried: {earlier[peer.name].median:,.0f} s with {size}"
        for peer in installed()
        if peer.name not in tried
    }


@contextmanager
def partman_server() -> Iterator[Databases | None]:
    """A server that has pg_partman, where this machine has one; `None`, and a word on why, where not."""
    if not PARTMAN_FILES.exists():
        RECORD.missing[PARTMAN.name] = f"`apt-get install {PARTMAN_PACKAGE}` has not been done"
        yield None
        return
    server = Server(PARTMAN_PROGRAMS)
    try:
        databases = Databases(server.url)
        databases.make_template()
        with databases.admin() as connection:
            available = "SELECT default_version FROM pg_available_extensions WHERE name = 'pg_partman'"
            RECORD.versions[PARTMAN.name] = str(connection.scalar(text(available)))
        yield databases
        databases.close()
    finally:
        server.close()


@contextmanager
def utc_database(databases: Databases) -> Iterator[Engine]:
    """A database whose sessions count in UTC: pg_partman's days are those of the session."""
    database = databases.clone()
    with databases.admin() as connection:
        connection.execute(text(f"ALTER DATABASE {database.name} SET TimeZone = 'UTC'"))
    engine = create_engine(database.url)
    yield engine
    engine.dispose()
    databases.drop(database.name)
