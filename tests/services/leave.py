"""Two stages: one passes its data on, the other runs a batch of two until one of its clients has left."""

import time

from mosec import Server, Worker


class Prepare(Worker):
    def forward(self, data):
        return data


class Run(Worker):
    request_headers = ["x-client"]

    def forward(self, data, ctx):
        """Answers with the number of requests, and the clients that have left since it began, which it notes."""
        left = []
        with open(data[0]["notes"], "a") as notes:
            notes.write(f"{len(data)}\n")
        while len(data) > 1 and not left:
            left = [one.headers["x-client"] for one in ctx if one.cancelled()]
            time.sleep(0.01)
        return [{"batch": len(data), "left": left}] * len(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Prepare)
    server.append_worker(Run, max_batch_size=2, timeout=60)
    server.run()
