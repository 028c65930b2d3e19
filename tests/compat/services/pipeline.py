"""Routes that share stages, whose codecs say who has worked on the payload."""

import argparse
from typing import Any

from acts import failure, note

from mosec import Runtime, Server, Worker


class Tagged(Worker):
    """Writes its name around whatever goes through it."""

    def deserialize(self, data: Any) -> str:
        return f"{self.stage}.in({bytes(data).decode()})"

    def serialize(self, data: str) -> bytes:
        return f"{self.stage}.out({data})".encode()

    def serialize_ipc(self, data: str) -> bytes:
        return f"{self.stage}.send({data})".encode()

    def deserialize_ipc(self, data: Any) -> str:
        if not isinstance(data, bytearray):
            raise TypeError(f"expected a bytearray, found {type(data)}")
        return f"{self.stage}.take({data.decode()})"

    def forward(self, data: Any) -> Any:
        if isinstance(data, list):
            note("batches", str(len(data)))
            return [self.one(item) for item in data]
        return self.one(data)

    def one(self, text: str) -> str:
        for kind in ("ClientError", "ValueError"):
            if f"{kind} in {self.stage}" in text:
                raise failure(kind, text)
        return f"{self.stage}.forward({text})"


class First(Tagged):
    resp_mime_type = "text/first"


class Shared(Tagged):
    resp_mime_type = "text/shared"


class Last(Tagged):
    resp_mime_type = "text/last"


class Plain(Worker):
    """Pickles between stages, as stages do by themselves."""

    def forward(self, data: Any) -> Any:
        return {"seen": data, "tuple": (1, 2), "bytes": b"\0"} if isinstance(data, int) else data

    def serialize(self, data: Any) -> bytes:
        return repr(data).encode()


class Unpicklable(Worker):
    def forward(self, data: Any) -> Any:
        return lambda: data


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--appended", action="store_true")
    values, _ = parser.parse_known_args()
    server = Server()
    if values.appended:
        server.append_worker(First, route=["/a", "/b"])
        server.append_worker(Shared, max_batch_size=4, max_wait_time=300, route="/a")
        server.append_worker(Last, route=["/b", "/a"])
        server.append_worker(Shared, route="/c")
    else:
        unused = Runtime(First)
        first, shared, last = Runtime(First), Runtime(Shared, max_batch_size=4, max_wait_time=300), Runtime(Last)
        plain, again = Runtime(Plain), Runtime(Plain)
        server.register_runtime(
            {
                "/all": [first, shared, last],
                "/shared": [shared],
                "/shared/first": [shared, last],
                "/shared/last": [first, shared],
                "/pickled": [plain, again],
                "/unpicklable": [Runtime(Unpicklable), plain],
            }
        )
    server.run()
