"""Queries and rules ask for labels that their series have: others select nothing, or put everything into one."""

import re

import pytest
from boards import boards, queries, rules, variables
from labels import known, misfits

LABELS = known(list(rules()))
VARIABLE = re.compile(r"label_values\((.+), ([a-z_]+)\)")


def test_queries_ask_for_labels_that_there_are() -> None:
    wrong = {f"{one.board}: {one.panel} {one.ref}": misfits(one.expr, LABELS) for one in queries()}
    assert not {name: found for name, found in wrong.items() if found}


def test_rules_ask_for_labels_that_there_are() -> None:
    wrong = {rule.name: misfits(rule.expr, LABELS) for rule in rules()}
    assert not {name: found for name, found in wrong.items() if found}


def test_variables_are_values_of_labels_that_there_are() -> None:
    for name, board in boards().items():
        for one in variables(board):
            [(series, label)] = VARIABLE.findall(one["query"])
            # As if it were grouped by the label.
            assert not misfits(f"count by ({label}) ({series})", LABELS), f"{name}: {one['name']}"


def test_recorded_series_have_the_labels_that_their_rules_leave() -> None:
    assert LABELS["mosec:gateway_requests:rate5m"] == {"pipeline"}
    assert LABELS["mosec:gateway_error_budget:burn_rate3d"] == {"pipeline"}
    assert LABELS["mosec:slo_objective:ratio"] == set()


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ('mosec_gateway_requests_total{stage=~"a|}"}', "mosec_gateway_requests_total: stage"),
        ('sum(up{job="a",pipeline!="b"})', "up: pipeline"),
        ("sum by (pipeline, node) (rate(mosec_agent_workers[5m]))", "mosec_agent_workers: node"),
        ("sum by (le) (rate(mosec_agent_worker_seconds_sum[5m]))", "mosec_agent_worker_seconds_sum: le"),
        ("sum by (stage) (sum by (pipeline) (mosec_agent_workers))", "dropped before: stage"),
        ("mosec_agent_workers / on (pipeline, member) mosec_agent_ready_workers", "mosec_agent_workers: member"),
        ('mosec:gateway_requests:rate5m{revision="1"}', "mosec:gateway_requests:rate5m: revision"),
    ],
)
def test_a_label_that_a_series_does_not_have_is_found(expr: str, wrong: str) -> None:
    assert wrong in misfits(expr, LABELS)


def test_labels_that_there_are_fit() -> None:
    expr = """
        histogram_quantile(0.5, sum by (le, stage) (rate(mosec_agent_worker_seconds_bucket{job="a",instance=~"b"}[5m])))
            / on (pipeline) group_left () mosec_gateway_refused_total{reason!="c"}
    """
    assert not misfits(expr, LABELS)
