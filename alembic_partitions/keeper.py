"""Partitions for a running application: the looking, and the making of what is lacking.

Everything that changes something happens on a second connection, at most one a process at a time, opened for
the purpose. No look takes longer than ``wait``, and none takes the application down.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, TypeAlias

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError

from . import catalog, executor, maintenance, rows
from .drivers import backend_pid, reason, session_parameter, sqlstate_of, told_of_row
from .errors import (
    KeyOutsideLimits,
    LockNotAvailable,
    PartitionError,
    PartitionPending,
    PolicyError,
    StepFailed,
    WindowRangeError,
)
from .health import WARN_DAYS, Health
from .keys import is_encoded
from .knowledge import Knowledge, Known
from .periods import KeyValue
from .plan import CreatePartition, ManagedTable, plan_rows
from .sessions import Turn, dedicated_engine, side_connection
from .standing import survey

OnError: TypeAlias = Literal["log", "raise"]

logger = logging.getLogger("alembic_partitions")

#: Set while it is our turn: the side connection carries a copy of the pool's listeners, ours among them, and
#: what a log handler of the user's does on the same engine meanwhile must not wait for us.
_inside: ContextVar[bool] = ContextVar("alembic_partitions_inside", default=False)

# After a look that failed the next one comes sooner than ``refresh``, in seconds; doubling.
_SOON = 10.0
# The next look comes by chance between this share of ``refresh`` and all of it: processes that a deploy, or a
# server that has come back, set in step would go on asking all at once.
_EARLIEST = 0.75
# How long, in seconds, what goes on going wrong is not logged again.
_REPEAT = 60.0
# How long a pending window is left alone after a try in vain, in seconds, doubling.
_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.05, 1.0

# How much longer than ``wait`` an insert waits where others are just making partitions of the same table, and
# nothing else is in the way: one of them is about to have made its own.
_FOR_COMPETITORS = 5.0
# Who was told to come back is remembered up to this number.
_MOST_TOLD = 10_000

_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|min|h|d)")
_CHECK_VIOLATION = "23514"
# "Partition key of the failing row contains (ts) = (2026-11-22 00:00:00+13).", in any language.
_DETAIL = re.compile(r"\(.*?\) = \((.*)\)")

_UNITS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(field: str, text: str) -> float:
    """Read a duration, a number and ``ms s min h d``; raise :class:`PolicyError` for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise PolicyError(field=field, problem=f"{text!r} is no duration", remedy='Give one such as "5 min".')
    return float(match[1]) * _UNITS[match[2]]


class Keeper:
    """Keeps the partitions of one engine's database ready; made by :func:`alembic_partitions.keep`."""

    def __init__(
        self,
        engine: Engine,
        *,
        ddl_url: str | URL | None = None,
        schema: str | None = None,
        refresh: str = "5 min",
        wait: str = "2 s",
        on_error: OnError = "log",
    ) -> None:
        if on_error not in ("log", "raise"):
            raise PolicyError(
                field="on_error", problem=f"{on_error!r} is unknown", remedy='Use "log" or "raise".'
            )
        self.knowledge = Knowledge()
        #: What :meth:`start` has begun, a ``contrib.schedule.Schedule``.
        self.schedule: Any = None
        self._engine = engine
        self._schema = schema
        self._refresh = seconds("refresh", refresh)
        self._wait = seconds("wait", wait)
        self._on_error = on_error
        self._ddl_engine = None if ddl_url is None else _ddl_engine(engine, ddl_url, self._wait)
        self._turn = Turn(engine.dialect.is_async)
        self._due = 0.0
        self._has_connected = False
        self._soon = _SOON / 2
        self._pending: dict[int, set[KeyValue]] = {}
        # Threads or tasks that were told to come back.
        self._told: set[int] = set()
        self._back_off = _FIRST_BACK_OFF
        self._settle_at = 0.0
        # Windows whose rows go to DEFAULT until the next look, by table and begin.
        self._to_default: set[tuple[int, KeyValue]] = set()
        self._callers: set[int] = set()
        self._error: str | None = None
        # Tables of which all partitions are learned: a row was not for the horizon. Of the others these are,
        # however long the history.
        self._whole = set[str]()
        # What was logged last, and when.
        self._complained: tuple[str, float] | None = None
        # Inserts that PostgreSQL found no partition for, by table.
        self._met: Counter[str] = Counter()

    # -- what an application calls ---------------------------------------------------------------------

    def ensure(self) -> maintenance.Report:
        """Bring every table to its horizon now.

        :raises sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses the DDL role.
        """
        with self._our_turn() as _, self._side() as side:
            report = maintenance.ensure(side, schema=self._schema)
            self._load(side)
            self._error = report.failure
            return report

    def maintain(
        self,
        *,
        retention: str | None = None,
        archive_to: str | None = None,
        analyze: bool = True,
        vacuum: Sequence[str] = (),
    ) -> maintenance.Report:
        """Bring every table to its horizon, remove what its retention lets go, keep its statistics.

        It uses two connections of its own for as long as it takes; inserts do not wait for it. One run at a
        time is under way in a database, so any number of processes may call it.

        :param retention: in place of the policy's own, where a single table is managed.
        :param archive_to: the folder that ``on_expiry="archive"`` exports to.
        :param analyze: whether to keep statistics.
        :param vacuum: partitions to vacuum; ``"closed"`` stands for those that have just closed.
        :raises sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses the DDL role.
        :raises RunUnderWay: another run does not end within a minute.
        """
        orders = maintenance.Orders(retention, archive_to, analyze, tuple(vacuum))
        with apart(), self._side() as side:
            report = maintenance.maintain(side, schema=self._schema, orders=orders)
        with self._our_turn() as _, self._side() as side:
            self._load(side)
        self._error = report.failure
        return report

    def start(
        self,
        *,
        every: str | None = None,
        cron: str | None = None,
        timezone: str = "UTC",
        alerts: Any = None,
        on_run: Callable[[maintenance.Report | None, Exception | None], object] | None = None,
        **orders: Any,
    ) -> None:
        """Run :meth:`maintain` again and again in a thread, and at once if a run is overdue.

        Any number of processes may start it: each run happens once. A child of a fork goes on by itself.

        :param every: how long after the begin of the last run the next is due, ``"12h"``.
        :param cron: five fields, ``"0 0 * * *"``, in local time of ``timezone``.
        :param alerts: an ``Alerts``; told to look after each run, and every five minutes.
        :param on_run: called with the report of a run, or what it failed over.
        :param orders: as :meth:`maintain` takes them.
        :raises PolicyError: what is told cannot be followed, or it has been started already.
        :raises ExtraMissing: APScheduler is not installed.
        """
        from .contrib import schedule

        self.schedule = schedule.start(
            self, every=every, cron=cron, timezone=timezone, alerts=alerts, on_run=on_run, **orders
        )

    def stop(self, timeout: str = "30 s") -> None:
        """End what :meth:`start` began; a run that is under way may end within ``timeout``."""
        if self.schedule is not None:
            self.schedule.stop(seconds("timeout", timeout))

    @property
    def running(self) -> bool:
        """Whether :meth:`start` has been called, and :meth:`stop` has not."""
        return self.schedule is not None and bool(self.schedule.running)

    def plan(self) -> tuple[maintenance.TablePlan, ...]:
        """Return what :meth:`ensure` would do now; every plan empty means healthy."""
        # Without a turn: it only reads, and whoever asks must not wait for what is being made meanwhile.
        with apart(), self._side() as side:
            return maintenance.plan(side, schema=self._schema)

    def health(self, *, warn_days: float = WARN_DAYS) -> Health:
        """Tell whether inserts are safe: the plan seen from outside, and what last went wrong. No DDL.

        :param warn_days: a runway in days that is worth a warning if it is shorter.
        :return: never raises: where the database cannot be reached, that is the ``error``.
        """
        met = self.no_partition_errors
        try:
            # Without a turn: it only reads, and whoever asks must not wait for what is being made meanwhile.
            with apart(), self._side() as side:
                return survey(side, schema=self._schema, warn_days=warn_days, error=self._error, met=met)
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            return Health(ok=False, error=_told(error), no_partition_errors=met)

    @property
    def ddl_engine(self) -> Engine:
        """The engine whose role makes the partitions: that of ``ddl_url``, or the application's own."""
        return self._ddl_engine or self._engine

    @property
    def schema(self) -> str | None:
        """Where partition_config lives; ``None`` finds it by our mark."""
        return self._schema

    @property
    def last_error(self) -> str | None:
        """What last went wrong in a hook or a run of this process; ``None`` when it has been made good."""
        return self._error

    @property
    def no_partition_errors(self) -> dict[str, int]:
        """How many inserts of this process found no partition, by ``schema.table``."""
        return dict(self._met)

    # -- what the hooks call ---------------------------------------------------------------------------

    def look_again(self) -> None:
        """Bring tables to their horizon if ``refresh`` has passed since the last look, within ``wait``.

        A failure is logged and shown by :meth:`health`; it is raised only with ``on_error="raise"``.
        """
        if _inside.get() or time.monotonic() < self._due:
            return
        # Until what there is has been seen once, nothing can be looked at: then everybody waits for that.
        give_up_at = time.monotonic() + self._wait
        with self._our_turn(timeout=0 if self.has_looked else self._wait) as ours:
            if not ours or time.monotonic() < self._due:
                return
            try:
                # At the start of an application all its processes may want a connection at once.
                with self._guarded(), self._side(0.0 if self.has_looked else give_up_at) as side:
                    self._look(side, give_up_at)
            finally:
                # What stays wrong is looked at less and less often, down to ``refresh``.
                self._soon = min(self._soon * 2, self._refresh) if self._error else _SOON / 2
                pause = min(self._soon, self._refresh) if self._error else self._refresh
                self._due = time.monotonic() + pause * random.uniform(_EARLIEST, 1)

    def look(
        self,
        connection: Connection,
        candidates: Sequence[Known],
        schema: str | None,
        values_of: Callable[[str], list[Any]],
    ) -> None:
        """See to it that the rows about to be sent find their partitions.

        :param candidates: the tables that the statement may mean, see :meth:`Knowledge.candidates`.
        :param values_of: returns the values of a key column, as the driver gets them.
        :raises KeyOutsideLimits: a key lies beyond what an insert may make a partition for.
        :raises PartitionPending: the window cannot be made while this transaction is open.
        """
        if _inside.get():
            return
        views = [self.knowledge.view(connection, known, values_of(known.key)) for known in candidates]
        if any(view.lacking for view in views) and (len(views) > 1 or schema is None):
            # The name alone does not tell: search_path may lead to a tenant's table, or to nobody's. Before
            # anything is learned: each tenant's history may be long.
            oid = catalog.resolve(connection, schema, candidates[0].table.name)
            views = [view for view in views if view.known.oid == oid]
        lacking = {str(view.known.table) for view in views if view.lacking}
        if not lacking <= self._whole and self._learn_whole(lacking):
            learned = [self.knowledge.current(view.known) for view in views]
            views = [
                self.knowledge.view(connection, known, values_of(known.key))
                for known, view in zip(learned, views, strict=True)
                if known is not None and known.key == view.known.key
            ]
        for view in views:
            # Of what could not be learned whole nothing is refused: the row may have its partition, or go to
            # DEFAULT. Where neither is there, PostgreSQL says so: see answer().
            if view.lacking and str(view.known.table) in self._whole:
                self.make(connection, view.known, view.lacking)
            if view.range is not None:
                self.knowledge.let_notice(connection, view.known, *view.range)

    def make(self, connection: Connection, known: Known, keys: set[KeyValue], believe: bool = True) -> None:
        """Make the windows of keys that have none, on behalf of the transaction on ``connection``.

        :param believe: look into what is known first: another thread may just have made them.
        :raises KeyOutsideLimits: a key is beyond the policy's limits.
        :raises PartitionPending: this transaction, or others like it, hold what ATTACH needs.
        """
        if known.table.has_default:
            keys = {key for key in keys if (known.oid, _begin(known, key)) not in self._to_default}
            if not keys:
                return
        if believe and known.oid in self._pending:
            # It could not be made when this transaction began. One that holds what is needed is in the way of
            # the others who try: it lets go at once, without a look from a second connection.
            mine = catalog.blockers(connection, known.oid, ours=True)
            if mine:
                raise self._pend(known, keys, "; ".join(map(str, mine)))
        pid, give_up_at = backend_pid(connection), time.monotonic() + self._wait
        self._callers.add(pid)
        try:
            with self._our_turn(timeout=self._wait) as ours:
                if not ours:
                    raise self._pend(known, keys, "other threads of this process wait to make partitions")
                fresh = self.knowledge.current(known) or known
                lacking = {key for key in keys if not fresh.coverage.covers(key, key)} if believe else keys
                if lacking:
                    self._make_for(known, lacking, give_up_at)
        finally:
            self._callers.discard(pid)

    def began(self, connection: Connection) -> None:
        """Note that a transaction begins; make what an earlier one waits for while this one holds no lock."""
        me = self._turn.taker()
        came_back = me in self._told
        self._told.discard(me)
        if len(self._told) > _MOST_TOLD:  # who never came back
            self._told.clear()
        self.settle(patience=self._wait if came_back else 0)
        self.knowledge.began(connection)

    def settle(self, patience: float) -> None:
        """Make the windows that transactions were told to come back for.

        :param patience: seconds to wait for them, for who came back; with 0 try once, and not too often.
        """
        if not self._pending or _inside.get() or (not patience and time.monotonic() < self._settle_at):
            return
        give_up_at = time.monotonic() + patience
        with self._our_turn(timeout=patience) as ours:
            for oid, keys in list(self._pending.items()) if ours else ():
                del self._pending[oid]
                known = self.knowledge.by_oid(oid)
                if known is not None:
                    self._settle_table(known, keys, give_up_at, came_back=patience > 0)

    def _settle_table(self, known: Known, keys: set[KeyValue], give_up_at: float, came_back: bool) -> None:
        try:
            # Others' windows: whose transaction begins or ends here must not be told of a failure.
            with self._guarded(may_raise=False), self._side_to_make(known, give_up_at) as side:
                self._make_windows(side, known, keys, give_up_at, _FOR_COMPETITORS if came_back else 0.0)
            self._back_off = _FIRST_BACK_OFF
        except LockNotAvailable as error:
            logger.info("still waiting to make partitions of %s: %s", known.table, error)
            self._pending.setdefault(known.oid, set()).update(keys)
            self._settle_at = time.monotonic() + self._back_off
            self._back_off = min(self._back_off * 2, _LONGEST_BACK_OFF)
        except PartitionError as error:  # the transaction that asked will be told when it asks again
            logger.info("no longer making partitions of %s: %s", known.table, error)

    def answer(self, connection: Connection, told: Mapping[str, str | None]) -> PartitionError | None:
        """Make the partition that PostgreSQL did not find for a row, and return what to raise instead.

        :param told: what the server said of the row, see :func:`~alembic_partitions.drivers.told_of_row`.
        :return: ``None`` where its own error had better stand.
        """
        schema, table = told.get("schema_name"), told.get("table_name")
        if told.get("constraint_name") or not schema or not table:
            return None  # a CHECK of the user's
        known, match = self.find(schema, table), _DETAIL.search(told.get("detail") or "")
        if known is not None:
            self._met[str(known.table)] += 1
        if known is None or match is None:
            return None
        try:
            key = self._read_key(connection, known, match[1])
            if key is None:
                return None
            self.make(connection, known, {key}, believe=False)
        except PartitionError as refused:
            return refused
        if not self.covers(known, key):
            return None  # the keeper has logged why; PostgreSQL's own error stands
        return PartitionPending(
            table=str(known.table),
            window=known.table.grid.at(key).suffix,
            reason="PostgreSQL found none for a row whose key did not show before it was sent",
            progress="the partition has been made meanwhile",
        )

    def _read_key(self, connection: Connection, known: Known, printed: str) -> KeyValue | None:
        """Read a key as PostgreSQL prints it: in the session's TimeZone, and in its DateStyle."""
        key_type = known.table.key_type
        assert key_type is not None
        style, zone = (session_parameter(connection, name) or "" for name in ("DateStyle", "TimeZone"))
        if style.startswith("ISO") or is_encoded(key_type):
            return next(iter(rows.key_values([printed], key_type, connection)), None)
        with self._our_turn(timeout=self._wait) as ours, self._guarded(may_raise=False):
            if ours:
                with self._side() as side, side.begin():
                    return catalog.read_key(side, printed, key_type, style, zone)
        return None

    @contextmanager
    def watching(self, connection: Connection) -> Iterator[None]:
        """Watch over rows that a driver's own COPY sends, past SQLAlchemy, on ``connection``.

        They find the horizon. Where PostgreSQL answers "no partition" all the same, the partition is made,
        and the error is a :class:`PartitionPending`: run the transaction again.
        """
        try:
            yield
        except Exception as error:
            instead = self.answer_to(connection, error)
            if instead is None:
                raise
            raise instead from error

    def answer_to(self, connection: Connection, error: BaseException) -> PartitionError | None:
        """Return what to raise instead of a driver's own error, if it says "no partition"."""
        driver_error = error.orig if isinstance(error, DBAPIError) else error
        if driver_error is None or sqlstate_of(driver_error) != _CHECK_VIOLATION or self.is_inside:
            return None
        return self.answer(connection, told_of_row(driver_error))

    @property
    def has_looked(self) -> bool:
        """Whether what there is has been looked at once."""
        return self._due > 0

    @property
    def is_inside(self) -> bool:
        """Whether this is our own side connection at work, whose events are not the application's."""
        return _inside.get()

    def covers(self, known: Known, key: KeyValue) -> bool:
        """Tell whether, as far as is known now, a key has a partition."""
        current = self.knowledge.current(known)
        return current is not None and current.coverage.covers(key, key)

    def find(self, schema: str, name: str) -> Known | None:
        """Return the managed table of that schema and name, also one declared since the last look."""
        if not self.knowledge.candidates(name, schema):
            with self._our_turn(timeout=self._wait) as ours:
                if ours:
                    with self._guarded(), self._side() as side:
                        self._load(side)
        return next(iter(self.knowledge.candidates(name, schema)), None)

    # -- inside ----------------------------------------------------------------------------------------

    def _look(self, side: Connection, give_up_at: float) -> None:
        seen = list[ManagedTable]()
        report = maintenance.ensure(
            side,
            schema=self._schema,
            give_up_at=give_up_at,
            known_failure=self._error,
            seen=seen.extend,
        )
        if seen and not report.created and not self._whole:
            self.knowledge.learn(seen)
        else:
            self._load(side)
        self._to_default.clear()
        known_error, self._error = self._error, report.failure
        for failed in [result for result in report.results if result.failure]:
            if self._error != known_error and not failed.error:  # an error has been logged as it came
                logger.warning("partitions are not kept: %s: %s", failed.table, failed.failure)
            if self._on_error == "raise":
                raise StepFailed(table=failed.table, partition="(several)", reason=failed.failure)

    def _make_for(self, known: Known, keys: set[KeyValue], give_up_at: float) -> None:
        # Where DEFAULT takes the rows there is no need to wait, and no limit to enforce.
        default = known.table.has_default
        try:
            until, grace = (time.monotonic(), 0.0) if default else (give_up_at, _FOR_COMPETITORS)
            with self._guarded(), self._side_to_make(known, until) as side:
                self._make_windows(side, known, keys, until, grace)
        except (LockNotAvailable, KeyOutsideLimits, WindowRangeError) as error:
            if default:
                logger.warning("rows of %s go to its DEFAULT partition: %s", known.table, error)
            elif isinstance(error, LockNotAvailable):
                raise self._pend(known, keys, str(error.data["reason"])) from error
            else:
                raise
        if default:
            left = {(known.oid, _begin(known, key)) for key in keys if not self.covers(known, key)}
            self._to_default |= left

    def _pend(self, known: Known, keys: set[KeyValue], why: str) -> PartitionPending:
        """Remember windows that could not be made, and return what to tell the transaction in need."""
        self._pending.setdefault(known.oid, set()).update(keys)
        self._told.add(self._turn.taker())
        windows = {known.table.grid.at(key).suffix for key in keys}
        return PartitionPending(
            table=str(known.table),
            window=", ".join(sorted(windows)),
            reason=why,
            progress="the partition is made as soon as that is over",
        )

    def _make_windows(
        self, side: Connection, known: Known, keys: set[KeyValue], give_up_at: float, grace: float = 0.0
    ) -> None:
        self._whole.add(str(known.table))
        with side.begin():
            steps, user = self._steps_for(side, known, keys)
        try:
            for step in steps:
                executor.create_partition(
                    side, step, user=user, give_up_at=give_up_at, grace=grace, callers=self._callers
                )
        finally:
            self._load(side)

    def _steps_for(
        self, side: Connection, known: Known, keys: set[KeyValue]
    ) -> tuple[tuple[CreatePartition, ...], str]:
        """Return what to make for these keys, and as whom; nothing on a standby or for a disabled table."""
        home = maintenance.config_schema(side, self._schema)
        if home is None:
            return (), ""
        # By its name: where the table was dropped and declared again, that is the one rows go to now.
        snapshot = catalog.read_snapshot(side, home, {str(known.table)})
        now = maintenance.clock(snapshot.now)
        for table in snapshot.tables if not snapshot.in_recovery else ():
            if table.policy is not None and table.policy.enabled:
                plan = maintenance.with_free_names(side, partial(plan_rows, table, keys, now))
                return plan.steps, snapshot.user
        return (), ""

    def _learn_whole(self, tables: set[str]) -> bool:
        """Learn all partitions of some tables, not only their horizons; return whether that was done."""
        give_up_at = time.monotonic() + self._wait
        with self._our_turn(timeout=self._wait) as ours:
            if ours and not tables <= self._whole:
                with self._guarded(may_raise=False), self._side(give_up_at) as side:
                    before = set(self._whole)
                    self._whole |= tables
                    try:
                        self._load(side)
                    except BaseException:
                        self._whole = before
                        raise
        return tables <= self._whole

    def _load(self, side: Connection) -> None:
        with side.begin():
            home = maintenance.config_schema(side, self._schema)
            if home is None:
                logger.info("there is no partition_config yet; the next look is in %g s", self._refresh)
                self.knowledge.learn(())
                return
            tables = catalog.read_snapshot(side, home, None, "horizon", maintenance.rehearsed()).tables
            whole = iter(catalog.with_partitions(side, [t for t in tables if str(t) in self._whole]))
            self.knowledge.learn([next(whole) if str(t) in self._whole else t for t in tables])

    @contextmanager
    def _our_turn(self, timeout: float | None = None) -> Iterator[bool]:
        with self._turn(timeout) as ours, apart():
            yield ours

    @contextmanager
    def _side(self, give_up_at: float = 0.0) -> Iterator[Connection]:
        with side_connection(self.ddl_engine, give_up_at) as side:
            self._has_connected = True
            yield side

    @contextmanager
    def _side_to_make(self, known: Known, give_up_at: float) -> Iterator[Connection]:
        """Open a side connection for an insert's sake.

        :raises LockNotAvailable: it was to be had before, but is not now: many processes may want one.
        """
        with ExitStack() as stack:
            try:
                side = stack.enter_context(self._side(give_up_at))
            except Exception as error:
                if not self._has_connected:
                    raise
                why = f"no connection to make it on is to be had ({_told(error)})"
                raise LockNotAvailable(table=str(known.table), reason=why) from error
            yield side

    def _complain(self, what: str) -> None:
        """Log what goes wrong, the same once in a while: with each insert it would be a flood."""
        now = time.monotonic()
        if self._complained is None or self._complained[0] != what or now > self._complained[1] + _REPEAT:
            self._complained = what, now
            logger.warning("partitions are not kept: %s", what)

    @contextmanager
    def _guarded(self, may_raise: bool = True) -> Iterator[None]:
        """Never take the application down: what fails here is logged and shown by health()."""
        try:
            yield
        except (KeyOutsideLimits, WindowRangeError, LockNotAvailable, PartitionPending):
            raise  # these are answers, not failures
        except Exception as error:  # a driver raises its own, unwrapped, while it connects
            self._error = _told(error)
            self._complain(self._error)
            if may_raise and self._on_error == "raise":
                raise


@contextmanager
def apart() -> Iterator[None]:
    """Let what happens on a side connection be none of the hooks' business."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def _ddl_engine(engine: Engine, url: str | URL, wait: float) -> Engine:
    try:
        return dedicated_engine(engine, url, connect_timeout=wait)
    except (ArgumentError, ValueError):  # whose texts repeat the URL, and with it the password
        raise PolicyError(
            field="ddl_url",
            problem="it is no database URL",
            remedy="Write postgresql://role:password@host/database, or leave it out.",
        ) from None


def _begin(known: Known, key: KeyValue) -> KeyValue:
    try:
        return known.table.grid.at(key).begin
    except WindowRangeError:
        return key


def _told(error: Exception) -> str:
    return reason(error) if isinstance(error, DBAPIError) else str(error) or type(error).__name__
