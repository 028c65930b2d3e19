"""Asks a Prometheus every query of every panel and rule, and says what is wrong with the answers.

    .venv/bin/python tests/observability/queries.py http://127.0.0.1:9090

For a cluster that serves requests, or did within the last minute: rates of a cluster at rest are not numbers.
"""

import argparse
import math
import re
import sys
import urllib.error
from dataclasses import dataclass

from boards import Rule, boards, filled, metrics, queries, rules
from source import Series, Source

# What may have no series, and why.
MAY_BE_EMPTY = {
    r"mosec_agent_gpu_": "no GPU",
    r'code!~"2\.\."': "nothing failed",
    r"mosec_gateway_refused_total": "nothing was refused",
    r"mosec_control_plane_rollouts_finished_total": "no rollout has ended",
    r"\(ALERTS": "no alert fires",
}
# Panels whose times are no durations of requests.
LONG = {"Up for", "Certificate", "First certificate", "Certificates"}
HOUR, TEN_YEARS = 3600.0, 10 * 365 * 86400.0
# Least and greatest value of each unit. A rate of what is counted when it ends may be a little above what is possible.
PLAUSIBLE = {
    "percentunit": (0.0, 1.05),
    "s": (0.0, HOUR),
    "bytes": (0.0, 1e15),
    "Bps": (0.0, 1e12),
    "reqps": (0.0, 1e7),
    "ops": (0.0, 1e7),
    "none": (0.0, 1e9),
    "celsius": (0.0, 120.0),
    "watt": (0.0, 2000.0),
}


@dataclass(frozen=True)
class Row:
    """What became of one query. `verdict` begins with "ok" where nothing is wrong with it."""

    board: str
    panel: str
    query: str
    unit: str
    series: int
    sample: float | None
    verdict: str

    @property
    def is_ok(self) -> bool:
        return self.verdict.startswith("ok")


def run(url: str, interval: str = "1m") -> list[Row]:
    """Asks everything of the Prometheus at `url`."""
    source = Source(url, interval)
    values = {name: source.values(board) for name, board in boards().items()}
    rows = []
    for query in queries():
        expr = filled(query.expr, values[query.board], interval)
        bounds = (0.0, TEN_YEARS) if query.panel in LONG else PLAUSIBLE[query.unit]
        rows.append(_row(query.board, query.panel, query.expr, query.unit, _ask(source, expr), bounds))
    for rule in rules():
        rows.append(_alert(source, rule) if rule.is_alert else _recorded(source, rule))
    return rows


def _ask(source: Source, expr: str) -> Series | str:
    """The answer, or why there is none."""
    try:
        return source.now(expr)
    except urllib.error.HTTPError as error:
        return f"{error}: {error.read().decode(errors='replace')}"


def _row(board: str, panel: str, expr: str, unit: str, answer: Series | str, bounds: tuple[float, float]) -> Row:
    if isinstance(answer, str):
        return Row(board, panel, expr, unit, 0, None, answer)
    numbers = [points[-1][1] for _, points in answer]
    finite = [value for value in numbers if math.isfinite(value)]
    sample = finite[0] if finite else None
    return Row(board, panel, expr, unit, len(numbers), sample, _verdict(expr, numbers, finite, bounds))


def _verdict(expr: str, numbers: list[float], finite: list[float], bounds: tuple[float, float]) -> str:
    if not numbers:
        reasons = [reason for pattern, reason in MAY_BE_EMPTY.items() if re.search(pattern, expr)]
        return f"ok: {reasons[0]}" if reasons else "no data"
    if any(math.isinf(value) for value in numbers):
        return "infinite"
    # Grafana leaves gaps for what is at rest beside something that is not.
    if not finite:
        return "not a number: at rest?"
    wrong = [value for value in finite if not bounds[0] <= value <= bounds[1]]
    return f"implausible: {wrong[0]:g}" if wrong else "ok"


def _recorded(source: Source, rule: Rule) -> Row:
    """A recording rule: what Prometheus has recorded, and not what it would."""
    return _row(rule.file, rule.name, rule.name, "none", _ask(source, rule.name), PLAUSIBLE["none"])


def _alert(source: Source, rule: Rule) -> Row:
    """An alert has no data where all is well; what it reads has some."""
    row = _row(rule.file, rule.name, rule.expr, "none", _ask(source, rule.expr), (-math.inf, math.inf))
    if row.verdict != "no data" and not row.verdict.startswith("ok: "):
        return Row(*_first(row), "ok: its condition holds" if row.is_ok else row.verdict)
    lacking = [
        metric
        for metric in sorted(metrics(rule.expr))
        if not source.now(metric) and not any(re.search(pattern, metric) for pattern in MAY_BE_EMPTY)
    ]
    return Row(*_first(row), f"nothing to read: {lacking}" if lacking else "ok: quiet")


def _first(row: Row) -> tuple:
    return row.board, row.panel, row.query, row.unit, row.series, row.sample


def table(rows: list[Row]) -> str:
    """The rows as text, in columns."""
    cells = [("DASHBOARD", "PANEL", "QUERY", "UNIT", "SERIES", "SAMPLE", "VERDICT")]
    for row in rows:
        sample = "-" if row.sample is None else f"{row.sample:.4g}"
        query = " ".join(row.query.split())
        short = query if len(query) <= 60 else query[:57] + "..."
        cells.append((row.board, row.panel, short, row.unit, str(row.series), sample, row.verdict))
    widths = [max(len(line[at]) for line in cells) for at in range(6)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[6]]) for line in cells
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="base URL of a Prometheus")
    parser.add_argument("--interval", default="1m", help="what $__rate_interval becomes (default: %(default)s)")
    parser.add_argument("--failed", action="store_true", help="shows only what is wrong")
    args = parser.parse_args()
    rows = run(args.url, args.interval)
    bad = [row for row in rows if not row.is_ok]
    print(table(bad if args.failed else rows))
    print(f"{len(rows)} queries, {len(bad)} wrong")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
