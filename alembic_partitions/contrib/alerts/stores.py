"""What people were told of: remembered by this process alone, or by all, in partition_runs."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection

from alembic_partitions import catalog, ddl, maintenance
from alembic_partitions.contrib.source import Source
from alembic_partitions.health import Level
from alembic_partitions.talk import explain

from .incidents import Delivery, Event, Incident
from .patience import Patience

logger = logging.getLogger("alembic_partitions")

#: Given what people were told of, and the time: what is to be sent.
Decide: TypeAlias = "Callable[[Sequence[Incident], datetime], list[Incident]]"
Change: TypeAlias = tuple[Incident, Incident]

T = TypeVar("T")


class Memory:
    """What this process alone has told."""

    def __init__(self) -> None:
        self._incidents: dict[str, Incident] = {}
        self.renew()

    def renew(self) -> None:
        self._lock = threading.Lock()

    def claim(self, decide: Decide) -> list[Incident]:
        with self._lock:  # for no longer than it takes to decide
            claimed = decide(list(self._incidents.values()), datetime.now(timezone.utc))
            self._incidents.update({one.problem: one for one in claimed})
            return claimed

    def note(self, changes: Sequence[Change]) -> None:
        with self._lock:
            self._incidents.update({after.problem: after for _, after in changes})


class Rows:
    """What all processes have told, in partition_runs."""

    def __init__(self, source: Source, recent: timedelta, patience: Patience) -> None:
        self._source = source
        self._patience = patience
        self._recent = recent
        self._schema = ""

    def claim(self, decide: Decide) -> list[Incident]:
        return self._run(partial(self._claim, decide))

    def _run(self, work: Callable[[Connection], T]) -> T:
        return self._patience(partial(self._source.run, work), self._source.is_async)

    def _claim(self, decide: Decide, connection: Connection) -> list[Incident]:
        with connection.begin():
            schema = maintenance.config_schema(connection, self._source.schema)
            now = catalog.turn_to_alert(connection, schema) if schema is not None else None
            if schema is None or now is None:  # another process is just deciding what we would
                return []
            self._schema = schema
            found = catalog.known_alerts(connection, schema, self._recent)
            known = {one.row: one for one in map(_from_row, found) if one is not None}
            claimed = decide(list(known.values()), now)
            return [self._write(connection, known.get(one.row), one) for one in claimed]

    def _write(self, connection: Connection, before: Incident | None, after: Incident) -> Incident:
        if before is not None:
            self._change(connection, before, after)
            return after
        added = ddl.open_alert(self._schema, catalog.ALERT, after.at, _details_of(after))
        after = dataclasses.replace(after, row=connection.execute(added).scalar_one())
        # Who may INSERT and not UPDATE is refused now, before anything is sent: it could not note what became
        # of it, and would tell it again.
        self._change(connection, after, after)
        return after

    def _change(self, connection: Connection, before: Incident, after: Incident) -> None:
        assert after.row is not None
        details = _details_of(after)
        connection.execute(ddl.change_alert(self._schema, after.row, details, was=before.at, at=after.at))

    def note(self, changes: Sequence[Change]) -> None:
        def work(connection: Connection) -> None:
            with connection.begin():
                for before, after in changes:
                    self._change(connection, before, after)

        if not changes:
            return
        try:
            self._run(work)
        except Exception as error:  # noqa: BLE001  # the database went away meanwhile: it was told all the same
            ids = ", ".join(after.id for _, after in changes)
            logger.warning("alert %s: what became of it could not be noted: %s", ids, explain(error))


# By subject, as the details of every run are by table: ``history --table`` finds them.


def _details_of(incident: Incident) -> dict[str, dict[str, str | None]]:
    told = incident.told.isoformat() if incident.told is not None else None
    return {
        incident.subject: {
            "problem": incident.problem,
            "id": incident.id,
            "level": incident.level.name,
            "event": incident.event.value,
            "state": incident.state.value,
            "told": told,
        }
    }


def _from_row(alert: catalog.Alert) -> Incident | None:
    try:
        ((subject, found),) = alert.details.items()
        return Incident(
            problem=found["problem"],
            subject=subject,
            id=found["id"],
            level=Level[found["level"]],
            event=Event(found["event"]),
            state=Delivery(found["state"]),
            since=alert.started_at,
            at=alert.finished_at,
            told=datetime.fromisoformat(found["told"]) if found["told"] else None,
            row=alert.id,
        )
    except (AttributeError, KeyError, TypeError, ValueError):  # somebody's own row
        return None
