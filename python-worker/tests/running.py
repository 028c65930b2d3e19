"""A service that runs: `python server.py` as a process, what it says, and what it answers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any

# Far more than anything here takes on a busy machine.
BOUND = 60

Answer = tuple[int, dict[str, str], bytes]


class Program:
    """A script in a process group of its own, with all it writes in a file. Killed on exit if it is still there."""

    def __init__(
        self,
        folder: Path,
        script: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("MOSEC_")}
        self._output = folder / "output"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [python, str(script), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=plain | dict(env or {}),
                start_new_session=True,
            )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(BOUND)

    @property
    def output(self) -> str:
        return self._output.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{") and line.endswith("}")]

    def events(self, message: str) -> list[dict[str, Any]]:
        """The fields of log lines with this message."""
        return [line["fields"] for line in self.lines() if line["fields"].get("message") == message]

    def wait_for_events(self, message: str, count: int) -> list[dict[str, Any]]:
        def enough() -> bool:
            if len(self.events(message)) >= count:
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.output}")
            return False

        wait_until(enough, f"{count} lines {message!r}")
        return self.events(message)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(BOUND)


class Service(Program):
    """A service on a free port, ready to answer."""

    def __init__(
        self,
        folder: Path,
        script: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        started = time.monotonic()
        super().__init__(folder, script, "--address", "127.0.0.1", "--port", "0", *options, env=env, python=python)
        try:
            (running,) = self.wait_for_events("http service is running", 1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.start_seconds = time.monotonic() - started
        self.port = port_of(running)

    def __enter__(self) -> "Service":
        return self

    def get(self, path: str) -> Answer:
        return request(self.port, "GET", path)

    def post(self, path: str, body: bytes) -> Answer:
        return request(self.port, "POST", path, body)

    def post_all(self, path: str, bodies: list[bytes]) -> list[Answer]:
        """All of them at the same time, each on a connection of its own."""
        together = threading.Barrier(len(bodies))

        def send(body: bytes) -> Answer:
            together.wait(BOUND)
            return self.post(path, body)

        with ThreadPoolExecutor(len(bodies)) as threads:
            return list(threads.map(send, bodies))


def port_of(running: dict[str, Any]) -> int:
    """The port in the fields of the line `http service is running`."""
    return int(running["addr"].rpartition(":")[2])


def request(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=BOUND)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"not within {BOUND} s: {what}"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended: nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
