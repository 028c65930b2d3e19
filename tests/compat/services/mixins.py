"""The mixins: MessagePack, typed MessagePack, and two ways to hand arrays from stage to stage."""

import argparse
import os
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np

from mosec import Runtime, Server, Worker
from mosec.mixin import MsgpackMixin, NumBinIPCMixin, RedisShmIPCMixin, TypedMsgPackMixin

if TYPE_CHECKING:
    from nowhere import Missing


class Packed(MsgpackMixin, Worker):
    def forward(self, data: Any) -> Any:
        if data == "object":
            return object()
        return {"type": type(data).__name__, "data": data}


try:
    from msgspec import Struct

    class Point(Struct):
        x: int
        name: str = ""

except ImportError:
    Point = dict  # type: ignore[assignment,misc]


class Typed(TypedMsgPackMixin, Worker):
    def forward(self, data: Point) -> Any:
        return {"x": data.x + 1, "name": data.name}


class TypedBatch(TypedMsgPackMixin, Worker):
    def forward(self, data: list[Point]) -> list[Any]:
        return [{"x": one.x + 1, "batch": len(data) > 0} for one in data]


class TypedList(TypedMsgPackMixin, Worker):
    """Takes one request that is a list: the stage does not batch."""

    def forward(self, data: list[Point]) -> Any:
        return [one.x for one in data]


class Untyped(TypedMsgPackMixin, Worker):
    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


class ForCheckers(TypedMsgPackMixin, Worker):
    """Names a type that only type checkers find, but not for its requests."""

    def forward(self, data: "Point") -> "Missing":
        return {"x": data.x}


class Passes(Worker):
    """A last stage that says nothing of its types."""

    resp_mime_type = "application/msgpack"

    def forward(self, data: Any) -> Any:
        return data

    def serialize(self, data: Any) -> bytes:
        return msgpack.packb(data)


class Unknown(TypedMsgPackMixin, Worker):
    def forward(self, data: "Missing") -> Any:
        return data


class ToArray(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return np.array(data, dtype=np.float32) if isinstance(data, list) else data


class FromArray(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        data *= 2
        return [type(data).__name__, str(data.dtype), data.tolist()]


class ToRedis(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return {"data": data}


class FromRedis(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return [data, os.environ.get("MOSEC_INTERNAL_REDIS_URL", "").partition(":")[0]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int)
    parser.add_argument("--unknown", choices=("request", "result"))
    values, _ = parser.parse_known_args()
    server = Server()
    if values.unknown:
        server.append_worker({"request": Unknown, "result": ForCheckers}[values.unknown])
    elif values.redis is not None:
        if values.redis:
            RedisShmIPCMixin.set_redis_url(f"redis://127.0.0.1:{values.redis}/0")
        server.append_worker(ToRedis)
        server.append_worker(FromRedis)
    else:
        server.register_runtime(
            {
                "/packed": [Runtime(Packed)],
                "/typed": [Runtime(Typed)],
                "/typed/list": [Runtime(TypedList)],
                "/typed/any": [Runtime(Untyped)],
                "/typed/checked": [Runtime(ForCheckers), Runtime(Passes)],
                "/typed/batch": [Runtime(TypedBatch, max_batch_size=4, max_wait_time=200)],
                "/array": [Runtime(ToArray), Runtime(FromArray)],
            }
        )
    server.run()
