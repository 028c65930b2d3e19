"""Stages that are slow or fail to start, warm up in all ways, and see an environment of their own."""

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from typing import Any

from actor import wait_for
from acts import note

from mosec import Server, Worker


class Slow(Worker):
    """Is ready when the test says so."""

    example = {"an": "example"}

    def __init__(self) -> None:
        note("init", str(self.worker_id))
        wait_for("may load")

    def forward(self, data: Any) -> Any:
        if data == self.example:
            note("warm", f"{self.stage} {self.worker_id}")
            wait_for("may warm up")
        return data


class Refuses(Worker):
    """Cannot start."""

    def __init__(self) -> None:
        note("init", "refused")
        raise RuntimeError("no model here")

    def forward(self, data: Any) -> Any:
        return data


class Leaves(Refuses):
    """Cannot start, and says so by its exit code."""

    def __init__(self) -> None:
        sys.exit(7)


class Loops(Worker):
    """One of two cannot start again and again, once the service is there."""

    def __init__(self) -> None:
        if os.environ["COMPAT_OWN"] == "starts":
            return
        wait_for("may fail")
        note("starts", str(time.monotonic()))
        raise RuntimeError("no model here")

    def forward(self, data: Any) -> Any:
        return data


class Halves(Worker):
    """One of two cannot start while the other one still loads."""

    def __init__(self) -> None:
        if os.environ["COMPAT_OWN"] == "fails":
            note("starts", "x")
            raise RuntimeError("no model here")
        wait_for("may load")

    def forward(self, data: Any) -> Any:
        return data


class OneExample(Worker):
    example = {"n": 1}

    def forward(self, data: Any) -> Any:
        note("examples", f"one {data}")
        return data


class ManyExamples(Worker):
    example = "not taken"
    multi_examples = ["a", "b"]

    def forward(self, data: Any) -> Any:
        note("examples", f"many {data}")
        return data


class BatchExample(Worker):
    example = [1, 2]

    def forward(self, data: list[Any]) -> list[Any]:
        note("examples", f"batch {data}")
        return data


class FalsyExample(Worker):
    example = 0

    def forward(self, data: Any) -> Any:
        note("examples", f"falsy {data}")
        return data


class InstanceExample(Worker):
    def __init__(self) -> None:
        self.example = "of the instance"

    def forward(self, data: Any) -> Any:
        note("examples", f"instance {data}")
        return data


class FailingExample(Worker):
    example = "fails"

    def forward(self, data: Any) -> Any:
        if data == self.example:
            note("examples", f"failing {data}")
            raise ValueError("warm-up fails")
        return data


class Env(Worker):
    def __init__(self) -> None:
        self.at_start = os.environ.get("COMPAT_OWN")

    def forward(self, data: Any) -> Any:
        time.sleep(0.2)
        return [self.worker_id, self.at_start, os.environ.get("COMPAT_OWN")]


class After(Worker):
    def forward(self, data: Any) -> Any:
        return [*data, os.environ.get("COMPAT_OWN")]


def helper() -> None:
    """A daemon; it ends when the test says so."""
    wait_for("daemon may end")


EXAMPLES = (OneExample, ManyExamples, BatchExample, FalsyExample, InstanceExample, FailingExample)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", default="slow")
    parser.add_argument("--fork", action="store_true")
    values, _ = parser.parse_known_args()
    server = Server()
    if values.what == "slow":
        server.append_worker(Slow)
    elif values.what == "refuses":
        server.append_worker(Refuses)
    elif values.what == "leaves":
        server.append_worker(Leaves)
    elif values.what == "examples":
        for worker in EXAMPLES:
            server.append_worker(worker, max_batch_size=2 if worker is BatchExample else 1, max_wait_time=10)
    elif values.what == "env":
        environments = [{"COMPAT_OWN": "a"}, {"COMPAT_OWN": "b"}]
        server.append_worker(Env, num=2, env=environments, start_method="fork" if values.fork else "spawn")
        server.append_worker(After)
    elif values.what in ("loops", "halves"):
        worker = {"loops": Loops, "halves": Halves}[values.what]
        server.append_worker(worker, num=2, env=[{"COMPAT_OWN": "starts"}, {"COMPAT_OWN": "fails"}])
    elif values.what == "process":
        server.append_worker(After)
        process = multiprocessing.Process(target=helper, daemon=True)
        process.start()
        server.register_daemon("helper", process)
    elif values.what == "popen":
        server.append_worker(After)
        command = [sys.executable, "-c", "import lifecycle; lifecycle.helper()"]
        server.register_daemon("helper", subprocess.Popen(command))
    server.run()
    print("run() has returned", flush=True)
