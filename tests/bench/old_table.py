"""What a table with many partitions costs: its upkeep, its sessions, its catalog. One measuring a size."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from alembic_partitions import keep, maintenance, standing
from tests.databases import Databases
from tests.postgres import Server

from .grown import READY, grow, tidy

TABLE = "events"
CATALOGS = (
    *("pg_class", "pg_attribute", "pg_index", "pg_inherits", "pg_constraint", "pg_depend", "pg_type"),
    *("pg_description", "pg_statistic"),
)
TIMES = 5
_KINDS = ("LIKE", "ATTACH PARTITION", "DETACH PARTITION", "DROP TABLE")
_LOCKS = """
SELECT count(*), count(*) FILTER (WHERE fastpath) FROM pg_locks
WHERE pid = pg_backend_pid() AND locktype = 'relation' AND relation >= 16384
"""

_A_YEAR_AGO = """
UPDATE pg_description SET description = regexp_replace(description, '"at": "\\d+', '"at": "2001')
WHERE description LIKE 'alembic\\_partitions: detached %'
"""


@dataclass
class Sent:
    """What the server was asked meanwhile: milliseconds by kind of statement, and the rows that came back."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    statements: int = 0
    rows: int = 0
    _began: float = 0.0

    def before(self, *args: Any) -> None:
        self._began = time.perf_counter()

    def after(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        is_ours = statement.startswith(("CREATE TABLE", "ALTER TABLE", "DROP TABLE"))
        kind = next((name for name in _KINDS if is_ours and name in statement), "the rest")
        self.spent[kind] += (time.perf_counter() - self._began) * 1000
        self.statements += 1
        self.rows += max(cursor.rowcount, 0)


@contextmanager
def listening() -> Iterator[Sent]:
    """Count and time what is sent on any engine: a keeper has one of its own."""
    sent = Sent()
    event.listen(Engine, "before_cursor_execute", sent.before)
    event.listen(Engine, "after_cursor_execute", sent.after)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", sent.before)
        event.remove(Engine, "after_cursor_execute", sent.after)


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(server: Server, programs: Path, partitions: int) -> dict[str, float | str]:
    """Measure a table of that many partitions on a server; milliseconds where the name says nothing else."""
    databases = Databases(server.url)
    databases.make_template()
    database = databases.clone()
    engine = create_engine(database.url)
    empty = _catalog(engine)
    found: dict[str, float | str] = {}
    began = time.perf_counter()
    grow(engine, TABLE, partitions)
    tidy(engine)
    found["built in s"] = time.perf_counter() - began
    found |= _of_catalog(engine, empty, server.data, partitions)
    found |= _of_dump(programs, database.url.set(drivername="postgresql").render_as_string())
    found |= _of_sessions(engine, partitions)
    found |= _of_upkeep(engine)
    engine.dispose()
    databases.drop_all()
    databases.close()
    return found


# -- upkeep ----------------------------------------------------------------------------------------------


def _of_upkeep(engine: Engine) -> dict[str, float | str]:
    found: dict[str, float | str] = {}

    def each(name: str, work: Callable[[Connection], object], times: int = 3) -> None:
        took = list[float]()
        with listening() as sent:
            for _ in range(times):
                with engine.connect() as connection:
                    took.append(milliseconds(partial(work, connection)))
        found[name] = statistics.median(took)
        found[f"{name}: rows read"] = sent.rows / times

    each("ensure(), nothing to do", maintenance.ensure)
    each("check", standing.survey)
    each("status, with sizes", lambda c: standing.judge([("", maintenance.look(c))], 7.0))
    found["a look of the keeper"], found["a look of the keeper: rows read"] = _keeper_look(engine)
    found |= _of_making(engine)
    found |= _of_removing(engine)
    return found


def _keeper_look(engine: Engine) -> tuple[float, float]:
    kept = create_engine(engine.url)
    keep(kept, refresh="1 ms", wait="60 s")
    took, rows = list[float](), 0
    for _ in range(3):
        time.sleep(0.002)
        with listening() as sent:
            took.append(milliseconds(lambda: kept.connect().close()))
        rows = sent.rows
    kept.dispose()
    return statistics.median(took), rows


def _of_making(engine: Engine) -> dict[str, float | str]:
    """Five windows more, by ensure(); how long its statements take, and the locks at the end of one."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE partition_config SET premake = premake + :times"), {"times": TIMES})
    with engine.connect() as connection, listening() as sent:
        whole = milliseconds(lambda: maintenance.ensure(connection))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE one_more (LIKE {TABLE} INCLUDING ALL)"))
        connection.execute(
            text(
                f"ALTER TABLE {TABLE} ATTACH PARTITION one_more"
                " FOR VALUES FROM ('1900-01-01') TO ('1900-01-02')"
            )
        )
        locks = connection.execute(text(_LOCKS)).one()[0]
        connection.rollback()
    return {
        "a partition, LIKE": sent.spent["LIKE"] / TIMES,
        "a partition, ATTACH": sent.spent["ATTACH PARTITION"] / TIMES,
        "a partition, all of it": whole / TIMES,
        "locks when it commits": locks,
    }


def _of_removing(engine: Engine) -> dict[str, float | str]:
    """Five partitions past their retention: detached in one run, dropped in the next, "a year later"."""
    with engine.begin() as connection:
        oldest = connection.scalar(
            text(
                "SELECT current_date - min(to_date(right(relname, 10), 'YYYY_MM_DD')) FROM pg_class"
                " WHERE relispartition AND relkind = 'r'"
            )
        )
        connection.execute(
            text("UPDATE partition_config SET retention = :kept, on_expiry = 'drop', max_drops = :times"),
            {"kept": f"{max(int(oldest or 0) - TIMES, 1)} days", "times": TIMES},
        )
    found: dict[str, float | str] = {}
    for what, kind in (("detached", "DETACH PARTITION"), ("dropped", "DROP TABLE")):
        with engine.connect() as connection, listening() as sent:
            began = time.perf_counter()
            report = maintenance.maintain(
                connection, orders=maintenance.Orders(analyze=False, horizon=False, trust_clock=True)
            )
            took = (time.perf_counter() - began) * 1000
        done = sum(len(getattr(result, what)) for result in report.results)
        found[f"retention, a run: {TIMES} {what}"] = took if done else "none is old enough"
        found[f"each {kind}"] = sent.spent[kind] / done if done else "none is old enough"
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL allow_system_table_mods = on"))
            connection.execute(text(_A_YEAR_AGO))
    return found


# -- sessions --------------------------------------------------------------------------------------------


def _of_sessions(engine: Engine, partitions: int) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    with _session(engine) as session:
        empty = _memory(session)
        found["INSERT, first in a session"] = milliseconds(lambda: _insert(session))
        found["memory of that session, kB"] = (_memory(session) - empty) / 1024
        found["INSERT, later"] = statistics.median(
            milliseconds(lambda: _insert(session)) for _ in range(TIMES)
        )
        found["INSERT, first after an ATTACH"] = _after_attach(engine, session)
    with _session(engine) as session:
        today = session.scalar(text("SELECT current_date::timestamptz::text"))
        one_day, some_day = (
            f"SELECT FROM {TABLE} WHERE at = '{today}'",
            f"SELECT FROM {TABLE} WHERE at = now()",
        )
        plans = [_planned(session, one_day) for _ in range(TIMES)]
        found["SELECT of one day: planning, first"] = plans[0]
        found["SELECT of one day: planning, later"] = statistics.median(plans[1:])
        found["SELECT of one day: locks"] = _locks(session, one_day)
        found["the same, WHERE at = now(): locks"] = _locks(session, some_day)
        session.execute(text("SET plan_cache_mode = force_generic_plan"))
        session.execute(text(f"PREPARE one_day (timestamptz) AS SELECT FROM {TABLE} WHERE at = $1"))
        found["the same, prepared, generic plan: locks"] = _locks(session, f"EXECUTE one_day ('{today}')")
    with _session(engine) as session:
        every, empty = f"SELECT FROM {TABLE} WHERE kind = 7", _memory(session)
        found["SELECT of all: locks"] = _locks(session, every)
        if "memory" in str(found["SELECT of all: locks"]):
            found["partitions that one SELECT can lock"] = _most(session, partitions)
        else:
            found["memory of that session, kB "] = (_memory(session) - empty) / 1024
            found["SELECT of all: planning, later"] = _planned(session, every)
    touched = min(partitions, 1_000) - 40
    if touched > 0:
        found["memory a partition touched, kB"] = _memory_each(engine, touched)
    return found


@contextmanager
def _session(engine: Engine) -> Iterator[Connection]:
    """A session of its own, in autocommit, with the catalog caches of a new backend."""
    engine.dispose()
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("SELECT count(*) FROM pg_locks"))
        yield connection
        connection.invalidate()


def _insert(session: Connection) -> None:
    session.execute(text(f"INSERT INTO {TABLE} VALUES (1, now(), 1, 1, 'x')"))


def _after_attach(engine: Engine, session: Connection) -> float:
    took = []
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as other:
        for _ in range(3):
            other.execute(text(f"CREATE TABLE one_more (LIKE {TABLE} INCLUDING ALL)"))
            other.execute(
                text(
                    f"ALTER TABLE {TABLE} ATTACH PARTITION one_more"
                    " FOR VALUES FROM ('1900-01-01') TO ('1900-01-02')"
                )
            )
            took.append(milliseconds(lambda: _insert(session)))
            other.execute(text(f"ALTER TABLE {TABLE} DETACH PARTITION one_more"))
            other.execute(text("DROP TABLE one_more"))
            _insert(session)
        other.invalidate()
    return statistics.median(took)


def _planned(session: Connection, query: str) -> float:
    plan = session.exec_driver_sql(f"EXPLAIN (SUMMARY, FORMAT JSON) {query}").scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return float(plan[0]["Planning Time"])


def _locks(session: Connection, query: str) -> str:
    session.exec_driver_sql("BEGIN")
    try:
        session.exec_driver_sql(query)
        every, fast = session.exec_driver_sql(_LOCKS).one()
        return f"{every} ({fast} fast)"
    except DBAPIError as error:
        return str(error.orig).splitlines()[0]
    finally:
        session.exec_driver_sql("ROLLBACK")


def _most(session: Connection, partitions: int) -> int:
    """Search for the largest number of partitions that one statement can lock, as nobody else holds any."""
    least, most = 0, partitions - READY
    while most - least > 10:
        middle = (least + most) // 2
        days = session.scalar(text("SELECT (current_date - :days)::timestamptz::text"), {"days": middle})
        held = _locks(session, f"SELECT FROM {TABLE} WHERE at >= '{days}' AND at < 'today'")
        least, most = (least, middle) if "memory" in held else (middle, most)
    return least


def _memory(session: Connection) -> int:
    return int(session.scalar(text("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")) or 0)


def _memory_each(engine: Engine, touched: int) -> float:
    """What a session keeps for each partition that it has written to, in kB."""
    with _session(engine) as session:
        _insert(session)
        before = _memory(session)
        for day in range(2, touched + 2):
            session.execute(
                text(f"INSERT INTO {TABLE} VALUES (1, now() - {day} * interval '1 day', 1, 1, 'x')")
            )
        return (_memory(session) - before) / touched / 1024


# -- the catalog -----------------------------------------------------------------------------------------


def _catalog(engine: Engine) -> dict[str, int]:
    sizes = ", ".join(f"pg_total_relation_size('{name}') AS {name}" for name in CATALOGS)
    with engine.connect() as connection:
        row = connection.execute(
            text(
                f"SELECT {sizes}, (SELECT count(*) FROM pg_class) AS relations,"
                " pg_database_size(current_database()) AS whole"
            )
        ).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _of_catalog(engine: Engine, empty: dict[str, int], data: Path, partitions: int) -> dict[str, float | str]:
    now = _catalog(engine)
    with engine.connect() as connection:
        folder = connection.scalar(text("SELECT oid FROM pg_database WHERE datname = current_database()"))
    with engine.connect() as connection:
        files = connection.scalar(
            text("SELECT count(*) FROM pg_ls_dir('base/' || :folder) f"), {"folder": folder}
        )
    grown = {name: (now[name] - empty[name]) / partitions for name in now}
    found: dict[str, float | str] = {
        f"{name}, B a partition": grown[name]
        for name in sorted(CATALOGS, key=grown.__getitem__, reverse=True)
    }
    return {
        **found,
        "catalog, B a partition": sum(grown[name] for name in CATALOGS),
        "disk, B a partition": grown["whole"],
        "relations a partition": grown["relations"],
        "files in the database's folder": int(files or 0),
    }


def _of_dump(programs: Path, url: str) -> dict[str, float | str]:
    program = programs / "pg_dump"
    if not program.is_file():
        return {"pg_dump --schema-only": "no pg_dump here"}
    began = time.perf_counter()
    done = subprocess.run(
        [program, "--schema-only", "--dbname", url], check=False, capture_output=True, text=True
    )
    took = (time.perf_counter() - began) * 1000
    if done.returncode:
        return {"pg_dump --schema-only": re.sub(r"pg_dump: (error: )?", "", done.stderr.splitlines()[0])}
    return {"pg_dump --schema-only": took}
