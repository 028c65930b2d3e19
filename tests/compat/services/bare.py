"""A script without `if __name__ == "__main__":`, which its workers run as well."""

import multiprocessing
from typing import Any

from mosec import Server, Worker


class Where(Worker):
    """Says whether it runs in the main process, as far as names tell."""

    def forward(self, data: Any) -> dict[str, Any]:
        return {"data": data, "main": multiprocessing.current_process().name == "MainProcess"}


server = Server()
server.append_worker(Where, num=2)
server.run()
