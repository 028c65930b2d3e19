"""The comparison itself: what it lets pass, and what it does not."""

import re

import pytest
from harness import ABSENT, ANY, Case, Difference, Gap
from harness.case import FAILED, flatten
from harness.exposition import families

DIFFERENT = ({"a": 1, "b": 2}, {"a": 1, "b": 3})
EQUAL = ({"a": 1}, {"a": 1})


def problems(reference: dict, ours: dict, *known: Difference | Gap) -> list[str]:
    differs = [entry for entry in known if isinstance(entry, Difference)]
    gaps = [entry for entry in known if isinstance(entry, Gap)]
    return Case(lambda run: None, differs, gaps).problems(reference, ours)


@pytest.mark.parametrize(
    "known",
    [
        Difference("b", 2, 3, "D0"),
        Difference("*", 2, ANY, "D0"),
        Difference("b", lambda value: value < 3, ANY, "D0"),
        Gap("b", "not yet"),
    ],
)
def test_what_is_listed_passes_while_it_occurs(known: Difference | Gap) -> None:
    assert problems(*DIFFERENT, known) == []
    assert problems(*EQUAL, known) != []


def test_what_is_not_listed_fails() -> None:
    assert problems(*DIFFERENT) == ["b: reference 2, ours 3"]
    assert problems({"a": 1}, {}) == ["a: reference 1, ours nothing"]
    assert problems(*EQUAL) == []


@pytest.mark.parametrize("known", [Difference("b", 2, 4, "D0"), Difference("b", ABSENT, 3, "D0")])
def test_what_is_listed_must_be_as_listed(known: Difference) -> None:
    assert len(problems(*DIFFERENT, known)) == 1


def test_a_gap_is_no_more_where_differences_explain_everything() -> None:
    assert problems(*DIFFERENT, Difference("b", 2, 3, "D0"), Gap("*", "not yet")) != []


def test_texts_match_as_a_whole() -> None:
    known = Difference("a", re.compile("x+"), ANY, "D0")
    assert problems({"a": "xx"}, {"a": ""}, known) == []
    assert problems({"a": "xxy"}, {"a": ""}, known) != []


def test_a_race_of_the_reference_may_stay_away() -> None:
    known = Difference("b", 2, 3, "D0", sometimes=True)
    assert problems(*DIFFERENT, known) == [] and problems(*EQUAL, known) == []


def test_a_script_that_fails_is_a_problem() -> None:
    found = problems({"a": 1, "b": 2}, {"a": 1, FAILED: "why"})
    assert len(found) == 1 and "why" in found[0]


def test_parts_get_keys_of_their_own() -> None:
    assert flatten("a", {"b": {"c": 1}, "d": [2]}) == {"a / b / c": 1, "a / d": [2]}


def test_exposition_is_reduced_to_its_shape() -> None:
    text = """# HELP x_total Things.
# TYPE x_total counter
x_total{b="2",a="1"} 3
# TYPE y histogram
y_bucket{s="1",le="0.5"} 1
y_bucket{s="1",le="+Inf"} 2
y_sum{s="1"} 0.7
y_count{s="1"} 2
# TYPE mosec_agent_z gauge
mosec_agent_z 1
# EOF
"""
    assert families(text) == {
        "x": {"HELP": "Things.", "TYPE": "counter", "total {a=1,b=2}": 3.0},
        "y": {"TYPE": "histogram", "bounds {s=1}": ["0.5", "+Inf"], "count {s=1}": 2.0},
    }
