"""What a `forward` may know of a request besides its data."""

import math
import time
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any


class _Nobody:
    """In a request's place where there is none, as when a worker warms up."""

    def request(self) -> int:
        return 0

    def headers(self) -> bytes:
        return b""

    def deadline(self) -> float:
        return math.inf

    def cancelled(self) -> bool:
        return False


class Context:
    """One request, as `forward` sees it that has a parameter named `ctx`.

    Where the stage batches, `ctx` is a list of them, in the order of the data. Its methods may be called from any
    thread, cost less than a microsecond, and stay safe after the request has been answered.
    """

    __slots__ = ("_headers", "_names", "_watch")

    def __init__(self, watch: Any = None, names: Collection[str] = ()) -> None:
        """`names`: headers that the worker asks for, in lower case."""
        self._watch = _Nobody() if watch is None else watch
        self._names = names
        self._headers: Mapping[str, str] | None = None

    @property
    def request_id(self) -> str:
        """The request's number, sixteen hexadecimal digits: the same in every stage, and in the logs."""
        return f"{self._watch.request():016x}"

    @property
    def headers(self) -> Mapping[str, str]:
        """The client's headers, of those that the worker's `request_headers` names. Names are in lower case.

        Values are decoded as Latin-1, which loses nothing. Those of a header that came several times are joined by
        commas, cookies by semicolons.
        """
        if self._headers is None:
            self._headers = MappingProxyType(_parse(self._watch.headers(), self._names))
        return self._headers

    @property
    def deadline(self) -> float:
        """When the request's time is over, as `time.monotonic()` counts. Each event of a stream moves it."""
        return float(self._watch.deadline())

    def remaining(self) -> float:
        """Seconds until the deadline; zero when it has passed."""
        return max(0.0, self.deadline - time.monotonic())

    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more: the deadline has passed, the client has left, or the request
        has been answered. A long `forward` looks now and then, and gives up."""
        return bool(self._watch.cancelled())

    def __repr__(self) -> str:
        return f"<Context of request {self.request_id}>"


def _parse(block: bytes, names: Collection[str]) -> dict[str, str]:
    """Headers in lines `name:value`. Those of other stages' are passed over."""
    found: dict[str, str] = {}
    for line in block.decode("latin-1").split("\n")[:-1]:
        name, _, value = line.partition(":")
        if name in names:
            joint = "; " if name == "cookie" else ", "
            found[name] = f"{found[name]}{joint}{value}" if name in found else value
    return found
