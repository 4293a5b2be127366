"""What sensor_events hands to Kubernetes and to Prometheus, read by their own checkers.

What the files ask for, and whether it exists, is tested in tests/examples/test_sensor_events.py.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

HERE = Path(__file__).resolve().parents[2] / "examples" / "sensor_events"
CRONJOBS = list(yaml.safe_load_all((HERE / "k8s" / "cronjob.yaml").read_text()))
RULES = yaml.safe_load((HERE / "alerts.yaml").read_text())

#: batch/v1 CronJob is from 1.21 on, its timeZone from 1.27.
OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version()

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("job", CRONJOBS, ids=lambda job: str(job["metadata"]["name"]))
def test_each_cronjob_is_one_to_kubernetes(job: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(job, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job | {"schedule": "hourly"}, version, strict=True)


def test_the_alert_rules_have_the_shape_of_a_rule_file() -> None:
    assert RULES.keys() == {"groups"}
    for group in RULES["groups"]:
        assert group.keys() == {"name", "rules"}
        for rule in group["rules"]:
            assert rule.keys() - {"for"} == {"alert", "expr", "labels", "annotations"}
            assert rule["annotations"].keys() <= {"summary", "description"}


RUNWAY, REFUSED, MEASURED, MAINTAINED, CHECKED = (
    "events_partition_runway_days",
    "events_no_partition_errors_total",
    'node_textfile_mtime_seconds{file="/var/lib/node_exporter/sensor_events.prom"}',
    'kube_cronjob_status_last_successful_time{cronjob="events-partitions-maintain"}',
    'kube_cronjob_status_last_successful_time{cronjob="events-partitions-check"}',
)
#: What Prometheus reads every five minutes of 30 hours while all is well; a time is 0 when it begins.
NOW = "0+300x360"
WELL = {RUNWAY: "8x360", REFUSED: "3x360", MEASURED: NOW, MAINTAINED: NOW, CHECKED: NOW}
#: And what it reads otherwise, with the alerts that then fire.
ALERTS: dict[str, tuple[dict[str, str], set[str]]] = {
    "all is well": ({}, set()),
    "six days": ({RUNWAY: "6x360"}, {"EventsPartitionsRunOut"}),
    "half a day": ({RUNWAY: "0.5x360"}, {"EventsPartitionsRunOut", "EventsPartitionsEndTomorrow"}),
    "an insert was refused": ({REFUSED: "3x357 4x3"}, {"EventsInsertsFindNoPartition"}),
    "one was in the first run ever": ({REFUSED: "_x355 2x5"}, {"EventsInsertsFindNoPartition"}),
    # Of runs half an hour apart each is refused; the last was 25 minutes ago.
    "each run is refused": (
        {REFUSED: " ".join(str(2 * ((i + 5) // 6)) for i in range(361))},
        {"EventsInsertsFindNoPartition"},
    ),
    "nobody can tell": ({RUNWAY: "_x360"}, {"EventsPartitionsUnknown"}),
    "nobody measures": ({MEASURED: "0x360"}, {"EventsPartitionsUnknown"}),
    "nobody maintains": ({MAINTAINED: "0x360"}, {"EventsMaintenanceTooOld"}),
    "the check fails": ({CHECKED: "0x360"}, {"EventsCheckNotOk"}),
}


@promtool
def test_the_alerts_fire_when_they_should_and_no_others(tmp_path: Path) -> None:
    severity = {rule["alert"]: rule["labels"]["severity"] for g in RULES["groups"] for rule in g["rules"]}
    firing = '{{alertname="{}", severity="{}"}}'
    tests = [
        {
            "name": name,
            "interval": "5m",
            "input_series": [{"series": s, "values": v} for s, v in (WELL | otherwise).items()],
            "promql_expr_test": [
                {
                    "expr": 'sum by (alertname, severity) (ALERTS{alertstate="firing"})',
                    "eval_time": "30h",
                    "exp_samples": [
                        {"labels": firing.format(alert, severity[alert]), "value": 1} for alert in alerts
                    ],
                }
            ],
        }
        for name, (otherwise, alerts) in ALERTS.items()
    ]
    assert set.union(*(alerts for _, alerts in ALERTS.values())) == set(severity)
    file = tmp_path / "tests.yaml"
    rules = [str(HERE / "alerts.yaml")]
    file.write_text(yaml.safe_dump({"rule_files": rules, "evaluation_interval": "5m", "tests": tests}))
    asked("test", "rules", str(file))


@promtool
def test_the_alert_rules_are_such_to_prometheus() -> None:
    asked("check", "rules", str(HERE / "alerts.yaml"))


def asked(*words: str) -> None:
    done = subprocess.run(["promtool", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
