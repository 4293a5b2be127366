"""Odds in and out of the database."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.dialects.postgresql import insert

from .models import Odds


def record(
    engine: Engine, selection: int, bookmaker: str, price: Decimal, observed_at: datetime | None
) -> dict[str, Any]:
    """Write a price, once however often it comes; without a time it is of now."""
    statement = insert(Odds).values(
        observed_at=observed_at or datetime.now(timezone.utc),
        selection_id=selection,
        bookmaker=bookmaker,
        price=price,
    )
    kept = statement.on_conflict_do_update(
        index_elements=["observed_at", "selection_id", "bookmaker"],
        set_={"price": statement.excluded.price},
    ).returning(*Odds.__table__.c)
    with engine.begin() as connection:
        return as_sent(connection.execute(kept).one())


def latest(engine: Engine, selection: int) -> dict[str, Any] | None:
    """Return the newest price of a selection."""
    found = history(engine, selection, 1)
    return found[0] if found else None


def history(engine: Engine, selection: int, limit: int) -> list[dict[str, Any]]:
    """Return prices of a selection, the newest first."""
    wanted = (
        select(*Odds.__table__.c)
        .where(Odds.selection_id == selection)
        .order_by(Odds.observed_at.desc())
        .limit(limit)
    )
    with engine.connect() as connection:
        return [as_sent(row) for row in connection.execute(wanted)]


def newest_of_each(engine: Engine) -> list[dict[str, Any]]:
    """Return the newest price of every selection that had one in the last day."""
    wanted = (
        select(*Odds.__table__.c)
        .distinct(Odds.selection_id)
        .where(Odds.observed_at > func.now() - func.make_interval(0, 0, 0, 1))
        .order_by(Odds.selection_id, Odds.observed_at.desc())
    )
    with engine.connect() as connection:
        return [as_sent(row) for row in connection.execute(wanted)]


def as_sent(row: Any) -> dict[str, Any]:
    return {
        "selectionId": row.selection_id,
        "bookmaker": row.bookmaker,
        "price": str(row.price),
        "observedAt": row.observed_at.isoformat(),
    }
