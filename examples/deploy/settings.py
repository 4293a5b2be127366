"""What the environment says: the same variables in Docker, in systemd and in a shell."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import URL, make_url

from alembic_partitions.keeper import seconds


def database_url() -> URL:
    """Return DATABASE_URL; without a driver it means psycopg2."""
    url = make_url(os.environ.get("DATABASE_URL", "postgresql://localhost/odds"))
    return url if "+" in url.drivername else url.set(drivername="postgresql+psycopg2")


@dataclass(frozen=True)
class Settings:
    """What a web replica and the scheduler are told; `_FILE` variables are entrypoint.sh's business."""

    redis_url: str
    #: For POST /odds.
    write_token: str
    #: For /api/v1/partitions and the page: whoever has it may have partitions dropped.
    operator_token: str
    #: There is a scheduler process: web replicas run no jobs.
    scheduler_standalone: bool
    refresh_every: float
    """Seconds between two runs of refresh_odds."""
    maintain_every: str
    #: Where alerts go, in Apprise's notation: tgram://..., slack://..., mailto://..., json://...
    alert_urls: tuple[str, ...]
    #: Seconds between two looks at what there is to tell.
    alert_every: float
    alert_spacing: str
    alert_quiet: str
    #: Seconds that the scheduler waits for somebody to migrate.
    schema_timeout: float

    @classmethod
    def from_environment(cls) -> Settings:
        told = os.environ
        return cls(
            redis_url=told.get("REDIS_URL", "redis://localhost:6379/0"),
            write_token=told.get("ODDS_TOKEN", ""),
            operator_token=told.get("ALEMBIC_PARTITIONS_TOKEN", ""),
            scheduler_standalone=told.get("SCHEDULER_STANDALONE", "") in {"1", "true", "yes"},
            refresh_every=seconds("REFRESH_EVERY", told.get("REFRESH_EVERY", "30 s")),
            maintain_every=told.get("MAINTAIN_EVERY", "12h"),
            alert_urls=tuple(told.get("ALERT_URLS", "").split()),
            alert_every=seconds("ALERT_EVERY", told.get("ALERT_EVERY", "1 min")),
            alert_spacing=told.get("ALERT_SPACING", "10 s"),
            alert_quiet=told.get("ALERT_QUIET", "10 min"),
            schema_timeout=seconds("SCHEMA_TIMEOUT", told.get("SCHEMA_TIMEOUT", "10 min")),
        )
