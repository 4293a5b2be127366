"""How the partitions of a database stand, for Prometheus."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from alembic_partitions.health import WARN_DAYS, State, TableHealth
from alembic_partitions.maintenance import View
from alembic_partitions.standing import Row, judge
from alembic_partitions.talk import explain

from .source import Source, Watched

logger = logging.getLogger("alembic_partitions")


_PREFIX = "alembic_partitions_"
_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def _wanted(row: Row) -> float | None:
    return row.runway.wanted_days if row.runway is not None else None


def _gaps(row: Row) -> float:
    # Not what is lacking at the end: between two runs that is so every day, and the horizon tells of it.
    begins = {part.lower for part in row.view.table.partitions}
    return sum(end in begins for _, end in row.health.gaps)


def _stranded(row: Row) -> float | None:
    if not row.health.stranded:
        return None if row.health.stranded is None else 0
    defaults = [part.oid for part in row.view.table.partitions if part.is_default]
    figures = row.view.figures or {}
    return max([1, *(figures[oid].rows or 1 for oid in defaults if oid in figures)])


#: What there is of each table, with the labels ``schema`` and ``table``; ``None`` is left out.
_OF_TABLES: Mapping[str, tuple[str, Callable[[Row], float | None]]] = {
    "horizon_days": (
        "Days until inserts find no partition: +Inf with MAXVALUE, absent where it cannot be told.",
        lambda row: row.health.runway,
    ),
    "wanted_days": ("Days that the policy wants partitions to reach.", _wanted),
    "partitions": ("Partitions of the table.", lambda row: row.health.partitions),
    "bytes": ("Size of all partitions with indexes and TOAST.", lambda row: row.view.bytes),
    "gaps": (
        "Stretches without a partition that lie before the last one.",
        _gaps,
    ),
    "stranded_rows": (
        "Rows in the DEFAULT partition as ANALYZE last counted them: 1 at least if there are any.",
        _stranded,
    ),
    "pending_retention": ("Partitions that retention takes next.", lambda row: len(row.health.due)),
    "misaligned": ("Partitions that are no windows of the policy.", lambda row: len(row.health.misaligned)),
    "enabled": ("Whether runs look after the table.", lambda row: row.health.enabled),
}


class PartitionCollector(Collector):
    """Collects how all tables stand, from one look at the database that many scrapes share.

    ``registry.register(PartitionCollector(engine))``. A scrape never fails: where the database is away,
    ``alembic_partitions_up`` is 0 and nothing is told of tables. With an async engine await :meth:`refresh`
    before the registry is collected.

    In prometheus_client's multiprocess mode register it beside the ``MultiProcessCollector``: every process
    tells the same of the database, but ``no_partition_errors_total`` of itself alone.

    :param watched_or_source: an engine, a keeper (which also counts inserts that found no partition), or a
        :class:`~alembic_partitions.contrib.source.Source` that others ask, too; then ``schema`` and
        ``max_age`` are its own.
    :param schema: where partition_config lives; ``None`` finds it by our mark.
    :param max_age: how long a look is good for.
    :param gauges: further gauges without labels, by table (``name`` or ``schema.name``): a name of your own
        for its days until inserts find no partition; of several tables of one name, the one in need counts.
    :raises ValueError: one of these names is no metric's name, or is taken.
    """

    def __init__(
        self,
        watched_or_source: Watched | Source,
        *,
        schema: str | None = None,
        max_age: str = "15 s",
        gauges: Mapping[str, str] | None = None,
    ) -> None:
        given = watched_or_source
        self.source = given if isinstance(given, Source) else Source(given, schema=schema, max_age=max_age)
        self._gauges = dict(gauges or {})
        self._view: View | None = None
        self._error: str | None = None
        # Tables by what the keeper calls them, which the label "schema" cannot be told from.
        self._names: dict[str, tuple[str, str]] = {}
        for name in self._gauges.values():
            # prometheus_client itself lets any name in by now, which many a scraper does not.
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"gauge {name!r}: a metric has a name of letters, digits and _")
        taken = [metric.name for metric in self.describe()]
        for name in self._gauges.values():
            if taken.count(name) > 1:
                raise ValueError(f"gauge {name!r}: that is the name of another one")

    async def refresh(self) -> None:
        """Look, unless the last look is still good, without stalling the event loop; never raises."""
        try:
            self.saw(await self.source.aview())
        except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
            self.missed(error)

    def describe(self) -> Iterable[Metric]:
        """Name the metrics, without a look."""
        return self._metrics(None)

    def collect(self) -> Iterable[Metric]:
        """Tell how all stands."""
        if not self.source.is_async:
            try:
                self.saw(self.source.view())
            except Exception as error:  # noqa: BLE001  # a driver raises its own, unwrapped, while it connects
                self.missed(error)
        return self.told()

    def told(self) -> Iterable[Metric]:
        """Tell how all stood when it was last seen, without a look."""
        return self._metrics(self._view)

    def saw(self, view: View) -> None:
        """Take a look that somebody else has made."""
        self._view, self._error = view, None
        self._names = {str(item.table): (item.table.schema, item.table.name) for item in view.tables}

    def missed(self, error: Exception) -> None:
        """Take it that a look failed."""
        told = explain(error)
        if told != self._error:  # once, not at every scrape
            logger.warning("metrics: the database cannot be looked at: %s", told)
        self._view, self._error = None, told

    def _metrics(self, view: View | None) -> Iterable[Metric]:
        rows = judge([("", view)], WARN_DAYS) if view is not None else []
        up = _gauge("up", "Whether the last look at the database worked.")
        up.add_metric([], view is not None)
        age = _gauge("look_age_seconds", "How old the look is that all this comes from.")
        if view is not None and self.source.age is not None:
            age.add_metric([], self.source.age)
        return [up, age, *_of_tables(rows), *_of_runs(view), self._errors(), *self._own_gauges(rows)]

    def _errors(self) -> Metric:
        met = self.source.no_partition_errors
        family = CounterMetricFamily(
            f"{_PREFIX}no_partition_errors",
            "Inserts of this process that found no partition.",
            labels=["schema", "table"],
        )
        if met is not None:
            # From 0 on: a rate needs to see the first one, too.
            for name, count in {**dict.fromkeys(self._names, 0), **met}.items():
                schema, _, table = name.partition(".")
                family.add_metric(self._names.get(name, (schema, table)), count)
        return family

    def _own_gauges(self, rows: Iterable[Row]) -> Iterable[Metric]:
        judged = [row.health for row in rows]
        for table, name in self._gauges.items():
            value = soonest(table, judged)
            gauge = GaugeMetricFamily(name, f"Days until inserts into {table} find no partition.")
            if value is not None:
                gauge.add_metric([], value)
            yield gauge


def soonest(name: str, tables: Iterable[TableHealth]) -> float | None:
    """Return the days until inserts into a table find no partition; ``None`` where that cannot be told.

    :param name: ``name`` or ``schema.name``; of several tables that it fits, the one in need counts.
    """
    days = [table.runway for table in tables if f".{table.table}".endswith(f".{name}")]
    known = [runway for runway in days if runway is not None]
    return min(known) if known and len(known) == len(days) else None


def _of_tables(rows: Iterable[Row]) -> Iterable[Metric]:
    rows = list(rows)
    for name, (text, read) in _OF_TABLES.items():
        gauge = _gauge(name, text, "schema", "table")
        for row in rows:
            value = read(row)
            if value is not None:
                gauge.add_metric([row.view.table.schema, row.view.table.name], value)
        yield gauge
    state = _gauge(
        "state", "What is to be done about the table: 1 for the state it is in.", "schema", "table", "state"
    )
    for row in rows:
        for one in State:
            labels = [row.view.table.schema, row.view.table.name, one.value]
            state.add_metric(labels, row.health.state is one)
    yield state


def _of_runs(view: View | None) -> Iterable[Metric]:
    # A run with nothing to do is written down by maintain alone.
    took = _gauge("last_run_duration_seconds", "How long the last run of a kind took.", "action")
    well = _gauge("last_run_success", "Whether the last run of a kind went well.", "action")
    ended = _gauge("last_run_timestamp_seconds", "When the last run of a kind ended.", "action")
    good = _gauge("last_success_timestamp_seconds", "When the last run that went well ended.", "action")
    for run in (view.runs if view is not None else None) or ():
        took.add_metric([run.action], (run.finished_at - run.started_at).total_seconds())
        well.add_metric([run.action], run.error is None)
        ended.add_metric([run.action], run.finished_at.timestamp())
    for action, finished in ((view.successes if view is not None else None) or {}).items():
        good.add_metric([action], finished.timestamp())
    return took, well, ended, good


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels or None)
