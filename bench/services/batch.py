"""One stage that takes 2 ms for a batch of up to 32 requests, as a small model on an accelerator does.

`BATCHING=adaptive` is for this project alone.
"""

import os
import time
from typing import Any

from mosec import Server, Worker


class Batch(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        time.sleep(0.002)
        return data


if __name__ == "__main__":
    options = {"batching": os.environ["BATCHING"]} if "BATCHING" in os.environ else {}
    server = Server()
    server.append_worker(Batch, max_batch_size=32, max_wait_time=2, **options)
    server.run()
