"""HTTP/2 with prior knowledge: requests on one connection, answers as they come."""

import socket
from typing import Any

import h2.config
import h2.connection
import h2.events

from .wire import PATIENCE, Response


class Http2:
    """One HTTP/2 connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._state.initiate_connection()
        self._flush()

    def __enter__(self) -> "Http2":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, path: str, body: bytes | None = None) -> int:
        """Sends a request, its body no longer than the first window; answers are told apart by the number given."""
        stream = self._state.get_next_available_stream_id()
        head = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost")]
        self._state.send_headers(stream, head, end_stream=body is None)
        if body is not None:
            size = self._state.max_outbound_frame_size
            for at in range(0, len(body), size):
                self._state.send_data(stream, body[at : at + size], end_stream=at + size >= len(body))
        self._flush()
        return stream

    def answers(self, *streams: int) -> dict[int, Response]:
        """Reads until all these streams have ended."""
        found = {stream: Response("no answer") for stream in streams}
        open_streams = set(streams)
        while open_streams:
            data = self._socket.recv(1 << 16)
            if not data:
                break
            for event in self._state.receive_data(data):
                self._take(event, found, open_streams)
            self._flush()
        return found

    def ask(self, method: str, path: str, body: bytes | None = None) -> Response:
        stream = self.send(method, path, body)
        return self.answers(stream)[stream]

    def _take(self, event: Any, found: dict[int, Response], open_streams: set[int]) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            answer = found[event.stream_id]
            answer.headers = [(name, value) for name, value in event.headers if name != ":status"]
            answer.status = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            found[event.stream_id].body += event.data
            self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            open_streams.discard(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            found[event.stream_id].status = "reset"
            open_streams.discard(event.stream_id)

    def _flush(self) -> None:
        self._socket.sendall(self._state.data_to_send())
