"""Checks requests against types: what does not fit is answered with 422 and the place that is wrong."""

from typing import Annotated

import msgspec

from mosec import Server
from mosec.mixin import TypedMsgPackMixin


class Order(msgspec.Struct):
    """A request."""

    item: str
    count: Annotated[int, msgspec.Meta(ge=1, le=100)]
    price: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    notes: list[str] = []


class Receipt(msgspec.Struct):
    """An answer."""

    item: str
    total: float
    batch: int


class Till(TypedMsgPackMixin):
    """The stage batches, so `forward` takes a list; each request is checked against `Order`."""

    def forward(self, data: list[Order]) -> list[Receipt]:
        return [Receipt(order.item, order.count * order.price, len(data)) for order in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Till, max_batch_size=8, max_wait_time=5)
    server.run()
