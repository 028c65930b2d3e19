"""Native half of the package."""

from typing import Any, final

from typing_extensions import Buffer  # in the standard library from 3.12 on; type checkers bring it

__all__ = [
    "Channel",
    "DryRun",
    "Stop",
    "Watch",
    "__version__",
    "command",
    "encode_json",
    "serve",
]

__version__: str

@final
class Channel:
    """The worker's end of its channel to the node agent."""

    @staticmethod
    def attach() -> tuple[Channel, str]:
        """Takes the channel over from standard input. With the worker's specification, as JSON."""

    def ready(self) -> None:
        """Says that the worker takes batches from now on."""

    def failed(self, traceback: str) -> None:
        """Says why the worker cannot start."""

    def give_views(self) -> None:
        """Gives payloads as `memoryview`s from now on, large ones of the shared memory itself."""

    def next(self) -> tuple[int, list[tuple[int, Any]]] | None:
        """Waits for the next batch; `None` when the worker is to stop. Without the items that nobody waits for.

        Payloads are `bytearray`s, or `memoryview`s after `give_views`.
        """

    def answer(self, batch: int, codes: list[int], payloads: list[Buffer]) -> None:
        """Answers every item of a batch, in order."""

    def send_event(self, batch: int, index: int, text: str) -> None:
        """Sends an event of one item, which goes nowhere if nobody waits for the item any more."""

    def watch(self, batch: int, index: int) -> Watch:
        """Follows one item of a batch."""

    def forward_started(self) -> None:
        """Starts the clock of the stage's time limit."""

    def forward_ended(self) -> None:
        """Stops the clock of the stage's time limit."""

@final
class Watch:
    """Follows one item until its batch has been answered."""

    def request(self) -> int:
        """The request's number."""

    def headers(self) -> bytes:
        """The client's headers that the stage asks for: `name:value` in lines that end with a line feed."""

    def deadline(self) -> float:
        """The deadline, as `time.monotonic` counts; infinite where there is none."""

    def cancelled(self) -> bool:
        """Whether the answer is of use to nobody any more."""

@final
class Stop:
    """Ends a running server for a reason of Python's."""

    def __new__(cls) -> Stop: ...
    def fail(self, reason: str) -> None:
        """Makes the server answer what it has and end with an error. Only the first reason counts."""

    def signal(self, number: int) -> None:
        """Makes the server answer what it has and end as it should, because of a signal."""

@final
class DryRun:
    """The service of a dry run: its workers, without a port."""

    def __new__(cls, config: str) -> DryRun: ...
    def send(self, route: int, payloads: list[bytes]) -> list[tuple[int, bytes]]:
        """Sends requests to a route, all at once, and waits for their answers, in order."""

    def pids(self) -> list[int | None]:
        """The process of each stage's first worker; `None` where there is none just now."""

    def stop(self) -> None:
        """Lets the workers leave. A second call does nothing."""

def serve(config: str, stop: Stop) -> int:
    """Runs the server that `Server.run` has described, until a signal or `stop`. The process's exit code."""

def command(name: str, args: list[str]) -> int:
    """Runs one of the wheel's programs. Its exit code."""

def encode_json(value: Any) -> bytes | None:
    """`json.dumps(value, indent=2)` of built-in types; `None` where only the standard library can tell."""
