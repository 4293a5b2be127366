"""Whether a run is due, by partition_runs and the database's clock; and the run, by one process alone."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from sqlalchemy.util import await_only

from alembic_partitions import maintenance
from alembic_partitions.errors import NoPartitionError, PartitionError, RunUnderWay
from alembic_partitions.keeper import Keeper
from alembic_partitions.locks import one_run, one_schedule
from alembic_partitions.maintenance import Report, Standing
from alembic_partitions.sessions import side_connection
from alembic_partitions.talk import explain

from .duties import AtWork
from .rhythm import Rhythm

logger = logging.getLogger("alembic_partitions")

#: Told how a run went: its report, or what it failed over. For an AsyncKeeper it may be a coroutine function.
OnRun: TypeAlias = "Callable[[Report | None, Exception | None], object]"

# Seconds between two looks at the database, at most: the rhythm is by its clock.
_LONGEST_WAIT = 3600.0
# Seconds until the next look while there is nothing to maintain; while another process is at it; while
# somebody splits or mends.
_UNREADY, _OTHERS, _BUSY = 60.0, 30.0, 60.0
# After a run that failed over a table; doubling, and no longer than the rhythm has patience.
_RETRY = timedelta(minutes=5)


@dataclass(slots=True)
class _Memory:
    """What this process did itself, where partition_runs cannot be written or read."""

    good: datetime | None = None
    failures: int = 0
    failed: datetime | None = None


class Runs:
    """The runs of one keeper's database.

    :param after: called after a run, however it went.
    """

    def __init__(
        self,
        keeper: Keeper,
        rhythm: Rhythm,
        orders: Mapping[str, Any],
        *,
        ensure_first: bool,
        on_run: OnRun | None,
        after: Callable[[], None],
    ) -> None:
        #: When the next run is due, as of the last look.
        self.next_run: datetime | None = None
        self._keeper = keeper
        self._engine = keeper.ddl_engine
        self._rhythm = rhythm
        self._orders = orders
        self._ensure_first = ensure_first
        self._on_run = on_run
        self._after = after
        self._memory = _Memory()
        self._told: dict[str, str] = {}

    def run_if_due(self, at_work: AtWork) -> float:
        """Look, and do it if it is due; return the seconds until the next look."""
        found = self._look()
        if found is None:
            return _UNREADY
        home, standing = found
        wait = self._wait(standing)
        if wait is not None:
            if self._ensure_first:
                with at_work():
                    self._keeper.ensure()
                self._ensure_first = False
            return wait
        self._ensure_first = False  # a run does that
        with suppress(RunUnderWay), one_schedule(self._engine, home):
            found = self._look()  # another process may have done it meanwhile
            if found is None:
                return _UNREADY
            wait = self._wait(found[1])
            return self._run(*found, at_work) if wait is None else wait
        return _OTHERS

    def _look(self) -> tuple[str, Standing] | None:
        """Return where partition_config is, and what has become of runs; ``None`` while there can be none."""
        home, standing = self._read()
        if home is None or standing is None:
            self._tell("state", "nothing is maintained yet: there is no partition_config")
        elif standing.in_recovery:
            self._tell("state", "nothing is maintained yet: this server is a standby")
        else:
            if not standing.known:
                self._tell("state", "partition_runs cannot be read: each process keeps its own time")
            return home, standing
        return None

    def _read(self) -> tuple[str | None, Standing | None]:
        with side_connection(self._engine) as side:
            with side.begin():
                home = maintenance.config_schema(side, self._keeper.schema)
            return home, maintenance.standing(side, home, "maintain") if home is not None else None

    def _wait(self, standing: Standing) -> float | None:
        """Return the seconds until the next look; ``None`` if a run is due."""
        self.next_run = self._due(standing)
        if self.next_run <= standing.now:
            return None
        self._tell("next", f"next partition run: {self._rhythm.shown(self.next_run)}")
        return min((self.next_run - standing.now).total_seconds(), _LONGEST_WAIT)

    def _due(self, standing: Standing) -> datetime:
        memory = self._memory
        # What lies in the future was told by a clock that has been put right.
        past = [at for at in (standing.good, memory.good) if at is not None and at <= standing.now]
        good = max(past, default=None)
        past = [at for at in (standing.failed, memory.failed) if at is not None and at <= standing.now]
        failed = max(past, default=None)
        planned = self._rhythm.after(good) if good is not None else standing.now
        if failed is None or (good is not None and failed < good):
            return planned
        failures = max(standing.failures, memory.failures, 1)
        back_off = min(_RETRY * 2 ** min(failures - 1, 20), self._rhythm.patience)
        retry: datetime = min(failed + back_off, self._rhythm.after(failed))
        return max(planned, retry)

    def _tell(self, about: str, line: str) -> None:
        if line != self._told.get(about):
            self._told[about] = line
            logger.info(line)

    def _run(self, home: str, standing: Standing, at_work: AtWork) -> float:
        try:
            with one_run(self._engine, home, patience=0.0):
                pass
        except RunUnderWay as error:
            # It may take hours, as a split does. The horizon does not wait for it.
            self._tell("next", f"the partition run waits: {error.data['holder']} is at work")
            with at_work():
                self._keeper.ensure()
            return _BUSY
        with at_work():
            wait = self._run_now(standing)
        if wait is not None:
            return wait
        found = self._look()
        return _UNREADY if found is None else self._wait(found[1]) or 0.0

    def _run_now(self, standing: Standing) -> float | None:
        """Run, and tell how it went; return the seconds until the next look where none was made."""
        began = time.monotonic()
        try:
            report = self._maintain()
        except RunUnderWay:
            return _BUSY
        except Exception as error:
            if isinstance(error, PartitionError):
                self._ensure()
            self._done(None, error)
            raise
        if report.in_recovery:
            return _UNREADY
        self._remember(standing.now, report)
        took = time.monotonic() - began
        if report.failure is None:
            logger.info("partition run done in %.1f s: %s", took, _told_of(report))
        else:
            logger.warning("partition run failed after %.1f s: %s", took, report.failure.replace("\n", "; "))
        self._done(report, None)
        return None

    def _maintain(self) -> Report:
        """Maintain; partitions to vacuum that are gone by now are left out."""
        orders = dict(self._orders)
        while True:
            try:
                return self._keeper.maintain(**orders)
            except NoPartitionError as error:
                left = [name for name in orders.get("vacuum", ()) if name != error.name]
                if len(left) == len(orders.get("vacuum", ())):
                    raise
                self._tell(f"vacuum {error.name}", f"no vacuum of {error.name}: it is no partition any more")
                orders["vacuum"] = left

    def _ensure(self) -> None:
        """Bring tables to their horizon, which no orders that are refused have to do with."""
        try:
            self._keeper.ensure()
        except Exception as error:  # noqa: BLE001  # the run has failed in any case, and says over what
            logger.warning("no horizon was made, either: %s", explain(error))

    def _remember(self, began: datetime, report: Report) -> None:
        if report.failure is None:
            self._memory = _Memory(good=began)
        else:
            self._memory.failures += 1
            self._memory.failed = began

    def _done(self, report: Report | None, error: Exception | None) -> None:
        self._after()
        if self._on_run is None:
            return
        try:
            answer = self._on_run(report, error)
            if self._engine.dialect.is_async and inspect.isawaitable(answer):
                await_only(answer)
        except Exception:
            logger.exception("on_run of the partition schedule")


def _told_of(report: Report) -> str:
    counts = {what: report.count(what) for what in ("created", "detached", "archived", "dropped")}
    counts["analyzed"] = report.count("tended")
    tables = len(report.results)
    return ", ".join(
        [f"{tables} table{'s' * (tables != 1)}", *(f"{n} {what}" for what, n in counts.items() if n)]
    )
