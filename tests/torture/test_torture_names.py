"""Ten thousand names, policies and bounds that nobody means: no exception but ours, no statement but ours."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import date, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import pytz
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

import alembic_partitions.operations  # noqa: F401  # an installed package needs no such line
from alembic_partitions import PartitionPolicy, executor, health, keeper, maintenance, rows
from alembic_partitions.naming import fits as fits_a_name
from alembic_partitions.periods import Period
from alembic_partitions.plan import (
    Asked,
    ManagedTable,
    Plan,
    Traits,
    plan_gaps,
    plan_horizon,
    plan_retention,
    plan_rows,
    plan_windows,
    runway_of,
    windows_asked,
    windows_between,
)
from tests.torture.cases import Cases
from tests.torture.fuzz import KEY_TYPES, Texts, as_key, fields, fitting, moment, oddity, partitions
from tests.torture.telling import setting, tell

#: TORTURE_CASES is about how many are played in all.
SHARE = setting("TORTURE_CASES", 10_000) / 10_000


def share(count: int) -> int:
    return max(int(count * SHARE), 1)


@pytest.fixture(scope="module")
def cases() -> Iterator[Cases]:
    cases = Cases()
    yield cases
    tell(
        "fuzzed names, policies and bounds",
        {
            **{f"cases: {kind}": count for kind, count in cases.played.items()},
            "cases in all": sum(cases.played.values()),
            **{f"met {name}": count for name, count in cases.errors.most_common()},
            "statements held against their skeletons": cases.skeletons.checked,
            "skeletons that plain names give": len(cases.skeletons.known),
            "plain twins played to learn them": cases.twins,
            "statements that were not ours": 0,
        },
    )


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALEMBIC_PARTITIONS_NOW", "ALEMBIC_PARTITIONS_SCHEMA", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


# -- without a server ----------------------------------------------------------------------------------


def test_a_policy_is_right_and_comes_back_or_is_refused_in_our_words(cases: Cases) -> None:
    def act(texts: Texts, said: list[str]) -> None:
        dice = texts.dice
        policy = PartitionPolicy.from_dict(fields(dice, texts, wild=0.1))
        assert PartitionPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
        assert eval(repr(policy), {"PartitionPolicy": PartitionPolicy}) == policy
        for key_type in dice.sample(KEY_TYPES, 3):
            with cases.ours():
                policy.grid(key_type)
        with cases.ours():
            policy.changed(**{dice.choice([*policy.to_dict(), "no_such"]): oddity(dice)})

    cases.play("policies of any fields", share(4500), act)


def test_whatever_stands_there_a_plan_fits_around_it(cases: Cases) -> None:
    def act(texts: Texts, said: list[str]) -> None:
        dice = texts.dice
        policy, key_type = fitting(PartitionPolicy.from_dict(fields(dice, texts)), dice)
        now, grid = moment(dice), policy.grid(key_type)
        traits = Traits(owner=texts.name("owner"), row_security=dice.random() < 0.2)
        schema, name, oid = texts.name("schema"), texts.name("table"), dice.choice((1, 2**31, 2**32 - 1))
        stands = partitions(dice, grid, now, texts)
        table = ManagedTable(schema, name, policy, oid, key_type, traits, stands)
        user = texts.name("user")
        taken = {texts.name("taken"), f"{table.name}_2026_04_05"}

        def note(plan: Plan) -> None:
            _fits(plan)
            said.append(executor.script(plan, user))

        with cases.ours():
            note(plan_horizon(table, now, taken))
        with cases.ours():
            keys = [as_key(grid, moment(dice)) for _ in range(dice.randrange(1, 5))]
            note(plan_rows(table, keys, now, taken))
        with cases.ours():
            start, stop = as_key(grid, now), as_key(grid, moment(dice))
            note(plan_windows(table, list(windows_between(grid, start, stop, most=40)), taken))
        with cases.ours():
            begin, end = (dice.choice((None, oddity_of_time(dice))) for _ in "ab")
            asked = Asked(begin, end, dice.choice((None, 3)))
            note(plan_gaps(table, now, windows_asked(grid, now, asked), taken))
        with cases.ours():
            gone = plan_retention(table, (), now, referring=(texts.name("key"),))
            said.append(executor.removal_script(gone))
        with cases.ours():
            health.assess(plan_horizon(table, now), now, runway=runway_of(table, now))

    cases.play("plans around odd partitions", share(3000), act, hopeless=False)


def _fits(plan: Plan) -> None:
    names = [step.name for step in plan.steps]
    assert all(map(fits_a_name, names)), names
    assert len(set(names)) == len(names), names
    assert not set(names) & {p.name for p in plan.table.partitions}
    stands = [(p.lower, p.upper) for p in plan.table.partitions if not p.is_default]
    for step in plan.steps:
        assert step.lower < step.upper
        for lower, upper in stands:
            apart = (upper is not None and upper <= step.lower) or (lower is not None and step.upper <= lower)
            assert apart or (lower is not None and lower == upper), (step, lower, upper)
    for here, there in pairwise(sorted(plan.steps, key=lambda step: step.lower)):
        assert here.upper <= there.lower


def oddity_of_time(dice: Any) -> Any:
    """Return what somebody may say of a time."""
    return dice.choice(
        (
            *(
                "2026-04-05",
                "2026-04-05T13:37:11+12",
                "9999-12-31",
                "0001-01-01",
                "2026-02-30",
                "٢٠٢٦-٠٤-٠٥",
                "now",
            ),
            *("2026-04-05 13:37:11+99:99", "2026-04-05T24:00", "2026-04-05\0", "-infinity", "2026-W01-1", ""),
            *(
                "'; DROP TABLE canary.bird; --",
                "\ud800",
                "0044-03-15 BC",
                "1e9",
                "2026-04-05T00:00:00.1234567Z",
            ),
            *(date.min, date.max, datetime.min, datetime.max, date(2026, 4, 5), datetime(2026, 4, 5, 13, 37)),
            moment(dice),
            moment(dice).replace(tzinfo=pytz.FixedOffset(dice.randrange(-1439, 1440))),
        )
    )


def test_a_text_or_a_value_is_a_time_or_is_refused_in_our_words(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_session_zone", lambda connection: pytz.timezone("Pacific/Chatham"))

    def act(texts: Texts, said: list[str]) -> None:
        dice = texts.dice
        policy, key_type = fitting(PartitionPolicy("at", **_zone(dice)), dice)
        grid = policy.grid(key_type)
        values = [dice.choice((oddity(dice), oddity_of_time(dice))) for _ in range(4)]
        for value in values:
            if isinstance(value, (str, date)):
                with cases.ours(ValueError):  # what key_of says of a text that is none
                    grid.at(grid.key_of(value))
            if isinstance(value, str):
                with cases.ours():
                    maintenance.parse_instant(value)
                with cases.ours(ValueError):
                    Period.parse(value).before(moment(dice), policy.timezone)
                with cases.ours():
                    keeper.seconds("wait", value)
        for driver in ("psycopg2", "psycopg", "asyncpg"):
            connection: Any = SimpleNamespace(dialect=SimpleNamespace(driver=driver))
            for key in rows.key_values(values, key_type, connection, lambda: pytz.utc):
                with cases.ours():
                    grid.at(rows.rounded(key, dice.choice((None, 0, 3))))

    cases.play("values and texts for times", share(1730), act)


def _zone(dice: Any) -> dict[str, Any]:
    return {"timezone": dice.choice(pytz.all_timezones), "interval": dice.choice(("hour", "day", "month"))}


def test_a_script_for_psql_says_what_it_says_of_plain_names(cases: Cases) -> None:
    def act(texts: Texts, said: list[str]) -> None:
        dice, buffer = texts.dice, io.StringIO()
        op: Any = Operations(
            MigrationContext.configure(
                dialect_name="postgresql", opts={"as_sql": True, "output_buffer": buffer}
            )
        )
        table, schema = texts.name("table"), texts.name("schema") if dice.random() < 0.7 else None
        values = fields(dice, texts)
        if values.get("key") and dice.random() < 0.3:
            values["tablespace"] = texts.name("space")
        if dice.random() < 0.3:
            values["archive_schema"] = texts.name("archive")
        other, comment = texts.name("column"), texts.name("comment")
        index, made = texts.name("index"), texts.text("2026-04-05")
        try:
            policy = PartitionPolicy.from_dict(values)
            other = other or "A note"  # SQLAlchemy's own business
            columns = [
                sa.Column("id", sa.BigInteger, nullable=False),
                sa.Column(policy.key, sa.DateTime(timezone=True), nullable=False),
                sa.Column(other, sa.Text, comment=comment if dice.random() < 0.3 else None),
            ]
            verbs = (
                lambda: op.create_partitioned_table(table, *columns, policy=policy, schema=schema),
                lambda: op.alter_partition_policy(table, schema=schema, **values),
                lambda: op.create_partitions(
                    table, made, "2026-04-09", schema=schema, existing_policy=policy
                ),
                lambda: op.drop_partitions(table, made, "2026-04-09", schema=schema),
                lambda: op.create_partitioned_index(index, table, [policy.key, other], schema=schema),
                lambda: op.drop_partitioned_table(table, schema=schema),
                lambda: op.create_partition_functions(schema=schema),
                lambda: op.drop_partition_functions(schema=schema),
            )
            for number, verb in enumerate(verbs):
                if dice.random() < (0.6 if number < 6 else 0.05):  # the functions are many, and long
                    with cases.ours(sa.exc.IdentifierError, sa.exc.ArgumentError):
                        verb()  # type: ignore[no-untyped-call]
        finally:
            said.append(buffer.getvalue())

    cases.play("offline scripts", share(700), act)
