"""Requests that are over: whole services, run by `python server.py`, whose clients leave or whose time runs out."""

import json
import signal
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
from running import BOUND, Service, wait_until

pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

# Notes each request that `forward` has seen.
# `hold` waits for its file, `patient` for its client to leave.
SCRIPT = """
import asyncio, os, time
from mosec import Context, Server, Worker

def note(text):
    with open("notes", "a") as notes:
        notes.write(text + "\\n")

class Watching(Worker):
    def forward(self, data, ctx):
        note(f"began {data}")
        if data == "hold":
            while not os.path.exists("go"):
                time.sleep(0.005)
        if data == "patient":
            while not ctx.cancelled():
                time.sleep(0.005)
            note("told")
        return {"id": ctx.request_id, "remaining": ctx.remaining()}

class Waiting(Worker):
    async def forward(self, data, ctx):
        note(f"async began {data}")
        while data == "patient" and not ctx.cancelled():
            await asyncio.sleep(0.005)
        await asyncio.sleep(30 if data == "slow" else 0)
        return data

    async def close(self):
        note("closed")

if __name__ == "__main__":
    server = Server()
    server.append_worker(Watching, route="/watching", timeout=60)
    server.append_worker(Waiting, route="/waiting", timeout=1)
    server.run()
"""


class Running(Service):
    """The service of `SCRIPT` in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
        self.folder = folder
        script = folder / "server.py"
        script.write_text(SCRIPT)
        monkeypatch.chdir(folder)
        super().__init__(folder, script, *options)

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, note: str) -> None:
        wait_until(lambda: note in self.notes(), note)

    def send(self, path: str, data: str) -> HTTPConnection:
        """Sends a request whose client may leave."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=BOUND)
        connection.request("POST", path, json.dumps(data))
        return connection

    def in_progress(self) -> int:
        lines = self.get("/metrics")[2].decode().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("mosec_service_remaining_task ")))


def test_what_waits_in_the_ring_never_starts_late_or_for_a_client_that_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running(tmp_path, monkeypatch, "--timeout", "3000") as service:
        first = service.send("/watching", "hold")
        service.wait_for("began hold")
        # The next batch waits in the worker's ring already, where no dispatcher sees it any more.
        late = service.send("/watching", "late")
        wait_until(lambda: service.in_progress() == 2, "both are in progress")
        assert late.getresponse().status == 408
        assert first.getresponse().status == 408
        (tmp_path / "go").touch()
        status, _, answer = service.post("/watching", b'"after"')
        assert (status, len(json.loads(answer)["id"])) == (200, 16)
        assert 0 < json.loads(answer)["remaining"] <= 3
        assert service.notes() == ["began hold", "began after"]


def test_a_worker_is_told_that_its_client_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(tmp_path, monkeypatch, "--timeout", "60000") as service:
        client = service.send("/watching", "patient")
        service.wait_for("began patient")
        gone = service.send("/watching", "gone")
        wait_until(lambda: service.in_progress() == 2, "both are in progress")
        gone.close()
        client.close()
        service.wait_for("told")
        assert service.post("/watching", b'"after"')[0] == 200
        assert service.notes() == ["began patient", "told", "began after"]


def test_a_coroutine_is_told_ended_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(tmp_path, monkeypatch, "--timeout", "60000") as service:
        assert service.post("/waiting", b'"plain"')[0::2] == (200, b'"plain"')
        status, _, answer = service.post("/waiting", b'"slow"')
        assert (status, answer) == (408, b"mosec timeout error: forward timeout after 1s")
        client = service.send("/waiting", "patient")
        service.wait_for("async began patient")
        client.close()
        answers: list[int] = []
        after = threading.Thread(target=lambda: answers.append(service.post("/waiting", b'"after"')[0]))
        after.start()
        after.join(BOUND)
        assert answers == [200]
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(BOUND) == 0, service.output
        assert service.notes()[-1] == "closed"
        assert "Traceback" not in service.output, service.output
