"""Posts JSON to a service and prints its answer."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, data: Any) -> Any:
    """The answer to `data`. `urllib.error.HTTPError` where it is refused: its body says why."""
    with urllib.request.urlopen(f"{url}/inference", json.dumps(data).encode(), timeout=60) as response:
        return json.load(response)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=json.loads, nargs="?", default={"text": "hello"})
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    try:
        print(json.dumps(ask(values.url, values.data)))
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
