"""The server object: what it refuses, and the specification it makes."""

import json
import multiprocessing
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import mosec
from mosec import Runtime, Server, SSEWorker, Worker, server
from mosec.mixin import TypedMsgPackMixin
from mosec.source import SourceError

if TYPE_CHECKING:
    from nowhere import Missing


class First(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Last(First):
    resp_mime_type = "text/plain"


# Never started: only what it is counts.
PROCESS = multiprocessing.Process()


class Streaming(SSEWorker):
    def forward(self, data: Any) -> Any:
        return data


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run` hands to the native half, which answers with `served.status`."""
    calls: list[dict[str, Any]] = []
    native = types.ModuleType("mosec._native")
    native.serve = lambda text, stop: calls.append(json.loads(text)) or 0
    native.Stop = lambda: types.SimpleNamespace(fail=lambda reason: None)
    monkeypatch.setitem(sys.modules, "mosec._native", native)
    monkeypatch.setattr(mosec, "_native", native, raising=False)
    monkeypatch.setattr(sys, "argv", ["server.py", "--port", "0"])
    return calls


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    server.intercept, server.in_worker = None, False


def spec_of(service: Server) -> dict[str, Any]:
    specs: list[dict[str, Any]] = []
    server.intercept = specs.append
    service.run()
    return specs[0]


def append(*arguments: Any, **named: Any) -> Callable[[], Any]:
    return lambda: Server().append_worker(*arguments, **named)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (append(int), AssertionError, "worker must be inherited from mosec.Worker"),
        (append("First"), AssertionError, "worker must be inherited from mosec.Worker"),
        (lambda: Server().register_daemon("x", 5), AssertionError, "<class 'int'> is not a process or subprocess"),
        (lambda: Server().register_daemon(5, PROCESS), AssertionError, "daemon name should be a string"),
        (append(First, num=0), AssertionError, "worker number must be no less than 1"),
        (append(First, num=1.5), AssertionError, "worker number must be integer but you give <class 'float'>"),
        (append(First, max_batch_size=0), AssertionError, "maximum batch size must be no less than 1"),
        (append(First, max_batch_size="1"), AssertionError, "maximum batch size must be integer but you give"),
        (append(First, max_wait_time=1.5), AssertionError, "maximum wait time must be integer but you give"),
        (append(First, timeout="a"), AssertionError, "forward timeout must be a number"),
        (append(First, start_method="x"), AssertionError, "start method must be one of"),
        (append(First, env=[]), AssertionError, r"len\(env\) must equal to num"),
        (append(First, env=[{"a": 1}]), AssertionError, "env must be a list of string dictionary"),
        (append(First, env="x"), AssertionError, "env must be a list of string dictionary"),
        (append(First, env=["x"]), AssertionError, "env must be a list of string dictionary"),
        (append(First, route="/metrics"), ValueError, "'/metrics' is reserved, try another one"),
        (append(First, route="abc"), ValueError, "starts with '/'"),
        (append(First, route="/{x}"), ValueError, "starts with '/'"),
        (append(First, route=[]), ValueError, "at least one route"),
        (append(First, route=["/a", "/a"]), ValueError, "each route once"),
        (lambda: Runtime(First, timeout=-1), AssertionError, "forward timeout must be no less than 0"),
        (append(First, batching="eager"), AssertionError, "batching must be one of"),
        (lambda: Runtime(First, max_wait_time=-1), AssertionError, "maximum wait time must be no less than 0"),
        (lambda: Server().register_runtime({"/": [Runtime(First)]}), ValueError, "'/' is reserved"),
        (lambda: Server().register_runtime({"/a": []}), ValueError, "one stage or more"),
        (lambda: Server().register_runtime({"/a": [First]}), TypeError, "expected mosec.Runtime objects"),
        (lambda: Server().run(), AssertionError, "no worker registered"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    server.intercept = lambda _spec: None  # no look at the port
    with pytest.raises(error, match=text):
        make()


def test_routes_are_registered_on_an_empty_server_only() -> None:
    server.intercept = lambda _spec: None
    service = Server()
    service.append_worker(First)
    with pytest.raises(RuntimeError, match="can only be registered to an empty mosec server"):
        service.register_runtime({"/a": [Runtime(First)]})


def test_a_port_in_use_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["server.py", "--address", "127.0.0.1", "--port", str(port)])
        with pytest.raises(RuntimeError, match=f"127.0.0.1:{port} is in use. Please change to a free one"):
            Server()


def test_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["server.py", "--timeout", "5000", "--capacity", "7", "--mine", "x"])
    server.intercept = print
    service = Server()
    service.append_worker(First, num=2, env=[{"A": "1"}, {"A": "2"}], route=["/a", "/b"])
    service.append_worker(Last, max_batch_size=8, max_wait_time=3, timeout=0.25, route="/b", batching="adaptive")
    spec = spec_of(service)
    first, last = spec["stages"]
    assert first == {
        "name": first["name"],
        "module": __name__,
        "class": "First",
        "replicas": 2,
        "max_batch_size": 1,
        "max_wait": 10,
        "batching": "window",
        "timeout": 5000,
        "env": [{"A": "1"}, {"A": "2"}],
        "node_labels": {},
        "delivery": "retry",
        "attempts": 3,
        "mime": "application/json",
        "streaming": False,
        "request_headers": [],
    }
    assert (last["max_batch_size"], last["max_wait"], last["timeout"], last["mime"]) == (8, 3, 250, "text/plain")
    assert last["batching"] == "adaptive"
    assert spec["routes"] == [{"path": "/a", "stages": [0]}, {"path": "/b", "stages": [0, 1]}]
    assert (spec["name"], spec["timeout"], spec["capacity"]) == ("local", 5000, 7)
    streaming = Server()
    streaming.append_worker(Streaming)
    (stage,) = spec_of(streaming)["stages"]
    assert (stage["streaming"], stage["mime"]) == (True, "text/event-stream")
    assert spec["max_request_bytes"] == 10 * 1024 * 1024
    assert spec["source"]["argv"] == ["--timeout", "5000", "--capacity", "7", "--mine", "x"]
    assert spec["source"]["python"] == sys.executable


def test_stages_are_numbered_through() -> None:
    one, two = Runtime(First), Runtime(Last)
    assert one.name.startswith("First_") and two.name.startswith("Last_")
    assert int(two.name.removeprefix("Last_")) == int(one.name.removeprefix("First_")) + 1


def test_a_runtime_in_several_routes_is_one_stage() -> None:
    server.intercept = print
    shared, own = Runtime(First), Runtime(Last)
    service = Server()
    service.register_runtime({"/a": [own, shared], "/b": [shared]})
    spec = spec_of(service)
    assert [stage["name"] for stage in spec["stages"]] == [own.name, shared.name]
    assert spec["routes"] == [{"path": "/a", "stages": [0, 1]}, {"path": "/b", "stages": [1]}]


def test_values_below_zero_mean_the_default() -> None:
    server.intercept = print
    service = Server()
    service.append_worker(First, max_wait_time=-5, timeout=-1)
    (stage,) = spec_of(service)["stages"]
    assert (stage["max_wait"], stage["timeout"]) == (10, 3000)


def test_a_limit_below_a_millisecond_is_still_a_limit() -> None:
    server.intercept = print
    service = Server()
    service.append_worker(First, timeout=0.0001)
    assert spec_of(service)["stages"][0]["timeout"] == 1


class Untold(TypedMsgPackMixin):
    def forward(self, data: "Missing") -> Any:
        return data


def test_requests_of_a_type_that_is_not_there_are_refused_at_the_start() -> None:
    server.intercept = print
    service = Server()
    service.append_worker(Untold)
    with pytest.raises(NameError, match="Missing"):
        service.run()
    behind = Server()
    behind.append_worker(First)
    behind.append_worker(Untold)
    behind.run()


def test_a_class_that_no_other_process_finds_is_refused() -> None:
    class Local(First):
        pass

    server.intercept = print
    service = Server()
    service.append_worker(Local)
    with pytest.raises(SourceError, match="defined inside a function"):
        service.run()


def test_run_hands_over_and_returns(served: list[dict[str, Any]]) -> None:
    service = Server()
    service.append_worker(First)
    assert service.run() is None
    (call,) = served
    assert call["gateway"] == {
        "address": "0.0.0.0",
        "port": 0,
        "namespace": "mosec_service",
        "log_level": "info",
        "compression": False,
    }
    assert call["spec"]["stages"][0]["class"] == "First"


def test_run_exits_with_the_status_of_a_failure(served: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosec._native, "serve", lambda _text, _stop: 3)
    service = Server()
    service.append_worker(First)
    with pytest.raises(SystemExit) as exit_:
        service.run()
    assert exit_.value.code == 3


def test_numbers_are_numbers(served: list[dict[str, Any]]) -> None:
    service = Server()
    service.append_worker(First, num=True, max_batch_size=True)
    service.run()
    stage = served[0]["spec"]["stages"][0]
    assert type(stage["replicas"]) is type(stage["max_batch_size"]) is int


def test_a_service_that_is_only_looked_at_leaves_no_daemon() -> None:
    server.intercept = print
    service = Server()
    service.append_worker(First)
    never_started = multiprocessing.Process()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as helper:
        service.register_daemon("helper", helper)
        service.register_daemon("another", never_started)
        service.run()
        assert helper.wait(60) < 0


@pytest.mark.parametrize("exists", [False, True])
def test_the_working_folder_is_there_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: list[dict[str, Any]], exists: bool
) -> None:
    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)
        (folder / "mine").touch()
    monkeypatch.setattr(sys, "argv", ["server.py", "--port", "0", "--path", str(folder)])
    seen = []
    monkeypatch.setattr(mosec._native, "serve", lambda _text, _stop: seen.append(folder.is_dir()) or 0)
    service = Server()
    service.append_worker(First)
    service.run()
    assert seen == [True]
    assert folder.exists() is exists and (not exists or (folder / "mine").exists())


def test_a_worker_process_starts_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server.in_worker = True
    service = Server()
    service.append_worker(First)
    monkeypatch.setattr(service, "_spec", lambda: pytest.fail("a server is about to be started"))
    service.run()
