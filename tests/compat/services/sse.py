"""Streams of events, alone and behind another stage. A request is a list of steps."""

import argparse
import os
import threading
import time
from typing import Any

from actor import wait_for
from acts import failure, note

from mosec import Runtime, Server, SSEWorker, Worker


class First(Worker):
    """Comes before a stream; a string is its error."""

    def forward(self, data: Any) -> Any:
        if isinstance(data, str):
            raise failure("ValidationError", data)
        return data


class Steps(SSEWorker):
    """Does the steps of its request: `{"send": text, "long": n, "times": n}`, `{"sleep": s}`, `{"raise": [...]}`."""

    def forward(self, data: Any) -> Any:
        if self.max_batch_size == 1:
            return self.run(data, 0)
        note("batches", str(len(data)))
        return [self.run(steps, index) for index, steps in enumerate(data)]

    def run(self, steps: list[dict[str, Any]], index: int) -> Any:
        returned: Any = "done"
        for step in steps:
            for _ in range(step.get("times", 1) if "send" in step else 0):
                self.send_stream_event(step["send"] * step.get("long", 1), index=step.get("index", index))
            if "thread" in step:
                thread = threading.Thread(target=self.run, args=(step["thread"], index))
                thread.start()
                thread.join()
            if "exit" in step:
                os._exit(step["exit"])
            if "sleep" in step:
                time.sleep(step["sleep"])
            if "note" in step:
                note("steps", step["note"])
            if "wait for" in step:
                wait_for(step["wait for"])
            if "raise" in step:
                raise failure(*step["raise"])
            if "return" in step:
                returned = {"none": None, "object": object(), "text": "text"}[step["return"]]
        return returned


class Nobody(SSEWorker):
    """Sends before there is anybody to send to."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self.send_stream_event("early")
        except (AttributeError, RuntimeError) as error:
            note("early", type(error).__name__)

    def forward(self, data: Any) -> Any:
        return data


class Early(SSEWorker):
    """Streams although it is not the last stage."""

    def forward(self, data: Any) -> Any:
        self.send_stream_event("nobody hears this")
        return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--limit", type=float, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--chained", action="store_true")
    values, _ = parser.parse_known_args()

    server = Server()
    steps = Runtime(Steps, num=values.workers, max_batch_size=values.batch, max_wait_time=300, timeout=values.limit)
    routes = {"/inference": [steps]}
    if values.chained:
        routes = {
            "/inference": [Runtime(First), Runtime(Steps)],
            "/early": [Runtime(Early), Runtime(First)],
            "/nobody": [Runtime(Nobody)],
        }
    server.register_runtime(routes)
    server.run()
