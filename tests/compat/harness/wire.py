"""A small HTTP/1.1 client over plain sockets: what goes out is given byte by byte, what comes back is kept as it is."""

import contextlib
import socket
import time
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 20.0
# Varies between two runs of one implementation.
_VARIES = {"date": "<date>", "etag": "<etag>", "last-modified": "<time>"}


@dataclass
class Response:
    """An answer, or in place of the status how there came none: `refused`, `closed` or `no answer`."""

    status: int | str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    seconds: float = 0.0

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def seen(self) -> dict[str, Any]:
        headers = {name: _VARIES.get(name, value) for name, value in self.headers}
        if headers.get("server", "").startswith("mosec/"):
            headers["server"] = "mosec/<version>"
        return {"status": self.status, "body": text(self.body), **{f"header {k}": v for k, v in headers.items()}}

    def short(self) -> str:
        """Status and body in one line."""
        return f"{self.status} {text(self.body)}"


def text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"{len(data)} bytes {data[:16].hex()}"


class Closed(Exception):
    """The other end closed the connection before the answer was complete."""


class Connection:
    """One connection to a server."""

    def __init__(self, port: int, patience: float = PATIENCE) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def is_closed(self) -> bool:
        """Waits until the other end has closed the connection; false if it sends something instead, or nothing."""
        try:
            return not self._buffer and self._socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def response(self, head_only: bool = False) -> Response:
        """Reads one answer with its body."""
        response = self.head()
        if head_only or response.status in (100, 204, 304):
            return response
        if response.header("transfer-encoding") == "chunked":
            while chunk := self.chunk():
                response.body += chunk
        elif (length := response.header("content-length")) is not None:
            response.body = self._take(int(length))
        else:
            response.body = self._all()
        return response

    def head(self) -> Response:
        lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines[1:] if line]
        return Response(int(lines[0].split(" ")[1]), [(key.lower(), value.strip()) for key, _, value in pairs])

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty after the last one."""
        size = int(self._until(b"\r\n").split(b";")[0], 16)
        data = self._take(size)
        self._take(2)
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._receive()
        found = bytes(self._buffer[: self._buffer.index(end)])
        del self._buffer[: len(found) + len(end)]
        return found

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._receive()
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _all(self) -> bytes:
        try:
            while True:
                self._receive()
        except Closed:
            found = bytes(self._buffer)
            self._buffer.clear()
            return found

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._buffer += data


class Stream:
    """An answer whose body comes piece by piece."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.response = connection.head()
        self._is_chunked = self.response.header("transfer-encoding") == "chunked"

    def until(self, part: bytes) -> bytes:
        """Reads until `part` has come; all that came so far."""
        while part not in self.response.body:
            self._more()
        return self.response.body

    def rest(self) -> str:
        """Reads to the end and says how it came: `complete`, or `cut` where the body did not end properly."""
        if not self._is_chunked:
            self.response.body += self._connection._take(int(self.response.header("content-length") or 0))
            return "complete"
        try:
            while self._more():
                pass
        except Closed:
            return "cut"
        except TimeoutError:
            return "no end"
        return "complete"

    def close(self) -> None:
        self._connection.close()

    def _more(self) -> bytes:
        chunk = self._connection.chunk()
        self.response.body += chunk
        return chunk


def request(method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of a request; with a body its length is declared."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def exchange(port: int, data: bytes, head_only: bool = False, patience: float = PATIENCE) -> Response:
    """Sends `data` on a connection of its own and reads one answer."""
    start = time.monotonic()
    try:
        with Connection(port, patience) as connection:
            # A server may answer and close before it has read everything.
            with contextlib.suppress(ConnectionError):
                connection.send(data)
            response = connection.response(head_only)
    except ConnectionRefusedError:
        response = Response("refused")
    except (Closed, ConnectionError):
        response = Response("closed")
    except TimeoutError:
        response = Response("no answer")
    response.seconds = time.monotonic() - start
    return response
