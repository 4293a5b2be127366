"""Many tables, many routers, many who look: what is shared is done once, and nobody gets another's answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.types import ASGIApp, Receive, Scope, Send

from alembic_partitions.contrib.http import browsing, looks, router, shapes
from tests.contrib.web import API, TOKEN, engine_for, mounted, web
from tests.databases import Database
from tests.tables import declare, partitions, policy, run


@pytest.mark.parametrize("driver", ["psycopg2", "asyncpg"])
def test_what_takes_long_is_done_once_a_look_and_stalls_no_loop(
    engine: Engine, database: Database, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(engine, "odds", policy())
    done: list[tuple[str, threading.Thread]] = []

    def noted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def work(*args: Any, **options: Any) -> Any:
            done.append((name, threading.current_thread()))
            return real(*args, **options)

        monkeypatch.setattr(module, name, work)

    noted(looks, "judge")
    noted(browsing, "render")
    for name in ("health", "status", "partitions"):
        noted(shapes, name)
    with mounted(engine_for(database, driver)) as client:
        for _ in range(2):
            for path in ("/health", f"{API}/health", f"{API}/list", f"{API}/status"):
                assert client.get(path).status_code == 200, path
        ids = ("r-1", "r-2")
        pages = [client.get("/partitions", headers={"X-Request-ID": number}).text for number in ids]
        assert all(number in page for number, page in zip(ids, pages, strict=True))
        assert pages[0].replace("r-1", "r-2") == pages[1]
    assert [name for name, _ in done].count("judge") == [name for name, _ in done].count("render") == 1
    assert threading.current_thread() not in {thread for _, thread in done}
    assert {name for name, _ in done} == {"judge", "render", "health", "status", "partitions"}


def test_of_tables_of_one_name_the_one_in_need_counts(engine: Engine) -> None:
    run(engine, "CREATE SCHEMA a", "CREATE SCHEMA z")
    for schema in ("a", "z"):
        declare(engine, "odds", policy(), schema=schema)
    for name in set(partitions(engine)):
        run(engine, f"DROP TABLE a.{name}")
    gauges = {"odds": "odds_days", "z.odds": "good_days"}
    with mounted(engine, gauges=gauges) as client:
        health, metrics = client.get("/health").json(), client.get("/metrics").text
    assert health["odds_days"] == 0
    assert health["good_days"] > 2
    assert "\nodds_days 0.0" in metrics
    assert "\ngood_days 2." in metrics


@pytest.mark.parametrize("kept", [True, False], ids=["root path kept", "root path taken away"])
def test_two_routers_behind_a_proxy_each_tell_of_their_own_job(engine: Engine, kept: bool) -> None:
    declare(engine, "odds", policy())
    app = FastAPI()
    for prefix in ("/a", "/b"):
        app.include_router(router(engine, token=TOKEN), prefix=prefix)
    app.add_middleware(Proxied, kept=kept)
    with web(app) as client:
        for prefix in ("/a", "/b"):
            order = {"table": "odds", "count": 1, "dryRun": False}
            found = client.ask("POST", f"{prefix}{API}/create", token=TOKEN, json=order)
            location = found.headers["Location"]
            assert location == f"/site{prefix}{API}/jobs/{found.json()['jobId']}"
            while (job := client.get(location.removeprefix("/site"), token=TOKEN).json())[
                "status"
            ] == "running":
                pass
            assert job["jobId"] == found.json()["jobId"]


class Proxied:
    """What a server behind a proxy makes of a request, which came for a path below /site."""

    def __init__(self, app: ASGIApp, kept: bool) -> None:
        self._app, self._root = app, "/site" if kept else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/site", "path": self._root + scope["path"]}
        await self._app(scope, receive, send)
