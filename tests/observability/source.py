"""What a Prometheus says: queries now and over time, and the values that dashboards' variables have."""

import json
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass

from boards import filled, variables

Series = list[tuple[dict[str, str], list[tuple[float, float]]]]


@dataclass(frozen=True)
class Source:
    """A Prometheus; `interval` is what `$__rate_interval` becomes."""

    url: str
    interval: str = "1m"

    def now(self, expr: str) -> Series:
        """Each series with its one value."""
        return _series(self._ask("query", query=expr))

    def at(self, expr: str, time: float) -> Series:
        """The same as it was."""
        return _series(self._ask("query", query=expr, time=time))

    def over(self, expr: str, start: float, end: float, step: float) -> Series:
        return _series(self._ask("query_range", query=expr, start=start, end=end, step=step))

    def values(self, board: dict) -> dict[str, str]:
        """For each variable of a dashboard a pattern of all of its values, as Grafana makes it of chosen ones."""
        found: dict[str, str] = {}
        for one in variables(board):
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"]).groups()
            values = self._ask(f"label/{label}/values", **{"match[]": filled(metric, found)})
            found[one["name"]] = "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in values) + ")"
        return found

    def _ask(self, what: str, **given: object):
        url = f"{self.url.rstrip('/')}/api/v1/{what}?{urllib.parse.urlencode(given)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


def _series(data: dict) -> Series:
    if data["resultType"] == "scalar":
        return [({}, [_point(data["result"])])]
    return [(one["metric"], [_point(point) for point in one.get("values") or [one["value"]]]) for one in data["result"]]


def _point(pair: list) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
