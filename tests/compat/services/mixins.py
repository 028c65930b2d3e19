"""The mixins: MessagePack, typed MessagePack, and two ways to hand arrays from stage to stage."""

import argparse
import os
from typing import Any

import numpy as np

from mosec import Runtime, Server, Worker
from mosec.mixin import MsgpackMixin, NumBinIPCMixin, RedisShmIPCMixin, TypedMsgPackMixin


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


class ToArray(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return np.array(data, dtype=np.float32) if isinstance(data, list) else data


class FromArray(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return [type(data).__name__, str(data.dtype), (data * 2).tolist()]


class ToRedis(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return {"data": data}


class FromRedis(RedisShmIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return [data, os.environ.get("MOSEC_INTERNAL_REDIS_URL", "").partition(":")[0]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--redis", type=int)
    values, _ = parser.parse_known_args()
    server = Server()
    if values.redis is not None:
        if values.redis:
            RedisShmIPCMixin.set_redis_url(f"redis://127.0.0.1:{values.redis}/0")
        server.append_worker(ToRedis)
        server.append_worker(FromRedis)
    else:
        server.register_runtime(
            {
                "/packed": [Runtime(Packed)],
                "/typed": [Runtime(Typed)],
                "/typed/batch": [Runtime(TypedBatch, max_batch_size=4, max_wait_time=200)],
                "/array": [Runtime(ToArray), Runtime(FromArray)],
            }
        )
    server.run()
