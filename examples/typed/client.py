"""Sends one order that is good and one that is not."""

import argparse
import sys
import urllib.error
import urllib.request
from typing import Any

import msgspec


def ask(url: str, data: Any) -> Any:
    """The answer. `urllib.error.HTTPError` where the request is refused: its body says why."""
    with urllib.request.urlopen(f"{url}/inference", msgspec.msgpack.encode(data), timeout=60) as response:
        return msgspec.msgpack.decode(response.read())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    print(ask(values.url, {"item": "bread", "count": 2, "price": 1.5}))
    try:
        ask(values.url, {"item": "bread", "count": "two", "price": 1.5})
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
