"""Whole services as processes of their own: options, start, end, daemons, dry runs and reloads."""

import json
import signal
import socket
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from running import BOUND, Program, Service, is_running, port_of, request, wait_until

pytest.importorskip("mosec._native", reason="the extension is not built: `make wheel-dev` installs it")

TWO_STAGES = """
import multiprocessing, os, subprocess, sys, threading, time
from types import MappingProxyType
from mosec import Server, ValidationError, Worker, get_logger

class First(Worker):
    example = MappingProxyType({"word": "warm"})

    def forward(self, data):
        get_logger().info("a line of the service")
        print("printed by", self.worker_id)
        if data["word"] == "bad":
            raise ValidationError("not this word")
        return data["word"]

class Second(Worker):
    def __init__(self):
        self.example = ["up"]
        self.own = os.environ.get("OWN")

    def forward(self, data):
        return [[word, self.own, os.environ.get("OTHER", "unset"), os.getpid()] for word in data]

if __name__ == "__main__":
    server = Server()
    server.append_worker(First, env=[{"OTHER": "first's"}])
    server.append_worker(Second, max_batch_size=4, max_wait_time=1, env=[{"OWN": "second's"}])
    server.append_worker(Second, max_batch_size=4, max_wait_time=1, route="/second")
    server.run()
    print("ran on; OTHER is", os.environ.get("OTHER", "unset"))
"""


def script(folder: Path, text: str) -> Path:
    path = folder / "server.py"
    path.write_text(text)
    return path


def test_variables_are_for_their_process_alone(tmp_path: Path) -> None:
    with Service(tmp_path, script(tmp_path, TWO_STAGES)) as service:
        status, _, answer = service.post("/inference", b'{"word": "x"}')
        assert (status, json.loads(answer)[:3]) == (200, ["x", "second's", "unset"])
        status, _, answer = service.post("/second", b'"y"')
        assert (status, json.loads(answer)[:3]) == (200, ["y", None, "unset"])
        assert service.end() == 0, service.output
        assert "ran on; OTHER is unset" in service.output


def test_the_lines_that_are_looked_for(tmp_path: Path) -> None:
    with Service(tmp_path, script(tmp_path, TWO_STAGES)) as service:
        service.post("/inference", b'{"word": "x"}')
        assert service.post("/inference", b'{"word": "bad"}')[0] == 422
        assert service.end() == 0
        lines, output = service.lines(), service.output
    messages = [line["fields"]["message"] for line in lines]
    for stage in ("First_1", "Second_2", "Second_3"):
        warmed, connected = f"<{stage}|1> warmup successfully", f"<{stage}|1> socket connected to the node agent"
        assert messages.index(warmed) < messages.index(connected) < messages.index("http service is running")
    for message in (
        "<First_1|1> request validation error: not this word",
        "received signum[15], terminating server",
        "mosec service halted normally [0]",
        "mosec cleanup completed",
    ):
        assert messages.count(message) == 1, message
    assert output.count("printed by 1") == 3, "the example is one of them"
    (running,) = [line for line in lines if line["fields"]["message"] == "http service is running"]
    assert list(running) == ["timestamp", "level", "target", "fields"] and running["target"].startswith("mosec:")
    own = [line["target"] for line in lines if line["fields"]["message"] == "a line of the service"]
    assert own == ["user::server.py:forward"] * 3
    assert all(isinstance(value, str) for line in lines for value in line["fields"].values())


def test_lines_at_level_debug_are_for_people(tmp_path: Path) -> None:
    path = script(tmp_path, TWO_STAGES)
    with Program(tmp_path, path, "--port", "0", "--address", "127.0.0.1", "--debug") as service:
        wait_until(lambda: "http service is running addr=" in service.output, "the service runs")
        assert service.end() == 0
        assert service.lines() == []
        assert " INFO mosec:" in service.output and "mosec::runner.py:" in service.output


def test_a_level_leaves_the_lines_below_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = script(tmp_path, TWO_STAGES)
    env = {"MOSEC_LOG_LEVEL": "warning", "MOSEC_PORT": str(port), "MOSEC_ADDRESS": "localhost"}
    with Program(tmp_path, path, env=env) as service:

        def answers() -> bool:
            try:
                return request(port, "GET", "/")[0] == 200
            except OSError:
                return False

        wait_until(answers, "the service answers")
        assert service.end(signal.SIGINT) == 0
        assert service.lines() == [], service.output


@pytest.mark.parametrize("address", ["localhost", "::1"])
def test_names_and_ipv6(tmp_path: Path, address: str) -> None:
    try:
        socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
        socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"this machine has no {address}: {error}")
    with Program(tmp_path, script(tmp_path, TWO_STAGES), "--port", "0", "--address", address) as service:
        port = port_of(service.wait_for_events("http service is running", 1)[0])
        connection = HTTPConnection(address, port, timeout=BOUND)
        connection.request("POST", "/second", b'"y"')
        assert connection.getresponse().status == 200
        connection.close()
        assert service.end() == 0


def test_the_port_is_free_at_once(tmp_path: Path) -> None:
    path = script(tmp_path, TWO_STAGES)
    with Service(tmp_path, path) as service:
        service.post("/second", b'"y"')
        assert service.end() == 0
        port = service.port
    with Program(tmp_path, path, "--port", str(port), "--address", "127.0.0.1") as again:
        again.wait_for_events("http service is running", 1)
        assert again.end() == 0


def test_nobody_gets_the_port_while_models_load(tmp_path: Path) -> None:
    blocked = TWO_STAGES.replace("def __init__(self):\n", "def __init__(self):\n        input_of_test()\n", 1)
    wait = f"""
def input_of_test():
    open({str(tmp_path / "loading")!r}, "w").close()
    while not os.path.exists({str(tmp_path / "tried")!r}):
        time.sleep(0.01)
"""
    path = script(tmp_path, blocked.replace("class First", wait + "class First"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Program(tmp_path, path, "--port", str(port), "--address", "127.0.0.1") as service:
        wait_until((tmp_path / "loading").exists, "a model loads")
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server(("127.0.0.1", port))
        # It is not open, either: clients are refused until there is somebody to answer.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        (tmp_path / "tried").touch()
        service.wait_for_events("http service is running", 1)
        assert service.end() == 0


# Starts a process that the server depends on, and that ends when the test says so.
WITH_HELPER = """
    helper = subprocess.Popen([sys.executable, "-c", "input(); raise SystemExit({code})"], stdin=subprocess.PIPE)
    server.register_daemon("helper", helper)

    def release():
        while not os.path.exists({go!r}):
            time.sleep(0.01)
        helper.communicate(b"\\n")

    threading.Thread(target=release, daemon=True).start()
    server.run()
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_daemon_that_ends_ends_the_server(tmp_path: Path, code: int) -> None:
    helper = WITH_HELPER.format(code=code, go=str(tmp_path / "go"))
    text = TWO_STAGES.replace("    server.run()\n", helper)
    with Service(tmp_path, script(tmp_path, text)) as service:
        status, _, answer = service.post("/second", b'"y"')
        assert status == 200
        (tmp_path / "go").touch()
        assert service.process.wait(BOUND) == 1, service.output
        reason = f"mosec daemon [helper] exited on error code: {code}"
        assert f"terminating server [{reason}]" in service.output
        assert "ran on" not in service.output
        assert not is_running(json.loads(answer)[3])


def test_a_daemon_that_stays_is_left_alone(tmp_path: Path) -> None:
    text = TWO_STAGES.replace(
        "    server = Server()\n",
        "    server = Server()\n"
        "    helper = multiprocessing.Process(target=time.sleep, args=(1000,), daemon=True)\n    helper.start()\n"
        "    server.register_daemon('helper', helper)\n",
    ).replace('print("ran on;', 'print("helper", helper.exitcode, "ran on;')
    with Service(tmp_path, script(tmp_path, text)) as service:
        assert service.end() == 0
        assert "helper None ran on" in service.output


def results(program: Program) -> list[dict[str, Any]]:
    prefix = "dry run result: "
    messages = [line["fields"]["message"] for line in program.lines()]
    return [json.loads(message.removeprefix(prefix)) for message in messages if message.startswith(prefix)]


def test_a_dry_run_sends_the_examples_through(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with Program(tmp_path, script(tmp_path, TWO_STAGES), "--dry-run", "--path", str(folder)) as program:
        assert program.process.wait(BOUND) == 0, program.output
        first, second = results(program)
        assert "ran on" in program.output and "http service is running" not in program.output
    assert list(first) == ["request", "result_size", "warmup_duration", "stage_metrics"]
    assert (first["request"], second["request"]) == ("mappingproxy({'word': 'warm'})", ["up"])
    assert [metrics["stage"] for metrics in first["stage_metrics"]] == ["First_1", "Second_2"]
    for metrics in first["stage_metrics"]:
        assert metrics["cpu_time_seconds"] > 0 and metrics["max_rss_bytes"] > 1024 * 1024
    assert first["result_size"] > 4 and first["warmup_duration"] > 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('"warm"', '"bad"'), "endpoint /inference: request validation error: not this word"),
        (('self.example = ["up"]', "raise OSError('no model')"), "OSError: no model"),
        (
            (
                "def forward(self, data):\n        return [[",
                "def forward(self, data):\n        os._exit(9)\n        [[",
            ),
            "dry run failed",
        ),
    ],
)
def test_a_dry_run_that_fails_is_a_status(tmp_path: Path, change: tuple[str, str], reason: str) -> None:
    assert change[0] in TWO_STAGES
    with Program(tmp_path, script(tmp_path, TWO_STAGES.replace(*change)), "--dry-run") as program:
        assert program.process.wait(BOUND) == 1, program.output
        errors = [line["fields"]["message"] for line in program.lines() if line["level"] == "ERROR"]
        assert any(reason in message for message in errors), program.output
        assert "ran on" not in program.output


def test_a_dry_run_without_examples_only_starts_the_workers(tmp_path: Path) -> None:
    text = TWO_STAGES.replace('example = MappingProxyType({"word": "warm"})', "").replace('self.example = ["up"]', "")
    with Program(tmp_path, script(tmp_path, text), env={"MOSEC_DRY_RUN": "true"}) as program:
        assert program.process.wait(BOUND) == 0, program.output
        assert len(program.events("cannot find the example in the 1st stage worker, skip warmup")) == 2
        assert results(program) == []


def test_reload_starts_again_when_the_code_changes(tmp_path: Path) -> None:
    path = script(tmp_path, TWO_STAGES)
    with Program(tmp_path, path, "--port", "0", "--address", "127.0.0.1", "--reload") as service:

        def answer(runs: int) -> list[Any]:
            port = port_of(service.wait_for_events("http service is running", runs)[-1])
            return json.loads(request(port, "POST", "/second", b'"y"')[2])

        before = answer(1)
        path.write_text("this is not Python")
        service.wait_for_events("the service ended with status 1; waiting for a change", 1)
        assert not is_running(before[3])
        path.write_text(TWO_STAGES.replace("[word, self", "[word.upper(), self"))
        after = answer(2)
        assert (before[0], after[0]) == ("y", "Y")
        assert service.end() == 0, service.output
        wait_until(lambda: not is_running(after[3]), "the workers are gone")


def test_a_reload_whose_parent_is_killed_leaves_nothing(tmp_path: Path) -> None:
    path = script(tmp_path, TWO_STAGES)
    with Program(tmp_path, path, "--port", "0", "--address", "127.0.0.1", "--reload") as service:
        port = port_of(service.wait_for_events("http service is running", 1)[-1])
        worker = json.loads(request(port, "POST", "/second", b'"y"')[2])[3]
        service.process.kill()
        service.process.wait(BOUND)
        wait_until(lambda: not is_running(worker), "the workers are gone")
