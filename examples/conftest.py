"""What the examples' tests share: services as processes of their own, alone (`python server.py`) or on a cluster."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

# Far more than anything here takes on a busy machine.
BOUND = 120
MOSECTL = Path(sysconfig.get_path("scripts")) / "mosectl"


class Service(NamedTuple):
    """A service that takes requests."""

    url: str
    # What it has written so far; of a service on a cluster, what its cluster has.
    output: Callable[[], str]


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., contextlib.AbstractContextManager]]:
    """Runs a script: `with serve(script, "alone") as service`, or `"cluster"`, which is started when first needed.

    `env` is the script's; on `"cluster with env"`, one of its own, the nodes' too.
    """
    with contextlib.ExitStack() as stack:
        clusters: list[Cluster] = []

        def run(script: Path, place: str, options: Sequence[str] = (), env: dict[str, str] | None = None) -> Any:
            folder = tmp_path_factory.mktemp(script.stem)
            if place == "alone":
                return alone(script, folder / "output", options, env or {})
            if not MOSECTL.exists():
                pytest.skip("there is no mosectl: the wheel of this project is not installed")
            if place == "cluster with env":
                return on_own_cluster(tmp_path_factory.mktemp("cluster"), script, options, env or {})
            if not clusters:
                clusters.append(stack.enter_context(running_cluster(tmp_path_factory.mktemp("cluster"))))
            return clusters[0].deployed(script, options, env or {})

        yield run


@pytest.fixture(scope="module")
def client(request: pytest.FixtureRequest) -> ModuleType:
    """The module `client.py` beside the test."""
    path = request.path.with_name("client.py")
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_client", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_client(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs `client.py` beside the test as its user would; what it prints."""

    def run(url: str, *arguments: str | Path) -> str:
        command = [sys.executable, request.path.with_name("client.py"), "--url", url, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def together() -> Callable[..., list[Any]]:
    """Calls a function with each item at the same time; the results in order."""

    def call(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(len(items)) as threads:
            return list(threads.map(function, items))

    return call


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    return a_free_port


@pytest.fixture(scope="session", name="until")
def until_fixture() -> Callable[..., Any]:
    """Waits for a condition; an error that says `what` where it does not come true."""
    return until


@pytest.fixture(scope="session")
def post() -> Callable[..., tuple[int, str | None, bytes]]:
    """Posts a body; status, content type and body of the answer, whatever the status."""
    return post_to


def post_to(url: str, body: bytes) -> tuple[int, str | None, bytes]:
    try:
        with urllib.request.urlopen(url, body, timeout=BOUND) as response:
            return response.status, response.headers["content-type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


@contextlib.contextmanager
def alone(script: Path, output: Path, options: Sequence[str], env: dict[str, str]) -> Iterator[Service]:
    port = a_free_port()
    command = [sys.executable, script, "--address", "127.0.0.1", "--port", str(port), *options]
    with process(command, output, env) as running:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url), running, output)
        yield Service(url, output.read_text)


@contextlib.contextmanager
def process(command: Sequence[str | Path], output: Path, env: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Runs a command; at the end it gets SIGTERM, after which it has to end by itself with 0."""
    with output.open("w") as file:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean_environment() | env,
            # A group of its own, so that nothing it has started outlives a test that fails.
            start_new_session=True,
        )
    try:
        yield running
        running.send_signal(signal.SIGTERM)
        status = running.wait(BOUND)
        assert status == 0, f"{command[1]} ended with {status}:\n{output.read_text()}"
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it, as it should be
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


class Cluster(NamedTuple):
    """`mosectl up` with two agents."""

    url: str
    env: dict[str, str]
    output: Callable[[], str]

    @contextlib.contextmanager
    def deployed(self, script: Path, options: Sequence[str], env: dict[str, str]) -> Iterator[Service]:
        name = f"{script.parent.name}-{script.stem}".replace("_", "-")
        self.mosectl(script.parent, "deploy", script.name, "--name", name, "--", *options, env=env)
        try:
            status = json.loads(self.mosectl(script.parent, "status", "--output", "json"))
            (routes,) = [pipeline["routes"] for pipeline in status["pipelines"] if pipeline["name"] == name]
            for route in routes:  # an empty body is answered by the gateway itself, once it knows the route
                until(lambda path=route: post_to(self.url + path, b"")[0] == 200, f"the gateway knows {route}")
            yield Service(self.url, self.output)
        finally:
            self.mosectl(script.parent, "delete", name)

    def mosectl(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
        command = [MOSECTL, *arguments]
        done = subprocess.run(command, cwd=folder, env=self.env | (env or {}), capture_output=True, text=True)
        assert done.returncode == 0, f"mosectl {arguments} ended with {done.returncode}:\n{done.stderr}"
        return done.stdout


@contextlib.contextmanager
def on_own_cluster(folder: Path, script: Path, options: Sequence[str], env: dict[str, str]) -> Iterator[Service]:
    with running_cluster(folder, env) as cluster, cluster.deployed(script, options, env) as service:
        yield service


@contextlib.contextmanager
def running_cluster(folder: Path, env: dict[str, str] | None = None) -> Iterator[Cluster]:
    # `mosectl` finds the cluster through this folder, and no other one of this user.
    env = (env or {}) | {"XDG_RUNTIME_DIR": str(folder)}
    output = folder / "output"
    command = [MOSECTL, "up", "--port", "0", "--agents", "2", "--data", folder / "data"]
    with process(command, output, env) as running:
        found = wait_for(lambda: re.search(r"^ready on (\S+)", output.read_text(), re.MULTILINE), running, output)
        yield Cluster(found.group(1), clean_environment() | env, output.read_text)


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MOSEC_")}


def wait_for(condition: Callable[[], Any], running: subprocess.Popen, output: Path) -> Any:
    def checked() -> Any:
        ended = running.poll()
        assert ended is None, f"it ended with {ended}:\n{output.read_text()}"
        return condition()

    return until(checked, f"{running.args} is ready; see {output}")


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + BOUND
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {BOUND} s: {what}"
        time.sleep(0.02)
    return found


def is_ready(url: str) -> bool:
    """A service opens its port once every stage has a worker that takes requests."""
    try:
        with urllib.request.urlopen(url, timeout=BOUND) as response:
            return response.status == 200
    except OSError:
        return False


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
