"""``python -m nz_racing.ingest --first 2026-04-03 --days 4``: write New Zealand racing days.

Bulk upserts, one transaction a race, a JSON line in the log for each success and failure.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, func, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from alembic_partitions import PartitionError, keep, maintenance
from alembic_partitions.keeper import Keeper

from .feed import AUCKLAND, MeetingCard, RaceCard, Row, days_from, meetings_on
from .models import Base, Entrant, Imported, Meeting, MoneyFlowHistory, OddsHistory, Race, RaceResultHistory
from .settings import database_url

log = logging.getLogger("nz_racing")

#: Milliseconds in which a race is to be written, and a day's partitions made.
A_RACE, A_DAY = 300, 5000


def upsert(connection: Connection, model: type[Base], rows: list[Row]) -> None:
    """Insert rows, or update those that are there; one that says nothing new is left as it was."""
    if not rows:
        return
    table = model.__table__
    keys = [column.name for column in table.primary_key]
    stated = [name for name in rows[0] if name not in keys]
    statement = insert(table).values(rows)
    changes: dict[str, Any] = {name: statement.excluded[name] for name in stated}
    news = tuple_(*(table.c[n] for n in stated)).is_distinct_from(tuple_(*changes.values()))
    if issubclass(model, Imported):
        changes["last_updated"] = func.now()
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes, where=news))


def write_race(connection: Connection, card: RaceCard) -> None:
    """Write a race and its market. Nothing here knows of partitions."""
    upsert(connection, Race, [card.race])
    upsert(connection, Entrant, card.entrants)
    upsert(connection, OddsHistory, card.odds)
    upsert(connection, MoneyFlowHistory, card.money_flow)
    upsert(connection, RaceResultHistory, card.results)


@dataclass
class Report:
    """What a run wrote, and how long each race took."""

    rows: int = 0
    failed: int = 0
    milliseconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        races = sorted(self.milliseconds) or [0.0]
        return (
            f"{len(self.milliseconds)} races, {self.rows} rows, {self.failed} failed; a race written in "
            f"{races[len(races) // 2]:.0f} ms (slowest {races[-1]:.0f} ms, {_held(races[-1], A_RACE)})"
        )


def _held(milliseconds: float, budget: int) -> str:
    return f"{'under' if milliseconds < budget else 'OVER'} {budget} ms"


def ingest(engine: Engine, days: Iterable[date]) -> Report:
    """Write whole days. One race that fails never stops the others."""
    report = Report()
    for day in days:
        for meeting in meetings_on(day):
            ingest_meeting(engine, meeting, report)
    return report


def ingest_meeting(engine: Engine, card: MeetingCard, report: Report) -> None:
    about = {"meeting_id": card.meeting["id"], "meeting_date": card.meeting["meeting_date"]}
    if _write(engine, "meeting", about, lambda c: upsert(c, Meeting, [card.meeting])) is None:
        report.failed += len(card.races)
        return
    for race in card.races:
        about = {"race_id": race.race["id"], "race_date_nz": race.race["race_date_nz"], "rows": race.rows}
        took = _write(engine, "race", about, partial(write_race, card=race))
        if took is None:
            report.failed += 1
        else:
            report.rows += race.rows
            report.milliseconds.append(took)


def _write(engine: Engine, what: str, about: Row, write: Callable[[Connection], None]) -> float | None:
    """Write in a transaction of its own and log how it went; return how many milliseconds it took."""
    began = time.perf_counter()
    try:
        with engine.begin() as connection:
            write(connection)
    except (SQLAlchemyError, PartitionError) as error:
        reason = {"error": type(error).__name__, "message": str(getattr(error, "orig", error)).strip()}
        _event(logging.ERROR, f"{what}_failed", about | reason)
        return None
    took = (time.perf_counter() - began) * 1000
    _event(logging.INFO, f"{what}_written", about | {"ms": round(took, 1)})
    return took


# -- log lines -------------------------------------------------------------------------------------------


def _event(level: int, event: str, fields: Row) -> None:
    log.log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A JSON object a line: when, how bad, what, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, AUCKLAND).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(line | getattr(record, "fields", {}), default=str)


# -- at the command line ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description="Write New Zealand racing days.")
    options.add_argument("--first", type=date.fromisoformat, default=datetime.now(AUCKLAND).date())
    options.add_argument("--days", type=int, default=3)
    wanted = options.parse_args(arguments)

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    engine = create_engine(database_url())
    keeper = keep(engine)
    try:
        ready = make_partitions(keeper)
        report = ingest(engine, days_from(wanted.first, wanted.days))
    finally:
        engine.dispose()
    print(report)
    return 0 if ready and not report.failed else 1


def make_partitions(keeper: Keeper) -> bool:
    """Bring the tables to their horizon, log how that went, and return whether it went well."""
    began = time.perf_counter()
    try:
        report = keeper.ensure()
    except (SQLAlchemyError, PartitionError) as error:
        reason = {"error": type(error).__name__, "message": str(getattr(error, "orig", error)).strip()}
        _event(logging.ERROR, "partitions_failed", reason)
        return False
    took = (time.perf_counter() - began) * 1000
    failed = [result for result in report.results if result.failure]
    for result in failed:
        _event(logging.ERROR, "partitions_failed", {"table": result.table, "message": result.failure})
    if not failed:
        _event(logging.INFO, "partitions_ready", {"created": report.created, "ms": round(took, 1)})
    print(told_of(report, took))
    return not failed


def told_of(report: maintenance.Report, milliseconds: float) -> str:
    """Say how long making partitions took, and how long for each day."""
    told = f"{report.created} partitions made in {milliseconds:.0f} ms"
    days = max((len(result.created) for result in report.results), default=0)
    if not days:
        return told
    a_day = milliseconds / days
    return f"{told}, {a_day:.0f} ms for each day ({_held(a_day, A_DAY)})"


if __name__ == "__main__":
    sys.exit(main())
