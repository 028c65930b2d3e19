"""Writes configs/grafana/dashboards/; with --check, says which of its files differ from what would be written.

.venv/bin/python -m pip install -r configs/grafana/requirements.txt
.venv/bin/python configs/grafana/generate
"""

import sys
from pathlib import Path

import control_plane
import node
import overview
import pipeline
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parents[1] / "dashboards"
BOARDS = {
    "overview.json": overview.board,
    "pipeline.json": pipeline.board,
    "node.json": node.board,
    "control-plane.json": control_plane.board,
}


def main() -> int:
    encoder = JSONEncoder(indent=2, sort_keys=True)
    texts = {FOLDER / name: encoder.encode(made()) + "\n" for name, made in BOARDS.items()}
    if "--check" not in sys.argv[1:]:
        FOLDER.mkdir(exist_ok=True)
        for path, text in texts.items():
            path.write_text(text)
        return 0
    differ = [path.name for path, text in texts.items() if not path.exists() or path.read_text() != text]
    differ += [path.name for path in FOLDER.glob("*.json") if path not in texts]
    for name in differ:
        print(f"{name} is not what configs/grafana/generate writes", file=sys.stderr)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
