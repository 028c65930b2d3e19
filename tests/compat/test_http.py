"""The HTTP surface of a plain route: what each request is answered with, header for header."""

import gzip
import json
import time

import zstandard
from harness import ABSENT, ANY, Difference, Run, case
from harness.service import Service
from harness.wire import request

JSON = {"content-type": "application/json"}


@case()
def test_routes(run: Run) -> None:
    """Paths and methods that there are, and those that there are not."""
    with run.serve("actor.py") as service:
        run.see("GET /", service.get("/"), spec="200 MOSEC service")
        run.see("HEAD /", service.ask("HEAD", "/"), spec={"status": 200, "body": ""})
        run.see("POST /", service.post(b"1", "/"), spec={"status": 405, "body": "", "header allow": "GET,HEAD"})
        run.see("HEAD /metrics", service.ask("HEAD", "/metrics").status, spec=200)
        run.see("POST /metrics", service.post(b"1", "/metrics"))
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
            seen = service.ask(method, "/inference", None if method in ("GET", "HEAD") else b"1")
            run.see(f"{method} /inference", seen, spec={"status": 405, "body": "", "header allow": "POST"})
        run.see("unknown path", service.post(b"1", "/other"), spec="404 ")
        run.see("GET of an unknown path", service.get("/other"), spec="404 ")
        run.see("trailing slash", service.post(b"1", "/inference/"), spec="404 ")
        run.see("deeper path", service.post(b"1", "/inference/x"), spec="404 ")
        run.see("other case", service.post(b"1", "/Inference"), spec="404 ")
        run.see("query", service.post(b"1", "/inference?a=b"), spec="200 1")
        run.see("whole URL", service.post(b"1", "http://localhost/inference"))


@case()
def test_answers(run: Run) -> None:
    """Bodies in and out."""
    with run.serve("actor.py") as service:
        run.see(
            "JSON",
            service.post(b'{"a": [1, "\xc3\xa9"], "b": {}}'),
            spec='200 {\n  "a": [\n    1,\n    "\\u00e9"\n  ],\n  "b": {}\n}',
        )
        for name, value in {"number": 1.5, "text": "x", "null": None, "list": [], "not a number": float("nan")}.items():
            run.see(name, service.post(json.dumps(value).encode()), spec={"status": 200, "body": json.dumps(value)})
        run.see("empty", service.post(b""), spec="200 no data provided")
        run.see("no length", service.raw(request("POST", "/inference")), spec="200 no data provided")
        run.see("blank", service.post(b" "), spec="400 decoding error: decoding error")
        run.see("not JSON", service.post(b"{"), spec="400 decoding error: decoding error")
        run.see("not text", service.post(b"\xff\xfe\xff"), spec="400 decoding error: decoding error")
        odd = {
            "nested": b"[" * 100_000 + b"]" * 100_000,
            "a long number": b"1" * 5000,
            "half a pair": b'"\\ud800"',
            "byte order mark": b"\xef\xbb\xbf1",
            "UTF-16": '"a"'.encode("utf-16"),
            "a name twice": b'{"a": 1, "a": 2}',
        }
        for name, body in odd.items():
            run.see(name, service.post(body))
        run.see("other type", service.post(b"1", headers={"content-type": "text/xml"}), spec="200 1")
        for kind in ("bytes", "bytearray", "memoryview"):
            body = json.dumps({"as": kind, "text": "plain"}).encode()
            run.see(kind, service.post(body), spec="200 plain")
        run.see("empty answer", service.post(b'{"as": "bytes"}'), spec="200 ")
        large = json.dumps("x" * 3_000_000).encode()
        answer = service.post(large)
        run.see("3 MB", [answer.status, answer.body == large], spec=[200, True])


@case()
def test_transport(run: Run) -> None:
    """HTTP/1.1 and 1.0: lengths, chunks, connections."""
    with run.serve("actor.py") as service:
        chunks = b"1\r\n[\r\n3\r\n1,2\r\n1\r\n]\r\n0\r\n\r\n"
        head = b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        run.see("chunked", service.raw(head + b"\r\n" + chunks), spec="200 [\n  1,\n  2\n]")
        run.see("chunked, empty", service.raw(head + b"\r\n0\r\n\r\n"), spec="200 no data provided")
        run.see("chunked, with a trailer", service.raw(head + b"\r\n1\r\n1\r\n0\r\nx-end: 1\r\n\r\n"), spec="200 1")
        run.see("HTTP/1.0", service.raw(b"POST /inference HTTP/1.0\r\ncontent-length: 1\r\n\r\n1"))
        run.see("HTTP/1.0 GET /", service.raw(b"GET / HTTP/1.0\r\n\r\n"))
        run.see("not HTTP", service.raw(b"hello\r\n\r\n"))
        run.see("HTTP/3.0", service.raw(b"GET / HTTP/3.0\r\n\r\n"))
        upgrade = {
            "connection": "Upgrade, HTTP2-Settings",
            "upgrade": "h2c",
            "http2-settings": "AAMAAABkAAQAoAAAAAIAAAAA",
        }
        run.see("upgrade to HTTP/2", service.post(b"1", headers=upgrade), spec="200 1")
        with service.connect() as connection:
            connection.send(request("POST", "/inference", b"1") + request("POST", "/inference", b"2"))
            run.see("pipelined", [connection.response().body.decode() for _ in range(2)], spec=["1", "2"])
            connection.send(request("GET", "/other") + request("POST", "/inference", b"3"))
            run.see("after a 404", [connection.response().status for _ in range(2)], spec=[404, 200])
            connection.send(request("POST", "/other", b"4" * 1000) + request("POST", "/inference", b"5"))
            run.see("after a 404 with a body", [connection.response().status for _ in range(2)], spec=[404, 200])
            connection.send(request("POST", "/inference", b"6", {"connection": "close"}))
            run.see("close", connection.response())
            run.see("is closed", connection.is_closed(), spec=True)
        with service.connect() as connection:
            connection.send(request("POST", "/inference", b"7", {"expect": "100-continue"})[:-1])
            run.see("expect", connection.response().status, spec=100)
            connection.send(b"7")
            run.see("after expect", connection.response(), spec="200 7")


@case()
def test_odd_requests(run: Run) -> None:
    """Heads that few clients send."""
    post, end = b"POST /inference HTTP/1.1\r\nhost: x\r\n", b"content-length: 1\r\n\r\n1"
    heads = {
        "two lengths": post + b"content-length: 2\r\n" + end,
        "not a length": post + b"content-length: x\r\n\r\n1",
        "chunks and a length": post + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n1\r\n1\r\n0\r\n\r\n",
        "no host": b"POST /inference HTTP/1.1\r\n" + end,
        "long path": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        "long header": post + b"x-a: " + b"a" * 20_000 + b"\r\n" + end,
        "95 headers": post + b"".join(b"x-%d: a\r\n" % n for n in range(95)) + end,
        "150 headers": post + b"".join(b"x-%d: a\r\n" % n for n in range(150)) + end,
        "kept open by HTTP/1.0": b"POST /inference HTTP/1.0\r\nconnection: keep-alive\r\n" + end,
        "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
        "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    }
    with run.serve("actor.py") as service:
        for key, head in heads.items():
            run.see(key, service.raw(head))
        for method in ("FOO", "post"):
            run.see(method, service.ask(method, "/inference", b"1"))
        for path in ("/%69nference", "//inference", "/inference;a=b"):
            run.see(path, service.post(b"1", path))
        run.see("GET with a body", service.ask("GET", "/", b"123"))
        run.see("DELETE /metrics", service.ask("DELETE", "/metrics"))


@case()
def test_request_limit(run: Run) -> None:
    """`--max-request-size` counts the body's bytes."""
    with run.serve("actor.py", "--max-request-size", "1000") as service:
        run.see("at the limit", service.post(b"1" * 1000).status, spec=200)
        refused = service.post(b"1" * 1001)
        run.see("above", refused, spec="413 request body is too large")
        run.see("far above", service.post(b"1" * 200_000).short(), spec="413 request body is too large")
        run.see("ten thousand times", service.post(b"1" * 10_000_000).short(), spec="413 request body is too large")
        head = b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        chunked = head + b"3e9\r\n" + b"1" * 1001 + b"\r\n0\r\n\r\n"
        run.see("above, chunked", service.raw(chunked).short(), spec="413 request body is too large")
        run.see("elsewhere", service.post(b"1" * 1001, "/other").status, spec=404)
        run.see("service goes on", service.post(b"1"), spec="200 1")


@case()
def test_default_request_limit(run: Run) -> None:
    """10 MiB where nothing is said."""
    with run.serve("actor.py") as service:
        limit = 10 * 1024 * 1024
        run.see("10 MiB", service.post(b'"' + b"1" * (limit - 2) + b'"').status, spec=200)
        run.see("10 MiB and one", service.post(b'"' + b"1" * (limit - 1) + b'"').status, spec=413)


WHOLE = "announced: an answer that is packed as a whole has a length"
PACKED = ("gzip", "zstd", "gzip, zstd", "zstd, gzip", "gzip;q=1, zstd;q=0.5", "*")


@case(
    differs=[
        *(
            Difference(f"{key} / *", ANY, ANY, "D12: a body that cannot be read is the client's error")
            for key in ("corrupt", "cut", "not gzip")
        ),
        *(
            Difference(f"{key} / header {header}", *values, WHOLE)
            for key in (*(f"accept {name.replace('*', '[*]')}" for name in PACKED), "32 bytes", "an error")
            for header, values in {"transfer-encoding": ("chunked", ABSENT), "content-length": (ABSENT, ANY)}.items()
        ),
        Difference("x-gzip in / *", ANY, ANY, "announced: x-gzip is gzip, RFC 9110 8.4.1.3"),
        Difference("encoding elsewhere / status", 415, 404, "announced: a path that there is not comes first"),
        Difference("encoding elsewhere / header accept-encoding", ANY, ABSENT, "announced: as above"),
    ],
)
def test_compression(run: Run) -> None:
    """`--compression`: both ways, both codecs."""
    body = json.dumps(["some text"] * 20).encode()
    plain = json.dumps(json.loads(body), indent=2)
    packed = {"gzip": gzip.compress(body), "zstd": zstandard.compress(body)}
    with run.serve("actor.py", "--compression", "--max-request-size", "1000") as service:
        for name, data in packed.items():
            answer = service.post(data, headers={"content-encoding": name})
            run.see(f"{name} in", answer, spec={"status": 200, "body": plain})
        run.see("identity in", service.post(b"1", headers={"content-encoding": "identity"}))
        for accept in (
            "gzip",
            "zstd",
            "gzip, zstd",
            "zstd, gzip",
            "gzip;q=1, zstd;q=0.5",
            "*",
            "br",
            "deflate",
            "gzip;q=0",
            "identity",
        ):
            see_packed(run, f"accept {accept}", service, body, {"accept-encoding": accept})
        see_packed(run, "accept gzip, GET /", service, None, {"accept-encoding": "gzip"})
        see_packed(run, "31 bytes", service, b'"' + b"x" * 29 + b'"', {"accept-encoding": "gzip"})
        see_packed(run, "32 bytes", service, b'"' + b"x" * 30 + b'"', {"accept-encoding": "gzip"})
        see_packed(
            run,
            "an error",
            service,
            b'{"forward": ["ServerError", "a text of some length"]}',
            {"accept-encoding": "gzip"},
        )
        for encoding in ("br", "deflate", "x-gzip", "gzip, gzip", "other"):
            run.see(f"{encoding} in", service.post(body, headers={"content-encoding": encoding}))
        bomb = gzip.compress(b'"' + b"1" * 100_000 + b'"')
        run.see(
            "limit of what is unpacked",
            service.post(bomb, headers={"content-encoding": "gzip"}),
            spec="413 request body is too large",
        )
        corrupt = packed["gzip"][:-6] + b"\0" * 6
        run.see(
            "corrupt", service.post(corrupt, headers={"content-encoding": "gzip"}), spec="413 request body is too large"
        )
        run.see("cut", service.post(packed["gzip"][:-12], headers={"content-encoding": "gzip"}))
        run.see("not gzip", service.post(body, headers={"content-encoding": "gzip"}))
        run.see("empty", service.post(b"", headers={"content-encoding": "gzip"}))
        run.see("packed empty", service.post(gzip.compress(b""), headers={"content-encoding": "gzip"}))
        run.see("encoding elsewhere", service.post(b"1", "/other", headers={"content-encoding": "br"}))


@case()
def test_no_compression(run: Run) -> None:
    """Without the option encodings are not looked at."""
    with run.serve("actor.py") as service:
        answer = service.post(b"1", headers={"content-encoding": "br", "accept-encoding": "gzip"})
        run.see("encoded", answer, spec="200 1")
        run.see(
            "gzip",
            service.post(gzip.compress(b"1"), headers={"content-encoding": "gzip"}),
            spec="400 decoding error: decoding error",
        )
        run.see("GET /", service.get("/", headers={"accept-encoding": "gzip"}))


def see_packed(run: Run, key: str, service: Service, body: bytes | None, headers: dict[str, str]) -> None:
    """Sees an answer unpacked; how long it is packed is each implementation's own affair."""
    answer = service.get("/", headers=headers) if body is None else service.post(body, headers=headers)
    encoding = answer.header("content-encoding")
    if encoding == "gzip":
        answer.body = gzip.decompress(answer.body)
    elif encoding == "zstd":
        answer.body = zstandard.ZstdDecompressor().decompressobj().decompress(answer.body)
    if encoding is not None:
        answer.headers = [(name, "<length>" if name == "content-length" else value) for name, value in answer.headers]
    run.see(key, answer)


UNREADABLE = "400 request body could not be read"


@case(
    differs=[
        Difference("a body that stands still", "no answer", UNREADABLE, "D23: nobody is waited for for ever"),
        Difference("a head that stands still is closed", False, True, "D23: nobody is waited for for ever"),
    ]
)
def test_slow_clients(run: Run) -> None:
    """A client that begins a body and does not go on, one that does so with a head, and one that goes on slowly."""
    with (
        run.serve("actor.py", "--timeout", "9000") as service,
        service.connect() as slow,
        service.connect(patience=34) as head,
    ):
        head.send(b"POST /inference HTTP/1.1\r\nhost:")
        closed = service.later(head.is_closed)
        whole = request("POST", "/inference", b"123")
        still = service.later(service.raw, whole[:-1], patience=24)
        for byte in whole:
            slow.send(bytes([byte]))
            time.sleep(0.05)
        run.see("a slow one", slow.response().short(), spec="200 123")
        answer = still.result()
        run.see("a body that stands still", answer.short() if answer.body else answer.status, spec="no answer")
        run.see("a head that stands still is closed", closed.result(), spec=False)
        run.see("others", service.post(b"1").short(), spec="200 1")


@case()
def test_huge_bodies(run: Run) -> None:
    """100 MB each way, where it is allowed."""
    with run.serve("actor.py", "--max-request-size", "200000000", "--timeout", "60000", "--limit", "60") as service:
        body = b'"' + b"1" * 100_000_000 + b'"'
        answer = service.post(body, patience=60)
        run.see("there and back", [answer.status, answer.body == body], spec=[200, True])
