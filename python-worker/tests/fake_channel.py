"""A channel with the interface of `mosec._native.Channel` that gives prepared batches and keeps what it is told."""

from collections.abc import Callable, Iterable
from typing import Any

INGRESS = 1
EGRESS = 2
BOTH = 3


class FakeChannel:
    def __init__(self, batches: Iterable[list[tuple[int, bytes]]] = ()) -> None:
        self._batches = enumerate(batches, start=1)
        self.answers: dict[int, list[tuple[int, bytes]]] = {}
        self.events: list[str] = []
        self.sent: list[tuple[int, int, str]] = []
        self.cancelled: set[int] = set()
        #: What each request's client has sent, of what its route asks for.
        self.headers = b""
        self._payload: Callable[[bytes], Any] = bytearray

    def give_views(self) -> None:
        self._payload = memoryview

    def next(self) -> tuple[int, list[tuple[int, Any]]] | None:
        for number, items in self._batches:
            return number, [(flags, self._payload(data)) for flags, data in items]
        return None

    def answer(self, batch: int, codes: list[int], payloads: list[Any]) -> None:
        assert batch not in self.answers, "a batch is answered once"
        assert len(codes) == len(payloads)
        assert all(isinstance(code, int) for code in codes)
        self.answers[batch] = [(code, bytes(payload)) for code, payload in zip(codes, payloads, strict=True)]

    def send_event(self, batch: int, index: int, text: str) -> None:
        assert batch not in self.answers
        self.sent.append((batch, index, text))

    def watch(self, batch: int, index: int) -> "FakeWatch":
        return FakeWatch(self, batch, index)

    def forward_started(self) -> None:
        self.events.append("started")

    def forward_ended(self) -> None:
        self.events.append("ended")

    def ready(self) -> None:
        self.events.append("ready")

    def failed(self, text: str) -> None:
        self.events.append(f"failed: {text}")


class FakeWatch:
    """Follows the item `index` of a batch: its number is its place, its deadline as many seconds from the start."""

    def __init__(self, channel: FakeChannel, batch: int, index: int) -> None:
        self._channel, self._batch, self._index = channel, batch, index

    def request(self) -> int:
        return self._batch << 32 | self._index

    def headers(self) -> bytes:
        return self._channel.headers

    def deadline(self) -> float:
        return float(self._index)

    def cancelled(self) -> bool:
        return self._batch in self._channel.answers or self._index in self._channel.cancelled
