"""What a running application knows of its partitions, and the making of those it lacks.

A :class:`Keeper` holds what it has learned of coverage, by parent OID: answers for keys inside it cost no
round trip. Anything else happens on a second connection, at most one a process, opened for the purpose.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from . import catalog, executor, maintenance, rows
from .drivers import backend_pid, reason
from .errors import (
    KeyOutsideLimits,
    LockNotAvailable,
    PartitionError,
    PartitionPending,
    PolicyError,
    WindowRangeError,
)
from .health import Health, health_of
from .periods import KeyValue
from .plan import Coverage, ManagedTable, Partition, plan_rows
from .sessions import Turn, side_connection

OnError: TypeAlias = Literal["log", "raise"]

logger = logging.getLogger("alembic_partitions")

#: Set while a side connection is in use: the copy of the pool's listeners that it carries includes ours.
_inside: ContextVar[bool] = ContextVar("alembic_partitions_inside", default=False)

_BEGAN, _NOTICED = "alembic_partitions.began", "alembic_partitions.noticed"
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|min|h|d)")
_UNITS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(field: str, text: str) -> float:
    """Read a duration, a number and ``ms s min h d``; raise :class:`PolicyError` for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise PolicyError(field=field, problem=f"{text!r} is no duration", remedy='Give one such as "5 min".')
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True, slots=True)
class Known:
    """One table as last seen; ``learned`` tells by partition OID in which generation we first saw it."""

    table: ManagedTable
    coverage: Coverage
    learned: dict[int, int]
    newest: int

    @property
    def key(self) -> str:
        """The name of the partition key."""
        assert self.table.policy is not None
        return self.table.policy.key


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
        self._engine = engine
        self._ddl_url = ddl_url
        self._schema = schema
        self._refresh = seconds("refresh", refresh)
        self._wait = seconds("wait", wait)
        self._on_error = on_error
        self._turn = Turn(engine.dialect.is_async)
        self._due = 0.0
        self._config_schema: str | None = None
        self._generation = 0
        self._tables: dict[int, Known] = {}
        self._by_name: dict[str, tuple[Known, ...]] = {}
        self._pending: dict[int, set[KeyValue]] = {}
        self._callers: set[int] = set()
        self._error: str | None = None

    # -- what an application calls ---------------------------------------------------------------------

    def ensure(self) -> maintenance.Report:
        """Bring every table to its horizon now.

        :raises sqlalchemy.exc.DBAPIError: the database cannot be reached, or refuses the DDL role.
        """
        with self._turn() as _, self._side() as side:
            report = maintenance.ensure(side, schema=self._schema)
            self._load(side)
            return report

    def plan(self) -> tuple[maintenance.TablePlan, ...]:
        """Return what :meth:`ensure` would do now; every plan empty means healthy."""
        with self._side() as side:
            return maintenance.plan(side, schema=self._schema)

    def health(self) -> Health:
        """Tell whether inserts are safe: the plan seen from outside, and what last went wrong. No DDL."""
        try:
            plans = self.plan()
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            return Health(ok=False, error=_told(error))
        return health_of((item.plan for item in plans), self._error)

    # -- what the hooks call ---------------------------------------------------------------------------

    def look_again(self) -> None:
        """Bring tables to their horizon if ``refresh`` has passed since the last look, within ``wait``.

        A failure is logged and shown by :meth:`health`; it is raised only with ``on_error="raise"``.
        """
        if _inside.get() or time.monotonic() < self._due:
            return
        # Until what there is has been seen once, nothing can be looked at: then everybody waits for that.
        with self._turn(wait=not self.has_looked) as ours:
            if not ours or time.monotonic() < self._due:
                return
            try:
                with self._guarded(), self._side() as side:
                    self._look(side)
            finally:
                self._due = time.monotonic() + self._refresh

    def _look(self, side: Connection) -> None:
        report = maintenance.ensure(side, schema=self._schema, give_up_at=time.monotonic() + self._wait)
        self._load(side)
        failed = [result for result in report.results if result.error]
        self._error = "; ".join(f"{result.table}: {result.error}" for result in failed) or None
        if failed and self._on_error == "raise":
            raise LockNotAvailable(table=failed[0].table, reason=failed[0].error)

    def began(self, connection: Connection) -> None:
        """Note that a transaction begins: what is learned from here on it may not see by itself.

        Windows that an earlier transaction waits for are made first, while this one holds no lock.
        """
        if self._pending and not _inside.get():
            self.settle(time.monotonic() + self._wait)
        connection.info[_BEGAN] = self._generation
        connection.info.pop(_NOTICED, None)

    def settle(self, give_up_at: float) -> None:
        """Make the windows that transactions were told to come back for."""
        with self._turn() as _:
            for oid, keys in list(self._pending.items()):
                known = self._tables.get(oid)
                del self._pending[oid]
                if known is None:
                    continue
                try:
                    with self._guarded(), self._side() as side:
                        self._make_windows(side, known, keys, give_up_at)
                except LockNotAvailable as error:
                    logger.info("still waiting to make partitions of %s: %s", known.table, error)
                    self._pending.setdefault(oid, set()).update(keys)
                except PartitionError as error:  # the transaction that asked will be told when it asks again
                    logger.info("no longer making partitions of %s: %s", known.table, error)

    @property
    def has_looked(self) -> bool:
        """Whether what there is has been looked at once."""
        return self._due > 0

    @property
    def is_inside(self) -> bool:
        """Whether this is our own side connection at work, whose events are not the application's."""
        return _inside.get()

    @property
    def has_pending(self) -> bool:
        """Whether a transaction was told to come back for a window that is not there yet."""
        return bool(self._pending) and not _inside.get()

    def candidates(self, name: str, schema: str | None) -> Sequence[Known]:
        """Return the managed tables that a name in a statement may mean."""
        found = self._by_name.get(name, ())
        return found if schema is None else [known for known in found if known.table.schema == schema]

    def look(
        self,
        connection: Connection,
        candidates: Sequence[Known],
        schema: str | None,
        values_of: Callable[[str], list[Any]],
    ) -> None:
        """See to it that the rows about to be sent find their partitions.

        :param values_of: returns the values of a key column, as the driver gets them.
        :raises KeyOutsideLimits: a key lies beyond what an insert may make a partition for.
        :raises PartitionPending: the window cannot be made while this transaction is open.
        """
        looks = [self._view(connection, known, values_of(known.key)) for known in candidates]
        if any(look.lacking for look in looks) and (len(looks) > 1 or schema is None):
            # The name alone does not tell: search_path may lead to a tenant's table, or to nobody's.
            oid = catalog.resolve(connection, schema, candidates[0].table.name)
            looks = [look for look in looks if look.known.table.oid == oid]
        for look in looks:
            if look.lacking:
                self.make(connection, look.known, look.lacking)
            if look.range is not None:
                self._let_notice(connection, look.known, *look.range)

    def make(self, connection: Connection, known: Known, keys: set[KeyValue], believe: bool = True) -> None:
        """Make the windows of keys that have none, on behalf of the transaction on ``connection``.

        :param believe: look into what is known first: another thread may just have made them.
        :raises KeyOutsideLimits: a key is beyond the policy's limits.
        :raises PartitionPending: this transaction, or others like it, hold what ATTACH needs.
        """
        pid = backend_pid(connection)
        self._callers.add(pid)
        try:
            with self._turn() as _:
                fresh = self._tables.get(known.table.oid or 0, known)
                lacking = {k for k in keys if not fresh.coverage.covers(k, k)} if believe else keys
                if lacking:
                    self._make_for(known, lacking)
        finally:
            self._callers.discard(pid)

    def covers(self, known: Known, key: KeyValue) -> bool:
        """Tell whether, as far as is known now, a key has a partition."""
        current = self._tables.get(known.table.oid or 0)
        return current is not None and current.coverage.covers(key, key)

    def known_table(self, schema: str | None, name: str | None) -> Known | None:
        """Return the managed table of that schema and name, also one declared since the last look."""
        if not self.candidates(name or "", schema):
            with self._turn() as _, self._guarded(), self._side() as side:
                self._load(side)
        return next(iter(self.candidates(name or "", schema)), None)

    # -- inside ----------------------------------------------------------------------------------------

    def _make_for(self, known: Known, keys: set[KeyValue]) -> None:
        try:
            with self._guarded(), self._side() as side:
                self._make_windows(side, known, keys, time.monotonic() + self._wait)
        except LockNotAvailable as error:
            if known.table.has_default:
                logger.warning("rows of %s go to its DEFAULT partition: %s", known.table, error)
                return
            self._pending.setdefault(known.table.oid or 0, set()).update(keys)
            windows = {known.table.grid.at(key).suffix for key in keys}
            raise PartitionPending(
                table=str(known.table),
                window=", ".join(sorted(windows)),
                reason=str(error.data["reason"]),
                progress="the partition is made as soon as these locks are free",
            ) from error

    def _make_windows(self, side: Connection, known: Known, keys: set[KeyValue], give_up_at: float) -> None:
        assert self._config_schema is not None
        with side.begin():
            snapshot = catalog.read_snapshot(side, self._config_schema, {str(known.table)})
            table = next((t for t in snapshot.tables if t.oid == known.table.oid), None)
            if snapshot.in_recovery or table is None or table.policy is None or not table.policy.enabled:
                return
            now, found = maintenance.clock(snapshot.now), table
            plan = maintenance.with_free_names(side, lambda taken: plan_rows(found, keys, now, taken))
        try:
            for step in plan.steps:
                executor.create_partition(
                    side, step, user=snapshot.user, give_up_at=give_up_at, callers=self._callers
                )
        finally:
            self._load(side)

    def _load(self, side: Connection) -> None:
        """Learn what there is. Facts are only ever replaced whole, so readers need no lock."""
        with side.begin():
            self._config_schema = maintenance.config_schema(side, self._schema)
            if self._config_schema is None:
                logger.info("there is no partition_config yet; the next look is in %g s", self._refresh)
                return
            tables = catalog.read_snapshot(side, self._config_schema).tables
        generation, known = self._generation + 1, dict[int, Known]()
        for table in tables:
            if (
                table.oid is not None
                and table.problem is None
                and table.policy is not None
                and table.policy.enabled
            ):
                before = self._tables.get(table.oid)
                learned = {
                    p.oid: before.learned.get(p.oid, generation) if before else generation
                    for p in table.partitions
                }
                newest = max(learned.values(), default=0)
                known[table.oid] = Known(table, Coverage.of(table.partitions), learned, newest)
        by_name: dict[str, tuple[Known, ...]] = {}
        for item in known.values():
            by_name[item.table.name] = (*by_name.get(item.table.name, ()), item)
        self._tables, self._by_name = known, by_name
        self._generation = generation  # last: a transaction that begins before this line looks twice

    def _view(self, connection: Connection, known: Known, values: list[Any]) -> _Look:
        """Hold values against what is known, without touching each one if that can be helped."""
        key_type = known.table.key_type
        assert key_type is not None
        if not values:
            return _Look(known)
        try:
            low, high = min(values), max(values)
        except TypeError:  # naive beside aware, dates beside times
            low = high = None
        if _is_native(low, key_type) and _is_native(high, key_type) and known.coverage.covers(low, high):
            return _Look(known, (low, high))
        keys = set(rows.key_values(set(values), key_type, connection))
        if not keys:
            return _Look(known)
        lacking = {key for key in keys if not known.coverage.covers(key, key)}
        return _Look(known, (min(keys), max(keys)), lacking)

    def _let_notice(self, connection: Connection, known: Known, low: KeyValue, high: KeyValue) -> None:
        """Let a transaction that began earlier see partitions made since; see :func:`catalog.notice`."""
        began = connection.info.get(_BEGAN, 0)
        current = self._tables.get(known.table.oid or 0, known)
        if current.newest <= began:
            return
        noticed: set[int] = connection.info.setdefault(_NOTICED, set())
        for part in current.table.partitions:
            new = current.learned[part.oid] > began and part.oid not in noticed
            if new and _touches(part, low, high):
                catalog.notice(connection, part.oid)
                noticed.add(part.oid)

    @contextmanager
    def _side(self) -> Iterator[Connection]:
        token = _inside.set(True)
        try:
            with side_connection(self._engine, self._ddl_url) as connection:
                yield connection
        finally:
            _inside.reset(token)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Never take the application down: what fails here is logged and shown by health()."""
        try:
            yield
        except (KeyOutsideLimits, WindowRangeError, LockNotAvailable, PartitionPending):
            raise  # these are answers, not failures
        except Exception as error:  # a driver raises its own, unwrapped, while it connects
            self._error = _told(error)
            logger.warning("partitions are not kept: %s", self._error)
            if self._on_error == "raise":
                raise


@dataclass(frozen=True, slots=True)
class _Look:
    known: Known
    range: tuple[KeyValue, KeyValue] | None = None
    lacking: set[KeyValue] = field(default_factory=set)


def _is_native(value: Any, key_type: str) -> bool:
    """Tell whether a value compares with bounds as it is, whatever the driver and session."""
    if key_type == "date":
        return value is not None and not isinstance(value, datetime) and hasattr(value, "toordinal")
    return isinstance(value, datetime) and (value.tzinfo is not None) == (key_type == "timestamptz")


def _touches(part: Partition, low: KeyValue, high: KeyValue) -> bool:
    return (part.lower is None or part.lower <= high) and (part.upper is None or low < part.upper)


def _told(error: Exception) -> str:
    return reason(error) if isinstance(error, DBAPIError) else str(error) or type(error).__name__
