"""One deploy at a time: the migration lock, the migration under it, then the horizon."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event, select, true

from . import catalog, maintenance
from .errors import ConfigurationError, CoverageMissing, SettingError, UpgradeLockTimeout
from .locks import UpgradeLock, answer
from .sessions import side_connection

if TYPE_CHECKING:  # a web process imports this module, and does not pay for Alembic
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

logger = logging.getLogger("alembic_partitions")

#: Seconds to wait for the lock, unless a variable, an argument or ``--lock-timeout`` says otherwise.
DEFAULT_LOCK_TIMEOUT = 600.0
LOCK_TIMEOUT_VARIABLES = ("ALEMBIC_PARTITIONS_LOCK_TIMEOUT", "MIGRATION_LOCK_TIMEOUT_SECONDS")

# The function an Alembic command gives its environment; tools that drive Alembic themselves use both styles.
_UPGRADES = {"upgrade", "do_upgrade"}
_LOCKED = _UPGRADES | {"downgrade", "do_downgrade", "stamp", "do_stamp"}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds
_TIMEOUT_OPTION = "alembic_partitions_lock_timeout"
_RUNS = "alembic_partitions.upgrades"


class AlembicContext(Protocol):
    """What ``alembic.context`` and an ``EnvironmentContext`` have in common."""

    def get_context(self) -> MigrationContext:
        """Return the migration at hand."""


@contextmanager
def upgrading(context: AlembicContext, *, lock_timeout: float | None = None) -> Iterator[None]:
    """Run migrations under the lock, committed by themselves, and extend the horizon afterwards.

    In ``env.py``, in place of ``with context.begin_transaction():``. Upgrade, downgrade and stamp are locked,
    upgrade alone extends the horizon; other commands, ``--sql`` and other databases run as without it.
    Where ``env.py`` has begun a transaction of its own, lock and horizon last until that connection has gone
    back to its pool, since the commit comes later.

    :param context: ``alembic.context``, after ``context.configure()``.
    :param lock_timeout: seconds to wait for the lock (default: ``ALEMBIC_PARTITIONS_LOCK_TIMEOUT``, then
        ``MIGRATION_LOCK_TIMEOUT_SECONDS``, then 600).
    :raises UpgradeLockTimeout: others kept the lock; nothing was migrated.
    :raises UpgradeLockLost: our session ended on the way; the migration was rolled back.
    :raises CoverageMissing: migrated, but a table has no partition for the current window.
    """
    migration = context.get_context()
    if migration in _inside:
        yield
        return
    _inside.add(migration)
    # fileConfig() in every env.py template silences the loggers that alembic.ini does not name.
    logger.disabled = False
    try:
        with _locked(migration, lock_timeout), migration.begin_transaction():
            yield
    finally:
        _inside.discard(migration)


@contextmanager
def guarding(
    *,
    lock_timeout: float | None = None,
    prepare: Callable[[Config], None] | None = None,
    inspect: Callable[[Connection], None] | None = None,
) -> Iterator[None]:
    """Run Alembic's commands inside :func:`upgrading`, whatever the project's ``env.py`` does.

    Also where it does so itself, and where it forgot ``begin_transaction()``.

    :param lock_timeout: goes before every other setting.
    :param prepare: is handed the project's configuration before ``env.py`` runs.
    :param inspect: is handed each connection of ``env.py``, configured, before anything is sent.
    """

    def guard(environment: EnvironmentContext) -> None:
        configure, run_migrations = environment.configure, environment.run_migrations

        def configure_and_look(*arguments: Any, **options: Any) -> None:
            configure(*arguments, **options)
            connection = environment.get_context().connection
            if inspect is not None and isinstance(connection, Connection):
                inspect(connection)

        def run(**arguments: Any) -> None:
            with upgrading(environment):
                run_migrations(**arguments)

        # On the instance: alembic.context forwards to it, while a subclass would not be seen.
        environment.configure = configure_and_look  # type: ignore[method-assign]
        environment.run_migrations = run  # type: ignore[method-assign]
        environment.begin_transaction = lambda: upgrading(environment)  # type: ignore[method-assign]

    with _environments(prepare, guard, **{_TIMEOUT_OPTION: lock_timeout}):
        yield


@contextmanager
def visiting(
    visit: Callable[[Connection], object], *, prepare: Callable[[Config], None] | None = None
) -> Iterator[None]:
    """Let Alembic's next command call ``visit`` with each connection of ``env.py``, and do no more."""

    def look(revision: object, migration: MigrationContext) -> list[Any]:
        assert migration.connection is not None
        visit(migration.connection)
        return []

    with _environments(prepare, None, fn=look, dont_mutate=True):
        yield


_inside: WeakSet[MigrationContext] = WeakSet()


@contextmanager
def _environments(
    prepare: Callable[[Config], None] | None,
    adjust: Callable[[EnvironmentContext], None] | None,
    **changed: Any,
) -> Iterator[None]:
    from alembic import command

    # Alembic has no hook between a command and its environment; under this name every command of every
    # release so far looks it up.
    names = vars(command)
    usual = names["EnvironmentContext"]

    def make(config: Config, script: ScriptDirectory, **options: Any) -> EnvironmentContext:
        if prepare is not None:
            prepare(config)
        environment: EnvironmentContext = usual(config, script, **{**options, **changed})
        if adjust is not None:
            adjust(environment)
        return environment

    names["EnvironmentContext"] = make
    try:
        yield
    finally:
        names["EnvironmentContext"] = usual


@contextmanager
def _locked(migration: MigrationContext, lock_timeout: float | None) -> Iterator[None]:
    command = getattr(migration.opts.get("fn"), "__name__", None)
    connection = migration.connection
    if (
        migration.as_sql
        or command not in _LOCKED
        or connection is None
        or migration.dialect.name != "postgresql"
    ):
        yield
        return
    seconds = _lock_timeout(migration, lock_timeout)
    outer = connection.get_transaction()
    # One that waits for the end of the same outer transaction holds the lock already.
    run = _runs(connection.info).get(_version_table(migration)) or _Run(migration, connection)
    try:
        run.take(seconds, _Waiting(migration, connection, command in _UPGRADES))
        yield
        run.extends = run.extends or command in _UPGRADES
    except BaseException:
        run.extends = False
        raise
    finally:
        if outer is None or connection.get_transaction() is not outer:
            run.finish()
        else:
            run.only_if_committed = True


def _lock_timeout(migration: MigrationContext, given: float | None) -> float:
    told: float | None = migration.opts.get(_TIMEOUT_OPTION)
    if told is not None or given is not None:
        return told if told is not None else float(given or 0)
    for name in LOCK_TIMEOUT_VARIABLES:
        value = os.environ.get(name)
        if value:
            with suppress(ValueError):
                if float(value) >= 0:
                    return float(value)
            raise SettingError(name=name, value=value, expected="a number of seconds")
    return DEFAULT_LOCK_TIMEOUT


class _Waiting:
    """What may be asked on the migration's own connection before the lock is ours, and nothing more."""

    def __init__(self, migration: MigrationContext, connection: Connection, is_upgrade: bool) -> None:
        self._migration, self._connection = migration, connection
        self._level = connection.get_isolation_level() if connection.in_transaction() else None
        # In a transaction of env.py's own the first query would freeze what it sees of alembic_version.
        frozen = self._level in {"REPEATABLE READ", "SERIALIZABLE"}
        self.may_be_at_head = is_upgrade and not frozen

    def at_head(self) -> bool:
        """Return whether there is nothing to do: here, as this connection's search_path may be a tenant's."""
        heads = self._migration.get_current_heads()
        steps = list(self._migration.opts["fn"](heads, self._migration))
        self.keep_alive()
        # Without heads Alembic makes its version table yet.
        return bool(heads) and not steps

    def keep_alive(self) -> None:
        """Say something, before idle_session_timeout ends the session, and keep no snapshot."""
        if self._level in {None, "AUTOCOMMIT"}:
            self._connection.scalar(select(true()))
        else:
            answer(self._connection)
        if self._level is None:
            self._connection.rollback()


def _version_table(migration: MigrationContext) -> tuple[str, str | None]:
    return migration.version_table, migration.version_table_schema


def _runs(info: dict[Any, Any]) -> dict[tuple[str, str | None], _Run]:
    """Return what is under way on a connection, kept where the pool finds it when it takes it back."""
    runs: dict[tuple[str, str | None], _Run] = info.setdefault(_RUNS, {})
    return runs


class _Run:
    """The lock for one migration connection, and what is due once its work is committed."""

    def __init__(self, migration: MigrationContext, connection: Connection) -> None:
        self.extends = False
        self.only_if_committed = False
        self._committed = self._finished = False
        self._home = maintenance.config_home(migration)
        self._migrations = connection
        self._lock = UpgradeLock(connection.engine, *_version_table(migration))
        # Before every commit: the whole run's, one per migration, before an autocommit_block, env.py's own.
        for name in ("commit", "prepare_twophase", "commit_twophase"):
            event.listen(connection, name, self._before_commit)
        # The record's own dictionary: it is there when the pool takes the connection back.
        self._name, self._siblings = _version_table(migration), _runs(connection.info)
        self._siblings[self._name] = self
        event.listen(connection.engine.pool, "checkin", _checked_in)

    def take(self, seconds: float, waiting: _Waiting) -> None:
        """Take the lock: shared where there is nothing to do, so that many replicas may find that at once."""
        deadline = time.monotonic() + seconds
        wait = _FIRST_PAUSE
        while not self._try(waiting):
            database = self._lock.database
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise UpgradeLockTimeout(database=database, seconds=seconds, holder=self._lock.holders())
            if wait == _FIRST_PAUSE:
                logger.info("waiting for the migration lock of %s (%s)", database, self._lock.holders())
            self._lock.pause(min(random.uniform(wait / 2, wait), remaining))
            waiting.keep_alive()
            wait = min(wait * 2, _LONGEST_PAUSE)

    def finish(self) -> None:
        """Extend the horizon where it is due, and let go of the lock. Once: a connection that dies goes back
        to its pool before the migration's own end is reached."""
        if self._finished:
            return
        self._finished = True
        self._siblings.pop(self._name, None)
        try:
            if self.extends and (self._committed or not self.only_if_committed):
                _extend_horizon(self._migrations.engine, self._home)
        finally:
            for name in ("commit", "prepare_twophase", "commit_twophase"):
                event.remove(self._migrations, name, self._before_commit)
            self._lock.let_go()

    def _try(self, waiting: _Waiting) -> bool:
        if self._lock.exclusive:
            return True
        if waiting.may_be_at_head:
            if not self._lock.take(shared=True):
                return False
            if waiting.at_head():
                return True
            # Two that hold it shared could each wait for the other to let go: start afresh.
            self._lock.give_back()
        return self._lock.take()

    def _before_commit(self, *event_arguments: object) -> None:
        self._lock.check()
        self._committed = True


def _checked_in(dbapi_connection: object, record: Any) -> None:
    for run in tuple(record.info.pop(_RUNS, {}).values()):
        run.finish()


def _extend_horizon(engine: Engine, home: str | None) -> None:
    with side_connection(engine) as connection:
        with connection.begin():
            found = _config_of(connection, home)
        if found is None:
            return  # these migrations have declared no table; others' are no business of theirs
        report = maintenance.ensure(connection, schema=found)
    missing = [result for result in report.results if result.current_missing]
    for result in report.results:
        if result.horizon_short and result not in missing:
            logger.warning(
                "the horizon of %s is short: %s", result.table, result.error or "the next run goes on"
            )
    if missing:
        reasons = dict.fromkeys(result.error or "; ".join(result.findings) for result in missing)
        raise CoverageMissing(
            tables=", ".join(result.table for result in missing),
            reason="; ".join(filter(None, reasons)).rstrip(".") or "No reason was given",
        )


def _config_of(connection: Connection, home: str | None) -> str | None:
    try:
        return catalog.find_config(connection, home, bounded=True)
    except ConfigurationError:
        # Two marked tables are two tenants where env.py has set the search_path: it says so here, too.
        if home is not None or connection.dialect.default_schema_name is None:
            raise
        return catalog.find_config(connection, connection.dialect.default_schema_name, bounded=True)
