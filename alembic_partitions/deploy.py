"""One deploy at a time: the migration lock, the migration under it, then the horizon.

The lock is an advisory lock that an idle transaction holds on a second connection, opened the way the
migration's own engine opens its connections. A transaction's lock, not a session's: through a pooler in
transaction mode a session's lock would be left with whoever comes next, and exclude nobody. And it lasts
exactly as long as the transaction answers. Idle at READ COMMITTED it has no snapshot, so CREATE INDEX
CONCURRENTLY does not wait for it; whoever wants the lock polls, and holds nothing in between.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from sqlalchemy import BigInteger, Connection, Engine, cast, column, event, func, literal, select, table, true

from . import maintenance
from .errors import ConfigurationError, CoverageMissing, SettingError, UpgradeLockLost, UpgradeLockTimeout
from .sessions import pause, side_connection, side_engine

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

_LOCKS = table(
    "pg_locks",
    *map(column, ("locktype", "database", "classid", "objid", "objsubid", "pid", "granted")),
)
_SESSIONS = table(
    "pg_stat_activity",
    *map(column, ("pid", "usename", "application_name", "xact_start", "backend_start")),
)
_DATABASES = table("pg_database", *map(column, ("oid", "datname")))


class AlembicContext(Protocol):
    """What ``alembic.context`` and an ``EnvironmentContext`` have in common."""

    def get_context(self) -> MigrationContext:
        """Return the migration at hand."""


def upgrade_lock_key(
    database: str, version_table: str = "alembic_version", version_table_schema: str | None = None
) -> int:
    """Return the key of the advisory lock that a migration holds, for scripts that want to see or take it.

    It is the first 8 bytes, signed, of the SHA-256 of four lines: ``alembic_partitions upgrade``, the
    database, the schema (empty for ``None``), the version table.

    :param database: name of the database, as ``current_database()`` has it.
    :param version_table: Alembic's ``version_table``.
    :param version_table_schema: Alembic's ``version_table_schema``.
    """
    told = "\n".join(("alembic_partitions upgrade", database, version_table_schema or "", version_table))
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big", signed=True)


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
            _answer(self._connection)
        if self._level is None:
            self._connection.rollback()


def _answer(connection: Connection) -> None:
    # A savepoint is answered without a snapshot. A SELECT is not, and asyncpg would keep its portal, and with
    # it the snapshot, open until the next statement.
    with connection.begin_nested():
        pass


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
        self._committed = False
        self._exclusive = False
        self._home = maintenance.config_home(migration)
        self._migrations = connection
        self._session = side_engine(connection.engine).connect()
        try:
            self._session.execution_options(isolation_level="READ COMMITTED")
            self._database = str(self._session.scalar(select(func.current_database())))
        except BaseException:
            self._session.close()
            raise
        self._key = upgrade_lock_key(self._database, *_version_table(migration))
        self._settings = _settings(connection)
        # Before every commit: the whole run's, one per migration, before an autocommit_block, env.py's own.
        for name in ("commit", "prepare_twophase", "commit_twophase"):
            event.listen(connection, name, self._before_commit)
        self._name, self._siblings = _version_table(migration), _runs(connection.info)
        self._siblings[self._name] = self
        event.listen(connection.engine.pool, "checkin", _checked_in)

    def take(self, seconds: float, waiting: _Waiting) -> None:
        """Take the lock: shared where there is nothing to do, so that many replicas may find that at once."""
        deadline = time.monotonic() + seconds
        wait = _FIRST_PAUSE
        while not (self._exclusive or self._try(waiting)):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise UpgradeLockTimeout(database=self._database, seconds=seconds, holder=self._holders())
            if wait == _FIRST_PAUSE:
                logger.info("waiting for the migration lock of %s (%s)", self._database, self._holders())
            pause(self._session, min(random.uniform(wait / 2, wait), remaining))
            waiting.keep_alive()
            wait = min(wait * 2, _LONGEST_PAUSE)

    def finish(self) -> None:
        """Extend the horizon where it is due, and let go of the lock."""
        self._siblings.pop(self._name, None)
        try:
            if self.extends and (self._committed or not self.only_if_committed):
                _extend_horizon(self._migrations.engine, self._home)
        finally:
            for name in ("commit", "prepare_twophase", "commit_twophase"):
                event.remove(self._migrations, name, self._before_commit)
            with suppress(Exception):  # a session that has died holds nothing
                try:
                    self._session.rollback()  # answered when the lock is gone; close() does not wait
                except Exception:
                    self._session.invalidate()
                    raise
                finally:
                    self._session.close()

    def _try(self, waiting: _Waiting) -> bool:
        if waiting.may_be_at_head:
            if not self._lock(func.pg_try_advisory_xact_lock_shared):
                return False
            if waiting.at_head():
                return True
            # Two that hold it shared could each wait for the other to let go: start afresh.
            self._session.rollback()
        self._exclusive = self._lock(func.pg_try_advisory_xact_lock)
        return self._exclusive

    def _lock(self, function: Any) -> bool:
        statement = select(function(literal(self._key, BigInteger)), *self._settings)
        taken = bool(self._session.scalar(statement))
        if taken:
            _answer(self._session)
        else:
            self._session.rollback()
        return taken

    def _before_commit(self, *event_arguments: object) -> None:
        try:
            _answer(self._session)  # it is the answer that counts
        except Exception as error:
            raise UpgradeLockLost(database=self._database) from error
        self._committed = True

    def _holders(self) -> str:
        """Say who holds the lock, as far as this role may see."""
        key = self._key % 2**64
        since = func.coalesce(_SESSIONS.c.xact_start, _SESSIONS.c.backend_start)
        rows = self._session.execute(
            select(_LOCKS.c.pid, _SESSIONS.c.application_name, _SESSIONS.c.usename, since.label("since"))
            .join_from(_LOCKS, _DATABASES, _DATABASES.c.oid == _LOCKS.c.database)
            .outerjoin(_SESSIONS, _SESSIONS.c.pid == _LOCKS.c.pid)
            .where(_LOCKS.c.locktype == "advisory", _LOCKS.c.objsubid == 1, _LOCKS.c.granted)
            .where(_DATABASES.c.datname == self._database)
            .where(cast(_LOCKS.c.classid, BigInteger) == literal(key >> 32, BigInteger))
            .where(cast(_LOCKS.c.objid, BigInteger) == literal(key & 0xFFFFFFFF, BigInteger))
            .order_by(since, _LOCKS.c.pid)
        ).all()
        self._session.rollback()
        told = [
            f"process {row.pid} ({row.application_name or row.usename}), since {row.since or 'unknown'}"
            for row in rows[:3]
        ]
        return "; ".join(told) or "let go of just now"


def _settings(connection: Connection) -> list[Any]:
    """Return what switches the time-outs of a transaction off, and tells an operator what it is for."""
    values = {
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "application_name": f"alembic-partitions lock {socket.gethostname()}"[:63],
    }
    if (connection.dialect.server_version_info or ()) >= (17,):
        values["transaction_timeout"] = "0"
    return [func.set_config(name, value, True) for name, value in values.items()]


def _checked_in(dbapi_connection: object, record: Any) -> None:
    for run in tuple(record.info.pop(_RUNS, {}).values()):
        run.finish()


def _extend_horizon(engine: Engine, home: str | None) -> None:
    with side_connection(engine) as connection:
        try:
            report = maintenance.ensure(connection, schema=home)
        except ConfigurationError:
            # Two marked tables are two tenants where env.py has set the search_path: it says so here, too.
            if home is not None or connection.dialect.default_schema_name is None:
                raise
            report = maintenance.ensure(connection, schema=connection.dialect.default_schema_name)
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
