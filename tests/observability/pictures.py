"""Draws each dashboard as a picture, from its file and what a Prometheus has.

    .venv/bin/python tests/observability/pictures.py http://127.0.0.1:9090 --minutes 10

This is not Grafana: panels, places, queries, units, thresholds and legends are those of the files, the drawing is
Matplotlib's.
"""

import argparse
import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates  # noqa: E402  the backend is chosen first
import matplotlib.pyplot as plt  # noqa: E402
from boards import ROOT, boards, columns, filled, keys, override  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator  # noqa: E402
from source import Series, Source  # noqa: E402
from units import shown  # noqa: E402

GROUND, PANEL, EDGE, TEXT, FAINT = "#111217", "#181b1f", "#2b2f36", "#d5d6db", "#8e9097"
# Grafana's classic palette, and the names that thresholds use.
PALETTE = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d", "#ffb357", "#ff7383"]
NAMED = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "light-blue": "#8ab8ff",
    "purple": "#b877d9",
}
# Inches of one unit of the grid, of which a dashboard has 24 in its width.
UNIT_WIDTH, UNIT_HEIGHT = 0.8, 0.38
TITLE, LEGEND = 0.30, 0.19
LEGENDS = 6
POINTS = 240


class Board:
    """One dashboard on its way to a picture."""

    def __init__(self, board: dict, source: Source, end: float, minutes: float) -> None:
        self.board, self.source, self.end = board, source, end
        self.start = self.end - minutes * 60
        self.values = source.values(board)
        self.rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
        self.height = self.rows * UNIT_HEIGHT + 0.9
        self.figure: Figure = plt.figure(figsize=(24 * UNIT_WIDTH, self.height), facecolor=GROUND)

    def draw(self) -> Figure:
        at = datetime.fromtimestamp(self.end).astimezone().isoformat(sep=" ", timespec="seconds")
        self._text(0.1, 0.3, self.board["title"], size=17, weight="bold")
        self._text(0.1, 0.62, f"Drawn from the dashboard's file and real data of {at}, not by Grafana.", color=FAINT)
        for panel in self.board["panels"]:
            place = panel["gridPos"]
            left, top = place["x"] * UNIT_WIDTH, place["y"] * UNIT_HEIGHT + 0.8
            if panel["type"] == "row":
                self._text(left + 0.1, top + 0.2, panel["title"], size=13, weight="bold")
                continue
            self._panel(panel, left, top, place["w"] * UNIT_WIDTH, place["h"] * UNIT_HEIGHT)
        return self.figure

    def _panel(self, panel: dict, left: float, top: float, width: float, height: float) -> None:
        frame = self._axes(left + 0.04, top + 0.04, width - 0.08, height - 0.08)
        frame.set(xticks=[], yticks=[], facecolor=PANEL)
        for spine in frame.spines.values():
            spine.set_color(EDGE)
        self._text(left + 0.14, top + 0.2, panel["title"], size=10)
        draw: Callable = {
            "timeseries": self._graph,
            "stat": self._number,
            "table": self._table,
            "state-timeline": self._states,
        }[panel["type"]]
        draw(panel, left, top + TITLE, width, height - TITLE)

    def _graph(self, panel: dict, left: float, top: float, width: float, height: float) -> None:
        lines = [line for line in self._lines(panel) if any(math.isfinite(value) for _, value in line[1])]
        colors = [_line_color(panel, name, at) for at, (name, _) in enumerate(lines)]
        shown = min(len(lines), LEGENDS)
        below = 0.3 + LEGEND * math.ceil(shown / 2) + (LEGEND if len(lines) > shown else 0)
        axes = self._axes(left + 0.75, top + 0.08, width - 0.95, height - below - 0.2)
        axes.set_facecolor(PANEL)
        self._style(axes, panel["fieldConfig"]["defaults"]["unit"])
        custom = panel["fieldConfig"]["defaults"]["custom"]
        if custom.get("stacking", {}).get("mode") == "normal":
            self._stack(axes, lines, colors)
        else:
            for color, (_, points) in zip(colors, lines, strict=True):
                axes.plot(*self._xy(points), color=color, linewidth=1.1)
        self._limits(axes, panel, lines)
        for at, (name, _) in enumerate(lines[:shown]):
            x, y = left + 0.2 + (at % 2) * (width - 0.3) / 2, top + height - below + 0.36 + LEGEND * (at // 2)
            self._text(x, y, "━ ", size=8, color=colors[at])
            self._text(x + 0.2, y, _cut(name, (width - 0.8) / 2), size=7.5)
        if len(lines) > shown:
            self._text(left + 0.2, top + height - 0.13, f"and {len(lines) - shown} more", size=7.5, color=FAINT)
        if not lines:
            axes.text(0.5, 0.5, "No data", transform=axes.transAxes, color=FAINT, ha="center", va="center")

    def _stack(self, axes: Axes, lines: list[tuple[str, list[tuple[float, float]]]], colors: list[str]) -> None:
        times = sorted({at for _, points in lines for at, _ in points})
        values = [[_finite(dict(points).get(at, 0.0)) for at in times] for _, points in lines]
        if times:
            axes.stackplot([_date(at) for at in times], values, colors=colors, alpha=0.75, linewidth=0)

    def _limits(self, axes: Axes, panel: dict, lines: list) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        axes.set_xlim(_date(self.start), _date(self.end))
        axes.set_ylim(bottom=0, top=defaults.get("max") or 1.05 * axes.get_ylim()[1])
        if not lines:
            axes.set_ylim(0, defaults.get("max") or 1)
        top = axes.get_ylim()[1]
        if defaults["unit"] in ("bytes", "Bps") and top > 0:
            axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(top / 6))))
        if top <= 0 or top < 1e-12:
            axes.set_ylim(0, 1)
        if defaults["custom"].get("thresholdsStyle", {}).get("mode") == "dashed":
            for step in defaults["thresholds"]["steps"]:
                # As in Grafana, a threshold beyond what is shown does not stretch the axis.
                if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
                    axes.axhline(step["value"], color=NAMED[step["color"]], linewidth=0.9, linestyle="--")

    def _number(self, panel: dict, left: float, top: float, width: float, height: float) -> None:
        [target] = panel["targets"]
        series = self.source.at(self._filled(target["expr"]), self.end)
        defaults = panel["fieldConfig"]["defaults"]
        value = series[0][1][-1][1] if series else math.nan
        text, color = defaults.get("noValue", "No data"), FAINT
        if series and math.isfinite(value):
            words = {
                key: one["text"] for mapping in defaults.get("mappings", []) for key, one in mapping["options"].items()
            }
            text = words.get(f"{value:g}") or shown(value, defaults["unit"], defaults.get("decimals"))
            color = color_of(value, defaults["thresholds"]["steps"])
            if panel["options"]["textMode"] == "name":
                text = _legend(target["legendFormat"], series[0][0])
        self._text(left + width / 2, top + height / 2 - 0.05, text, size=22, color=color, ha="center", weight="bold")

    def _table(self, panel: dict, left: float, top: float, width: float, height: float) -> None:
        titles = list(keys(panel).values()) + list(columns(panel).values())
        lines = self._merged(panel)
        scale = (width - 0.4) / (len(titles) or 1)
        for at, title in enumerate(titles):
            self._text(left + 0.2 + at * scale, top + 0.2, _cut(title, scale), size=9, color="#6e9fff", weight="bold")
        room = int((height - 0.4) / 0.27)
        for down, line in enumerate(lines[:room]):
            for at, (text, color) in enumerate(line):
                self._text(left + 0.2 + at * scale, top + 0.48 + down * 0.27, _cut(text, scale), size=9, color=color)
        if not lines:
            self._text(left + width / 2, top + height / 2, "No data", color=FAINT, ha="center")

    def _merged(self, panel: dict) -> list[list[tuple[str, str]]]:
        """A table's lines: the keys, then a value of each query with its colour."""
        named, titles = keys(panel), columns(panel)
        found: dict[tuple[str, ...], dict[str, float]] = {}
        for target in panel["targets"]:
            for labels, points in self.source.at(self._filled(target["expr"]), self.end):
                key = tuple(labels.get(name, "") for name in named)
                found.setdefault(key, {})[target["refId"]] = points[-1][1]
        lines = []
        for key, values in sorted(found.items()):
            line = [(text, TEXT) for text in key]
            for ref, title in titles.items():
                value = values.get(ref, math.nan)
                steps = (override(panel, title, "thresholds") or {}).get("steps")
                color = color_of(value, steps) if steps else TEXT
                unit, decimals = override(panel, title, "unit"), override(panel, title, "decimals")
                line.append((shown(value, unit, decimals), color) if math.isfinite(value) else ("-", FAINT))
            lines.append(line)
        return lines

    def _states(self, panel: dict, left: float, top: float, width: float, height: float) -> None:
        [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
        colors = {float(key): NAMED.get(one["color"], one["color"]) for key, one in mapping["options"].items()}
        axes = self._axes(left + 1.2, top + 0.1, width - 1.4, height - 0.75)
        axes.set_facecolor(PANEL)
        self._style(axes, "none")
        lines = self._lines(panel)
        step = self._step() / 86400
        for at, (_, points) in enumerate(lines):
            for when, value in points:
                axes.broken_barh(
                    [(_date(when), step * 1.02)], (at - 0.4, 0.8), color=colors.get(value, FAINT), linewidth=0
                )
        axes.set_yticks(range(len(lines)), [name for name, _ in lines])
        axes.set_xlim(_date(self.start), _date(self.end))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.grid(False)
        x = left + 0.2
        for key, one in mapping["options"].items():
            self._text(x, top + height - 0.18, "■", size=9, color=colors[float(key)])
            self._text(x + 0.18, top + height - 0.18, one["text"], size=8)
            x += 0.9

    def _lines(self, panel: dict) -> list[tuple[str, list[tuple[float, float]]]]:
        lines = []
        for target in panel["targets"]:
            found: Series = self.source.over(self._filled(target["expr"]), self.start, self.end, self._step())
            lines += [(_legend(target.get("legendFormat", ""), labels), points) for labels, points in found]
        return lines

    def _step(self) -> float:
        return max(5.0, (self.end - self.start) / POINTS)

    def _filled(self, expr: str) -> str:
        return filled(expr, self.values, self.source.interval)

    def _xy(self, points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
        """Points with a gap wherever some are missing or are no numbers."""
        xs, ys, last = [], [], None
        for at, value in points:
            if last is not None and at - last > 1.5 * self._step():
                xs.append(_date(last))
                ys.append(math.nan)
            xs.append(_date(at))
            ys.append(value if math.isfinite(value) else math.nan)
            last = at
        return xs, ys

    def _style(self, axes: Axes, unit: str) -> None:
        axes.tick_params(colors=FAINT, labelsize=7.5, length=0)
        axes.grid(True, color=EDGE, linewidth=0.6)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
        ticks = dates.AutoDateLocator(minticks=4, maxticks=8)
        ticks.intervald[dates.MINUTELY] = [1, 2, 5, 10, 15, 30]
        axes.xaxis.set_major_locator(ticks)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M", tz=datetime.now().astimezone().tzinfo))
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place in inches from the upper left corner."""
        total = 24 * UNIT_WIDTH
        return self.figure.add_axes(
            (left / total, 1 - (top + height) / self.height, width / total, height / self.height)
        )

    def _text(self, left: float, top: float, text: str, size: float = 9, color: str = TEXT, **more: object) -> None:
        at = left / (24 * UNIT_WIDTH), 1 - top / self.height
        # Braces and dollars in names are no formulas.
        self.figure.text(*at, text, fontsize=size, color=color, va="center", parse_math=False, **more)


def color_of(value: float, steps: list[dict]) -> str:
    """The colour of the last threshold that a value has reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return NAMED.get(reached[-1], TEXT) if reached and math.isfinite(value) else TEXT


def _line_color(panel: dict, name: str, at: int) -> str:
    """The colour that a line has by its name, or else by its place."""
    fixed = override(panel, name, "color")
    return NAMED.get(fixed["fixedColor"], fixed["fixedColor"]) if fixed else PALETTE[at % len(PALETTE)]


def _legend(template: str, labels: dict[str, str]) -> str:
    if not template:
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__") or "value"
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template)


def _cut(text: str, inches: float) -> str:
    room = max(4, int(inches / 0.075))
    return text if len(text) <= room else text[: room - 1] + "…"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _date(at: float) -> float:
    return at / 86400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="base URL of a Prometheus")
    parser.add_argument(
        "--minutes", type=float, default=10, help="how much of the past is shown (default: %(default)s)"
    )
    parser.add_argument("--ago", type=float, default=0, help="how many minutes ago that ended (default: %(default)s)")
    parser.add_argument("--interval", default="20s", help="what $__rate_interval becomes (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/img", help="folder of the pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.time() - args.ago * 60
    for name, board in boards().items():
        path = args.out / f"dashboard-{name}.png"
        figure = Board(board, Source(args.url, args.interval), end, args.minutes).draw()
        figure.savefig(path, dpi=80, facecolor=GROUND)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
