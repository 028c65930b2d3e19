"""The built extension: its stubs, and whole services run by `python server.py`."""

import ast
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from running import BOUND, Service, is_running, wait_until

import mosec

native = pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

SERVICE = Path(__file__).with_name("native_service.py")
STUBS = Path(mosec.__file__).with_name("_native.pyi")


def report(request: pytest.FixtureRequest, line: str) -> None:
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        plugins.getplugin("terminalreporter").write(line)


@pytest.fixture(scope="module")
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), SERVICE, "--max-request-size", "100000") as running:
        workers = len(running.events("worker is ready"))
        report(request, f" [{workers} of 10 workers, ready to serve after {running.start_seconds:.2f} s]")
        yield running


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_stubs_are_those_of_the_module() -> None:
    declared: dict[str, list[str] | None] = {}
    for node in ast.walk(ast.parse(STUBS.read_text())):
        for child in ast.iter_child_nodes(node):
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            if isinstance(child, ast.FunctionDef) and not child.name.startswith("__"):
                declared[owner + child.name] = [arg.arg for arg in child.args.args if arg.arg != "self"]
            elif isinstance(child, ast.ClassDef):
                declared[child.name] = None
            elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                declared[owner + child.target.id] = None

    built: dict[str, list[str] | None] = {"__version__": None}
    for name, value in vars(native).items():
        if name.startswith("__"):
            continue
        built[name] = None if isinstance(value, type) else parameters(value)
        for member in vars(value) if isinstance(value, type) else ():
            if not member.startswith("__"):
                built[f"{name}.{member}"] = parameters(getattr(value, member))
    assert built == declared


def test_a_process_that_no_agent_started_is_no_worker() -> None:
    code = "from mosec import _native\n_native.Channel.attach()"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOUND
    )
    assert done.returncode == 1
    assert "workers are started by a node agent" in done.stderr.splitlines()[-1], done.stderr
    with pytest.raises(TypeError):
        native.Channel()


def test_an_unknown_program() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        native.command("nonsense", [])


def test_a_description_that_is_none_is_an_exit_status() -> None:
    code = "import sys\nfrom mosec import _native\nsys.exit(_native.serve('{}', _native.Stop()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "panicked" not in done.stderr, done.stderr
    assert "server failed" in done.stderr and "missing field `spec`" in done.stderr, done.stderr


def test_json(service: Service) -> None:
    body = {"text": "ä", "numbers": [1, 2.5, None]}
    status, headers, answer = service.post("/echo", json.dumps(body).encode())
    assert (status, json.loads(answer)) == (200, body)
    assert headers["content-type"] == "application/json"
    assert headers["server"] == f"mosec/{native.__version__}"
    assert answer == json.dumps(body, indent=2).encode(), "as MOSEC writes it"

    status, headers, answer = service.post("/echo", b"{")
    assert (status, answer) == (400, b"decoding error: decoding error")
    assert "content-type" not in headers
    assert service.post("/echo", b"")[0::2] == (200, b"no data provided")
    assert service.post("/nowhere", b"{}")[0::2] == (404, b"")


def test_a_body_larger_than_the_limit(service: Service) -> None:
    assert service.post("/echo", json.dumps("x" * 90_000).encode())[0] == 200
    assert service.post("/echo", json.dumps("x" * 100_000).encode())[0::2] == (413, b"request body is too large")


def test_a_malformed_item_fails_alone(service: Service) -> None:
    bodies = [json.dumps({"value": value}).encode() for value in range(7)] + [b"{malformed"]
    *good, bad = service.post_all("/batch", bodies)
    assert bad[0::2] == (400, b"decoding error: decoding error")
    for value, (status, _, answer) in enumerate(good):
        assert (status, json.loads(answer)) == (200, {"value": value, "batch": 7})


def test_an_adaptive_batch_leaves_at_once(service: Service) -> None:
    # Its window is longer than the service's timeout.
    status, _, answer = service.post("/adaptive", b'{"value": 1}')
    assert (status, json.loads(answer)) == (200, {"value": 1, "batch": 1})


def test_the_service_describes_itself(service: Service) -> None:
    status, headers, text = service.get("/openapi/metadata.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    described = json.loads(text)
    OpenAPIV31SpecValidator(described).validate()
    assert {"/", "/metrics", "/echo", "/batch", "/sizes"} <= set(described["paths"])
    answer = described["paths"]["/sizes"]["post"]["responses"]["200"]
    assert answer["content"] == {"text/plain": {"schema": {"type": "string"}}}


def test_a_forward_that_fails_shows_nothing(service: Service) -> None:
    status, _, answer = service.post("/broken", b"{}")
    assert (status, answer) == (500, b"inference internal error")
    wait_until(lambda: "a secret of the author's" in service.output, "the traceback is in the log")


def test_msgpack(service: Service) -> None:
    status, headers, answer = service.post("/pack", msgpack.packb({"list": [1, "b", b"\xff"]}))
    assert status == 200
    assert msgpack.unpackb(answer) == {"type": "tuple", "list": [1, "b", b"\xff"]}
    assert headers["content-type"] == "application/msgpack"
    assert service.post("/pack", b"\xc1")[0] == 400


def test_a_forward_over_its_limit_is_ended_and_the_worker_goes_on(service: Service) -> None:
    def pid() -> int:
        status, _, answer = service.post("/slow", b'{"seconds": 0}')
        assert status == 200
        return int(answer)

    before = pid()
    for _ in range(3):
        status, _, answer = service.post("/slow", b'{"seconds": 30}')
        assert status == 408
        assert answer.startswith(b"mosec timeout error: forward timeout after 0.2s")
    assert pid() == before


def test_each_replica_has_its_number_and_its_variables(service: Service) -> None:
    service.wait_for_events("worker is ready", 10)
    seen: dict[int, set[tuple[str, int]]] = {}

    def both_seen() -> bool:
        for _, _, answer in service.post_all("/place", [b"{}"] * 8):
            place = json.loads(answer)
            assert place["stage"].startswith("Place_")
            seen.setdefault(place["id"], set()).add((place["place"], place["pid"]))
        return len(seen) == 2

    wait_until(both_seen, "both replicas answer")
    assert sorted(seen) == [1, 2]
    assert [[place for place, _ in seen[number]] for number in (1, 2)] == [["here"], ["there"]], "and one process each"


def test_a_shared_stage_uses_the_codecs_of_each_route(service: Service) -> None:
    with ThreadPoolExecutor(2) as threads:
        outer = threads.submit(service.post_all, "/shared", [b'"outer"'] * 4)
        inner = threads.submit(service.post_all, "/sizes", [b'"inner"'] * 4)
    for status, headers, answer in outer.result():
        assert (status, json.loads(answer)) == (200, {"from": "outer"})
        assert headers["content-type"] == "application/json"
    for status, headers, answer in inner.result():
        assert (status, answer) == (200, b"3 of inner")
        assert headers["content-type"] == "text/plain"


def test_an_answer_that_cannot_be_written_is_an_error_of_its_own(service: Service) -> None:
    # On this route the shared stage is the last, and JSON has no sets.
    status, _, answer = service.post("/shared", b'"inner"')
    assert (status, answer) == (500, b"encoding error: encoding error")
    assert service.post("/shared", b'"outer"')[0] == 200


SMALL = """
import os, sys, time
from mosec import Server, Worker

class First(Worker):
    def forward(self, data):
        time.sleep(data)
        return {os.getpid()}

class Second(Worker):
    def forward(self, data):
        return [[*item, os.getpid()] for item in data]

if __name__ == "__main__":
    server = Server()
    server.append_worker(First)
    server.append_worker(Second, max_batch_size=2, max_wait_time=1)
    server.run()
    print("ran on")
"""


@pytest.mark.parametrize("to_group", [False, True], ids=["to the server", "to its group, as ^C"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_after_its_last_answer(
    request: pytest.FixtureRequest, tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    script = tmp_path / "server.py"
    script.write_text(SMALL)
    with Service(tmp_path, script, "--timeout", "30000") as service, ThreadPoolExecutor(1) as threads:
        report(request, f" [two stages, ready to serve after {service.start_seconds:.2f} s]")
        status, _, answer = service.post("/inference", b"0")
        workers = json.loads(answer)
        assert (status, len(set(workers))) == (200, 2)
        in_flight = threads.submit(service.post, "/inference", b"0.5")

        def begun() -> bool:
            return b"mosec_service_remaining_task 1\n" in service.get("/metrics")[2]

        wait_until(begun, "the request is in flight")
        (os.killpg if to_group else os.kill)(service.process.pid, number)
        status, _, answer = in_flight.result(BOUND)
        assert (status, json.loads(answer)) == (200, workers)
        assert service.process.wait(BOUND) == 0, service.output
        assert "Traceback" not in service.output and "KeyboardInterrupt" not in service.output, service.output
        assert service.output.count("ran on") == 1, "Server.run returns"
        assert not any(map(is_running, workers))


def test_a_signal_before_the_server_is_ready(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    loading = tmp_path / "loading"
    init = f"    def __init__(self):\n        print(os.getpid(), file=open({str(loading)!r}, 'w'), flush=True)\n"
    begin = f"class First(Worker):\n{init}        time.sleep(600)\n"
    script.write_text(SMALL.replace("class First(Worker):\n", begin))
    process = subprocess.Popen(
        [sys.executable, str(script), "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        wait_until(lambda: loading.exists() and loading.read_text().endswith("\n"), "the worker loads")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=BOUND)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert not is_running(int(loading.read_text()))
    assert "Traceback" not in output and "KeyboardInterrupt" not in output, output
