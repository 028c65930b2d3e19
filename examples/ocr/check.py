"""Posts the pictures of a folder and counts the lines that were read exactly as they were drawn, in their order."""

import argparse
import json
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/ocr")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--least", type=float, default=0.0, help="exit with 1 below this share of exact lines")
    values = parser.parse_args()
    truth = json.loads((values.folder / "truth.json").read_text())

    def read(name: str) -> list[str]:
        body = (values.folder / name).read_bytes()
        with urllib.request.urlopen(values.url, body, timeout=120) as response:
            return [line["text"] for line in json.load(response)["lines"]]

    with ThreadPoolExecutor(values.clients) as pool:
        readings = dict(zip(truth, pool.map(read, truth), strict=True))
    exact, drawn, but_spaces = Counter(), Counter(), 0
    for name, picture in truth.items():
        wanted, found = picture["lines"], readings[name]
        # A line counts where it stands in its place; one line too many or too few shifts all that follow.
        hits = sum(one == other for one, other in zip(wanted, found, strict=False))
        but_spaces += sum(
            one.replace(" ", "") == other.replace(" ", "") for one, other in zip(wanted, found, strict=False)
        )
        for key in ("all", f"turned by {picture['turn']}", f"{picture['size']} px"):
            exact[key] += hits
            drawn[key] += len(wanted)
        if found != wanted:
            print(f"{name} ({picture['font']}, {picture['size']} px, turned by {picture['turn']}):")
            print(f"  drawn {wanted}\n  read  {found}")
    for key in sorted(drawn):
        print(f"{key:15} {exact[key]:4} of {drawn[key]:4} lines exact, {exact[key] / drawn[key]:.1%}")
    print(f"but for spaces  {but_spaces:4} of {drawn['all']:4} lines exact, {but_spaces / drawn['all']:.1%}")
    return 1 if exact["all"] / drawn["all"] < values.least else 0


if __name__ == "__main__":
    sys.exit(main())
