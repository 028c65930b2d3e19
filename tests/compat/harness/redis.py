"""As much of a Redis server as `RedisShmIPCMixin` uses, for machines that have none."""

import socketserver
import threading
from typing import Any


class Redis:
    """Listens on a port of its own; `commands` keeps the names of what was asked."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.commands: set[str] = set()
        self.lock = threading.Lock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                held: list[list[bytes]] | None = None
                while words := _command(self.rfile):
                    name = words[0].upper()
                    if name == b"MULTI":
                        held, answer = [], b"+OK\r\n"
                    elif name == b"EXEC":
                        held, queued = None, held or []
                        answer = b"*%d\r\n" % len(queued) + b"".join(outer.do(one) for one in queued)
                    elif held is not None:
                        held.append(words)
                        answer = b"+QUEUED\r\n"
                    else:
                        answer = outer.do(words)
                    self.wfile.write(answer)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Redis":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def do(self, words: list[bytes]) -> bytes:
        name, *rest = words
        with self.lock:
            self.commands.add(name.decode().upper())
            match name.upper():
                case b"SET":
                    self.data[rest[0]] = rest[1]
                case b"GET":
                    return _bulk(self.data.get(rest[0]))
                case b"GETDEL":
                    return _bulk(self.data.pop(rest[0], None))
                case b"DEL":
                    return b":%d\r\n" % sum(self.data.pop(key, None) is not None for key in rest)
                case b"INCR" | b"INCRBY":
                    value = int(self.data.get(rest[0], b"0")) + int(rest[1] if len(rest) > 1 else 1)
                    self.data[rest[0]] = b"%d" % value
                    return b":%d\r\n" % value
                case b"HELLO":
                    return b"-ERR unknown command\r\n"
                case b"PING":
                    return b"+PONG\r\n"
        return b"+OK\r\n"


def _bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def _command(file: Any) -> list[bytes]:
    head = file.readline()
    if not head.startswith(b"*"):
        return []
    words = []
    for _ in range(int(head[1:])):
        size = int(file.readline()[1:])
        words.append(file.read(size))
        file.read(2)
    return words
