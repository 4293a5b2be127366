"""``serve``: health, metrics, the page and the API over HTTP, in a process of its own."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from contextlib import suppress

import click
from sqlalchemy import Engine

from alembic_partitions.errors import ExtraMissing
from alembic_partitions.talk import shown_log

from .connecting import engine_at, visit
from .door import EXIT_OK, Call, alembic_options, main

logger = logging.getLogger("alembic_partitions")

TOKEN_VARIABLE = "ALEMBIC_PARTITIONS_TOKEN"

_NEEDS = ("fastapi", "uvicorn", "prometheus_client", "jinja2")
# Seconds that requests under way are waited for; a job then has another few to end its step.
_GRACE = 5


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any.")
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False),
    help=f"A file with the token that /api asks for (else env: {TOKEN_VARIABLE}); 16 characters or more.",
)
@click.option("--closed", is_flag=True, help="Ask for the token everywhere: monitoring and the page, too.")
@click.option(
    "--archive-to",
    type=click.Path(file_okay=False),
    help="Folder for what on_expiry='archive' exports (env: ALEMBIC_PARTITIONS_ARCHIVE).",
)
@click.option(
    "--url", envvar="DATABASE_URL", help="The database (env: DATABASE_URL; else as env.py connects)."
)
@click.option("--schema", help="Where partition_config is, if there are several.")
@alembic_options
@click.pass_obj
def serve(
    call: Call,
    host: str,
    port: int,
    token_file: str | None,
    closed: bool,
    archive_to: str | None,
    url: str | None,
    schema: str | None,
) -> int:
    """Serve health, metrics, a page and an API over HTTP, until it is told to end.

    Without a token: /healthz, /readyz, /health, /metrics, /ops/jobs, and the page /partitions. With it
    ("Authorization: Bearer ..."): /api/v1/partitions. What is there, /openapi.json tells.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraMissing(what="serve", package=" and ".join(missing), extra="http")
    token = os.environ.get(TOKEN_VARIABLE)
    if token_file is not None:
        with click.open_file(token_file, encoding="utf-8") as file:
            token = file.read().strip()
    if not token:
        raise click.ClickException(
            f"there is no token to ask for: set {TOKEN_VARIABLE}, or name a file that has it: --token-file."
        )
    with shown_log():
        engine = _engine(call, url)
        _serve(engine, host, port, token, closed, archive_to, schema)
    return EXIT_OK


def _engine(call: Call, url: str | None) -> Engine:
    """Return an engine for a URL, or one that connects as env.py does."""
    if url is not None:
        return engine_at(call, url)
    try:
        found = [engine for _, engine in visit(call, None, (), lambda side, _: side.engine)]
    finally:
        logger.disabled = False  # fileConfig() in env.py silences who is not named in alembic.ini
    if len(found) != 1:
        raise click.ClickException(f"env.py opens {len(found)} databases: say which one with --url.")
    return found[0]


def _serve(
    engine: Engine,
    host: str,
    port: int,
    token: str | None,
    closed: bool,
    archive_to: str | None,
    schema: str | None,
) -> None:
    import uvicorn

    from alembic_partitions.contrib.http import create_app

    app = create_app(engine, token=token, schema=schema, open_probes=not closed, archive_to=archive_to)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            ws="none",
            log_config=None,
            access_log=False,  # ours has the request id
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )
    spoken = logging.getLogger("uvicorn.error")
    spoken.handlers, spoken.propagate, spoken.disabled = [*logger.handlers], False, False
    spoken.setLevel(logging.INFO)
    # uvicorn ends in order, and then raises the signal once more.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with suppress(SystemExit):  # told in one line, as everything is
        server.run()
    if not server.started:
        raise click.ClickException(f"it cannot listen at {host}, port {port}.")
