"""A service as a process of its own: start, wait, talk to it, stop it."""

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import wire
from .sides import SERVICES, Side, free_port
from .wire import Connection, Response, Stream

# Both sides share two cores with other cases, so these are bounds for what must never happen.
START_LIMIT = 60.0
PATIENCE = 15.0
STOP_LIMIT = 30.0
POLL = 0.02


class Service:
    """A running service of one side."""

    def __init__(self, side: Side, file: str, options: tuple[str, ...], env: dict[str, str]) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix=f"compat-{side.name}-")
        self._out = open(Path(self._folder.name) / "out", "w+b")  # noqa: SIM115 closed in `end`
        self._err = open(Path(self._folder.name) / "err", "w+b")  # noqa: SIM115
        self._environment = environment(env, self.folder)
        self.process = subprocess.Popen(
            self._command(side, file, options),
            cwd=SERVICES,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )

    def _command(self, side: Side, file: str, options: tuple[str, ...]) -> list[str]:
        return [side.python, file, "--port", str(self.port), *options]

    @property
    def folder(self) -> str:
        """A folder for what the service writes; the variable `COMPAT_FOLDER` names it to the workers."""
        return self._folder.name

    # Talking to it.

    def get(self, path: str, **named: Any) -> Response:
        return self.ask("GET", path, **named)

    def post(self, body: bytes, path: str = "/inference", **named: Any) -> Response:
        return self.ask("POST", path, body, **named)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience: float = wire.PATIENCE,
    ) -> Response:
        data = wire.request(method, path, body, headers)
        return wire.exchange(self.port, data, head_only=method == "HEAD", patience=patience)

    def raw(self, data: bytes, **named: Any) -> Response:
        return wire.exchange(self.port, data, **named)

    def connect(self, patience: float = wire.PATIENCE) -> Connection:
        return Connection(self.port, patience)

    def stream(self, body: bytes, path: str = "/inference", patience: float = wire.PATIENCE) -> Stream:
        """Posts and reads no further than the head of the answer."""
        connection = self.connect(patience)
        connection.send(wire.request("POST", path, body))
        return Stream(connection)

    def later(self, call: Callable[..., Any], *args: Any, **named: Any) -> "Future[Any]":
        """Makes a call in a thread of its own."""
        pool = ThreadPoolExecutor(1)
        future = pool.submit(call, *args, **named)
        pool.shutdown(wait=False)
        return future

    def together(self, bodies: list[bytes], path: str = "/inference", **named: Any) -> list[Response]:
        """Posts all at the same time; answers in the order of the bodies."""
        with ThreadPoolExecutor(max(1, len(bodies))) as pool:
            return list(pool.map(lambda body: self.post(body, path, **named), bodies))

    def in_progress(self, count: int) -> bool:
        """Waits until the gauge says that so many requests are in progress."""
        wanted = f"_remaining_task {count}\n"
        return self.until(lambda: wanted in self.get("/metrics").body.decode())

    # What it wrote.

    @property
    def out(self) -> str:
        return Path(self._out.name).read_text(errors="replace")

    @property
    def err(self) -> str:
        return Path(self._err.name).read_text(errors="replace")

    def logged(self, part: str) -> bool:
        """Waits until the log has `part`; false where it does not come."""
        return self.until(lambda: part in self.err)

    def note(self, name: str) -> str:
        """What workers wrote into a file of the service's folder."""
        path = Path(self.folder) / name
        return path.read_text() if path.exists() else ""

    def notes(self, name: str, count: int) -> list[str]:
        """Waits for so many lines of a file that workers write."""
        self.until(lambda: len(self.note(name).splitlines()) >= count)
        return self.note(name).splitlines()

    def release(self, name: str) -> None:
        """Makes the file that a worker waits for."""
        (Path(self.folder) / name).touch()

    # Start and end.

    def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> bool:
        """Waits for a condition; false where it does not come true."""
        end = time.monotonic() + patience
        while not (met := bool(condition())) and time.monotonic() < end:
            time.sleep(POLL)
        return met

    def ready(self) -> "Service":
        """Waits until the port is open; an error if the service ends instead."""
        self.until(lambda: self.process.poll() is not None or self.get("/").status != "refused", START_LIMIT)
        if self.process.poll() is not None:
            raise AssertionError(f"exited with {self.process.returncode}:\n{self.err[-1500:]}")
        return self

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def exit_code(self, patience: float = STOP_LIMIT) -> int | str:
        """Waits for the end."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return "still running"

    def stop(self) -> int | str:
        """A clean end."""
        if self.process.poll() is None:
            self.signal()
        return self.exit_code()

    def end(self) -> None:
        """Leaves nothing behind, whatever state the service is in."""
        if self.process.poll() is None:
            self.signal()
            self.exit_code(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._out.close()
        self._err.close()
        self._folder.cleanup()

    def family(self) -> list[int]:
        """Processes of the service that are alive, its own and those of its workers."""
        return [pid for pid in _pids() if _session_of(pid) == self.process.pid]


class Deployed(Service):
    """A cluster in one process, and the service deployed on its two agents."""

    def _command(self, side: Side, file: str, options: tuple[str, ...]) -> list[str]:
        self._mosectl = str(Path(sysconfig.get_path("scripts")) / "mosectl")
        self._file, self._options = file, options
        # By this folder `mosectl` finds this cluster and no other one.
        self._environment["XDG_RUNTIME_DIR"] = self.folder
        return [self._mosectl, "up", "--port", str(self.port), "--agents", "2", "--python", side.python]

    def ready(self) -> "Service":
        """Waits for the cluster, deploys, and waits until the gateway knows every route."""
        self.until(lambda: self.process.poll() is not None or "ready on" in self.out, START_LIMIT)
        self._run("deploy", self._file, "--name", "service", "--", *self._options)
        status = json.loads(self._run("status", "--output", "json"))
        for path in status["pipelines"][0]["routes"]:
            self.until(lambda path=path: self.post(b"", path).status == 200)
        return self

    def _run(self, *arguments: str) -> str:
        command = [self._mosectl, *arguments]
        done = subprocess.run(command, cwd=SERVICES, env=self._environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(f"mosectl {arguments} exited with {done.returncode}:\n{done.stderr[-1500:]}")
        return done.stdout


def environment(extra: dict[str, str], folder: str) -> dict[str, str]:
    """The test run's environment without options for MOSEC, with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("MOSEC")}
    return {**kept, "COMPAT_FOLDER": folder, "PYTHONDONTWRITEBYTECODE": "1", **extra}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[3])
