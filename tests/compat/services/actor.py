"""One stage that does what each request tells it to. Its own options stand beside MOSEC's."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from typing import Any

from acts import failure, note

from mosec import Runtime, Server, Worker


class Actor(Worker):
    """Takes a JSON object; its keys say what is to happen."""

    def deserialize(self, data: Any) -> Any:
        request = super().deserialize(data)
        if isinstance(request, dict) and "decode" in request:
            raise failure(*request["decode"])
        if isinstance(request, dict) and "decode slowly" in request:
            time.sleep(request["decode slowly"])
        if isinstance(request, dict) and "about" in request:
            request["data"] = [type(data).__name__, len(data), bytes(data[:8]).decode()]
        return request

    def forward(self, data: Any) -> Any:
        if self.max_batch_size == 1:
            return self.act(data)
        note("batches", str(len(data)))
        results = [self.act(one) for one in data]
        return shape(data[0].get("result") if isinstance(data[0], dict) else None, results)

    def act(self, request: Any) -> Any:
        if not isinstance(request, dict):
            return request
        if "note" in request:
            note("started", request["note"])
        if "sleep" in request:
            time.sleep(request["sleep"])
        if "sleep stubbornly" in request:
            with contextlib.suppress(Exception):
                time.sleep(request["sleep stubbornly"])
        if "wait for" in request:
            wait_for(request["wait for"])
        if "forward" in request:
            raise failure(*request["forward"])
        if "instead" in request:
            return failure(*request["instead"])
        if "object" in request:
            return object()
        if "kill" in request:
            os.kill(os.getpid(), signal.Signals[request["kill"]])
        if "exit" in request:
            os._exit(request["exit"])
        if "about" in request:
            return self.about(request["data"])
        return request

    def about(self, data: list[Any]) -> dict[str, Any]:
        return {
            "data": data,
            "stage": self.stage,
            "worker_id": self.worker_id,
            "max_batch_size": self.max_batch_size,
            "mime": self.resp_mime_type,
            "in the main thread": threading.current_thread() is threading.main_thread(),
            "module": type(self).__module__,
            "name": __name__,
            "SIGTERM": str(signal.getsignal(signal.SIGTERM)),
            "SIGINT": str(signal.getsignal(signal.SIGINT)),
            "last argument": sys.argv[-1],
            "folder": os.path.basename(os.getcwd()),
        }

    def serialize(self, data: Any) -> Any:
        if not isinstance(data, dict):
            return super().serialize(data)
        if "encode" in data:
            raise failure(*data["encode"])
        if "as" in data:
            return encoded(data["as"], data.get("text", "").encode() * data.get("times", 1))
        if "encode slowly" in data:
            time.sleep(data["encode slowly"])
        return super().serialize(data)


class Second(Worker):
    """Comes behind and waits where a request says so."""

    def forward(self, data: Any) -> Any:
        if isinstance(data, dict) and "then wait for" in data:
            note("second", "x")
            wait_for(data["then wait for"])
        return data


class Warm(Actor):
    """Takes a while to warm up."""

    example = {"sleep": 1}


def encoded(kind: str, text: bytes) -> Any:
    """The answer's payload as the type that the request asks for."""
    return {
        "bytes": text,
        "bytearray": bytearray(text),
        "memoryview": memoryview(text),
        "str": text.decode(),
        "none": None,
        "number": 7,
    }[kind]


def shape(kind: str | None, results: list[Any]) -> Any:
    """The batch's results as the type that its first request asks for."""
    if kind == "short":
        return results[:-1]
    if kind == "long":
        return [*results, 1]
    if kind == "tuple":
        return tuple(results)
    if kind == "array":
        import numpy as np  # not above: hundreds of processes load this file, and loading NumPy is half of their start

        return np.arange(len(results)).astype(object)
    if kind == "generator":
        return (one for one in results)
    if kind == "none":
        return None
    return results


def wait_for(name: str) -> None:
    """Waits until the test has made a file."""
    while not os.path.exists(os.path.join(os.environ["COMPAT_FOLDER"], name)):
        time.sleep(0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0)
    for name in ("fork", "registered", "second", "warm"):
        parser.add_argument(f"--{name}", action="store_true")
    values, _ = parser.parse_known_args()

    server = Server()
    named = {
        "num": values.workers,
        "max_batch_size": values.batch,
        "max_wait_time": values.window,
        "timeout": values.limit,
        "start_method": "fork" if values.fork else "spawn",
    }
    if values.registered:
        server.register_runtime({"/inference": [Runtime(Actor, **named)]})
    else:
        server.append_worker(Warm if values.warm else Actor, **named)
    if values.second:
        server.append_worker(Second)
    server.run()
