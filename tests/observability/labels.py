"""Which labels a series has, and which an expression takes it to have."""

import re
from collections.abc import Iterator, Mapping

from boards import HISTOGRAM, NAME, OF_PROMETHEUS, ROOT, Rule, base, metrics

DOCUMENT = ROOT / "docs/metrics.md"
# Prometheus gives every series the name of its job and of the process that it is from.
OF_SCRAPE = frozenset({"job", "instance"})
SELECTOR = re.compile(rf"({NAME.pattern})(?:\{{([^}}]*)\}})?")
MATCHER = re.compile(r"([a-z_]+)\s*[=!]~?")
BY = re.compile(r"\bby\s*\(([^)]*)\)\s*")
ON = re.compile(r"\b(?:on|ignoring|group_left|group_right)\s*\(([^)]*)\)")

Labels = Mapping[str, frozenset[str]]


def documented() -> dict[str, frozenset[str]]:
    """The labels of each series that docs/metrics.md lists, and those of a scrape."""
    found: dict[str, frozenset[str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("| `"):
            _, name, _, labels, *_ = line.split("|")
            its = OF_SCRAPE | set(_words(labels))
            assert found.setdefault(name.strip(" `"), its) == its, f"{name} has other labels elsewhere"
    return found


def known(rules: list[Rule]) -> dict[str, frozenset[str]]:
    """The same with the series of Prometheus itself, and those that rules record from others."""
    found = documented() | {name: OF_SCRAPE for name in OF_PROMETHEUS}
    found["ALERTS"] = frozenset({"alertname", "alertstate", "severity"}).union(*found.values())
    for rule in rules:
        if not rule.is_alert:
            found[rule.name] = _recorded(rule.expr, found)
    return found


def _recorded(expr: str, labels: Labels) -> frozenset[str]:
    """What is left by the aggregations of a rule, or what all have that it reads."""
    expr = re.sub(r"scalar\([^)]*\)", "", _plain(expr))
    kept = [frozenset(names) for names, _ in grouped(expr)] or [labels[one] for one in metrics(expr)]
    return frozenset.intersection(*kept) if kept else frozenset()


def grouped(expr: str) -> Iterator[tuple[list[str], str]]:
    """The labels of each aggregation, and what is aggregated."""
    for found in BY.finditer(expr):
        assert expr[found.end() :].startswith("("), f"labels behind what is aggregated: {expr}"
        yield _words(found[1]), _enclosed(expr, found.end())


def misfits(expr: str, labels: Labels) -> set[str]:
    """Labels that an expression selects, keeps or matches by, and that what it reads does not have."""
    expr = _plain(expr)
    wrong = set()
    for name, matchers in SELECTOR.findall(expr):
        wrong |= {f"{name}: {one}" for one in MATCHER.findall(matchers) if one not in _of(name, labels)}
    for kept, argument in grouped(expr):
        wrong |= _lacking(kept, argument, labels)
        for inner, _ in grouped(argument):
            wrong |= {f"dropped before: {one}" for one in kept if one not in inner}
    for found in ON.finditer(expr):
        wrong |= _lacking(_words(found[1]), expr, labels)
    return wrong


def _lacking(names: list[str], expr: str, labels: Labels) -> set[str]:
    return {f"{metric}: {one}" for metric in metrics(expr) for one in names if one not in _of(metric, labels)}


def _of(metric: str, labels: Labels) -> frozenset[str]:
    whole = base(metric, set(labels))
    is_bucket = metric != whole and metric.endswith(HISTOGRAM[0])
    return labels[whole] | ({"le"} if is_bucket else set())


def _plain(expr: str) -> str:
    """An expression without the values of its matchers, which may have any character."""
    return re.sub(r'"[^"]*"', '""', expr)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z_]+", text)


def _enclosed(expr: str, start: int) -> str:
    """What is between the parenthesis at `start` and the one that closes it."""
    depth = 0
    for at in range(start, len(expr)):
        depth += {"(": 1, ")": -1}.get(expr[at], 0)
        if depth == 0:
            return expr[start + 1 : at]
    raise AssertionError(f"a parenthesis is open: {expr}")
