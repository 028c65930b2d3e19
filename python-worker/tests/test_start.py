"""The start of a worker process, in a process of its own with a channel that records what it is told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mosec import runner
from mosec.forward import Forward
from mosec.worker import Worker

# Stands in for the native extension, and prints what happened on the channel as the last line.
HARNESS = """
import json, sys, types
import mosec
sys.path.insert(0, {tests!r})
from fake_channel import FakeChannel
channel = FakeChannel([[(3, b'{{"from": "client"}}')]])
native = types.ModuleType("mosec._native")
native.Channel = types.SimpleNamespace(attach=lambda: (channel, {spec!r}))
sys.modules["mosec._native"] = mosec._native = native
sys.path.remove({tests!r})
from mosec import runner
from mosec.forward import Forward
status = runner.main()
answers = [[code, payload.decode()] for items in channel.answers.values() for code, payload in items]
print(json.dumps({{"status": status, "events": channel.events, "answers": answers}}))
"""

SCRIPT = """
import os, signal, sys
import helper
from mosec import Worker

class Where(Worker):
    def __init__(self):
        self.born = (self.worker_id, self.stage, self.max_batch_size)

    def forward(self, data):
        return {
            "data": data,
            "born": self.born,
            "now": (self.worker_id, self.stage, self.max_batch_size),
            "module": [__name__, type(self).__module__, getattr(sys.modules["__main__"], "Where", None) is Where],
            "argv": sys.argv,
            "cwd": os.getcwd(),
            "path": sys.path[0],
            "helper": helper.VALUE,
            "ignored": [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGINT)],
        }

class Outer:
    class Inner(Where):
        pass

class Broken(Where):
    def __init__(self):
        raise OSError("no model here")

if __name__ == "__main__":
    raise AssertionError("the guarded part ran")
"""


@pytest.fixture
def service(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "server.py").write_text(SCRIPT)
    (tmp_path / "app" / "helper.py").write_text("VALUE = 7\n")
    return tmp_path


def spec(folder: Path, **changes: Any) -> dict[str, Any]:
    source = {"dir": str(folder), "main": "app/server.py", "argv": ["--x", "1"], "python": None}
    stage = {
        "name": "Where_1",
        "module": "__main__",
        "class": "Where",
        "replicas": 2,
        "max_batch_size": 1,
        "max_wait": 10,
        "timeout": 3000,
    }
    stage |= {key: value for key, value in changes.items() if key in stage}
    source |= {key: value for key, value in changes.items() if key in source}
    return {"source": source, "stage": stage, "replica": 2}


def start(described: dict[str, Any], python_path: str) -> tuple[dict[str, Any], str]:
    harness = HARNESS.format(tests=str(Path(__file__).parent), spec=json.dumps(described))
    done = subprocess.run(
        [sys.executable, "-c", harness],
        env=os.environ | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("name", ["Where", "Outer.Inner"])
def test_the_script_is_loaded_as_multiprocessing_does(service: Path, python_path: str, name: str) -> None:
    result, _ = start(spec(service, **{"class": name}), python_path)
    assert (result["status"], result["events"]) == (0, ["ready", "started", "ended"])
    ((code, payload),) = result["answers"]
    assert code == 0
    assert json.loads(payload) == {
        "data": {"from": "client"},
        "born": [0, "", 1],
        "now": [2, "Where_1", 1],
        "module": ["__mp_main__", "__mp_main__", True],
        "argv": ["app/server.py", "--x", "1"],
        "cwd": str(service),
        "path": str(service / "app"),
        "helper": 7,
        "ignored": [True, True],
    }


def test_a_class_is_found_where_the_script_has_found_it(
    service: Path, python_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (service / "more").mkdir()
    (service / "more" / "stages.py").write_text("from server import Where\n")
    monkeypatch.setenv("MOSEC_INTERNAL_SEARCH_PATH", json.dumps([[str(service / "more")], []]))
    result, errors = start(spec(service, module="stages"), python_path)
    assert result["status"] == 0, errors
    payload = json.loads(result["answers"][0][1])
    assert payload["path"] == str(service / "more")


def test_a_class_of_a_module_needs_no_script(service: Path, python_path: str) -> None:
    result, _ = start(spec(service / "app", main=None, module="server"), python_path)
    ((code, payload),) = result["answers"]
    assert (code, json.loads(payload)["module"][:2]) == (0, ["server", "server"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class": "Broken"}, "OSError: no model here"),
        ({"class": "Absent"}, "there is no Absent in module __main__"),
        ({"class": "Outer"}, "__main__:Outer is not a subclass of mosec.Worker"),
        ({"module": "absent"}, "No module named 'absent'"),
        ({"main": "absent.py"}, "No such file or directory"),
    ],
)
def test_a_start_that_fails_says_why(service: Path, python_path: str, changes: dict[str, Any], text: str) -> None:
    result, _ = start(spec(service, **changes), python_path)
    assert result["status"] == 1 and result["answers"] == []
    (event,) = result["events"]
    assert event.startswith("failed: Traceback") and text in event


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("def broken(:", "SyntaxError"),
        ("from mosec import Server\nServer().run()", "no worker registered"),
    ],
)
def test_a_script_that_cannot_be_loaded_says_why(tmp_path: Path, python_path: str, lines: str, text: str) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "server.py").write_text(lines)
    result, _ = start(spec(tmp_path), python_path)
    assert result["status"] == 1 and text in result["events"][0]


class Warmed(Worker):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def forward(self, data: Any) -> Any:
        if data == "bad":
            raise ValueError("cannot")
        self.seen.append(data)


class NoTruth:
    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")


def test_examples_are_run_as_they_are() -> None:
    array = NoTruth()
    for given, seen in [({"example": [1, 2]}, [[1, 2]]), ({"example": 0}, []), ({"example": array}, [array])]:
        worker = type("W", (Warmed,), given)()
        runner.warm_up(worker, Forward(worker))
        assert worker.seen == seen
    worker = type("W", (Warmed,), {"example": 1, "multi_examples": [2, 3]})()
    runner.warm_up(worker, Forward(worker))
    assert worker.seen == [2, 3]


def test_a_failing_example_does_not_stop_the_worker(service: Path, python_path: str) -> None:
    script = service / "app" / "server.py"
    script.write_text(
        "import server_base\nfrom mosec import Worker\n" + "class Where(Worker):\n    example = 'bad'\n"
        "    def forward(self, data):\n        return data['from']\n"
    )
    (service / "app" / "server_base.py").write_text("")
    result, log = start(spec(service), python_path)
    assert result["answers"] == [[0, '"client"']]
    assert '"level": "ERROR"' in log and "<Where_1|2> warmup failed" in log
