"""Partitions over HTTP: a FastAPI router to mount, or an application of its own.

``alembic-partitions serve`` serves the latter. It needs an extra: ``pip install "alembic-partitions[http]"``.
"""

from .app import create_app
from .models import JobRecord
from .router import router

__all__ = ["JobRecord", "create_app", "router"]
