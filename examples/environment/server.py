"""Gives each worker of a stage an environment of its own, as one does to give each of them a GPU."""

import os
import time
from typing import Any

from mosec import Server, Worker

# Worker 1 sees the first of these, worker 2 the second, and so on. A worker that is started again keeps its own.
DEVICES = ["0", "1", "2", "3"]


class OnDevice(Worker):
    def __init__(self) -> None:
        # A model that is loaded here takes the only device it can see.
        self.device = os.environ["CUDA_VISIBLE_DEVICES"]

    def forward(self, data: Any) -> dict[str, Any]:
        time.sleep(0.02)  # stands for a model's work: while one worker is busy, others take what comes
        return {"worker": self.worker_id, "device": self.device}


class Check(Worker):
    """A later stage has none of it."""

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"device_of_next_stage": os.environ.get("CUDA_VISIBLE_DEVICES")}


if __name__ == "__main__":
    server = Server()
    server.append_worker(OnDevice, num=len(DEVICES), env=[{"CUDA_VISIBLE_DEVICES": device} for device in DEVICES])
    server.append_worker(Check)
    server.run()
