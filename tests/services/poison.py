"""A worker that dies of some requests."""

import os
import signal

from mosec import Server, Worker


class Poison(Worker):
    def forward(self, data):
        if any(item["die"] for item in data):
            os.kill(os.getpid(), signal.SIGKILL)
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Poison, num=2, max_batch_size=8)
    server.run()
