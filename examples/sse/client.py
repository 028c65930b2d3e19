"""Prints the words of an answer as they come."""

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any


class StreamError(Exception):
    """The service sent an event of the kind `error`. The stream's status is 200 even then."""


def stream(url: str, data: Any) -> Iterator[str]:
    """The texts of the events."""
    with urllib.request.urlopen(f"{url}/inference", json.dumps(data).encode(), timeout=60) as response:
        kind, lines = "message", []
        for line in response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                lines.append(value)
            elif name == "" and lines:  # an empty line ends an event
                text = "\n".join(lines)
                if kind == "error":
                    raise StreamError(text)
                yield text
                kind, lines = "message", []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="words come one by one")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    try:
        for word in stream(values.url, {"text": values.text}):
            print(word, flush=True)
    except StreamError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
