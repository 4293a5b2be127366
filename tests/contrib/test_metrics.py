"""The collector: what a scrape says, what it costs, and what it says when the database is away."""

from __future__ import annotations

import asyncio
import math
import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import alembic_partitions
from alembic_partitions import maintenance
from alembic_partitions.contrib.metrics import PartitionCollector
from alembic_partitions.health import State
from tests.databases import Database
from tests.tables import declare, listening, partitions, policy, quote, run
from tests.zones import utc

ODDS = {"schema": "public", "table": "odds"}


def scraped(collector: PartitionCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


class Samples:
    """The samples of a scrape, as Prometheus reads them."""

    def __init__(self, text: str) -> None:
        self.all = [
            (sample.name.removeprefix("alembic_partitions_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float | None:
        found = [value for one, own, value in self.all if one == name and own == labels]
        assert len(found) <= 1
        return found[0] if found else None

    @property
    def names(self) -> set[str]:
        return {name for name, _, _ in self.all}


def read(collector: PartitionCollector) -> Samples:
    return Samples(scraped(collector))


def test_a_scrape_tells_how_each_table_stands(engine: Engine) -> None:
    declare(engine, "odds", policy(premake=9))
    declare(engine, "results", policy(premake=9, retention="2 days"))
    declare(engine, "raw", policy(enabled=False))
    alembic_partitions.keep(engine).maintain()
    run(engine, f"DROP TABLE {partitions(engine)[-6]}")
    found = read(PartitionCollector(engine))

    horizon = found("horizon_days", **ODDS)
    assert horizon is not None
    assert 3 < horizon < 5
    wanted = found("wanted_days", **ODDS)
    assert wanted is not None
    assert 9 <= wanted <= 10.1
    assert (found("partitions", **ODDS), found("gaps", **ODDS)) == (10, 1)
    assert (found("stranded_rows", **ODDS), found("misaligned", **ODDS)) == (0, 0)
    assert found("bytes", **ODDS)
    assert found("state", **ODDS, state="DEGRADED") == 1
    assert sum(found("state", **ODDS, state=state) or 0 for state in State) == 1
    assert (found("enabled", **ODDS), found("enabled", schema="public", table="raw")) == (1, 0)
    assert (found("up"), found("last_run_success", action="maintain")) == (1, 1)
    ended = found("last_success_timestamp_seconds", action="maintain")
    assert ended
    assert ended == found("last_run_timestamp_seconds", action="maintain")
    age, took = found("look_age_seconds"), found("last_run_duration_seconds", action="maintain")
    assert age is not None
    assert age >= 0
    assert took is not None
    assert took > 0


def test_a_failed_run_leaves_the_last_success_as_it_was(engine: Engine) -> None:
    declare(engine, "odds", policy())
    for ended, error in (("2026-01-01 00:00Z", "NULL"), ("2026-01-02 00:00Z", "'no room'")):
        run(
            engine,
            "INSERT INTO partition_runs (started_at, finished_at, action, error)"
            f" VALUES (timestamptz '{ended}' - interval '90 s', '{ended}', 'maintain', {error})",
        )
    run(engine, "INSERT INTO partition_runs (started_at, action) VALUES (now(), 'alert')")
    found = read(PartitionCollector(engine))
    assert found("last_run_success", action="maintain") == 0
    assert found("last_run_duration_seconds", action="maintain") == 90
    assert found("last_success_timestamp_seconds", action="maintain") == utc("2026-01-01").timestamp()
    assert found("last_run_success", action="alert") is None, "a message is no run"
    with engine.connect() as connection:
        view = maintenance.past_runs(connection)
    assert [one.action for one in view.runs or ()] == ["maintain", "maintain"]


def test_what_a_table_lacks_and_what_has_no_end(engine: Engine) -> None:
    declare(engine, "odds", policy())
    declare(engine, "none", policy())
    alembic_partitions.keep(engine).ensure()
    last = partitions(engine)[-1]
    run(
        engine,
        f"DROP TABLE {last}",
        "CREATE TABLE odds_rest PARTITION OF odds DEFAULT",
        "INSERT INTO odds (at) SELECT '2001-01-01Z' FROM generate_series(1, 12)",
        *(f"DROP TABLE {name}" for name in partitions(engine, "none")),
        "CREATE TABLE none_all PARTITION OF none FOR VALUES FROM (MINVALUE) TO (MAXVALUE)",
    )
    collector = PartitionCollector(engine, max_age="0 s")
    assert read(collector)("stranded_rows", **ODDS) == 1, "never analyzed: there are some"
    run(engine, "ANALYZE odds_rest")
    found = read(collector)
    assert found("stranded_rows", **ODDS) == 12
    assert found("gaps", **ODDS) == 0, "a horizon that is short is no gap"
    assert found("horizon_days", schema="public", table="none") == math.inf
    run(engine, "ALTER TABLE none RENAME TO gone")
    assert read(collector)("horizon_days", schema="public", table="none") == 0


def test_ten_scrapes_are_one_look(engine: Engine) -> None:
    declare(engine, "odds", policy())
    collector = PartitionCollector(engine)
    assert Samples(scraped(collector)).names
    with listening(Engine) as sent:  # type: ignore[arg-type]
        for _ in range(9):
            assert read(collector)("partitions", **ODDS) == 4
    assert sent.statements == []


def test_registering_asks_the_database_nothing(database: Database) -> None:
    collector = PartitionCollector(create_engine(database.url.set(port=1)), gauges={"odds": "odds_days"})
    CollectorRegistry().register(collector)
    assert collector.source.age is None
    assert {"alembic_partitions_up", "odds_days"} <= {metric.name for metric in collector.describe()}


def test_a_database_that_is_away_is_told_and_nothing_stale(
    engine: Engine, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    declare(engine, "odds", policy())
    keeper = alembic_partitions.keep(engine)
    collector = PartitionCollector(keeper, max_age="0 s", gauges={"odds": "odds_horizon_days"})
    assert read(collector)("up") == 1
    collector.source.engine = create_engine(database.url.set(port=1, password="open sesame"))
    assert read(collector).all == [
        ("up", {}, 0.0),
        ("no_partition_errors_total", {"schema": "public", "table": "odds"}, 0.0),
    ]
    read(collector)
    assert len([r for r in caplog.records if "metrics" in r.getMessage()]) == 1, "said once"
    assert "sesame" not in caplog.text
    collector.source.engine = engine
    assert read(collector)("partitions", **ODDS)


def test_inserts_without_a_partition_are_counted_by_table(engine: Engine) -> None:
    odd = 'a.b "c"\\ d\ne'
    run(engine, f"CREATE SCHEMA {quote('s.x')}")
    declare(engine, odd, policy(), schema="s.x")
    keeper = alembic_partitions.keep(engine)
    keeper._met[f"s.x.{odd}"] += 2
    keeper._met["public.gone"] += 1
    text = scraped(PartitionCollector(keeper))
    found = Samples(text)
    assert found("no_partition_errors_total", schema="s.x", table=odd) == 2
    assert found("no_partition_errors_total", schema="public", table="gone") == 1
    assert found("partitions", schema="s.x", table=odd) == 4
    assert r'table="a.b \"c\"\\ d\ne"' in text
    assert read(PartitionCollector(engine))("no_partition_errors_total", schema="s.x", table=odd) is None


def test_gauges_of_the_users_own_name(engine: Engine) -> None:
    declare(engine, "odds", policy())
    gauges = {"public.odds": "odds_partition_horizon_days", "results": "results_horizon_days"}
    text = scraped(PartitionCollector(engine, gauges=gauges))
    found = Samples(text)
    horizon = found("odds_partition_horizon_days")
    assert horizon is not None
    assert 2 < horizon <= 3.1
    assert found("results_horizon_days") is None, "it is not managed"
    assert "# HELP odds_partition_horizon_days Days until inserts into public.odds find no" in text
    for taken in ("odds_days", "alembic_partitions_up"):
        with pytest.raises(ValueError, match=taken):
            PartitionCollector(engine, gauges={"odds": "odds_days", "results": taken})
    with pytest.raises(ValueError, match="gauge 'odds days'"):
        PartitionCollector(engine, gauges={"odds": "odds days"})


def test_an_async_engine_is_looked_at_by_whoever_awaits(engine: Engine, database: Database) -> None:
    declare(engine, "odds", policy())

    async def scrape() -> None:
        collector = PartitionCollector(create_async_engine(database.driver_url("asyncpg")), max_age="0 s")
        assert read(collector)("up") == 0, "nobody has looked yet"
        await collector.refresh()
        assert read(collector)("partitions", **ODDS) == 4
        collector.source.engine = create_async_engine(database.driver_url("asyncpg").set(port=1)).sync_engine
        await collector.refresh()
        assert read(collector)("up") == 0
        collector = PartitionCollector(engine, max_age="1 h")
        await collector.refresh()
        assert collector.source.age is not None
        assert read(collector)("partitions", **ODDS) == 4

    asyncio.run(scrape())


def test_prometheus_has_nothing_to_say_against_it(engine: Engine) -> None:
    declare(engine, "odds", policy())
    alembic_partitions.keep(engine).maintain()
    text = scraped(PartitionCollector(engine))
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    assert {family.type for family in families} == {"gauge", "counter"}
    program = shutil.which("promtool")
    if program is not None:
        done = subprocess.run(
            [program, "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        # Days are what a policy counts in, and what people alert on.
        assert [line for line in done.stderr.splitlines() if 'instead of "days"' not in line] == []
