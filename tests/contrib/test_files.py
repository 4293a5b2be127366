"""The Prometheus rules and the Grafana dashboard that come with the package."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine

from alembic_partitions import contrib
from alembic_partitions.contrib.metrics import PartitionCollector
from alembic_partitions.health import State

FILES = Path(next(iter(contrib.__path__))) / "files"
RULES = FILES / "prometheus_rules.yml"
DASHBOARD = FILES / "grafana_dashboard.json"
TEST_OF_RULES = Path(__file__).with_name("prometheus_rules_test.yml")

METRIC = re.compile(r"\balembic_partitions_\w+")
LABELS = {"schema", "table", "action", "state", "instance", "pod", "job"}


def exported() -> set[str]:
    """Return the names that a collector's samples have."""
    collector = PartitionCollector(create_engine("postgresql+psycopg2://"))
    return {m.name + ("_total" if m.type == "counter" else "") for m in collector.describe()}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def expressions() -> Iterator[str]:
    """Yield what the dashboard asks, as Grafana sends it."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            asked = re.sub(r"\$(job|schema|table)\b", ".*", target["expr"])
            yield asked.replace("$__rate_interval", "5m")


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_have_the_shape_that_prometheus_reads() -> None:
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) == 10
    for rule in found:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= LABELS
        assert "alembic-partitions" in told or rule["alert"] == "PartitionsUnwatched", "what to do"


def test_rules_and_dashboard_ask_for_what_is_exported() -> None:
    names = exported()
    for asked in [*(rule["expr"] for rule in rules()), *expressions()]:
        found = set(METRIC.findall(asked))
        assert found, asked
        assert found <= names, asked
        states = re.findall(r'state=~"([A-Z_|]+)"', asked)
        assert {one for some in states for one in some.split("|")} <= {state.value for state in State}
    variables = json.dumps(dashboard()["templating"])
    assert set(METRIC.findall(variables)) <= names


def test_promtool_finds_the_rules_right() -> None:
    assert "10 rules found" in promtool("check", "rules", RULES)


def test_rules_tell_what_they_should_and_nothing_else(tmp_path: Path) -> None:
    for file in (RULES, TEST_OF_RULES):
        shutil.copy(file, tmp_path)
    promtool("test", "rules", tmp_path / TEST_OF_RULES.name)


def test_what_the_dashboard_asks_is_promql(tmp_path: Path) -> None:
    asked = [{"record": f"asked:{number}", "expr": one} for number, one in enumerate(expressions())]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": asked}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", file)


def test_the_dashboard_has_the_shape_that_grafana_reads() -> None:
    found = dashboard()
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time", "refresh"} <= set(found)
    assert "id" not in found, "Grafana gives it one"
    variables = {one["name"] for one in found["templating"]["list"]}
    assert variables == {"datasource", "job", "schema", "table"}
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"]
        for asks in (panel, *panel["targets"]):
            assert asks["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert not own & cells, f"{panel['title']} lies over another"
        cells |= own
    assert len(cells) == 24 * (1 + max(y for _, y in cells)), "without a hole"


def test_the_table_names_its_columns() -> None:
    (table,) = [panel for panel in dashboard()["panels"] if panel["type"] == "table"]
    (organize,) = [one["options"] for one in table["transformations"] if one["id"] == "organize"]
    values = {f"Value #{target['refId']}" for target in table["targets"]}
    assert set(organize["renameByName"]) == set(organize["indexByName"]) == {"schema", "table", *values}
    shown = set(organize["renameByName"].values())
    assert {override["matcher"]["options"] for override in table["fieldConfig"]["overrides"]} <= shown
