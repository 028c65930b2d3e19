"""Asks for the entropy of files, over both routes."""

import argparse
import sys
import urllib.request
from pathlib import Path
from typing import Any

import msgpack


def ask_msgpack(url: str, name: str, data: bytes) -> dict[str, Any]:
    body = msgpack.packb({"name": name, "data": data})
    with urllib.request.urlopen(f"{url}/msgpack", body, timeout=60) as response:
        return msgpack.unpackb(response.read())


def ask_raw(url: str, data: bytes) -> str:
    with urllib.request.urlopen(f"{url}/raw", data, timeout=60) as response:
        return response.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    for path in values.files:
        data = path.read_bytes()
        answer = ask_msgpack(values.url, path.name, data)
        print(f"{answer['name']}: {answer['entropy']:.3f} bits per byte, {ask_raw(values.url, data).strip()} by /raw")
    return 0


if __name__ == "__main__":
    sys.exit(main())
