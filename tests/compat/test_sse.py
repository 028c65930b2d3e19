"""Streams of events, byte for byte."""

import json
import statistics
import time
from typing import Any

from harness import ANY, Difference, Response, Run, case, wire
from harness.service import Service
from harness.wire import Connection, Stream


def steps(*given: dict[str, Any]) -> bytes:
    return json.dumps(given).encode()


def see_stream(
    run: Run, key: str, service: Service, body: bytes, spec: str | None = None, path: str = "/inference"
) -> None:
    """Sees a whole stream: its head, its bytes and its end."""
    stream = service.stream(body, path)
    end = stream.rest()
    run.see(key, stream.response, **({} if spec is None else {"spec": f"200 {spec}"}))
    run.see(f"{key} / end", end, spec="complete")
    stream.close()


@case()
def test_events(run: Run) -> None:
    """How text becomes events."""
    texts = {
        "text": ("one", "data: one\n\n"),
        "lines": ("one\ntwo", "data: one\ndata: two\n\n"),
        "last line empty": ("one\n", "data: one\ndata: \n\n"),
        "only a line feed": ("\n", "data: \ndata: \n\n"),
        "two line feeds": ("a\n\nb", "data: a\ndata: \ndata: b\n\n"),
        "carriage return": ("one\rtwo", "data: one\rdata: two\n\n"),
        "both": ("one\r\ntwo", None),
        "return at the end": ("one\r", None),
        "empty": ("", "\n"),
        "leading blank": (" one", None),
        "colon": (":one", None),
        "field": ("event: x", "data: event: x\n\n"),
        "not ASCII": ("\u00e9\u2028\U0001f600", "data: \u00e9\u2028\U0001f600\n\n"),
        "null": ("a\0b", "data: a\0b\n\n"),
    }
    with run.serve("sse.py") as service:
        for key, (text, spec) in texts.items():
            see_stream(run, key, service, steps({"send": text}), spec)
        for count in (3, 300):
            many = "".join(f"data: {n}\n\n" for n in range(count))
            see_stream(run, f"{count} events", service, steps(*({"send": str(n)} for n in range(count))), many)
        large = "x" * 200_000
        see_stream(run, "large", service, steps({"send": large}), f"data: {large}\n\n")
        see_stream(run, "none", service, steps(), "")
        stream = service.stream(steps({"send": "1"}))
        head = {"header content-type": "text/event-stream", "header cache-control": "no-cache"}
        run.see("head", stream.response, spec=head)
        stream.rest()


@case()
def test_stream_errors(run: Run) -> None:
    """Errors come as events, with status 200."""
    kinds = {
        "ClientError": "400: Bad Request: bad request: x",
        "DecodingError": "400: Bad Request: decoding error: x",
        "ValidationError": "422: Unprocessable Content: request validation error: x",
        "ServerError": "500: Internal Server Error: internal error: x",
        "EncodingError": "500: Internal Server Error: encoding error: x",
        "MosecError": "500: Internal Server Error: mosec error: x",
        "ValueError": "500: Internal Server Error: inference internal error",
    }
    with run.serve("sse.py") as service:
        for kind, text in kinds.items():
            see_stream(run, kind, service, steps({"raise": [kind, "x"]}), error_event(text))
        see_stream(run, "lines", service, steps({"raise": ["ServerError", "a\nb"]}))
        see_stream(run, "after events", service, steps({"send": "1"}, {"raise": ["ClientError", "x"]}))
        see_stream(run, "not JSON", service, b"{", error_event("400: Bad Request: decoding error: decoding error"))
        see_stream(run, "not a list of steps", service, b"1")
        see_stream(run, "returns an object", service, steps({"send": "1"}, {"return": "object"}))
        see_stream(run, "returns nothing", service, steps({"send": "1"}, {"return": "none"}))
        run.see("empty", service.post(b""), spec="200 no data provided")
        run.see("GET", service.get("/inference"), spec="405 ")
        see_stream(run, "goes on", service, steps({"send": "1"}), "data: 1\n\n")


def error_event(text: str) -> str:
    return f"event: error\ndata: SSE inference error: {text}\n\n"


@case()
def test_stream_refused(run: Run) -> None:
    """What is answered before there is a stream."""
    with run.serve("sse.py", "--capacity", "1", "--max-request-size", "200", "--timeout", "15000") as service:
        run.see("too large", service.post(b"1" * 201), spec="413 request body is too large")
        first = service.stream(steps({"send": "1"}, {"wait for": "go"}))
        first.until(b"data: 1\n\n")
        others = [service.later(service.post, steps({"send": "2"})) for _ in range(4)]
        service.until(lambda: any(call.done() for call in others))
        refused = next((call.result() for call in others if call.done()), Response("none"))
        run.see("full", refused, spec="429 too many request: task queue is full")
        service.release("go")
        run.see("first", [first.rest(), first.response.body.decode()], spec=["complete", "data: 1\n\n"])
        answers = {call.result().short() for call in others}
        run.see("others", sorted(answers), spec=["200 data: 2\n\n", "429 too many request: task queue is full"])


EARLY = "announced: the error that MOSEC has for it"


@case(differs=[Difference("before the first batch", ["AttributeError"], ["RuntimeError"], EARLY)])
def test_stream_chain(run: Run) -> None:
    """Streams behind another stage, before one, and before there is anyone."""
    with run.serve("sse.py", "--chained") as service:
        see_stream(run, "second stage", service, steps({"send": "1"}), "data: 1\n\n")
        error = error_event("422: Unprocessable Content: request validation error: bad")
        see_stream(run, "error of the first stage", service, b'"bad"', error)
        run.see("stream of an earlier stage", service.post(b"1", "/early"), spec="200 1")
        run.see("before the first batch", service.notes("early", 1), spec=["AttributeError"])
        see_stream(run, "no event", service, b"1", "", path="/nobody")


@case()
def test_stream_batch(run: Run) -> None:
    """Two clients in one batch, each with its own events."""
    with run.serve("sse.py", "--batch", "2") as service:
        bodies = [steps({"send": name}, {"send": name * 2}) for name in ("a", "b")]
        answers = [answer.short() for answer in service.together(bodies)]
        run.see("answers", answers, spec=["200 data: a\n\ndata: aa\n\n", "200 data: b\n\ndata: bb\n\n"])
        run.see("batches", service.notes("batches", 1), spec=["2"])
        crossed = [steps({"send": "to all", "index": n}) for n in (0, 1)]
        run.see("crossed", sorted(answer.short() for answer in service.together(crossed)))
        nothing = service.together([steps({"send": "1"}, {"return": "none"}), steps({"send": "2"})])
        run.see("one returns nothing", sorted(answer.short() for answer in nothing))


@case()
def test_keep_alive(run: Run) -> None:
    """A comment after three seconds without an event."""
    with run.serve("sse.py", "--timeout", "9000") as service:
        body = steps({"send": "1"}, {"sleep": 4}, {"send": "2"})
        see_stream(run, "quiet", service, body, "data: 1\n\n:\n\ndata: 2\n\n")


CUT = ["complete", "data: 1\n\n"]
DEAD = error_event("500: Internal Server Error: the worker process died while handling this request")
LATE = error_event("408: Request Timeout: inference timeout")


@case(
    differs=[
        Difference(
            "forward over its limit / body",
            ANY,
            "data: 1\n\n" + error_event("408: Request Timeout: mosec timeout error: forward timeout after 0.5s"),
            "D15: no path",
        ),
        Difference("no event within the limit", CUT, ["complete", "data: 1\n\n" + LATE], "D6: told, not cut silently"),
        Difference(
            "events one by one, longer than the limit",
            lambda seen: seen[1].count("data: 1\n\n") < 4,
            ["complete", "data: 1\n\n" * 4],
            "D6: the limit is one of silence",
        ),
    ]
)
def test_stream_limits(run: Run) -> None:
    """What takes too long: all at once, or event by event."""
    with run.serve("sse.py", "--timeout", "1000", "--limit", "0.5") as service:
        see_stream(run, "forward over its limit", service, steps({"send": "1"}, {"sleep": 0.8}))
    with run.serve("sse.py", "--timeout", "1000", "--limit", "9") as service:
        stream = service.stream(steps({"send": "1"}, {"sleep": 1.8}, {"note": "end"}))
        end = stream.rest()
        run.see("no event within the limit", [end, stream.response.body.decode()], spec=["complete", "data: 1\n\n"])
        run.see("worker goes on", service.notes("steps", 1), spec=["end"])
        stream = service.stream(steps(*[{"send": "1"}, {"sleep": 0.4}] * 4))
        end = stream.rest()
        run.see("events one by one, longer than the limit", [end, stream.response.body.decode()])


@case(
    differs=[
        Difference("out of range / body", ANY, ANY, "D5: an index out of range is an error of the one who gave it"),
        Difference("next one / *", ANY, ANY, "D5: streams go on after a bad index"),
    ],
)
def test_stream_index(run: Run) -> None:
    """An index that no request of the batch has."""
    with run.serve("sse.py", "--timeout", "1500") as service:
        see_stream(run, "out of range", service, steps({"send": "1", "index": 7}, {"send": "2"}))
        see_stream(run, "next one", service, steps({"send": "3"}))


@case(
    differs=[
        Difference(
            "next one / body",
            lambda body: "data" not in body,
            "data: 3\n\n",
            "D5: a client that does not read costs its own stream alone",
        )
    ]
)
def test_stream_slow_client(run: Run) -> None:
    """A client that does not read while events pile up."""
    with run.serve("sse.py", "--timeout", "3000") as service:
        many = {"send": "x", "long": 100_000, "times": 300}
        stream = service.stream(steps({"send": "1"}, many, {"note": "end"}))
        stream.until(b"data: 1\n\n")
        service.until(lambda: service.note("steps"), patience=4)
        stream.close()
        see_stream(run, "next one", service, steps({"send": "3"}))


@case()
def test_stream_client_leaves(run: Run) -> None:
    """A client that leaves does not harm the ones after it."""
    with run.serve("sse.py", "--timeout", "5000") as service:
        more = [{"send": "x" * 1000}] * 40
        stream = service.stream(steps({"send": "1"}, {"wait for": "gone"}, *more, {"note": "end"}))
        stream.until(b"data: 1\n\n")
        stream.close()
        time.sleep(0.2)
        service.release("gone")
        run.see("worker reaches its end", service.notes("steps", 1), spec=["end"])
        see_stream(run, "next one", service, steps({"send": "1"}), "data: 1\n\n")


def first_event(connection: Connection) -> float:
    """Seconds from the head of an answer to its first event, which is sent a moment later."""
    connection.send(wire.request("POST", "/inference", steps({"sleep": 0.002}, {"send": "1"})))
    stream = Stream(connection)
    start = time.monotonic()
    stream.until(b"data: 1\n\n")
    waited = time.monotonic() - start
    stream.rest()
    return waited


@case(differs=[Difference("the first event waits", True, False, "D25: no event waits for an acknowledgement")])
def test_first_events(run: Run) -> None:
    """On a connection that is kept open, an event may wait until the client's kernel acknowledges the head: 40 ms."""
    with run.serve("sse.py") as service, service.connect() as connection:
        first_event(connection)  # a new connection is acknowledged at once
        waits = [first_event(connection) for _ in range(9)]
        run.see("the first event waits", statistics.median(waits) > 0.03, spec=True)


@case()
def test_stream_is_never_packed(run: Run) -> None:
    """`--compression` and events."""
    with run.serve("sse.py", "--compression") as service:
        answer = service.post(steps({"send": "x" * 1000}), headers={"accept-encoding": "gzip, zstd"})
        run.see("answer", answer, spec=f"200 data: {'x' * 1000}\n\n")


@case()
def test_stream_from_a_thread(run: Run) -> None:
    """A thread of the user's own sends while `forward` runs."""
    with run.serve("sse.py") as service:
        body = steps({"send": "1"}, {"thread": [{"send": "2"}, {"send": "3"}]}, {"send": "4"})
        see_stream(run, "events", service, body, "data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n")
        old = b"POST /inference HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        run.see("HTTP/1.0", service.raw(old))


@case(differs=[Difference("stream", CUT, ["complete", "data: 1\n\n" + DEAD], "D1: told, and at once")])
def test_stream_worker_dies(run: Run) -> None:
    """The worker of a stream dies after its first event."""
    with run.serve("sse.py", "--workers", "2", "--timeout", "2500") as service:
        stream = service.stream(steps({"send": "1"}, {"wait for": "seen"}, {"exit": 3}))
        stream.until(b"data: 1\n\n")
        service.release("seen")
        end = stream.rest()
        run.see("stream", [end, stream.response.body.decode()])
        see_stream(run, "next one", service, steps({"send": "2"}), "data: 2\n\n")
