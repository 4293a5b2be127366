"""What a web replica and the scheduler have in common: engine, keeper, Redis and jobs; nothing connected."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone

from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]
from sqlalchemy import Engine, create_engine

from alembic_partitions import keep
from alembic_partitions.contrib.alerts import Alerts
from alembic_partitions.contrib.source import Source
from alembic_partitions.keeper import Keeper

from . import store
from .cache import Cache
from .jobs import Jobs
from .settings import Settings, database_url

# Slots are counted from here, and so are the times at which they are tried.
EPOCH = datetime.fromtimestamp(0, timezone.utc)


@dataclass
class Service:
    """The parts of one process. Making it opens no connection and starts no thread, so it may be forked."""

    settings: Settings
    engine: Engine
    keeper: Keeper
    cache: Cache
    jobs: Jobs
    _scheduler: BackgroundScheduler | None = field(default=None, init=False)

    @classmethod
    def from_environment(cls) -> Service:
        settings = Settings.from_environment()
        engine = create_engine(database_url(), pool_pre_ping=True)
        cache = Cache(settings.redis_url)

        def refresh_odds() -> None:
            """Have Redis hold the newest price of each selection."""
            cache.put(store.newest_of_each(engine))

        return cls(settings, engine, keep(engine), cache, Jobs(engine, {"refresh_odds": refresh_odds}))

    def start_jobs(self) -> None:
        """Start them in threads of this process. Others may do so too: each slot, and each run, is once."""
        told = self.settings
        alerts = Alerts(*told.alert_urls, spacing=told.alert_spacing, quiet=told.alert_quiet)
        self.keeper.start(every=told.maintain_every, alerts=alerts if told.alert_urls else None)
        self._scheduler = scheduler = BackgroundScheduler(timezone="UTC")
        if told.alert_urls:  # the keeper's schedule looks after each run, and every five minutes
            source = Source(self.keeper)
            scheduler.add_job(alerts.check, "interval", (source,), seconds=told.alert_every, id="alerts")
        for name in self.jobs.names:
            scheduler.add_job(
                self.jobs.run,
                "interval",
                (name, told.refresh_every),
                seconds=told.refresh_every,
                start_date=EPOCH,
                id=name,
                coalesce=True,  # a process that was asleep does not catch up
                misfire_grace_time=None,
            )
        scheduler.start()

    def stop(self) -> None:
        """Let jobs under way come to their end, and give all connections back."""
        if self._scheduler is not None:
            self._scheduler.shutdown()
            self.keeper.stop()
        self.engine.dispose()
