"""A stage whose example is an array, which has no truth value."""

from typing import Any

import numpy as np
from acts import note

from mosec import Server, Worker


class ArrayExample(Worker):
    example = np.array([1, 2])

    def forward(self, data: Any) -> Any:
        note("examples", f"array {data}")
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(ArrayExample)
    server.run()
