"""Two routes into one model: `/msgpack` takes a name and bytes, `/raw` takes the body as it is.

Both go through the same stage `Entropy`, whose batches mix the requests of both routes.
"""

import math
from collections import Counter
from typing import Any

from mosec import Runtime, Server, ValidationError, Worker
from mosec.mixin import MsgpackMixin


class Unpack(MsgpackMixin, Worker):
    """{"name": str, "data": bytes}, as MessagePack."""

    def forward(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict) or not isinstance(data.get("data"), bytes):
            raise ValidationError('expected {"name": text, "data": bytes}')
        return {"name": data.get("name"), "data": data["data"]}


class Raw(Worker):
    def deserialize(self, data: bytes) -> dict[str, Any]:
        return {"data": bytes(data)}

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


class Entropy(Worker):
    """Shannon entropy in bits per byte: near 8 for what is random or compressed, near 4 for text."""

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"name": item.get("name"), "entropy": entropy(item["data"])} for item in data]


def entropy(data: bytes) -> float:
    shares = [count / len(data) for count in Counter(data).values()]
    return sum(-share * math.log2(share) for share in shares)


class Pack(MsgpackMixin, Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


class Text(Worker):
    resp_mime_type = "text/plain"

    def forward(self, data: dict[str, Any]) -> str:
        return f"{data['entropy']:.3f}\n"

    def serialize(self, data: str) -> bytes:
        return data.encode()


if __name__ == "__main__":
    model = Runtime(Entropy, num=2, max_batch_size=16, max_wait_time=5)
    server = Server()
    server.register_runtime(
        {
            "/msgpack": [Runtime(Unpack), model, Runtime(Pack)],
            "/raw": [Runtime(Raw), model, Runtime(Text)],
        }
    )
    server.run()
