"""Posts files to the service, several at a time, and prints their types."""

import argparse
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000/file-type")
    parser.add_argument("--clients", type=int, default=8)
    values = parser.parse_args()

    def ask(path: Path) -> tuple[bool, str]:
        try:
            body = path.read_bytes()
            if not body:
                return True, f"{path}: empty"  # an empty body is answered by the gateway, without a worker
            with urllib.request.urlopen(values.url, body, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            return False, f"{path}: {error.code} {error.read().decode(errors='replace')}"
        except OSError as error:
            return False, f"{path}: {error}"
        return True, f"{path}: {answer['type']} ({answer['mime']}), {answer['confidence']:.1%}"

    is_good = True
    with ThreadPoolExecutor(values.clients) as pool:
        for answered, line in pool.map(ask, values.files):
            is_good &= answered
            print(line)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
