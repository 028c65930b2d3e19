"""The dashboards: written by their program, valid, complete, and reading series that there are."""

import itertools
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from boards import GRAFANA, OF_PROMETHEUS, ROOT, Query, base, boards, filled, metrics, panels, queries, rules, variables
from lacking import lacks
from promtool import promtool

BOARDS = boards()
QUERIES = list(queries())
DOCUMENT = ROOT / "docs/metrics.md"
UNITS = {"none", "s", "bytes", "Bps", "percentunit", "reqps", "ops", "celsius", "watt"}
# What MOSEC's own dashboard shows (examples/monitor/mosec_dashboard.json), with what became of each query.
OF_MOSEC = {
    "scrape_duration_seconds": "scrape_duration_seconds",
    "mosec_service_remaining_task": "mosec_service_remaining_task",
    "mosec_service_batch_size_count": "mosec_service_batch_size_count",
    # So it is called in the MOSEC that tests/compat compares with, too; its dashboard has the name of an earlier one.
    "mosec_service_throughput": "mosec_service_throughput_total",
    # `inference_result_total` is of the example's own worker.
}


def known() -> set[str]:
    """The series that docs/metrics.md lists: names in backticks in the first column of its tables."""
    cells = [line.split("|")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    return {name for cell in cells for name in re.findall(r"`([a-z_]+)", cell)}


def ident(query: Query) -> str:
    return f"{query.board}: {query.panel} {query.ref}"


def values_of(name: str) -> dict[str, str]:
    return {one["name"]: ".*" for one in variables(BOARDS[name])}


def test_the_files_are_what_the_program_writes() -> None:
    if not find_spec("grafana_foundation_sdk"):
        lacks("no grafana_foundation_sdk")
    done = subprocess.run([sys.executable, GRAFANA / "generate", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_all_queries_parse(tmp_path: Path) -> None:
    # As recording rules, as promtool has no command that parses an expression.
    written = [
        {"record": f"query:{at}", "expr": filled(query.expr, values_of(query.board))}
        for at, query in enumerate(QUERIES)
    ]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": written}]}))
    tmp_path.chmod(0o755)
    done = promtool(tmp_path, "check", "rules", "--lint=none", "queries.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(QUERIES)} rules found" in done.stdout


def of_part(stage: str, part: str, seconds: float, times: float) -> list[dict]:
    """The series of a part that requests have `times` a second, for `seconds` each."""
    labels = f'{{pipeline="ocr", stage="{stage}", part="{part}"}}'
    increments = {"sum": 60 * seconds * times, "count": 60 * times}
    return [
        {"series": f"mosec_gateway_part_seconds_{kind}{labels}", "values": f"0+{increment:g}x10"}
        for kind, increment in increments.items()
    ]


@pytest.mark.parametrize("panel", ["Where the time goes", "Where the time goes, by stage"])
def test_parts_add_up_to_the_mean_time_of_a_request(tmp_path: Path, panel: str) -> None:
    [query] = [query for query in QUERIES if query.panel == panel]
    # Of ten requests a second all are found, half are read, and one waits for its batch to fill.
    series = of_part("", "gateway", 0.01, 10) + of_part("find", "worker", 0.1, 10)
    series += of_part("read", "worker", 0.4, 5) + of_part("find", "batch", 0.2, 1)
    mean = 0.01 + 0.1 + 0.4 / 2 + 0.2 / 10
    expr = filled(query.expr, values_of(query.board), "4m")
    case = {
        "expr": f"round(sum({expr}), 1e-6)",
        "eval_time": "5m",
        "exp_samples": [{"labels": "{}", "value": mean}],
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [case]}
    (tmp_path / "parts.yml").write_text(yaml.safe_dump({"tests": [test]}))
    tmp_path.chmod(0o755)
    done = promtool(tmp_path, "test", "rules", "parts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_queries_and_rules_read_series_that_there_are() -> None:
    recorded = {rule.name for rule in rules() if not rule.is_alert}
    there = known() | recorded | OF_PROMETHEUS
    read = {ident(query): query.expr for query in QUERIES}
    read |= {rule.name: rule.expr for rule in rules()}
    read |= {f"{name}: ${one['name']}": one["query"] for name, board in BOARDS.items() for one in variables(board)}
    missing = {
        name: lacking
        for name, expr in read.items()
        if (lacking := {one for one in metrics(expr) if base(one, there) not in there})
    }
    assert not missing
    assert all(metrics(expr) for expr in read.values() if expr != "vector(0.999)"), "a query that reads nothing"


def test_the_queries_of_mosecs_dashboard_have_their_series() -> None:
    there = known() | OF_PROMETHEUS
    assert not {new for new in OF_MOSEC.values() if base(new, there) not in there}


def test_rates_fit_the_range_that_is_shown() -> None:
    """A fixed window misses what lies between two points of a long range."""
    assert not [ident(query) for query in QUERIES if re.search(r"\brate\([^)]*\[(?!\$__rate_interval)", query.expr)]


def test_nothing_selects_buckets() -> None:
    """Prometheus 3 writes `le="1"` as "1.0", and 2 does not."""
    assert not [ident(query) for query in QUERIES if re.search(r"\ble\s*[=!]", query.expr)]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_are_complete(name: str) -> None:
    for panel in panels(BOARDS[name]):
        title = panel["title"]
        assert title and panel["description"].endswith("."), title
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, title
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources), title
        assert panel["targets"], title


@pytest.mark.parametrize("name", BOARDS)
def test_ids_titles_and_places_are_unique(name: str) -> None:
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(ids)) == len(ids) and len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_found_refreshed_and_linked(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"mosec-{name}" and board["tags"] == ["mosec"] and board["refresh"] == "10s"
    assert [link["tags"] for link in board["links"]] == [["mosec"]]
    assert board["templating"]["list"][0]["type"] == "datasource"
    for one in variables(board):
        assert one["multi"] and one["includeAll"], one["name"]


def test_links_lead_to_dashboards_and_variables_that_there_are() -> None:
    found = 0
    for name, board in BOARDS.items():
        for uid, variable in re.findall(r'"/d/([^/]+)/\?var-([a-z]+)=', str(board).replace("'", '"')):
            [target] = [other for other in BOARDS.values() if other["uid"] == uid]
            assert variable in {one["name"] for one in variables(target)}, f"{name} to {uid}"
            found += 1
    assert found > 0


def test_provisioning_names_what_is_mounted() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/mosec.yml").read_text())["providers"]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    scraped = yaml.safe_load((ROOT / "configs/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
    assert source["type"] == "prometheus" and source["jsonData"]["timeInterval"] == scraped
