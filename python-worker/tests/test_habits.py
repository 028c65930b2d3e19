"""What user code does besides its work: children, signal handlers, methods put in others' places, large events."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import BOUND, Service, request, wait_until

pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

SCRIPT = """
import multiprocessing, os, signal, subprocess, sys, time
from mosec import Runtime, Server, SSEWorker, Worker

class Does(Worker):
    def forward(self, data):
        return getattr(self, data)()

    def pool(self):
        # Its children are ended by SIGTERM.
        with multiprocessing.Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    def fork(self):
        child = os.fork()
        if child == 0:
            sys.exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def swap(self):
        self.forward = lambda data: "swapped"
        self.serialize = lambda data: data.encode()
        return "as it was"

class Events(SSEWorker):
    def forward(self, data):
        for count in range(data["count"]):
            self.send_stream_event(str(count) * data["bytes"])

def note(text):
    with open("notes", "a") as notes:
        notes.write(text + "\\n")

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: note("SIGUSR1"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    server = Server()
    server.register_runtime({"/does": [Runtime(Does)], "/events": [Runtime(Events)]})
    server.run()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    time.sleep(0.05)
    note("cleaned up")
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "server.py"
    script.write_text(SCRIPT)
    with Service(tmp_path, script, "--timeout", "20000") as running:
        yield running


def ask(service: Service, what: str) -> object:
    status, _, body = service.post("/does", json.dumps(what).encode())
    return json.loads(body) if status == 200 else (status, body)


def test_workers_have_children(service: Service) -> None:
    for _ in range(5):
        assert ask(service, "pool") == [1, 2]
    assert ask(service, "fork") == 7
    assert ask(service, "fork") == 7, "the worker has not lost anything by its child's end"
    restarts = [line for line in service.lines() if line["fields"]["message"] == "worker ended"]
    assert restarts == []


def test_methods_are_looked_up_when_they_are_called(service: Service) -> None:
    assert service.post("/does", b'"swap"')[2] == b"as it was"
    assert service.post("/does", b"1")[2] == b"swapped"


def test_events_that_come_at_once(service: Service) -> None:
    for count, size in ((3, 1_000_000), (20, 300_000)):
        body = json.dumps({"count": count, "bytes": size}).encode()
        status, _, events = service.post("/events", body)
        expected = b"".join(b"data: " + str(n).encode() * size + b"\n\n" for n in range(count))
        assert (status, events == expected) == (200, True), events[-200:]


def test_the_scripts_own_signal_handlers_run(service: Service, tmp_path: Path) -> None:
    service.process.send_signal(signal.SIGUSR1)
    notes = tmp_path / "notes"
    wait_until(lambda: notes.exists() and notes.read_text() == "SIGUSR1\n", "the handler runs while the service serves")
    # As MOSEC does, `run` takes SIGTERM and SIGINT over, and keeps them.
    assert service.end() == 0
    assert notes.read_text() == "SIGUSR1\ncleaned up\n"


def test_a_handler_that_raises_ends_the_service(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        """
import signal
from mosec import Server, Worker

class Echo(Worker):
    def forward(self, data):
        return data

def refuse(*_):
    raise RuntimeError("enough")

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, refuse)
    server = Server()
    server.append_worker(Echo)
    server.run()
"""
    )
    with Service(tmp_path, script) as service:
        assert service.post("/inference", b"1")[0] == 200
        os.kill(service.process.pid, signal.SIGUSR1)
        assert service.process.wait(BOUND) == 1
        assert service.output.rstrip().endswith("RuntimeError: enough")


def test_a_module_is_a_program(tmp_path: Path) -> None:
    """`python folder`, with a `__main__.py` and modules beside it."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "model.py").write_text("def twice(data):\n    return data * 2\n")
    (folder / "__main__.py").write_text(
        """
import model
from mosec import Server, Worker

class Twice(Worker):
    def forward(self, data):
        return model.twice(data)

if __name__ == "__main__":
    server = Server()
    server.append_worker(Twice)
    server.run()
"""
    )
    with Service(tmp_path, folder) as service:
        assert service.post("/inference", b"2")[2] == b"4"
        assert service.end() == 0


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_service_without_standard_files(tmp_path: Path, closed: str) -> None:
    """As some supervisors start it."""
    (tmp_path / "server.py").write_text(SCRIPT.replace("server.run()", "print('never seen'); server.run()", 1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f'exec "$0" server.py --address 127.0.0.1 --port {port} {closed}'
    process = subprocess.Popen(["sh", "-c", command, sys.executable], cwd=tmp_path, start_new_session=True)
    try:
        wait_until(lambda: answers(port), "it serves")
        process.send_signal(signal.SIGTERM)
        assert process.wait(BOUND) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(BOUND)


def answers(port: int) -> bool:
    try:
        return request(port, "POST", "/does", b'"fork"')[2] == b"7"
    except OSError:
        return False
