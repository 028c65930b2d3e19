"""Makes tones and asks the service which they are."""

import argparse
import json
import sys
import urllib.request

import numpy as np

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0) -> bytes:
    """Samples of a tone, with some noise."""
    time = np.arange(int(RATE * seconds)) / RATE
    noise = np.random.default_rng(0).normal(0, 0.1, len(time))
    return (np.sin(2 * np.pi * hertz * time) + noise).astype("<f4").tobytes()


def ask(url: str, samples: bytes) -> float:
    """The loudest tone in hertz."""
    with urllib.request.urlopen(f"{url}/inference", samples, timeout=60) as response:
        return json.load(response)["hertz"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hertz", type=float, nargs="*", default=[220.0, 440.0, 880.0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    values = parser.parse_args()
    for hertz in values.hertz:
        print(f"{hertz:g} Hz: found {ask(values.url, tone(hertz)):g} Hz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
