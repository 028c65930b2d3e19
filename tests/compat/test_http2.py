"""HTTP/2 with prior knowledge on the same port."""

from harness import Run, case
from harness.h2client import Http2


@case()
def test_http2(run: Run) -> None:
    """The same answers as over HTTP/1.1, and several at once."""
    options = ("--max-request-size", "40000")
    with run.serve("actor.py", *options) as service, Http2(service.port) as client:
        run.see("GET /", client.ask("GET", "/"), spec="200 MOSEC service")
        run.see("answer", client.ask("POST", "/inference", b"1"), spec="200 1")
        run.see("empty", client.ask("POST", "/inference"), spec="200 no data provided")
        run.see("error", client.ask("POST", "/inference", b"{"), spec="400 decoding error: decoding error")
        run.see("unknown", client.ask("POST", "/other", b"1"), spec="404 ")
        run.see("GET", client.ask("GET", "/inference"), spec="405 ")
        run.see("large", client.ask("POST", "/inference", b'"' + b"x" * 30_000 + b'"').status, spec=200)
        run.see("too large", client.ask("POST", "/inference", b'"' + b"x" * 45_000 + b'"').short())
        slow = client.send("POST", "/inference", b'{"wait for": "go"}')
        fast = client.send("GET", "/")
        run.see("overtakes", client.answers(fast)[fast].short(), spec="200 MOSEC service")
        service.release("go")
        run.see("overtaken", client.answers(slow)[slow].status, spec=200)


@case()
def test_http2_stream(run: Run) -> None:
    """Events over HTTP/2."""
    with run.serve("sse.py") as service, Http2(service.port) as client:
        body = b'[{"send": "1"}, {"send": "2"}]'
        run.see("events", client.ask("POST", "/inference", body), spec="200 data: 1\n\ndata: 2\n\n")
