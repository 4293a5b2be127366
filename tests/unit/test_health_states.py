"""What is to be done about a table, and about all of them together."""

from __future__ import annotations

import dataclasses

import pytest

from alembic_partitions.health import Health, Level, State, TableHealth
from alembic_partitions.plan import Refusal
from tests.unit.test_runway import DEFAULT, NOW, full, having, judged, part, table
from tests.zones import utc


def health_of(*tables: TableHealth, error: str | None = None) -> Health:
    return Health(not any(t.current_missing for t in tables), tables, error)


HEALTHY = judged(full(table()))
CLEANUP = judged(full(table(retention="2 days")))
DEGRADED = judged(full(table(), after=5))
CRITICAL = judged(full(table(), after=0))
NONE = judged(table())
GONE = (Refusal.NO_TABLE, "racing.odds")


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (HEALTHY, State.HEALTHY),
        (CLEANUP, State.CLEANUP_NEEDED),
        (DEGRADED, State.DEGRADED),
        (CRITICAL, State.CRITICAL),
        (NONE, State.NO_PARTITIONS),
        (judged(having(table(), DEFAULT)), State.DEGRADED),
        (judged(table(enabled=False)), State.HEALTHY),
        (judged(full(table(retention="2 days")), failure="the last maintain failed: x"), State.DEGRADED),
        (judged(having(table(), part(utc("2020-01-01"), utc("2020-01-02")))), State.CRITICAL),
        (judged(dataclasses.replace(table(), problem=GONE)), State.CRITICAL),
    ],
)
def test_the_state_of_a_table(found: TableHealth, state: State) -> None:
    assert found.state is state


def test_cleanup_names_what_retention_takes() -> None:
    assert CLEANUP.level is Level.OK
    assert len(CLEANUP.due) == 1, "two days before today are kept"
    assert CLEANUP.partitions == 34


def test_a_partition_off_the_grid_is_told() -> None:
    odd = judged(having(table(), part(utc("2026-04-05 00:00"), utc("2026-06-05 00:00"))))
    assert odd.misaligned
    assert HEALTHY.misaligned == ()


@pytest.mark.parametrize(
    ("tables", "state", "status"),
    [
        ((HEALTHY, HEALTHY), State.HEALTHY, "ok"),
        ((HEALTHY, CLEANUP), State.CLEANUP_NEEDED, "ok"),
        ((CLEANUP, DEGRADED), State.DEGRADED, "ok"),
        ((DEGRADED, CRITICAL), State.CRITICAL, "ok"),
        ((HEALTHY, NONE), State.CRITICAL, "failing"),
        ((NONE, NONE), State.NO_PARTITIONS, "failing"),
        ((), State.NO_PARTITIONS, "ok"),
        ((NONE, judged(table(enabled=False))), State.NO_PARTITIONS, "failing"),
    ],
)
def test_the_state_of_all(tables: tuple[TableHealth, ...], state: State, status: str) -> None:
    assert (health_of(*tables).state, health_of(*tables).status) == (state, status)


def test_what_a_hook_met_degrades() -> None:
    assert health_of(HEALTHY, error="the DDL role is refused").state is State.DEGRADED


def test_a_database_out_of_reach_is_critical() -> None:
    gone = Health(ok=False, error="connection refused")
    assert (gone.state, gone.status) == (State.CRITICAL, "failing")


def test_today_missing_is_critical_and_failing_whatever_else_there_is() -> None:
    found = judged(having(table(), part(utc("2026-04-06 12:00"), utc("2026-04-07 12:00"))), NOW)
    assert (found.state, health_of(found).status) == (State.CRITICAL, "failing")
