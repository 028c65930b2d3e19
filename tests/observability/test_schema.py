"""The dashboards as constants of the types that Grafana publishes: options that it does not know do not compile."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boards import ROOT, boards, panels
from lacking import lacks

HERE = Path(__file__).parent
# What npm installs stays here.
FOLDER = ROOT / "target/grafana-schema"
TYPES = {
    "timeseries": "timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen",
    "stat": "stat/panelcfg/x/StatPanelCfg_types.gen",
    "table": "table/panelcfg/x/TablePanelCfg_types.gen",
    "state-timeline": "statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen",
}
# Without fields of their own for each series.
NO_FIELDS = {"stat"}
HEAD = """
import type * as raw from "./node_modules/@grafana/schema/dist/types/raw/dashboard/x/dashboard_types.gen";
// Texts stand for the enumerations that have them; what has a default may be left out.
type Plain<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]?: Plain<T[K]> }
  : T;
"""


@pytest.fixture(scope="module")
def compiler() -> Path:
    if not shutil.which("npm"):
        lacks("no npm")
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", FOLDER)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True)
    return FOLDER / "node_modules/.bin/tsc"


def compiled(compiler: Path, source: str) -> str:
    """What the compiler has to say."""
    (FOLDER / "boards.ts").write_text(source)
    options = [
        "--noEmit",
        "--strict",
        "--skipLibCheck",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--target",
        "es2022",
    ]
    return subprocess.run([compiler, *options, "boards.ts"], cwd=FOLDER, capture_output=True, text=True).stdout


def constants() -> str:
    lines = [HEAD]
    for kind, file in TYPES.items():
        lines.append(
            f'import type * as {_word(kind)} from "./node_modules/@grafana/schema/dist/types/raw/composable/{file}";'
        )
    for name, board in boards().items():
        whole = {key: value for key, value in board.items() if key != "panels"}
        lines.append(_constant(_word(name), "raw.Dashboard", whole))
        for panel in panels(board):
            lines += _panel(f"{_word(name)}_{panel['id']}", panel)
    return "\n".join(lines)


def _panel(name: str, panel: dict) -> list[str]:
    kind = _word(panel["type"])
    fields = panel["fieldConfig"]["defaults"].get("custom", {})
    lines = [
        _constant(name, "raw.Panel", {key: value for key, value in panel.items() if key != "options"}),
        _constant(f"{name}_options", f"{kind}.Options", panel.get("options", {})),
    ]
    return lines if kind in NO_FIELDS else [*lines, _constant(f"{name}_fields", f"{kind}.FieldConfig", fields)]


def _constant(name: str, kind: str, value: object) -> str:
    return f"export const {name}: Plain<{kind}> = {json.dumps(value)};"


def _word(name: str) -> str:
    return name.replace("-", "_")


def test_dashboards_are_of_grafanas_types(compiler: Path) -> None:
    assert compiled(compiler, constants()) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"placement": "bottom"', '"placement": "below"'),
        ('"fillOpacity": 8,', '"fillOpacity": "8",'),
        ('"textMode": "value"', '"textmode": "value"'),
        ('"refresh": "10s"', '"refresh": 10'),
    ],
)
def test_what_grafana_does_not_know_does_not_compile(compiler: Path, right: str, wrong: str) -> None:
    source = constants()
    assert right in source
    # Wrong type, unknown property, unknown property with a guess.
    assert re.search("error TS(2322|2353|2561)", compiled(compiler, source.replace(right, wrong)))
