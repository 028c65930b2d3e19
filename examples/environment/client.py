"""Asks until every worker has answered, and prints which device each of them sees."""

import argparse
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/inference", b"{}", timeout=60) as response:
        return json.load(response)


def ask_all(url: str, workers: int, rounds: int = 100) -> dict[int, dict[str, Any]]:
    """One answer of each worker, by its number."""
    answers: dict[int, dict[str, Any]] = {}
    with ThreadPoolExecutor(2 * workers) as pool:
        for _ in range(rounds):
            for answer in pool.map(ask, [url] * 2 * workers):
                answers[answer["worker"]] = answer
            if len(answers) == workers:
                return answers
    raise TimeoutError(f"only the workers {sorted(answers)} have answered")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--workers", type=int, default=4)
    values = parser.parse_args()
    for worker, answer in sorted(ask_all(values.url, values.workers).items()):
        print(f"worker {worker}: device {answer['device']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
