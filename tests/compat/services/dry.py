"""Pipelines to be tried out by `--dry-run`."""

import argparse
import os
import sys
import threading
import types
from typing import Any

from mosec import Runtime, Server, Worker


class Numbers(Worker):
    example = {"n": 3}

    def forward(self, data: Any) -> Any:
        # MOSEC takes a stage that ends before the stages after it for one that failed: this keeps its process a while.
        threading.Timer(1, lambda: None).start()
        return data["n"] + 1


class Batched(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return [{"doubled": 2 * one} for one in data]


class Many(Numbers):
    multi_examples = [{"n": 5}, {"n": 6}]


class None_(Numbers):
    example = None


class Instance(Numbers):
    example = None

    def __init__(self) -> None:
        self.example = {"n": 8}


class Fails(Numbers):
    def forward(self, data: Any) -> Any:
        raise ValueError("not today")


class NoStart(Numbers):
    def __init__(self) -> None:
        raise RuntimeError("no model")


class Leaves(Numbers):
    def __init__(self) -> None:
        sys.exit(7)


class Environment(Numbers):
    """Its result is as long as what its environment says."""

    def forward(self, data: Any) -> Any:
        return os.environ["COMPAT_OWN"]


class Frozen(Numbers):
    """An example that cannot be pickled, as that of MOSEC's own `echo.py`."""

    example = types.MappingProxyType({"n": 2})


class Opaque(Numbers):
    """Gives the next stage what JSON cannot carry."""

    def forward(self, data: Any) -> Any:
        return {1, 2}


class Counts(Worker):
    def forward(self, data: Any) -> Any:
        return len(data)


PIPELINES: dict[str, list[type[Worker]]] = {
    "one": [Numbers],
    "two": [Numbers, Batched],
    "many": [Many],
    "none": [None_],
    "instance": [Instance],
    "fails": [Fails],
    "second fails": [Numbers, Fails],
    "no start": [NoStart],
    "opaque": [Opaque, Counts],
    "leaves": [Leaves],
    "frozen": [Frozen],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", default="one")
    values, _ = parser.parse_known_args()
    server = Server()
    if values.what == "routes":
        server.register_runtime({"/one": [Runtime(Numbers)], "/two": [Runtime(Many), Runtime(Batched, 1, 4)]})
    elif values.what == "environment":
        server.append_worker(Environment, num=2, env=[{"COMPAT_OWN": "a" * 10}, {"COMPAT_OWN": "b" * 20}])
    for stage in PIPELINES.get(values.what, []):
        server.append_worker(stage, max_batch_size=4 if stage is Batched else 1, max_wait_time=10)
    server.run()
