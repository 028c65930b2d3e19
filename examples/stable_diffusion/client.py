"""Asks for a picture and writes it to a file."""

import argparse
import sys
import urllib.request
from pathlib import Path

import msgpack


def ask(url: str, prompt: str) -> bytes:
    """The JPEG that was drawn."""
    with urllib.request.urlopen(f"{url}/inference", msgpack.packb(prompt), timeout=600) as response:
        return msgpack.unpackb(response.read())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="a photo of an astronaut riding a horse on mars")
    parser.add_argument("--output", type=Path, default=Path("picture.jpg"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    print(f"{values.output}: {values.output.write_bytes(ask(values.url, values.prompt))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
