"""One stage that takes large bodies as they are, and answers with their length and last byte.

`ZERO_COPY=1` is for this project alone.
"""

import os
from typing import Any

from mosec import Server, Worker


class Length(Worker):
    zero_copy = "ZERO_COPY" in os.environ

    def deserialize(self, data: Any) -> Any:
        return data

    def forward(self, data: Any) -> list[int]:
        return [len(data), data[-1]]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Length)
    server.run()
