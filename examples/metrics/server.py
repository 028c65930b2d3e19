"""Metrics of the user's own, from all workers of a host, on a port of their own.

The workers are processes, so `prometheus_client` runs in its multiprocess mode: each writes to files in one folder. One
of the workers serves the sum of all; when it ends, another one does. On a cluster each host that runs workers has such
a port, for Prometheus to read. The service's own metrics are elsewhere, at its `/metrics`.
"""

import errno
import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PORT = int(os.environ.get("METRICS_PORT", "8001"))


def shared_folder() -> str:
    """The folder of all processes of this host, emptied by the first to come when nobody uses it any more."""
    folder = Path(tempfile.gettempdir(), f"metrics-{PORT}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Held until this process ends. Files of a process that has ended count on while another one holds the folder.
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in folder.glob("*.db"):
            file.unlink()
    except BlockingIOError:
        pass
    fcntl.flock(lock, fcntl.LOCK_SH)
    return str(folder)


# Has to be set before `prometheus_client` is imported. Processes that this one starts inherit it.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared_folder()

from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess, start_http_server  # noqa: E402

from mosec import Server, ValidationError, Worker, get_logger  # noqa: E402

logger = get_logger()

words = Counter("words", "Words seen, by their first letter.", ["letter"])
length = Histogram("text_length_characters", "Length of the texts.", buckets=(10, 100, 1000, 10000))


def serve_sum() -> None:
    """Serves what all processes of this host have counted, as soon as no other process does."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    while True:
        try:
            start_http_server(PORT, registry=registry)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            time.sleep(1)
    logger.info("process %d serves the metrics of this host at port %d", os.getpid(), PORT)


class Count(Worker):
    def __init__(self) -> None:
        threading.Thread(target=serve_sum, daemon=True).start()

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
    # `env` goes with the service to the nodes of a cluster, which do not have this process's environment.
    server.append_worker(Count, num=2, env=[{"METRICS_PORT": str(PORT)}] * 2)
    server.run()
