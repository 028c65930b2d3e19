"""Answers each JSON request with itself: the smallest service there is."""

from typing import Any

from mosec import Server, Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, num=2)
    server.run()
