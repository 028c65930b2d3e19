"""Posts a picture to the service, and prints the text in it and where the time went."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000/ocr")
    values = parser.parse_args()
    try:
        with urllib.request.urlopen(values.url, values.picture.read_bytes(), timeout=60) as response:
            answer, timing = json.load(response), response.headers.get("server-timing")
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    for line in answer["lines"]:
        print(line["text"])
    print(f"server-timing: {timing or 'not told'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
