"""A channel with the interface of `mosec._native.Channel` that gives prepared batches and keeps what it is told."""

from collections.abc import Iterable
from typing import Any

INGRESS = 1
EGRESS = 2
BOTH = 3


class FakeChannel:
    def __init__(self, batches: Iterable[list[tuple[int, bytes]]] = ()) -> None:
        self._batches = enumerate(batches, start=1)
        self.answers: dict[int, list[tuple[int, bytes]]] = {}
        self.events: list[str] = []

    def next(self) -> tuple[int, list[tuple[int, bytearray]]] | None:
        for number, items in self._batches:
            return number, [(flags, bytearray(data)) for flags, data in items]
        return None

    def answer(self, batch: int, codes: list[int], payloads: list[Any]) -> None:
        assert batch not in self.answers, "a batch is answered once"
        assert len(codes) == len(payloads)
        assert all(isinstance(code, int) for code in codes)
        self.answers[batch] = [(code, bytes(payload)) for code, payload in zip(codes, payloads, strict=True)]

    def forward_started(self) -> None:
        self.events.append("started")

    def forward_ended(self) -> None:
        self.events.append("ended")

    def ready(self) -> None:
        self.events.append("ready")

    def failed(self, text: str) -> None:
        self.events.append(f"failed: {text}")
