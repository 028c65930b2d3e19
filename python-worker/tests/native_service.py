"""The service that `test_native.py` talks to: a route for each thing that is to be seen from outside."""

import os
import time

from mosec import Runtime, Server, Worker
from mosec.mixin import MsgpackMixin


class Echo(Worker):
    def forward(self, data):
        return data


class Batch(Worker):
    def forward(self, data):
        return [{"value": item["value"], "batch": len(data)} for item in data]


class Pack(MsgpackMixin, Worker):
    def forward(self, data):
        return {"type": type(data["list"]).__name__, "list": data["list"]}


class Slow(Worker):
    def forward(self, data):
        deadline = time.monotonic() + data["seconds"]
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return os.getpid()


class Place(Worker):
    def __init__(self):
        self.at_start = os.environ.get("PLACE")

    def forward(self, data):
        time.sleep(0.02)  # so that both replicas have work at the same time
        return {"id": self.worker_id, "place": self.at_start, "stage": self.stage, "pid": os.getpid()}


class Shared(Worker):
    def forward(self, data):
        return [{"seen": {1, 2}, "from": item} if item == "inner" else {"from": item} for item in data]


class Sizes(Worker):
    """Only what comes between stages can carry a set: JSON knows none."""

    resp_mime_type = "text/plain"

    def forward(self, data):
        return f"{sum(data['seen'])} of {data['from']}"

    def serialize(self, data):
        return data.encode()


class Broken(Worker):
    def forward(self, data):
        raise RuntimeError("a secret of the author's")


def main():
    shared = Runtime(Shared, max_batch_size=4, max_wait_time=1)
    server = Server()
    server.register_runtime(
        {
            "/echo": [Runtime(Echo)],
            # The window is far longer than a test takes: a batch leaves when it is full.
            "/batch": [Runtime(Batch, max_batch_size=8, max_wait_time=20_000)],
            "/adaptive": [Runtime(Batch, max_batch_size=8, max_wait_time=20_000, batching="adaptive")],
            "/pack": [Runtime(Pack)],
            "/slow": [Runtime(Slow, timeout=0.2)],
            "/place": [Runtime(Place, num=2, env=[{"PLACE": "here"}, {"PLACE": "there"}])],
            "/shared": [shared],
            "/sizes": [shared, Runtime(Sizes)],
            "/broken": [Runtime(Broken)],
        }
    )
    server.run()
    print("ran on")


if __name__ == "__main__":
    main()
