"""The alerts and recording rules: valid, tried on made-up series, and telling whom it may concern what to do."""

import re
from pathlib import Path

import pytest
import yaml
from boards import PROMETHEUS, ROOT, Rule, rules
from promtool import promtool

TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTS = [rule for rule in rules() if rule.is_alert]
DOCUMENT = ROOT / "docs/dashboards.md"
LABEL = re.compile(r"\$labels\.([a-z_]+)")


def cases() -> list[dict]:
    """What is expected of single alerts: expression and samples."""
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    return [case for test in tests for case in test["promql_expr_test"]]


def expected(alert: str) -> list[list[dict]]:
    return [case["exp_samples"] for case in cases() if f'alertname="{alert}"' in case["expr"]]


def test_prometheus_takes_its_configuration() -> None:
    done = promtool(PROMETHEUS, "check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 rule files found" in done.stdout


def test_rules_are_valid() -> None:
    done = promtool(PROMETHEUS, "check", "rules", *sorted(f"rules/{path.name}" for path in PROMETHEUS.glob("rules/*")))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_alerts_fire_when_they_should(file: Path) -> None:
    done = promtool(PROMETHEUS, "test", "rules", f"tests/{file.name}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(alert: Rule) -> None:
    fires = [bool(samples) for samples in expected(alert.name)]
    assert True in fires and False in fires, fires


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_what_is_wrong_with_what_and_what_to_do(alert: Rule) -> None:
    assert alert.labels["severity"] in ("critical", "warning")
    assert set(alert.annotations) == {"summary", "description", "action"}
    # What a text names has to be a label of the alert, or it would name nothing.
    [sample] = next(samples for samples in expected(alert.name) if samples)
    labels = set(re.findall(r'([a-z_]+)="', sample["labels"]))
    named = {name for text in alert.annotations.values() for name in LABEL.findall(text)}
    assert named <= labels
    telling = labels - {"alertname", "alertstate", "severity"}
    assert not telling or named or telling == {"job"}, f"says nothing of {telling}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_the_documentation_lists_every_alert(alert: Rule) -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{alert.name}` | ")]
    assert len(rows) == 1
    assert rows[0].split(" | ")[1] == alert.labels["severity"]


def test_nothing_selects_buckets() -> None:
    """Prometheus 3 writes `le="1"` as "1.0", and 2 does not."""
    assert not [rule.name for rule in rules() if re.search(r"\ble\s*[=!]", rule.expr)]
