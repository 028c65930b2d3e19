"""Metrics of the user's own, from all workers of a host, on a port of their own.

The workers are processes, so `prometheus_client` runs in its multiprocess mode: each writes to files in one folder, and
one of them serves the sum. The service's own metrics are on its own port, at `/metrics`.
"""

import contextlib
import os
import shutil
import tempfile
from typing import Any

PORT = int(os.environ.get("METRICS_PORT", "8001"))
FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR", os.path.join(tempfile.gettempdir(), f"metrics-{PORT}"))
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # in a worker: read when `prometheus_client` is imported
    os.makedirs(FOLDER, exist_ok=True)

from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess, start_http_server  # noqa: E402

from mosec import Server, ValidationError, Worker  # noqa: E402

words = Counter("words", "Words seen, by their first letter.", ["letter"])
length = Histogram("text_length_characters", "Length of the texts.", buckets=(10, 100, 1000, 10000))


class Count(Worker):
    def __init__(self) -> None:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        # Where the port is taken, another worker of this host serves them; if it dies, the one in its place does.
        with contextlib.suppress(OSError):
            start_http_server(PORT, addr="127.0.0.1", registry=registry)

    def forward(self, data: Any) -> dict[str, int]:
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise ValidationError('expected {"text": "..."}')
        length.observe(len(data["text"]))
        found = data["text"].split()
        for word in found:
            words.labels(word[0].lower()).inc()
        return {"words": len(found)}


if __name__ == "__main__":
    server = Server()
    # On a cluster, too: what this script's own environment has stays where it runs.
    env = {"PROMETHEUS_MULTIPROC_DIR": FOLDER, "METRICS_PORT": str(PORT)}
    server.append_worker(Count, num=2, env=[env] * 2)
    server.run()
    shutil.rmtree(FOLDER, ignore_errors=True)
