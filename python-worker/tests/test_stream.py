"""Streams of events from `send_stream_event` to the client: whole services, run by `python server.py`."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from running import BOUND, Service, wait_until

pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

SCRIPT = """
import os, threading, time
from mosec import Runtime, Server, SSEWorker, ValidationError, Worker

def note(text):
    with open("notes", "a") as notes:
        notes.write(text + "\\n")

class Talk(SSEWorker):
    def forward(self, data, ctx):
        kind = data["kind"]
        if kind == "say":
            for text in data["texts"]:
                self.send_stream_event(text)
        elif kind == "slowly":
            for count in range(data["count"]):
                time.sleep(0.3)
                self.send_stream_event(f"{count} {ctx.cancelled()}")
        elif kind == "threads":
            def work(number):
                for count in range(50):
                    self.send_stream_event(f"{number} {count}")
            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
        elif kind == "until left":
            while not ctx.cancelled():
                self.send_stream_event("x" * data.get("bytes", 1))
                time.sleep(0.005)
            note("told")
        elif kind == "silence":
            self.send_stream_event("one")
            while not ctx.cancelled():
                time.sleep(0.005)
            note("told")
        elif kind == "invalid":
            self.send_stream_event("one")
            raise ValidationError("text is required")
        elif kind == "index":
            self.send_stream_event("one")
            self.send_stream_event("two", index=1)
        elif kind == "die":
            note("died")
            self.send_stream_event(str(os.getpid()))
            while not os.path.exists("die"):
                time.sleep(0.005)
            os._exit(1)
        return data

class Batch(SSEWorker):
    def forward(self, data):
        for index, value in enumerate(data):
            self.send_stream_event(f"{value} of {len(data)}", index=index)
        return [set() if value == "bad" else value for value in data]

class Before(SSEWorker):
    def forward(self, data):
        self.send_stream_event("early")
        return data["name"]

class After(Worker):
    def forward(self, data):
        return [data]

if __name__ == "__main__":
    server = Server()
    server.register_runtime({
        "/talk": [Runtime(Talk, num=2, timeout=60)],
        "/batch": [Runtime(Batch, max_batch_size=4, max_wait_time=20_000)],
        "/middle": [Runtime(Before), Runtime(After)],
    })
    server.run()
"""
# Far longer than the pauses in between, on a busy machine too.
IDLE = 3.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("stream")
    script = folder / "server.py"
    script.write_text(SCRIPT)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with Service(folder, script, "--timeout", str(int(IDLE * 1000))) as running:
            running.wait_for_events("worker is ready", 5)
            yield running
    finally:
        os.chdir(before)


@pytest.fixture(autouse=True)
def clean(service: Service) -> None:
    for name in ("notes", "die"):
        Path(name).unlink(missing_ok=True)


def notes() -> list[str]:
    path = Path("notes")
    return path.read_text().splitlines() if path.exists() else []


def ask(kind: str, **options: object) -> bytes:
    return json.dumps({"kind": kind, **options}).encode()


def opened(service: Service, body: bytes) -> tuple[HTTPConnection, HTTPResponse]:
    connection = HTTPConnection("127.0.0.1", service.port, timeout=BOUND)
    connection.request("POST", "/talk", body)
    response = connection.getresponse()
    assert response.status == 200
    return connection, response


def told_nothing(text: str) -> bytes:
    return f"event: error\ndata: SSE inference error: {text}\n\n".encode()


def test_events_come_as_they_were_sent(service: Service) -> None:
    texts = ["plain", "ä\u20ac\U0001f600", "two\nlines", "", "x" * 300_000, "end"]
    status, headers, body = service.post("/talk", ask("say", texts=texts))
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    expected = "".join("\n" if not text else "data: " + text.replace("\n", "\ndata: ") + "\n\n" for text in texts)
    assert body.decode() == expected
    assert service.post("/talk", ask("say", texts=[]))[2] == b""


def test_many_events_are_all_there_and_in_order(service: Service) -> None:
    texts = [str(number) * (number % 90) for number in range(1, 3000)]
    body = service.post("/talk", ask("say", texts=texts))[2].decode()
    assert body == "".join(f"data: {text}\n\n" if text else "\n" for text in texts)


def test_events_of_many_threads(service: Service) -> None:
    lines = service.post("/talk", ask("threads"))[2].decode().split("\n\n")[:-1]
    assert len(lines) == 400
    for number in range(8):
        own = [line.split()[2] for line in lines if line.startswith(f"data: {number} ")]
        assert own == [str(count) for count in range(50)], "each thread's in its order"


def test_the_time_limit_is_for_silence_and_not_for_the_stream(service: Service) -> None:
    count = 12
    began = time.monotonic()
    body = service.post("/talk", ask("slowly", count=count))[2]
    assert time.monotonic() - began > IDLE, "or the test says nothing"
    assert body == b"".join(b"data: %d False\n\n" % number for number in range(count))


def test_a_silence_that_is_too_long_ends_the_stream_and_the_worker_is_told(service: Service) -> None:
    body = service.post("/talk", ask("silence"))[2]
    assert body == b"data: one\n\n" + told_nothing("408: Request Timeout: inference timeout")
    wait_until(lambda: notes() == ["told"], "the worker is told")


def test_a_client_that_leaves_is_told_to_the_worker(service: Service) -> None:
    connection, response = opened(service, ask("until left"))
    assert response.readline() == b"data: x\n"
    connection.sock.shutdown(socket.SHUT_RDWR)  # the response has the socket, too
    response.close()
    connection.close()
    wait_until(lambda: notes() == ["told"], "the worker is told")
    assert service.post("/talk", ask("say", texts=["after"]))[2] == b"data: after\n\n"


def test_a_client_that_does_not_read_holds_nobody_up(service: Service) -> None:
    connection, response = opened(service, ask("until left", bytes=200_000))
    for number in range(5):
        assert service.post("/talk", ask("say", texts=[str(number)]))[2] == b"data: %d\n\n" % number
    wait_until(lambda: notes() == ["told"], "its stream ends")
    assert b"event: error" in response.read()
    connection.close()


def test_errors_end_a_stream(service: Service) -> None:
    body = service.post("/talk", ask("invalid"))[2]
    invalid = told_nothing("422: Unprocessable Content: request validation error: text is required")
    assert body == b"data: one\n\n" + invalid
    body = service.post("/talk", ask("index"))[2]
    assert body == b"data: one\n\n" + told_nothing("500: Internal Server Error: inference internal error")
    assert "there is no item 1 in a batch of 1" in service.output
    assert service.post("/talk", b"{")[2] == told_nothing("400: Bad Request: decoding error: decoding error")


def test_each_event_of_a_batch_goes_to_its_own_client(service: Service) -> None:
    bodies = [b'"one"', b'"two"', b"{", b'"bad"']
    answers = [body for _, _, body in service.post_all("/batch", bodies)]
    assert answers[:2] == [b"data: one of 3\n\n", b"data: two of 3\n\n"]
    assert answers[2] == told_nothing("400: Bad Request: decoding error: decoding error")
    encoding = told_nothing("500: Internal Server Error: encoding error: encoding error")
    assert answers[3] == b"data: bad of 3\n\n" + encoding


def test_events_of_a_stage_in_the_middle_go_nowhere(service: Service) -> None:
    status, headers, body = service.post("/middle", b'{"name": "a"}')
    assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", ["a"])


@pytest.mark.parametrize("how", ["exits", "is killed"])
def test_a_stream_whose_worker_dies_is_not_begun_again(service: Service, how: str) -> None:
    ready = len(service.events("worker is ready"))
    connection, response = opened(service, ask("die"))
    pid = int(response.readline().split()[1])
    if how == "exits":
        Path("die").touch()
    else:
        os.kill(pid, signal.SIGKILL)
    crashed = "500: Internal Server Error: the worker process died while handling this request"
    assert response.read() == b"\n" + told_nothing(crashed)
    connection.close()
    service.wait_for_events("worker is ready", ready + 1)
    assert notes() == ["died"], "it ran once"
    assert service.post("/talk", ask("say", texts=["after"]))[2] == b"data: after\n\n"
