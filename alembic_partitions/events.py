"""SQLAlchemy hooks: look before rows are sent, look again as time goes by.

The listeners are thin: what to do is the :class:`~alembic_partitions.keeper.Keeper`'s, what a statement
carries is told by :mod:`~alembic_partitions.rows`.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, overload
from uuid import UUID

from sqlalchemy import URL, ClauseElement, Column, Connection, Engine, Table, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, Session, class_mapper
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from . import maintenance, rows
from .errors import PartitionError, PolicyError
from .health import WARN_DAYS, Health
from .keeper import Keeper, OnError, seconds
from .knowledge import Cleared

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# What a key may be and be no expression for the server to work out.
_PLAIN = frozenset({type(None), datetime, date, int, str, UUID})


class AsyncKeeper:
    """The keeper of an :class:`~sqlalchemy.ext.asyncio.AsyncEngine`: the same one, its calls awaited."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    @property
    def sync_keeper(self) -> Keeper:
        """The keeper itself, whose methods run inside SQLAlchemy's greenlet."""
        return self._keeper

    async def ensure(self) -> maintenance.Report:
        """Bring every table to its horizon now."""
        return await greenlet_spawn(self._keeper.ensure)

    async def maintain(self, **orders: Any) -> maintenance.Report:
        """Run the daily maintenance now; see :meth:`Keeper.maintain`."""
        return await greenlet_spawn(self._keeper.maintain, **orders)

    async def start(self, **told: Any) -> None:
        """Run the maintenance again and again on this event loop; see :meth:`Keeper.start`.

        A child of a fork has no such loop: start it there.
        """
        self._keeper.start(**told)

    async def stop(self, timeout: str = "30 s") -> None:
        """End what :meth:`start` began; a run that is under way may end within ``timeout``, or is cut off."""
        if self._keeper.schedule is not None:
            await self._keeper.schedule.astop(seconds("timeout", timeout))

    @property
    def running(self) -> bool:
        """Whether :meth:`start` has been called, and :meth:`stop` has not."""
        return self._keeper.running

    async def plan(self) -> tuple[maintenance.TablePlan, ...]:
        """Return what :meth:`ensure` would do now."""
        return await greenlet_spawn(self._keeper.plan)

    async def health(self, *, warn_days: float = WARN_DAYS) -> Health:
        """Tell whether inserts are safe; see :meth:`Keeper.health`."""
        return await greenlet_spawn(self._keeper.health, warn_days=warn_days)

    @asynccontextmanager
    async def watching(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """Watch over rows that asyncpg's own COPY sends on ``connection``; see :meth:`Keeper.watching`."""
        try:
            yield
        except Exception as error:
            sync_connection = connection.sync_connection
            assert sync_connection is not None
            instead = await greenlet_spawn(self._keeper.answer_to, sync_connection, error)
            if instead is None:
                raise
            raise instead from error


@overload
def keep(
    engine: Engine,
    *,
    ddl_url: str | URL | None = None,
    schema: str | None = None,
    refresh: str = "5 min",
    wait: str = "2 s",
    on_error: OnError = "log",
) -> Keeper: ...
@overload
def keep(
    engine: AsyncEngine,
    *,
    ddl_url: str | URL | None = None,
    schema: str | None = None,
    refresh: str = "5 min",
    wait: str = "2 s",
    on_error: OnError = "log",
) -> AsyncKeeper: ...
def keep(
    engine: Engine | AsyncEngine,
    *,
    ddl_url: str | URL | None = None,
    schema: str | None = None,
    refresh: str = "5 min",
    wait: str = "2 s",
    on_error: OnError = "log",
) -> Keeper | AsyncKeeper:
    """Keep partitions ready while the application runs: two hooks on its engine.

    The first connection brings tables to their horizon; a checkout after ``refresh`` looks again. Before
    an INSERT is sent, or an UPDATE of the key, the windows that its rows need are made and committed on a
    second connection.

    :param ddl_url: a dedicated role for DDL, used through the engine's own driver; the application then
        needs INSERT and SELECT alone, and there is no fall-back to it.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param refresh: how long at most what is known of coverage is believed; the next look comes by chance in
        its last quarter, so that processes which start together do not go on asking together.
    :param wait: how long a hook may take.
    :param on_error: ``"log"`` never takes the application down; ``"raise"`` raises what a look met.
    :return: a keeper; for an async engine one whose calls are awaited.
    """
    sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
    if sync_engine.dialect.name != "postgresql":
        raise PolicyError(
            field="engine",
            problem=f"{sync_engine.dialect.name} has no partitions to keep",
            remedy="Call keep() where the engine is PostgreSQL's.",
        )
    keeper = Keeper(
        sync_engine, ddl_url=ddl_url, schema=schema, refresh=refresh, wait=wait, on_error=on_error
    )
    _Hooks(sync_engine, keeper).install()
    return keeper if isinstance(engine, Engine) else AsyncKeeper(keeper)


class _Hooks:
    def __init__(self, engine: Engine, keeper: Keeper) -> None:
        self._engine = engine
        self._keeper = keeper
        #: On an execution's context: we have looked at its rows. An engine may be kept twice.
        self._mark = f"_alembic_partitions_looked_{id(self):x}"

    def install(self) -> None:
        event.listen(self._engine, "checkout", self._checkout)
        event.listen(self._engine, "checkin", self._checkin)
        event.listen(self._engine, "begin", self._begin)
        event.listen(self._engine, "begin_twophase", self._begin_twophase)
        # With retval SQLAlchemy calls it without a wrapper.
        event.listen(self._engine, "before_cursor_execute", self._before_cursor_execute, retval=True)
        event.listen(self._engine, "handle_error", self._handle_error)
        # Sessions are many and short, so the class is listened to; that must not keep the engine alive. The
        # listener itself stays: taken away by the garbage collector, it could go in the middle of a flush.
        hooks = weakref.ref(self)

        def before_flush(session: Session, context: Any, instances: Any) -> None:
            alive = hooks()
            if alive is not None:
                alive.before_flush(session)

        event.listen(Session, "before_flush", before_flush)

    def _checkout(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        self._keeper.look_again()

    def _checkin(self, dbapi_connection: Any, record: Any) -> None:
        # Now this transaction's locks are gone. A connection that is garbage-collected in an async
        # application comes back outside the greenlet, where nothing can be awaited.
        if not self._engine.dialect.is_async or in_greenlet():
            self._keeper.settle(patience=0)

    def _begin(self, connection: Connection) -> None:
        self._keeper.began(connection)

    def _begin_twophase(self, connection: Connection, xid: Any) -> None:
        self._keeper.began(connection)

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        if context is None or not (context.isinsert or context.isupdate) or self._mark in context.__dict__:
            return statement, parameters
        reading = rows.reading_of(context)
        if reading is not None:
            # A flush may send its rows one by one: then the first condition is all that each of them costs.
            cleared = reading.cleared  # once: other threads run the same compiled statement
            if cleared is None or not self._is_cleared(connection, context, cleared):
                self._look_at_statement(connection, context, reading)
        return statement, parameters

    def _is_cleared(self, connection: Connection, context: Any, cleared: Cleared) -> bool:
        """Tell whether a single row goes where the one before it has been found to have its partition."""
        sent = context.compiled_parameters
        return (
            len(sent) == 1
            and cleared.holds(sent[0].get(cleared.name))
            and cleared.edition is self._keeper.knowledge.edition
            and connection.info.get(cleared.began, 0) >= cleared.newest
            and not context.execution_options.get("schema_translate_map")
        )

    def _look_at_statement(self, connection: Connection, context: Any, reading: rows.Reading) -> None:
        if not self._keeper.has_looked:
            self._keeper.look_again()  # this connection was there before keep()
        schema = rows.schema_of(context.execution_options, connection.dialect, reading.table)
        known = self._keeper.knowledge.candidates(reading.table.name, schema)
        # Once an execution: insertmanyvalues fires for each batch, which may be a single row, and the context
        # holds all the rows.
        setattr(context, self._mark, True)
        self._keeper.look(connection, known, schema, lambda key: rows.values_of(context, reading, key))
        if len(known) == 1 and schema == reading.table.schema:
            reading.cleared = self._keeper.knowledge.cleared(
                known[0], reading.columns.get(known[0].key, ()), context.compiled_parameters
            )

    # -- an ORM flush, as a whole, before its first statement ------------------------------------------

    def before_flush(self, session: Session) -> None:
        """Look at what a flush is about to write, while its transaction holds no lock yet."""
        new = session._new.values()  # noqa: SLF001  # session.new makes a set of them, one by one
        for kind in dict.fromkeys(map(type, new)):
            self._look_at_class(session, kind, new, changed_only=False)
        changed = session.dirty
        for kind in dict.fromkeys(map(type, changed)):
            self._look_at_class(session, kind, changed, changed_only=True)

    def _look_at_class(
        self, session: Session, kind: type, instances: Collection[Any], changed_only: bool
    ) -> None:
        mapper: Mapper[Any] = class_mapper(kind)
        if not self._keeper.has_looked and self._is_bound(session, mapper):
            session.connection(bind_arguments={"mapper": mapper})  # the first checkout looks
        tables = [
            (table, known.key)
            for table in mapper.tables
            if isinstance(table, Table)
            for known in self._keeper.knowledge.candidates(table.name, None)
        ]
        if not tables or not self._is_bound(session, mapper):
            return
        objects = [obj for obj in instances if type(obj) is kind]
        for table, key in dict.fromkeys(tables):
            column = next((c for c in table.columns if c.name == key), None)
            if column is None or not mapper.columns.contains_column(column):
                continue
            attribute = mapper.get_property_by_column(column).key
            values = _attribute_values(objects, attribute, changed_only)
            if values:
                self._look_at_values(session, mapper, column, values)

    def _is_bound(self, session: Session, mapper: Mapper[Any]) -> bool:
        """Tell whether the rows of a class go to our engine, as far as that shows before they are sent."""
        try:
            return session.get_bind(mapper).engine.pool is self._engine.pool
        except Exception:  # noqa: BLE001  # a session of the user's own make: the statement is looked at
            return False

    def _look_at_values(
        self, session: Session, mapper: Mapper[Any], column: Column[Any], values: list[Any]
    ) -> None:
        connection = session.connection(bind_arguments={"mapper": mapper})
        if rows.is_rewritten(column, connection.dialect):
            return
        process = column.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
        if process is not None:
            try:
                values = [process(value) for value in values]
            except Exception:  # noqa: BLE001  # told as SQLAlchemy tells it, when the statement is sent
                return
        schema = rows.schema_of(connection.get_execution_options(), connection.dialect, column.table)
        known = [
            k for k in self._keeper.knowledge.candidates(column.table.name, schema) if k.key == column.name
        ]
        self._keeper.look(connection, known, schema, lambda key: values)

    # -- PostgreSQL still found none -------------------------------------------------------------------

    def _handle_error(self, context: ExceptionContext) -> PartitionError | None:
        error, connection = context.sqlalchemy_exception, context.connection
        if connection is None or not isinstance(error, DBAPIError):
            return None
        # The side connection has the same dialect, and this is a dialect's event: those are none of ours.
        return self._keeper.answer_to(connection, error)


def _attribute_values(objects: list[Any], attribute: str, changed_only: bool) -> list[Any]:
    """Return what is there without loading anything; a default not yet evaluated is seen at its statement."""
    if changed_only:
        objects = [obj for obj in objects if attribute in instance_state(obj).committed_state]
    values = [obj.__dict__.get(attribute) for obj in objects]
    kinds = set(map(type, values))
    if not kinds <= _PLAIN:  # only then is it worth to look at each one
        values = [v for v in values if not hasattr(v, "__clause_element__") and not _is_sql(v)]
    return [v for v in values if v is not None] if type(None) in kinds else values


def _is_sql(value: Any) -> bool:
    """Tell whether an attribute holds an expression, such as ``func.now()``, for the server to work out."""
    return isinstance(value, ClauseElement)
