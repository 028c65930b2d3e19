"""Two stages that pass a request's number on, and say which processes it went through."""

import os
import time

from mosec import Server, ValidationError, Worker


class First(Worker):
    def forward(self, data):
        if not isinstance(data, dict) or "id" not in data:
            raise ValidationError("expected an object with the key 'id'")
        time.sleep(data.get("sleep", 0))
        return {**data, "first": os.getpid()}


class Second(Worker):
    def forward(self, data):
        time.sleep(0.002)
        return [{**item, "second": os.getpid()} for item in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(First, num=2)
    server.append_worker(Second, num=2, max_batch_size=8, max_wait_time=2)
    server.run()
