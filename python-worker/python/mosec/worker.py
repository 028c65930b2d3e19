"""The class a user's stage derives from."""

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from mosec.errors import DecodingError, EncodingError

try:
    from mosec._native import encode_json
except ModuleNotFoundError:  # the source tree alone, without the extension

    def encode_json(value: Any) -> bytes | None:
        return None


# `json.dumps(data, indent=2)` makes an encoder on each call; its bytes are part of the interface.
_encode_any_json = json.JSONEncoder(indent=2).encode
# What `json.loads` comes to in the end.
_scan_json = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_JSON_SPACE = " \t\n\r"


class Worker(ABC):
    """One stage of a service: decodes requests, runs a model on them, encodes the results.

    A worker process makes one object of the class, without arguments, and calls its methods from the main thread, one
    at a time. Load the model in `__init__`. The class must be importable, so it cannot be defined inside a function.
    Where the class has a method `close`, it is called once, when the worker is told to stop and has answered all.
    """

    #: Data that `forward` is called with once before the stage takes requests: a list where the stage batches.
    example: Any = None
    #: Several of them; wins over `example`.
    multi_examples: Sequence[Any] = []
    #: Content type of the answers, where this is a route's last stage.
    resp_mime_type: str = "application/json"
    #: Content type of the requests, for the description of the service only.
    req_mime_type: str = "application/json"
    #: Names of the request headers that `ctx.headers` of `forward` has. No others leave the server.
    request_headers: Sequence[str] = ()
    #: Whether `deserialize` and `deserialize_ipc` get a read-only `memoryview` in place of a copy. Large payloads are
    #: seen where they lie in memory shared with the server, and stay there as long as the view, or an array made of it.
    zero_copy: bool = False

    _worker_id: int = 0
    _stage: str = ""
    _max_batch_size: int = 1

    @abstractmethod
    def forward(self, data: Any) -> Any:
        """Runs the model.

        `data`: one decoded request; where the stage's `max_batch_size` is above 1, a list of 1 to `max_batch_size` of
        them. A list must be answered by as many results in the same order; an exception object in a result's place
        fails that request alone.

        May be `async def`: it then runs on one event loop in the main thread, which rests between batches. With a
        parameter named `ctx` it is given a `mosec.Context` for each request: one, or a list where the data is one.
        """

    def deserialize(self, data: bytes) -> Any:
        """Decodes a request's body, on the first stage of a route. JSON; an empty body is `{}`."""
        if not data:
            return {}
        try:
            return _decode_json(data)
        except Exception as error:
            raise DecodingError from error

    def serialize(self, data: Any) -> bytes:
        """Encodes a result into the answer's body, on the last stage of a route. JSON, indented by two."""
        try:
            return encode_json(data) or _encode_any_json(data).encode()
        except Exception as error:
            raise EncodingError from error

    def serialize_ipc(self, data: Any) -> bytes:
        """Encodes a result for the next stage. Pickle."""
        return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)

    def deserialize_ipc(self, data: bytes) -> Any:
        """Decodes what the stage before has encoded. Pickle."""
        return pickle.loads(data)

    @property
    def worker_id(self) -> int:
        """Number of this process in its stage, from one; the same after a restart. Set after `__init__`."""
        return self._worker_id

    @worker_id.setter
    def worker_id(self, worker_id: int) -> None:
        self._worker_id = worker_id

    @classmethod
    def _check(cls, batching: bool) -> None:
        """Raises what every request would fail by, where this is the first stage of a route."""
        return None

    @property
    def stage(self) -> str:
        """Name of the stage, as in logs and metrics. Set after `__init__`."""
        return self._stage

    @stage.setter
    def stage(self, stage: str) -> None:
        self._stage = stage

    @property
    def max_batch_size(self) -> int:
        """Most requests in one `forward`. Set after `__init__`."""
        return self._max_batch_size

    @max_batch_size.setter
    def max_batch_size(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size


class SSEWorker(Worker):
    """A worker that answers with a stream of server-sent events. Only as the last stage of a route.

    What `forward` returns is not sent. It must be right all the same: as long as the batch, and fit for `serialize`;
    otherwise the stream ends with an error.
    """

    resp_mime_type = "text/event-stream"

    _send_event: Callable[[str, int], None] | None = None

    def send_stream_event(self, text: str, index: int = 0) -> None:
        """Sends an event to a client, from any thread while `forward` runs.

        `index`: position in the data of the request it belongs to. Never waits for a client. Where nobody listens any
        more, and after `forward` has returned, events are dropped.
        """
        if self._send_event is None:
            raise RuntimeError("the worker is not initialised: events can be sent once it takes requests")
        self._send_event(text, index)


def header_names(worker: type[Worker]) -> list[str]:
    """The names in `request_headers` of a class, in lower case. `TypeError` where it holds anything else."""
    names = worker.request_headers
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected a list of names as {worker.__qualname__}.request_headers, found {names!r}")
    return [name.lower() for name in names]


def _decode_json(data: bytes) -> Any:
    """`json.loads` of bytes, sooner: most bodies are UTF-8 and begin with their value, so nothing is to be found out.

    What is UTF-8 and a value is so in no other encoding: the others differ by null characters, which JSON has nowhere.
    """
    try:
        text = data.decode()
        value, end = _scan_json(text, 0)
        if end == len(text) or not text[end:].strip(_JSON_SPACE):
            return value
    except Exception:  # the library finds the right value, or the right words
        pass
    return json.loads(bytes(data) if isinstance(data, memoryview) else data)
