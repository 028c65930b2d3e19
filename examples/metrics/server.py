"""Metrics of the user's own, from all workers, on a port of their own.

The workers are processes, so `prometheus_client` runs in its multiprocess mode: each writes to files in one folder, and
the process that was started by hand serves their sum. The service's own metrics are on its own port, at `/metrics`.
"""

import os
import tempfile
from typing import Any

# Set before `prometheus_client` is imported; the workers inherit it. The folder goes with this process.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    folder = tempfile.TemporaryDirectory(prefix="metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder.name

from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess, start_http_server  # noqa: E402

from mosec import Server, ValidationError, Worker  # noqa: E402

PORT = int(os.environ.get("METRICS_PORT", "8001"))

words = Counter("words", "Words seen, by their first letter.", ["letter"])
length = Histogram("text_length_characters", "Length of the texts.", buckets=(10, 100, 1000, 10000))


class Count(Worker):
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
    server.append_worker(Count, num=2)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    start_http_server(PORT, addr="127.0.0.1", registry=registry)
    server.run()
