"""Sends texts, and prints what the service has counted so far."""

import argparse
import json
import sys
import urllib.request


def ask(url: str, text: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/inference", json.dumps({"text": text}).encode(), timeout=60) as response:
        return json.load(response)


def counted(url: str) -> dict[str, float]:
    """Values of the service's own series, by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", default=["apples and pears", "plums"])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--metrics-url", default="http://127.0.0.1:8001")
    values = parser.parse_args()
    for text in values.texts:
        ask(values.url, text)
    for name, value in counted(values.metrics_url).items():
        print(f"{name} {value:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
