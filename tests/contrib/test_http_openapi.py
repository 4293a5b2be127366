"""The OpenAPI is true: every operation is called with what it allows and with what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from sqlalchemy import create_engine
from starlette.types import Receive, Scope, Send

from alembic_partitions.contrib.http import create_app
from tests.contrib.web import TOKEN
from tests.databases import Database
from tests.tables import declare, policy

NOWHERE = create_engine("postgresql+psycopg2://nobody@localhost:1/none")


class Late:
    """An application that is described before there is a database, and then has one."""

    def __init__(self) -> None:
        self.app = create_app(NOWHERE, token=TOKEN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


LATE = Late()
schema = schemathesis.openapi.from_asgi("/openapi.json", LATE)
# The token is ours; that nobody comes in without it is another check.
schema.config.generation.update(with_security_parameters=False)


@pytest.fixture(scope="module", autouse=True)
def _database(module_database: Database) -> Iterator[None]:
    engine = create_engine(module_database.url)
    declare(engine, "odds", policy(retention="30 days"))
    LATE.app = create_app(engine, token=TOKEN, gauges={"odds": "odds_days"})
    yield
    engine.dispose()


@schema.parametrize()
@settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_the_openapi_says(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
