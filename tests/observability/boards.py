"""The dashboards and rules of this repository, and the queries in them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "configs/prometheus"
GRAFANA = ROOT / "configs/grafana"
# What a metric of ours, of a rule of ours, or of Prometheus itself is called. Labels are not called so.
NAME = re.compile(r"\b(?:mosec(?:_[a-z0-9]+)+|mosec(?::[a-z0-9_]+)+|process(?:_[a-z]+)+|scrape_[a-z_]+|up|ALERTS)\b")
# Series that Prometheus makes itself.
OF_PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds"}
HISTOGRAM = ("_bucket", "_sum", "_count")


@dataclass(frozen=True)
class Query:
    """A query of a panel; `board` is the name of its file."""

    board: str
    panel: str
    ref: str
    expr: str
    unit: str
    instant: bool


@dataclass(frozen=True)
class Rule:
    """A rule that records a series, or an alert."""

    file: str
    name: str
    expr: str
    is_alert: bool
    wait: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


def boards() -> dict[str, dict]:
    """The dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(board: dict) -> list[dict]:
    """A dashboard's panels without its rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield Query(
                    name,
                    panel["title"],
                    target["refId"],
                    target["expr"],
                    unit_of(panel, target["refId"]),
                    bool(target.get("instant")),
                )


def unit_of(panel: dict, ref: str) -> str:
    """The unit of a panel's values; in a table each column has its own."""
    if panel["type"] != "table":
        return panel["fieldConfig"]["defaults"]["unit"]
    column = columns(panel)[ref]
    return override(panel, column, "unit")


def columns(panel: dict) -> dict[str, str]:
    """What a table's columns of values are called, by the query that they are from."""
    [renamed] = [one["options"]["renameByName"] for one in panel["transformations"] if one["id"] == "organize"]
    refs = [target["refId"] for target in panel["targets"]]
    return {ref: renamed[f"Value #{ref}" if len(refs) > 1 else "Value"] for ref in refs}


def keys(panel: dict) -> dict[str, str]:
    """The labels that make a table's rows, with their titles."""
    [made] = [one["options"] for one in panel["transformations"] if one["id"] == "organize"]
    order = sorted(made["renameByName"], key=made["indexByName"].__getitem__)
    return {name: made["renameByName"][name] for name in order if not name.startswith("Value")}


def override(panel: dict, of: str, name: str):
    """A property of a column or a line by its name, or None."""
    for one in panel["fieldConfig"]["overrides"]:
        if one["matcher"]["options"] == of:
            for given in one["properties"]:
                if given["id"] == name:
                    return given["value"]
    return None


def rules() -> Iterator[Rule]:
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield Rule(
                    path.name,
                    rule.get("alert") or rule["record"],
                    rule["expr"].strip(),
                    "alert" in rule,
                    rule.get("for", ""),
                    rule.get("labels", {}),
                    rule.get("annotations", {}),
                )


def variables(board: dict) -> list[dict]:
    """A dashboard's variables that are values of a label."""
    return [one for one in board["templating"]["list"] if one["type"] == "query"]


def filled(expr: str, values: Mapping[str, str], interval: str = "1m") -> str:
    """An expression as Grafana sends it: with values for its variables."""
    expr = expr.replace("$__rate_interval", interval)
    for name, value in values.items():
        expr = re.sub(rf"\$({name}\b|{{{name}}})", lambda _, value=value: value, expr)
    assert "$" not in expr, f"a variable without a value: {expr}"
    return expr


def metrics(expr: str) -> set[str]:
    """The metrics that an expression reads."""
    return set(NAME.findall(re.sub(r'"[^"]*"', '""', expr)))


def base(metric: str, known: set[str]) -> str:
    """The metric as it is registered: that of a histogram for its buckets, sum and count."""
    if metric in known:
        return metric
    for suffix in HISTOGRAM:
        if metric.endswith(suffix) and metric.removesuffix(suffix) in known:
            return metric.removesuffix(suffix)
    return metric
