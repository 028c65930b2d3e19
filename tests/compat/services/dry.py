"""Pipelines to be tried out by `--dry-run`."""

import argparse
import threading
from typing import Any

from mosec import Server, Worker


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
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", default="one")
    values, _ = parser.parse_known_args()
    server = Server()
    for stage in PIPELINES[values.what]:
        server.append_worker(stage, max_batch_size=4 if stage is Batched else 1, max_wait_time=10)
    server.run()
