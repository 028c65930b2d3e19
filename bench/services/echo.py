"""One stage that answers each JSON request with itself."""

from typing import Any

from mosec import Server, Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo)
    server.run()
